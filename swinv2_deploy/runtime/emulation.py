"""A half-precision graph on a processor without kernels for it: every result is computed in float32 and rounded to its type.

Parameters come rounded from the file, every operator's result is rounded to nearest even, and moves of values round nothing. Sums
inside one operator stay float32, as in the matrix units of GPUs. A runtime that joins operators rounds less often than this.
"""

from __future__ import annotations

import onnx_ir as ir

MOVES = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
"""Operators that only move values."""

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
WIDE = ir.DataType.FLOAT


def emulate(model: ir.Model) -> ir.Model:
    """Rewrite a graph in place so that no operator but Cast touches FLOAT16 or BFLOAT16."""
    graph = model.graph
    halves: dict[ir.Value, ir.DataType] = {}
    original = list(graph)
    for value in list(graph.initializers.values()):
        if value.dtype in HALVES:
            wide = _cast(value, WIDE, f"{value.name}.widened")
            graph.insert_before(original[0], wide)
            halves[wide.outputs[0]] = value.dtype
    for node in original:
        dtype = _result_type(node, halves)
        if dtype is None:
            continue
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", WIDE)
        for output in node.outputs:
            # Also where the file declares it: the value is now float32.
            output.type = ir.TensorType(WIDE)
            halves[output] = dtype
            if node.op_type not in MOVES:
                down = _cast(output, dtype, f"{output.name}.rounded")
                up = _cast(down.outputs[0], WIDE, f"{output.name}.widened")
                graph.insert_after(node, [down, up])
                halves[up.outputs[0]] = dtype
    return model


def _result_type(node: ir.Node, halves: dict[ir.Value, ir.DataType]) -> ir.DataType | None:
    """The half-precision type that a node's results have in the file, or None."""
    if node.op_type == "Cast":
        to = ir.DataType(node.attributes["to"].as_int())
        return to if to in HALVES else None
    if node.op_type in ("Shape", "QuantizeLinear"):
        return None  # integers
    return next((halves[value] for value in node.inputs if value in halves), None)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    """A cast that every reader of ``value`` reads instead."""
    node = ir.node("Cast", [None], {"to": dtype}, name=name)
    node.outputs[0].name = name
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    node.replace_input_with(0, value)
    return node
