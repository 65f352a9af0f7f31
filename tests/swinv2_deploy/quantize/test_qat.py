"""Quantization-aware training ends in an INT8 file of the trained weights, beside the FP32 model it is judged by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from calibration.dataset import ImageFolder
from reference_model.preprocessing import read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import QuantizeError, SpecError, TrainingError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.modeling.fake_quant import quantized_layers
from swinv2_deploy.modeling.trained import TRAINED_WEIGHTS, load_trained
from swinv2_deploy.pipeline import quantize_aware
from swinv2_deploy.quantize.ptq import QuantizeResult, quantize
from swinv2_deploy.quantize.qat import HISTORY
from swinv2_deploy.quantize.spec import QatSpec, QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.runtime.onnx_runner import EXACT_PRODUCTS
from swinv2_deploy.training.start import also_seen

pytest.importorskip("modelopt")

SPEC = QuantizeSpec(calibrator="max", unsigned="always")
QAT = QatSpec(epochs=2, learning_rate=1e-3, batch_size=7, ranges="learned")


@pytest.fixture(scope="module")
def trained(tiny_artifact: ModelArtifact, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    """The tiny artifact after two epochs with its rounding."""
    folder = tmp_path_factory.mktemp("qat")
    return quantize_aware(tiny_artifact, SPEC, QAT, ImageFolder.open(photos), folder / "tiny-qat", run=folder / "run")


def pixels(artifact: ModelArtifact, photos: Path, count: int = 5) -> np.ndarray[Any, Any]:
    return np.stack([artifact.preprocessing(read_image(path)) for path in ImageFolder.open(photos).paths[:count]])


def alone(proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A model of some nodes: the first one's input, and the outputs of the first and the last."""
    names = {name for node in nodes for name in node.input}
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, None)
        for name, kind in (
            (nodes[0].input[0], onnx.TensorProto.FLOAT),
            (nodes[0].output[0], onnx.TensorProto.INT8),
            (nodes[-1].output[0], onnx.TensorProto.FLOAT),
        )
    ]
    stored = [tensor for tensor in proto.graph.initializer if tensor.name in names]
    graph = onnx.helper.make_graph(nodes, "layer", ends[:1], ends[1:], stored)
    return onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)


