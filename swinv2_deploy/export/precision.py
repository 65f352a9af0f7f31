"""Turn an exported FP32 graph into a strongly typed one: FP16 or BF16 with FP32 islands.

Every value's type is decided here and stands in the file, so that no runtime has to choose. What decides is the structure of the
graph, never names, counts or positions of nodes:

- *Arithmetic* runs in half precision, and its parameters are stored in it.
- *Islands* run in FP32: operators that half precision cannot carry (``SINGLE``), what scales their results directly, the sums that
  a softmax reads, and whatever leads to them from sizes and parameters alone, such as the position-bias MLP.
- *Moves* (gathers, transpositions, ...) take the type of what they move; casts stand where values are fewest.
- *Quantization* (Q/DQ pairs) keeps its integers. Its scales are rounded to half precision; a product with a scale that the type
  cannot hold, one beneath FP16's normal numbers, is an island with its scales in FP32.
- Integers, booleans and shapes stay as they are.

There is one cast a value and type. The graph's input and outputs stay float32. ``docs/adr/0007`` tells why each island is one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from swinv2_deploy.errors import ExportError
from swinv2_deploy.export.spec import HalfPrecision
from swinv2_deploy.runtime.emulation import MOVES

DTYPES: Mapping[HalfPrecision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

OPSETS: Mapping[HalfPrecision, int] = {"fp16": 20, "bf16": 22}
"""The first opsets in which every operator of an exported graph takes the type; Conv takes BF16 from 22 on."""

QUANTIZATION = ("QuantizeLinear", "DequantizeLinear")

DIGITS: Mapping[HalfPrecision, float] = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of rounding a normal number."""

ARITHMETIC = frozenset(
    {"Add", "Conv", "Div", "Gelu", "Gemm", "LayerNormalization", "MatMul", "Max", "Min", "Mul", "Relu", "Sub", *QUANTIZATION}
)
"""Operators that run in half precision."""

SINGLE = frozenset(
    {
        "Cast",  # from integers: coordinates
        "Clip",
        "Exp",
        "Log",
        "LpNormalization",
        "Pow",
        "RMSNormalization",
        "Reciprocal",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Resize",
        "Sigmoid",
        "Softmax",
        "Sqrt",
    }
)
"""Operators that run in FP32: sums of squares and of all tokens leave FP16's range, logarithms and exponentials need the digits."""

SCALINGS = frozenset({"Add", "Div", "Max", "Min", "Mul"})
"""Operators that belong to the island whose result they read directly, such as the temperature behind an L2 norm."""

NUMBERS_FROM = {"Pad": (0, 2), "Where": (1, 2), "Concat": None} | dict.fromkeys(("Clip", "Pow", "RMSNormalization"))
"""Places of the inputs that take part in the arithmetic; None is all. Elsewhere the first of moves and of ``SINGLE``."""


def half_from_float32(model: ir.Model, precision: HalfPrecision) -> ir.Model:
    """Retype an exported graph in place.

    Args:
        model: Exported FP32 model, or such a model with Q/DQ pairs.
        precision: Type of everything outside the islands.

    Raises:
        ExportError: When an operator on floats is unknown, or a parameter lies beyond the type's range.
    """
    graph = model.graph
    nodes = _float_nodes(graph)
    _Retyping(graph, precision, nodes, _islands(graph, nodes, precision)).apply()
    graph.opset_imports[""] = max(graph.opset_imports[""], OPSETS[precision])
    return model


Nodes = Mapping[ir.Node, tuple[int, ...]]
"""Nodes that work on floats, in order, with the places of these among their inputs."""


