"""Drift metrics against numpy and scipy on the whole set at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from swinv2_deploy.errors import RunnerError
from swinv2_deploy.verify.meter import DriftMeter
from swinv2_deploy.verify.metrics import cosine_rows, kl_rows

CLASSES = tuple("abcdefg")


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    reference = (3 * generator.standard_normal((50, 7))).astype(np.float32)
    return reference, reference + (0.5 * generator.standard_normal((50, 7))).astype(np.float32)


def measured(
    reference: np.ndarray, candidate: np.ndarray, labels: list[int | None], batch: int = 8, tie: float = 0.0
) -> DriftMeter:
    meter = DriftMeter(CLASSES, tie)
    for start in range(0, len(reference), batch):
        part = slice(start, start + batch)
        names = [f"{index}.png" for index in range(len(reference))][part]
        meter.add(names, labels[part], {"logits": reference[part]}, {"logits": candidate[part]})
    return meter


def test_outputs_equal_numpy(logits: tuple[np.ndarray, np.ndarray]) -> None:
    """Streamed in batches, every figure is what numpy says about all images at once."""
    reference, candidate = (array.astype(np.float64) for array in logits)
    drift = measured(*logits, [None] * 50).outputs()["logits"]
    cosines = (reference * candidate).sum(1) / np.linalg.norm(reference, axis=1) / np.linalg.norm(candidate, axis=1)

    assert drift.max_abs == np.abs(reference - candidate).max()
    assert drift.mean_abs == pytest.approx(np.abs(reference - candidate).mean())
    assert (drift.cosine, drift.worst_cosine) == pytest.approx((cosines.mean(), cosines.min()))
    assert drift.sqnr_db == pytest.approx(10 * np.log10((reference**2).sum() / ((reference - candidate) ** 2).sum()))
    assert drift.peak == np.abs(reference).max()


def test_kl_equals_scipy(logits: tuple[np.ndarray, np.ndarray]) -> None:
    special, stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")
    p, q = (special.softmax(array.astype(np.float64), axis=1) for array in logits)

    assert kl_rows(logits[0].astype(np.float64), logits[1].astype(np.float64)) == pytest.approx(stats.entropy(p, q, axis=1))
    assert measured(*logits, [None] * 50).class_drift().kl == pytest.approx(stats.entropy(p, q, axis=1).mean())  # type: ignore[union-attr]


def test_kl_survives_huge_logits() -> None:
    assert kl_rows(np.array([[1e5, 0.0]]), np.array([[0.0, 1e5]])) == pytest.approx([1e5])


def test_cosine_of_zeros() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))

    assert ([1.0], [0.0], [1.0]) == (cosine_rows(zero, zero), cosine_rows(zero, one), cosine_rows(one, one))


def test_equal_outputs_have_no_noise(logits: tuple[np.ndarray, np.ndarray]) -> None:
    drift = measured(logits[0], logits[0], [None] * 50).outputs()["logits"]

    assert (0.0, 1.0, math.inf) == (drift.max_abs, pytest.approx(drift.cosine), drift.sqnr_db)


def test_accuracy_and_flips_equal_numpy(logits: tuple[np.ndarray, np.ndarray]) -> None:
    """Accuracy counts labeled images only; every flip is listed with both classes."""
    reference, candidate = logits
    labels: list[int | None] = [None if index % 5 == 0 else index % 7 for index in range(50)]
    drift = measured(reference, candidate, labels).class_drift()
    known = np.array([index for index, label in enumerate(labels) if label is not None])
    truth = np.array([labels[index] for index in known], int)
    first, second = reference.argmax(1), candidate.argmax(1)

    assert drift is not None
    assert drift.agreement == (first == second).mean()
    assert {f"{index}.png": (CLASSES[first[index]], CLASSES[second[index]]) for index in np.flatnonzero(first != second)} == {
        flip.image: (flip.reference, flip.candidate) for flip in drift.flips
    }
    assert drift.labeled == 40
    assert drift.top1 == ((first[known] == truth).mean(), (second[known] == truth).mean())
    assert drift.drop == pytest.approx(100 * (drift.top1[0] - drift.top1[1]))
    five = [(np.argsort(-array[known], axis=1)[:, :5] == truth[:, None]).any(1).mean() for array in logits]
    assert drift.top5 == tuple(five)


def test_a_tie_is_no_disagreement() -> None:
    """Where the reference cannot tell two classes apart, either is right; a clear lead that is lost is not excused."""
    reference = np.array([[1.0, 1.0 - 1e-6, 0], [1.0, 0.5, 0]], np.float32)
    candidate = np.array([[1.0, 1.1, 0], [1.0, 1.1, 0]], np.float32)

    drift = measured(reference, candidate, [None, None], tie=1e-5).class_drift()

    assert drift is not None
    assert (drift.agreement, drift.judged_agreement) == (0.0, 0.5)
    assert [False, True] == [flip.tie for flip in drift.flips]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_images_are_named_and_left_out(value: float, logits: tuple[np.ndarray, np.ndarray]) -> None:
    """One NaN does not turn every figure into NaN."""
    candidate = logits[1].copy()
    candidate[13, 2] = value

    meter = measured(logits[0], candidate, [None] * 50)

    assert ["13.png"] == meter.nonfinite
    assert np.isfinite(meter.outputs()["logits"].max_abs)


def test_only_nonfinite_images_give_no_classes(logits: tuple[np.ndarray, np.ndarray]) -> None:
    assert measured(logits[0], np.full_like(logits[0], np.nan), [None] * 50).class_drift() is None


def test_another_shape_is_refused() -> None:
    with pytest.raises(RunnerError, match=r"shape \(2, 6\) and the reference \(2, 7\)"):
        measured(np.zeros((2, 7), np.float32), np.zeros((2, 6), np.float32), [None, None])
