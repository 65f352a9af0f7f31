"""Static graphs beside the one for every size: each right at its size, seen by quantize and verify, and small together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.dataset import ImageFolder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, RunnerError, SpecError, ToleranceExceeded
from swinv2_deploy.export import ExportSpec, export, to_onnx
from swinv2_deploy.export.check import prove_artifact
from swinv2_deploy.export.spec import parse_sizes
from swinv2_deploy.modeling.source import source_from_artifact
from swinv2_deploy.quantize import QuantizeSpec, quantize
from swinv2_deploy.runtime import OnnxRunner, load_runner
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.verify import VerifySpec, verify

SPEC = ExportSpec(smallest=(16, 16), largest=(64, 96), sizes=((24, 24), (40, 56)))
NAMES = ["model", "model_24x24", "model_40x56"]


@pytest.fixture(scope="module")
def buckets(tiny_artifact: ModelArtifact, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    return export(source_from_artifact(tiny_artifact), SPEC, tmp_path_factory.mktemp("buckets") / "tiny")


def images_of(size: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(size).standard_normal((3, 3, *size)).astype(np.float32)


def test_every_size_has_a_static_graph_that_agrees_with_the_dynamic_one(buckets: ModelArtifact) -> None:
    assert list(buckets.onnx_files) == NAMES
    dynamic = load_runner(buckets, "model")
    for name, size in zip(NAMES[1:], SPEC.sizes, strict=True):
        runner = load_runner(buckets, name)
        found, expected = (made.run(images_of(size))["logits"] for made in (runner, dynamic))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert runner.resolutions.static
        assert tuple(runner.facts.values["preprocessing"]["size"]) == size
        with pytest.raises(RunnerError, match=r"outside what this file was exported for: exactly"):
            runner.run(images_of((32, 32)))


def test_a_static_graph_computes_no_sizes(buckets: ModelArtifact) -> None:
    kinds = [{node.op_type for node in onnx.load(file).graph.node} for file in buckets.onnx_files.values()]
    assert {"Range", "Where"} <= kinds[0]
    assert not any({"Range", "ReduceProd"} & others for others in kinds[1:])


def test_graphs_that_are_large_together_share_their_weights(
    tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file beside them, hashed and checked with each; loaded from there, every graph is right."""
    weights = sum(value.numel() * 4 for value in source_from_artifact(tiny_artifact).model.state_dict().values())
    monkeypatch.setattr(to_onnx, "LARGEST_INLINE", 2 * weights)
    made = export(source_from_artifact(tiny_artifact), SPEC, tmp_path / "tiny")
    onnx_files = sorted(name for name in made.lineage.files if name.startswith("onnx/"))

    assert onnx_files == ["onnx/model.onnx", "onnx/model.onnx.data", "onnx/model_24x24.onnx", "onnx/model_40x56.onnx"]
    for name in NAMES:
        assert read_facts(made.onnx_files[name]).external == ("model.onnx.data",)
    # More than one graph's weights, for indices differ; far less than three times them.
    assert (made.path / "onnx/model.onnx.data").stat().st_size < 2 * weights
    assert all(not proof.failures for proof in prove_artifact(made).values())
    with (made.path / "onnx/model.onnx.data").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data was changed"):
        load_runner(made, "model_24x24")


