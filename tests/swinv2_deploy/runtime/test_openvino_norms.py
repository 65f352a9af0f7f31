"""L2 norms in OpenVINO: what its reader adds under the root is gone, and a vector of zeros stays one."""

from __future__ import annotations

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx import TensorProto, helper

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import OpenVinoRunner, TorchRunner, exact_norms, openvino_runner
from swinv2_deploy.runtime.runner import FloatPrecision

LENGTHS = np.float32([0, 1e-9, 1e-6, 1e-3, 1, 1e3])


def read(*nodes: onnx.NodeProto, **constants: object) -> openvino.Model:
    """A model from ``x`` (rows, 2) to ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return openvino.Core().read_model(proto.SerializeToString())


def run(model: openvino.Model) -> np.ndarray:
    vectors = LENGTHS[:, None] * np.float32([0.6, 0.8])
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([vectors])[0]


def test_vectors_of_any_length_come_out_with_length_one() -> None:
    model = read(helper.make_node("LpNormalization", ["x"], ["y"], axis=-1, p=2))
    exact_norms(model)

    np.testing.assert_allclose(np.linalg.norm(run(model), axis=-1), [0, 1, 1, 1, 1, 1], atol=1e-6)


def test_what_the_graph_adds_itself_stays() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "half"], ["more"]),
        helper.make_node("Sqrt", ["more"], ["y"]),
    ]
    model = read(*nodes, axis=np.int64([-1]), half=np.float32(0.5))

    assert exact_norms(model) == 0
    np.testing.assert_allclose(run(model)[:, 0], np.sqrt(LENGTHS**2 + 0.5), rtol=1e-6)


@pytest.fixture(scope="module")
def quiet(tiny_artifact: ModelArtifact) -> ModelArtifact:
    """A classifier whose first queries and keys are a thousandth of what they were; the norm makes them what they would be."""
    from swinv2_deploy.export import ExportSpec, export
    from swinv2_deploy.modeling.source import source_from_artifact

    source = source_from_artifact(tiny_artifact)
    with torch.no_grad():
        for block in source.model.layers[0].blocks:
            width = block.attn.qkv.weight.shape[0] // 3
            block.attn.qkv.weight[: 2 * width] *= 1e-3
            block.attn.q_bias *= 1e-3
    return export(source, ExportSpec(smallest=(16, 16), largest=(64, 96)), tiny_artifact.path.parent / "quiet")


@pytest.mark.parametrize("pinned", [None, (2, 57, 41)])
def test_the_runner_equals_the_reference_where_queries_are_short(
    quiet: ModelArtifact, pinned: tuple[int, int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 57, 41), dtype=np.float32)
    expected = TorchRunner(load_model(quiet)).run(images)["logits"]
    file = quiet.onnx_files["model"]

    np.testing.assert_allclose(OpenVinoRunner(file, pinned=pinned).run(images)["logits"], expected, atol=1e-4)
    monkeypatch.setattr(openvino_runner, "exact_norms", lambda model: 0)
    as_read = OpenVinoRunner(file, pinned=pinned).run(images)["logits"]
    if exact_norms(openvino.Core().read_model(file)):
        assert np.abs(as_read - expected).max() > 1e-3


@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
def test_padding_is_no_division_by_zero(tiny_artifact: ModelArtifact, precision: FloatPrecision) -> None:
    """Keys have no bias, so those of padding are zeros."""
    if precision != "f32" and precision.upper() not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip(f"this CPU has no {precision} for OpenVINO")
    runner = OpenVinoRunner(tiny_artifact.onnx_files["model"], precision=precision)
    images = np.random.default_rng(0).standard_normal((1, 3, 57, 41), dtype=np.float32)
    expected = TorchRunner(load_model(tiny_artifact)).run(images)["logits"]

    np.testing.assert_allclose(runner.run(images)["logits"], expected, atol=0.05 * np.abs(expected).max())
