"""From quiet blocks to ratios, and from outputs to drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How many times as fast as the baseline.

    Attributes:
        low: First quartile over rounds of time(baseline) / time(peer), both of the same round.
        median: Median of the same.
        high: Third quartile of the same.
        of_minima: Smallest time of the baseline over smallest time of the peer.
        rounds: Rounds in which both had a quiet block.
    """

    low: float
    median: float
    high: float
    of_minima: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def speed(baseline: Mapping[int, float], peer: Mapping[int, float]) -> Speed | None:
    """Speed from seconds by round; None when no round has both."""
    common = sorted(baseline.keys() & peer.keys())
    if not common:
        return None
    low, median, high = np.percentile([baseline[number] / peer[number] for number in common], (25, 50, 75))
    of_minima = min(baseline.values()) / min(peer.values())
    return Speed(low=float(low), median=float(median), high=float(high), of_minima=of_minima, rounds=len(common))


def drift(reference: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, float]:
    """Largest absolute difference of logits (B, K), and mean and smallest cosine similarity over images.

    Raises:
        ValueError: When the shapes differ.
    """
    if reference.shape != found.shape:
        raise ValueError(f"Logits have the shape {found.shape} where the reference has {reference.shape}.")
    a, b = reference.astype(np.float64), found.astype(np.float64)
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return {
        "max_abs": float(np.abs(a - b).max()),
        "peak": float(np.abs(a).max()),
        "cosine": float(cosines.mean()),
        "worst_cosine": float(cosines.min()),
    }


def share_of_peak(seconds: float, *, linear: int, other: int, peaks: Mapping[str, float], precision: str) -> float | None:
    """Time that the products alone would take at the measured peak, over the time taken.

    Args:
        seconds: Time of one run.
        linear: Operations of the linear layers.
        other: Operations of attention, patch embedding and classifier, which stay FP32.
        peaks: Operations a second by precision.
        precision: Of the linear layers. Without a measured peak of it there is no share: None.
    """
    if precision not in peaks or "fp32" not in peaks:
        return None
    return (linear / peaks[precision] + other / peaks["fp32"]) / seconds
