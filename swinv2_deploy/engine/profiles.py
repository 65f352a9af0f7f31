"""Optimization profiles: the batches and sizes an engine is built for. No TensorRT import."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reference_model.config import SwinV2Config
from reference_model.masking import patch_count
from swinv2_deploy.errors import SpecError
from swinv2_deploy.resolution import ResolutionRange
from swinv2_deploy.runtime.masks import MASK_INPUT

Shape = tuple[int, ...]
BatchSize = tuple[int, int, int]
"""Images, height in px, width in px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """One optimization profile, each bound (batch, height, width) with sides in px.

    Attributes:
        min: Smallest.
        opt: What kernels are chosen for.
        max: Largest; memory is reserved for it.
    """

    min: BatchSize
    opt: BatchSize
    max: BatchSize

    def __post_init__(self) -> None:
        for low, middle, high in zip(self.min, self.opt, self.max, strict=True):
            if not 1 <= low <= middle <= high:
                raise SpecError(
                    f"The profile {self} is empty; expected 1 <= min <= opt <= max for the batch, the height and the width."
                )

    def __str__(self) -> str:
        return " ".join("x".join(map(str, bound)) for bound in (self.min, self.opt, self.max))

    @property
    def at_max(self) -> Profile:
        """The profile of its largest shape alone."""
        return Profile(min=self.max, opt=self.max, max=self.max)

    def shapes(self, config: SwinV2Config) -> dict[str, tuple[Shape, Shape, Shape]]:
        """Smallest, preferred and largest shape of every input, by name: pixels (B, C, H, W) and, if any, mask (B, P)."""
        bounds = (self.min, self.opt, self.max)
        pixels = [(batch, config.num_channels, height, width) for batch, height, width in bounds]
        found: dict[str, tuple[Shape, Shape, Shape]] = {"pixel_values": (pixels[0], pixels[1], pixels[2])}
        if config.task == "masked_image_modeling":
            masks = [(batch, patch_count(height, width, config.patch_size)) for batch, height, width in bounds]
            found[MASK_INPUT] = (masks[0], masks[1], masks[2])
        return found


def profiles_for(
    resolutions: ResolutionRange,
    batches: BatchSize,
    *,
    sizes: Iterable[tuple[int, int]] = (),
    bounds: tuple[BatchSize | None, BatchSize | None, BatchSize | None] = (None, None, None),
) -> tuple[Profile, ...]:
    """The profiles of an engine: one for the whole range of a file, or one for each size that is named.

    Args:
        resolutions: Sizes the file is right at.
        batches: Smallest, preferred and largest batch.
        sizes: (height, width) in px, a profile for each; none for one wide profile.
        bounds: Replace the smallest, preferred and largest shape of the wide profile; None leaves it.

    Raises:
        SpecError: When a bound is outside the file's range, or bounds and sizes are both given.
    """
    sizes = tuple(sizes)
    if sizes and any(bounds):
        raise SpecError(
            "--sizes makes a profile for each size, and --min, --opt and --max describe one; give the one or the other."
        )
    if sizes:
        found = tuple(
            Profile(min=(batches[0], *size), opt=(batches[1], *size), max=(batches[2], *size)) for size in dict.fromkeys(sizes)
        )
    else:
        found = (_wide(resolutions, batches, bounds),)
    for profile in found:
        for _, height, width in (profile.min, profile.opt, profile.max):
            reason = resolutions.refusal(height, width)
            if reason is not None:
                raise SpecError(
                    f"An engine cannot take what its ONNX file does not: {reason} Choose other sizes, or export again."
                )
    return found


def _wide(
    resolutions: ResolutionRange, batches: BatchSize, bounds: tuple[BatchSize | None, BatchSize | None, BatchSize | None]
) -> Profile:
    low, middle, high = bounds
    smallest = low or (batches[0], *resolutions.nearest(*resolutions.min))
    largest = high or (batches[2], *resolutions.nearest(*resolutions.max))
    if middle is None:
        # The file's own size, moved into bounds that were given.
        wanted = (batches[1], *resolutions.nearest(*resolutions.opt))
        sides = [min(max(side, a), b) for side, a, b in zip(wanted, smallest, largest, strict=True)]
        middle = (sides[0], sides[1], sides[2])
    return Profile(min=smallest, opt=middle, max=largest)


def parse_shape(text: str, option: str) -> BatchSize:
    """``4x256x320``: images, height and width.

    Raises:
        SpecError: When it is something else.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise SpecError(f"{option} is {text!r}; expected batch x height x width, such as 4x256x256.")
    batch, height, width = (int(part) for part in parts)
    return batch, height, width


def parse_batches(text: str) -> BatchSize:
    """``8``, the largest batch, or ``1,4,8``: smallest, preferred and largest.

    Raises:
        SpecError: When it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(part.isdigit() for part in parts):
        raise SpecError(
            f"--batch is {text!r}; expected the largest batch, such as 8, or smallest, preferred and largest: 1,4,8."
        )
    numbers = [int(part) for part in parts]
    low, middle, high = (1, 1, numbers[0]) if len(numbers) == 1 else numbers
    if not 1 <= low <= middle <= high:
        raise SpecError(f"--batch is {text!r}; expected 1 <= smallest <= preferred <= largest.")
    return low, middle, high
