"""Launchers and what they promised; parts of a batch; any module of logits; runs that are asked to stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor, nn

from reference_model.config import ConfigError, SwinV2Config
from reference_model.model import DropPath, SwinV2Classifier, initialize
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import ArtifactLocked, SpecError, TrainingError, TrainingStopped
from swinv2_deploy.training import Phase, TrainResult, TrainSpec, train
from swinv2_deploy.training.checkpoint import EARLIER, FILE_NAME
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.processes import asked_processes, join_processes, rank_of

RECIPE = Preprocessing(size=(16, 16), resize_shortest=None)
SPEC = TrainSpec(epochs=2, phases=(Phase(resolution=16, share=1.0),), batch_size=8, warmup_epochs=0.0, seed=5)


def fresh(config: SwinV2Config) -> SwinV2Classifier:
    model = SwinV2Classifier(config)
    initialize(model, torch.Generator().manual_seed(0))
    return model


def run(model: nn.Module, images: TrainingImages, folder: Path, spec: TrainSpec = SPEC, **others: Any) -> TrainResult[Any]:
    return train(model, spec, training=images, tuning=None, preprocessing=RECIPE, folder=folder, **others)


# --- launchers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "asked", "rank"),
    [
        ({}, 1, 0),
        ({"WORLD_SIZE": "4", "RANK": "3"}, 4, 3),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, 2, 1),
        # What 'accelerate launch --cpu' sets for one process, for two, and what torchrun adds when accelerate starts it.
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}, 1, 0),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, 2, 0),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1"}, 1, 0),
        ({"MASTER_ADDR": "127.0.0.1"}, 1, 0),
    ],
)
def test_the_environment_says_how_many_were_asked_for(environment: dict[str, str], asked: int, rank: int) -> None:
    """Numbers where a launcher sets them, traces where it does not."""
    assert asked_processes(environment) == asked
    assert rank_of(environment) == rank


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            r"asked for 2 or more processes, and 1 runs.*torchrun",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision bf16 and the recipe fp32"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DEEPSPEED; expected data parallelism"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "FSDP for FSDP_OFFLOAD_PARAMS.*stay on the device"),
        ({"ACCELERATE_USE_FSDP": "1", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use --checkpoint-blocks"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "the compiler INDUCTOR"),
    ],
)
def test_launchers_that_ask_for_something_else_are_refused(
    environment: dict[str, str], words: str, images: TrainingImages, config: SwinV2Config, tmp_path: Path, monkeypatch: Any
) -> None:
    """Loudly: a run with fewer processes or another precision looks like any other. Nothing is written."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=words):
        run(fresh(config), images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_world_that_did_not_come_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate is set up already, with one process, when the environment speaks of two."""
    join_processes(SPEC)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="asked for 2 or more processes, and 1 runs"):
        join_processes(SPEC)


# --- parts of a batch, memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"accumulate": 4}, {"checkpoint_blocks": True}, {"window_chunk": 5}],
    ids=lambda changes: next(iter(changes)),
)
def test_less_memory_is_the_same_run(
    changes: dict[str, Any], images: TrainingImages, config: SwinV2Config, tmp_path: Path
) -> None:
    """The same losses up to the order in which floats are added; the model is left as it was, and so is its copy."""
    plain = run(fresh(config), images, tmp_path / "plain")
    model = fresh(config)
    found = run(model, images, tmp_path / "parts", replace(SPEC, **changes))

    assert [record["loss"] for record in found.history] == pytest.approx([r["loss"] for r in plain.history], abs=1e-5)
    for module in [*model.modules(), *found.model.modules()]:
        if isinstance(module, DropPath):
            assert module.part is None
        assert not getattr(module, "checkpoint_blocks", False)
        assert not getattr(module, "window_chunk", 0)


# --- any module --------------------------------------------------------------------------------------------------------


class Quantized(nn.Module):
    """Logits of pixel means, through a quantizer whose range moves and whose gain is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("amax", torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.amax.lerp_(images.detach().abs().max(), 0.5)
        logits: Tensor = self.head((images * self.gain / self.amax).mean(dim=(2, 3))) * self.frozen
        return logits


def test_any_module_of_logits_is_trained(images: TrainingImages, tmp_path: Path) -> None:
    """The result is a copy of its kind: averaged parameters, the last buffers; the checkpoint holds them all."""
    model = Quantized()
    result = run(model, images, tmp_path, num_classes=2)
    kept = load_file(tmp_path / FILE_NAME)

    assert type(result.model) is Quantized
    assert result.model is not model
    assert torch.equal(result.model.amax, model.amax)
    assert torch.equal(result.model.gain, kept["average.gain"])
    assert not torch.equal(result.model.gain, model.gain)
    assert torch.equal(kept["model.amax"], model.amax)
    assert float(model.amax) != 1
    assert torch.equal(model.frozen, torch.ones(2))
    assert {name for name in kept if name.startswith("optimizer.exp_avg.")} == {
        f"optimizer.exp_avg.{name}" for name in ("head.weight", "head.bias", "gain")
    }


def test_what_any_module_cannot_do_is_refused(images: TrainingImages, tmp_path: Path) -> None:
    """Its classes must be told, and options that need a Swin Transformer are not passed over."""
    with pytest.raises(SpecError, match="Quantized does not tell how many classes it has"):
        run(Quantized(), images, tmp_path)
    with pytest.raises(SpecError, match=r"layers\.<stage>"):
        run(Quantized(), images, tmp_path, replace(SPEC, layer_decay=0.9), num_classes=2)
    with pytest.raises(ConfigError, match="holds no stage"):
        run(Quantized(), images, tmp_path, replace(SPEC, window_chunk=9), num_classes=2)


# --- stopping, and two at a time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, 6, 12])
def test_a_run_that_is_asked_to_stop_goes_on_later(
    step: int, images: TrainingImages, config: SwinV2Config, tmp_path: Path
) -> None:
    """After the step under way, with a checkpoint, on the grid of checkpoints or off it; every bit is the same in the end."""
    spec = replace(SPEC, checkpoint_every=2)
    whole = run(fresh(config), images, tmp_path / "whole", spec)
    now = 0

    def follow(figures: dict[str, Any]) -> None:
        nonlocal now
        now = figures.get("step", now)

    with pytest.raises(TrainingStopped, match=f"after step {step}, whose checkpoint is written") as stopped:
        run(fresh(config), images, tmp_path / "run", spec, report=follow, stop=lambda: 15 if now == step else 0)
    assert stopped.value.exit_code == 143
    kept = load_file(tmp_path / "run" / FILE_NAME)
    assert any(name.startswith(EARLIER) for name in kept) == (step in (1, 3))

    resumed = run(fresh(config), images, tmp_path / "run", spec)
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.model.state_dict().items())
    files = [load_file(tmp_path / name / FILE_NAME) for name in ("whole", "run")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


def test_two_runs_do_not_share_a_folder(images: TrainingImages, config: SwinV2Config, tmp_path: Path) -> None:
    """The second one ends at once, with what to do; a lock that nobody holds does not matter."""
    with (
        FileLock(tmp_path / ".run.lock"),
        pytest.raises(ArtifactLocked, match=r"Another run has its checkpoint in .*run; wait"),
    ):
        run(fresh(config), images, tmp_path / "run")
    run(fresh(config), images, tmp_path / "run", replace(SPEC, epochs=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
