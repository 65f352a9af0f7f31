"""Drift of a candidate's outputs from the reference's, gathered batch by batch at constant memory.

Shape letters: B batch, K classes. Everything is summed in float64.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from calibration.statistics import wilson_interval
from reference_model.config import SwinV2Config
from swinv2_deploy.errors import RunnerError
from swinv2_deploy.runtime.runner import Array
from swinv2_deploy.verify.statistics import Paired

Double = NDArray[np.float64]

BINS = 15
"""Bins of confidence."""

CHANCE_OF_SWAP = 1e-3
"""Probability below which two classes that are taken for each other have their labels exchanged."""


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
    first, second = _log_softmax(reference), _log_softmax(candidate)
    divergence: Double = np.maximum((np.exp(first) * (first - second)).sum(axis=1), 0.0)
    return divergence


def _log_softmax(logits: Double) -> Double:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Double = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


@dataclass(slots=True)
class _OutputSums:
    images: int = 0
    values: int = 0
    max_abs: float = 0.0
    absolute: float = 0.0
    cosine: float = 0.0
    worst_cosine: float = 1.0
    signal: float = 0.0
    noise: float = 0.0
    peak: float = 0.0

    def add(self, reference: Double, candidate: Double) -> None:
        difference = np.abs(reference - candidate)
        cosines = cosine_rows(reference, candidate)
        self.images += len(reference)
        self.values += reference.size
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.absolute += float(difference.sum())
        self.cosine += float(cosines.sum())
        self.worst_cosine = min(self.worst_cosine, float(cosines.min(initial=1.0)))
        self.signal += float(np.square(reference).sum())
        self.noise += float(np.square(difference).sum())
        self.peak = max(self.peak, float(np.abs(reference).max(initial=0.0)))

    def result(self) -> OutputDrift:
        # A zero signal under noise is infinitely worse than any, not an error of the logarithm.
        ratio = math.inf if self.noise == 0 else self.signal / self.noise
        return OutputDrift(
            max_abs=self.max_abs,
            mean_abs=self.absolute / max(self.values, 1),
            cosine=self.cosine / max(self.images, 1),
            worst_cosine=self.worst_cosine if self.images else 0.0,
            sqnr_db=-math.inf if ratio == 0 else 10 * math.log10(ratio),
            peak=self.peak,
        )


@dataclass(slots=True)
class Reliability:
    """Confidence against accuracy, in bins of equal width.

    Source: Guo et al., arXiv:1706.04599, equation 3.
    """

    count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    confidence: Double = field(default_factory=lambda: np.zeros(BINS))
    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, confidence: float, *, right: bool) -> None:
        """Add an image by the probability of the class that was named."""
        place = min(BINS - 1, int(confidence * BINS))
        self.count[place] += 1
        self.confidence[place] += confidence
        self.right[place] += right

    @property
    def error(self) -> float:
        """Mean distance of confidence and accuracy over images, in [0, 1]."""
        return float(np.abs(self.confidence - self.right).sum() / max(1, int(self.count.sum())))


@dataclass(slots=True)
class DriftMeter:
    """Gathers the drift of one candidate.

    Args:
        classes: Names of the classes when the output ``logits`` is to be read as a classifier's, else empty.
        tie_margin: Distance of two logits within which their classes are tied.
    """

    classes: Sequence[str] = ()
    tie_margin: float = 0.0
    images: int = 0
    nonfinite: list[str] = field(default_factory=list)
    _outputs: dict[str, _OutputSums] = field(default_factory=dict)
    _kl: float = 0.0
    _judged: int = 0
    _flips: list[Flip] = field(default_factory=list)
    _pairs: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    _top5: list[int] = field(default_factory=lambda: [0, 0])
    _triples: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    _confidence: tuple[Reliability, Reliability] = field(default_factory=lambda: (Reliability(), Reliability()))

    def add(
        self, names: Sequence[str], labels: Sequence[int | None], reference: Mapping[str, Array], candidate: Mapping[str, Array]
    ) -> None:
        """Add a batch: image names, class index of each or None, and the outputs (B, ...) by name.

        Raises:
            RunnerError: When the candidate returns another shape.
        """
        flat: dict[str, tuple[Double, Double]] = {}
        finite = np.ones(len(names), bool)
        for name, expected in reference.items():
            found = candidate[name]
            if found.shape != expected.shape:
                raise RunnerError(
                    f"{name} has shape {found.shape} and the reference {expected.shape}; the file is of another model."
                )
            pair = (expected.reshape(len(names), -1).astype(np.float64), found.reshape(len(names), -1).astype(np.float64))
            flat[name] = pair
            finite &= np.isfinite(pair[1]).all(axis=1)
        self.images += len(names)
        self.nonfinite += [name for name, fine in zip(names, finite, strict=True) if not fine]
        for name, (expected_rows, found_rows) in flat.items():
            self._outputs.setdefault(name, _OutputSums()).add(expected_rows[finite], found_rows[finite])
        if self.classes:
            kept = [(name, label) for name, label, fine in zip(names, labels, finite, strict=True) if fine]
            self._add_classes(kept, flat["logits"][0][finite], flat["logits"][1][finite])

    def outputs(self) -> dict[str, OutputDrift]:
        """Drift of every output by name."""
        return {name: sums.result() for name, sums in self._outputs.items()}

    def class_drift(self) -> ClassDrift | None:
        """Agreement and accuracy; None when the model is no classifier or gave no finite output."""
        if not self.classes or self._judged == 0:
            return None
        flips = tuple(sorted(self._flips, key=lambda flip: -flip.margin))
        agreeing = self._judged - len(flips)
        drift = ClassDrift(
            agreement=agreeing / self._judged,
            judged_agreement=(agreeing + sum(flip.tie for flip in flips)) / self._judged,
            agreement_interval=wilson_interval(agreeing + sum(flip.tie for flip in flips), self._judged),
            kl=self._kl / self._judged,
            flips=flips,
        )
        paired = Paired(*self._pairs)
        if paired.count == 0:
            return drift
        low, high = paired.drop_interval
        right = (paired.both + paired.reference_only, paired.both + paired.candidate_only)
        top5 = (self._top5[0] / paired.count, self._top5[1] / paired.count)
        return replace(
            drift,
            labeled=paired.count,
            top1=(right[0] / paired.count, right[1] / paired.count),
            top5=top5 if len(self.classes) > 5 else None,
            drop=100 * paired.drop,
            drop_interval=(100 * low, 100 * high),
            p_value=paired.p_value,
            detectable_drop=100 * paired.detectable_drop,
            calibration_error=(self._confidence[0].error, self._confidence[1].error),
            confusion=self._confusion(),
            per_class=self._per_class(),
            swapped=self._swapped(),
        )

    def _confusion(self) -> tuple[tuple[str, str, str, int], ...]:
        ordered = sorted(self._triples.items(), key=lambda item: (-item[1], item[0]))
        names = self.classes
        return tuple((names[a], names[b], names[c], count) for (a, b, c), count in ordered if not a == b == c)

    def _per_class(self) -> tuple[tuple[str, int, int, int], ...]:
        rows: dict[int, list[int]] = {}
        for (label, first, second), count in self._triples.items():
            row = rows.setdefault(label, [0, 0, 0])
            row[0] += count
            row[1] += count * (first == label)
            row[2] += count * (second == label)
        return tuple((self.classes[label], *rows[label]) for label in sorted(rows))  # type: ignore[misc]  # three numbers

    def _swapped(self) -> tuple[str, str] | None:
        """Two classes that the reference takes for each other far more often than for themselves: their labels look exchanged."""
        named: Counter[tuple[int, int]] = Counter()
        for (label, first, _), count in self._triples.items():
            named[label, first] += count
        best: tuple[float, tuple[str, str]] | None = None
        for label, first in {(min(pair), max(pair)) for pair in named if pair[0] != pair[1]}:
            crossed = named[label, first] + named[first, label]
            straight = named[label, label] + named[first, first]
            if not (named[label, first] and named[first, label] and crossed > straight):
                continue
            # How probable so many crossings are if either way were as likely.
            chance = sum(math.comb(crossed + straight, k) for k in range(straight + 1)) / 2 ** (crossed + straight)
            if chance < CHANCE_OF_SWAP and (best is None or chance < best[0]):
                best = chance, (self.classes[label], self.classes[first])
        return None if best is None else best[1]

    def _add_classes(self, images: list[tuple[str, int | None]], reference: Double, candidate: Double) -> None:
        if not images:
            return
        self._judged += len(images)
        self._kl += float(kl_rows(reference, candidate).sum())
        probabilities = np.exp(_log_softmax(reference)), np.exp(_log_softmax(candidate))
        order = np.argsort(-reference, axis=1, kind="stable")[:, :5], np.argsort(-candidate, axis=1, kind="stable")[:, :5]
        for row, (name, label) in enumerate(images):
            first, second = int(order[0][row, 0]), int(order[1][row, 0])
            if first != second:
                margin = float(reference[row, first] - reference[row, second])
                self._flips.append(
                    Flip(
                        image=name,
                        reference=self.classes[first],
                        candidate=self.classes[second],
                        label="" if label is None else self.classes[label],
                        margin=margin,
                        tie=margin <= self.tie_margin,
                        top5=(
                            self._named(order[0][row], probabilities[0][row]),
                            self._named(order[1][row], probabilities[1][row]),
                        ),
                    )
                )
            if label is not None:
                self._triples[label, first, second] += 1
                for meter, named, values in zip(self._confidence, (first, second), probabilities, strict=True):
                    meter.add(float(values[row, named]), right=named == label)
                self._pairs[2 * (first != label) + (second != label)] += 1
                self._top5[0] += label in order[0][row]
                self._top5[1] += label in order[1][row]

    def _named(self, order: NDArray[np.int64], probabilities: Double) -> tuple[tuple[str, float], ...]:
        return tuple((self.classes[int(index)], round(float(probabilities[index]), 4)) for index in order)
