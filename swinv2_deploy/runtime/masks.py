"""The second input of a masked image model: which patches are hidden. No torch, no onnx import.

Shape letters: B batch, H W height and width of the images in px, P patches of an image.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference_model.config import SwinV2Config
from reference_model.masking import patch_count, random_mask
from swinv2_deploy.errors import RunnerError
from swinv2_deploy.runtime.runner import Array

MASK_INPUT = "bool_masked_pos"

BoolArray = NDArray[np.bool_]
Masks = Callable[[Array], BoolArray]
"""From images (B, 3, H, W) to masks (B, P)."""

EVERY = 8
"""Every so many pixels of a row and of a column tell images apart."""


def masks_for(config: SwinV2Config) -> Masks | None:
    """Function that makes masks as the model was trained with, for a masked image model; None for every other.

    A mask depends on its image alone, so that two runners, or two batches, hide the same of it.
    """
    if config.task != "masked_image_modeling":
        return None

    def masks(images: Array) -> BoolArray:
        height, width = images.shape[2:]
        seeds = [zlib.crc32(np.ascontiguousarray(image[:, ::EVERY, ::EVERY]).tobytes()) for image in images]
        return np.stack([random_mask(height, width, config.patch_size, seed) for seed in seeds])

    return masks


def checked_mask(
    mask: NDArray[Any] | None, masks: Masks | None, images: NDArray[Any], config: SwinV2Config, name: str
) -> BoolArray | None:
    """The mask to run with: the given one, the runner's own, one that hides nothing, or None for a model that takes none.

    Args:
        mask: Expected bool (B, P), patches in rows; None means what ``masks`` makes.
        masks: What the runner hides where it is not told; None means nothing.
        images: Checked images (B, 3, H, W).
        config: Of the model.
        name: Runner, for the message.

    Raises:
        RunnerError: When the mask does not fit, or the model takes none.
    """
    if mask is None and masks is not None:
        mask = masks(images)
    if config.task != "masked_image_modeling":
        if mask is not None:
            raise RunnerError(f"{name} was given {MASK_INPUT}; a model for {config.task} takes images alone, so leave it out.")
        return None
    height, width = images.shape[2:]
    expected = (len(images), patch_count(height, width, config.patch_size))
    if mask is None:
        return np.zeros(expected, np.bool_)
    if mask.shape != expected or mask.dtype != np.bool_:
        raise RunnerError(
            f"{name} was given {mask.dtype} {MASK_INPUT} of shape {tuple(mask.shape)}; expected bool {expected} for images of "
            f"{height}x{width} px and patches of {config.patch_size} px. Make the mask for this size."
        )
    return np.ascontiguousarray(mask)
