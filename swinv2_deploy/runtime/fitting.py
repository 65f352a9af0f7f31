"""A graph for any size, fitted to one: as if that size had been exported, with the weights and ranges that the file has.

What the size decides is computed once. Rows of zeros that no token reads are not put before the tokens any more, and small windows
get an axis for the image, as in a file of one size.

Shape letters: B batch, n windows of an image, k heads, N tokens of a window, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from swinv2_deploy.runtime.known_integers import KnownIntegers

JOINED_TOKENS = 256
"""Tokens of a window from which a graph of a known size keeps the windows of all images on one axis.

OpenVINO makes one kernel of an attention with four axes, and not of one with five. That is 1.2 times as fast with windows of 24
tokens a side, and slower with windows of 8."""

_PRODUCTS = frozenset({"Gemm", "MatMul", "MatMulIntegerToFloat"})
_BY_ROW = frozenset({"Add", "Cast", "DequantizeLinear", "QuantizeLinear", "Sub"})
"""Operators beside products that make every row from the same row of what they read first, where all else is the same for all."""

_BY_PLACE = frozenset({"Add", "Cast", "LpNormalization", "Mul", "Softmax"})
"""Operators of an attention that an axis in front does not change, as long as the axis they have themselves is the last one."""


def fitted(path: Path, shapes: Mapping[str, Sequence[int]]) -> ir.Model:
    """The graph of a file, fitted; weights outside of the file stay there.

    Args:
        path: File that ``export`` or ``quantize`` wrote.
        shapes: Shape of every input by name, see `pinned_shapes`.
    """
    model = ir.load(path)
    fit(model, shapes)
    return model


def fit(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Fit a graph in place, see `fitted`."""
    axes = [pair for value in model.graph.inputs for pair in zip(value.shape or (), shapes[str(value.name)], strict=True)]
    lengths = {axis: length for axis, length in axes if isinstance(axis, ir.SymbolicDim)}
    known = KnownIntegers(model, shapes)
    for value in model.graph.outputs:
        value.shape = ir.Shape([axis if isinstance(axis, int) else lengths.get(axis, axis) for axis in value.shape or ()])
    for pad in [node for node in model.graph if node.op_type == "Pad"]:
        _drop_zero_row(model.graph, pad, known)
    batch = next(iter(shapes.values()))[0]
    for reads in _attention_reads(model.graph, known):
        _part_images(model.graph, reads, known, batch)
    known.store()


def serialized(model: ir.Model) -> bytes:
    """A graph as a runtime reads it from memory; where a file has weights outside of it, they are not inside."""
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _drop_zero_row(graph: ir.Graph, pad: ir.Node, known: KnownIntegers) -> None:
    """Take a row of padding away from before the tokens (rows, C), where whatever is gathered later reads none of it."""
    pads = known.get(pad.inputs[1])
    if pads is None or pads.tolist() != [1, 0, 0, 0] or pad.attributes.get_string("mode", "constant") != "constant":
        return
    found = _readers(pad.outputs[0], known)
    if found is None:
        return
    readers, rows = found
    indices = [known.get(node.inputs[1]) for node in readers]
    if any(index is None or index.min() < rows for index in indices):
        return
    for node, index in zip(readers, indices, strict=True):
        if index is not None:
            node.replace_input_with(1, known.constant(index - rows, f"{node.name}.index"))
    for node, place in list(pad.outputs[0].uses()):
        node.replace_input_with(place, pad.inputs[0])
    graph.remove(pad, safe=True)


