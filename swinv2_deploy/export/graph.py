"""A small builder of ONNX graphs: named nodes, shared constants, and shape arithmetic that folds what is known.

A size is an :data:`Int`: a Python int where it is known while exporting, or a graph value of shape [1] (int64) where it is not.
Arithmetic on two ints stays in Python, so that a static export carries no shape computation at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

Int = int | ir.Value

OPSET = 20
IR_VERSION = 10
"""The newest that every supported runtime reads."""


class GraphBuilder:
    """Collects nodes and initializers in order, under unique, readable names."""

    def __init__(self) -> None:
        self._tape = Tape()
        self._scope: list[str] = []
        self._names: dict[str, int] = {}
        self._constants: dict[str, ir.Value] = {}
        self._made: dict[tuple[Any, ...], list[ir.Value]] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything made inside."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    @contextmanager
    def root_scope(self, name: str) -> Iterator[None]:
        """Like :meth:`scope`, but counted from the root: for values that belong to no single block."""
        outer, self._scope = self._scope, [name]
        try:
            yield
        finally:
            self._scope = outer

    def op(self, op_type: str, *inputs: ir.Value | None, name: str | None = None, **attributes: Any) -> ir.Value:
        """Add a node with one output, or find the same one made before."""
        return self._add(op_type, inputs, name, attributes, 1)[0]

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int, name: str) -> list[ir.Value]:
        """Split along an axis into parts of the given sizes."""
        return self._add("Split", (value, self.ints(*sizes)), name, {"axis": axis}, len(sizes))

    def weight(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initializer named exactly ``name``: a parameter of the model."""
        tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
        return self._tape.initializer(tensor, name)

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """A shared initializer: the same content is stored once."""
        key = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._tape.initializer(ir.Tensor(np.ascontiguousarray(array), name=name), name)
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """A constant int64 vector."""
        return self.constant(np.asarray(values, np.int64))

    def shape(self, *sizes: Int) -> ir.Value:
        """A shape vector from known and unknown sizes; -1 lets one be inferred."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(*(size for size in sizes if isinstance(size, int)))
        parts: list[ir.Value] = []
        known: list[int] = []
        for size in sizes:
            if isinstance(size, int):
                known.append(size)
                continue
            if known:
                parts.append(self.ints(*known))
                known = []
            parts.append(size)
        if known:
            parts.append(self.ints(*known))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0, name="shape")

    def reshape(self, value: ir.Value, *sizes: Int, name: str = "reshape") -> ir.Value:
        """Reshape to known and unknown sizes."""
        return self.op("Reshape", value, self.shape(*sizes), name=name)

    def as_vector(self, size: Int) -> ir.Value:
        """A size as a vector of one element."""
        return self.ints(size) if isinstance(size, int) else size

    def range(self, size: Int) -> ir.Value:
        """0, 1, ... size-1, int64."""
        if isinstance(size, int):
            return self.constant(np.arange(size, dtype=np.int64))
        zero, one = self.constant(np.asarray(0, np.int64)), self.constant(np.asarray(1, np.int64))
        return self.op("Range", zero, self.op("Squeeze", size, name="scalar"), one, name="range")

    def add(self, a: Int, b: Int) -> Int:
        """a + b."""
        return a + b if isinstance(a, int) and isinstance(b, int) else self._arithmetic("Add", a, b)

    def subtract(self, a: Int, b: Int) -> Int:
        """a - b."""
        return a - b if isinstance(a, int) and isinstance(b, int) else self._arithmetic("Sub", a, b)

    def multiply(self, a: Int, b: Int) -> Int:
        """a * b."""
        return a * b if isinstance(a, int) and isinstance(b, int) else self._arithmetic("Mul", a, b)

    def minimum(self, a: Int, b: Int) -> Int:
        """The smaller of a and b."""
        return min(a, b) if isinstance(a, int) and isinstance(b, int) else self._arithmetic("Min", a, b)

    def ceil_divide(self, a: Int, b: Int) -> Int:
        """a / b rounded up, for positive numbers."""
        if isinstance(a, int) and isinstance(b, int):
            return -(-a // b)
        return self._arithmetic("Div", self.subtract(self.add(a, b), 1), b)

    def model(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], *, name: str, producer_version: str) -> ir.Model:
        """The finished model, nodes in the order they were added, unused initializers dropped."""
        initializers = [value for value in self._tape.initializers if value.uses() or value in outputs]
        graph = ir.Graph(inputs, outputs, nodes=self._tape.nodes, initializers=initializers, opset_imports={"": OPSET}, name=name)
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="swinv2-deploy", producer_version=producer_version)

    def _arithmetic(self, op_type: str, a: Int, b: Int) -> ir.Value:
        return self.op(op_type, self.as_vector(a), self.as_vector(b), name=op_type.lower())

    def _add(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str | None, attributes: dict[str, Any], count: int
    ) -> list[ir.Value]:
        # Every operator is pure, so the same one on the same values is made once.
        key = (op_type, *(id(value) for value in inputs), repr(sorted(attributes.items())))
        if key not in self._made:
            self._made[key] = self._make(op_type, inputs, name, attributes, count)
        return self._made[key]

    def _make(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str | None, attributes: dict[str, Any], count: int
    ) -> list[ir.Value]:
        full = self._unique(".".join([*self._scope, name or op_type.lower()]))
        names = [full] if count == 1 else [f"{full}.{i}" for i in range(count)]
        outputs = self._tape.op_multi_out(op_type, inputs, attributes or None, outputs=[ir.Value(name=item) for item in names], name=full)
        return list(outputs)

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else f"{name}_{count}"
