"""Ratios do not depend on the machine's mood, and drift is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.summary import drift, share_of_peak, speed


@given(st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=30), st.floats(0.01, 100.0))
def test_a_mood_that_both_share_cancels_out(baseline: list[float], factor: float) -> None:
    """However fast the machine is in a round, a peer twice as fast in that round is twice as fast."""
    found = speed(dict(enumerate(baseline)), {number: value / factor for number, value in enumerate(baseline)})

    assert found is not None
    assert (found.low, found.median, found.high, found.of_minima) == pytest.approx((factor,) * 4)
    assert found.rounds == len(baseline)


def test_quartiles_show_the_spread() -> None:
    """Five rounds of ratio 1 to 5."""
    found = speed({n: float(n + 1) for n in range(5)}, dict.fromkeys(range(5), 1.0))

    assert found is not None
    assert (found.low, found.median, found.high, found.of_minima) == (2.0, 3.0, 4.0, 1.0)


def test_only_rounds_that_both_finished_are_compared() -> None:
    """A round without a quiet block of one of them says nothing; without any common round there is no ratio."""
    found = speed({0: 2.0, 1: 100.0}, {0: 1.0, 2: 1.0})

    assert found is not None
    assert (found.median, found.rounds) == (2.0, 1)
    assert speed({0: 1.0}, {1: 1.0}) is None


def test_equal_outputs_have_no_drift() -> None:
    """Cosine 1 and no difference."""
    logits = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    found = drift(logits, logits)

    assert found["max_abs"] == 0
    assert (found["cosine"], found["worst_cosine"]) == pytest.approx((1, 1))


def test_one_wrong_image_shows_in_the_worst_cosine() -> None:
    """The mean would hide it among many."""
    logits = np.eye(4, dtype=np.float32)
    wrong = logits.copy()
    wrong[2] = -wrong[2]
    found = drift(logits, wrong)

    assert (found["worst_cosine"], found["cosine"], found["max_abs"]) == (-1, 0.5, 2)


def test_outputs_of_another_shape_are_refused() -> None:
    """A batch that lost an image must not be compared with the rest of it."""
    with pytest.raises(ValueError, match=r"shape \(1, 3\) where the reference has \(2, 3\)"):
        drift(np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float32))


def test_the_share_of_the_peak_is_one_at_the_floor() -> None:
    """Linear layers at the peak of their precision, the rest at that of FP32."""
    peaks = {"fp32": 100.0, "int8": 400.0}

    assert share_of_peak(3.0, linear=800, other=100, peaks=peaks, precision="int8") == 1.0
    assert share_of_peak(18.0, linear=800, other=100, peaks=peaks, precision="fp32") == 0.5


def test_no_share_of_a_peak_that_was_not_measured() -> None:
    """BF16, or none at all."""
    assert share_of_peak(1.0, linear=1, other=1, peaks={"fp32": 1.0}, precision="bf16") is None
    assert share_of_peak(1.0, linear=1, other=1, peaks={}, precision="fp32") is None
