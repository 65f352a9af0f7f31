"""The images that importance is measured on, read again for every pass, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from calibration.dataset import ImageFolder
from reference_model.config import SwinV2Config
from reference_model.preprocessing import Preprocessing, read_image
from swinv2_deploy.prune.importance import Batch
from swinv2_deploy.runtime import masks_for


@dataclass(frozen=True, slots=True)
class ImportanceImages:
    """Photographs as a model takes them.

    Attributes:
        folder: The photographs.
        config: Of the model; where its labels are the names of the folders, images have classes.
        preprocessing: What images go through.
        batch_size: Images a batch.
    """

    folder: ImageFolder
    config: SwinV2Config
    preprocessing: Preprocessing
    batch_size: int

    @property
    def labeled(self) -> bool:
        """Whether every folder bears the name of a class."""
        return bool(self.folder.classes) and set(self.folder.classes) <= set(self.config.labels)

    def __len__(self) -> int:
        return len(self.folder)

    def batches(self) -> Iterator[Batch]:
        """Images (B, 3, H, W), with the mask of a masked image model, and their classes (B,) where they have any.

        Raises:
            ImageError: When one cannot be read.
        """
        masks = masks_for(self.config)
        paths, names = self.folder.paths, self.folder.names
        for start in range(0, len(paths), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            pixels = np.stack([self.preprocessing(read_image(path)) for path in paths[chosen]])
            inputs = [torch.from_numpy(pixels)]
            if masks is not None:
                inputs.append(torch.from_numpy(masks(pixels)))
            yield tuple(inputs), self._labels(names[chosen]) if self.labeled else None

    def _labels(self, names: tuple[str, ...]) -> torch.Tensor:
        return torch.tensor([self.config.labels.index(name.split("/")[0]) for name in names])
