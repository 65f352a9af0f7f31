"""Which patches are hidden in masked image modeling. No torch import.

Source: SimMIM (arXiv:2111.09886), section 3.2 and 4.1.2: squares of 32 px, 60 % of them, chosen at random.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MASK_RATIO = 0.6
MASK_SQUARE = 32
"""Side in px of what is hidden or shown as a whole."""
FEWEST_SQUARES = 16
"""An image with fewer squares is parted into smaller ones, so that a part of it stays visible."""


def patch_count(height: int, width: int, patch_size: int) -> int:
    """Patches of an image of the size in px, its last row and column completed."""
    return -(-height // patch_size) * -(-width // patch_size)


def random_mask(height: int, width: int, patch_size: int, seed: int | list[int]) -> NDArray[np.bool_]:
    """A mask (P,) for an image of ``height`` x ``width`` px, True where a patch is hidden, patches in rows.

    Args:
        height: Of the image, in px.
        width: Of the image, in px.
        patch_size: Side of a patch in px.
        seed: The same seed gives the same mask.
    """
    patches = (-(-height // patch_size), -(-width // patch_size))
    step = max(1, MASK_SQUARE // patch_size)
    while step > 1 and -(-patches[0] // step) * -(-patches[1] // step) < FEWEST_SQUARES:
        step //= 2
    grid = (-(-patches[0] // step), -(-patches[1] // step))
    count = grid[0] * grid[1]
    hidden = np.zeros(count, np.bool_)
    hidden[np.random.default_rng(seed).permutation(count)[: math.ceil(MASK_RATIO * count)]] = True
    whole = hidden.reshape(grid).repeat(step, axis=0).repeat(step, axis=1)
    return np.ascontiguousarray(whole[: patches[0], : patches[1]]).reshape(-1)