def _float_nodes(graph: ir.Graph) -> Nodes:
    floats = {value for value in (*graph.inputs, *graph.initializers.values()) if value.dtype == ir.DataType.FLOAT}
    found: dict[ir.Node, tuple[int, ...]] = {}
    for node in graph:
        target = ir.DataType(node.attributes["to"].as_int()) if node.op_type == "Cast" else ir.DataType.FLOAT
        places = tuple(place for place, value in enumerate(node.inputs) if value in floats)
        makes_floats = node.op_type == "Cast" and target == ir.DataType.FLOAT
        if node.op_type == "Shape" or not (places or makes_floats):
            continue
        if node.domain or node.op_type not in MOVES | ARITHMETIC | SINGLE:
            raise ExportError(
                f"{node.name} is a {node.domain or 'standard'} {node.op_type} on floats, and whether half precision carries it is "
                "not known; expected one of the operators that export/precision.py lists. Export without --precision, or add the "
                "operator there with a measurement."
            )
        wanted = NUMBERS_FROM.get(node.op_type, None if node.op_type in ARITHMETIC else (0,))
        found[node] = places if wanted is None else tuple(place for place in places if place in wanted)
        if target == ir.DataType.FLOAT and node.op_type != "QuantizeLinear":
            floats.update(node.outputs)
    return found


def _islands(graph: ir.Graph, nodes: Nodes, precision: HalfPrecision) -> set[ir.Node]:
    """Nodes that run in FP32."""
    from_input = _reached(graph, nodes)
    islands: set[ir.Node] = set()
    for node, places in nodes.items():
        values = [node.inputs[place] for place in places]
        square = node.op_type == "Mul" and values[0] is values[-1]
        scaling = node.op_type in SCALINGS and any(_producer(value) in islands for value in values)
        # Logits of eight bits would often tie; FP16 has the digits, and FP32 products do not exist on every GPU that has FP16.
        classifier = precision == "bf16" and node.op_type == "Gemm" and node.outputs[0] in graph.outputs
        if node.op_type in SINGLE or square or scaling or classifier:
            islands.add(node)
        if node.op_type == "MatMul":
            pairs = _quantization_of(node)
            if any(not _fits(pair.inputs[1], precision) for pair in pairs):
                islands.update((node, *pairs))
    feeding = set(islands)
    for node in reversed(list(nodes)):
        readers = [reader for output in node.outputs for reader in output.consumers()]
        if (
            node.op_type == "Add"
            and node in from_input
            and readers
            and all(_is_logit_sum(reader, islands) for reader in readers)
        ):
            islands.add(node)
        if any(reader in feeding for reader in readers) and (node.op_type in MOVES or node not in from_input):
            feeding.add(node)
    for node, places in nodes.items():
        inside = node not in from_input or all(_producer(node.inputs[place]) in islands for place in places)
        if node in feeding and inside:
            islands.add(node)
    return islands


def _quantization_of(product: ir.Node) -> list[ir.Node]:
    """The Q/DQ nodes right before a product."""
    dequantized = [node for node in map(_producer, product.inputs) if node and node.op_type == "DequantizeLinear"]
    quantized = [
        node for node in (_producer(node.inputs[0]) for node in dequantized) if node and node.op_type == "QuantizeLinear"
    ]
    return dequantized + quantized


def _fits(scale: ir.Value | None, precision: HalfPrecision) -> bool:
    """Whether half precision holds every scale to its digits; beneath its normal numbers it has fewer, and none at all."""
    if scale is None or scale.const_value is None:
        return True
    exact = scale.const_value.numpy()
    with np.errstate(over="ignore"):
        rounded = exact.astype(DTYPES[precision].numpy()).astype(np.float32)
    return bool((np.abs(rounded - exact) <= exact * DIGITS[precision]).all())


def _is_logit_sum(reader: ir.Node, islands: set[ir.Node]) -> bool:
    """Whether a node is a softmax, or one of the sums before it that are islands."""
    return reader.op_type == "Softmax" or (reader.op_type == "Add" and reader in islands)


def _reached(graph: ir.Graph, nodes: Nodes) -> set[ir.Node]:
    """Nodes whose values depend on the input, not on its size alone."""
    values = set(graph.inputs)
    found = set()
    for node in nodes:
        if any(value in values for value in node.inputs):
            values.update(node.outputs)
            found.add(node)
    return found


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


