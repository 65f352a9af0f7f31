"""A quantized artifact holds what it should, and its ranges come from images that could be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from calibration.dataset import ImageFolder
from calibration.errors import CalibrationError
from calibration.table import CalibrationTable
from swinv2_deploy.artifacts import ModelArtifact, file_sha256
from swinv2_deploy.errors import QuantizeError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling import load_model, quantization_sites
from swinv2_deploy.quantize import ptq
from swinv2_deploy.quantize.ptq import QuantizeResult, quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.quantize.timing import speedup
from swinv2_deploy.runtime import OnnxRunner, masks_for

SPEC = QuantizeSpec(calibrator="max", unsigned="always")
ImagesOf = Callable[..., np.ndarray[Any, Any]]


# --- the artifact ------------------------------------------------------------------------------------------------------


def test_a_quantized_artifact_holds_the_float_model_too(result: QuantizeResult, tiny_artifact: ModelArtifact) -> None:
    """Every file of its parent, unchanged, so that verify has its judge beside the candidate."""
    made = result.artifact
    same = {name: digest for name, digest in made.lineage.files.items() if name in tiny_artifact.lineage.files}

    assert same == tiny_artifact.lineage.files
    assert set(made.lineage.files) - set(same) == {
        "calibration.svg",
        "calibration_histograms.json",
        "calibration_table.json",
        "onnx/model_int8.onnx",
        "onnx/model_uint8.onnx",
    }
    assert made.lineage.stage == "quantize"
    assert made.lineage.parent == {"name": "tiny", "sha256": tiny_artifact.sha256}
    assert made.lineage.weights == tiny_artifact.lineage.weights
    assert made.lineage.spec["sites"] == list(quantization_sites(made.config))
    assert list(made.onnx_files) == ["model", "model_int8", "model_uint8"]


def test_the_calibration_table_pins_images_and_weights(result: QuantizeResult, photos: Path) -> None:
    """What verify needs to refuse images that the ranges were fitted on."""
    table = CalibrationTable.load(result.artifact.file("calibration_table.json"))

    assert table == result.table
    assert table.images == 21
    assert table.manifest == ImageFolder.open(photos).manifest()
    assert table.model_sha256 == file_sha256(result.artifact.file("model.safetensors"))
    assert tuple(table.sites) == quantization_sites(result.artifact.config)


def test_metadata_says_how_the_file_was_quantized(result: QuantizeResult) -> None:
    """Beside everything the float file says; its errors are its own, and stated without a limit."""
    found = {
        name: {entry.key.removeprefix("swinv2_deploy."): entry.value for entry in onnx.load(file).metadata_props}
        for name, file in result.artifact.onnx_files.items()
    }
    for flavor in ("int8", "uint8"):
        values = found[f"model_{flavor}"]
        assert values["precision"] == flavor
        facts = json.loads(values["quantization"])
        assert (facts["calibrator"], facts["images"], len(facts["sites"])) == ("max", 21, len(result.table.sites))
        proof, of_float = (json.loads(entries["proof"]) for entries in (values, found["model"]))
        assert proof["max_abs"] > 100 * of_float["max_abs"]
        assert {row["limit"] for row in proof["grid"]} == {None}
        assert all(values[key] == found["model"][key] for key in ("config", "resolutions", "preprocessing", "model_sha256"))


def test_quantizing_twice_gives_the_same_bytes(
    result: QuantizeResult, tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    """Same images, same seed."""
    again = quantize(tiny_artifact, SPEC, ImageFolder.open(photos), tmp_path / "again").artifact
    assert again.lineage.files == result.artifact.lineage.files


def test_a_quantized_artifact_can_be_quantized_anew(result: QuantizeResult, photos: Path, tmp_path: Path) -> None:
    """From its float graph; what the first run made is replaced, never quantized twice."""
    spec = QuantizeSpec(calibrator="percentile", unsigned="never", images=7)
    again = quantize(result.artifact, spec, ImageFolder.open(photos), tmp_path / "again")
    assert list(again.artifact.onnx_files) == ["model", "model_int8"]
    assert again.table.images == 7


def test_reports_and_engines_are_not_copied(
    changed: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    """They judge the parent, not the child."""
    parent = changed(tiny_artifact)
    (parent.path / "reports").mkdir()
    (parent.path / "reports" / "report.json").touch()
    made = quantize(parent, replace(SPEC, unsigned="never"), ImageFolder.open(photos), tmp_path / "q").artifact
    assert not (made.path / "reports").exists()


def test_weights_beside_the_graph_stay_beside_it(
    images_of: ImagesOf, tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models above 2 GiB."""
    from swinv2_deploy.export import to_onnx
    from swinv2_deploy.modeling.source import source_from_artifact

    for module in (to_onnx, ptq):
        monkeypatch.setattr(module, "LARGEST_INLINE", 1000)
    large = export(source_from_artifact(tiny_artifact), ExportSpec(), tmp_path / "large")
    made = quantize(large, replace(SPEC, unsigned="never"), ImageFolder.open(photos), tmp_path / "q").artifact

    assert {"onnx/model.onnx.data", "onnx/model_int8.onnx.data"} <= set(made.lineage.files)
    session = ort.InferenceSession(str(made.onnx_files["model_int8"]), providers=["CPUExecutionProvider"])
    assert session.run(None, {"pixel_values": images_of(photos)})[0].shape == (4, 7)


