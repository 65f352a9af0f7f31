"""Every fault inside the network is led back to its block; the whole list, through the gates, is benchmarks/bench_faults.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.bench_faults import examine, make_healthy, spec_for
from benchmarks.faults import Fault, faults, inject
from calibration.samples import sample_folder
from reference_model.preprocessing import read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import UnsupportedModelError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import TorchRunner
from swinv2_deploy.runtime.graph_parts import GraphParts
from swinv2_deploy.runtime.runner import Array
from swinv2_deploy.verify import verify
from swinv2_deploy.verify.bisect import Outputs, bisect
from swinv2_deploy.verify.layers import layer_drift

FAULTS = {fault.name: fault for fault in faults()}
INSIDE = [name for name, fault in FAULTS.items() if fault.units]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """The bundled model in every form; nothing is written to it."""
    return make_healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture(scope="module")
def photographs(healthy: ModelArtifact) -> Array:
    paths = sorted(sample_folder("verify").rglob("*.jpg"))[::30]
    return np.stack([healthy.preprocessing(read_image(path)) for path in paths])


def sized(fault: Fault, images: Array) -> Array:
    """Images on which the fault shows: padded ones for what is wrong about padding."""
    return np.ascontiguousarray(images[:, :, :100, :76]) if "padded" in fault.name else images


@pytest.mark.parametrize("name", INSIDE)
def test_the_block_is_named(name: str, healthy: ModelArtifact, photographs: Array, tmp_path: Path) -> None:
    fault = FAULTS[name]
    broken = inject(fault, healthy, tmp_path / "broken")
    model = load_model(broken)
    images = sized(fault, photographs)
    expected = TorchRunner(model).run(images)["logits"]
    limit = 1e-4 if fault.file == "model" else 0.35

    def passes(found: list[Outputs]) -> bool:
        return bool(np.abs(found[0]["logits"] - expected).max() <= limit)

    found = bisect(GraphParts(broken.file(f"onnx/{fault.file}.onnx"), threads=1), model, [images], passes)
    assert found.culprit in fault.units, found.reason
    assert found.site == "" or found.site.startswith(found.culprit)
    assert len(found.layers) == 1 + 8 + 6 * 6 + 2 * 2


def test_a_healthy_file_has_no_culprit(healthy: ModelArtifact, photographs: Array) -> None:
    model = load_model(healthy)
    for name in ("model", "model_int8"):
        with pytest.raises(UnsupportedModelError, match="within tolerance on these images; there is nothing to find"):
            bisect(GraphParts(healthy.file(f"onnx/{name}.onnx"), threads=1), model, [photographs], lambda _: True)


def test_parts_alone_are_as_good_as_their_rounding(healthy: ModelArtifact, photographs: Array) -> None:
    """In float everything is equal up to rounding; in INT8 only what multiplies integers makes noise, and none of it much."""
    model = load_model(healthy)
    for name, floor in (("model", 100.0), ("model_int8", 25.0)):
        rows = layer_drift(GraphParts(healthy.file(f"onnx/{name}.onnx"), threads=1), model, [photographs])
        sites = {row.name: row.alone_db for row in rows if row.kind == "site"}
        assert min(value for value in sites.values() if value is not None) > floor
        assert min(value for part, value in sites.items() if "norm" in part and value is not None) > 100
        for row in rows:
            assert row.carried_db is not None
            assert row.alone_db is not None
            assert row.alone_db >= row.carried_db - 3  # what came before can only add


def test_replacing_a_value_with_itself_changes_nothing(healthy: ModelArtifact, photographs: Array) -> None:
    parts = GraphParts(healthy.file("onnx/model_int8.onnx"), threads=1)
    unit = parts.units[4]
    whole = parts.run(photographs, [unit.before])
    again = parts.run(photographs, given={unit.before: whole[unit.before]})
    np.testing.assert_allclose(again["logits"], whole["logits"], atol=1e-5)


@pytest.mark.parametrize("name", ["INT8: scale of one site over 8", "labels swapped in the artifact", "untrained weights"])
def test_a_fault_does_not_pass(name: str, healthy: ModelArtifact, tmp_path: Path) -> None:
    found = examine(FAULTS[name], healthy, tmp_path / "broken", limit=16)
    assert found.ended in ("gate", "refused"), found.said
    assert found.right is not False


def test_without_a_fault_it_passes(healthy: ModelArtifact) -> None:
    report = verify(healthy, spec_for(16))
    assert report.passed, report.failures
    for candidate in report.candidates:
        assert bool(candidate.layers) == (candidate.takes == "pixel_values")