def _readers(tokens: ir.Value, known: KnownIntegers) -> tuple[list[ir.Node], int] | None:
    """The nodes that gather rows of what tokens (rows, C) become, and how many of these rows a token makes; None where unsure."""
    rows, width = 1, None
    while True:
        readers = [node for node, _ in tokens.uses()]
        if readers and all(node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 for node in readers):
            return (readers, rows) if all(node.inputs[0] is tokens for node in readers) else None
        if len(readers) != 1 or tokens.is_graph_output() or readers[0].inputs[0] is not tokens:
            return None
        node = readers[0]
        if node.op_type in _PRODUCTS:
            if node.attributes.get_int("transA", 0) or not all(_for_all_rows(value) for value in node.inputs[2:]):
                return None
            width = _columns(node)
        elif node.op_type == "Reshape":
            shape = known.get(node.inputs[1])
            if width is None or shape is None or shape.size != 2 or shape[0] != -1 or width % shape[1]:
                return None
            rows, width = rows * (width // int(shape[1])), int(shape[1])
        elif node.op_type not in _BY_ROW or not all(_for_all_rows(value) for value in node.inputs[1:]):
            return None
        tokens = node.outputs[0]


def _for_all_rows(value: ir.Value | None) -> bool:
    """Whether an input is the same for every row: a bias, a scale or a zero point."""
    return value is None or (value.is_initializer() and value.shape is not None and len(value.shape) <= 1)


def _columns(product: ir.Node) -> int | None:
    """Width of what a linear layer makes; None where its weight is not stored."""
    weight = product.inputs[1]
    while weight is not None and weight.producer() is not None:
        weight = weight.producer().inputs[0]  # type: ignore[union-attr]
    if weight is None or weight.shape is None or len(weight.shape) != 2:
        return None
    axis = weight.shape[1 - product.attributes.get_int("transB", 0)]
    return axis if isinstance(axis, int) else None


def _attention_reads(graph: ir.Graph, known: KnownIntegers) -> Iterator[list[ir.Node]]:
    """The three nodes of every attention that gather queries, keys and values, by indices (B*n, k, N)."""
    for node in list(graph):
        for output in node.outputs:
            readers = [reader for reader, _ in output.uses()]
            if len(readers) == 3 and all(reader.op_type == "Gather" and reader.inputs[0] is output for reader in readers):
                indices = [known.get(reader.inputs[1]) for reader in readers]
                if all(index is not None and index.ndim == 3 for index in indices):
                    yield readers


def _part_images(graph: ir.Graph, reads: Sequence[ir.Node], known: KnownIntegers, batch: int) -> None:
    """Give an attention with small windows an axis for the image: (B*n, k, N, ...) becomes (B, n, k, N, ...)."""
    first = known.get(reads[0].inputs[1])
    if first is None or first.shape[2] >= JOINED_TOKENS or len(first) <= batch or len(first) % batch:
        return
    shape = (batch, len(first) // batch, *first.shape[1:])
    found = _attention(reads, known, len(first))
    if found is None:
        return
    turned, masked = found
    for node in reads:
        index = known.get(node.inputs[1])
        if index is not None:
            node.replace_input_with(1, known.constant(index.reshape(shape), f"{node.name}.index"))
    for node in turned:
        node.attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 4, 3])
    places = shape[-1]
    for node, place in masked:
        mask = node.inputs[place]
        sizes = known.constant(np.asarray([*shape[:2], 1, places, places], np.int64), "mask_sizes")
        parted = ir.node("Reshape", [mask, sizes], name=f"{node.name}.mask_by_image")
        parted.outputs[0].name = parted.name
        graph.insert_before(node, parted)
        node.replace_input_with(place, parted.outputs[0])


def _attention(
    reads: Sequence[ir.Node], known: KnownIntegers, windows: int
) -> tuple[list[ir.Node], list[tuple[ir.Node, int]]] | None:
    """From where queries, keys and values are gathered to where the result is (rows, d) again: what depends on the number of axes.

    Returns:
        The nodes that turn the last two axes, and those that read a mask of ``windows`` windows, each with the mask's place among
        its inputs. None where there is anything else.
    """
    inside = {node.outputs[0] for node in reads}
    ahead, nodes = list(inside), set[ir.Node]()
    while ahead:
        for node, _ in ahead.pop().uses():
            shape = known.get(node.inputs[1]) if node.op_type == "Reshape" else None
            if shape is not None and shape.size == 2 and shape[0] == -1:
                continue
            if not (node.op_type == "MatMul" or _turns(node) or _by_place(node, known)):
                return None
            if node not in nodes:
                nodes.add(node)
                inside.add(node.outputs[0])
                ahead.append(node.outputs[0])
    masked = []
    for node in nodes:
        for place, value in enumerate(node.inputs):
            if value is None or value in inside:
                continue
            axes = None if node.op_type == "MatMul" else _axes(value, known)
            if axes is None or axes > 3:
                if axes is None or not _is_mask(value, known, windows):
                    return None
                masked.append((node, place))
    return [node for node in nodes if _turns(node)], masked


def _turns(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes.get_ints("perm", ())) == (0, 1, 3, 2)


def _by_place(node: ir.Node, known: KnownIntegers) -> bool:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _axes(node.inputs[1], known) == 0
    return node.op_type in _BY_PLACE and node.attributes.get_int("axis", -1) == -1


def _is_mask(value: ir.Value, known: KnownIntegers, windows: int) -> bool:
    """Whether a value of four axes is a mask (B*n, 1, N, N): of a few masks, one a window was taken."""
    producer = value.producer()
    while producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    index = known.get(producer.inputs[1]) if producer is not None and producer.op_type == "Gather" else None
    return index is not None and index.shape == (windows, 1)


def _axes(value: ir.Value | None, known: KnownIntegers) -> int | None:
    """How many axes a value has, or None where unsure."""
    if value is None:
        return None
    array, producer = known.get(value), value.producer()
    if array is not None:
        return array.ndim
    if producer is None:
        return None if value.shape is None else len(value.shape)
    if producer.op_type == "Reshape":
        shape = known.get(producer.inputs[1])
        return None if shape is None else shape.size
    axes = [_axes(item, known) for item in producer.inputs]
    if producer.op_type in ("Split", "Transpose", "Cast"):
        return axes[0]
    if None in axes or producer.op_type not in ("Gather", "Add", "Mul", "Sub", "Where"):
        return None
    counts = [count for count in axes if count is not None]
    return sum(counts) - 1 if producer.op_type == "Gather" else max(counts)
