"""Timing of a model's blocks in ONNX Runtime, for a budget in latency."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from reference_model.config import SwinV2Config
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import WeightsOrigin
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import Source, untrained_model
from swinv2_deploy.prune.latency import LatencyTable, stage_config, widths
from swinv2_deploy.prune.units import KINDS, Kind
from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.runtime.runner import Array

ROUNDS = 25
SECONDS = 4.0
"""No new round of a stage's widths is started after this long, but three are made."""

Timed = Callable[[int, int], object]


def latency_table(
    config: SwinV2Config, size: tuple[int, int], multiple: int, progress: Timed = lambda done, total: None
) -> LatencyTable:
    """Time the blocks of every stage at several widths, and the whole model, on one image. Weights do not matter to time.

    Args:
        config: Architecture.
        size: (height, width) of the image in px.
        multiple: Hidden units of timed blocks are a multiple of this.
        progress: Called with groups of widths done and in all.
    """
    groups: list[tuple[Kind, int]] = [(kind, stage) for kind in KINDS for stage in range(config.running_stages)]
    times: dict[Kind, list[dict[int, float]]] = {kind: [] for kind in KINDS}
    for done, (kind, stage) in enumerate(groups, 1):
        most = max(config.num_heads[stage] if kind == "heads" else config.mlp_hidden[stage])
        chosen = widths(most, 1 if kind == "heads" else multiple)
        found = _times({width: stage_config(config, stage, size, kind, width) for width in chosen})
        times[kind].append(found)
        progress(done, len(groups) + 1)
    total = _times({0: config}, size)[0]
    progress(len(groups) + 1, len(groups) + 1)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ONNX Runtime"
    return LatencyTable(size=size, total_ms=total, times_ms=times, machine=machine)


def _times(configs: dict[int, SwinV2Config], size: tuple[int, int] | None = None) -> dict[int, float]:
    """Median milliseconds of one image, by width, measured in turns."""
    with tempfile.TemporaryDirectory() as folder:
        runners: dict[int, OnnxRunner] = {}
        images: dict[int, Array] = {}
        for width, config in configs.items():
            shape = (1, config.num_channels, *(size or config.image_size))
            runners[width] = _runner(config, size or config.image_size, Path(folder) / str(width))
            images[width] = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for width, runner in runners.items():
            runner.run(images[width])
        seconds: dict[int, list[float]] = {width: [] for width in configs}
        end = time.perf_counter() + SECONDS
        for made in range(ROUNDS):
            if made >= 3 and time.perf_counter() > end:
                break
            for width, runner in runners.items():
                started = time.perf_counter()
                runner.run(images[width])
                seconds[width].append(time.perf_counter() - started)
        return {width: 1000 * median(values) for width, values in seconds.items()}


def _runner(config: SwinV2Config, size: tuple[int, int], path: Path) -> OnnxRunner:
    source = Source(
        model=untrained_model(config, seed=0),
        preprocessing=Preprocessing(size=size, resize_shortest=None).with_channels(config.num_channels),
        origin=WeightsOrigin(kind="untrained", source="timing"),
        name="timing",
    )
    artifact = export(source, ExportSpec(static=True), path)
    return OnnxRunner(artifact.file("onnx/model.onnx"))
