"""Quantization stores the numbers it says, in INT8, from images that could be read, and computes what a fake quantizer computes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from calibration.dataset import ImageFolder
from calibration.errors import CalibrationError
from calibration.table import CalibrationTable
from reference_model.preprocessing import Preprocessing, read_image
from reference_model.variants import VARIANTS
from swinv2_deploy.artifacts import ModelArtifact, WeightsOrigin, file_sha256
from swinv2_deploy.errors import ArtifactError, QuantizeError, SpecError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling import load_model, quantization_sites
from swinv2_deploy.modeling.source import Source, untrained_model
from swinv2_deploy.quantize import ptq
from swinv2_deploy.quantize.ptq import QuantizeResult, quantize
from swinv2_deploy.quantize.qdq import insert_qdq, quantize_weight
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.quantize.timing import speedup
from swinv2_deploy.runtime import OnnxRunner, masks_for
from swinv2_deploy.runtime.onnx_runner import EXACT_PRODUCTS, saturates

SPEC = QuantizeSpec(calibrator="max", unsigned="always")


@pytest.fixture(scope="module")
def result(tiny_artifact: ModelArtifact, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    """The tiny artifact, quantized in both forms."""
    return quantize(tiny_artifact, SPEC, ImageFolder.open(photos), tmp_path_factory.mktemp("quantized") / "tiny-int8")


def arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}


def images_of(photos: Path, count: int = 4) -> np.ndarray[Any, Any]:
    recipe = Preprocessing(size=(32, 32), resize_shortest=36)
    return np.stack([recipe(read_image(path)) for path in ImageFolder.open(photos).paths[:count]])


# --- numbers -----------------------------------------------------------------------------------------------------------


def test_scales_are_the_largest_magnitude_over_127(result: QuantizeResult) -> None:
    """One for each activation, one for each output channel of a weight."""
    stored = arrays(result.artifact.onnx_files["model_int8"])
    state = load_model(result.artifact).state_dict()
    for site, amax in result.table.amax.items():
        assert stored[f"{site}.input.scale"] == np.float32(amax / 127)
        assert stored[f"{site}.input.zero_point"] == 0
        weight = state[f"{site}.weight"].numpy()
        assert np.array_equal(stored[f"{site}.weight.scale"], (np.abs(weight).max(axis=1) / 127).astype(np.float32))


def test_the_table_holds_the_ranges_of_what_enters_each_site(result: QuantizeResult, photos: Path) -> None:
    """With the max calibrator exactly the largest magnitude over all images."""
    model = load_model(result.artifact)
    largest: dict[str, float] = {}
    for site in result.table.sites:
        model.get_submodule(site).register_forward_pre_hook(
            lambda _, inputs, site=site: largest.__setitem__(site, float(inputs[0].abs().max()))
        )
    with torch.no_grad():
        model(torch.from_numpy(images_of(photos, 21)))
    assert result.table.amax == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("name", ["model_int8", "model_uint8"])
def test_weights_of_sites_are_int8_and_no_float_copy_stays(name: str, result: QuantizeResult) -> None:
    """No matrix of floats is left but the classifier."""
    graph = onnx.load(result.artifact.onnx_files[name]).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    config = result.artifact.config

    for site in quantization_sites(config):
        assert stored[f"{site}.weight.int8"].data_type == TensorProto.INT8
        assert f"{site}.weight" not in stored
    values = [np.abs(numpy_helper.to_array(stored[f"{site}.weight.int8"]).astype(int)) for site in quantization_sites(config)]
    assert max(value.max() for value in values) == 127
    assert min(value.min() for value in values) == 0
    matrices = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and min(tensor.dims) >= config.embed_dim
        and tensor.name != "head.weight"
    }
    assert matrices == set()


def test_the_signed_form_is_standard_onnx(result: QuantizeResult) -> None:
    """What TensorRT parses: no operator of one runtime, zero points of zero."""
    model = onnx.load(result.artifact.onnx_files["model_int8"])
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]
    zero_points = [array for name, array in arrays(result.artifact.onnx_files["model_int8"]).items() if "zero_point" in name]
    assert all(not array.any() for array in zero_points)


def test_a_policy_leaves_the_other_layers_in_float(tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """mlp: attention and patch merging stay as they were."""
    spec = replace(SPEC, policy="mlp", unsigned="never")
    made = quantize(tiny_artifact, spec, ImageFolder.open(photos), tmp_path / "q").artifact
    types = {tensor.name: tensor.data_type for tensor in onnx.load(made.onnx_files["model_int8"]).graph.initializer}

    quantized = {name.removesuffix(".weight.int8") for name in types if name.endswith(".weight.int8")}
    assert quantized == set(quantization_sites(made.config, "mlp"))
    assert types["layers.0.downsample.reduction.weight"] == TensorProto.FLOAT


def emulated(
    x: np.ndarray[Any, Any], amax: float, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Output of a linear layer with fake-quantized input and weight in float64, and what one step of one input is worth."""
    step = amax / 127
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    rounded = (weight / scale).round().clamp(-127, 127) * scale
    inputs = (torch.from_numpy(x).double() / step).round().clamp(-128, 127) * step
    out = torch.nn.functional.linear(inputs, rounded, bias)
    return out.numpy(), (step * rounded.abs().amax(dim=1)).numpy()


