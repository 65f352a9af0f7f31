"""A small builder of ONNX graphs: named nodes, shared constants, and arithmetic that folds what is known.

Sizes are int64 vectors. Whatever is computed from constants alone is computed while exporting and stored, so that one way of
writing the graph serves static and dynamic sizes, and a static export carries no shape computation at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

AnyArray = NDArray[Any]

OPSET = 20
IR_VERSION = 10
"""The newest that every supported runtime reads."""


class GraphBuilder:
    """Collects nodes and initializers in order, under unique, readable names.

    Args:
        prefix: Put before the names of constants, where the graph will be joined to another.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._tape = Tape()
        self._scope: list[str] = []
        self._names: dict[str, int] = {}
        self._constants: dict[str, ir.Value] = {}
        self._known: dict[int, AnyArray] = {}
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
        """Add a node with one output, find the same one made before, or compute it where every input is a constant."""
        if op_type in _FOLDED:
            known = [self._known.get(id(value)) for value in inputs]
            arrays = [array for array in known if array is not None]
            if len(arrays) == len(known):
                return self.constant(_FOLDED[op_type](arrays, attributes))
        return self._add(op_type, inputs, name, attributes, 1)[0]

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int, name: str) -> list[ir.Value]:
        """Split along an axis into parts of the given sizes."""
        if len(sizes) == 1:
            return [value]
        known = self.known(value)
        if known is not None:
            return [self.constant(part) for part in np.split(known, np.cumsum(sizes)[:-1], axis)]
        return self._add("Split", (value, self.ints(*sizes)), name, {"axis": axis}, len(sizes))

    def weight(self, name: str, array: AnyArray) -> ir.Value:
        """An initializer named exactly ``name``: a parameter of the model."""
        tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
        return self._tape.initializer(tensor, name)

    def constant(self, array: AnyArray) -> ir.Value:
        """A shared initializer: the same content is stored once."""
        # np.ascontiguousarray would make a vector of a scalar.
        array = np.array(array, order="C")
        key = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()
        if key not in self._constants:
            name = f"{self._prefix}constant_{len(self._constants)}"
            value = self._tape.initializer(ir.Tensor(array, name=name), name)
            self._constants[key] = value
            self._known[id(value)] = array
        return self._constants[key]

    def known(self, value: ir.Value) -> AnyArray | None:
        """The content of a value that does not depend on the input, or None."""
        return self._known.get(id(value))

    def stored_index(self, value: ir.Value) -> ir.Value:
        """An index as it is, or in half the space where it is a constant."""
        known = self.known(value)
        return value if known is None else self.constant(known.astype(np.int32))

    def ints(self, *values: int) -> ir.Value:
        """A constant int64 vector."""
        return self.constant(np.asarray(values, np.int64))

    def float(self, value: float) -> ir.Value:
        """A constant float32 scalar."""
        return self.constant(np.asarray(value, np.float32))

    def shape(self, *sizes: int | ir.Value) -> ir.Value:
        """A shape from known sizes and int64 vectors; -1 lets one be inferred."""
        parts: list[ir.Value] = []
        run: list[int] = []
        for size in sizes:
            known = [size] if isinstance(size, int) else self.known(size)
            if known is not None:
                run += [int(item) for item in known]
                continue
            if run:
                parts.append(self.ints(*run))
                run = []
            if isinstance(size, ir.Value):
                parts.append(size)
        if run:
            parts.append(self.ints(*run))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0, name="shape")

    def reshape(self, value: ir.Value, *sizes: int | ir.Value, name: str = "reshape") -> ir.Value:
        """Reshape to known sizes and int64 vectors."""
        shape = self.shape(*sizes)
        # A computed 0 could mean "as before", and TensorRT then reserves memory for both readings.
        attributes = {} if self.known(shape) is not None else {"allowzero": 1}
        return self.op("Reshape", value, shape, name=name, **attributes)

    def range(self, stop: ir.Value, start: int = 0) -> ir.Value:
        """start, start+1, ... stop-1 for a scalar ``stop``, int64."""
        first, one = self.constant(np.asarray(start, np.int64)), self.constant(np.asarray(1, np.int64))
        return self.op("Range", first, stop, one, name="range")

    def product(self, vector: ir.Value) -> ir.Value:
        """Product of a vector as a scalar."""
        return self.op("ReduceProd", vector, keepdims=0, name="product")

    def slice(self, value: ir.Value, starts: ir.Value, ends: ir.Value, axes: tuple[int, ...], name: str = "slice") -> ir.Value:
        """The part of some axes from ``starts`` to ``ends``."""
        return self.op("Slice", value, starts, ends, self.ints(*axes), name=name)

    def model(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], *, name: str, producer_version: str) -> ir.Model:
        """The finished model, nodes in the order they were added, without what nothing reads."""
        nodes: list[ir.Node] = []
        needed = {id(value) for value in outputs}
        for node in reversed(self._tape.nodes):
            if any(id(value) in needed for value in node.outputs):
                nodes.append(node)
                needed |= {id(value) for value in node.inputs if value is not None}
        initializers = [value for value in self._tape.initializers if id(value) in needed]
        graph = ir.Graph(inputs, outputs, nodes=nodes[::-1], initializers=initializers, opset_imports={"": OPSET}, name=name)
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="swinv2-deploy", producer_version=producer_version)

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
        outputs = self._tape.op_multi_out(
            op_type, inputs, attributes or None, outputs=[ir.Value(name=item) for item in names], name=full
        )
        return list(outputs)

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else f"{name}_{count}"


def _slice(inputs: Sequence[AnyArray], _: Mapping[str, Any]) -> AnyArray:
    value, starts, ends, axes = inputs
    parts = [slice(None)] * value.ndim
    for axis, start, end in zip(axes, starts, ends, strict=True):
        parts[int(axis)] = slice(int(start), int(end))
    return value[tuple(parts)]


def _pad(inputs: Sequence[AnyArray], _: Mapping[str, Any]) -> AnyArray:
    value, pads = inputs
    return np.pad(value, list(zip(pads[: value.ndim].tolist(), pads[value.ndim :].tolist(), strict=True)))


_FOLDED: Mapping[str, Callable[[Sequence[AnyArray], Mapping[str, Any]], AnyArray]] = {
    "Add": lambda x, _: x[0] + x[1],
    "Sub": lambda x, _: x[0] - x[1],
    "Mul": lambda x, _: x[0] * x[1],
    "Div": lambda x, _: x[0] // x[1] if x[0].dtype == np.int64 else x[0] / x[1],
    "Mod": lambda x, _: x[0] % x[1],
    "Min": lambda x, _: np.minimum(x[0], x[1]),
    "Concat": lambda x, a: np.concatenate(x, a["axis"]),
    "Gather": lambda x, a: np.take(x[0], x[1], a.get("axis", 0)),
    "Pad": _pad,
    "Range": lambda x, _: np.arange(int(x[0]), int(x[1]), int(x[2]), dtype=np.int64),
    "ReduceProd": lambda x, a: np.asarray(np.prod(x[0], keepdims=bool(a["keepdims"]))),
    "Reshape": lambda x, _: x[0].reshape(x[1].tolist()),
    "Slice": _slice,
    "Transpose": lambda x, a: x[0].transpose(a["perm"]),
    "Unsqueeze": lambda x, _: np.expand_dims(x[0], x[1].tolist()),
}
"""Operators of index arithmetic. Not among them, on purpose: those that make a large constant of small ones, as of a mask."""
