"""Write Q/DQ pairs into an exported graph: the scales of a calibration table become explicit quantization.

The pattern, one for every runtime: each site's activation passes one QuantizeLinear and one DequantizeLinear that only its Gemm
reads; the weight (in, out) is stored as INT8 with a scale an output channel; the bias stays in float, behind the product. Inside
a Gemm it would have to be INT32 for ONNX Runtime to use integers, and TensorRT reads no INT32 there.
The bias is written as the subtraction of its negative, the same number bit for bit: ONNX Runtime joins an addition with the
MatMul to a Gemm before it looks for integers, and then multiplies in float.
ONNX Runtime turns MatMul into its fastest integer kernel when it loads the file, TensorRT into INT8 GEMMs.

A batched product gets a pair at both inputs, each with one scale. What is rounded in queries by keys are the normalized vectors, as
in the reference: the temperature, which the exported graph multiplies into the queries, moves behind the product. One scale then
serves heads of every temperature, and none loses steps to the hottest.

The ``uint8`` flavor is for ONNX Runtime on a CPU alone: the same scales and weights, written as the operator whose kernel is
fastest there, with the bias left in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from swinv2_deploy.errors import QuantizeError
from swinv2_deploy.modeling.sites import LEVELS, input_names, ranges_by_site

Flavor = Literal["int8", "uint8"]

CPU_DOMAIN = "com.microsoft"

MOVES = ("Gather", "Pad", "Reshape")
"""Operators of an exported graph that move values, which come first, by what comes second."""


def insert_qdq(model: ir.Model, amax: Mapping[str, float], flavor: Flavor = "int8") -> ir.Model:
    """Quantize the Gemms and batched products named in ``amax`` in place.

    Args:
        model: Exported FP32 model.
        amax: Largest magnitude of every activation that enters a site, by name.
        flavor: ``int8`` is symmetric signed Q/DQ in standard ONNX, what TensorRT needs. ``uint8`` is the same numbers with 128
            added, multiplied by ONNX Runtime's ``MatMulIntegerToFloat``.

    Raises:
        QuantizeError: When a site is not in the graph or lacks a range, or its scale or weight is zero or not finite.
    """
    sites = ranges_by_site(amax)
    nodes = {node.name: node for node in model.graph if node.op_type in ("Gemm", "MatMul")}
    missing = sorted(site for site in sites if site not in nodes or nodes[site].op_type != _operator(site))
    if missing:
        raise QuantizeError(
            f"The graph has no {_operator(missing[0])} named {missing[:5]}; the calibration table belongs to another model."
        )
    for name, largest in amax.items():
        if not np.isfinite(largest) or largest <= 0:
            raise QuantizeError(
                f"The range of {name} is {largest}; expected a positive number. Calibrate again on real images."
            )
    for site, ranges in sites.items():
        scales = [np.asarray(largest / LEVELS, np.float32) for largest in ranges]
        if nodes[site].op_type == "MatMul":
            _quantize_batched(model.graph, nodes[site], scales, flavor)
        elif flavor == "int8":
            _quantize_gemm(model.graph, nodes[site], scales[0])
        else:
            _integer_product(model.graph, nodes[site], scales[0])
    if flavor == "uint8":
        model.graph.opset_imports[CPU_DOMAIN] = 1
    for unused in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[unused]
    return model


def quantize_weight(weight: NDArray[np.float32], name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """INT8 values and one scale a row of a weight (out, in).

    Raises:
        QuantizeError: When the weight is not finite.
    """
    largest = np.abs(weight).max(axis=1)
    if not np.isfinite(largest).all():
        raise QuantizeError(f"The weight of {name} holds NaN or infinity; the checkpoint is damaged.")
    # A row of zeros quantizes to zeros at any scale.
    scale = np.where(largest > 0, largest / LEVELS, 1.0).astype(np.float32)
    return np.clip(np.rint(weight / scale[:, None]), -LEVELS, LEVELS).astype(np.int8), scale


def _quantize_gemm(graph: ir.Graph, node: ir.Node, scale: NDArray[np.float32]) -> None:
    """Replace a Gemm by a MatMul behind Q/DQ pairs."""
    name = str(node.name)
    values, weight_scale = quantize_weight(_array(node.inputs[1], name), name)
    activation = _initializers(graph, f"{name}.input", {"scale": scale, "zero_point": np.asarray(0, np.int8)})
    stored = _initializers(
        graph, f"{name}.weight", {"int8": values.T, "scale": weight_scale, "zero_point": np.zeros(len(values), np.int8)}
    )
    quantized = ir.node("QuantizeLinear", [node.inputs[0], *activation], name=f"{name}.input.quantize")
    dequantized = ir.node("DequantizeLinear", [quantized.outputs[0], *activation], name=f"{name}.input.dequantize")
    weight = ir.node("DequantizeLinear", stored, {"axis": 1}, name=f"{name}.weight.dequantize")
    product = ir.node("MatMul", [dequantized.outputs[0], weight.outputs[0]], name=name)
    new = [quantized, dequantized, weight, product]
    for made in new:
        made.outputs[0].name = made.name
    if len(node.inputs) > 2:
        [bias] = _initializers(graph, f"{name}.bias", {"negative": -_array(node.inputs[2], name)})
        new.append(ir.node("Sub", [product.outputs[0], bias], name=f"{name}.add_bias"))
        product.outputs[0].name = f"{name}.product"
    _take_place(node.outputs[0], new[-1].outputs[0])
    graph.insert_before(node, new)
    graph.remove(node, safe=True)


def _quantize_batched(graph: ir.Graph, node: ir.Node, scales: Sequence[NDArray[np.float32]], flavor: Flavor) -> None:
    """Round both inputs of a MatMul of two activations: behind Q/DQ pairs, or as bytes in a product of integers."""
    site = str(node.name)
    if site.endswith(".qk"):
        node = _temperature_behind(graph, node)
    # Unsigned by unsigned is exact on every CPU, and the second tensor is no weight that could be prepared for signs.
    offset = np.asarray(0, np.int8) if flavor == "int8" else np.asarray(128, np.uint8)
    stored = []
    for place, (name, scale) in enumerate(zip(input_names(site), scales, strict=True)):
        activation = _initializers(graph, name, {"scale": scale, "zero_point": offset})
        made = [ir.node("QuantizeLinear", [node.inputs[place], *activation], name=f"{name}.quantize")]
        if flavor == "int8":
            made.append(ir.node("DequantizeLinear", [made[0].outputs[0], *activation], name=f"{name}.dequantize"))
        for new in made:
            new.outputs[0].name = new.name
        graph.insert_before(node, made)
        node.replace_input_with(place, made[-1].outputs[0])
        stored.append(activation)
    if flavor == "uint8":
        (first, first_offset), (second, second_offset) = stored
        inputs = [node.inputs[0], _before_transpose(graph, node.inputs[1]), first, second, first_offset, second_offset]
        product = ir.node("MatMulIntegerToFloat", inputs, domain=CPU_DOMAIN, name=site)
        _take_place(node.outputs[0], product.outputs[0])
        graph.insert_before(node, product)
        graph.remove(node, safe=True)


def _temperature_behind(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Multiply queries by keys with the temperature instead of the queries; the product of normalized vectors."""
    scaling = None if node.inputs[0] is None else node.inputs[0].producer()
    if scaling is None or scaling.op_type != "Mul":
        raise QuantizeError(
            f"The queries of {node.name} come from {'the input' if scaling is None else scaling.op_type}; expected normalized "
            "queries times their temperature, as this version exports them. Export again."
        )
    values, factor = scaling.inputs
    product = ir.node("MatMul", [values, node.inputs[1]], name=node.name)
    product.outputs[0].name = f"{node.name}.product"
    scaled = ir.node("Mul", [product.outputs[0], factor], name=scaling.name)
    _take_place(node.outputs[0], scaled.outputs[0])
    graph.insert_before(node, [product, scaled])
    graph.remove([node, scaling], safe=True)
    return product


