"""Gathers the drift of one file batch by batch, at constant memory, and adds up what several processes gathered.

Shape letters: B batch, K classes. Everything is summed in float64.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.statistics import wilson_interval
from swinv2_deploy.errors import RunnerError
from swinv2_deploy.runtime.runner import Array
from swinv2_deploy.verify.metrics import ClassDrift, Double, Flip, OutputDrift, cosine_rows, kl_rows, log_softmax
from swinv2_deploy.verify.statistics import Paired

BINS = 15
"""Bins of confidence."""

CHANCE_OF_SWAP = 1e-3
"""Probability below which two classes that are taken for each other have their labels exchanged."""


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

    def merge(self, other: _OutputSums) -> None:
        for name in ("images", "values", "absolute", "cosine", "signal", "noise"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_abs = max(self.max_abs, other.max_abs)
        self.worst_cosine = min(self.worst_cosine, other.worst_cosine)
        self.peak = max(self.peak, other.peak)

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

    def merge(self, other: Reliability) -> None:
        """Add what another gathered."""
        self.count += other.count
        self.confidence += other.confidence
        self.right += other.right

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

    def merge(self, other: DriftMeter) -> None:
        """Add what another meter of the same file gathered from other images."""
        self.images += other.images
        self.nonfinite += other.nonfinite
        for name, sums in other._outputs.items():
            self._outputs.setdefault(name, _OutputSums()).merge(sums)
        self._kl += other._kl
        self._judged += other._judged
        self._flips += other._flips
        self._pairs = [first + second for first, second in zip(self._pairs, other._pairs, strict=True)]
        self._top5 = [first + second for first, second in zip(self._top5, other._top5, strict=True)]
        self._triples.update(other._triples)
        for mine, theirs in zip(self._confidence, other._confidence, strict=True):
            mine.merge(theirs)

    def to_dict(self) -> dict[str, Any]:
        """What was gathered, in plain JSON types that lose nothing; classes and margin are the reader's to know."""
        return {
            "images": self.images,
            "nonfinite": self.nonfinite,
            "outputs": {name: asdict(sums) for name, sums in self._outputs.items()},
            "kl": self._kl,
            "judged": self._judged,
            "flips": [asdict(flip) for flip in self._flips],
            "pairs": self._pairs,
            "top5": self._top5,
            "triples": [[*key, count] for key, count in self._triples.items()],
            "confidence": [[values.tolist() for values in astuple(meter)] for meter in self._confidence],
        }

    def add_saved(self, found: Mapping[str, Any]) -> None:
        """Add what :meth:`to_dict` gave of another meter of the same file.

        Raises:
            KeyError, TypeError, ValueError: When it is something else.
        """
        first, second = (
            Reliability(np.array(count, np.int64), np.array(confidence, np.float64), np.array(right, np.int64))
            for count, confidence, right in found["confidence"]
        )
        if any(len(values) != BINS for meter in (first, second) for values in (meter.count, meter.confidence, meter.right)):
            raise ValueError(f"confidence has another number of bins than {BINS}")
        other = DriftMeter(self.classes, self.tie_margin, int(found["images"]), list(found["nonfinite"]))
        other._outputs = {name: _OutputSums(**sums) for name, sums in found["outputs"].items()}
        other._kl, other._judged = float(found["kl"]), int(found["judged"])
        other._flips = [Flip(**flip | {"top5": _named_pairs(flip["top5"])}) for flip in found["flips"]]
        other._pairs, other._top5 = [int(count) for count in found["pairs"]], [int(count) for count in found["top5"]]
        other._triples = Counter({(a, b, c): count for a, b, c, count in found["triples"]})
        other._confidence = (first, second)
        self.merge(other)

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
        probabilities = np.exp(log_softmax(reference)), np.exp(log_softmax(candidate))
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


def _named_pairs(
    top5: Sequence[Sequence[Sequence[Any]]],
) -> tuple[tuple[tuple[str, float], ...], tuple[tuple[str, float], ...]]:
    first, second = (tuple((str(name), float(value)) for name, value in side) for side in top5)
    return first, second
