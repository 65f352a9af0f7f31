"""The written graph computes the reference model at any size, small, and in forms that runtimes turn into integers."""

from __future__ import annotations

from collections import Counter
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

from reference_model.config import SwinV2Config, make_config
from reference_model.model import SwinV2
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import QuantizeError
from swinv2_deploy.export.graph import GraphBuilder
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.modeling.sites import quantization_sites
from swinv2_deploy.quantize.qdq import Flavor, insert_qdq
from swinv2_deploy.runtime import TorchRunner
from swinv2_deploy.runtime.onnx_runner import EXACT_PRODUCTS

MakeModel = Callable[[SwinV2Config], SwinV2]

FULL = ResolutionRange(min=(16, 16), opt=(64, 64), max=(256, 256))
TOLERANCE = 3e-5
"""Of float32 against float32, relative to the largest magnitude of an output."""


def config(**changes: Any) -> SwinV2Config:
    sizes = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4, "image_size": 64, "num_classes": 5}
    pruned = changes.pop("pruned_heads", None)
    made = make_config(**sizes | changes)
    return made if pruned is None else replace(made, num_heads=pruned)


def static(height: int, width: int) -> ResolutionRange:
    return ResolutionRange(min=(height, width), opt=(height, width), max=(height, width))


def write(model: SwinV2, resolutions: ResolutionRange) -> ir.Model:
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return SwinGraph(model.config, weights, resolutions).build("0")


def session(model: ir.Model, optimized: Path | None = None) -> ort.InferenceSession:
    proto = ir.to_proto(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is None:
        # Without VNNI the default integer kernel saturates; the option gives up its speed for exact sums.
        options.add_session_config_entry(*EXACT_PRODUCTS)
    else:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1000 * height + width))


def compare(model: SwinV2, found: ort.InferenceSession, pixels: torch.Tensor) -> None:
    expected = TorchRunner(model).run(pixels.numpy())
    results = dict(
        zip([output.name for output in found.get_outputs()], found.run(None, {"pixel_values": pixels.numpy()}), strict=True)
    )
    assert results.keys() == expected.keys()
    for name, wanted in expected.items():
        assert results[name].shape == wanted.shape
        np.testing.assert_allclose(results[name], wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max(), err_msg=name)


def quantized(model: SwinV2, flavor: Flavor, resolutions: ResolutionRange = FULL) -> ir.Model:
    # Normalized tokens and hidden units of an untrained model stay below 8.
    return insert_qdq(write(model, resolutions), dict.fromkeys(quantization_sites(model.config), 8.0), flavor)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pretrained_window_sizes": (3, 3, 6)},
        {"qkv_bias": False, "patch_norm": False},
        {"pruned_heads": ((1, 1), (2, 1), (1, 3))},
        {"extra_norm_period": 2},
        {"task": "encoder"},
        {"task": "backbone", "out_features": ("stem", "stage1", "stage3")},
        {"depths": (1, 3)},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
def test_one_graph_is_right_at_every_size_and_batch(make_model: MakeModel, changes: dict[str, Any]) -> None:
    if changes.get("depths"):
        changes = changes | {"num_heads": (1, 2)}
    model = make_model(config(**changes))
    graph = write(model, FULL)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    found = session(graph)
    for height, width in [(16, 16), (17, 30), (33, 47), (64, 64), (96, 64), (100, 147), (130, 21)]:
        compare(model, found, images(2, height, width))


@pytest.mark.parametrize(
    ("resolutions", "sizes"),
    [
        pytest.param(static(64, 64), [(64, 64)], id="static"),
        pytest.param(static(70, 45), [(70, 45)], id="static, odd"),
        pytest.param(static(16, 96), [(16, 96)], id="static, one window high"),
        pytest.param(static(8, 8), [(8, 8)], id="static, smaller than a window"),
        pytest.param(
            ResolutionRange(min=(49, 49), opt=(64, 64), max=(128, 128)), [(49, 49), (50, 91), (128, 77)], id="windows fixed"
        ),
        pytest.param(ResolutionRange(min=(64, 32), opt=(64, 64), max=(64, 128)), [(64, 32), (64, 101)], id="height fixed"),
        pytest.param(ResolutionRange(min=(8, 8), opt=(16, 16), max=(16, 16)), [(8, 8), (16, 9)], id="never shifts"),
    ],
)
def test_a_narrower_range_is_right_inside_it(
    make_model: MakeModel, resolutions: ResolutionRange, sizes: list[tuple[int, int]]
) -> None:
    model = make_model(config())
    found = session(write(model, resolutions))
    for height, width in sizes:
        compare(model, found, images(2, height, width))


