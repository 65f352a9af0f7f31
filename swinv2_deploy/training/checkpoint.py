"""Crash-safe training state: one safetensors file, written in a folder of its own and renamed over the old one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from swinv2_deploy.atomic import flush, locked, made_parents
from swinv2_deploy.errors import ArtifactLocked, TrainingError
from swinv2_deploy.modeling.io import save_tensors
from swinv2_deploy.training.sharding import cut_like, is_sharded, own_part, whole
from swinv2_deploy.training.state import Snapshot, TrainingState

FILE_NAME = "checkpoint.safetensors"
SCHEMA = 2
UNFINISHED = ".saving"
"""Folder that a checkpoint is written in; what a killed run left there, the next one removes."""

EARLIER = "earlier."
"""Begins the names of the last good state, where it is not the state itself."""

NUMBERS = ("epoch", "step", "loss_sum", "history", "rate_factor", "rollbacks")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a checkpoint belongs to.

    Attributes:
        spec: The recipe, in plain JSON types.
        images_sha256: Hash of the training images.
        teacher_sha256: Hash of the teacher's weights; empty without one.
    """

    spec: dict[str, Any]
    images_sha256: str
    teacher_sha256: str = ""


@contextmanager
def owned(folder: Path, *, writes: bool) -> Iterator[None]:
    """Be the only run that has its checkpoint in ``folder``; a process that writes nothing needs no lock.

    Raises:
        ArtifactLocked: When another run has it.
        TrainingError: When its place cannot be written.
    """
    if not writes:
        with nullcontext():
            yield
        return
    try:
        with made_parents(folder), locked(folder):
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
            yield
    except ArtifactLocked as error:
        raise ArtifactLocked(
            f"Another run has its checkpoint in {folder}; wait for it, or use another --run folder."
        ) from error


def save_checkpoint(folder: Path, state: TrainingState, identity: Identity, *, writes: bool = True) -> None:
    """Write the state to ``folder``; a crash at any moment leaves the previous file whole.

    Every tensor is written whole: all processes of a sharded model call this, and one of them ``writes``.

    Raises:
        TrainingError: When it cannot be written; the previous file stays.
    """
    snapshot = state.snapshot
    progress: dict[str, Any] = {"schema": SCHEMA} | {name: getattr(state, name) for name in NUMBERS}
    progress |= {"spec": identity.spec, "images_sha256": identity.images_sha256, "teacher_sha256": identity.teacher_sha256}
    if snapshot is not None and snapshot.step == state.step and not is_sharded(state.model):
        tensors = snapshot.tensors
    else:
        tensors = _put_together(state.tensors(), keep=writes)
        if snapshot is not None and snapshot.step != state.step:
            tensors |= _put_together({f"{EARLIER}{name}": value for name, value in state.earlier().items()}, keep=writes)
            progress |= {"earlier_step": snapshot.step, "earlier_loss_sum": snapshot.loss_sum}
    if not writes:
        return
    temporary = folder / UNFINISHED / FILE_NAME
    try:
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(tensors, temporary, {"run": json.dumps(progress)})
            flush(temporary)
            os.replace(temporary, folder / FILE_NAME)
            flush(folder)
        finally:
            shutil.rmtree(temporary.parent, ignore_errors=True)
    except OSError as error:
        raise TrainingError(
            f"The checkpoint cannot be written to {folder} ({error.strerror}); free some room or use another --run folder. The "
            "same command goes on from the epoch before, or from the last checkpoint within this one."
        ) from error


def _put_together(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Every tensor whole, as a copy in main memory; a process that does not ``keep`` them only gives its parts."""
    found = {}
    for name, value in tensors.items():
        together = whole(value)
        if keep:
            found[name] = together.to("cpu").contiguous().clone()
    return found


def load_checkpoint(folder: Path, state: TrainingState, identity: Identity) -> bool:
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
        numbers = {name: progress[name] for name in NUMBERS} if schema == SCHEMA else {}
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); delete it to start over.") from error
    if schema != SCHEMA or recipe != json.loads(json.dumps(identity.spec)):
        raise TrainingError(
            f"{path} belongs to a run with another recipe ({_differences(recipe, identity.spec)}); use another --run folder, or "
            "delete it."
        )
    for what, name in (("on other images", "images_sha256"), ("with another teacher", "teacher_sha256")):
        if progress.get(name) != getattr(identity, name):
            raise TrainingError(f"{path} belongs to a run {what}; use another --run folder, or delete it.")
    earlier = {name.removeprefix(EARLIER): value for name, value in tensors.items() if name.startswith(EARLIER)}
    try:
        state.restore({name: value for name, value in tensors.items() if not name.startswith(EARLIER)})
        now = state.tensors() if earlier else {}
        earlier = {name: own_part(cut_like(value, now[name])).to("cpu") for name, value in earlier.items()}
    except (KeyError, RuntimeError) as error:
        raise TrainingError(f"{path} does not fit this model ({error}); use another --run folder, or delete it.") from error
    for name, value in numbers.items():
        setattr(state, name, value)
    if earlier:
        state.snapshot = Snapshot(earlier, progress["earlier_step"], progress["earlier_loss_sum"])
    return True


def _differences(recipe: Any, spec: dict[str, Any]) -> str:
    """Settings that differ, with both values."""
    stored = recipe if isinstance(recipe, dict) else {}
    asked = json.loads(json.dumps(spec))
    names = [name for name in asked if stored.get(name) != asked[name]]
    return ", ".join(f"{name} {stored.get(name)} there, {asked[name]} now" for name in names) or "another version wrote it"


def same_beginning(folder: Path, name: str, content: str, other: str, give: str) -> None:
    """Refuse to go on with a run that began from something else: its checkpoint would bring that back. Notes it for a new run.

    Args:
        folder: Where the checkpoint lives.
        name: File in it that says what the run began from.
        content: What this one begins from.
        other: What another run began from, for the message.
        give: What makes them the same, for the message.

    Raises:
        TrainingError: When it did, or the folder cannot be written.
    """
    path = folder / name
    try:
        if path.is_file() and (folder / FILE_NAME).is_file():
            if path.read_text(encoding="utf-8") != content + "\n":
                raise TrainingError(
                    f"The run in {folder} began from {other}; give the same {give}, use another --run folder, or delete it."
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{path} cannot be written ({error.strerror}); use another --run folder.") from error