def test_the_int8_file_holds_the_trained_weights_and_the_artifact_the_old_ones(
    trained: QuantizeResult, tiny_artifact: ModelArtifact, photos: Path
) -> None:
    form = load_trained(trained.artifact)
    before, after = load_model(tiny_artifact).state_dict(), load_model(trained.artifact).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = [name for name, value in form.model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(moved) > 0.8 * len(before)
    assert any(abs(form.ranges[site] / amax - 1) > 1e-3 for site, amax in trained.table.amax.items())

    images = pixels(tiny_artifact, photos)
    with torch.no_grad():
        expected = form.fake_quantized()(torch.from_numpy(images)).numpy()
        plain = form.model(torch.from_numpy(images)).numpy()
    found = OnnxRunner(trained.artifact.path / "onnx/model_int8.onnx").run(images)["logits"]
    unsigned = OnnxRunner(trained.artifact.path / "onnx/model_uint8.onnx").run(images)["logits"]
    spread = float(np.abs(plain).max())
    assert np.abs(found - expected).max() < 0.02 * spread
    assert np.abs(unsigned - found).max() < 1e-4 * spread
    fp32 = OnnxRunner(trained.artifact.path / "onnx/model.onnx").run(images)["logits"]
    assert np.abs(fp32 - load_model(tiny_artifact)(torch.from_numpy(images)).detach().numpy()).max() < 1e-4 * spread


def test_every_layer_of_the_file_computes_what_its_fake_quantizer_does(
    trained: QuantizeResult, tiny_artifact: ModelArtifact, photos: Path
) -> None:
    """Given the same input: at most one step apart where the input lies between two steps, and equal sums of the same steps."""
    form = load_trained(trained.artifact)
    model = form.fake_quantized()
    seen: dict[str, torch.Tensor] = {}
    for name, layer in quantized_layers(model).items():
        layer.register_forward_pre_hook(lambda _, arguments, name=name: seen.__setitem__(name, arguments[0].flatten(0, -2)))
    with torch.no_grad():
        model(torch.from_numpy(pixels(tiny_artifact, photos)))
    proto = onnx.load(trained.artifact.path / "onnx/model_int8.onnx")
    options = ort.SessionOptions()
    options.add_session_config_entry(*EXACT_PRODUCTS)
    nodes = {node.name: node for node in proto.graph.node}
    for name, layer in quantized_layers(model).items():
        parts = [f"{name}.input.quantize", f"{name}.input.dequantize", f"{name}.weight.dequantize", name]
        layer_model = alone(proto, [nodes[part] for part in parts])
        session = ort.InferenceSession(layer_model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found_steps, found = session.run(None, {nodes[parts[0]].input[0]: seen[name].numpy()})
        scale = layer.amax[0] / 127
        with torch.no_grad():
            expected_steps = (layer.input_quantizer(seen[name]) / scale).round().numpy()
            weight = layer.weight_quantizer(layer.weight)
            expected = (torch.from_numpy(found_steps.astype(np.float32)) * scale) @ weight.T
        apart = np.abs(found_steps.astype(np.float32) - expected_steps)
        assert apart.max() <= 1, name
        assert (apart > 0).mean() < 1e-3, name
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5 * float(expected.abs().max()), err_msg=name)


def test_the_artifact_tells_how_it_was_made(trained: QuantizeResult, tiny_artifact: ModelArtifact, photos: Path) -> None:
    files = trained.artifact.lineage.files
    assert {TRAINED_WEIGHTS, HISTORY, "training_manifest.json", "calibration_table.json"} <= set(files)
    history = json.loads(trained.artifact.file(HISTORY).read_text())
    assert [record["epoch"] for record in history] == [1, 2]
    facts = OnnxRunner(trained.artifact.path / "onnx/model_int8.onnx").facts
    assert facts.values["quantization"]["method"] == "qat"
    assert facts.values["quantization"]["trained_sha256"] == files[TRAINED_WEIGHTS]
    assert facts.model_sha256 == tiny_artifact.lineage.files["model.safetensors"]
    seen = json.loads(trained.artifact.file("training_manifest.json").read_text())["files"]
    assert set(ImageFolder.open(photos).manifest().files.values()) <= set(seen.values())
    assert trained.artifact.lineage.spec["qat"]["ranges"] == "learned"


def test_what_training_brought_is_measured_on_images_set_aside(trained: QuantizeResult, photos: Path) -> None:
    """Learned in two epochs at a high rate, the tiny model drifts: that must show, not be hidden."""
    gain = trained.gain
    assert gain is not None
    assert 0 < gain.images < len(ImageFolder.open(photos))
    assert gain.before.sqnr_db != gain.after.sqnr_db
    assert gain.before.agreement is not None
    assert gain.after.drop is not None


def test_images_seen_twice_are_listed_once_and_no_name_is_lost(photos: Path) -> None:
    images = ImageFolder.open(photos)
    mine = dict(images.manifest().files)
    first, second = list(mine)[:2]
    seen = also_seen({"other.jpg": mine[first], second: "0" * 64}, mine, "qat")

    assert seen["other.jpg"] == mine[first]
    assert first not in seen
    assert seen[second] == "0" * 64
    assert seen[f"qat/{second}"] == mine[second]


def test_training_again_gives_the_same_bits(
    trained: QuantizeResult, tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    again = quantize_aware(tiny_artifact, SPEC, QAT, ImageFolder.open(photos), tmp_path / "tiny-qat", run=tmp_path / "run")

    assert again.artifact.lineage.files[TRAINED_WEIGHTS] == trained.artifact.lineage.files[TRAINED_WEIGHTS]
    assert again.artifact.lineage.files["onnx/model_int8.onnx"] == trained.artifact.lineage.files["onnx/model_int8.onnx"]


def test_a_run_from_other_ranges_is_not_gone_on_with(tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """Its checkpoint would bring the old ranges back, whatever was calibrated now."""
    images, run = ImageFolder.open(photos), tmp_path / "run"
    quick = replace(QAT, epochs=1)
    quantize_aware(tiny_artifact, SPEC, quick, images, tmp_path / "first", run=run)
    again = quantize_aware(tiny_artifact, SPEC, quick, images, tmp_path / "again", run=run)
    assert len(again.table.sites) == 17
    with pytest.raises(TrainingError, match="began from other ranges than those of this calibration"):
        quantize_aware(tiny_artifact, replace(SPEC, images=5), quick, images, tmp_path / "other", run=run)
    assert not (tmp_path / "other").exists()


def test_a_table_made_before_gives_the_ranges(tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """Frozen ranges are then those of the table, whatever the images would give."""
    images = ImageFolder.open(photos)
    few = quantize(tiny_artifact, replace(SPEC, images=5), images, tmp_path / "few").table
    frozen = replace(QAT, epochs=1, ranges="frozen")
    made = quantize_aware(tiny_artifact, SPEC, frozen, images, tmp_path / "qat", run=tmp_path / "run", table=few)

    assert made.table.amax == few.amax
    assert dict(load_trained(made.artifact).ranges) == pytest.approx(few.amax)
    assert quantize(tiny_artifact, SPEC, images, tmp_path / "all").table.amax != few.amax


def test_what_cannot_be_trained_is_refused(
    tiny_artifact: ModelArtifact, masked_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        QuantizeError, match="a model for masked_image_modeling; quantization-aware training needs a classifier"
    ):
        quantize_aware(masked_artifact, SPEC, QAT, ImageFolder.open(photos), tmp_path / "a", run=tmp_path / "run")
    (tmp_path / "images" / "unknown").mkdir(parents=True)
    for path in ImageFolder.open(photos).paths[:8]:
        (tmp_path / "images" / "unknown" / f"{path.parent.name}.png").write_bytes(path.read_bytes())
    with pytest.raises(SpecError, match=r"class folders .'unknown'., and the model the classes .'cat'"):
        quantize_aware(tiny_artifact, SPEC, QAT, ImageFolder.open(tmp_path / "images"), tmp_path / "b", run=tmp_path / "run")
    assert not (tmp_path / "b").exists()
    with pytest.raises(SpecError, match="ranges is 'moving'; expected one of"):
        QatSpec(ranges="moving")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="distill_weight is 2"):
        QatSpec(distill_weight=2.0)


def test_post_training_quantization_says_so_in_the_file(tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    result = quantize(tiny_artifact, SPEC, ImageFolder.open(photos), tmp_path / "ptq")

    assert OnnxRunner(result.artifact.path / "onnx/model_int8.onnx").facts.values["quantization"]["method"] == "ptq"
