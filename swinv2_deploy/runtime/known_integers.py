"""Integers of a graph that follow from the shapes of its inputs: computed here once, instead of at every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

AnyArray = NDArray[Any]

_KINDS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
"""Formats of sizes, indices and conditions. Weights in integers, which are to stay what they are, have others."""


class KnownIntegers:
    """What is known of a graph whose inputs have these shapes.

    Floats are left to the runtime: a table of position biases is small, what is gathered from it is not.

    Args:
        model: Graph, whose inputs get these shapes.
        shapes: Shape of every input by name.
    """

    def __init__(self, model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports[""]
        self._arrays: dict[ir.Value, AnyArray] = {}
        self._made: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        for value in self._graph.inputs:
            value.shape = ir.Shape(shapes[str(value.name)])
        for node in self._graph:
            self._arrays.update(zip(node.outputs, self._outputs(node), strict=False))

    def get(self, value: ir.Value | None) -> AnyArray | None:
        """Content of a value, or None where it depends on more than shapes."""
        if value is None:
            return None
        if value not in self._arrays and value.is_initializer() and value.dtype in _KINDS and value.const_value is not None:
            self._arrays[value] = value.const_value.numpy()
        return self._arrays.get(value)

    def constant(self, array: AnyArray, name: str) -> ir.Value:
        """An initializer with this content, made once; ``name`` begins its name."""
        array = np.array(array, order="C")
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._made:
            tensor = ir.Tensor(array, name=f"{name}.known_{len(self._made)}")
            value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
            self._graph.register_initializer(value)
            self._made[key] = value
            self._arrays[value] = array
        return self._made[key]

    def store(self) -> None:
        """Replace what is known, and read by what is not, by initializers; indices of Gather in half the space."""
        for node in list(self._graph):
            for place, value in enumerate(node.inputs):
                array = self.get(value)
                if value is None or array is None or self._is_known(node):
                    continue
                if node.op_type == "Gather" and place == 1 and array.size and array.max() <= np.iinfo(np.int32).max:
                    array = array.astype(np.int32)
                if not value.is_initializer() or array.dtype != self._arrays[value].dtype:
                    node.replace_input_with(place, self.constant(array, str(value.name)))
        for node in reversed(list(self._graph)):
            if self._is_known(node) and not any(output.is_graph_output() or output.uses() for output in node.outputs):
                self._graph.remove(node, safe=True)
        for value in list(self._graph.initializers.values()):
            if not value.uses() and not value.is_graph_output():
                self._graph.initializers.pop(str(value.name))

    def _is_known(self, node: ir.Node) -> bool:
        return all(output in self._arrays for output in node.outputs)

    def _outputs(self, node: ir.Node) -> list[AnyArray]:
        """Outputs of a node where they are known integers, else nothing."""
        first = node.inputs[0] if node.inputs else None
        if node.op_type == "Shape" and first is not None and first.is_graph_input():
            start = node.attributes.get_int("start", 0)
            end = node.attributes.get_int("end", None)
            return [np.asarray(first.shape, np.int64)[start:end]]
        arrays = [self.get(value) for value in node.inputs]
        known = [array for array in arrays if array is not None]
        if node.domain or not known or len(known) < len(arrays):
            return []
        outputs = self._evaluated(node, known)
        return outputs if all(array.dtype.kind in "ib" for array in outputs) else []

    def _evaluated(self, node: ir.Node, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        ends = [helper.make_empty_tensor_value_info(str(value.name)) for value in (*node.inputs, *node.outputs) if value]
        graph = helper.make_graph([ir.to_proto(node)], "one", ends[: len(arrays)], ends[len(arrays) :])
        one = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)])
        feeds = {str(value.name): array for value, array in zip(node.inputs, arrays, strict=True) if value}
        return [np.asarray(array) for array in ReferenceEvaluator(one).run(None, feeds)]
