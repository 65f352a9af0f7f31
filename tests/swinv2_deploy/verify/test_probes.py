"""Sizes, batches and rounding noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reference_model.model import SwinV2
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.runtime import Array, TorchRunner
from swinv2_deploy.verify.probes import rounding_noise, size_drift, slot_drift, slot_size, sweep_sizes


class Leaky:
    """A runner whose rows see the rest of the batch; alone they are right."""

    name, precision, provider, resolutions, output_names = "leaky", "fp32", "none", None, ("logits",)

    def __init__(self, leak: float, lost_rows: int = 0) -> None:
        self.leak, self.lost_rows = leak, lost_rows

    def run(self, images: Array) -> dict[str, Array]:
        logits = images.mean(axis=(2, 3))
        logits = logits + self.leak * (logits - logits.mean(axis=0))
        return {"logits": logits[: len(logits) - self.lost_rows] if len(logits) > 1 else logits}


IMAGES = np.random.default_rng(0).standard_normal((3, 3, 8, 8), dtype=np.float32)


def test_sweep_holds_what_breaks_graphs() -> None:
    """Both ends, native, an odd one and rectangles; all inside the range; bounded in area."""
    resolutions = ResolutionRange(min=(32, 32), opt=(256, 256), max=(1024, 1024))
    sizes = sweep_sizes(resolutions, (256, 256))

    assert {(32, 32), (256, 256), (512, 512)} <= set(sizes)
    assert any(height % 2 or width % 2 for height, width in sizes)
    assert {True, False} == {height > width for height, width in sizes if height != width}
    assert all(resolutions.refusal(*size) is None for size in sizes)
    assert max(height * width for height, width in sizes) <= 4 * 256 * 256


def test_sweep_of_a_static_file_is_its_size() -> None:
    assert [(40, 48)] == sweep_sizes(ResolutionRange(min=(40, 48), opt=(40, 48), max=(40, 48)), (40, 48))


def test_sweep_keeps_the_multiple() -> None:
    resolutions = ResolutionRange(min=(30, 30), opt=(64, 64), max=(130, 130), multiple=16)

    assert {0} == {side % 16 for size in sweep_sizes(resolutions, (64, 64)) for side in size}
    assert (32, 32) == slot_size(resolutions, (64, 64))


def test_independent_rows_are_equal() -> None:
    drift = slot_drift(Leaky(0.0), IMAGES, (1, 2, 3, 17))

    assert (0.0, 0.0, (8, 8)) == (drift.max_abs, drift.relative, drift.size)


def test_a_leak_between_rows_is_found() -> None:
    drift = slot_drift(Leaky(1e-3), IMAGES, (1, 2, 3, 17))

    assert drift.relative > 1e-4
    assert drift.worst[0] > 1


def test_lost_rows_are_infinitely_wrong() -> None:
    assert math.inf == slot_drift(Leaky(0.0, lost_rows=1), IMAGES, (1, 2)).relative


@pytest.mark.parametrize(
    "found", [np.full((2, 3), np.nan, np.float32), np.zeros((2, 4), np.float32)], ids=["nan", "another-shape"]
)
def test_a_broken_size_is_infinitely_far(found: Array) -> None:
    drift = size_drift((8, 8), {"logits": np.zeros((2, 3), np.float32)}, {"logits": found})

    assert (math.inf, -1.0) == (drift.max_abs, drift.cosine)


def test_rounding_noise_is_small_and_there(tiny_model: SwinV2) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)

    noise = rounding_noise(TorchRunner(tiny_model), TorchRunner(tiny_model, double=True), images)

    assert 0 < noise["logits"] < 1e-5
