"""Files for one batch and size: the same numbers as the files they are made from, in either runtime, and nothing else is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from typer.testing import CliRunner, Result

from calibration.dataset import ImageFolder
from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.cli.app import app
from swinv2_deploy.errors import ArtifactError, ExportError, RunnerError, SpecError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.export import pin as pin_module
from swinv2_deploy.export.pin import pin_files
from swinv2_deploy.modeling.source import source_from_artifact
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner, OpenVinoRunner, masks_for
from swinv2_deploy.runtime.onnx_file import append_metadata, read_facts

SIZE = (2, 45, 30)


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["pin", *map(str, arguments)])


@pytest.fixture(scope="module")
def quantized(tiny_artifact: ModelArtifact, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    spec = QuantizeSpec(calibrator="max", unsigned="always")
    return quantize(tiny_artifact, spec, ImageFolder.open(photos), tmp_path_factory.mktemp("pin") / "tiny-int8").artifact


def test_every_file_is_pinned_into_the_artifact(quantized: ModelArtifact) -> None:
    """They give what the free files give in ONNX Runtime, know every shape, and the artifact is none the less whole."""
    found = pin_files(quantized, SIZE)

    folder = quantized.path / "pinned/2x45x30"
    assert [row.path for row in found] == [folder / f"{name}.onnx" for name in ("model", "model_int8", "model_uint8")]
    images = noise(2, 3, 45, 30)
    for row in found:
        expected = OnnxRunner(quantized.onnx_files[row.name], threads=1).run(images)["logits"]
        np.testing.assert_allclose(OnnxRunner(row.path, threads=1).run(images)["logits"], expected, atol=1e-6)
        graph = onnx.load(row.path).graph
        shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)]
        assert shapes == [[2, 3, 45, 30], [2, 7]]
        assert row.nodes == (len(ir.load(quantized.onnx_files[row.name]).graph), len(graph.node))
        assert row.nodes[1] < 0.6 * row.nodes[0]
    report = json.loads((folder / "pinned.json").read_text())
    assert (report["parent"]["lineage_sha256"], report["batch"], report["size"]) == (quantized.sha256, 2, [45, 30])
    assert read_artifact(quantized.path).sha256 == quantized.sha256
    with pytest.raises(ArtifactError, match="exists already; use --force"):
        pin_files(quantized, SIZE)
    pin_files(quantized, SIZE, name="model_int8.onnx", force=True)
    assert sorted(path.name for path in folder.iterdir()) == ["model_int8.onnx", "pinned.json"]


def test_a_plain_session_of_either_runtime_runs_it(tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    """As a user of another language has it: no option, no word of this project."""
    import openvino

    [row] = pin_files(tiny_artifact, SIZE, out=tmp_path / "out")
    images = noise(2, 3, 45, 30)
    expected = OnnxRunner(tiny_artifact.onnx_files["model"], threads=1).run(images)["logits"]
    session = onnxruntime.InferenceSession(str(row.path), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"pixel_values": images})[0], expected, atol=1e-5)
    model = openvino.Core().compile_model(str(row.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert not any(port.partial_shape.is_dynamic for port in (*model.inputs, *model.outputs))
    np.testing.assert_allclose(model(images)[0], expected, atol=1e-4)


@pytest.mark.parametrize("kind", [OnnxRunner, OpenVinoRunner])
def test_a_runner_of_it_takes_its_size_alone(kind: Any, tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    [row] = pin_files(tiny_artifact, (1, 32, 32), out=tmp_path / "out")
    runner = kind(row.path, threads=1)

    assert runner.facts.pinned == (1, 32, 32)
    assert runner.run(noise(1, 3, 32, 32))["logits"].shape == (1, 7)
    with pytest.raises(RunnerError, match=r"pinned to \(1, 3, 32, 32\)"):
        runner.run(noise(2, 3, 32, 32))
    with pytest.raises(RunnerError, match="32x32"):
        runner.run(noise(1, 3, 32, 36))
    assert kind(row.path, threads=1, pinned=(1, 32, 32)).run(noise(1, 3, 32, 32))
    with pytest.raises(RunnerError, match="wrote the file for"):
        kind(row.path, threads=1, pinned=(2, 32, 32))


def test_a_masked_image_model_and_photographs(
    masked_artifact: ModelArtifact, tiny_artifact: ModelArtifact, tmp_path: Path
) -> None:
    [row] = pin_files(masked_artifact, (2, 30, 44), out=tmp_path / "masked")
    images, masks = noise(2, 3, 30, 44), masks_for(masked_artifact.config)
    free, fixed = (OnnxRunner(path, threads=1, masks=masks) for path in (masked_artifact.onnx_files["model"], row.path))
    np.testing.assert_allclose(fixed.run(images)["reconstruction"], free.run(images)["reconstruction"], atol=1e-6)

    baked = export(
        source_from_artifact(tiny_artifact),
        ExportSpec(smallest=(16, 16), largest=(64, 96), bake_preprocessing=True, sizes=((48, 48),)),
        tmp_path / "baked",
    )
    [row] = pin_files(baked, (1, 70, 51), name="model_from_images", out=tmp_path / "photographs")
    photograph = np.random.default_rng(0).integers(0, 256, (1, 70, 51, 3), np.uint8)
    free, fixed = (OnnxRunner(path, threads=1) for path in (baked.onnx_files["model_from_images"], row.path))
    np.testing.assert_allclose(fixed.run(photograph)["logits"], free.run(photograph)["logits"], atol=1e-6)

    result = run("--model", baked.path, "--res", "40x32", "--json")
    content = json.loads(result.stdout)
    assert [row["name"] for row in content["files"]] == ["model"]
    assert content["left_out"].keys() == {"model_48x48", "model_from_images"}
    assert "left out model_48x48.onnx: " in result.stderr


def test_large_weights_go_beside_the_file(
    tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swinv2_deploy.export.write.LARGEST_INLINE", 1000)
    [row] = pin_files(tiny_artifact, SIZE, out=tmp_path / "out")

    assert read_facts(row.path).external == ("model.onnx.data",)
    images = noise(2, 3, 45, 30)
    expected = OnnxRunner(tiny_artifact.onnx_files["model"], threads=1).run(images)["logits"]
    for kind in (OnnxRunner, OpenVinoRunner):
        np.testing.assert_allclose(kind(row.path, threads=1).run(images)["logits"], expected, atol=1e-4)


def test_a_file_that_computes_something_else_is_not_written(
    tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = pin_module.fit

    def wrong(model: ir.Model, *arguments: Any) -> None:
        fit(model, *arguments)
        value = model.graph.initializers["head.bias"]
        value.const_value = ir.Tensor(value.const_value.numpy() + 0.01, name=value.name)  # type: ignore[union-attr]

    monkeypatch.setattr(pin_module, "fit", wrong)
    with pytest.raises(ExportError, match="computes something else: its outputs move by"):
        pin_files(tiny_artifact, SIZE, out=tmp_path / "out/pinned")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--res", "8x4000"), 1, "outside what this file was exported for"),
        (("--res", "large"), 2, "'large' is not a size"),
        (("--batch", "0"), 2, "Invalid value for '--batch'"),
        (("--onnx", "model_fp16"), 2, "has no file 'model_fp16'; expected one of model"),
    ],
)
def test_what_cannot_be_pinned_is_refused(
    arguments: tuple[str, ...], code: int, message: str, tiny_artifact: ModelArtifact, tmp_path: Path
) -> None:
    result = run("--model", tiny_artifact.path, "--out", tmp_path / "out", *arguments)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert not list(tmp_path.iterdir())


def test_a_changed_file_and_a_taken_folder_are_refused(
    tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], tmp_path: Path
) -> None:
    """A folder that something else made is not replaced, not even by force."""
    artifact = changed(tiny_artifact)
    with artifact.onnx_files["model"].open("ab") as file:
        append = file.tell()
    append_metadata(artifact.onnx_files["model"], {"more": 1})
    assert artifact.onnx_files["model"].stat().st_size > append
    with pytest.raises(ArtifactError, match="changed"):
        pin_files(artifact, SIZE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="was not written by"):
        pin_files(tiny_artifact, SIZE, out=tmp_path / "mine", force=True)
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]


@pytest.mark.parametrize("stated", [[1, 2], [0, 32, 32], "here", [True, 32, 32]])
def test_a_file_that_states_nonsense_is_refused(stated: Any, tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(tiny_artifact.onnx_files["model"].read_bytes())
    append_metadata(file, {"pinned": json.dumps(stated)})
    with pytest.raises(RunnerError, match="expected a batch, a height and a width"):
        read_facts(file)


def test_the_command_says_what_it_did(tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    dry = run("--model", tiny_artifact.path, "--out", tmp_path / "out", "--dry-run")
    assert (dry.exit_code, list(tmp_path.iterdir())) == (0, [])
    assert "to 1 image of 32x32 px" in dry.stdout
    result = run("--model", tiny_artifact.path, "--out", tmp_path / "out", "--batch", 3)
    assert "model.onnx: " in result.stdout
    assert "the same outputs" in result.stdout or "outputs moved by" in result.stdout
    assert str(tmp_path / "out") in result.stdout
    content = json.loads(run("--model", tiny_artifact.path, "--out", tmp_path / "out", "--force", "--json").stdout)
    assert content["files"][0]["path"] == str(tmp_path / "out/model.onnx")
    assert run("--model", tiny_artifact.path, "--out", tmp_path / "out", "--force", "--quiet").stdout == f"{tmp_path / 'out'}\n"
    with pytest.raises(SpecError):
        pin_files(tiny_artifact, (0, 32, 32))
