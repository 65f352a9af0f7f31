"""Candidates that take photographs instead of pixels: their own preprocessing is judged together with the model.

The reference gets what the Python preprocessing makes of the same photograph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.runtime import Array, FileRunner, Runner
from swinv2_deploy.runtime.grid import photograph_sizes
from swinv2_deploy.verify.inputs import VerifyImages
from swinv2_deploy.verify.probes import Size, size_drift, slot_drift
from swinv2_deploy.verify.report import SizeDrift, SlotDrift
from swinv2_deploy.verify.spec import VerifySpec

Photograph = NDArray[np.uint8]

ROUNDED_SHARE = 1e-4
"""Share of the pixels that a back end without float64 rounds to the neighboring gray level, measured (docs/numerics.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotographSession:
    """What the parts of the verification of such files share.

    Attributes:
        runners: Candidates by label.
        reference: What judges.
        preprocessing: From photograph to pixels, in Python.
        images: Photographs to compare on.
        photo: One of them (H, W, 3), for sizes, batches and times.
        noise: Rounding noise of the reference by output.
        spec: What was asked.
        progress: Told about every step.
    """

    runners: Mapping[str, FileRunner]
    reference: Runner
    preprocessing: Preprocessing
    images: VerifyImages
    photo: Photograph
    noise: Mapping[str, float]
    spec: VerifySpec
    progress: Callable[[str, int, int], None]

    def noise_of(self, runner: FileRunner) -> Mapping[str, float]:
        """Noise to judge a candidate by: ONNX Runtime makes the very pixels of Python, others round a few of them elsewhere."""
        if runner.back_end == "onnxruntime":
            return self.noise
        rounded = _gray_level_noise(self.reference, self.preprocessing, self.photo, self.spec.seed)
        return {name: max(value, rounded[name]) for name, value in self.noise.items()}

    def sweep(self) -> dict[str, list[SizeDrift]]:
        """Every candidate on the photograph and on noise at sizes that find wrong filters, crops and orders."""
        found: dict[str, list[SizeDrift]] = {name: [] for name in self.runners}
        if not self.runners:
            return found
        for size in self.spec.sizes or photograph_sizes(self.preprocessing.size):
            photos = _probes(self.photo, size, self.spec.seed)
            expected = self.reference.run(np.stack([self.preprocessing(photo) for photo in photos]))
            for name, runner in self.runners.items():
                found[name].append(size_drift(size, expected, runner.run(photos)))
        return found

    def slots(self) -> dict[str, SlotDrift]:
        """Every candidate in batches of several sizes."""
        height, width = self.preprocessing.size
        size = (height + 3, 2 * width - 1)
        photos = _probes(self.photo, size, self.spec.seed)
        three = np.concatenate([photos, photos[:1, ::-1]])
        drifts = {name: slot_drift(runner, three, self.spec.batch_sizes) for name, runner in self.runners.items()}
        return {name: replace(drift, size=size) for name, drift in drifts.items()}

    def timed(self) -> dict[str, Runner]:
        """The candidates as runners that take the photograph, as often as there are images in a batch."""
        return {name: _Repeated(runner, self.photo) for name, runner in self.runners.items()}

    def notices(self) -> list[str]:
        """What a reader must know about the figures of these files."""
        if not self.runners:
            return []
        height, width = self.photo.shape[:2]
        notices = [
            f"Photographs go as they are into {', '.join(self.runners)}: sizes are those of photographs, and times include the "
            f"resize of one of {height}x{width} px."
        ]
        rounded = [name for name, runner in self.runners.items() if runner.back_end != "onnxruntime"]
        if rounded:
            notices.append(
                f"{', '.join(rounded)}: a few pixels are rounded to the next gray level there; the noise of the reference is what "
                "that does to its outputs."
            )
        return notices


class _Repeated:
    """A runner of photographs behind the face of one of pixels, for the clock."""

    def __init__(self, runner: FileRunner, photo: Photograph) -> None:
        self._runner = runner
        self._photo = photo
        self.name = runner.name
        self.precision = runner.precision
        self.provider = runner.provider
        self.resolutions = None
        self.output_names = runner.output_names

    def run(self, images: Array) -> dict[str, Array]:
        """Outputs of as many photographs as there are images (B, 3, H, W)."""
        return self._runner.run(np.repeat(self._photo[None], len(images), axis=0))


def _probes(photo: Photograph, size: Size, seed: int) -> Photograph:
    """The photograph at ``size`` and seeded noise, (2, height, width, 3)."""
    resized = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR))
    noise = np.random.default_rng([seed, *size]).integers(0, 256, (*size, 3))
    return np.stack([resized, noise.astype(np.uint8)])


def _gray_level_noise(reference: Runner, preprocessing: Preprocessing, photo: Photograph, seed: int) -> dict[str, float]:
    """Largest change of every output when a few pixels move by one gray level, over eight draws."""
    pixels = preprocessing.resize(photo)
    generator = np.random.default_rng(seed)
    count = max(1, round(ROUNDED_SHARE * pixels.size))
    moved = []
    for _ in range(8):
        flat = pixels.reshape(-1).astype(np.int16)
        places = generator.choice(flat.size, count, replace=False)
        flat[places] += np.where(flat[places] < 255, 1, -1).astype(np.int16)
        moved.append(preprocessing.normalize(flat.astype(np.uint8).reshape(pixels.shape)))
    before = reference.run(preprocessing.normalize(pixels)[None])
    after = reference.run(np.stack(moved))
    return {name: float(np.abs(after[name] - before[name]).max()) for name in before}
