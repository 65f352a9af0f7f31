"""Sizes and batches at which a file is run against the reference model. No torch import.

A size is (height, width) in px.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from swinv2_deploy.resolution import ResolutionRange
from swinv2_deploy.runtime.runner import Takes

Size = tuple[int, int]
Grid = Mapping[Size, tuple[int, ...]]
"""Batches to run, by size."""

GridName = Literal["quick", "full"]

BATCHES = (1, 2, 3, 17)
"""One image, the smallest batches, and an odd one that no kernel's tile divides."""

FULL_SIZES: tuple[Size, ...] = (
    *((32, 32), (64, 64), (96, 64), (80, 112), (100, 147), (200, 331), (224, 224), (256, 256), (320, 320), (288, 416)),
    *((384, 384), (384, 576), (448, 448), (512, 512), (768, 768), (1024, 640)),
)
"""Squares and rectangles, whole windows and not, from one patch merge too few to sixteen times the area most models know."""

PHOTOGRAPHS = (1, 2)
"""Batches of photographs: resizing does not look across a batch, so one alone and two tell."""

FULL_PIXELS = 1_200_000
"""Most pixels of a batch of the full grid, which bounds memory and time: 17 images of 256x256, 3 of 512x512, one of 1024x640."""


def quick_grid(resolutions: ResolutionRange) -> dict[Size, tuple[int, ...]]:
    """What every export is run at: the size it is meant for, the smallest, and an odd rectangle between the two."""
    (low_height, low_width), (height, width) = resolutions.min, resolutions.opt
    odd = resolutions.nearest((low_height + height) // 2 + 1, (low_width + width) // 2 - 6)
    area = height * width
    most = max(area, min(2 * area, FULL_PIXELS))
    return {size: _batches(size, most) for size in (resolutions.opt, resolutions.min, odd)}


def full_grid(resolutions: ResolutionRange, pixels: int = FULL_PIXELS) -> dict[Size, tuple[int, ...]]:
    """Every size of :data:`FULL_SIZES`, moved into the range, and those of the quick grid, from small to large.

    The largest size of the range is among them where one image of it is not more than :data:`FULL_PIXELS`.

    Args:
        resolutions: Range of the file.
        pixels: Most pixels of a batch.
    """
    sizes = {resolutions.nearest(*size) for size in FULL_SIZES} | set(quick_grid(resolutions))
    if resolutions.max[0] * resolutions.max[1] <= FULL_PIXELS:
        sizes.add(resolutions.nearest(*resolutions.max))
    return {size: _batches(size, pixels) for size in sorted(sizes, key=lambda size: (size[0] * size[1], size))}


def photograph_sizes(size: Size) -> tuple[Size, ...]:
    """Sizes of photographs that find wrong preprocessing to ``size``, (height, width) in px: smaller, equal, tall, wide, double."""
    height, width = size
    return (
        (height // 2 + 1, width * 2 // 3),
        size,
        (3 * height + 1, 2 * width - 1),
        (height + 3, 3 * width),
        (2 * height, 2 * width),
    )


GRIDS = {"quick": quick_grid, "full": full_grid}


def grid_for(name: GridName, resolutions: ResolutionRange, takes: Takes = "pixel_values") -> Grid:
    """The grid of that name for a file; files that take photographs have one grid under every name, of sizes of photographs.

    Args:
        name: ``quick`` or ``full``.
        resolutions: Range of the file.
        takes: Its input.
    """
    if takes == "images":
        return dict.fromkeys(photograph_sizes(resolutions.opt), PHOTOGRAPHS)
    return GRIDS[name](resolutions)


def _batches(size: Size, pixels: int) -> tuple[int, ...]:
    """Batches of at most so many pixels; one image always."""
    return tuple(batch for batch in BATCHES if batch == 1 or batch * size[0] * size[1] <= pixels)
