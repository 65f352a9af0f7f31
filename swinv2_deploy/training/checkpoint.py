"""Crash-safe training state: one safetensors file, written beside the old one and renamed over it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from swinv2_deploy.atomic import flush
from swinv2_deploy.errors import TrainingError
from swinv2_deploy.modeling.io import save_tensors

FILE_NAME = "checkpoint.safetensors"
SCHEMA = 1


@dataclass(slots=True)
class TrainingState:
    """Everything a run needs to go on.

    Attributes:
        model: The weights being trained.
        average: Their exponential moving average, by parameter name.
        optimizer: AdamW over the model's parameters.
        epoch: Epochs finished.
        step: Steps finished.
        history: One record an epoch.
    """

    model: nn.Module
    average: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    epoch: int
    step: int
    history: list[dict[str, Any]]


def save_checkpoint(folder: Path, state: TrainingState, spec: dict[str, Any], images_sha256: str) -> None:
    """Write the state to ``folder``; a crash at any moment leaves the previous file whole.

    Raises:
        TrainingError: When it cannot be written; the previous file stays.
    """
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    progress = {
        "schema": SCHEMA,
        "epoch": state.epoch,
        "step": state.step,
        "history": state.history,
        "spec": spec,
        "images_sha256": images_sha256,
    }
    temporary = folder / f".{FILE_NAME}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        save_tensors(content, temporary, {"run": json.dumps(progress)})
        flush(temporary)
        os.replace(temporary, folder / FILE_NAME)
        flush(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise TrainingError(
            f"The checkpoint cannot be written to {folder} ({error.strerror}); free some room or use another --run folder. The "
            "same command goes on from the epoch before."
        ) from error


def load_checkpoint(folder: Path, state: TrainingState, spec: dict[str, Any], images_sha256: str) -> bool:
    """Restore the state in place; False when there is no checkpoint.

    Raises:
        TrainingError: When the checkpoint is damaged or belongs to another recipe, other images or another model.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            progress = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        schema, recipe = progress["schema"], progress["spec"]
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); delete it to start over.") from error
    if schema != SCHEMA or recipe != json.loads(json.dumps(spec)):
        raise TrainingError(
            f"{path} belongs to a run with another recipe ({_differences(recipe, spec)}); use another --run folder, or delete it."
        )
    if progress.get("images_sha256", images_sha256) != images_sha256:
        raise TrainingError(f"{path} belongs to a run on other images; use another --run folder, or delete it.")
    try:
        state.model.load_state_dict(
            {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        )
        state.average = {name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")}
        for name, parameter in state.model.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            state.optimizer.state[parameter] = {key: tensors[f"optimizer.{key}.{name}"] for key in keys}
    except (KeyError, RuntimeError) as error:
        raise TrainingError(f"{path} does not fit this model ({error}); use another --run folder, or delete it.") from error
    state.epoch, state.step, state.history = progress["epoch"], progress["step"], progress["history"]
    return True


def _differences(recipe: Any, spec: dict[str, Any]) -> str:
    """Settings that differ, with both values."""
    stored = recipe if isinstance(recipe, dict) else {}
    asked = json.loads(json.dumps(spec))
    names = [name for name in asked if stored.get(name) != asked[name]]
    return ", ".join(f"{name} {stored.get(name)} there, {asked[name]} now" for name in names) or "another version wrote it"
