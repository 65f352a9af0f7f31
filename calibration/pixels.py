"""What the pixels of calibration images look like, in constant memory, and what no set of photographs looks like.

Photographs share statistics whatever they show: neighboring pixels are nearly equal, the resemblance fades slowly with distance,
and no row or column of the frame is special. Shuffled pixels lose the first, shuffled patches the second and leave seams on a grid.

Shape letters: B batch, C channels, H W height and width in px.
Source: D. L. Ruderman, "The statistics of natural images" (Network 5, 1994): correlation decays as a power law at all scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.lints import Finding

Pixels = NDArray[np.float32]

NEIGHBOR_CORRELATION = 0.5
"""Correlation of pixels 1 px apart below which an image looks scrambled; of photographs at most one in sixteen is."""
DISTANT_CORRELATION = 0.15
"""The same for pixels an eighth of the image apart."""
SCRAMBLED_SHARE = 0.5
"""Share of such images that no set of photographs has."""
SEAM = 1.8
"""Steepness of a row or column over those beside it, averaged over images, that no set of photographs has."""
SEAM_IMAGES = 16
"""Images below which one of them can be steep enough."""
FLAT = 0.01
"""Standard deviation, in the range 0 to 1, of an image that shows nothing."""
RAW_MEAN = (0.1, 0.9)
RAW_DEVIATION = (0.08, 0.45)
"""Mean and standard deviation of photographs' channels in the range 0 to 1."""
NEGATIVE_SHARE = 0.02
"""Share of values on either side of 0 that centered pixels have at least."""


