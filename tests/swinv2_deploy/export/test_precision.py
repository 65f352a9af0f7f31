"""Half precision: every type stands in the file, islands are found by structure, and nothing leaves the range of a type."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from calibration.samples import sample_folder
from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing, read_image
from swinv2_deploy.artifacts import ResolutionRange, WeightsOrigin
from swinv2_deploy.errors import ExportError, SpecError
from swinv2_deploy.export import ExportSpec, export, precision, to_onnx
from swinv2_deploy.export.check import check_graph, failures
from swinv2_deploy.export.metadata import describe
from swinv2_deploy.export.precision import half_from_float32
from swinv2_deploy.export.spec import HalfPrecision, parse_precisions
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.modeling.source import Source, resolve
from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.runtime.emulation import emulate

HALVES: tuple[HalfPrecision, ...] = ("fp16", "bf16")
BITS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
RANGE = ResolutionRange(min=(8, 8), opt=(32, 32), max=(256, 331))
half = pytest.mark.parametrize("kind", HALVES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def source_of(model: SwinV2) -> Source:
    origin = WeightsOrigin(kind="file", source="weights.pth", sha256="0" * 64)
    return Source(model=model, preprocessing=Preprocessing.published(32), origin=origin, name="tiny")


def graph_of(model: SwinV2, resolutions: ResolutionRange = RANGE) -> ir.Model:
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return SwinGraph(model.config, weights, resolutions).build("test")


def session_of(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def types_of(model: ir.Model) -> dict[str, int]:
    """Type of every value, as ONNX infers it strictly."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True)
    found = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found


# --- types -------------------------------------------------------------------------------------------------------------