def _before_transpose(graph: ir.Graph, value: ir.Value | None) -> ir.Value | None:
    """Quantize before a transposition instead of behind it, so that it moves bytes; the value to read then."""
    quantize = None if value is None else value.producer()
    moved = None if quantize is None else quantize.inputs[0]
    transpose = None if moved is None else moved.producer()
    if quantize is None or transpose is None or transpose.op_type != "Transpose" or len(transpose.outputs[0].uses()) > 1:
        return value
    quantize.replace_input_with(0, transpose.inputs[0])
    transpose.replace_input_with(0, value)
    transpose.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    graph.remove(transpose)
    graph.insert_after(quantize, transpose)
    return transpose.outputs[0]


def _operator(site: str) -> str:
    return "Gemm" if len(input_names(site)) == 1 else "MatMul"


def _take_place(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of ``old`` read ``new``, under the name it knows."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _integer_product(graph: ir.Graph, node: ir.Node, scale: NDArray[np.float32]) -> None:
    """Replace a Gemm by a quantization and a product of integers."""
    name = str(node.name)
    values, weight_scale = quantize_weight(_array(node.inputs[1], name), name)
    activation = _initializers(graph, f"{name}.input", {"scale": scale, "zero_point": np.asarray(128, np.uint8)})
    stored = _initializers(graph, f"{name}.weight", {"int8": values.T, "scale": weight_scale})
    moved = _quantize_before_moves(graph, node, activation, name)
    inputs: list[ir.Value | None] = [moved, stored[0], activation[0], stored[1], activation[1]]
    if len(node.inputs) > 2:
        inputs += [None, node.inputs[2]]
    product = ir.node("MatMulIntegerToFloat", inputs, domain=CPU_DOMAIN, name=name)
    _take_place(node.outputs[0], product.outputs[0])
    graph.insert_before(node, product)
    graph.remove(node, safe=True)


def _quantize_before_moves(graph: ir.Graph, node: ir.Node, activation: list[ir.Value], name: str) -> ir.Value | None:
    """Quantize what enters ``node`` before its values are only moved about, so that bytes move instead of floats.

    Padding zeros then become the zero point, which is what zero quantizes to.
    """
    moves: list[ir.Node] = []
    value = node.inputs[0]
    while value is not None and len(value.uses()) == 1:
        producer = value.producer()
        if producer is None or producer.op_type not in MOVES or len(producer.inputs) != 2:
            break
        moves.append(producer)
        value = producer.inputs[0]
    quantized = ir.node("QuantizeLinear", [value, *activation], name=f"{name}.input.quantize")
    quantized.outputs[0].name = quantized.name
    graph.insert_before(moves[-1] if moves else node, quantized)
    if not moves:
        return quantized.outputs[0]
    moves[-1].replace_input_with(0, quantized.outputs[0])
    for move in moves:
        move.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        if move.op_type == "Pad":
            move.resize_inputs(3)
            move.replace_input_with(2, activation[1])
    return node.inputs[0]


def _initializers(graph: ir.Graph, prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> list[ir.Value]:
    values = []
    for name, array in arrays.items():
        full = f"{prefix}.{name}"
        tensor = ir.Tensor(np.ascontiguousarray(array) if array.ndim else array, name=full)
        value = ir.Value(name=full, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        graph.register_initializer(value)
        values.append(value)
    return values


def _array(value: ir.Value | None, name: str) -> NDArray[np.float32]:
    if value is None or value.const_value is None:
        raise QuantizeError(f"The weights of {name} are not stored in the file; expected an exported FP32 graph.")
    return np.asarray(value.const_value.numpy())