def session_of(file: Path) -> ort.InferenceSession:
    """A session that multiplies integers exactly on every CPU."""
    options = ort.SessionOptions()
    if saturates():
        options.add_session_config_entry(*EXACT_PRODUCTS)
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["model_int8", "model_uint8"])
def test_every_layer_computes_what_a_fake_quantizer_does(
    name: str, result: QuantizeResult, photos: Path, tmp_path: Path
) -> None:
    """On the very input that reached the layer, within one quantization step of one input value.

    The unsigned form quantizes before it moves values to where the layer reads them, so there the input is read back from bytes.
    """
    proto = onnx.load(result.artifact.onnx_files[name])
    plain = onnx.load(result.artifact.onnx_files["model"])
    stored = {
        key: torch.from_numpy(array.copy()).double()
        for key, array in arrays(result.artifact.onnx_files["model"]).items()
        if array.dtype == np.float32
    }
    layers = {
        node.name: [stored[key] for key in node.input[1:]]
        for node in plain.graph.node
        if node.op_type == "Gemm" and node.name in result.table.sites
    }
    sites = tuple(result.table.sites)
    nodes = {node.name: node for node in proto.graph.node}
    watched = []
    for site in sites:
        last = nodes.get(f"{site}.add_bias", nodes[site])
        given = nodes[f"{site}.input.quantize"] if name == "model_int8" else nodes[site]
        watched += [given.input[0], last.output[0]]
    for index, value in enumerate(watched):
        kind = TensorProto.UINT8 if name == "model_uint8" and index % 2 == 0 else TensorProto.FLOAT
        if value not in watched[:index]:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(value, kind, None))
    onnx.save(proto, tmp_path / "watched.onnx")
    session = session_of(tmp_path / "watched.onnx")
    found = dict(zip(watched, session.run(watched, {"pixel_values": images_of(photos)}), strict=True))

    for index, site in enumerate(sites):
        amax, given = result.table.amax[site], found[watched[2 * index]]
        values = given if given.dtype == np.float32 else (given.astype(np.float64) - 128) * (amax / 127)
        expected, step = emulated(values, amax, *[*layers[site], None][:2])
        assert (np.abs(found[watched[2 * index + 1]] - expected) <= step + 1e-4).all(), site


def test_both_forms_and_the_float_model_agree(result: QuantizeResult, photos: Path) -> None:
    """The signed and unsigned graphs hold the same numbers; both are near the float one, and neither is it."""
    logits = {
        name: session_of(file).run(None, {"pixel_values": images_of(photos)})[0]
        for name, file in result.artifact.onnx_files.items()
    }
    spread = np.abs(logits["model"]).max()
    drift = np.abs(logits["model_int8"] - logits["model"]).max() / spread

    assert 1e-5 < drift < 0.1
    assert np.abs(logits["model_uint8"] - logits["model_int8"]).max() / spread < 0.02


def test_the_int8_file_is_under_a_third_of_the_float_one(photos: Path, tmp_path: Path) -> None:
    """Measured on the architecture of the bundled model."""
    source = Source(
        model=untrained_model(VARIANTS["nano"].config, 0),
        preprocessing=Preprocessing.published(128),
        origin=WeightsOrigin(kind="untrained", source="seed 0"),
        name="nano",
    )
    artifact = export(source, ExportSpec(), tmp_path / "nano")
    files = quantize(artifact, replace(SPEC, images=4), ImageFolder.open(photos), tmp_path / "q").artifact.onnx_files
    sizes = {name: file.stat().st_size for name, file in files.items()}

    assert sizes["model_int8"] / sizes["model"] <= 0.30
    assert sizes["model_uint8"] / sizes["model"] <= 0.30


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
    tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amax", [0.0, -1.0, float("nan"), float("inf")])
