"""The window plan as a graph: which token goes where, computed once a stage from the map's size.

Shift, padding and partition are one Gather: every window slot reads the token that the rule of ``reference_model.windows`` puts
there, and a slot of the padding reads an extra row of zeros. The way back is one Gather too. Nothing is padded by an amount that
depends on the shape, which would blow up TensorRT's memory bound.

Shape letters: B batch, H W map in tokens, h w window, P Q padded map, p q windows along each axis, n = p*q, N = h*w.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from reference_model.position_bias import relative_position_index
from reference_model.windows import MASKED
from swinv2_deploy.export.graph import GraphBuilder, Int


@dataclass(frozen=True, slots=True)
class AxisSizes:
    """One axis of a stage's map.

    Attributes:
        size: Tokens of the map.
        smallest: Fewest tokens it can have inside the declared range.
        window: Tokens of the window.
        count: Windows along the axis.
        padded: ``window * count``.
        shift: Tokens the map is rolled by in shifted blocks.
        may_pad: Whether ``padded`` can exceed ``size``.
    """

    size: Int
    smallest: int
    window: Int
    count: Int
    padded: Int
    shift: Int
    may_pad: bool


def axis_sizes(graph: GraphBuilder, size: Int, smallest: int, window_size: int) -> AxisSizes:
    """Window, padding and shift of one axis, folded where the size or the range decides them."""
    if isinstance(size, int):
        window = min(window_size, size)
        count = -(-size // window)
        shift = window_size // 2 if size > window_size else 0
        return AxisSizes(size, smallest, window, count, window * count, shift, window * count > size)
    free = smallest < window_size
    window_: Int = graph.minimum(size, window_size) if free else window_size
    count_ = graph.ceil_divide(size, window_)
    larger = graph.op("Greater", size, graph.ints(window_size), name="several_windows")
    shift_ = graph.op("Where", larger, graph.ints(window_size // 2), graph.ints(0), name="shift")
    return AxisSizes(size, smallest, window_, count_, graph.multiply(window_, count_), shift_, True)


class StageWindows:
    """Index tensors, masks and bias coordinates of one stage, shared by its blocks because the graph makes the same value once."""

    def __init__(
        self, graph: GraphBuilder, height: AxisSizes, width: AxisSizes, pretrained_window_size: int, scope: str
    ) -> None:
        self.graph = graph
        self.height = height
        self.width = width
        self.pretrained = pretrained_window_size
        self.scope = scope
        self.tokens = graph.multiply(height.size, width.size)
        self.window_tokens = graph.multiply(height.window, width.window)
        self.count = graph.multiply(height.count, width.count)

    @property
    def may_pad(self) -> bool:
        return self.height.may_pad or self.width.may_pad

    @property
    def ever_shifts(self) -> bool:
        """Whether shifted blocks shift at any size of the range."""
        return self.height.shift != 0 or self.width.shift != 0

    @property
    def fixed_window(self) -> tuple[int, int] | None:
        """The window where it is the same at every size of the range."""
        if isinstance(self.height.window, int) and isinstance(self.width.window, int):
            return (self.height.window, self.width.window)
        return None

    def window_indices(self, *, shifted: bool) -> ir.Value:
        """For every slot of every window, the token it reads: (n*N,); the number of tokens stands for padding."""
        graph = self.graph
        with graph.root_scope(self.scope):
            rows = self._sources(self.height, self.width.size, shifted=shifted)
            columns = self._sources(self.width, 1, shifted=shifted)
            rows = graph.reshape(rows, self.height.count, 1, self.height.window, 1)
            columns = graph.reshape(columns, 1, self.width.count, 1, self.width.window)
            index = graph.op("Add", rows, columns, name="window_index")
            if self.may_pad:
                index = graph.op("Min", index, graph.as_vector(self.tokens), name="window_index_or_zero_row")
            return graph.reshape(index, -1, name="window_indices")

    def token_indices(self, *, shifted: bool) -> ir.Value:
        """For every token, the window slot it reads back: (H*W,)."""
        graph = self.graph
        with graph.root_scope(self.scope):
            row_step = graph.multiply(self.width.count, self.window_tokens)
            rows = self._slots(self.height, row_step, self.width.window, shifted=shifted)
            columns = self._slots(self.width, self.window_tokens, 1, shifted=shifted)
            index = graph.op("Add", graph.reshape(rows, -1, 1), columns, name="token_index")
            return graph.reshape(index, -1, name="token_indices")

    def shift_mask(self) -> ir.Value:
        """Additive mask (n, 1, N, N) of a shifted block, float32."""
        with self.graph.root_scope(self.scope):
            return self._shift_mask()

    def bias_index(self) -> ir.Value:
        """Row of the bias table for every pair of a window: (N, N), int64 computed or int32 stored."""
        with self.graph.root_scope(self.scope):
            return self._bias_index()

    def bias_coords(self) -> ir.Value:
        """Log-spaced coordinates (T, 2) where the window depends on the size; see ``position_bias.relative_coords_table``."""
        with self.graph.root_scope(self.scope):
            return self._bias_coords()

    def _shift_mask(self) -> ir.Value:
        graph = self.graph
        rows = graph.reshape(self._regions(self.height, 2), self.height.count, 1, self.height.window, 1)
        columns = graph.reshape(self._regions(self.width, 1), 1, self.width.count, 1, self.width.window)
        regions = graph.op("Add", rows, columns, name="regions")
        queries = graph.reshape(regions, -1, 1, self.window_tokens, 1)
        keys = graph.reshape(regions, -1, 1, 1, self.window_tokens)
        together = graph.op("Equal", queries, keys, name="same_region")
        zero, masked = (graph.constant(np.asarray(value, np.float32)) for value in (0.0, MASKED))
        return graph.op("Where", together, zero, masked, name="shift_mask")

    def _bias_index(self) -> ir.Value:
        graph = self.graph
        if self.fixed_window is not None:
            return graph.constant(relative_position_index(self.fixed_window).numpy().astype(np.int32))
        across = graph.subtract(graph.multiply(self.width.window, 2), 1)
        rows = graph.op("Mul", self._offsets(self.height.window), graph.as_vector(across), name="row_offsets")
        columns = self._offsets(self.width.window)
        rows = graph.reshape(rows, self.height.window, 1, self.height.window, 1)
        columns = graph.reshape(columns, 1, self.width.window, 1, self.width.window)
        index = graph.op("Add", rows, columns, name="bias_index")
        return graph.reshape(index, self.window_tokens, self.window_tokens)

    def _bias_coords(self) -> ir.Value:
        graph = self.graph
        axes = [self._axis_coords(axis) for axis in (self.height, self.width)]
        lengths = [graph.subtract(graph.multiply(axis.window, 2), 1) for axis in (self.height, self.width)]
        grid = graph.shape(*lengths)
        rows = graph.op("Expand", graph.reshape(axes[0], -1, 1), grid, name="row_coords")
        columns = graph.op("Expand", graph.reshape(axes[1], 1, -1), grid, name="column_coords")
        flat = [graph.reshape(value, -1, 1) for value in (rows, columns)]
        return graph.op("Concat", *flat, axis=1, name="bias_coords")

    def _sources(self, axis: AxisSizes, step: Int, *, shifted: bool) -> ir.Value:
        """Source of every position of the padded, rolled axis, times ``step``; at least H*W for padding: (P,)."""
        graph = self.graph
        source = graph.range(axis.padded)
        if shifted and axis.shift != 0:
            moved = graph.op("Add", source, graph.as_vector(axis.shift), name="shifted")
            source = graph.op("Mod", moved, graph.as_vector(axis.padded), name="rolled")
        scaled = source if step == 1 else graph.op("Mul", source, graph.as_vector(step), name="offset")
        if not axis.may_pad:
            return scaled
        inside = graph.op("Less", source, graph.as_vector(axis.size), name="inside")
        return graph.op("Where", inside, scaled, graph.as_vector(self.tokens), name="source")

    def _slots(self, axis: AxisSizes, window_step: Int, token_step: Int, *, shifted: bool) -> ir.Value:
        """Slot of every token of an axis: window number times ``window_step`` plus place in it times ``token_step``: (H,)."""
        graph = self.graph
        place = graph.range(axis.size)
        if shifted and axis.shift != 0:
            back = graph.op("Add", place, graph.as_vector(graph.subtract(axis.padded, axis.shift)), name="unshifted")
            place = graph.op("Mod", back, graph.as_vector(axis.padded), name="unrolled")
        number = graph.op("Div", place, graph.as_vector(axis.window), name="window_number")
        # place = number * window + rest, so the slot is place * token_step plus number times what a window adds beyond that.
        surplus = graph.subtract(window_step, graph.multiply(axis.window, token_step))
        number = graph.op("Mul", number, graph.as_vector(surplus), name="window_start")
        place = place if token_step == 1 else graph.op("Mul", place, graph.as_vector(token_step), name="place_start")
        return graph.op("Add", number, place, name="slot")

    def _regions(self, axis: AxisSizes, factor: int) -> ir.Value:
        """``factor`` where a position of the padded, rolled axis came around the edge, else 0: (P,) int64.

        The published three regions differ inside a window only where the roll wrapped around: their other border lies between
        two windows.
        """
        graph = self.graph
        start = graph.as_vector(graph.subtract(axis.padded, axis.shift))
        wrapped = graph.op("GreaterOrEqual", graph.range(axis.padded), start, name="wrapped")
        return graph.op("Where", wrapped, graph.ints(factor), graph.ints(0), name="region")

    def _offsets(self, window: Int) -> ir.Value:
        """i - j + window - 1 for every pair of places on an axis: (h, h)."""
        graph = self.graph
        place = graph.range(window)
        difference = graph.op("Sub", graph.reshape(place, -1, 1), place, name="difference")
        return graph.op("Add", difference, graph.as_vector(graph.subtract(window, 1)), name="offsets")

    def _axis_coords(self, axis: AxisSizes) -> ir.Value:
        """Log-spaced coordinates of one axis: (2h-1,), float32."""
        graph = self.graph
        less = graph.subtract(axis.window, 1)
        steps = graph.range(graph.add(graph.multiply(less, 2), 1))
        coords = graph.op("Sub", steps, graph.as_vector(less), name="relative")
        coords = graph.op("Cast", coords, to=ir.DataType.FLOAT, name="relative_float")
        if self.pretrained > 1:
            scale = graph.constant(np.asarray([self.pretrained - 1], np.float32))
        else:
            positive = graph.op("Max", graph.as_vector(less), graph.ints(1), name="span")
            scale = graph.op("Cast", positive, to=ir.DataType.FLOAT, name="span_float")
        coords = graph.op("Div", coords, scale, name="normalized")
        eight, one, log8 = (graph.constant(np.asarray(value, np.float32)) for value in (8.0, 1.0, np.log(8.0)))
        coords = graph.op("Mul", coords, eight, name="times_8")
        magnitude = graph.op("Log", graph.op("Add", graph.op("Abs", coords, name="abs"), one, name="plus_1"), name="log")
        magnitude = graph.op("Div", magnitude, log8, name="log_8")
        return graph.op("Mul", graph.op("Sign", coords, name="sign"), magnitude, name="coords")


def merge_indices(graph: GraphBuilder, height: AxisSizes, width: AxisSizes, tokens: Int) -> tuple[ir.Value, Int, Int]:
    """For patch merging: the four tokens of every merged one, (H/2 * W/2 * 4,), and the merged height and width.

    Neighbors come in the published order (0,0), (1,0), (0,1), (1,1) of (row, column); beyond an odd edge stands the zero row.
    """
    rows_out, columns_out = graph.ceil_divide(height.size, 2), graph.ceil_divide(width.size, 2)
    sources = []
    for axis, count, step, dims in ((height, rows_out, width.size, (-1, 1, 1, 2)), (width, columns_out, 1, (1, -1, 2, 1))):
        index = graph.range(graph.multiply(count, 2))
        scaled = index if step == 1 else graph.op("Mul", index, graph.as_vector(step), name="offset")
        if not isinstance(axis.size, int) or axis.size % 2:
            inside = graph.op("Less", index, graph.as_vector(axis.size), name="inside")
            scaled = graph.op("Where", inside, scaled, graph.as_vector(tokens), name="source")
        sources.append(graph.reshape(scaled, *dims))
    index = graph.op("Add", *sources, name="merge_index")
    if merge_may_pad(height, width):
        index = graph.op("Min", index, graph.as_vector(tokens), name="merge_index_or_zero_row")
    return graph.reshape(index, -1, name="merge_indices"), rows_out, columns_out


def merge_may_pad(height: AxisSizes, width: AxisSizes) -> bool:
    """Whether patch merging can meet an odd side."""
    return any(not isinstance(axis.size, int) or axis.size % 2 == 1 for axis in (height, width))
