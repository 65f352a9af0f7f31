"""Preprocessing written as an ONNX graph: the bytes of a photograph of any size to the very pixels that Pillow makes of them.

Pillow resizes each axis by a product with weights in fixed point and rounds to bytes in between. No runtime's ``Resize`` does
exactly that, and no two do the same, so the weights are computed here from the size of the photograph and multiplied as matrices.
The 22 fractional bits of a weight are split in two halves, whose products with bytes float32 holds exactly; their sum is taken in
int32, as in Pillow.

Shape letters: B batch, H W height and width of the photographs, h w of the model's input, all in px.

Source: Pillow 13.0, libImaging/Resample.c: ``precompute_coeffs``, ``normalize_coeffs_8bpc``, ``ImagingResampleHorizontal_8bpc``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import PIL

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import UnsupportedModelError
from swinv2_deploy.export.graph import GraphBuilder

FRACTION_BITS = 22
"""Of a weight in Pillow's fixed point."""

LOW = 2**11
"""What the upper half of a weight counts in."""

FILTERS = ("bicubic", "bilinear")

HEIGHT_FIRST_SINCE = 13
"""Pillow's version that resizes the height first where it loses more than twice as many px as the width; else the width is first.

The order moves single pixels of a hard edge by several levels, so a graph keeps the order of the Pillow it was exported with."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a resize: ``given`` px become ``resized`` px, of which ``count`` are kept from ``first`` on; int64 scalars."""

    given: ir.Value
    resized: ir.Value
    first: ir.Value
    count: ir.Value


