"""The guard of the benchmark with peers notices when others use the machine."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.peers.guard import LIMIT, Snapshot, foreign_share, snapshot


@pytest.mark.parametrize(
    ("machine", "own", "expected"),
    [
        pytest.param(2.0, 2.0, 0.0, id="all-mine"),
        pytest.param(2.0, 1.0, 0.5, id="half-is-foreign"),
        pytest.param(0.2, 0.0, 0.1, id="i-slept"),
        pytest.param(1.99, 2.0, 0.0, id="the-coarse-clock-lags"),
    ],
)
def test_what_is_not_my_own_is_foreign(machine: float, own: float, expected: float) -> None:
    """One second on two cores, of which the machine used some and I used some."""
    before = Snapshot(wall=10.0, machine=500.0, own=3.0)
    after = Snapshot(wall=11.0, machine=500.0 + machine, own=3.0 + own)

    assert foreign_share(before, after, cores=2) == pytest.approx(expected)


def test_a_busy_process_is_noticed() -> None:
    """Another process that never rests exceeds the limit of a block that counts."""
    cores = psutil.cpu_count() or 1
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(0.1)
        before = snapshot()
        time.sleep(0.3)
        share = foreign_share(before, snapshot(), cores)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()

    assert share > LIMIT


def test_own_work_is_counted_as_own() -> None:
    """CPU time of this process appears under ``own``, so that it is taken off the machine's."""
    before = snapshot()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        sum(range(1000))

    assert snapshot().own - before.own == pytest.approx(0.1, abs=0.05)
