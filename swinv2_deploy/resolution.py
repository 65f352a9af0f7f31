"""The sizes an exported graph is right at: decided once at export, carried by the file. No torch import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swinv2_deploy.errors import SpecError


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolutionRange:
    """Sizes an exported graph is right at, (height, width) in px. Profiles and verification sweeps derive from it.

    Attributes:
        min: Smallest.
        opt: The one it is meant for.
        max: Largest.
        multiple: Sides must be multiples of this many px.
    """

    min: tuple[int, int]
    opt: tuple[int, int]
    max: tuple[int, int]
    multiple: int = 1

    def __post_init__(self) -> None:
        for low, middle, high in zip(self.min, self.opt, self.max, strict=True):
            if not 1 <= low <= middle <= high:
                raise SpecError(f"The resolution range {self} is empty; expected 1 <= min <= opt <= max on both axes.")
        if self.multiple < 1:
            raise SpecError(f"multiple is {self.multiple}; expected at least 1.")

    @property
    def static(self) -> bool:
        """Whether it holds one size only."""
        return self.min == self.max

    def refusal(self, height: int, width: int) -> str | None:
        """Why a size is outside the range, or None when it is inside."""
        inside = all(low <= side <= high for low, side, high in zip(self.min, (height, width), self.max, strict=True))
        if inside and height % self.multiple == 0 and width % self.multiple == 0:
            return None
        low, high = ("x".join(map(str, size)) for size in (self.min, self.max))
        rule = f"exactly {low} px" if self.static else f"{low} to {high} px"
        steps = f" in steps of {self.multiple}" if self.multiple > 1 else ""
        return f"{height}x{width} px is outside what this file was exported for: {rule}{steps}."

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ResolutionRange:
        """Inverse of :func:`dataclasses.asdict` after a trip through JSON."""
        sizes = {key: (int(values[key][0]), int(values[key][1])) for key in ("min", "opt", "max")}
        return cls(**sizes, multiple=int(values.get("multiple", 1)))


def photograph_sizes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Sizes of photographs that find wrong preprocessing to ``size``, (height, width) in px: smaller, equal, tall, wide, double."""
    height, width = size
    return (
        (height // 2 + 1, width * 2 // 3),
        size,
        (3 * height + 1, 2 * width - 1),
        (height + 3, 3 * width),
        (2 * height, 2 * width),
    )