@pytest.mark.parametrize("resolutions", [FULL, static(40, 56)], ids=["dynamic", "static"])
def test_every_row_of_a_batch_is_the_image_alone(make_model: MakeModel, resolutions: ResolutionRange) -> None:
    model = make_model(config())
    found = session(write(model, resolutions))
    pixels = images(17, 40, 56)
    compare(model, found, pixels)
    alone = [found.run(None, {"pixel_values": pixels[row : row + 1].numpy()})[0][0] for row in range(17)]
    for batch in (2, 3, 17):
        together = found.run(None, {"pixel_values": pixels[:batch].numpy()})[0]
        np.testing.assert_allclose(together, np.stack(alone[:batch]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(128, 128), (100, 150)], ids=str)
def test_large_windows_share_an_axis_in_a_static_graph(make_model: MakeModel, size: tuple[int, int]) -> None:
    """OpenVINO then has one kernel for an attention, with its own softmax inside; small windows keep an axis of their own."""
    openvino = pytest.importorskip("openvino")
    model = make_model(config(window_size=16, image_size=128, depths=(2,), num_heads=(2,)))
    graph = write(model, static(*size))

    for batch in (1, 3):
        compare(model, session(graph), images(batch, *size))
    compiled = openvino.Core().compile_model(openvino.Core().read_model(ir.to_proto(graph).SerializeToString()), "CPU")
    kinds = [node.get_rt_info()["layerType"] for node in compiled.get_runtime_model().get_ops()]
    assert "Softmax" not in kinds


def test_an_absolute_position_is_resized(make_model: MakeModel) -> None:
    model = make_model(config(use_absolute_embeddings=True))
    found = session(write(model, FULL))
    for height, width in [(64, 64), (48, 80)]:
        compare(model, found, images(2, height, width))


def test_the_graph_of_a_published_size_stays_small(make_model: MakeModel) -> None:
    full = ResolutionRange(min=(32, 32), opt=(256, 256), max=(1024, 1024))
    counts = {}
    tiny = {"embed_dim": 24, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 8}
    model = make_model(config(**tiny, image_size=256))
    for name, resolutions in {"full": full, "static": static(256, 256)}.items():
        counts[name] = len(write(model, resolutions).graph)
    assert counts["full"] <= 700
    assert counts["static"] <= 350


def test_a_static_graph_computes_no_shapes(make_model: MakeModel) -> None:
    kinds = {node.op_type for node in write(make_model(config()), static(64, 64)).graph}
    assert not kinds & {"Range", "Slice", "Mod", "Pad", "Min", "Sub", "Split"}


def test_nothing_is_padded_by_an_amount_that_depends_on_the_size(make_model: MakeModel) -> None:
    pads = [node for node in write(make_model(config()), FULL).graph if node.op_type == "Pad"]
    assert pads
    assert all(node.inputs[1].const_value is not None for node in pads)


def test_a_computed_shape_is_taken_literally(make_model: MakeModel) -> None:
    reshapes = [node for node in write(make_model(config()), FULL).graph if node.op_type == "Reshape"]
    computed = [node for node in reshapes if node.inputs[1].const_value is None]
    assert computed
    assert all(node.attributes.get_int("allowzero", 0) == 1 for node in computed)


def test_a_linear_layer_keeps_the_name_of_its_module(make_model: MakeModel) -> None:
    model = make_model(config())
    names = {node.name for node in write(model, FULL).graph if node.op_type == "Gemm"}
    assert {*quantization_sites(model.config), "head"} <= names


