"""Whether a back end multiplies 8-bit integers exactly on this machine: measured with a small product, never guessed.

An x86 CPU without VNNI multiplies unsigned by signed bytes with ``vpmaddubsw``, which adds two products in 16 bits and saturates
there: 255 * 127 + 255 * 127 becomes 32767. ONNX Runtime and OpenVINO both use it unless they are told not to, and say nothing.

Shape letters: M rows, K summed values, N columns.
"""

from __future__ import annotations

from functools import cache
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from swinv2_deploy.errors import SpecError
from swinv2_deploy.runtime.runner import Array, Precision, ProductMode, Products

SHAPE = (16, 64, 32)
"""M, K and N: whole blocks of every kernel, and a sum that float32 still holds exactly."""


def has_integers(precision: Precision) -> bool:
    """Whether a file of this precision multiplies integers."""
    return "int8" in precision


def found_products(precision: Precision, *, exact: bool | None) -> Products:
    """The words for what a probe found; None where there was no probe."""
    if not has_integers(precision):
        return "none"
    if exact is None:
        return "not checked"
    return "exact" if exact else "may saturate"


def check_mode(mode: str) -> None:
    """Refuse an unknown mode.

    Raises:
        SpecError: With the known ones.
    """
    if mode not in get_args(ProductMode):
        raise SpecError(f"There is no mode {mode!r} of integer products; expected one of {list(get_args(ProductMode))}.")


def probe_values() -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Seeded bytes over the whole range: activations (M, K) and a weight (N, K)."""
    rows, summed, columns = SHAPE
    generator = np.random.default_rng(0)
    values, weight = (generator.integers(-127, 128, (count, summed)).astype(np.int8) for count in (rows, columns))
    values[0], weight[0] = 127, 127
    return values, weight


@cache
def probe_model() -> bytes:
    """An ONNX model of one quantized product as ``quantize`` writes it, with scales of 1: (M, K) float32 to (M, N)."""
    from onnx import TensorProto, helper, numpy_helper

    _, weight = probe_values()
    stored = {
        "one": np.float32(1),
        "zero": np.int8(0),
        "weight": weight,
        "ones": np.ones(SHAPE[2], np.float32),
        "zeros": np.zeros(SHAPE[2], np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weight", "ones", "zeros"], ["matrix"], axis=0),
        helper.make_node("Gemm", ["values", "matrix"], ["y"], transB=1),
    ]
    sides: dict[str, list[str | int | None]] = {"x": ["rows", SHAPE[1]], "y": ["rows", SHAPE[2]]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sides.items()]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def probe_input() -> Array:
    """What the probe is run on, (M, K)."""
    return probe_values()[0].astype(np.float32)


def is_exact(found: Array) -> bool:
    """Whether the probe's output (M, N) is what integers of any width give."""
    values, weight = probe_values()
    return bool(np.array_equal(found, values.astype(np.int64) @ weight.astype(np.int64).T))