class PixelStatistics:
    """Watches images as the model sees them.

    Args:
        mean: Per-channel mean that the recipe subtracts.
        std: Per-channel divisor of the recipe.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = (np.asarray(value, np.float64)[:, None, None] for value in (mean, std))
        self.images = 0
        self._sums = np.zeros(len(mean))
        self._squares = np.zeros(len(mean))
        self._pixels = 0
        self._negative = 0
        self._near = self._far = self._flat = 0
        self._profiles: list[NDArray[np.float64]] = []
        self._size: tuple[int, int] | None = None

    def collect(self, images: Pixels) -> None:
        """Take note of normalized images (B, C, H, W), all of one size, at least 16 px a side.

        Raises:
            CalibrationError: When the shape does not fit.
        """
        if images.ndim != 4 or images.shape[1] != len(self._sums) or min(images.shape[2:]) < 16:
            raise CalibrationError(
                f"images has shape {images.shape}; expected (B, {len(self._sums)}, H, W) with sides of 16 px or more."
            )
        size = (images.shape[2], images.shape[3])
        if self._size not in (None, size):
            raise CalibrationError(f"images are {size} px after images of {self._size} px; expected one size.")
        self._size = size
        for image in images:
            self._collect_one(image.astype(np.float64))

    @property
    def raw_mean(self) -> tuple[float, ...]:
        """Per-channel mean, with the recipe undone: 0 to 1."""
        return tuple((self._sums / self._pixels).tolist())

    @property
    def raw_deviation(self) -> tuple[float, ...]:
        """Per-channel standard deviation over all pixels of all images, with the recipe undone."""
        variance = self._squares / self._pixels - (self._sums / self._pixels) ** 2
        return tuple(np.sqrt(np.maximum(variance, 0)).tolist())

    @property
    def negative_share(self) -> float:
        """Share of normalized values below 0."""
        return self._negative / (self._pixels * len(self._sums))

    @property
    def unlike_neighbors(self) -> float:
        """Share of images whose neighboring pixels hardly resemble each other."""
        return self._near / self.images

    @property
    def unlike_far(self) -> float:
        """Share of images whose pixels an eighth of a side apart do not resemble each other."""
        return self._far / self.images

    @property
    def flat(self) -> float:
        """Share of images that show nothing."""
        return self._flat / self.images

    @property
    def seam(self) -> float:
        """Largest steepness across a row or column over that of the four beside it, in geometric means over images."""
        return max(_seam(np.exp(profile / max(1, self.images - self._flat))) for profile in self._profiles)

    def _collect_one(self, image: NDArray[np.float64]) -> None:
        raw = image * self._std + self._mean
        self.images += 1
        self._pixels += raw[0].size
        self._sums += raw.sum(axis=(1, 2))
        self._squares += np.square(raw).sum(axis=(1, 2))
        self._negative += int((image < 0).sum())
        gray = raw.mean(axis=0)
        steps = [np.abs(np.diff(gray, axis=axis)).mean(axis=1 - axis) for axis in (0, 1)]
        if not self._profiles:
            self._profiles = [np.zeros(len(step)) for step in steps]
        if gray.std() < FLAT:
            self._flat += 1
            return
        far = max(1, min(gray.shape) // 8)
        self._near += min(_correlation(gray, 1, axis) for axis in (0, 1)) < NEIGHBOR_CORRELATION
        self._far += sum(_correlation(gray, far, axis) for axis in (0, 1)) / 2 < DISTANT_CORRELATION
        for profile, step in zip(self._profiles, steps, strict=True):
            # Relative to the image's own steepness, so that no image decides; limited, so that none counts as nothing.
            profile += np.log(np.clip(step / max(float(np.median(step)), 1e-3), 0.05, 8))


def pixel_findings(seen: PixelStatistics) -> tuple[Finding, ...]:
    """What photographs do not look like: scrambled, flat, with odd brightness, or not centered."""
    if seen.images == 0:
        return ()
    return tuple(finding for lint in (_scrambled, _flat, _odd, _uncentered) if (finding := lint(seen)) is not None)


def _scrambled(seen: PixelStatistics) -> Finding | None:
    advice = "Look at the images, and at what was done to them before; calibrate on photographs of what the model will see."
    for share, words in ((seen.unlike_neighbors, "1 px"), (seen.unlike_far, "an eighth of the side")):
        if share > SCRAMBLED_SHARE:
            text = f"In {share:.0%} of the images pixels {words} apart are unrelated; in a quarter of photographs at most. {advice}"
            return Finding(code="scrambled-images", text=text, value=share, limit=SCRAMBLED_SHARE)
    if seen.images >= SEAM_IMAGES and seen.seam > SEAM:
        text = (
            f"Edges {seen.seam:.1f} times as steep run through one row or column of all images; photographs have at most 1.5. "
        )
        return Finding(code="scrambled-images", text=text + advice, value=seen.seam, limit=SEAM)
    return None


def _flat(seen: PixelStatistics) -> Finding | None:
    if seen.flat <= SCRAMBLED_SHARE:
        return None
    text = f"{seen.flat:.0%} of the images have one color all over; expected photographs. Look at the images."
    return Finding(code="flat-images", text=text, value=seen.flat, limit=SCRAMBLED_SHARE)


def _odd(seen: PixelStatistics) -> Finding | None:
    for name, values, (low, high) in (
        ("mean", seen.raw_mean, RAW_MEAN),
        ("standard deviation", seen.raw_deviation, RAW_DEVIATION),
    ):
        worst = max(values, key=lambda value, low=low, high=high: max(low - value, value - high))  # type: ignore[misc]
        if not low <= worst <= high:
            text = (
                f"With the recipe's mean and std undone, a channel has a {name} of {worst:.3f}; photographs have {low} to {high}. "
                "Check that pixels are scaled to 0 to 1 once, and normalized once."
            )
            return Finding(code="odd-pixel-statistics", text=text, value=worst, limit=low if worst < low else high)
    return None


def _uncentered(seen: PixelStatistics) -> Finding | None:
    share = min(seen.negative_share, 1 - seen.negative_share)
    if share >= NEGATIVE_SHARE:
        return None
    text = (
        f"{seen.negative_share:.1%} of the values that enter the model are below 0; centered pixels have them on both sides. "
        "Check image_mean and image_std in preprocessor_config.json; if the model was trained so, this may stay."
    )
    return Finding(code="wrong-normalization", text=text, value=seen.negative_share, limit=NEGATIVE_SHARE)


def _correlation(gray: NDArray[np.float64], distance: int, axis: int) -> float:
    """Pearson correlation of pixels ``distance`` px apart along an axis of (H, W)."""
    first, second = (gray[:-distance], gray[distance:]) if axis == 0 else (gray[:, :-distance], gray[:, distance:])
    first, second = first - first.mean(), second - second.mean()
    norm = math.sqrt(float(np.vdot(first, first)) * float(np.vdot(second, second)))
    return float(np.vdot(first, second)) / norm if norm > 0 else 1.0


def _seam(profile: NDArray[np.float64]) -> float:
    beside = (profile[:-4] + profile[1:-3] + profile[3:-1] + profile[4:]) / 4
    return float((profile[2:-2] / beside).max())
