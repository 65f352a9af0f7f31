"""How much faster one ONNX file is than another in ONNX Runtime, measured in turns so that the machine's mood cancels out."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np

from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.runtime.runner import Array

ROUNDS = 15
SECONDS = 20.0
"""No new round is started after this long."""


def speedup(slow: Path, fast: Path, size: tuple[int, int], batch: int = 1) -> float:
    """Median over rounds of time(slow) / time(fast) on seeded noise of (batch, channels, *size)."""
    runners = [OnnxRunner(path) for path in (slow, fast)]
    channels = runners[0].facts.config.num_channels
    images = np.random.default_rng(0).standard_normal((batch, channels, *size)).astype(np.float32)
    for runner in runners:
        runner.run(images)
    ratios: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(ratios) < ROUNDS and (len(ratios) < 3 or time.perf_counter() < end):
        seconds = [_seconds(runner, images) for runner in runners]
        ratios.append(seconds[0] / seconds[1])
    return float(median(ratios))


def _seconds(runner: OnnxRunner, images: Array) -> float:
    started = time.perf_counter()
    runner.run(images)
    return time.perf_counter() - started
