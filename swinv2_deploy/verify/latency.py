"""Latency of candidates against a baseline, in rounds that take turns, so that other load on the machine hits both."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from swinv2_deploy.runtime.runner import Array, Runner
from swinv2_deploy.verify.report import Latency

FEWEST_ROUNDS = 5
MOST_ROUNDS = 60


def interleaved_latency(runners: Mapping[str, Runner], baseline: str, images: Array, seconds: float) -> dict[str, Latency]:
    """Time every runner on a batch of images (B, 3, H, W), one after the other, again and again.

    Args:
        runners: By name, the baseline among them.
        baseline: Name of the runner that the others are compared with.
        images: Normalized pixels.
        seconds: Stop after this many s, but not before five rounds.
    """
    for runner in runners.values():
        runner.run(images)
    times: dict[str, list[float]] = {name: [] for name in runners}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < FEWEST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() < end):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.run(images)
            times[name].append(1000 * (time.perf_counter() - start))
        rounds += 1
    base = np.asarray(times[baseline])
    result = {}
    for name, values in times.items():
        ratios = base / np.asarray(values)
        first, median, third = (float(value) for value in np.percentile(ratios, (25, 50, 75)))
        result[name] = Latency(
            batch=images.shape[0],
            median_ms=float(np.median(values)),
            baseline_ms=float(np.median(base)),
            speedup=median,
            spread=(first, third),
            rounds=rounds,
        )
    return result