def test_quantize_and_verify_see_every_graph(buckets: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """Each at its own size, against the reference at that size; speed is told against the dynamic graph there."""
    spec = QuantizeSpec(calibrator="max", unsigned="never", images=7)
    made = quantize(buckets, spec, ImageFolder.open(photos), tmp_path / "q").artifact
    assert sorted(made.onnx_files) == sorted([*NAMES, *(f"{name}_int8" for name in NAMES)])
    report = verify(
        made,
        VerifySpec(data=photos, latency_seconds=0.1, batch_sizes=(1, 2), exclude_overlap=True),
    )
    found = {candidate.name: candidate for candidate in report.candidates}

    assert set(found) == set(made.onnx_files)
    assert all(found[name].passed for name in NAMES)
    assert {drift.size for drift in found["model_24x24_int8"].sweep} == {(24, 24)}
    assert {latency.batch for latency in found["model_40x56"].latencies} == {1, 8}
    assert any("model_24x24" in notice and "compared at 24x24 px" in notice for notice in report.notices)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (replace(SPEC, sizes=((8, 24),)), "8x24 px is outside what this file was exported for: 16x16 to 64x96 px"),
        (replace(SPEC, sizes=((97, 24),)), "widen --min-res and --max-res"),
    ],
)
def test_sizes_outside_the_range_are_refused(
    spec: ExportSpec, words: str, tiny_artifact: ModelArtifact, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=words):
        export(source_from_artifact(tiny_artifact), spec, tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_static_and_sizes_contradict_each_other() -> None:
    with pytest.raises(SpecError, match="leave out --static"):
        ExportSpec(static=True, sizes=((32, 32),))
    with pytest.raises(SpecError, match="no grid 'huge'"):
        ExportSpec(grid="huge")  # type: ignore[arg-type]  # what is being tested


def test_sizes_are_read_in_order_and_once() -> None:
    assert parse_sizes("256, 384x512,256x256") == ((256, 256), (384, 512))
    with pytest.raises(SpecError, match="not a size"):
        parse_sizes("256,")


# --- proofs of files that are there ------------------------------------------------------------------------------------


def test_a_proof_can_be_run_again(buckets: ModelArtifact) -> None:
    """On the grid the file states, or another; a static graph at its one size."""
    stated = {name: read_facts(path).values["proof"] for name, path in buckets.onnx_files.items()}
    seen: list[str] = []
    again = prove_artifact(buckets, progress=lambda name, row: seen.append(name))
    full = prove_artifact(buckets, "full")

    assert json.loads(json.dumps({name: proof.to_dict() for name, proof in again.items()})) == stated
    assert seen == [name for name in NAMES for _ in stated[name]["grid"]]
    assert [row.size for row in full["model_24x24"].rows] == [(24, 24)]
    assert len(full["model"].rows) > 3


def test_a_file_that_states_no_grid_is_told_apart(
    tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], edit_metadata: Callable[..., object]
) -> None:
    for value in (None, {"grid": [{"size": [512, 512], "errors": {"1": 0}}]}):
        other = changed(tiny_artifact, {"model": edit_metadata("proof", value)}, name=f"other{value is None}")
        with pytest.raises(ArtifactError, match="--grid quick or --grid full"):
            prove_artifact(other)
        assert prove_artifact(other, "quick")["model"].failures == ()


def test_a_wrong_graph_on_the_full_grid_exceeds_the_tolerance(
    tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exit code of that, and nothing written."""

    class Wrong(OnnxRunner):
        def run(self, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> dict[str, object]:
            outputs = super().run(images)
            if images.shape[2:] == (64, 64):
                outputs["logits"] = outputs["logits"] + np.float32(0.01)
            return outputs

    monkeypatch.setattr("swinv2_deploy.export.check.OnnxRunner", Wrong)
    source = source_from_artifact(tiny_artifact)
    with pytest.raises(ToleranceExceeded, match=r"differs by 1\.00e-02 at 64x64 px"):
        export(source, replace(SPEC, sizes=(), grid="full"), tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []
    assert export(source, replace(SPEC, sizes=()), tmp_path / "tiny").onnx_files


def test_giving_working_memory_back_changes_no_output(buckets: ModelArtifact) -> None:
    """So a proof speaks for the sessions that users open."""
    path, images = buckets.onnx_files["model"], images_of((32, 32))
    np.testing.assert_array_equal(*(OnnxRunner(path, frugal=frugal).run(images)["logits"] for frugal in (False, True)))
