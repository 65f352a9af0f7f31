"""The face of every runner, and the check of what goes in. No torch, no onnx import.

Shape letters: B batch, H W height and width of the images in px.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reference_model.config import DECODER_TASKS, SwinV2Config
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import RunnerError, SpecError

if TYPE_CHECKING:
    from swinv2_deploy.runtime.onnx_file import OnnxFacts

Array = NDArray[np.float32]
Images = NDArray[np.float32] | NDArray[np.uint8]
"""What a file takes: normalized pixels, or photographs."""
Precision = Literal["fp32", "fp16", "bf16", "int8", "uint8"]
Rest = Literal["fp32", "fp16", "bf16"]
"""Number format of what an INT8 file does not compute in integers."""
Provider = Literal["cpu", "cuda", "tensorrt"]
BackEnd = Literal["onnxruntime", "openvino", "tensorrt"]
"""Libraries that run an exported file, or an engine that was compiled from one."""
FloatPrecision = Literal["f32", "bf16"]
"""What OpenVINO computes everything in that is not an integer."""
ProductMode = Literal["exact", "fast"]
"""How 8-bit integers are multiplied. ``exact``: never saturated. ``fast``: as the back end does by itself."""
Products = Literal["exact", "may saturate", "not checked", "none"]
"""How they were found to be: ``not checked`` on another device than the CPU, ``none`` in a file without integers."""
Takes = Literal["pixel_values", "images"]
"""Input of a file: normalized pixels (B, 3, H, W) float32, or photographs (B, H, W, 3) uint8 RGB of any one size."""


class Runner(Protocol):
    """One back end with a model loaded."""

    @property
    def name(self) -> str:
        """What it is called in reports."""

    @property
    def precision(self) -> Precision:
        """Number format of the weights."""

    @property
    def provider(self) -> str:
        """What really computes, as the back end itself reports it."""

    @property
    def resolutions(self) -> ResolutionRange | None:
        """Sizes it accepts; None means any."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""

    def run(self, images: Array) -> dict[str, Array]:
        """Outputs by name, each (B, ...), of normalized float32 images (B, 3, H, W)."""


class FileRunner(Runner, Protocol):
    """A runner of an exported file."""

    def run(self, images: Images) -> dict[str, Array]:
        """Outputs by name, each (B, ...), of what the file takes: normalized float32 (B, 3, H, W), or uint8 (B, H, W, 3)."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def facts(self) -> OnnxFacts:
        """What the file says of itself."""

    @property
    def resolutions(self) -> ResolutionRange:
        """Sizes it accepts."""

    @property
    def back_end(self) -> BackEnd:
        """Library that runs it."""

    @property
    def emulated(self) -> bool:
        """Whether results are computed in float32 and rounded to the file's type; its speed then means nothing."""

    @property
    def integer_products(self) -> Products:
        """Whether products of integers are exact on this machine."""


def output_names(config: SwinV2Config) -> tuple[str, ...]:
    """Names of a model's outputs, the same in every form of it."""
    if config.task == "classification":
        return ("logits",)
    if config.task == "backbone":
        return tuple(f"feature_maps.{name}" for name in config.out_features)
    if config.task in DECODER_TASKS:
        return ("reconstruction",)
    return ("last_hidden_state", "pooler_output")


def check_threads(threads: int | None) -> None:
    """Refuse a number of CPU threads below 1; None leaves the choice to the back end.

    Raises:
        SpecError: With what was expected.
    """
    if threads is not None and threads < 1:
        raise SpecError(f"threads is {threads}; expected at least 1.")


def check_photographs(images: NDArray[Any], name: str) -> None:
    """Refuse what is no batch of photographs.

    Args:
        images: Expected uint8 (B, H, W, 3), B at least 1.
        name: Runner, for the message.

    Raises:
        RunnerError: With what was expected.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape:
        raise RunnerError(
            f"{name} was given {images.dtype} images of shape {tuple(images.shape)}; expected uint8 (B, H, W, 3), RGB photographs "
            "of one size as they are decoded."
        )


def check_images(images: NDArray[Any], name: str, channels: int, resolutions: ResolutionRange | None) -> None:
    """Refuse what a model would choke on or compute wrongly.

    Args:
        images: Expected float32 (B, channels, H, W), B at least 1.
        name: Runner, for the message.
        channels: Channels the model reads.
        resolutions: Sizes it is right at; None means any.

    Raises:
        RunnerError: With what was expected.
    """
    if images.ndim != 4 or images.shape[1] != channels or images.dtype != np.float32:
        raise RunnerError(
            f"{name} was given {images.dtype} images of shape {tuple(images.shape)}; expected float32 (B, {channels}, H, W), "
            "as the artifact's preprocessing makes them."
        )
    if 0 in images.shape:
        raise RunnerError(f"{name} was given images of shape {tuple(images.shape)}; expected at least one image of one pixel.")
    reason = resolutions.refusal(*images.shape[2:]) if resolutions is not None else None
    if reason is not None:
        raise RunnerError(f"{name}: {reason} Resize the images, or export again with a range that holds this size.")
