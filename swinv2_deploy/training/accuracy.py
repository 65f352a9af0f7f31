"""How many images a classifier gets right."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.processes import mean_over


def accuracy(model: nn.Module, images: TrainingImages, preprocessing: Preprocessing, batch_size: int = 64) -> float:
    """Share of images whose largest logit is their class, in [0, 1]."""
    return _count_right(model, images, preprocessing, range(len(images)), batch_size) / max(1, len(images))


def share_right(model: nn.Module, images: TrainingImages, preprocessing: Preprocessing, accelerator: Accelerator) -> float:
    """The same, where every process looks at its part of the images and all get the answer."""
    mine = range(accelerator.process_index, len(images), accelerator.num_processes)
    [mean] = mean_over(accelerator, float(_count_right(model, images, preprocessing, mine, 64)))
    return float(mean * accelerator.num_processes / max(1, len(images)))


def answers(model: nn.Module, images: TrainingImages, preprocessing: Preprocessing, batch_size: int = 32) -> NDArray[np.int64]:
    """Class with the largest logit of each image, (n,)."""
    return _answers(model, images, preprocessing, range(len(images)), batch_size)


def _count_right(model: nn.Module, images: TrainingImages, preprocessing: Preprocessing, chosen: range, batch_size: int) -> int:
    return int((_answers(model, images, preprocessing, chosen, batch_size) == images.classes[list(chosen)]).sum())


def _answers(
    model: nn.Module, images: TrainingImages, preprocessing: Preprocessing, chosen: range, batch_size: int
) -> NDArray[np.int64]:
    model.eval()
    device = next(model.parameters()).device
    found = [np.empty(0, np.int64)]
    with torch.no_grad():
        for start in range(0, len(chosen), batch_size):
            pixels = np.stack([preprocessing(images.images[index]) for index in chosen[start : start + batch_size]])
            found.append(model(torch.from_numpy(pixels).to(device)).argmax(dim=1).cpu().numpy())
    return np.concatenate(found)
