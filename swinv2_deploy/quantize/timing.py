"""How much faster one ONNX file is than another in ONNX Runtime, measured in turns so that the machine's mood cancels out."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort

ROUNDS = 15
SECONDS = 20.0
"""No new round is started after this long."""


def speedup(slow: Path, fast: Path, size: tuple[int, int], batch: int = 1) -> float:
    """Median over rounds of time(slow) / time(fast) on seeded noise of (batch, 3, *size)."""
    images = np.random.default_rng(0).standard_normal((batch, 3, *size)).astype(np.float32)
    sessions = [_session(path) for path in (slow, fast)]
    for session in sessions:
        session.run(None, {"pixel_values": images})
    ratios: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(ratios) < ROUNDS and (len(ratios) < 3 or time.perf_counter() < end):
        seconds = [_seconds(session, images) for session in sessions]
        ratios.append(seconds[0] / seconds[1])
    return float(median(ratios))


def _seconds(session: ort.InferenceSession, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    started = time.perf_counter()
    session.run(None, {"pixel_values": images})
    return time.perf_counter() - started


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The shift mask of -100 leaves denormal numbers after exp(), which cost up to a fifth of the time; flushing them moves nothing.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
