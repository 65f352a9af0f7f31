"""Augmentation: each image alone on uint8, then the batch on tensors. Every choice comes from the generator passed in.

Shape letters: B batch, H W height and width in px, K classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def random_crop_flip(
    image: NDArray[np.uint8], resolution: int, *, scale: float, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Random crop of at least ``scale`` of the area, squashed to (resolution, resolution, 3), flipped half of the time."""
    height, width = image.shape[:2]
    box = _crop_box(height, width, scale, generator)
    picture = Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(picture)
    return np.ascontiguousarray(pixels[:, ::-1]) if generator.random() < 0.5 else pixels


def jitter_colors(images: Tensor, strength: float, generator: np.random.Generator) -> Tensor:
    """Change brightness, contrast and saturation of each image of (B, 3, H, W) in [0, 1] by up to ``strength``."""
    if strength == 0:
        return images
    factors = torch.from_numpy(generator.uniform(1 - strength, 1 + strength, (3, images.shape[0], 1, 1, 1))).to(images.dtype)
    images = images * factors[0]
    gray = images.mean(dim=(1, 2, 3), keepdim=True)
    images = gray + (images - gray) * factors[1]
    colorless = luma(images)
    return (colorless + (images - colorless) * factors[2]).clamp(0, 1)


def luma(images: Tensor) -> Tensor:
    """Gray (B, 1, H, W) of (B, 3, H, W) RGB, with Pillow's weights."""
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def erase_boxes(images: Tensor, probability: float, generator: np.random.Generator) -> Tensor:
    """Blank a box of 2 to 25 % of the area of some of the (B, C, H, W) images, in place."""
    height, width = images.shape[-2:]
    for image in images:
        if generator.random() >= probability:
            continue
        area = generator.uniform(0.02, 0.25) * height * width
        ratio = math.exp(generator.uniform(-1.0, 1.0))
        h = min(height, max(1, round(math.sqrt(area * ratio))))
        w = min(width, max(1, round(math.sqrt(area / ratio))))
        top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
        image[:, top : top + h, left : left + w] = 0
    return images


def mix(
    images: Tensor, targets: Tensor, *, mixup: float, cutmix: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image with its mirror in the batch, by MixUp or CutMix or not at all.

    Args:
        images: (B, C, H, W).
        targets: Class probabilities (B, K).
        mixup: Probability of MixUp (arXiv:1710.09412), weight from Beta(0.4, 0.4).
        cutmix: Probability of CutMix (arXiv:1905.04899), area from Beta(1, 1).
        generator: Source of the choices.
    """
    choice = generator.random()
    if choice < mixup:
        share = float(generator.beta(0.4, 0.4))
        images = images * share + images.flip(0) * (1 - share)
    elif choice < mixup + cutmix:
        height, width = images.shape[-2:]
        side = math.sqrt(1 - generator.beta(1.0, 1.0))
        row, column = generator.integers(height), generator.integers(width)
        top, bottom = (int(np.clip(row + sign * side * height / 2, 0, height)) for sign in (-1, 1))
        left, right = (int(np.clip(column + sign * side * width / 2, 0, width)) for sign in (-1, 1))
        images = images.clone()
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        return images, targets
    return images, targets * share + targets.flip(0) * (1 - share)


def _crop_box(height: int, width: int, scale: float, generator: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a crop whose shape is that of the image changed by up to 4:3 either way."""
    area = generator.uniform(scale, 1.0)
    ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
    h = min(1.0, math.sqrt(area * ratio)) * height
    w = min(1.0, math.sqrt(area / ratio)) * width
    top, left = generator.uniform(0, height - h), generator.uniform(0, width - w)
    return (left, top, left + w, top + h)
