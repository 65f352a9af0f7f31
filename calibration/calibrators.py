"""One number from a stream of tensors: the largest magnitude that quantization should still represent.

Every calibrator sees tensors one at a time, keeps constant memory, and gives the same number, to the bit, for the same values
in any order and however they are split into batches.

Shape letters: n bins of a histogram, c candidate ranges.

Source: TensorRT's entropy calibration (Szymon Migacz, GTC 2017); NVIDIA/Model-Optimizer calib/histogram.py (0.47), whose
entropy and MSE choose the same bin of the same histogram, the latter once the order of arguments in its call of
``fake_tensor_quant`` is mended. Its own histogram is not used: it depends on the first batch and its counts stop at 2**24.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.errors import CalibrationError
from calibration.histograms import Histogram

LEVELS = 128
"""Magnitudes of a signed 8-bit number: 0 to 127."""
_CHUNK = 1 << 20
_SMALLEST_EXPONENT = -100


class Calibrator(ABC):
    """Watches tensors; says the amax.

    Attributes:
        name: Its name in :data:`CALIBRATORS`.
        low: Smallest value seen.
        high: Largest value seen.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf

    @property
    def options(self) -> dict[str, float]:
        """What its number depends on besides the tensors."""
        return {}

    def collect(self, x: Tensor) -> None:
        """Take note of the values of ``x``, of any shape, on any device. An empty tensor is ignored.

        Raises:
            CalibrationError: On NaN or infinity.
        """
        if x.numel() == 0:
            return
        values = x.detach().flatten()
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        low, high = (float(bound) for bound in values.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            broken = int((~values.isfinite()).sum())
            raise CalibrationError(f"{broken} of {values.numel()} values are NaN or infinite; expected finite activations.")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._update(values)

    def compute_amax(self) -> float:
        """The largest magnitude to represent, from 0 to the largest seen.

        Raises:
            CalibrationError: Before any value was collected.
        """
        if self.low > self.high:
            raise CalibrationError("No values were collected; call collect with at least one non-empty tensor first.")
        return min(self._amax(), self.largest)

    @property
    def largest(self) -> float:
        """Largest magnitude seen."""
        return max(abs(self.low), abs(self.high))

    @abstractmethod
    def clipped_fraction(self, amax: float) -> float:
        """Share of the values seen that are larger in magnitude than ``amax``, to the resolution of what is kept."""

    @abstractmethod
    def _update(self, values: Tensor) -> None:
        """Take note of finite values (any,), after the extremes were."""

    @abstractmethod
    def _amax(self) -> float:
        """The number, before it is limited to the largest magnitude seen."""


class MaxCalibrator(Calibrator):
    """The largest magnitude: clips nothing, and one outlier coarsens everything."""

    name = "max"

    def clipped_fraction(self, amax: float) -> float:
        """Always 0: nothing lies beyond the largest magnitude."""
        if amax < self.largest:
            raise CalibrationError(f"amax {amax} is below the largest value {self.largest}; use a calibrator with a histogram.")
        return 0.0

    def _update(self, values: Tensor) -> None:
        """The extremes are all it needs."""

    def _amax(self) -> float:
        return self.largest


class HistogramCalibrator(Calibrator):
    """Counts magnitudes in a fixed number of bins.

    The width of a bin is a power of two. When a larger value comes, the width doubles and bins are added in pairs, which loses
    nothing: the histogram is the one that the final width would have given from the start. At least half of the bins are used.
    """

    def __init__(self, num_bins: int = 4096) -> None:
        super().__init__()
        if num_bins < 4 * LEVELS or num_bins & (num_bins - 1):
            raise CalibrationError(f"num_bins is {num_bins}; expected a power of two, at least {4 * LEVELS}.")
        self.counts = torch.zeros(num_bins, dtype=torch.int64)
        self._exponent: int | None = None

    @property
    def options(self) -> dict[str, float]:
        return {"num_bins": float(self.counts.numel())}

    @property
    def width(self) -> float:
        """Width of a bin; bin i counts magnitudes in [i * width, (i + 1) * width)."""
        return math.ldexp(1.0, self._exponent) if self._exponent is not None else 0.0

    def clipped_fraction(self, amax: float) -> float:
        """Share of the values seen that lie beyond ``amax``, 0 to 1, to the width of a bin."""
        if amax >= self.largest or self._exponent is None:
            return 0.0
        return int(self.counts[math.ceil(amax / self.width) :].sum()) / int(self.counts.sum())

    def histogram(self) -> Histogram:
        """What was seen so far.

        Raises:
            CalibrationError: Before any value was collected.
        """
        return Histogram(self.width, tuple(self.counts.tolist()))

    def _update(self, values: Tensor) -> None:
        if self.largest > 0:
            # largest < 2**power, so it lies inside the last bin or before.
            power = math.frexp(self.largest)[1]
            self._widen(max(power - (self.counts.numel() - 1).bit_length(), _SMALLEST_EXPONENT))
        if self._exponent is None:
            self.counts[0] += values.numel()
            return
        inverse = math.ldexp(1.0, -self._exponent)
        for start in range(0, values.numel(), _CHUNK):
            # Multiplying by a power of two is exact, and so is the bin.
            bins = (values[start : start + _CHUNK].abs() * inverse).long()
            self.counts += torch.bincount(bins, minlength=self.counts.numel()).cpu()

    def _widen(self, exponent: int) -> None:
        steps = exponent - self._exponent if self._exponent is not None else 0
        for _ in range(min(steps, self.counts.numel().bit_length())):
            pairs = self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.cat([pairs, torch.zeros_like(pairs)])
        self._exponent = exponent

    def _used(self) -> NDArray[np.int64]:
        """Counts up to the last bin that is not empty, (n,)."""
        counts = self.counts.numpy()
        return counts[: int(np.flatnonzero(counts)[-1]) + 1]


class Recorder(HistogramCalibrator):
    """Keeps the histogram beside a calibrator that has none; its range is the largest magnitude."""

    name = "recorder"

    def _amax(self) -> float:
        return self.largest


class PercentileCalibrator(HistogramCalibrator):
    """The smallest bin edge with at least ``percentile`` percent of the magnitudes below it."""

    name = "percentile"

    def __init__(self, percentile: float = 99.99, num_bins: int = 4096) -> None:
        super().__init__(num_bins)
        if not 0 < percentile <= 100:
            raise CalibrationError(f"percentile is {percentile}; expected more than 0 and at most 100.")
        self.percentile = percentile

    @property
    def options(self) -> dict[str, float]:
        return super().options | {"percentile": self.percentile}

    def _amax(self) -> float:
        below = np.cumsum(self._used())
        # Rounding may make the product exceed the total: 100 % is the last bin.
        wanted = min(self.percentile / 100 * float(below[-1]), float(below[-1]))
        return float(np.searchsorted(below, wanted) + 1) * self.width


class EntropyCalibrator(HistogramCalibrator):
    """The range whose 128-level histogram loses least information (Kullback-Leibler divergence), as TensorRT does."""

    name = "entropy"

    def _amax(self) -> float:
        return entropy_edge(self._used()) * self.width


class MseCalibrator(HistogramCalibrator):
    """The range with the least squared error after rounding to 8 bits and clipping."""

    name = "mse"

    def _amax(self) -> float:
        return (mse_bin(self._used()) + 0.5) * self.width


CALIBRATORS: dict[str, type[Calibrator]] = {
    calibrator.name: calibrator for calibrator in (MaxCalibrator, PercentileCalibrator, EntropyCalibrator, MseCalibrator)
}
"""Name to calibrator; each can be made without arguments."""


def entropy_edge(counts: NDArray[np.int64], start: int = LEVELS) -> int:
    """The number of leading bins to keep so that the divergence after quantization to 128 levels is least.

    Candidate i keeps ``counts[:i]``. Reference: those bins, with all that is clipped added to the last. Quantized: bins are
    grouped in 128 levels and each level's sum is spread evenly over its bins that are not empty. Bin 0 takes the count of bin
    1, lest exact zeros decide. Of equal candidates the widest wins.

    Args:
        counts: Histogram of magnitudes from 0 up, equal widths, (n,).
        start: Smallest candidate.
    """
    if len(counts) <= start:
        return len(counts)
    bins = counts.astype(np.float64)
    bins[0] = bins[1]
    keep = np.arange(start, len(bins) + 1)
    sums, filled = _prefix_sums(bins), _prefix_sums(bins > 0)
    total = sums[-1]
    # Level k of candidate i holds the bins from ceil(k * i / 128): (c, 129) edges.
    edges = -(-np.arange(LEVELS + 1) * keep[:, None] // LEVELS)
    mass = np.diff(sums[edges])
    spread = mass / np.maximum(np.diff(filled[edges]), 1)
    last, clipped = bins[keep - 1], total - sums[keep]
    # Sum of p log p over the reference, whose last bin also holds what is clipped.
    information = _prefix_sums(_x_log_x(bins))[keep] - _x_log_x(last) + _x_log_x(last + clipped)
    # Sum of p log q: the reference has each level's mass, and what is clipped in addition in the last.
    cross = (mass * _log(spread)).sum(axis=1) + clipped * _log(spread[:, -1])
    kept = sums[keep]
    divergence = np.full(len(keep), np.inf)
    # An empty last bin would get the clipped mass but no level to represent it: infinitely far.
    possible = (kept > 0) & ((last > 0) | (clipped == 0))
    divergence[possible] = ((information - cross)[possible] / total) + np.log(kept[possible] / total)
    # Rounding leaves 1e-16 where the divergence is zero.
    least = divergence.min()
    return int(keep[np.flatnonzero(divergence <= least + 1e-12)[-1]])


def mse_bin(counts: NDArray[np.int64], start: int = LEVELS) -> int:
    """The bin whose center is the range with the least squared error of an 8-bit symmetric rounding; of equal ones the first.

    Args:
        counts: Histogram of magnitudes from 0 up, equal widths, (n,).
        start: Smallest candidate.
    """
    if len(counts) <= start:
        return len(counts) - 1
    # In units of a bin's width; empty bins cost nothing.
    positions = np.flatnonzero(counts)
    centers = torch.from_numpy(positions + 0.5)
    weights = torch.from_numpy(counts[positions].astype(np.float64))
    candidates = torch.arange(start, len(counts), dtype=torch.float64) + 0.5
    errors = []
    for first in range(0, len(candidates), 128):
        step = (candidates[first : first + 128] / (LEVELS - 1))[:, None]
        quantized = (centers / step).round_().clamp_(max=LEVELS - 1).mul_(step)
        errors.append(quantized.sub_(centers).square_() @ weights)
    return start + int(torch.cat(errors).argmin())


def _prefix_sums(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) to (n + 1,): entry i is the sum of the first i values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm, 0 where the value is 0."""
    return np.log(np.where(values > 0, values, 1.0))


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * _log(values)