class PreprocessingGraph:
    """Writes the nodes of one recipe.

    Args:
        graph: Where they go.
        preprocessing: The recipe.

    Raises:
        UnsupportedModelError: When its filter has no graph.
    """

    def __init__(self, graph: GraphBuilder, preprocessing: Preprocessing) -> None:
        if preprocessing.interpolation not in FILTERS:
            raise UnsupportedModelError(
                f"The preprocessing resizes with {preprocessing.interpolation!r}, which cannot be written into the graph; expected "
                f"one of {list(FILTERS)}. Leave out --bake-preprocessing and preprocess in Python."
            )
        self.graph = graph
        self.preprocessing = preprocessing

    def write(self, images: ir.Value) -> ir.Value:
        """Pixels (B, 3, h, w) float32, normalized, of photographs (B, H, W, 3) uint8 RGB."""
        graph, recipe = self.graph, self.preprocessing
        with graph.scope("preprocessing"):
            rows, columns = self._axes(images)
            if int(PIL.__version__.split(".")[0]) < HEIGHT_FIRST_SINCE:
                x = self._resized(images, columns, rows)
            else:
                x = self._resized_in_order(images, rows, columns)
            shape = (1, 3, 1, 1)
            mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (recipe.mean, recipe.std))
            x = graph.op("Div", x, graph.float(255.0), name="scaled")
            x = graph.op("Sub", x, graph.constant(mean), name="centered")
            return graph.op("Div", x, graph.constant(std), name="normalized")

    def _axes(self, images: ir.Value) -> tuple[Axis, Axis]:
        """Height and width: the short side to its length, the long one in proportion rounded down, and the center of both."""
        graph, recipe = self.graph, self.preprocessing
        given = graph.op("Shape", images, start=1, end=3, name="size")
        size = graph.ints(*recipe.size)
        if recipe.resize_shortest is None:
            resized, first = size, graph.ints(0, 0)
        else:
            short = graph.op("ReduceMin", given, keepdims=1, name="short_side")
            scaled = graph.op("Mul", given, graph.ints(recipe.resize_shortest), name="size_scaled")
            resized = graph.op("Div", scaled, short, name="size_resized")
            margin = graph.op("Sub", resized, size, name="margin")
            # Half of the margin, rounded half to even as Python does.
            two = graph.ints(2)
            half = graph.op("Div", margin, two, name="half_margin")
            odd = graph.op("Mod", margin, two, name="odd_margin")
            up = graph.op("Mul", odd, graph.op("Mod", half, two, name="odd_half"), name="rounded_up")
            first = graph.op("Add", half, up, name="crop_start")
        parts = []
        for index, count in enumerate(recipe.size):
            place = graph.constant(np.asarray(index, np.int64))
            whole, scaled, start = (graph.op("Gather", value, place, axis=0) for value in (given, resized, first))
            parts.append(Axis(whole, scaled, start, graph.constant(np.asarray(count, np.int64))))
        return parts[0], parts[1]

    def _resized_in_order(self, images: ir.Value, rows: Axis, columns: Axis) -> ir.Value:
        """Whole numbers (B, 3, h, w) of photographs (B, H, W, 3), the axes in the order that Pillow takes for these sizes.

        To resample the height first, the photographs are turned about their diagonal before and back after, by an index: a
        branch would be plainer, and is what runtimes support least.
        """
        graph = self.graph
        zero, two = self._number(0), self._number(2)
        lost = [graph.op("Sub", axis.given, axis.resized, name="lost") for axis in (rows, columns)]
        more = graph.op("Greater", lost[0], graph.op("Mul", lost[1], two), name="more_height_lost")
        turned = graph.op("And", more, graph.op("Greater", lost[0], zero), name="height_first")
        first, second = (
            Axis(
                *(graph.op("Where", turned, *pair, name="turned_side") for pair in zip(_parts(one), _parts(other), strict=True))
            )
            for one, other in ((rows, columns), (columns, rows))
        )
        pixels = graph.op("Mul", rows.given, columns.given, name="count")
        index = graph.op("Range", zero, pixels, self._number(1), name="index")
        across = graph.op("Mul", graph.op("Mod", index, rows.given, name="row"), columns.given)
        diagonal = graph.op("Add", across, graph.op("Div", index, rows.given, name="column"), name="diagonal")
        flat = graph.reshape(images, graph.op("Shape", images, start=0, end=1, name="batch"), -1, 3)
        flat = graph.op("Gather", flat, graph.op("Where", turned, diagonal, index, name="order"), axis=1, name="ordered")
        sides = [graph.op("Unsqueeze", axis.given, graph.ints(0)) for axis in (second, first)]
        x = self._resized(graph.reshape(flat, -1, *sides, 3, name="image"), first, second)
        height, width = self.preprocessing.size
        straight = np.arange(height * width, dtype=np.int32)
        back = straight.reshape(width, height).T.reshape(-1)
        x = graph.reshape(x, -1, 3, height * width, name="flat")
        places = graph.op("Where", turned, graph.constant(back), graph.constant(straight), name="places")
        x = graph.op("Gather", x, places, axis=2, name="straightened")
        return graph.reshape(x, -1, 3, height, width, name="resized")

    def _resized(self, images: ir.Value, first: Axis, second: Axis) -> ir.Value:
        """Whole numbers (B, 3, n, m) of images (B, N, M, 3): the last side by ``first``, then the other by ``second``."""
        graph = self.graph
        x = graph.op("Transpose", images, perm=[0, 3, 1, 2], name="channels_first")
        x = graph.op("Cast", x, to=ir.DataType.FLOAT, name="bytes")
        with graph.scope("first"):
            x = self._resampled(x, first, rows=False)
        with graph.scope("second"):
            return self._resampled(x, second, rows=True)

    def _resampled(self, x: ir.Value, axis: Axis, *, rows: bool) -> ir.Value:
        """One axis of whole numbers from 0 to 255 as float32, (B, 3, N, M), resampled to such."""
        graph = self.graph
        fixed = self._weights(axis, rows=rows)
        low, half = (graph.constant(np.asarray(number, np.float64)) for number in (LOW, 0.5))
        upper = graph.op("Floor", graph.op("Add", graph.op("Div", fixed, low), half), name="upper")
        lower = graph.op("Sub", fixed, graph.op("Mul", upper, low), name="lower")
        sums = []
        for name, part in (("upper", upper), ("lower", lower)):
            weights = graph.op("Cast", part, to=ir.DataType.FLOAT, name=f"{name}_weights")
            product = graph.op("MatMul", *((weights, x) if rows else (x, weights)), name=f"{name}_product")
            sums.append(graph.op("Cast", product, to=ir.DataType.INT32, name=f"{name}_sum"))
        total = graph.op("Add", graph.op("Mul", sums[0], self._int32(LOW)), sums[1], name="sum")
        rounded = graph.op("Add", total, self._int32(2 ** (FRACTION_BITS - 1)), name="rounded")
        # Negative sums round towards zero in one runtime and down in another; both become 0.
        value = graph.op("Div", rounded, self._int32(2**FRACTION_BITS), name="shifted")
        value = graph.op("Clip", value, self._int32(0), self._int32(255), name="byte")
        return graph.op("Cast", value, to=ir.DataType.FLOAT, name="pixels")

    def _weights(self, axis: Axis, *, rows: bool) -> ir.Value:
        """Fixed-point weights as whole float64 numbers: (given, count), or (count, given) with ``rows``."""
        graph = self.graph
        source_axis, target_axis = (0, 1) if rows else (1, 0)
        zero, one, two = (self._number(value) for value in (0, 1, 2))
        source = graph.op("Range", zero, axis.given, one, name="source")
        kept = graph.op("Range", zero, axis.count, one, name="kept")
        target = graph.op("Add", kept, axis.first, name="target")
        # Twice the distance of two pixel centers, times both lengths: a whole number, so that no size loses precision.
        centers = []
        for index, length, place in ((source, axis.resized, source_axis), (target, axis.given, target_axis)):
            center = graph.op("Add", graph.op("Mul", index, two), one)
            centers.append(graph.op("Unsqueeze", graph.op("Mul", center, length), graph.ints(place)))
        distance = graph.op("Abs", graph.op("Sub", *centers), name="distance")
        longest = graph.op("Mul", graph.op("Max", axis.given, axis.resized), two, name="unit")
        double = ir.DataType.DOUBLE
        t = graph.op("Div", graph.op("Cast", distance, to=double), graph.op("Cast", longest, to=double), name="t")
        weight = self._filter(t)
        total = graph.op("ReduceSum", weight, graph.ints(1 if rows else 0), keepdims=1, name="total")
        scale = graph.constant(np.asarray(2.0**FRACTION_BITS, np.float64))
        return graph.op("Round", graph.op("Mul", graph.op("Div", weight, total), scale), name="fixed_weights")

    def _filter(self, t: ir.Value) -> ir.Value:
        """Pillow's filter at distances t of float64, 0 or more, in px of the coarser side."""
        graph = self.graph

        def number(value: float) -> ir.Value:
            return graph.constant(np.asarray(value, np.float64))

        def polynomial(*factors: float) -> ir.Value:
            value = number(factors[0])
            for factor in factors[1:]:
                value = graph.op("Mul", value, t)
                value = graph.op("Add", value, number(factor)) if factor else value
            return value

        near_one = graph.op("Less", t, number(1.0), name="near")
        if self.preprocessing.interpolation == "bilinear":
            return graph.op("Where", near_one, graph.op("Sub", number(1.0), t), number(0.0), name="weight")
        near = polynomial(1.5, -2.5, 0.0, 1.0)
        far = polynomial(-0.5, 2.5, -4.0, 2.0)
        outer = graph.op("Where", graph.op("Less", t, number(2.0), name="inside"), far, number(0.0), name="outer")
        return graph.op("Where", near_one, near, outer, name="weight")

    def _number(self, value: int) -> ir.Value:
        return self.graph.constant(np.asarray(value, np.int64))

    def _int32(self, value: int) -> ir.Value:
        return self.graph.constant(np.asarray(value, np.int32))


def _parts(axis: Axis) -> tuple[ir.Value, ...]:
    return (axis.given, axis.resized, axis.first, axis.count)
