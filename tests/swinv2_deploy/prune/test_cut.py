"""A cut model computes what the whole one does with the same units silenced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_model.config import SwinV2Config, make_config
from reference_model.model import EncoderOutput, SwinV2
from reference_model.variants import VARIANTS
from swinv2_deploy.errors import SpecError
from swinv2_deploy.prune.cut import cut, cut_config, masked
from swinv2_deploy.prune.plan import PrunePlan, whole
from swinv2_deploy.prune.units import KINDS, Kind, blocks_of, units_of

Make = Callable[[SwinV2Config], SwinV2]


def random_plan(config: SwinV2Config, seed: int) -> PrunePlan:
    """Any part of the units of every block, at least one."""
    generator = torch.Generator().manual_seed(seed)

    def kept(kind: Kind) -> dict[tuple[int, int], tuple[int, ...]]:
        found = {}
        for at in blocks_of(config):
            count = units_of(config, kind, at)
            size = int(torch.randint(1, count + 1, (), generator=generator))
            found[at] = tuple(sorted(torch.randperm(count, generator=generator)[:size].tolist()))
        return found

    return PrunePlan(heads=kept("heads"), hidden=kept("hidden"))


def outputs(model: SwinV2, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        found: Any = model(images)
    if isinstance(found, EncoderOutput):
        return {"last_hidden_state": found.last_hidden_state, "pooler_output": found.pooler_output}
    return found if isinstance(found, dict) else {"output": found}


def shallow(name: str) -> SwinV2Config:
    """A published architecture with the first blocks of every stage only, which keeps its widths and its windows."""
    config = VARIANTS[name].config
    depths = tuple(min(depth, 2 if config.final_dim < 2000 else 1) for depth in config.depths)
    heads, hidden = (
        tuple(values[:depth] for values, depth in zip(widths, depths, strict=True))
        for widths in (config.num_heads, config.mlp_hidden)
    )
    removed = tuple(norm for norm in config.removed_norms if norm[1] < depths[norm[0]])
    return replace(config, depths=depths, num_heads=heads, mlp_hidden=hidden, removed_norms=removed)


# The other SimMIM sizes have widths of these; giant is huge once more, and takes gigabytes.
SIZES = sorted(
    {v.size: name for name, v in VARIANTS.items() if not v.size.startswith("simmim") or v.size == "simmim-huge"}.values()
)


@pytest.mark.parametrize("name", SIZES)
def test_masked_and_cut_are_equal_for_every_size(name: str, make_model: Make) -> None:
    """Random plans; the images make windows that are padded and shifted."""
    model = make_model(shallow(name))
    images = torch.randn(2, 3, 80, 64)
    plan = random_plan(model.config, seed=len(name))
    small = cut(model, plan)
    assert small.config == cut_config(model.config, plan)
    assert sum(value.numel() for value in small.state_dict().values()) < sum(v.numel() for v in model.state_dict().values())
    with masked(model, plan):
        expected = outputs(model, images)
    for key, value in outputs(small, images).items():
        assert (value - expected[key]).abs().max() <= 1e-5 * max(1.0, float(expected[key].abs().max()))
    assert not all(torch.equal(value, expected[key]) for key, value in outputs(model, images).items())


@pytest.mark.parametrize("task", ["encoder", "backbone", "masked_image_modeling", "classification"])
@pytest.mark.parametrize("seed", range(3))
def test_masked_and_cut_are_equal_for_every_task(task: str, seed: int, tiny_config: SwinV2Config, make_model: Make) -> None:
    others: dict[str, Any] = {"num_classes": 0} if task != "classification" else {}
    others |= {"out_features": ("stem", "stage2")} if task == "backbone" else {}
    free: dict[str, Any] = {"qkv_bias": seed != 1, "extra_norm_period": seed, "use_absolute_embeddings": seed == 2}
    model = make_model(replace(tiny_config, task=task, **others, **free))  # type: ignore[arg-type]
    plan = random_plan(model.config, seed)
    images = torch.randn(3, 3, 32, 32)
    with masked(model, plan):
        expected = outputs(model, images)
    found = outputs(cut(model, plan), images)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=0)


def test_removing_nothing_is_bit_identical(tiny_model: SwinV2) -> None:
    images = torch.randn(2, 3, 32, 48)
    same = cut(tiny_model, whole(tiny_model.config))
    assert same.config == tiny_model.config
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in tiny_model.state_dict().items())
    assert torch.equal(outputs(same, images)["output"], outputs(tiny_model, images)["output"])
    with masked(tiny_model, whole(tiny_model.config)):
        assert torch.equal(outputs(tiny_model, images)["output"], outputs(same, images)["output"])


def test_the_given_model_is_left_alone_and_shares_nothing(tiny_model: SwinV2) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    small = cut(tiny_model, random_plan(tiny_model.config, 0))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert not small.training


def test_two_cuts_are_one(tiny_model: SwinV2) -> None:
    first = random_plan(tiny_model.config, 1)
    between = cut(tiny_model, first)
    second = random_plan(between.config, 2)
    images = torch.randn(2, 3, 32, 32)
    once, twice = cut(tiny_model, second.after(first)), cut(between, second)
    assert once.config == twice.config
    assert torch.equal(outputs(once, images)["output"], outputs(twice, images)["output"])


def test_a_silenced_unit_lets_nothing_through(tiny_model: SwinV2) -> None:
    """Not even numbers that are none."""
    plan = PrunePlan(heads=whole(tiny_model.config).heads, hidden=whole(tiny_model.config).hidden | {(0, 0): (1, 2, 3)})
    with torch.no_grad():
        tiny_model.get_parameter("layers.0.blocks.0.mlp.fc1.bias")[0] = torch.nan
    with masked(tiny_model, plan):
        assert outputs(tiny_model, torch.randn(1, 3, 32, 32))["output"].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "indices"), [("heads", ()), ("heads", (0, 9)), ("hidden", (3, 1)), ("hidden", (1, 1)), ("hidden", (-1, 2))]
)
def test_a_plan_that_does_not_fit_is_refused(kind: Kind, indices: tuple[int, ...], tiny_model: SwinV2) -> None:
    kept = {known: dict(whole(tiny_model.config).kept(known)) for known in KINDS}
    kept[kind][0, 1] = indices
    plan = PrunePlan(heads=kept["heads"], hidden=kept["hidden"])
    with pytest.raises(SpecError, match=r"stage 0, block 1, which has \d+; expected at least one"):
        cut(tiny_model, plan)
    with pytest.raises(SpecError, match="stage 0, block 1"), masked(tiny_model, plan):
        pass


def test_a_plan_of_other_blocks_is_refused(tiny_model: SwinV2) -> None:
    other = make_config(embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, image_size=32, patch_size=2, num_classes=5)
    with pytest.raises(SpecError, match="2 blocks and the model has 4"):
        cut(tiny_model, whole(other))