class _Retyping:
    """Gives every float its type.

    Args:
        graph: Graph to change.
        precision: Type outside the islands.
        nodes: Nodes that work on floats.
        islands: Those that run in FP32.
    """

    def __init__(self, graph: ir.Graph, precision: HalfPrecision, nodes: Nodes, islands: set[ir.Node]) -> None:
        self.graph = graph
        self.precision = precision
        self.half = DTYPES[precision]
        self.nodes = nodes
        self.types = {node: ir.DataType.FLOAT if node in islands else self.half for node in nodes}
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.stored: dict[ir.Value, ir.Value] = {}

    def apply(self) -> None:
        """Insert casts, store parameters, and close the graph in float32."""
        floats = {node: dtype for node, dtype in self.types.items() if node.op_type != "QuantizeLinear"}
        produced = {output: dtype for node, dtype in floats.items() for output in node.outputs}
        for place, output in enumerate(list(self.graph.outputs)):
            if produced.get(output) == self.half:
                self._close(place, output)
        for node, places in self.nodes.items():
            dtype = self.types[node]
            for place in places:
                value = node.inputs[place]
                if value is None or (value.is_initializer() and dtype != self.half):
                    continue
                if value.is_initializer():
                    node.replace_input_with(place, self._parameter(value))
                elif produced.get(value, ir.DataType.FLOAT) != dtype:
                    node.replace_input_with(place, self._cast(value, dtype))
        self._drop_unused()

    def _close(self, place: int, value: ir.Value) -> None:
        """Return float32 under the old name."""
        name, value.name = value.name, f"{value.name}.{self.precision}"
        output = self._cast(value, ir.DataType.FLOAT)
        output.name, output.type, output.shape = name, value.type, value.shape
        value.type = ir.TensorType(self.half)
        self.graph.outputs[place] = output

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type; all its readers share the cast."""
        if (value, dtype) not in self.casts:
            name = f"{value.name}.to_{self.precision if dtype == self.half else 'fp32'}"
            node = ir.node("Cast", [value], {"to": dtype}, name=name)
            node.outputs[0].name = name
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(next(iter(self.graph)), node)
            else:
                self.graph.insert_after(producer, node)
            self.casts[value, dtype] = node.outputs[0]
        return self.casts[value, dtype]

    def _parameter(self, value: ir.Value) -> ir.Value:
        """The parameter in half precision, beside the one in FP32 as long as an island reads that."""
        if value not in self.stored:
            tensor = self._rounded(value)
            stored = ir.Value(name=tensor.name, type=ir.TensorType(self.half), shape=value.shape, const_value=tensor)
            self.graph.register_initializer(stored)
            self.stored[value] = stored
        return self.stored[value]

    def _rounded(self, value: ir.Value) -> ir.TensorProtocol:
        if value.const_value is None:
            raise ExportError(f"The parameter {value.name} has no content; expected the graph that export has just written.")
        array = value.const_value.numpy()
        with np.errstate(over="ignore"):
            rounded = array.astype(self.half.numpy())
        if np.isfinite(array).all() and not np.isfinite(rounded).all():
            raise ExportError(
                f"The parameter {value.name} reaches {np.abs(array).max():.3g}, beyond the largest {self.precision} number; export "
                f"{'bf16' if self.precision == 'fp16' else 'fp32'} instead."
            )
        return ir.Tensor(rounded, dtype=self.half, name=f"{value.name}.{self.precision}")

    def _drop_unused(self) -> None:
        """Remove FP32 parameters that no island reads, and give their names to those in half precision."""
        initializers = self.graph.initializers
        for value, stored in self.stored.items():
            if value.uses():
                continue
            name = str(value.name)
            del initializers[name], initializers[str(stored.name)]
            stored.name = name
            initializers[name] = stored
