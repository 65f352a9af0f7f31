"""How fast ONNX Runtime multiplies matrices here: the peak that models can be compared with.

python -m benchmarks.peers.gemm CASE BATCH THREADS prints JSON: operations a second of every linear layer's shape, in FP32 (MatMul)
and in INT8 (MatMulInteger, U8 by S8), the best over all shapes, and the share of the CPU time that others took meanwhile. Weights
are constants, so that the runtime packs them at load.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers.cases import CASES
from benchmarks.peers.guard import foreign_share, snapshot
from benchmarks.peers.process import private_output
from benchmarks.peers.products import Product, products

SECONDS = 0.4
"""Time for each shape and precision, in several turns."""
TURNS = 4


def main() -> None:
    """Measure and print."""
    case, batch, threads = CASES[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    shapes = [product for product in products(case.config, batch) if product.linear]
    with private_output() as answer:
        before = snapshot()
        found = measure(shapes, threads)
        answer(json.dumps(found | {"foreign": foreign_share(before, snapshot(), psutil.cpu_count() or 1)}))


def measure(shapes: list[Product], threads: int) -> dict[str, Any]:
    """Operations a second by shape and precision, and the peak of each precision."""
    runs = {
        (shape, precision): make(shape, threads)
        for shape in shapes
        for precision, make in (("fp32", _float), ("int8", _integer))
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(TURNS):
        for key, run in runs.items():
            end = perf_counter() + SECONDS / TURNS
            while (started := perf_counter()) < end:
                run()
                best[key] = min(best[key], perf_counter() - started)
    rows = [
        {"m": shape.m, "k": shape.k, "n": shape.n}
        | {precision: shape.operations / best[shape, precision] for precision in ("fp32", "int8")}
        for shape in shapes
    ]
    return {"shapes": rows, "peaks": {precision: max(row[precision] for row in rows) for precision in ("fp32", "int8")}}


def _float(shape: Product, threads: int) -> Callable[[], object]:
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal(size).astype(np.float32) for size in ((shape.m, shape.k), (shape.k, shape.n)))
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    return _session(node, left, right, TensorProto.FLOAT, TensorProto.FLOAT, threads)


def _integer(shape: Product, threads: int) -> Callable[[], object]:
    generator = np.random.default_rng(0)
    left = generator.integers(0, 256, (shape.m, shape.k), dtype=np.uint8)
    right = generator.integers(-128, 128, (shape.k, shape.n), dtype=np.int8)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    return _session(node, left, right, TensorProto.UINT8, TensorProto.INT32, threads)


def _session(
    node: onnx.NodeProto, left: Any, right: Any, input_type: int, output_type: int, threads: int
) -> Callable[[], object]:
    rows, columns = left.shape[0], right.shape[1]
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", input_type, left.shape)],
        [helper.make_tensor_value_info("y", output_type, (rows, columns))],
        [numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": left})


if __name__ == "__main__":
    main()
