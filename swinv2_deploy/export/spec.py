"""What an export is told. No torch import."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from reference_model.config import WINDOW_POLICIES, SwinV2Config, WindowPolicy
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import SpecError
from swinv2_deploy.runtime.grid import GridName

LARGEST_OVER_NATIVE = 4
"""The default range reaches to this many times the size the weights were trained for."""

SMALLEST = 32
"""The default range begins here, in px."""

HalfPrecision = Literal["fp16", "bf16"]
"""Number formats of 16 bits that a graph can be written in beside FP32."""


SAMPLED_SIDES = 32
"""Heights, and widths, among which the mean over a range is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSpec:
    """Sizes and form of the exported graph.

    Attributes:
        resolution: (height, width) in px the graph is meant for; None means the size the weights were trained for.
        static: Whether the graph takes that one size only (any batch).
        smallest: Smallest (height, width) in px; None means 32 px. Raising it to where no window shrinks folds the position bias.
        largest: Largest (height, width) in px; None means four times ``resolution``.
        window_policy: ``fixed`` or ``adaptive`` windows; None keeps what the model has.
        sizes: (height, width) in px of static graphs that are written beside the one for the whole range.
        grid: Sizes and batches at which every graph is run against the reference: ``quick`` or ``full``.
        half_precisions: Further graphs to write, ``model_fp16.onnx`` and ``model_bf16.onnx``. ``model.onnx`` is always written.
        bake_preprocessing: Whether ``model_from_images.onnx``, which takes photographs, is written as well, in FP32.
    """

    resolution: tuple[int, int] | None = None
    static: bool = False
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    window_policy: WindowPolicy | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    grid: GridName = "quick"
    half_precisions: tuple[HalfPrecision, ...] = ()
    bake_preprocessing: bool = False

    def __post_init__(self) -> None:
        if self.half_precisions != tuple(name for name in get_args(HalfPrecision) if name in self.half_precisions):
            raise SpecError(
                f"half_precisions is {self.half_precisions!r}; expected some of {get_args(HalfPrecision)}, in order."
            )
        if self.static and (self.smallest or self.largest):
            raise SpecError("A static graph has one size; leave out --min-res and --max-res, or --static.")
        if self.window_policy is not None and self.window_policy not in WINDOW_POLICIES:
            raise SpecError(f"--window-policy is {self.window_policy!r}; expected one of {', '.join(WINDOW_POLICIES)}.")
        if self.static and self.sizes:
            raise SpecError(
                "--sizes writes static graphs beside one for a range of sizes; leave out --static, or give its one size with "
                "--input-size."
            )
        if self.grid not in get_args(GridName):
            raise SpecError(f"There is no grid {self.grid!r}; expected one of {list(get_args(GridName))}.")

    def graphs(self, config: SwinV2Config) -> dict[str, ResolutionRange]:
        """Sizes of every graph to write, by the name of its file without suffix.

        Raises:
            SpecError: When the range is empty or does not hold a size.
        """
        whole = self.resolutions(config)
        graphs = {"model": whole}
        for height, width in self.sizes:
            reason = whole.refusal(height, width)
            if reason is not None:
                raise SpecError(f"--sizes: {reason} Leave it out, or widen --min-res and --max-res.")
            size = (height, width)
            graphs[f"model_{height}x{width}"] = ResolutionRange(min=size, opt=size, max=size)
        return graphs

    def resolutions(self, config: SwinV2Config) -> ResolutionRange:
        """The range of sizes for a model.

        Raises:
            SpecError: When the range is empty.
        """
        native = self.resolution or config.image_size
        if self.static:
            return ResolutionRange(min=native, opt=native, max=native)
        low = self.smallest or (min(SMALLEST, native[0]), min(SMALLEST, native[1]))
        high = self.largest or (LARGEST_OVER_NATIVE * native[0], LARGEST_OVER_NATIVE * native[1])
        if any(not a <= b <= c for a, b, c in zip(low, native, high, strict=True)):
            sizes = [f"{height}x{width}" for height, width in (low, native, high)]
            raise SpecError(
                f"The range {sizes[0]} to {sizes[2]} px does not hold {sizes[1]} px; widen --min-res and --max-res."
            )
        return ResolutionRange(min=low, opt=native, max=high)

    def sample_sizes(self, config: SwinV2Config) -> list[tuple[int, int]]:
        """Sizes that stand for the range: every pair of a few evenly spaced heights and widths in px."""
        found = self.resolutions(config)
        rows, columns = (
            sorted({low + (high - low) * step // (SAMPLED_SIDES - 1) for step in range(SAMPLED_SIDES)})
            for low, high in zip(found.min, found.max, strict=True)
        )
        return [(height, width) for height in rows for width in columns]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def parse_size(text: str) -> tuple[int, int]:
    """``"384"`` or ``"384x512"`` (height x width, px) to a pair.

    Raises:
        SpecError: When the text has another form.
    """
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if match is None or int(match[1]) == 0 or (match[2] is not None and int(match[2]) == 0):
        raise SpecError(f"{text!r} is not a size; expected for example 384 or 384x512 (height x width, in px).")
    return (int(match[1]), int(match[2] or match[1]))


def as_window_policy(text: str | None) -> WindowPolicy | None:
    """The option's text as a policy; :class:`ExportSpec` checks it."""
    return cast("WindowPolicy | None", text)


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """``"256,384x512"`` to pairs, each once.

    Raises:
        SpecError: When a part is not a size.
    """
    return tuple(dict.fromkeys(parse_size(part) for part in text.split(",")))


def parse_precisions(texts: Sequence[str]) -> tuple[HalfPrecision, ...]:
    """``["fp32,fp16", "bf16"]`` to the formats beside FP32, which is written in any case.

    Raises:
        SpecError: When a name is none of fp32, fp16 and bf16.
    """
    names = [name.strip().lower() for text in texts for name in text.split(",")]
    for name in names:
        if name not in ("fp32", *get_args(HalfPrecision)):
            raise SpecError(
                f"{name!r} is not a precision that export writes; expected fp32, fp16 or bf16, for example --precision fp16,bf16. "
                "INT8 needs images: use 'swinv2-deploy quantize'."
            )
    return tuple(half for half in get_args(HalfPrecision) if half in names)
