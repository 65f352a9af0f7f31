"""Which model a user asks for. No torch import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from reference_model.config import TASKS, UPSCALES, Task
from swinv2_deploy.errors import SpecError


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRequest:
    """What was typed to name a model; nothing at all means the bundled one.

    Attributes:
        size: Published size or full variant name.
        resolution: Resolution in px the published model was trained for.
        window: Window of the published model, where several fit.
        weights: Checkpoint file or folder.
        model: Artifact folder, Hugging Face folder or hub id.
        task: What the model is for; None means what its weights are for.
        out_features: Feature maps of a backbone; empty means the last stage.
        seed: Seed of untrained weights.
        classes: Classes of weights that were fine-tuned from a published model with another classifier.
        upscale: For image reconstruction, how many times larger the image becomes; None means what the weights are for.
    """

    size: str | None = None
    resolution: int | None = None
    window: str | None = None
    weights: Path | None = None
    model: str | None = None
    task: Task | None = None
    out_features: tuple[str, ...] = ()
    seed: int = 0
    classes: int | None = None
    upscale: int | None = None

    def __post_init__(self) -> None:
        if self.model is not None and (self.size is not None or self.weights is not None):
            raise SpecError("--model is a whole model; leave out --size and --weights, or give them instead of it.")
        if self.size is None and (self.resolution is not None or self.window is not None):
            raise SpecError(
                "--res and --window choose among the models of a size; add --size, or use --input-size for other sizes."
            )
        if self.task is not None and self.task not in TASKS:
            raise SpecError(f"--task is {self.task!r}; expected one of {', '.join(map(as_option, TASKS))}.")
        if self.out_features and self.task != "backbone":
            raise SpecError("--out-features is for a backbone; add --task backbone.")
        if self.upscale is not None and (self.task != "image_reconstruction" or self.upscale not in UPSCALES):
            raise SpecError(
                f"--upscale is {self.upscale}; it is one of {UPSCALES} and for --task image-reconstruction only. Add or leave out."
            )
        if self.classes is not None and (self.weights is None or self.size is None or self.classes < 1):
            raise SpecError(
                "--classes (at least 1) tells how many classes --weights were fine-tuned for; give --size and --weights."
            )
        if self.weights is not None and not self.weights.exists():
            raise SpecError(f"--weights is {self.weights}, which does not exist; give a checkpoint file or folder.")


def as_task(text: str | None) -> Task | None:
    """The option's text as a task; :class:`SourceRequest` checks it."""
    return None if text is None else cast("Task", text.replace("-", "_"))


def as_option(task: str) -> str:
    """A task as it is typed and as it stands in names of artifacts."""
    return task.replace("_", "-")
