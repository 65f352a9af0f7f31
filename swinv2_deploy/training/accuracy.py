"""How many images a classifier gets right."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
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


def _count_right(model: nn.Module, images: TrainingImages, preprocessing: Preprocessing, chosen: range, batch_size: int) -> int:
    model.eval()
    device = next(model.parameters()).device
    right = 0
    with torch.no_grad():
        for start in range(0, len(chosen), batch_size):
            indices = chosen[start : start + batch_size]
            pixels = np.stack([preprocessing(images.images[index]) for index in indices])
            predicted = model(torch.from_numpy(pixels).to(device)).argmax(dim=1).cpu().numpy()
            right += int((predicted == images.classes[indices]).sum())
    return right
