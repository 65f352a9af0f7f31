"""L2 norms as the graph says them, in a model that OpenVINO has read.

OpenVINO reads LpNormalization as ``x / sqrt(sum(x * x) + 1.19e-7)``. ONNX adds nothing there, nor do PyTorch and ONNX Runtime. A
vector of length n comes out shorter by a factor of ``1.19e-7 / (2 * n * n)``: nothing at lengths around one, six percent at a
thousandth, as queries and keys of hidden patches have in a masked image model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from openvino import Model

ADDED = float(np.finfo(np.float32).eps)
"""What OpenVINO's reader adds."""

FLOOR = 1e-24
"""What stands there afterwards: the square of the least length that PyTorch divides by, and enough to keep a vector of zeros one.

Float32 and bfloat16 hold it; float16 does not, and would divide zero by zero."""


def exact_norms(model: Model) -> int:
    """Replace what OpenVINO's reader added under the roots of L2 norms. For float32 and bfloat16.

    Args:
        model: What ``read_model`` returned; changed in place.

    Returns:
        How many norms were changed.
    """
    from openvino import opset13

    changed = 0
    for root in model.get_ordered_ops():
        if root.get_type_name() != "Sqrt":
            continue
        total: Any = root.input_value(0).get_node()
        if total.get_type_name() != "Add":
            continue
        kinds = [total.input_value(place).get_node().get_type_name() for place in (0, 1)]
        if sorted(kinds) != ["Constant", "ReduceSum"]:
            continue
        place = kinds.index("Constant")
        added = total.input_value(place).get_node().data
        if added.size == 1 and float(added.reshape(-1)[0]) == ADDED:
            floor = opset13.constant(np.full(added.shape, FLOOR, added.dtype))
            total.input(place).replace_source_output(floor.output(0))
            changed += 1
    return changed
