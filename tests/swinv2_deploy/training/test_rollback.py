"""A loss or gradient that is no number takes a run back, with a lower learning rate; and at last it gives up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2Classifier, initialize
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import TrainingError
from swinv2_deploy.training import Phase, TrainResult, TrainSpec, train
from swinv2_deploy.training.checkpoint import FILE_NAME
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.state import TrainingState
from swinv2_deploy.training.step import Stepper

RECIPE = Preprocessing(size=(16, 16), resize_shortest=None)
SPEC = TrainSpec(
    epochs=3,
    phases=(Phase(resolution=16, share=1.0),),
    batch_size=8,
    warmup_epochs=0.0,
    checkpoint_every=2,
    seed=5,
)


def run(config: SwinV2Config, images: TrainingImages, folder: Path, spec: TrainSpec = SPEC, **others: Any) -> TrainResult[Any]:
    model = SwinV2Classifier(config)
    initialize(model, torch.Generator().manual_seed(0))
    return train(model, spec, training=images, tuning=None, preprocessing=RECIPE, folder=folder, **others)


def fail_while(monkeypatch: pytest.MonkeyPatch, broken: Any, what: str = "loss") -> None:
    """Make the loss, or one gradient, no number in the steps for which ``broken(state)`` is true."""
    gradients = Stepper._gradients

    def failing(self: Stepper, state: TrainingState, images: Tensor, targets: Tensor) -> float:
        loss = gradients(self, state, images, targets)
        if not broken(state):
            return loss
        if what == "loss":
            return float("inf")
        next(state.model.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(Stepper, "_gradients", failing)


@pytest.mark.parametrize(("what", "cause"), [("loss", "The loss is inf"), ("gradient", "The gradient's norm is nan")])
def test_a_run_goes_back_and_on_with_a_lower_rate(
    what: str, cause: str, images: TrainingImages, config: SwinV2Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last state that was kept, within the epoch; history, checkpoint and report tell of it."""
    fail_while(monkeypatch, lambda state: state.step == 9 and state.rate_factor == 1, what)
    told: list[dict[str, Any]] = []
    result = run(config, images, tmp_path, report=told.append)
    expected = {"step": 9, "back_to": 8, "cause": cause, "learning_rate_factor": 0.5}

    assert [record.get("rollbacks") for record in result.history] == [None, [expected], None]
    assert [figures["rollback"] for figures in told if "rollback" in figures] == [expected]
    steps = [(figures["step"], figures["learning_rate"]) for figures in told if "steps" in figures]
    assert [step for step, _ in steps] == [*range(1, 10), *range(9, 19)]
    assert steps[9][1] == pytest.approx(0.5 * steps[8][1])
    assert all(torch.isfinite(value).all() for value in result.model.state_dict().values())
    with safe_open(tmp_path / FILE_NAME, framework="pt") as file:
        assert json.loads(file.metadata()["run"])["rollbacks"] == [expected]


def test_going_back_is_as_if_the_rate_had_been_lower_from_there(
    images: TrainingImages, config: SwinV2Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first step: the run that goes back equals the run that was told half of the rate, to the bit."""
    half = replace(SPEC, learning_rate=SPEC.learning_rate / 2, final_learning_rate=SPEC.final_learning_rate / 2)
    wanted = run(config, images, tmp_path / "half", half)
    fail_while(monkeypatch, lambda state: state.step == 1 and state.rate_factor == 1)
    found = run(config, images, tmp_path / "back")

    assert [record["loss"] for record in found.history] == [record["loss"] for record in wanted.history]
    state = wanted.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.model.state_dict().items())


def test_a_run_that_stays_broken_gives_up(
    images: TrainingImages, config: SwinV2Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as many rollbacks as the recipe allows, with the step; the checkpoint before stays."""
    fail_while(monkeypatch, lambda state: state.step == 9)
    with pytest.raises(TrainingError, match=r"The loss is inf at step 9; .*\(times 0\.25 already, after 2 rollbacks\)"):
        run(config, images, tmp_path, replace(SPEC, max_rollbacks=2))
    with safe_open(tmp_path / FILE_NAME, framework="pt") as file:
        assert json.loads(file.metadata()["run"])["step"] == 8


def test_a_run_that_may_not_go_back_ends_at_once(
    images: TrainingImages, config: SwinV2Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps no state to go back to."""
    fail_while(monkeypatch, lambda state: state.step == 9)
    with pytest.raises(TrainingError, match=r"The loss is inf at step 9; lower the learning rate, or use"):
        run(config, images, tmp_path, replace(SPEC, max_rollbacks=0))
