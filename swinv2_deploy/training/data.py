"""Training images in memory, in an order and with augmentation that depend on (seed, epoch, index) alone.

Because nothing is carried from one step to the next, a resumed run sees exactly what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reference_model.preprocessing import Preprocessing, read_image
from swinv2_deploy.training.augment import erase_boxes, jitter_colors, luma, mix, random_crop_flip
from swinv2_deploy.training.spec import TrainSpec


class TrainingImages:
    """Decoded photographs with their classes.

    Args:
        files: Image files.
        classes: Class index of each file.
        short_side: Images are kept at most this large, in px on the short side, to bound memory.
    """

    def __init__(self, files: list[Path], classes: list[int], short_side: int) -> None:
        self.images = [_shrink(read_image(file), short_side) for file in files]
        self.classes = np.asarray(classes)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def sha256(self) -> str:
        """Hash of all pixels and classes, in order."""
        overall = hashlib.sha256(self.classes.astype(np.int64).tobytes())
        for image in self.images:
            overall.update(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        return overall.hexdigest()

    def batches(
        self,
        spec: TrainSpec,
        epoch: int,
        preprocessing: Preprocessing,
        num_classes: int,
        *,
        first: int = 0,
        rows: range | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches of an epoch: images (B, C, R, R) normalized, targets (B, K) probabilities. The rest is dropped.

        Args:
            spec: Recipe; its seed decides order and augmentation.
            epoch: Counted from 0.
            preprocessing: Mean and standard deviation of the pixels.
            num_classes: K.
            first: Step of the epoch to begin with.
            rows: Rows of the batch that are wanted, of which B counts only these; None means all. They are what they would be in
                the whole batch.
        """
        rows = range(spec.batch_size) if rows is None else rows
        # Mixing reads a row's mirror in the batch as well; other rows stay blank.
        mixed = spec.mixup + spec.cutmix > 0
        needed = {*rows, *(spec.batch_size - 1 - row for row in rows if mixed)}
        order = np.random.default_rng([spec.seed, epoch]).permutation(len(self))
        resolution = spec.resolution_at(epoch)
        mean = torch.tensor(preprocessing.mean).view(1, -1, 1, 1)
        std = torch.tensor(preprocessing.std).view(1, -1, 1, 1)
        for step in range(first, self.steps(spec)):
            chosen = order[step * spec.batch_size : (step + 1) * spec.batch_size]
            crops = np.zeros((len(chosen), resolution, resolution, 3), np.uint8)
            for row in needed:
                generator = np.random.default_rng([spec.seed, epoch, int(chosen[row])])
                crops[row] = random_crop_flip(self.images[chosen[row]], resolution, scale=spec.crop_scale, generator=generator)
            generator = np.random.default_rng([spec.seed, epoch, len(self) + step])
            images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
            images = jitter_colors(images, spec.color_jitter, generator)
            images = ((luma(images) if preprocessing.channels == 1 else images) - mean) / std
            images = erase_boxes(images, spec.erase, generator)
            smooth = spec.label_smoothing
            targets = torch.full((len(chosen), num_classes), smooth / num_classes)
            targets[torch.arange(len(chosen)), torch.from_numpy(self.classes[chosen])] += 1 - smooth
            images, targets = mix(images, targets, mixup=spec.mixup, cutmix=spec.cutmix, generator=generator)
            yield images[rows.start : rows.stop], targets[rows.start : rows.stop]

    def steps(self, spec: TrainSpec) -> int:
        """Whole batches in an epoch, at least one."""
        return max(1, len(self) // spec.batch_size)


def split_tuning(files: list[Path], share: float) -> list[bool]:
    """Which files belong to the tuning split: those whose content hash falls into the first ``share`` of all hashes."""
    return [int.from_bytes(hashlib.sha256(file.read_bytes()).digest()[:8], "big") < share * 2**64 for file in files]


def _shrink(image: NDArray[np.uint8], short_side: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    if min(height, width) <= short_side:
        return image
    scale = short_side / min(height, width)
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