@pytest.mark.parametrize(
    ("unsigned", "ratio", "kept"), [("auto", 1.5, True), ("auto", 1.0, False), ("always", None, True), ("never", None, False)]
)
def test_the_unsigned_form_is_kept_where_it_is_worth_it(
    unsigned: Any,
    ratio: float | None,
    kept: bool,
    tiny_artifact: ModelArtifact,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only auto measures."""
    monkeypatch.setattr(ptq, "speedup", lambda *_: ratio if ratio else pytest.fail("measured"))
    spec = QuantizeSpec(calibrator="max", unsigned=unsigned, images=7)
    made = quantize(tiny_artifact, spec, ImageFolder.open(photos), tmp_path / "q")

    assert ("model_uint8" in made.artifact.onnx_files) == kept
    assert ("onnx/model_uint8.onnx" in made.artifact.lineage.files) == kept
    assert made.unsigned_speedup == ratio


def test_speed_is_measured_as_a_ratio(result: QuantizeResult) -> None:
    """A file against itself is about as fast as itself."""
    file = result.artifact.onnx_files["model"]
    assert 0.5 < speedup(file, file, (32, 32)) < 2.0


def test_measuring_takes_a_size_that_a_static_graph_has(tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """An artifact exported for one size, another than its weights were trained for."""
    from swinv2_deploy.modeling.source import source_from_artifact

    static = export(source_from_artifact(tiny_artifact), ExportSpec(static=True, resolution=(40, 48)), tmp_path / "static")
    made = quantize(static, QuantizeSpec(calibrator="max", images=7), ImageFolder.open(photos), tmp_path / "q")
    assert made.unsigned_speedup is not None


# --- images ------------------------------------------------------------------------------------------------------------


def test_images_that_cannot_be_read_are_skipped_and_named(tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """The others count; the table lists only those that were seen."""
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    (folder / "cat/0.png").write_bytes((photos / "cat/0.png").read_bytes()[:200])
    (folder / "cow/1.png").write_text("not an image", "utf-8")
    (folder / "dog/2.png").write_bytes(b"")
    made = quantize(tiny_artifact, replace(SPEC, unsigned="never"), ImageFolder.open(folder), tmp_path / "q")

    assert [Path(reason.split()[0]).relative_to(folder).as_posix() for reason in made.skipped] == [
        "cat/0.png",
        "cow/1.png",
        "dog/2.png",
    ]
    assert made.table.images == 18
    assert not {"cat/0.png", "cow/1.png", "dog/2.png"} & set(made.table.manifest.files)


def test_a_folder_of_damaged_images_alone_is_refused(tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    """With the first reason, and nothing is written."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_text("no", "utf-8")
    with pytest.raises(QuantizeError, match=r"None of the 1 images in .* can be read. The first: .*a\.jpg"):
        quantize(tiny_artifact, SPEC, ImageFolder.open(tmp_path / "bad"), tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_images_are_chosen_evenly_over_the_classes(tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """As many as asked for, or as there are."""
    spec = replace(SPEC, images=7, unsigned="never")
    seven = quantize(tiny_artifact, spec, ImageFolder.open(photos), tmp_path / "seven").table
    more = quantize(tiny_artifact, replace(spec, images=1000), ImageFolder.open(photos), tmp_path / "more").table

    assert len({name.split("/")[0] for name in seven.manifest.files}) == 7
    assert (seven.images, more.images) == (7, 21)


def test_a_site_that_only_saw_zeros_is_refused(
    make_artifact: Callable[..., ModelArtifact], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no scale."""
    artifact = make_artifact()
    model = load_model(artifact)
    with torch.no_grad():
        for parameter in model.get_submodule("layers.1.blocks.1.mlp.fc1").parameters():
            parameter.zero_()
    monkeypatch.setattr(ptq, "load_model", lambda _: model)
    with pytest.raises(CalibrationError, match=r"layers\.1\.blocks\.1\.mlp\.fc2.* were zero in all 21 images"):
        quantize(artifact, SPEC, ImageFolder.open(photos), tmp_path / "q")
    assert not (tmp_path / "q").exists()


# --- masked image models -----------------------------------------------------------------------------------------------


def test_a_masked_image_model_is_calibrated_with_hidden_patches(
    images_of: ImagesOf, masked_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    """Ranges are those of images as it was trained on; with random weights INT8 moves every pixel, but not far."""
    result = quantize(masked_artifact, SPEC, ImageFolder.open(photos), tmp_path / "masked-int8")
    model, masks = load_model(masked_artifact), masks_for(masked_artifact.config)
    assert masks is not None
    images = images_of(photos, 21)
    site = "layers.0.blocks.0.attn.qkv"
    largest: list[float] = []
    model.get_submodule(site).register_forward_pre_hook(lambda _, inputs: largest.append(float(inputs[0].abs().max())))
    with torch.no_grad():
        model(torch.from_numpy(images), torch.from_numpy(masks(images)))
    runners = [OnnxRunner(file, threads=1, masks=masks) for file in result.artifact.onnx_files.values()]
    exact, *forms = (runner.run(images)["reconstruction"] for runner in runners)

    assert result.table.amax[site] == pytest.approx(largest[0], rel=1e-5)
    assert len(forms) == 2
    for image in forms:
        assert 0 < np.abs(image - exact).mean() < 0.25 * np.abs(exact).mean()
