"""Scores are what they say: squared derivatives of gates, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from swinv2_deploy.errors import UnsupportedModelError
from swinv2_deploy.prune.importance import Batch, Importance, Scores, measure
from swinv2_deploy.prune.left_out import leave_one_out, sample_heads, spearman
from swinv2_deploy.prune.spec import CRITERIA, Criterion
from swinv2_deploy.prune.units import LAYER, Block, Kind, module_of

Make = Callable[[SwinV2Config], SwinV2]


def batches(images: Tensor, labels: Tensor | None, size: int) -> Callable[[], Iterator[Batch]]:
    def run() -> Iterator[Batch]:
        for start in range(0, len(images), size):
            chosen = slice(start, start + size)
            yield (images[chosen],), None if labels is None else labels[chosen]

    return run


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 40, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 4, 2, 1, 1])


def flat(scores: Scores) -> Tensor:
    return torch.tensor([value for blocks in scores.values() for values in blocks.values() for value in values])


def gated(model: SwinV2, kind: Kind, at: Block, gates: Tensor) -> object:
    layer = model.get_submodule(f"{module_of(at)}.{LAYER[kind]}")

    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (arguments[0] * gates.repeat_interleave(arguments[0].shape[-1] // len(gates)),)

    return layer.register_forward_pre_hook(hook)


@pytest.mark.parametrize(("kind", "at"), [("heads", (0, 1)), ("heads", (1, 0)), ("hidden", (0, 0)), ("hidden", (1, 1))])
def test_taylor_is_the_mean_squared_derivative_of_a_gate(
    kind: Kind, at: Block, tiny_model: SwinV2, images: Tensor, labels: Tensor
) -> None:
    """Against gates that are really there, image by image."""
    found = measure(tiny_model, batches(images, labels, 2), "taylor", count=5)
    scores = torch.tensor(found.scores[kind][at], dtype=torch.float64)
    total = torch.zeros_like(scores)
    for image, label in zip(images, labels, strict=True):
        gates = torch.ones(len(scores), requires_grad=True)
        handle = gated(tiny_model, kind, at, gates)
        F.cross_entropy(tiny_model(image[None]), label[None]).backward()  # type: ignore[no-untyped-call]
        handle.remove()  # type: ignore[attr-defined]
        assert gates.grad is not None
        total += gates.grad.double() ** 2
    torch.testing.assert_close(scores, total / 5, rtol=1e-3, atol=1e-12)
    assert found.loss == "cross entropy with the labels"
    assert found.images == 5


@pytest.mark.parametrize("criterion", ["taylor", "activation"])
def test_scores_do_not_depend_on_the_batch(criterion: Criterion, tiny_model: SwinV2, images: Tensor, labels: Tensor) -> None:
    one, all_at_once = (measure(tiny_model, batches(images, labels, size), criterion, count=5) for size in (1, 5))
    torch.testing.assert_close(flat(one.scores), flat(all_at_once.scores), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("task", ["encoder", "backbone", "masked_image_modeling", "classification"])
def test_models_without_labels_are_judged_too(task: str, tiny_config: SwinV2Config, make_model: Make, images: Tensor) -> None:
    others = {"num_classes": 0} if task != "classification" else {}
    features = {"out_features": ("stage1", "stage2")} if task == "backbone" else {}
    model = make_model(replace(tiny_config, task=task, **others, **features))  # type: ignore[arg-type]
    found = measure(model, batches(images, None, 2), "taylor", count=5)
    assert (flat(found.scores) > 0).all()
    assert "labels" not in found.loss
    again = measure(model, batches(images, None, 2), "taylor", count=5)
    assert again == found
    assert measure(model, batches(images, None, 2), "taylor", count=5, seed=1) != found


def test_a_random_direction_predicts_what_the_outputs_change_by(tiny_config: SwinV2Config, make_model: Make) -> None:
    """Without labels the mean square is the squared change of the outputs, to first order: ranks agree with leaving heads out."""
    model = make_model(replace(tiny_config, task="encoder", num_classes=0))
    images = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = measure(model, batches(images, None, 8), "taylor", count=48)
    heads = sample_heads(model, 99, 0)
    left = leave_one_out(model, batches(images, None, 16), found.scores, heads)
    assert len(heads) == 12
    assert left.rank_correlation > 0.8


def test_a_dead_unit_is_worth_nothing(tiny_model: SwinV2, images: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        tiny_model.get_parameter("layers.1.blocks.0.attn.proj.weight")[:, :8] = 0
        tiny_model.get_parameter("layers.0.blocks.1.mlp.fc2.weight")[:, 3] = 0
    for criterion in ("taylor", "activation"):
        found = measure(tiny_model, batches(images, labels, 5), criterion, count=5)
        assert found.scores["heads"][1, 0][0] == 0 < found.scores["heads"][1, 0][1]
        assert found.scores["hidden"][0, 1][3] == 0 < found.scores["hidden"][0, 1][4]


def test_shares_of_a_layer_add_up(tiny_model: SwinV2, images: Tensor) -> None:
    """A LayerNorm behind a branch takes its scale away, so layers are comparable only as shares."""
    for criterion in ("activation", "magnitude"):
        for blocks in measure(tiny_model, batches(images, None, 5), criterion, count=5).scores.values():
            assert all(sum(values) == pytest.approx(1) for values in blocks.values())


def test_measuring_leaves_the_model_alone(tiny_model: SwinV2, images: Tensor, labels: Tensor) -> None:
    wanted = tiny_model.get_parameter("head.weight")
    tiny_model.get_parameter("norm.weight").requires_grad_(False)
    for criterion in CRITERIA:
        measure(tiny_model, batches(images, labels, 5), criterion, count=5)
    assert wanted.requires_grad
    assert wanted.grad is None
    assert not tiny_model.get_parameter("norm.weight").requires_grad
    assert not any(module._forward_pre_hooks for module in tiny_model.modules())


def test_random_and_magnitude_look_at_no_image(tiny_model: SwinV2) -> None:
    def never() -> Iterator[Batch]:
        raise AssertionError

    first, second = (measure(tiny_model, never, "random", count=0, seed=seed) for seed in (0, 1))
    assert flat(first.scores).tolist() != flat(second.scores).tolist()
    assert measure(tiny_model, never, "random", count=0, seed=1) == second
    assert measure(tiny_model, never, "magnitude", count=0).images == 0


def test_an_image_without_a_finite_answer_is_refused(tiny_model: SwinV2, images: Tensor, labels: Tensor) -> None:
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(UnsupportedModelError, match=r"no finite number, first at layers\.0\.blocks\.0; check the weights"):
        measure(tiny_model, batches(images, labels, 2), "taylor", count=5)


def test_the_file_names_every_block(tiny_model: SwinV2) -> None:
    content = measure(tiny_model, lambda: (), "magnitude", count=0).to_dict()
    assert [(row["stage"], row["block"], len(row["heads"]), len(row["hidden"])) for row in content["blocks"]] == [
        (0, 0, 2, 64),
        (0, 1, 2, 64),
        (1, 0, 4, 128),
        (1, 1, 4, 128),
    ]
    assert content["criterion"] == "magnitude"


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 25, 90]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 2, 2], [1, 2, 3, 4]) == pytest.approx(0.8944, abs=1e-4)  # ties share their mean rank
    assert spearman([1, 2, 3], [5, 5, 5]) == 0


def test_a_sample_of_heads_is_the_same_again(tiny_model: SwinV2) -> None:
    assert sample_heads(tiny_model, 5, 3) == sample_heads(tiny_model, 5, 3)
    assert sample_heads(tiny_model, 5, 3) != sample_heads(tiny_model, 5, 4)
    assert sample_heads(tiny_model, 5, 3) == sorted(sample_heads(tiny_model, 5, 3))
    assert isinstance(Importance(criterion="random", scores={"heads": {}, "hidden": {}}, images=0), Importance)
