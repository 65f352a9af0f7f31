"""Images made to find what photographs at the native size do not: other sizes, other batches, float32's own rounding.

Shape letters: B batch, H W height and width in px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.runtime.runner import Array, Runner
from swinv2_deploy.verify.metrics import cosine_rows
from swinv2_deploy.verify.report import SizeDrift, SlotDrift

LARGEST_AREA = 4
"""The sweep goes up to this many times the native area, to bound memory and time."""

Size = tuple[int, int]


def sweep_sizes(resolutions: ResolutionRange, native: Size) -> list[Size]:
    """Sizes of a range that find a wrong graph: both ends, native, odd, tall, wide; (height, width) in px."""
    height, width = native
    scale = min(1.0, math.sqrt(LARGEST_AREA * height * width / (resolutions.max[0] * resolutions.max[1])))
    wanted = [
        resolutions.min,
        (height // 2 + 1, width // 2 - 3),
        (height * 3 // 4, width * 5 // 4 + 1),
        native,
        (height + 1, width * 2 // 3),
        (height * 3 // 2, height - 1),
        (int(resolutions.max[0] * scale), int(resolutions.max[1] * scale)),
    ]
    return sorted(dict.fromkeys(resolutions.nearest(*size) for size in wanted), key=lambda size: (size[0] * size[1], size))


def slot_size(resolutions: ResolutionRange, native: Size) -> Size:
    """Half the native size where the range holds it: still several windows, and a quarter of the time."""
    return resolutions.nearest(native[0] // 2, native[1] // 2)


def probe_images(photo: NDArray[np.uint8], preprocessing: Preprocessing, size: Size, seed: int) -> Array:
    """A photograph (H, W, 3) at ``size`` and seeded noise, normalized: (2, C, height, width)."""
    noise = np.random.default_rng([seed, *size]).standard_normal((preprocessing.channels, *size), dtype=np.float32)
    return np.stack([preprocessing.resized_to(*size)(photo), noise])


def rounding_noise(reference: Runner, exact: Runner, images: Array) -> dict[str, float]:
    """Largest difference between the reference in float32 and in float64, by output, on images (B, 3, H, W)."""
    rounded, true = reference.run(images), exact.run(images)
    return {name: float(np.abs(rounded[name] - true[name]).max()) for name in rounded}


def size_drift(size: Size, reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> SizeDrift:
    """Worst drift of outputs (B, ...) by name; a wrong shape or a NaN is infinitely far."""
    largest, smallest = 0.0, 1.0
    for name, expected in reference.items():
        found = candidate[name]
        if found.shape != expected.shape or not np.isfinite(found).all():
            return SizeDrift(size=size, max_abs=math.inf, cosine=-1.0)
        pair = [array.reshape(len(array), -1).astype(np.float64) for array in (expected, found)]
        largest = max(largest, float(np.abs(pair[0] - pair[1]).max()))
        smallest = min(smallest, float(cosine_rows(*pair).min()))
    return SizeDrift(size=size, max_abs=largest, cosine=smallest)


def slot_drift(runner: Runner, images: Array, batch_sizes: Sequence[int]) -> SlotDrift:
    """Compare every row of batches with the same image run alone.

    Rows take turns through ``images`` (B, 3, H, W), so that every row has other neighbors; in the largest batch once more all
    rows hold the first image.
    """
    alone = [runner.run(images[index : index + 1]) for index in range(len(images))]
    orders = [[row % len(images) for row in range(count)] for count in batch_sizes] + [[0] * max(batch_sizes)]
    worst, relative, where = 0.0, 0.0, (1, 0)
    for order in orders:
        together = runner.run(images[order])
        for name, rows in together.items():
            scale = max(float(np.sqrt(np.mean([np.square(single[name]).mean() for single in alone]))), 1e-30)
            for row, index in enumerate(order):
                difference = _difference(rows, row, alone[index][name][0])
                if difference > worst:
                    worst, where = difference, (len(order), row)
                relative = max(relative, difference / scale if math.isfinite(difference) else math.inf)
    size = (images.shape[2], images.shape[3])
    return SlotDrift(size=size, batch_sizes=tuple(batch_sizes), max_abs=worst, relative=relative, worst=where)


def _difference(rows: Array, row: int, single: Array) -> float:
    if row >= len(rows) or rows[row].shape != single.shape:
        return math.inf
    difference = float(np.abs(rows[row] - single).max())
    return difference if math.isfinite(difference) else math.inf
