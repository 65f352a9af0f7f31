"""Write Q/DQ pairs into an exported graph: the scales of a calibration table become explicit quantization.

The pattern, one for every runtime: each site's activation passes one QuantizeLinear and one DequantizeLinear that only its Gemm
reads; the weight (in, out) is stored as INT8 with a scale an output channel; the bias stays in float, behind the product. Inside
a Gemm it would have to be INT32 for ONNX Runtime to use integers, and TensorRT reads no INT32 there.
The bias is written as the subtraction of its negative, the same number bit for bit: ONNX Runtime joins an addition with the
MatMul to a Gemm before it looks for integers, and then multiplies in float.
ONNX Runtime turns MatMul into its fastest integer kernel when it loads the file, TensorRT into INT8 GEMMs.

The ``uint8`` flavor is for ONNX Runtime on a CPU alone: the same scales and weights, written as the operator whose kernel is
fastest there, with the bias left in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from swinv2_deploy.errors import QuantizeError
from swinv2_deploy.modeling.sites import LEVELS, operand_of

Flavor = Literal["int8", "uint8"]

CPU_DOMAIN = "com.microsoft"

MOVES = ("Gather", "Pad", "Reshape")
"""Operators of an exported graph that move values, which come first, by what comes second."""


def insert_qdq(model: ir.Model, amax: Mapping[str, float], flavor: Flavor = "int8") -> ir.Model:
    """Quantize the Gemms, and the operands of MatMuls, named in ``amax`` in place.

    Args:
        model: Exported FP32 model.
        amax: Largest magnitude of every site's activation, by site. A site is a Gemm, or an operand of a product of activations.
        flavor: ``int8`` is symmetric signed Q/DQ in standard ONNX, what TensorRT needs. ``uint8`` is the same numbers with 128
            added, multiplied by ONNX Runtime's ``MatMulIntegerToFloat``.

    Raises:
        QuantizeError: When a site is not in the graph, or its scale or weight is zero or not finite.
    """
    gemms = {node.name: node for node in model.graph if node.op_type == "Gemm"}
    products = {node.name: node for node in model.graph if node.op_type == "MatMul"}
    operands = {site: found for site, found in ((site, operand_of(site)) for site in amax) if found and found[0] in products}
    missing = sorted(set(amax) - set(gemms) - set(operands))
    if missing:
        raise QuantizeError(
            f"The graph has no Gemm or product of activations for {missing[:5]}; the calibration table belongs to another model."
        )
    for name in dict.fromkeys(product for product, place in operands.values() if place == 0):
        _scale_behind(model.graph, products[name])
    for name, largest in amax.items():
        if not np.isfinite(largest) or largest <= 0:
            raise QuantizeError(
                f"The range of {name} is {largest}; expected a positive number. Calibrate again on real images."
            )
        scale = np.asarray(largest / LEVELS, np.float32)
        if name in operands:
            product, place = operands[name]
            _quantize_operand(model.graph, products[product], place, scale, flavor)
        elif flavor == "int8":
            _quantize_gemm(model.graph, gemms[name], scale)
        else:
            _integer_product(model.graph, gemms[name], scale)
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


def _quantize_operand(graph: ir.Graph, node: ir.Node, place: int, scale: NDArray[np.float32], flavor: Flavor) -> None:
    """Put a Q/DQ pair before one operand of a product of activations."""
    zero = np.asarray(0, np.int8) if flavor == "int8" else np.asarray(128, np.uint8)
    name = f"{node.name}.{place}"
    parameters = _initializers(graph, name, {"scale": scale, "zero_point": zero})
    quantized = ir.node("QuantizeLinear", [node.inputs[place], *parameters], name=f"{name}.quantize")
    dequantized = ir.node("DequantizeLinear", [quantized.outputs[0], *parameters], name=f"{name}.dequantize")
    for made in (quantized, dequantized):
        made.outputs[0].name = made.name
    graph.insert_before(node, [quantized, dequantized])
    node.replace_input_with(place, dequantized.outputs[0])


def _scale_behind(graph: ir.Graph, node: ir.Node) -> None:
    """Let a product be scaled behind it where its left operand was scaled before: what is quantized is what the model quantizes.

    Normalized queries reach 1 in every head. Scaled by the heads' temperatures, one range would have to hold them all.
    """
    left = node.inputs[0]
    scaling = left.producer() if left is not None else None
    if scaling is None or scaling.op_type != "Mul" or not str(scaling.name).endswith("q_scaled"):
        return
    node.replace_input_with(0, scaling.inputs[0])
    product = node.outputs[0]
    scaled = ir.node("Mul", [product, scaling.inputs[1]], name=f"{node.name}.scaled")
    scaled.outputs[0].name = scaled.name
    scaled.outputs[0].type, scaled.outputs[0].shape = product.type, product.shape
    ir.convenience.replace_all_uses_with(product, scaled.outputs[0])
    scaled.replace_input_with(0, product)
    graph.insert_after(node, scaled)
    graph.remove(scaling, safe=True)


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
