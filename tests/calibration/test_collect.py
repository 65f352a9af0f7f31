"""Collection measures exactly what enters the sites, and leaves the model as it was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibration.calibrators import CALIBRATORS, MaxCalibrator, PercentileCalibrator
from calibration.collect import collect
from calibration.dataset import Manifest
from calibration.errors import CalibrationError
from calibration.table import CalibrationTable

MANIFEST = Manifest({"a.jpg": "0" * 64})
SHA = "f" * 64


class Product(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


class Small(nn.Module):
    """Two layers, a product of two tensors, a layer used twice, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Linear(6, 4)
        self.product = Product()
        self.idle = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.first(images)))
        out: Tensor = self.product(self.second(hidden), self.second(3 * hidden).T)
        return out


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


def batches(count: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 4, generator=generator) for _ in range(count)]


def measure(model: nn.Module, inputs: Any, sites: Any, **options: Any) -> CalibrationTable:
    return collect(model, inputs, sites, manifest=MANIFEST, model_sha256=SHA, **options)


def test_the_input_of_each_site_is_measured(model: Small) -> None:
    inputs = batches()
    table = measure(model, inputs, {"in": "first", "hidden": "second"}, seed=4)
    everything = torch.cat(inputs)
    assert table.sites["in"].amax == float(everything.abs().max())
    assert table.sites["in"].low == float(everything.min())
    assert table.sites["in"].high == float(everything.max())
    with torch.no_grad():
        hidden = torch.relu(model.first(everything))
    # The layer runs twice, the second time on three times its input.
    assert table.sites["hidden"].high == pytest.approx(3 * float(hidden.max()), rel=1e-6)
    assert list(table.sites) == ["in", "hidden"]
    assert (table.images, table.seed, table.calibrator, table.options) == (15, 4, "max", {})
    assert (table.manifest, table.model_sha256) == (MANIFEST, SHA)


def test_a_site_may_be_any_positional_argument_and_sites_may_share_a_module(model: Small) -> None:
    table = measure(model, batches(), {"left": ("product", 0), "right": ("product", 1), "also left": "product"})
    assert table.amax["left"] == table.amax["also left"] != table.amax["right"]


def test_the_whole_model_is_the_site_with_the_empty_name(model: Small) -> None:
    assert measure(model, batches(), {"x": ""}).amax == measure(model, batches(), {"x": "first"}).amax


def test_a_shared_module_is_found_under_each_of_its_names() -> None:
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": layer, "b": layer})
    model.forward = lambda x: model["b"](x)
    assert measure(model, batches(), {"x": "b"}).amax == measure(model, batches(), {"x": "a"}).amax


@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_calibrator_gives_the_same_table_however_batches_are_split(model: Small, name: str) -> None:
    everything = torch.cat(batches(20))
    sites = {"in": "first"}
    assert (
        measure(model, [everything], sites, calibrator=name).sites
        == measure(model, everything.tensor_split(14), sites, calibrator=name).sites
    )


def test_a_calibrator_with_options_is_recorded(model: Small) -> None:
    table = measure(model, batches(), {"in": "first"}, calibrator=lambda: PercentileCalibrator(50.0))
    assert (table.calibrator, table.options) == ("percentile", {"num_bins": 4096.0, "percentile": 50.0})
    assert 0.45 < table.sites["in"].clipped <= 0.5


def test_batches_may_be_positional_or_named_tensors(model: Small) -> None:
    expected = measure(model, batches(), {"in": "first"})
    assert measure(model, ((batch,) for batch in batches()), {"in": "first"}) == expected
    assert measure(model, ({"images": batch} for batch in batches()), {"in": "first"}) == expected


def test_the_model_runs_in_evaluation_mode_without_gradients_and_is_left_as_it_was(model: Small) -> None:
    model.train()
    model.second.eval()
    seen: list[tuple[bool, bool]] = []
    model.idle.register_forward_pre_hook(lambda *_: None)
    model.first.register_forward_hook(lambda module, _, out: seen.append((module.training, out.requires_grad)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (measure(model, batches(), {"in": "second"}) for _ in range(2))
    assert first == second
    assert set(seen) == {(False, False)}
    assert (model.training, model.first.training, model.second.training) == (True, True, False)
    assert len(model.second._forward_pre_hooks) == 0
    assert len(model.idle._forward_pre_hooks) == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_site_that_sees_nan_is_named_and_the_hooks_are_gone(model: Small, bad: float) -> None:
    model.train()
    with torch.no_grad():
        model.first.bias[0] = bad
    with pytest.raises(CalibrationError, match=r"Site hidden: .* NaN or infinite"):
        measure(model, batches(), {"in": "first", "hidden": "second"})
    assert not model.first._forward_pre_hooks
    assert not model.second._forward_pre_hooks
    assert model.training


def test_an_error_of_the_model_passes_through_and_the_hooks_are_gone(model: Small) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        measure(model, [torch.zeros(2, 3)], {"in": "first"})
    assert not model.first._forward_pre_hooks


def test_a_site_that_never_ran_is_named(model: Small) -> None:
    with pytest.raises(CalibrationError, match=r"\['z'\] saw no value in 15 images"):
        measure(model, batches(), {"in": "first", "z": "idle"})


def test_a_dead_site_is_an_error_or_listed(model: Small) -> None:
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.bias.fill_(-1)
    sites = {"in": "first", "hidden": "second"}
    with pytest.raises(CalibrationError, match=r"\['hidden'\] were zero in all 15 images"):
        measure(model, batches(), sites)
    table = measure(model, batches(), sites, dead="keep", calibrator="entropy")
    assert table.dead_sites == ("hidden",)
    assert table.sites["hidden"].amax == 0.0


@pytest.mark.parametrize(
    ("sites", "options", "message"),
    [
        ({"x": "third"}, {}, r"no submodules \['third'\]"),
        ({}, {}, "expected at least one site"),
        ({"x": "first"}, {"calibrator": "median"}, "no calibrator 'median'; expected one of"),
        ({"x": ("product", 2)}, {}, "Site x was given NoneType at position 2 of 2"),
        ({"x": ("product", -1)}, {}, "Site x was given NoneType at position -1 of 2"),
    ],
)
def test_what_cannot_be_watched_is_refused(model: Small, sites: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        measure(model, batches(), sites, **options)


@pytest.mark.parametrize("inputs", [[], [torch.zeros(0, 4)]])
def test_no_image_is_refused(model: Small, inputs: list[Tensor]) -> None:
    with pytest.raises(CalibrationError, match="No image ran through the model"):
        measure(model, inputs, {"in": "first"})


def test_progress_is_reported_in_images(model: Small) -> None:
    seen: list[int] = []
    measure(model, batches(), {"in": "first"}, on_batch=seen.append)
    assert seen == [5, 10, 15]


def test_a_collected_table_round_trips(model: Small, tmp_path: Path) -> None:
    table = measure(model, batches(), {"in": "first", "hidden": "second"}, calibrator="mse")
    table.save(tmp_path / "calibration.json")
    assert CalibrationTable.load(tmp_path / "calibration.json") == table


def test_each_site_has_its_own_calibrator(model: Small) -> None:
    made: list[MaxCalibrator] = []

    def make() -> MaxCalibrator:
        made.append(MaxCalibrator())
        return made[-1]

    measure(model, batches(), {"a": "first", "b": "second"}, calibrator=make)
    assert len({id(calibrator) for calibrator in made}) == 2