def test_a_range_that_gives_no_scale_is_refused(amax: float, tiny_artifact: ModelArtifact) -> None:
    """With the site and the value."""
    graph = ir.load(tiny_artifact.onnx_files["model"])
    with pytest.raises(QuantizeError, match=rf"The range of layers\.0\.blocks\.0\.mlp\.fc1 is {amax}"):
        insert_qdq(graph, {"layers.0.blocks.0.mlp.fc1": amax})


def test_a_table_of_another_model_is_refused(tiny_artifact: ModelArtifact) -> None:
    """Its sites are not in the graph."""
    graph = ir.load(tiny_artifact.onnx_files["model"])
    with pytest.raises(QuantizeError, match=r"no Gemm named \['layers\.7.*belongs to another model"):
        insert_qdq(graph, {"layers.7.blocks.0.mlp.fc1": 1.0})


def test_weights_that_are_no_numbers_are_refused() -> None:
    """A row of zeros is fine: it stays zero."""
    weight = np.array([[1.0, -2.0], [0.0, 0.0]], np.float32)
    values, scale = quantize_weight(weight, "a")

    assert values.tolist() == [[64, -127], [0, 0]]
    assert scale.tolist() == [np.float32(2 / 127), 1.0]
    with pytest.raises(QuantizeError, match="The weight of a holds NaN"):
        quantize_weight(np.array([[np.nan]], np.float32), "a")


@pytest.mark.parametrize("link", [False, True])
def test_an_artifact_is_not_replaced_by_itself(link: bool, tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """Not even by another name of the same folder, and not with --force."""
    path = tiny_artifact.path
    if link:
        path = tmp_path / "link"
        path.symlink_to(tiny_artifact.path)
    with pytest.raises(ArtifactError, match="is the artifact that is being quantized"):
        quantize(tiny_artifact, SPEC, ImageFolder.open(photos), path, force=True)
    assert tiny_artifact.file("onnx/model.onnx").is_file()


def test_an_artifact_without_a_graph_says_to_export_first(
    tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], photos: Path, tmp_path: Path
) -> None:
    """What 'train' makes has none."""
    bare = changed(tiny_artifact)
    shutil.rmtree(bare.path / "onnx")
    with pytest.raises(ArtifactError, match="export it first"):
        quantize(bare, SPEC, ImageFolder.open(photos), tmp_path / "q")


def test_a_changed_graph_is_refused(
    tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], photos: Path, tmp_path: Path
) -> None:
    """One byte, found before any work."""
    copy = changed(tiny_artifact)
    file = copy.onnx_files["model"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed or damaged"):
        quantize(copy, SPEC, ImageFolder.open(photos), tmp_path / "q")


def test_a_place_that_is_taken_is_known_before_the_images_are_worked_through(
    tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    """Calibrating can take minutes."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        quantize(
            tiny_artifact, SPEC, ImageFolder.open(photos), tmp_path / "taken", progress=lambda *_: pytest.fail("calibrated")
        )


def test_a_full_disk_while_the_table_is_written_is_reported_as_one(
    tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's own error names a file that no longer exists."""
    replace_file = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "calibration_table.json":
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        quantize(tiny_artifact, SPEC, ImageFolder.open(photos), tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"calibrator": "guess"}, "expected one of max, percentile, entropy, mse"),
        ({"policy": "all"}, "expected one of mlp, linear"),
        ({"unsigned": "maybe"}, "expected auto, always or never"),
        ({"images": 0}, "images is 0"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_specs_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    """With the choices."""
    with pytest.raises(SpecError, match=words):
        QuantizeSpec(**values)


@pytest.mark.parametrize("calibrator", ["max", "percentile", "entropy", "mse"])
def test_every_calibrator_gives_ranges_up_to_the_largest_value(
    calibrator: str, tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path, result: QuantizeResult
) -> None:
    """And only max takes the largest everywhere."""
    spec = QuantizeSpec(calibrator=calibrator, unsigned="never", images=14)
    table = quantize(tiny_artifact, spec, ImageFolder.open(photos), tmp_path / "q").table
    shares = [table.amax[site] / max(abs(entry.low), abs(entry.high)) for site, entry in table.sites.items()]

    assert all(0 < share <= 1 for share in shares)
    assert (min(shares) == 1) == (calibrator == "max")


# --- masked image models -----------------------------------------------------------------------------------------------


def test_a_masked_image_model_is_calibrated_with_hidden_patches(
    masked_artifact: ModelArtifact, photos: Path, tmp_path: Path
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