@half
def test_the_file_decides_every_type(kind: HalfPrecision, tiny_model: SwinV2) -> None:
    """Products in half precision, islands in FP32, float32 at both ends; strict inference agrees everywhere."""
    model = half_from_float32(graph_of(tiny_model), kind)
    found = types_of(model)
    single = {"LpNormalization", "Softmax", "Sigmoid", "Log", "ReduceMean"}
    seen = set()
    for node in model.graph:
        value, name = found[str(node.inputs[0].name)] if node.inputs[0] else 0, str(node.name)
        if node.op_type in single or "cpb_mlp" in name or name.endswith((".q_scaled", ".logits")):
            assert value == TensorProto.FLOAT, name
            seen.add(node.op_type)
        elif node.op_type in ("Gemm", "MatMul", "Conv", "Gelu", "LayerNormalization") and not (
            kind == "bf16" and name == "head"
        ):
            assert value == BITS[kind], name
            seen.add(node.op_type)
    assert seen == single | {"Gemm", "MatMul", "Conv", "Gelu", "LayerNormalization", "Mul", "Add", "Relu"}
    assert (found["pixel_values"], found["logits"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert found["head.weight"] == (BITS["fp16"] if kind == "fp16" else TensorProto.FLOAT)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@half
def test_index_arithmetic_is_untouched(kind: HalfPrecision, tiny_model: SwinV2) -> None:
    """The same nodes on the same integers: a token number above 2048 is none in FP16."""
    before, after = graph_of(tiny_model), half_from_float32(graph_of(tiny_model), kind)
    integers = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}

    def integer_nodes(model: ir.Model) -> set[tuple[str, ...]]:
        found = types_of(model)
        nodes = [node for node in model.graph if found[str(node.outputs[0].name)] in integers]
        return {(str(node.name), *(str(value.name) for value in node.inputs if value)) for node in nodes}

    assert integer_nodes(before) == integer_nodes(after) != set()


@half
def test_parameters_keep_their_names_in_half_the_space(kind: HalfPrecision, tiny_model: SwinV2) -> None:
    """Whoever looks for ``head.weight`` finds it, once."""
    before, after = graph_of(tiny_model), half_from_float32(graph_of(tiny_model), kind)
    named = {name for name in before.graph.initializers if not name.startswith("constant_")}

    assert named <= set(after.graph.initializers)
    assert all(value.uses() for value in after.graph.initializers.values())
    weight = after.graph.initializers["layers.0.blocks.0.mlp.fc1.weight"].const_value
    assert weight is not None
    expected = tiny_model.state_dict()["layers.0.blocks.0.mlp.fc1.weight"].to(
        torch.float16 if kind == "fp16" else torch.bfloat16
    )
    np.testing.assert_array_equal(weight.numpy().astype(np.float32), expected.float().numpy())


def test_the_opset_has_the_type_and_is_never_lowered(tiny_model: SwinV2) -> None:
    """Conv takes BF16 from opset 22 on; a graph of a newer opset stays there."""
    assert half_from_float32(graph_of(tiny_model), "fp16").graph.opset_imports[""] == 20
    assert half_from_float32(graph_of(tiny_model), "bf16").graph.opset_imports[""] == 22
    newer = graph_of(tiny_model)
    newer.graph.opset_imports[""] = 23
    assert half_from_float32(newer, "bf16").graph.opset_imports[""] == 23


# --- islands by structure ----------------------------------------------------------------------------------------------


def small_graph(nodes: list[onnx.NodeProto], opset: int, **constants: Any) -> ir.Model:
    """A graph from x (rows, 8) to y that holds ``nodes``."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def norm_chain(form: str) -> list[onnx.NodeProto]:
    """L2 norm of ``x`` times a temperature, then a product: the cosine attention's queries, in the forms they may be written in."""
    node = helper.make_node
    chains = {
        "LpNormalization": [node("LpNormalization", ["x"], ["unit"], axis=-1, p=2)],
        "ReduceL2": [
            node("ReduceL2", ["x", "axis"], ["norm"]),
            node("Clip", ["norm", "floor"], ["safe"]),
            node("Div", ["x", "safe"], ["unit"]),
        ],
        "ReduceSumSquare": [
            node("ReduceSumSquare", ["x", "axis"], ["sum"]),
            node("Add", ["sum", "floor"], ["safe"]),
            node("Sqrt", ["safe"], ["norm"]),
            node("Div", ["x", "norm"], ["unit"]),
        ],
        "Mul": [
            node("Mul", ["x", "x"], ["square"]),
            node("ReduceSum", ["square", "axis"], ["sum"]),
            node("Max", ["sum", "floor"], ["safe"]),
            node("Sqrt", ["safe"], ["norm"]),
            node("Div", ["x", "norm"], ["unit"]),
        ],
        "RMSNormalization": [node("RMSNormalization", ["x", "gain"], ["unit"], axis=-1)],
    }
    return [
        *chains[form],
        node("Mul", ["unit", "temperature"], ["scaled"]),
        node("Transpose", ["scaled"], ["turned"], perm=[1, 0]),
        node("Transpose", ["turned"], ["back"], perm=[1, 0]),
        node("MatMul", ["back", "weight"], ["y"]),
    ]


CONSTANTS = {
    "axis": np.array([-1], np.int64),
    "floor": np.float32(1e-12),
    "gain": np.full(8, 8**-0.5, np.float32),
    "temperature": np.float32(10),
    "weight": np.ones((8, 3), np.float32),
}


@half
@pytest.mark.parametrize("form", ["LpNormalization", "ReduceL2", "ReduceSumSquare", "Mul", "RMSNormalization"])
def test_every_form_of_an_l2_norm_is_an_island_with_its_temperature(form: str, kind: HalfPrecision) -> None:
    """However it is written; the product after it is none, and moves behind it carry half the bytes."""
    opset = 23 if form == "RMSNormalization" else 20
    model = half_from_float32(small_graph(norm_chain(form), opset, **CONSTANTS), kind)
    found = types_of(model)

    for name in ("sum", "square", "safe", "norm", "unit", "scaled"):
        assert found.get(name, TensorProto.FLOAT) == TensorProto.FLOAT, name
    assert {found[name] for name in ("turned", "back", "weight")} == {BITS[kind]}
    assert sum(node.op_type == "Cast" for node in model.graph) == 2


def test_without_the_island_fp16_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares of 300 leave FP16's range, and the published floor of 1e-12 is zero there: infinity and NaN where there is none."""
    rows = np.stack([np.full(8, 300, np.float32), np.zeros(8, np.float32)])
    right = session_of(emulate(half_from_float32(small_graph(norm_chain("Mul"), 20, **CONSTANTS), "fp16"))).run(
        None, {"x": rows}
    )
    np.testing.assert_allclose(right[0], [[10 * 8**0.5] * 3, [0] * 3], rtol=1e-3)

    monkeypatch.setattr(precision, "SINGLE", frozenset())
    monkeypatch.setattr(precision, "ARITHMETIC", precision.ARITHMETIC | {"ReduceSum", "Sqrt"})
    islands = precision._islands
    monkeypatch.setattr(precision, "_islands", lambda *arguments: islands(*arguments) & set())
    wrong = session_of(emulate(half_from_float32(small_graph(norm_chain("Mul"), 20, **CONSTANTS), "fp16"))).run(
        None, {"x": rows}
    )
    assert wrong[0][0].tolist() == [0, 0, 0]  # divided by infinity
    assert np.isnan(wrong[0][1]).all()


def test_an_unknown_operator_on_floats_is_refused() -> None:
    """Never passed through in whatever type; the same operator on integers is none of its business."""
    node = helper.make_node
    nodes = [node("Erf", ["x"], ["e"], name="gate"), node("MatMul", ["e", "weight"], ["y"])]
    with pytest.raises(ExportError, match=r"gate is a standard Erf on floats.*expected one of the operators"):
        half_from_float32(small_graph(nodes, 20, weight=CONSTANTS["weight"]), "fp16")


def test_a_parameter_beyond_the_range_is_refused(tiny_model: SwinV2) -> None:
    """FP16 ends at 65504; BF16 reaches as far as FP32."""
    with torch.no_grad():
        tiny_model.get_parameter("layers.0.blocks.0.mlp.fc1.weight")[0, 0] = 7e4
    with pytest.raises(ExportError, match=r"fc1.weight reaches 7e\+04, beyond the largest fp16 number; export bf16 instead"):
        half_from_float32(graph_of(tiny_model), "fp16")
    half_from_float32(graph_of(tiny_model), "bf16")


# --- numbers -----------------------------------------------------------------------------------------------------------

SIZES = [(8, 8), (9, 31), (32, 32), (64, 64), (96, 64), (33, 47), (100, 147), (200, 331), (256, 256)]


def hard_images(height: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Black, white, noise, and a photograph's worth of noise with zeros around it, normalized as photographs are."""
    noise = np.random.default_rng(height * width).standard_normal((3, height, width), dtype=np.float32)
    padded = np.zeros_like(noise)
    padded[:, : height // 2, : width // 3] = noise[:, : height // 2, : width // 3]
    return np.stack([np.full_like(noise, -2.1), np.full_like(noise, 2.6), noise, padded])


@half
def test_no_size_and_no_image_gives_nan_or_drifts(kind: HalfPrecision, tiny_model: SwinV2) -> None:
    """Rounded after every operator, and for FP16 in ONNX Runtime's own kernels too; padded windows hold keys of zero length."""
    exact = session_of(graph_of(tiny_model))
    sessions = [session_of(emulate(half_from_float32(graph_of(tiny_model), kind)))]
    sessions += [session_of(half_from_float32(graph_of(tiny_model), "fp16"))] if kind == "fp16" else []
    limit = {"fp16": 4e-3, "bf16": 3e-2}[kind]
    for height, width in SIZES:
        images = hard_images(height, width)
        (expected,) = exact.run(None, {"pixel_values": images})
        for session in sessions:
            (found,) = session.run(None, {"pixel_values": images})
            assert np.isfinite(found).all(), (height, width)
            drift = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert drift < limit, (height, width, drift)


def test_the_bundled_model_agrees_with_itself(tmp_path: Path) -> None:
    """Top-1 on bundled photographs it has not seen, one that lies on an edge aside."""
    artifact = export(resolve(SourceRequest()), ExportSpec(static=True, half_precisions=HALVES), tmp_path / "nano")
    paths = sorted(sample_folder("verify").rglob("*.jpg"))[::4]
    images = np.stack([artifact.preprocessing(read_image(path)) for path in paths])
    expected = OnnxRunner(artifact.onnx_files["model"], threads=1).run(images)["logits"]
    for kind in HALVES:
        file = artifact.onnx_files[f"model_{kind}"]
        found = OnnxRunner(file, threads=1).run(images)["logits"]
        assert (found.argmax(1) != expected.argmax(1)).sum() <= 1
        assert np.abs(found - expected).max() < {"fp16": 0.02, "bf16": 0.15}[kind]
        assert file.stat().st_size < 0.55 * artifact.onnx_files["model"].stat().st_size


# --- the stage ---------------------------------------------------------------------------------------------------------


def with_task(config: SwinV2Config, task: Any, *features: str) -> SwinV2Config:
    return replace(config, task=task, num_classes=0, out_features=features)


def test_export_writes_them_beside_fp32(tiny_model: SwinV2, tmp_path: Path) -> None:
    """Each with its own precision, errors and how they were found; hashes are in the lineage."""
    spec = ExportSpec(smallest=(16, 16), half_precisions=HALVES)
    artifact = export(source_of(tiny_model), spec, tmp_path / "tiny")

    assert list(artifact.onnx_files) == ["model", "model_bf16", "model_fp16"]
    for kind in HALVES:
        facts = OnnxRunner(artifact.onnx_files[f"model_{kind}"], threads=1).facts
        assert facts.precision == kind
        proof = facts.values["proof"]
        assert [tuple(row["size"]) for row in proof["grid"]] == [(32, 32), (16, 16), (25, 18)]
        assert 0 < proof["max_abs"] < {"fp16": 1e-2, "bf16": 1e-1}[kind]
        assert f"onnx/model_{kind}.onnx" in artifact.lineage.files
    assert json.loads(json.dumps(spec.to_dict()))["half_precisions"] == ["fp16", "bf16"]
    alone = export(source_of(tiny_model), ExportSpec(smallest=(16, 16)), tmp_path / "alone")
    assert alone.lineage.files["onnx/model.onnx"] == artifact.lineage.files["onnx/model.onnx"]


@pytest.mark.parametrize("task", ["encoder", "backbone"])
def test_every_task_has_float32_outputs(
    task: Any, tiny_config: SwinV2Config, make_model: Callable[[SwinV2Config], SwinV2], tmp_path: Path
) -> None:
    """Also where an output is read on inside the graph."""
    model = make_model(with_task(tiny_config, task, *(("stem", "stage2") if task == "backbone" else ())))
    artifact = export(source_of(model), ExportSpec(static=True, resolution=(40, 52), half_precisions=HALVES), tmp_path / task)
    images = hard_images(40, 52)
    expected = OnnxRunner(artifact.onnx_files["model"], threads=1).run(images)
    for kind in HALVES:
        found = OnnxRunner(artifact.onnx_files[f"model_{kind}"], threads=1).run(images)
        for name, wanted in expected.items():
            assert found[name].dtype == np.float32
            assert np.linalg.norm(found[name] - wanted) < 0.05 * np.linalg.norm(wanted)


@half
def test_large_weights_go_beside_the_graph(
    kind: HalfPrecision, tiny_model: SwinV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are found again, by ONNX Runtime and by the emulation, wherever the folder lies."""
    monkeypatch.setattr(to_onnx, "LARGEST_INLINE", 1000)
    artifact = export(source_of(tiny_model), ExportSpec(half_precisions=(kind,)), tmp_path / "tiny")
    images = hard_images(32, 32)
    expected = OnnxRunner(artifact.onnx_files["model"], threads=1).run(images)["logits"]

    assert "onnx/model.onnx.data" in artifact.lineage.files
    assert np.abs(OnnxRunner(artifact.onnx_files[f"model_{kind}"], threads=1).run(images)["logits"] - expected).max() < 0.05


@half
@pytest.mark.parametrize("value", [9.0, float("nan"), float("inf")])
def test_a_wrong_half_graph_is_never_written(
    value: float, kind: HalfPrecision, tiny_model: SwinV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate can fail, although the FP32 graph was right."""

    def spoiled(model: ir.Model, precision: HalfPrecision) -> ir.Model:
        changed = half_from_float32(model, precision)
        bias = changed.graph.initializers["head.bias"]
        assert bias.const_value is not None
        bias.const_value = ir.Tensor(np.full_like(bias.const_value.numpy(), value), dtype=bias.dtype, name="head.bias")
        return changed

    monkeypatch.setattr(to_onnx, "half_from_float32", spoiled)
    with pytest.raises(ExportError, match=rf"model_{kind}: logits is .* at 32x32 px .*does not suit {kind}.*leave it out"):
        export(source_of(tiny_model), ExportSpec(half_precisions=(kind,)), tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_overflow_that_a_cpu_runtime_hides_is_found(tiny_model: SwinV2, tmp_path: Path) -> None:
    """An activation beyond FP16 in the middle, brought back by the norm after it, would be NaN on a GPU."""
    with torch.no_grad():
        tiny_model.get_parameter("layers.1.blocks.0.mlp.fc2.weight").mul_(2e5)
    resolutions = ResolutionRange(min=(32, 32), opt=(32, 32), max=(32, 32))
    described = half_from_float32(graph_of(tiny_model, resolutions), "fp16")
    describe(described, source_of(tiny_model), resolutions, "0" * 64, {"precision": "fp16"})
    ir.save(described, tmp_path / "model_fp16.onnx")
    proof = check_graph(tmp_path / "model_fp16.onnx", tiny_model, {(32, 32): (2,)})
    assert proof.provider.startswith("fp16 emulated")
    assert ["model_fp16: logits is not finite" in line for line in failures({"model_fp16": proof})] == [True]


# --- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ()),
        (["fp32"], ()),
        (["bf16,FP16"], ("fp16", "bf16")),
        (["fp32, fp16", "fp16"], ("fp16",)),
        (["bf16", "fp16"], HALVES),
    ],
)
def test_precisions_are_a_list_or_repeated(texts: list[str], expected: tuple[str, ...]) -> None:
    """FP32 is written in any case."""
    assert parse_precisions(texts) == expected


@pytest.mark.parametrize("text", ["", "fp64", "int8", "fp16,", "half"])
def test_other_precisions_are_usage_errors(text: str) -> None:
    with pytest.raises(SpecError, match=r"is not a precision that export writes; expected fp32, fp16 or bf16.*quantize"):
        parse_precisions([text])


@pytest.mark.parametrize("value", [("bf16", "fp16"), ("fp32",), ("fp16", "fp16")])
def test_a_spec_names_each_precision_once(value: Any) -> None:
    with pytest.raises(SpecError, match="half_precisions is"):
        ExportSpec(half_precisions=value)
