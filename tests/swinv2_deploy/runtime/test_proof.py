"""A proof looks at every row of every batch, has one limit that float32's own rounding can move, and can be read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from swinv2_deploy.errors import RunnerError
from swinv2_deploy.resolution import ResolutionRange
from swinv2_deploy.runtime import TorchRunner, proof, prove
from swinv2_deploy.runtime.grid import BATCHES, FULL_PIXELS, FULL_SIZES, full_grid, quick_grid
from swinv2_deploy.runtime.proof import difference, noise_images, read_grid
from swinv2_deploy.runtime.runner import Array

Change = Callable[[dict[str, Array], Array], None]
GRID = {(16, 16): (1, 2, 17), (20, 24): (3,)}


class Spoiled(TorchRunner):
    """The reference with its outputs changed by a function of outputs and images."""

    def __init__(self, model: SwinV2, change: Change) -> None:
        super().__init__(model)
        self.change = change

    def run(self, images: Array) -> dict[str, Array]:
        outputs = {name: value.copy() for name, value in super().run(images).items()}
        self.change(outputs, images)
        return outputs


def nothing(outputs: dict[str, Array], images: Array) -> None:
    return None


# --- grids -------------------------------------------------------------------------------------------------------------


def test_the_full_grid_has_every_size_and_all_batches_of_what_is_small() -> None:
    """Large images come in small batches, so that memory is bounded; each size at least once."""
    grid = full_grid(ResolutionRange(min=(32, 32), opt=(256, 256), max=(1024, 1024)))

    assert {*FULL_SIZES, (1024, 1024), (256, 256)} <= set(grid)
    assert all(grid[size] == BATCHES for size in grid if size[0] * size[1] <= 256 * 256)
    assert grid[512, 512] == (1, 2, 3)
    assert grid[1024, 640] == (1,)
    assert all(len(batches) == 1 or max(batches) * math.prod(size) <= FULL_PIXELS for size, batches in grid.items())


@pytest.mark.parametrize("make", [quick_grid, full_grid])
@pytest.mark.parametrize(
    "resolutions",
    [
        ResolutionRange(min=(32, 32), opt=(128, 128), max=(512, 512)),
        ResolutionRange(min=(224, 64), opt=(224, 96), max=(224, 2000), multiple=32),
        ResolutionRange(min=(48, 40), opt=(48, 40), max=(48, 40)),
        ResolutionRange(min=(2560, 1600), opt=(2560, 1600), max=(2560, 1600)),
    ],
    ids=str,
)
def test_a_grid_lies_in_its_range(make: Any, resolutions: ResolutionRange) -> None:
    """And holds the ends that break first: the intended size and the smallest."""
    grid = make(resolutions)

    assert {resolutions.opt, resolutions.nearest(*resolutions.min)} <= set(grid)
    assert all(resolutions.refusal(*size) is None and batches[0] == 1 for size, batches in grid.items())
    assert len(grid) == 1 or not resolutions.static


# --- errors ------------------------------------------------------------------------------------------------------------


def test_the_reference_equals_itself(tiny_model: SwinV2) -> None:
    found = prove(Spoiled(tiny_model, nothing), tiny_model, GRID)

    assert found.failures == ()
    assert [(row.size, list(row.errors)) for row in found.rows] == [((16, 16), [1, 2, 17]), ((20, 24), [3])]
    assert found.max_abs < 1e-5  # chunks and batches differ


@pytest.mark.parametrize("value", [2e-4, math.nan, math.inf])
def test_one_value_of_one_row_of_one_batch_is_seen(value: float, tiny_model: SwinV2) -> None:
    """The last row of the largest batch, alone."""

    def change(outputs: dict[str, Array], images: Array) -> None:
        if len(images) == 17:
            outputs["logits"][16, 4] += value

    found = prove(Spoiled(tiny_model, change), tiny_model, GRID)
    wrong, right = found.rows
    (text,) = found.failures

    assert max(wrong.errors[1], wrong.errors[2], right.max_abs) < 1e-5
    assert wrong.errors[17] == pytest.approx(value if math.isfinite(value) else math.inf, rel=0.05)
    assert "at 16x16 px in a batch of 17; at most 1.0e-04 may be" in text


def test_rows_in_another_order_are_seen(tiny_model: SwinV2) -> None:
    def change(outputs: dict[str, Array], images: Array) -> None:
        outputs["logits"] = outputs["logits"][::-1]

    rows = prove(Spoiled(tiny_model, change), tiny_model, GRID).rows
    assert rows[0].errors[1] < 1e-5 < 1e-3 < rows[0].errors[2]


def test_every_output_has_its_own_limit(tiny_config: SwinV2Config, make_model: Callable[[SwinV2Config], SwinV2]) -> None:
    """The noise of a loud output does not excuse a quiet one."""
    config = SwinV2Config.from_dict(tiny_config.to_dict() | {"task": "encoder", "num_classes": 0})
    model = make_model(config)

    def change(outputs: dict[str, Array], images: Array) -> None:
        outputs["pooler_output"] += 2e-4

    found = prove(Spoiled(model, change), model, {(16, 16): (1,)})
    assert found.failures[0].startswith("pooler_output differs by 2.00e-04")


def test_a_wrong_shape_is_infinitely_far() -> None:
    assert difference(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)) == math.inf
    assert difference(np.full((1, 1), np.nan, np.float32), np.zeros((1, 1), np.float32)) == math.inf


def test_missing_outputs_are_named(tiny_model: SwinV2) -> None:
    def change(outputs: dict[str, Array], images: Array) -> None:
        outputs["scores"] = outputs.pop("logits")

    with pytest.raises(RunnerError, match=r"returns \['scores'\]; expected \['logits'\]"):
        prove(Spoiled(tiny_model, change), tiny_model, GRID)


def test_rounding_of_the_reference_counts_where_it_is_larger(tiny_model: SwinV2, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit below what float32 can keep, ten times the measured noise passes and a hundred times it does not."""
    noise: list[float] = []

    def change(outputs: dict[str, Array], images: Array) -> None:
        exact = TorchRunner(tiny_model, double=True).run(images)["logits"]
        noise.append(float(np.abs(exact - outputs["logits"]).max()))
        outputs["logits"][0, 0] += factor * noise[-1]

    monkeypatch.setattr(proof, "LIMIT", 1e-9)
    factor = 5
    (row,) = prove(Spoiled(tiny_model, change), tiny_model, {(16, 16): (1,)}).rows
    assert row.failure == ""
    assert row.noise == pytest.approx(noise[0])
    assert row.limit == pytest.approx(10 * noise[0])
    factor = 100
    (row,) = prove(Spoiled(tiny_model, change), tiny_model, {(16, 16): (1,)}).rows
    assert "at most" in row.failure


