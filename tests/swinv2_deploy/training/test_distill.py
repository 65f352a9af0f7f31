"""Learning from a teacher: the losses, what they lead to, and recipes that do not fit."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2Classifier, initialize
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import SpecError, TrainingError
from swinv2_deploy.training import Phase, TrainResult, TrainSpec, train
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.distill import features_loss, logits_loss

RECIPE = Preprocessing(size=(16, 16), resize_shortest=None)
SPEC = TrainSpec(
    epochs=6,
    phases=(Phase(resolution=16, share=1.0),),
    batch_size=8,
    warmup_epochs=0.0,
    learning_rate=3e-3,
    mixup=0.0,
    cutmix=0.0,
    drop_path=0.0,
    ema_decay=0.0,
    distill_weight=1.0,
)


def fresh(config: SwinV2Config, seed: int = 0) -> SwinV2Classifier:
    model = SwinV2Classifier(replace(config, drop_path_rate=0.0))
    initialize(model, torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def teacher(config: SwinV2Config) -> SwinV2Classifier:
    """Sure of an answer that no label gives: far from any model that was not taught."""
    model = fresh(config, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
        model.head.weight.mul_(50)
    return model.eval()


def run(
    model: nn.Module,
    images: TrainingImages,
    folder: Path,
    spec: TrainSpec = SPEC,
    teacher: nn.Module | None = None,
    **others: Any,
) -> TrainResult[Any]:
    return train(model, spec, training=images, tuning=None, preprocessing=RECIPE, folder=folder, teacher=teacher, **others)


def test_divergence_of_logits_is_that_of_the_definition() -> None:
    """Sum of p (log p - log q) at the temperature, times its square; zero for equal logits."""
    own, theirs = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (theirs / 3).double().softmax(1), (own / 3).double().softmax(1)
    wanted = (p * (p.log() - q.log())).sum(1).mean() * 9

    assert float(logits_loss(own, theirs, 3.0)) == pytest.approx(float(wanted), rel=1e-5)
    assert float(logits_loss(theirs, theirs, 3.0)) == pytest.approx(0, abs=1e-6)


def test_difference_of_features_is_relative() -> None:
    """Nothing for equal maps, one for blank ones, whatever their size."""
    maps = {"0": torch.randn(2, 4, 4, 8), "1": 100 * torch.randn(2, 2, 2, 16)}
    blank = {name: torch.zeros_like(value) for name, value in maps.items()}

    assert float(features_loss(maps, maps)) == 0
    assert float(features_loss(blank, maps)) == pytest.approx(1)


@pytest.mark.parametrize(
    "weights", [{"distill_weight": 1.0}, {"distill_weight": 0.5, "feature_weight": 1.0}], ids=["logits", "both"]
)
def test_a_taught_model_comes_closer_to_its_teacher(
    weights: dict[str, float], images: TrainingImages, config: SwinV2Config, teacher: SwinV2Classifier, tmp_path: Path
) -> None:
    """Closer than the same run without, and the teacher stays as it was."""
    pixels = torch.stack([torch.from_numpy(RECIPE(image)) for image in images.images])
    before = deepcopy(teacher.state_dict())
    off = replace(SPEC, distill_weight=0.0)
    alone = run(fresh(config), images, tmp_path / "alone", off).model
    taught = run(fresh(config), images, tmp_path / "taught", replace(SPEC, **weights), teacher).model

    def apart(model: nn.Module) -> float:
        with torch.no_grad():
            return float(logits_loss(model(pixels), teacher(pixels), 1.0))

    assert apart(taught) < 0.5 * apart(alone)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module._forward_hooks for module in [*taught.modules(), *teacher.modules()])


def test_the_loss_is_the_weighted_sum(
    images: TrainingImages, config: SwinV2Config, teacher: SwinV2Classifier, tmp_path: Path
) -> None:
    """The first loss of a run, recomputed from its first batch."""
    spec = replace(SPEC, epochs=1, distill_weight=0.3, temperature=4.0, feature_weight=0.2)
    model = fresh(config)
    pixels, targets = next(images.batches(spec, 0, RECIPE, 2))

    def maps(of: SwinV2Classifier) -> dict[str, Tensor]:
        found, x = {}, of.patch_embed(pixels)
        for number, stage in enumerate(of.layers):
            found[str(number)], x = stage(x)
        return found

    with torch.no_grad():
        own, theirs = model(pixels), teacher(pixels)
        wanted = 0.7 * F.cross_entropy(own, targets) + 0.3 * logits_loss(own, theirs, 4.0)
        wanted += 0.2 * features_loss(maps(model), maps(teacher))
    told: list[dict[str, Any]] = []
    run(model, images, tmp_path, spec, teacher, report=told.append)
    first = next(figures["loss"] for figures in told if "steps" in figures)

    assert first == pytest.approx(float(wanted), rel=1e-5)


class Named(nn.Module):
    """Any module of logits, without stages."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


def test_recipes_and_teachers_that_do_not_fit_are_refused(
    images: TrainingImages, config: SwinV2Config, teacher: SwinV2Classifier, tmp_path: Path
) -> None:
    """A teacher nobody asks, a missing one, the model itself, other stages, other classes, stages of another width."""
    model = fresh(config)
    with pytest.raises(SpecError, match=r"distill_weight is 1\.0 and feature_weight 0\.0, without a teacher"):
        run(model, images, tmp_path)
    with pytest.raises(SpecError, match="a teacher that nothing would ask"):
        run(model, images, tmp_path, replace(SPEC, distill_weight=0.0), teacher)
    with pytest.raises(SpecError, match="The teacher is the model"):
        run(model, images, tmp_path, SPEC, model)
    with pytest.raises(SpecError, match=r"the stages \['0', '1'\] and the teacher \[\]"):
        run(model, images, tmp_path, replace(SPEC, feature_weight=1.0), Named())
    other = fresh(replace(config, num_classes=3, labels=()))
    with pytest.raises(SpecError, match=r"The teacher gives logits \(8, 3\), the model \(8, 2\)"):
        run(model, images, tmp_path / "classes", SPEC, other)
    wide = fresh(replace(config, embed_dim=32, num_heads=((4, 4), (8, 8)), mlp_hidden=((64, 64), (128, 128))))
    with pytest.raises(SpecError, match="Stage 0 gives"):
        run(model, images, tmp_path / "wide", replace(SPEC, feature_weight=1.0), wide)


def test_a_run_with_another_teacher_is_another_run(
    images: TrainingImages, config: SwinV2Config, teacher: SwinV2Classifier, tmp_path: Path
) -> None:
    """One weight apart."""
    spec = replace(SPEC, epochs=1)
    run(fresh(config), images, tmp_path, spec, teacher)
    with torch.no_grad():
        teacher.head.bias[0] += 1
    with pytest.raises(TrainingError, match="belongs to a run with another teacher"):
        run(fresh(config), images, tmp_path, spec, teacher)
