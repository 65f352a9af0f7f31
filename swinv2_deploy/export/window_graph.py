"""The window plan as a graph: which token goes where, computed once a stage from the map's size.

A grid holds at every position of the map the number of its token. Padding, rolling and cutting that grid, which is small, tells
where to read; the tokens themselves then move once, by one Gather. Token numbers start at 1 where a stage can pad, because row 0
is a row of zeros there. Nothing is padded by an amount that depends on the shape, which would blow up TensorRT's memory bound:
the grid is padded by a constant and cut back.

Shape letters: H W map in tokens, h w window, P Q padded map, p q windows along each axis, n = p*q, N = h*w, k heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx_ir as ir

from reference_model.config import WindowPolicy
from reference_model.position_bias import relative_position_index
from reference_model.windows import MASKED, AxisPlan, nearby_windows, plan_axis
from swinv2_deploy.export.graph import GraphBuilder


@dataclass(frozen=True, slots=True)
class MapSize:
    """Size of a stage's map.

    Attributes:
        value: Height and width in tokens, an int64 vector, constant where one size is exported.
        smallest: The smallest height and width inside the declared range.
        largest: The largest ones.
    """

    value: ir.Value
    smallest: tuple[int, int]
    largest: tuple[int, int]

    @property
    def known(self) -> tuple[int, int] | None:
        """The size where the range has only one."""
        return self.smallest if self.smallest == self.largest else None

    def merged(self, graph: GraphBuilder) -> MapSize:
        """The map after patch merging."""
        half = graph.op("Div", graph.op("Add", self.value, graph.ints(1, 1), name="even"), graph.ints(2, 2), name="merged_size")
        low, high = self.smallest, self.largest
        return MapSize(half, (-(-low[0] // 2), -(-low[1] // 2)), (-(-high[0] // 2), -(-high[1] // 2)))


class StageWindows:
    """Index tensors and masks of one stage, shared by its blocks because the graph makes the same value once.

    Args:
        graph: Graph to write into.
        size: Map of the stage.
        window_size: Window that the config asks for.
        scope: Prefix of the names.
        policy: Whether that window is kept or one nearby is chosen for each size.
    """

    def __init__(
        self, graph: GraphBuilder, size: MapSize, window_size: int, scope: str, policy: WindowPolicy = "fixed"
    ) -> None:
        self.graph = graph
        self.size = size
        self.scope = scope
        self.policy = policy
        self.plans = [
            [plan_axis(side, window_size, shifted=True, policy=policy) for side in range(low, high + 1)]
            for low, high in zip(size.smallest, size.largest, strict=True)
        ]
        self.window_size = window_size if policy == "fixed" else max(plan.window for plan in chain(*self.plans))
        """The largest window there can be, which tables and constant padding must reach."""
        self.fixed_window = self._only(lambda plan: plan.window)
        self.may_pad = size.known is None or any(plan.padded > plan.size for plan in chain(*self.plans))
        self.ever_shifts = any(plan.shift for plan in chain(*self.plans))
        with graph.root_scope(scope):
            limit = graph.ints(window_size, window_size)
            if self.fixed_window is None:
                wanted = limit if policy == "fixed" else self._nearby(window_size)
                self.window = graph.op("Min", size.value, wanted, name="window")
            else:
                self.window = graph.ints(*self.fixed_window)
            # A fixed window is smaller than the wanted one only where the map is one window: the wanted one counts as well. By the
            # window itself, TensorRT, which bounds a quotient by its smallest divisor, would reserve memory for too many windows.
            divisor = self.window if policy == "adaptive" else limit
            less = graph.op("Sub", divisor, graph.ints(1, 1), name="divisor_less_1")
            self.count = graph.op("Div", graph.op("Add", size.value, less, name="reach"), divisor, name="window_count")
            self.padded = graph.op("Mul", self.count, self.window, name="padded")
            self.window_tokens = graph.op("ReduceProd", self.window, keepdims=1, name="window_tokens")

    def window_indices(self, heads: int, *, shifted: bool) -> list[ir.Value]:
        """For queries, keys and values: the row that every place of every window reads, each (n, k, N).

        Rows are those of a matrix of ``3k`` rows a token: its queries by head, then its keys, then its values.
        """
        graph = self.graph
        with graph.root_scope(self.scope):
            tokens = self._windowed(shifted=shifted)
            if shifted:
                tokens = graph.op("Mod", tokens, self._tag(), name="window_index")
            start = graph.op("Mul", tokens, graph.ints(3 * heads), name="first_row")
            rows = graph.constant(np.arange(3 * heads, dtype=np.int64)[:, None])
            index = graph.op("Add", start, rows, name="qkv_index")
            return [graph.stored_index(part) for part in graph.split(index, [heads] * 3, 1, "window_indices")]

    def token_indices(self, heads: int, *, shifted: bool) -> ir.Value:
        """The way back, for every token and head: its row of windows, heads and places flattened, (H*W, k)."""
        graph = self.graph
        with graph.root_scope(self.scope):
            rows = graph.op("Mul", graph.product(self.padded), graph.constant(np.asarray(heads, np.int64)), name="rows")
            slots = graph.reshape(graph.range(rows), self.count, heads, self.window, name="slot_numbers")
            slots = graph.op("Transpose", slots, perm=[0, 3, 1, 4, 2], name="slots_by_place")
            slots = graph.reshape(slots, self.padded, heads, name="slot_map")
            start, end = graph.ints(0, 0), self.size.value
            if shifted:
                slots = graph.op("Concat", slots, slots, axis=0, name="slots_twice_down")
                slots = graph.op("Concat", slots, slots, axis=1, name="slots_twice")
                start = graph.op("Sub", self.padded, self._shift(), name="unrolled_start")
                end = graph.op("Add", start, self.size.value, name="unrolled_end")
            if shifted or self.may_pad:
                slots = graph.slice(slots, start, end, name="slots_of_tokens")
            return graph.stored_index(graph.reshape(slots, -1, heads, name="token_indices"))

    def shift_mask(self) -> ir.Value:
        """Additive mask (n, 1, N, N) of a shifted block, float32."""
        graph = self.graph
        with graph.root_scope(self.scope):
            regions = graph.op("Div", self._windowed(shifted=True), self._tag(), name="regions")
            queries = graph.op("Unsqueeze", regions, graph.ints(3), name="query_regions")
            keys = graph.op("Unsqueeze", regions, graph.ints(2), name="key_regions")
            together = graph.op("Equal", queries, keys, name="same_region")
            return graph.op("Where", together, graph.float(0.0), graph.float(MASKED), name="shift_mask")

    def bias_index(self) -> ir.Value:
        """Row of the bias table for every pair of a window: (N, N).

        The table is that of ``fixed_window``, or of the largest window where it is not fixed.
        """
        if self.fixed_window is not None:
            return self.graph.constant(relative_position_index(self.fixed_window).numpy().astype(np.int32))
        graph, step = self.graph, 2 * self.window_size - 1
        with graph.root_scope(self.scope):
            # The place of a pair in the table is the difference of two numbers, with rows of the table's length.
            rows, columns = np.mgrid[: self.window_size, : self.window_size]
            places = graph.slice(graph.constant(rows * step + columns), graph.ints(0, 0), self.window, name="places")
            queries, keys = graph.reshape(places, -1, 1, name="queries"), graph.reshape(places, 1, -1, name="keys")
            difference = graph.op("Sub", queries, keys, name="difference")
            return graph.op("Add", difference, graph.ints((step * step - 1) // 2), name="bias_index")

    def merge_indices(self) -> ir.Value:
        """For patch merging: the four tokens of every merged one, (H/2 * W/2 * 4,).

        Neighbors come in the published order (0,0), (1,0), (0,1), (1,1) of (row, column); beyond an odd edge stands row 0.
        """
        graph = self.graph
        with graph.root_scope(self.scope):
            half = self.size.merged(graph).value
            grid = self._grid(padded=self.merge_may_pad)
            if self.merge_may_pad:
                even = graph.op("Mul", half, graph.ints(2, 2), name="even_size")
                grid = graph.slice(grid, graph.ints(0, 0), even, name="even_grid")
            sizes = graph.op("Gather", graph.shape(half, 2, 2), graph.ints(0, 2, 1, 2), name="pair_sizes")
            grid = graph.reshape(grid, sizes, name="pairs")
            grid = graph.op("Transpose", grid, perm=[0, 2, 3, 1], name="neighbors")
            return graph.stored_index(graph.reshape(grid, -1, name="merge_indices"))

    @property
    def merge_may_pad(self) -> bool:
        """Whether patch merging can meet an odd side."""
        return self.size.known is None or any(side % 2 for side in self.size.known)

    def _only(self, fact: Callable[[AxisPlan], int]) -> tuple[int, int] | None:
        """A number of the plan, for height and width, where it is the same at every size of the range."""
        rows, columns = ({fact(plan) for plan in plans} for plans in self.plans)
        return (rows.pop(), columns.pop()) if len(rows) == len(columns) == 1 else None

    def _nearby(self, window_size: int) -> ir.Value:
        """For height and width, the window near the given one that pads least; the preferred one of several.

        Padding and rank in the order of preference make one number, whose smallest value tells the window: integers only, in
        operators that TensorRT can compute for shapes.
        """
        graph, windows = self.graph, nearby_windows(window_size)
        choices, count = graph.ints(*windows), graph.ints(len(windows))
        sides = graph.reshape(self.size.value, 2, 1, name="sides")
        reach = graph.op("Add", sides, graph.ints(*(window - 1 for window in windows)), name="reach_of_choices")
        padded = graph.op("Mul", graph.op("Div", reach, choices, name="count_of_choices"), choices, name="padded_by_choices")
        padding = graph.op("Mul", graph.op("Sub", padded, sides, name="padding_of_choices"), count, name="padding_first")
        ranked = graph.op("Add", padding, graph.ints(*range(len(windows))), name="then_preference")
        best = graph.op("ReduceMin", ranked, graph.ints(1), keepdims=0, name="least_padding")
        return graph.op("Gather", choices, graph.op("Mod", best, count, name="choice"), name="nearby_window")

    def _shift(self) -> ir.Value:
        """Tokens the map is rolled by along each axis."""
        graph, size = self.graph, self.window_size
        known = self._only(lambda plan: plan.shift)
        if known is not None:
            return graph.ints(*known)
        if self.policy == "adaptive":
            several = graph.op("Min", graph.op("Sub", self.count, graph.ints(1, 1), name="count_less_1"), graph.ints(1, 1))
            return graph.op("Mul", graph.op("Div", self.window, graph.ints(2, 2), name="half"), several, name="shift")
        larger = graph.op("Greater", self.size.value, graph.ints(size, size), name="several_windows")
        return graph.op("Where", larger, graph.ints(size // 2), graph.ints(0), name="shift")

    def _tag(self) -> ir.Value:
        """More than any token's number: its multiples mark what came around an edge."""
        return self.graph.ints(self.size.largest[0] * self.size.largest[1] + 1)

    def _grid(self, *, padded: bool) -> ir.Value:
        """Number of every token, (H, W); with zeros below and to the right and numbers from 1 where it is padded."""
        graph = self.graph
        count = graph.product(self.size.value)
        if not padded:
            return graph.reshape(graph.range(count), self.size.value, name="grid")
        stop = graph.op("Add", count, graph.constant(np.asarray(1, np.int64)), name="after_last")
        grid = graph.reshape(graph.range(stop, 1), self.size.value, name="grid")
        ends = max(self.window_size - 1, 1)
        return graph.op("Pad", grid, graph.ints(0, 0, ends, ends), name="padded_grid")

    def _windowed(self, *, shifted: bool) -> ir.Value:
        """The grid cut into windows, (n, 1, N); rolled and marked with multiples of the tag in a shifted block."""
        graph = self.graph
        grid = self._grid(padded=self.may_pad)
        if self.may_pad:
            grid = graph.slice(grid, graph.ints(0, 0), self.padded, name="whole_windows")
        if shifted:
            grid = self._rolled(grid)
        sizes = graph.op("Gather", graph.shape(self.count, self.window), graph.ints(0, 2, 1, 3), name="cut_sizes")
        grid = graph.op("Transpose", graph.reshape(grid, sizes, name="cut"), perm=[0, 2, 1, 3], name="windows")
        return graph.reshape(grid, -1, 1, self.window_tokens, name="windowed")

    def _rolled(self, grid: ir.Value) -> ir.Value:
        """The map of (P, Q) rolled up and left by the shift: a part of the map beside itself.

        What came around the lower edge is marked by one tag, around the right edge by two. The published three regions differ
        inside a window only there: their other border lies between two windows.
        """
        graph = self.graph
        tag = self._tag()
        down = graph.op("Concat", grid, graph.op("Add", grid, tag, name="below"), axis=0, name="twice_down")
        twice = graph.op("Add", tag, tag, name="two_tags")
        both = graph.op("Concat", down, graph.op("Add", down, twice, name="beside"), axis=1, name="twice")
        shift = self._shift()
        return graph.slice(both, shift, graph.op("Add", shift, self.padded, name="rolled_end"), name="rolled")
