"""Quantization stores the numbers it says, in INT8, and computes what a fake quantizer computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from calibration.dataset import ImageFolder
from reference_model.preprocessing import Preprocessing
from reference_model.variants import VARIANTS
from swinv2_deploy.artifacts import ModelArtifact, WeightsOrigin
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling import load_model, quantization_sites
from swinv2_deploy.modeling.source import Source, untrained_model
from swinv2_deploy.quantize.ptq import QuantizeResult, quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime.onnx_runner import EXACT_PRODUCTS, saturates

SPEC = QuantizeSpec(calibrator="max", unsigned="always")
ImagesOf = Callable[..., np.ndarray[Any, Any]]


def arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}


def test_scales_are_the_largest_magnitude_over_127(result: QuantizeResult) -> None:
    """One for each activation, one for each output channel of a weight."""
    stored = arrays(result.artifact.onnx_files["model_int8"])
    state = load_model(result.artifact).state_dict()
    for site, amax in result.table.amax.items():
        assert stored[f"{site}.input.scale"] == np.float32(amax / 127)
        assert stored[f"{site}.input.zero_point"] == 0
        weight = state[f"{site}.weight"].numpy()
        assert np.array_equal(stored[f"{site}.weight.scale"], (np.abs(weight).max(axis=1) / 127).astype(np.float32))


def test_the_table_holds_the_ranges_of_what_enters_each_site(images_of: ImagesOf, result: QuantizeResult, photos: Path) -> None:
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
    name: str, images_of: ImagesOf, result: QuantizeResult, photos: Path, tmp_path: Path
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


def test_both_forms_and_the_float_model_agree(images_of: ImagesOf, result: QuantizeResult, photos: Path) -> None:
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
