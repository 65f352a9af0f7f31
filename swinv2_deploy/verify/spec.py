"""What a verification is told. No torch import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from swinv2_deploy.errors import SpecError
from swinv2_deploy.runtime.runner import BackEnd, FloatPrecision, Precision, ProductMode, Provider
from swinv2_deploy.verify.tolerances import DEFAULTS, Tolerances

LabelMode = Literal["match", "auto", "ignore"]
"""``match``: folder classes must be labels of the model. ``auto``: accuracy where they are. ``ignore``: never accuracy."""

Engine = Literal["local", "ray"]
"""Who compares the photographs: this machine's processes, or the workers of a Ray cluster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifySpec:
    """What to compare, on what, and how strictly.

    Attributes:
        data: Image folder.
        candidates: ONNX files by name without suffix; empty means every one of the artifact.
        limit: Number of images, evenly over the classes; None means all.
        batch_size: Images run together.
        shard_size: Images that are compared and kept together.
        sizes: (height, width) in px of the size sweep; empty derives them from the range of the files.
        batch_sizes: Batches of the slot check.
        tolerances: Largest drift that passes, by precision.
        labels: What the folder's classes must be.
        threads: CPU threads of every runner; None leaves each its choice.
        back_ends: Libraries that run every file; latencies are compared with the first one's.
        provider: ONNX Runtime's execution provider.
        openvino_precision: What OpenVINO computes in where no integers are.
        integer_products: How integers are multiplied: exactly, or as each library does by itself.
        layer_images: Photographs that drift inside the network is measured on; 0 leaves that out.
        preprocessing_images: Photographs on which other preprocessings are compared with the artifact's own; 0 leaves that out.
        latency_seconds: Time for the latency comparison, in s; 0 leaves it out.
        exclude_overlap: Whether images the artifact was calibrated or trained on are left out instead of refused.
        allow_untrained: Whether weights that were never trained are accepted.
        seed: Seed of the choice of images and of the noise images.
        engine: Who compares the photographs.
    """

    data: Path
    candidates: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int = 8
    shard_size: int = 256
    sizes: tuple[tuple[int, int], ...] = ()
    batch_sizes: tuple[int, ...] = (1, 2, 3, 17)
    tolerances: Mapping[Precision, Tolerances] = field(default_factory=lambda: dict(DEFAULTS))
    labels: LabelMode = "match"
    threads: int | None = None
    back_ends: tuple[BackEnd, ...] = ("onnxruntime",)
    provider: Provider = "cpu"
    openvino_precision: FloatPrecision = "f32"
    integer_products: ProductMode = "exact"
    layer_images: int = 8
    preprocessing_images: int = 0
    latency_seconds: float = 3.0
    exclude_overlap: bool = False
    allow_untrained: bool = False
    seed: int = 0
    engine: Engine = "local"

    def __post_init__(self) -> None:
        for name in ("limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecError(f"{name} is {value}; expected at least 1.")
        if self.batch_size < 1 or not self.batch_sizes or min(self.batch_sizes) < 1:
            raise SpecError(f"batch_size is {self.batch_size} and batch_sizes {self.batch_sizes}; expected numbers from 1.")
        if self.shard_size < 1:
            raise SpecError(f"shard_size is {self.shard_size}; expected a number of images from 1.")
        if any(min(size) < 1 for size in self.sizes):
            raise SpecError(f"sizes is {self.sizes}; expected (height, width) pairs in px, all positive.")
        for name in ("layer_images", "preprocessing_images"):
            if getattr(self, name) < 0:
                raise SpecError(f"{name} is {getattr(self, name)}; expected a whole number from 0.")
        if not self.latency_seconds >= 0:
            raise SpecError(f"latency_seconds is {self.latency_seconds}; expected 0 or more.")
        if self.engine not in get_args(Engine):
            raise SpecError(f"There is no engine {self.engine!r}; expected one of {list(get_args(Engine))}.")
        if self.engine == "ray" and self.threads is None:
            raise SpecError("A Ray worker takes as many CPUs as it has threads; say how many with --threads.")
        if self.labels not in get_args(LabelMode):
            raise SpecError(f"labels is {self.labels!r}; expected one of {list(get_args(LabelMode))}.")
        self._check_back_ends()
        missing = [name for name in get_args(Precision) if name not in self.tolerances]
        if missing:
            raise SpecError(f"tolerances lacks {missing}; start from verify.tolerances.DEFAULTS.")

    def _check_back_ends(self) -> None:
        for name, kind in (
            ("provider", Provider),
            ("openvino_precision", FloatPrecision),
            ("integer_products", ProductMode),
        ):
            if getattr(self, name) not in get_args(kind):
                raise SpecError(f"There is no {name} {getattr(self, name)!r}; expected one of {list(get_args(kind))}.")
        unknown = [name for name in self.back_ends if name not in get_args(BackEnd)]
        if unknown or not self.back_ends or len(set(self.back_ends)) < len(self.back_ends):
            raise SpecError(
                f"back_ends is {list(self.back_ends)}; expected one or more of {list(get_args(BackEnd))}, each once."
            )
        for name, default, owner in (("provider", "cpu", "onnxruntime"), ("openvino_precision", "f32", "openvino")):
            if getattr(self, name) != default and owner not in self.back_ends:
                raise SpecError(f"{name} is {getattr(self, name)!r}, which {owner} alone reads; add --runner {owner}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the tolerances."""
        names = [name for name in self.__slots__ if name not in ("tolerances", "data")]
        return {"data": str(self.data)} | {name: getattr(self, name) for name in names}


def parse_back_ends(text: str) -> tuple[BackEnd, ...]:
    """``"onnxruntime,openvino"`` to names; :class:`VerifySpec` refuses unknown ones."""
    return tuple(cast(BackEnd, part.strip()) for part in text.lower().split(","))


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """``"256x256,320x288"`` (height x width, px; a lone number is a square) to pairs.

    Raises:
        SpecError: When the text has another form.
    """
    sizes = []
    for part in text.lower().split(","):
        match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", part.strip())
        if match is None:
            raise SpecError(f"{part!r} is not a size; expected height x width in px, for example 256x256,320x288.")
        sizes.append((int(match[1]), int(match[2] or match[1])))
    return tuple(sizes)
