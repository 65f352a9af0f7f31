"""What an export is told. No torch import."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from reference_model.config import SwinV2Config
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import SpecError

LARGEST_OVER_NATIVE = 4
"""The default range reaches to this many times the size the weights were trained for."""

SMALLEST = 32
"""The default range begins here, in px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSpec:
    """Sizes and form of the exported graph.

    Attributes:
        resolution: (height, width) in px the graph is meant for; None means the size the weights were trained for.
        static: Whether the graph takes that one size only (any batch).
        smallest: Smallest (height, width) in px; None means 32 px. Raising it to where no window shrinks folds the position bias.
        largest: Largest (height, width) in px; None means four times ``resolution``.
        bake_preprocessing: Whether a file that takes photographs is written as well.
    """

    resolution: tuple[int, int] | None = None
    static: bool = False
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    bake_preprocessing: bool = False

    def __post_init__(self) -> None:
        if self.static and (self.smallest or self.largest):
            raise SpecError("A static graph has one size; leave out --min-res and --max-res, or --static.")

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