def test_a_reference_that_is_not_finite_excuses_nothing(tiny_model: SwinV2) -> None:
    def change(outputs: dict[str, Array], images: Array) -> None:
        outputs["logits"][:] = np.nan

    for parameter in tiny_model.head.parameters():
        parameter.data.fill_(math.nan)
    assert len(prove(Spoiled(tiny_model, change), tiny_model, GRID).failures) == 2


def test_errors_that_are_not_judged_have_no_limit(tiny_model: SwinV2) -> None:
    def change(outputs: dict[str, Array], images: Array) -> None:
        outputs["logits"] += 1

    found = prove(Spoiled(tiny_model, change), tiny_model, GRID, judged=False)
    assert found.failures == ()
    assert {row.limit for row in found.rows} == {None}
    assert found.max_abs == pytest.approx(1, abs=1e-3)


def test_an_image_is_the_same_in_every_batch() -> None:
    np.testing.assert_array_equal(noise_images((8, 9), 17, 3)[:2], noise_images((8, 9), 2, 3))
    assert not np.array_equal(*noise_images((8, 9), 2, 3))


# --- what a file keeps -------------------------------------------------------------------------------------------------


def test_a_proof_survives_json(tiny_model: SwinV2) -> None:
    """Infinity, which JSON does not have, is null."""

    def change(outputs: dict[str, Array], images: Array) -> None:
        outputs["logits"] = outputs["logits"][:, :2]

    stored = json.loads(json.dumps(prove(Spoiled(tiny_model, change), tiny_model, GRID).to_dict(), allow_nan=False))
    assert stored["max_abs"] is None
    assert stored["grid"][1] == {"size": [20, 24], "errors": {"3": None}, "limit": 1e-4, "noise": stored["grid"][1]["noise"]}
    assert read_grid(stored) == GRID


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "text",
        [],
        {},
        {"grid": []},
        {"grid": 5},
        {"grid": [{"size": [1]}]},
        {"grid": [{"size": [16, 16], "errors": {}}]},
        {"grid": [{"size": [0, 16], "errors": {"1": 0}}]},
        {"grid": [{"size": [16, 16], "errors": {"-1": 0}}]},
        {"grid": [{"size": [16, 16], "errors": 3}]},
        {"grid": [{"size": "ab", "errors": {"1": 0}}]},
    ],
    ids=str,
)
def test_what_is_no_proof_has_no_grid(stored: Any) -> None:
    assert read_grid(stored) is None
