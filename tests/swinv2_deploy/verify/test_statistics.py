"""Intervals and tests against scipy, simulation and their own symmetry."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.statistics import wilson_interval
from swinv2_deploy.verify.statistics import Paired


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (0, 30), (7, 30), (30, 30), (499, 1000)])
def test_wilson_equals_scipy(hits: int, count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")

    assert wilson_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (3, 3), (9, 2), (2, 40)])
def test_mcnemar_equals_the_binomial_test(lost: int, won: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0

    assert Paired(50, lost, won, 20).p_value == pytest.approx(expected)


def test_interval_covers_what_it_promises() -> None:
    """Of many samples with a true drop of 0.02, about 95 % of the intervals hold it."""
    counts = np.random.default_rng(0).multinomial(200, (0.7, 0.05, 0.03, 0.22), size=2000)
    intervals = [Paired(*(int(value) for value in row)).drop_interval for row in counts]

    assert 0.94 <= np.mean([low <= 0.02 <= high for low, high in intervals]) <= 0.99


def test_interval_turns_around_with_the_roles() -> None:
    """Swapping reference and candidate mirrors drop and interval."""
    there, back = Paired(60, 9, 4, 27), Paired(60, 4, 9, 27)

    assert there.drop == -back.drop == pytest.approx(0.05)
    assert there.drop_interval == pytest.approx([-bound for bound in reversed(back.drop_interval)])


def test_pairing_narrows_the_interval() -> None:
    """Two models that fail on the same images are compared more sharply than two that fail on different ones."""
    same, different = Paired(70, 2, 2, 26), Paired(44, 28, 28, 0)

    assert same.drop_interval[1] < different.drop_interval[1] / 2


@pytest.mark.parametrize("table", [(1, 0, 0, 0), (0, 0, 0, 5), (9, 0, 0, 0), (0, 7, 0, 0)])
def test_extreme_tables_have_an_interval(table: tuple[int, int, int, int]) -> None:
    paired = Paired(*table)
    low, high = paired.drop_interval

    assert -1 <= low <= paired.drop <= high <= 1 + 1e-9


@pytest.mark.parametrize(
    ("count", "top1", "apart", "lost"), [(200, 0.7, 0.06, 0.01), (713, 0.7, 0.03, 0.0), (1000, 0.9, 0.05, 0.02)]
)
def test_the_interval_covers_the_true_drop(count: int, top1: float, apart: float, lost: float) -> None:
    """In 93 to 97.5 of 100 simulated verifications, for a nominal 95: the interval errs on the wide side with few flips."""
    both = top1 - (apart + lost) / 2
    shares = (both, (apart + lost) / 2, (apart - lost) / 2, 1 - both - apart)
    draws = np.random.default_rng(0).multinomial(count, shares, size=2000)
    inside = 0
    for draw in draws:
        low, high = Paired(*map(int, draw)).drop_interval
        inside += low <= lost <= high
    assert 0.93 <= inside / len(draws) <= 0.975


def test_more_images_detect_less() -> None:
    few, many = Paired(60, 3, 2, 35), Paired(600, 30, 20, 350)
    assert many.detectable_drop < few.detectable_drop
    assert few.detectable_drop == pytest.approx(2.8016 * (0.05 / 100) ** 0.5)
    assert Paired(10, 0, 0, 0).detectable_drop > 0  # no difference seen is not none there
