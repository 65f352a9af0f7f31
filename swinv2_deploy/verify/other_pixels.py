"""What it costs to feed a model otherwise than it was trained: the reference on other pixels of the same photographs.

Drift of preprocessing is apart from drift of files here: nothing but the reference computes, and its own pixels are the measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from reference_model.preprocessing import Interpolation, Preprocessing
from swinv2_deploy.runtime.runner import Array, Runner
from swinv2_deploy.verify.meter import DriftMeter
from swinv2_deploy.verify.metrics import ClassDrift

Photograph = NDArray[np.uint8]
Labeled = tuple[str, int | None, Photograph]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessingDrift:
    """What one other preprocessing does.

    Attributes:
        name: What is different.
        gray_levels: Mean absolute difference of the pixels it makes, in gray levels of 255.
        cosine: Mean cosine similarity of the first output.
        classes: Agreement and accuracy of a classifier, the right pixels being the reference; None for another model.
    """

    name: str
    gray_levels: float
    cosine: float
    classes: ClassDrift | None


def other_preprocessings(own: Preprocessing) -> dict[str, Callable[[Photograph], Array]]:
    """Preprocessings that services are found to have instead of ``own``, by what is different; each gives (C, H, W)."""
    filter_: Interpolation = "bilinear" if own.interpolation != "bilinear" else "bicubic"
    filtered = replace(own, interpolation=filter_)
    found: dict[str, Callable[[Photograph], Array]] = {
        f"{filter_} for {own.interpolation}": filtered,
        "bilinear without antialiasing": lambda photo: own.normalize(_aliased(photo, own)),
    }
    if own.resize_shortest is None:
        shortest = max(own.size)
        found["center crop for squashing"] = replace(own, resize_shortest=shortest)
    else:
        found["squashing for center crop"] = replace(own, resize_shortest=None)
    if own.channels == 3:
        found["BGR for RGB"] = lambda photo: own(np.ascontiguousarray(photo[..., ::-1]))
    found["no mean and std"] = replace(own, mean=(0.0,) * own.channels, std=(1.0,) * own.channels)
    return found


def preprocessing_drift(
    reference: Runner, own: Preprocessing, photographs: Iterable[Labeled], classes: Sequence[str], batch_size: int
) -> tuple[PreprocessingDrift, ...]:
    """The reference on other pixels against itself on its own.

    Args:
        reference: The model.
        own: The preprocessing it was trained with.
        photographs: Name, class index or None, and decoded photograph (H, W, 3) of each.
        classes: Names of a classifier's classes, else empty.
        batch_size: Photographs run together.
    """
    others = other_preprocessings(own)
    meters = {name: DriftMeter(classes) for name in others}
    apart = dict.fromkeys(others, 0.0)
    count = 0
    deviation = np.asarray(own.std, np.float32)[:, None, None]
    for batch in _batches(photographs, batch_size):
        names, labels = [item[0] for item in batch], [item[1] for item in batch]
        right = np.stack([own(item[2]) for item in batch])
        expected = reference.run(right)
        count += len(batch)
        for name, other in others.items():
            pixels = np.stack([other(item[2]) for item in batch])
            meters[name].add(names, labels, expected, reference.run(pixels))
            apart[name] += 255 * float((np.abs(pixels - right) * deviation).mean(axis=(1, 2, 3)).sum())
    return tuple(
        PreprocessingDrift(
            name=name,
            gray_levels=apart[name] / max(count, 1),
            cosine=next(iter(meter.outputs().values())).cosine,
            classes=meter.class_drift(),
        )
        for name, meter in meters.items()
        if count
    )


def _aliased(photo: Photograph, own: Preprocessing) -> Photograph:
    """Resized as OpenCV does unless told otherwise: four neighbors of each point, whatever lies between them."""
    height, width = own.size
    rows, columns = photo.shape[:2]
    if own.resize_shortest is None:
        full = own.size
    else:
        short = min(rows, columns)
        full = (own.resize_shortest * rows // short, own.resize_shortest * columns // short)
    pixels = torch.from_numpy(own.in_channels(photo).astype(np.float32)).permute(2, 0, 1)[None]
    resized = functional.interpolate(pixels, size=full, mode="bilinear", align_corners=False, antialias=False)
    top, left = round((full[0] - height) / 2), round((full[1] - width) / 2)
    cut = resized[0, :, top : top + height, left : left + width].permute(1, 2, 0)
    return cut.round().clamp(0, 255).to(torch.uint8).numpy()


def _batches(photographs: Iterable[Labeled], size: int) -> Iterable[list[Labeled]]:
    batch: list[Labeled] = []
    for item in photographs:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
