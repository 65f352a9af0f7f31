"""Measures of how far a candidate's outputs are from the reference's, and what they are called.

Shape letters: B batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference_model.config import SwinV2Config

Double = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputDrift:
    """Drift of one output over all images whose values are finite.

    Attributes:
        max_abs: Largest absolute difference of a value.
        mean_abs: Mean absolute difference.
        cosine: Mean over images of the cosine similarity.
        worst_cosine: Smallest of them.
        sqnr_db: Signal to noise in dB: power of the reference over power of the difference; infinite when they are equal.
        peak: Largest magnitude of the reference.
    """

    max_abs: float
    mean_abs: float
    cosine: float
    worst_cosine: float
    sqnr_db: float
    peak: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """An image whose top-1 differs.

    Attributes:
        image: Name in the folder.
        reference: Class the reference names.
        candidate: Class the candidate names.
        top5: The first five classes of both, with their probabilities.
        label: Class of the folder, empty when unknown.
        margin: How far the two classes' logits lie apart in the reference.
        tie: Whether the margin is within the rounding noise, so that either answer is right.
    """

    image: str
    reference: str
    candidate: str
    label: str
    margin: float
    tie: bool
    top5: tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]] = ((), ())


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassDrift:
    """What a classifier's drift changes.

    Attributes:
        agreement: Share of images with the same top-1.
        judged_agreement: The same, ties counted as agreeing.
        agreement_interval: Its 95 % interval.
        kl: Mean Kullback-Leibler divergence of the candidate's probabilities from the reference's, in nats.
        flips: Images whose top-1 differs, the clearest first.
        labeled: Images with a label the model knows; the rest of the fields are about these.
        top1: Accuracy of reference and candidate, or None without labels.
        top5: The same for the first five classes; None with fewer than six classes.
        drop: Top-1 accuracy lost, in percentage points.
        drop_interval: Its paired 95 % interval, in percentage points.
        p_value: Exact McNemar test of the loss.
        detectable_drop: Smallest loss in percentage points that so many images tell from none, four times of five.
        calibration_error: Expected calibration error of reference and candidate: how far confidence lies from accuracy.
        confusion: Images by class of the folder, class that the reference names, and class that the candidate names, where not
            all three are the same.
        per_class: Name, images, and how many of these reference and candidate name rightly, of every class with images.
        swapped: Two classes whose labels look exchanged, as the reference names the images of each the other.
    """

    agreement: float
    judged_agreement: float
    agreement_interval: tuple[float, float]
    kl: float
    flips: tuple[Flip, ...]
    labeled: int = 0
    top1: tuple[float, float] | None = None
    top5: tuple[float, float] | None = None
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    p_value: float | None = None
    detectable_drop: float | None = None
    calibration_error: tuple[float, float] | None = None
    confusion: tuple[tuple[str, str, str, int], ...] = ()
    per_class: tuple[tuple[str, int, int, int], ...] = ()
    swapped: tuple[str, str] | None = None


def class_names(config: SwinV2Config) -> tuple[str, ...]:
    """Names of a classifier's classes, numbers where it has none; empty for another model."""
    if config.task != "classification":
        return ()
    return config.labels or tuple(f"class {index}" for index in range(config.num_classes))


def cosine_rows(reference: Double, candidate: Double) -> Double:
    """Cosine similarity (B,) of matrices (B, n); two zero rows are equal, one zero row is orthogonal to any other."""
    lengths = np.linalg.norm(reference, axis=1), np.linalg.norm(candidate, axis=1)
    product = lengths[0] * lengths[1]
    dots = np.einsum("bn,bn->b", reference, candidate)
    both_zero = ((lengths[0] == 0) & (lengths[1] == 0)).astype(np.float64)
    cosines: Double = np.where(product > 0, dots / np.where(product > 0, product, 1.0), both_zero)
    return np.minimum(cosines, 1.0)


def kl_rows(reference: Double, candidate: Double) -> Double:
    """KL(softmax(reference) || softmax(candidate)) in nats, (B,), of logits (B, K)."""
    first, second = log_softmax(reference), log_softmax(candidate)
    divergence: Double = np.maximum((np.exp(first) * (first - second)).sum(axis=1), 0.0)
    return divergence


def log_softmax(logits: Double) -> Double:
    """Logarithm of the probabilities of logits (B, K)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Double = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