@pytest.mark.parametrize("resolutions", [FULL, static(64, 64)], ids=["dynamic", "static"])
def test_onnx_runtime_multiplies_every_signed_site_in_unsigned_integers(
    make_model: MakeModel, tmp_path: Path, resolutions: ResolutionRange
) -> None:
    model = make_model(config())
    graph = quantized(model, "int8", resolutions)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert set(graph.graph.opset_imports) == {""}
    session(graph, tmp_path / "optimized.onnx")
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    kinds = Counter(node.op_type for node in optimized.node)
    assert kinds["MatMulIntegerToFloat"] == len(quantization_sites(model.config))
    assert kinds["DequantizeLinear"] == 0
    types = {tensor.name: tensor.data_type for tensor in optimized.initializer}
    products = [node for node in optimized.node if node.op_type == "MatMulIntegerToFloat"]
    assert {(types[node.input[1]], types[node.input[4]]) for node in products} == {
        (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    }
    assert {node.name for node in optimized.node if node.op_type == "Gemm"} == {"head"}


def test_no_bias_of_a_signed_site_is_an_integer(make_model: MakeModel) -> None:
    graph = quantized(make_model(config()), "int8").graph
    stored = [value.dtype for value in graph.initializers.values() if value.name and ".bias" in value.name]
    assert set(stored) == {ir.DataType.FLOAT}
    dequantized = [node.inputs[0].dtype for node in graph if node.op_type == "DequantizeLinear" and node.inputs[0].const_value]
    assert set(dequantized) == {ir.DataType.INT8}


def test_the_unsigned_form_holds_the_same_numbers(make_model: MakeModel) -> None:
    model = make_model(config())
    signed, unsigned = quantized(model, "int8"), quantized(model, "uint8")
    kinds = Counter(node.op_type for node in unsigned.graph)
    assert kinds["MatMulIntegerToFloat"] == kinds["QuantizeLinear"] == len(quantization_sites(model.config))
    for site in quantization_sites(model.config):
        left, right = (graph.graph.initializers[f"{site}.weight.int8"].const_value for graph in (signed, unsigned))
        assert left is not None
        assert right is not None
        np.testing.assert_array_equal(left.numpy(), right.numpy())
    exact = session(write(model, FULL))
    for height, width in [(64, 64), (33, 47)]:
        pixels = {"pixel_values": images(2, height, width).numpy()}
        logits = [found.run(None, pixels)[0] for found in (exact, session(signed), session(unsigned))]
        spread = np.abs(logits[0]).max()
        assert 0 < np.abs(logits[1] - logits[0]).max() < 0.1 * spread
        np.testing.assert_allclose(logits[1], logits[2], rtol=0, atol=0.02 * spread)


@pytest.mark.parametrize("flavor", ["int8", "uint8"])
def test_a_quantized_output_keeps_its_name(make_model: MakeModel, flavor: Flavor) -> None:
    graph = insert_qdq(write(make_model(config()), FULL), {"head": 8.0}, flavor)
    found = session(graph)
    assert [(output.name, output.shape) for output in found.get_outputs()] == [("logits", ["batch", 5])]


@pytest.mark.parametrize("largest", [0.0, float("nan"), float("inf"), -1.0])
def test_an_unusable_range_is_refused(make_model: MakeModel, largest: float) -> None:
    with pytest.raises(QuantizeError, match=r"blocks\.0\.mlp\.fc1 is"):
        insert_qdq(write(make_model(config()), FULL), {"layers.0.blocks.0.mlp.fc1": largest})


def test_a_table_of_another_model_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(QuantizeError, match="another model"):
        insert_qdq(write(make_model(config()), FULL), {"layers.9.blocks.0.mlp.fc1": 1.0})


def test_the_builder_folds_what_is_known_and_makes_the_same_thing_once() -> None:
    graph = GraphBuilder()
    known = graph.op("Add", graph.ints(2, 3), graph.ints(1, 1))
    folded = graph.known(known)
    assert folded is not None
    assert folded.tolist() == [3, 4]
    assert graph.ints(3, 4) is known
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 4]))
    assert graph.op("Relu", x) is graph.op("Relu", x)
    assert graph.reshape(x, -1, 2) is graph.op("Reshape", x, graph.ints(-1, 2))
    unread = graph.op("Neg", x)
    y = graph.op("Abs", x)
    built = graph.model([x], [y], name="g", producer_version="0")
    assert [node.op_type for node in built.graph] == ["Abs"]
    assert unread.name not in built.graph.initializers
