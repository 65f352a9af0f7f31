"""A half-precision graph computed in float32: rounded where the file says so, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.modeling.source import resolve
from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.runtime.emulation import emulate

HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def layer(kind: str) -> onnx.ModelProto:
    """A linear layer, a residual sum, an island and moves, from x (2, 4) to y (4, 2), as an export writes them."""
    half, node = HALVES[kind], helper.make_node
    generator = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(half)
    constants = {
        "w": generator.standard_normal((4, 4)).astype(dtype),
        "b": generator.standard_normal(4).astype(dtype),
        "order": np.array([3, 1, 2, 0]),
    }
    graph = helper.make_graph(
        [
            node("Cast", ["x"], ["h"], to=half),
            node("Gemm", ["h", "w", "b"], ["g"], transB=1),
            node("Gather", ["g", "order"], ["m"], axis=1),
            node("Add", ["h", "m"], ["r"]),
            node("Cast", ["r"], ["wide"], to=TensorProto.FLOAT),
            node("Sigmoid", ["wide"], ["s"]),
            node("Cast", ["s"], ["narrow"], to=half),
            node("Mul", ["narrow", "r"], ["p"]),
            node("Transpose", ["p"], ["t"], perm=[1, 0]),
            node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def emulated(proto: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    content = ir.to_proto(emulate(ir.from_proto(proto))).SerializeToString()
    found: np.ndarray[Any, Any] = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("kind", HALVES)
def test_every_operator_rounds_once_and_moves_do_not(kind: str) -> None:
    """Equal bits to rounding by hand; ONNX's own evaluator, which also rounds inside of operators, is near."""
    proto = layer(kind)
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((2, 4)).astype(np.float32)
        steps = stepwise(proto, x)
        np.testing.assert_array_equal(emulated(proto, x), steps)
        (reference,) = ReferenceEvaluator(proto).run(None, {"x": x})
        limit = {"fp16": 3e-3, "bf16": 2e-2}[kind]
        np.testing.assert_allclose(steps, reference, rtol=limit, atol=limit)


def stepwise(proto: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The layer by hand: every product and sum in float64, every result rounded once."""
    dtype = {TensorProto.FLOAT16: np.dtype(np.float16)}.get(
        proto.graph.initializer[0].data_type, helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    )
    w, b, order = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer)

    def rounded(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return array.astype(np.float32).astype(dtype).astype(np.float64)

    h = rounded(x)
    r = rounded(h + rounded(h @ w.astype(np.float64).T + b.astype(np.float64))[:, order])
    s = rounded(1 / (1 + np.exp(-r)))
    result: np.ndarray[Any, Any] = rounded(s * r).T.astype(np.float32)
    return result


def test_overflow_is_infinity() -> None:
    """As on a GPU: a CPU runtime that joins operators in float32 would hide it."""
    found = emulated(layer("fp16"), np.full((2, 4), 6e4, np.float32))
    assert not np.isfinite(found).all()
    assert np.isfinite(emulated(layer("bf16"), np.full((2, 4), 6e4, np.float32))).all()


@pytest.fixture(scope="module")
def halves(tiny_artifact: ModelArtifact, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """The small artifact with its half-precision files."""
    spec = ExportSpec(static=True, half_precisions=("fp16", "bf16"))
    return export(resolve(SourceRequest(model=str(tiny_artifact.path))), spec, tmp_path_factory.mktemp("halves") / "tiny")


def test_a_runner_says_that_it_emulates(halves: ModelArtifact) -> None:
    """ONNX Runtime has no BF16 kernels on a CPU, and has FP16."""
    runners = {name: OnnxRunner(path, threads=1) for name, path in halves.onnx_files.items()}

    assert {name: runner.emulated for name, runner in runners.items()} == {
        "model": False,
        "model_fp16": False,
        "model_bf16": True,
    }
    assert runners["model_bf16"].provider == "bf16 emulated, CPUExecutionProvider"
    assert (runners["model_fp16"].precision, runners["model_bf16"].precision) == ("fp16", "bf16")


def test_weights_outside_are_read_where_they_lie(halves: ModelArtifact, tmp_path: Path) -> None:
    """The emulation is built in memory and never copies them."""
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    proto = onnx.load(halves.onnx_files["model_bf16"])
    onnx.save(proto, tmp_path / "a.onnx", save_as_external_data=True, location="a.onnx.data", size_threshold=1024)

    inside = OnnxRunner(halves.onnx_files["model_bf16"], threads=1).run(images)["logits"]
    np.testing.assert_array_equal(OnnxRunner(tmp_path / "a.onnx", threads=1).run(images)["logits"], inside)
