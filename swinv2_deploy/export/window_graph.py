"""The window plan as a graph: which token goes where, computed once a stage from the map's size.

A grid holds at every position of every image's map the number of its token. Padding, rolling and cutting that grid, which is
small, tells where to read; the tokens themselves then move once, by one Gather. Token numbers start at 1 where a stage can pad,
because row 0 is a row of zeros there. Nothing is padded by an amount that depends on the shape, which would blow up TensorRT's
memory bound: the grid is padded by a constant and cut back.

Where the size is known, a grid of one image serves all, so that every index is a constant; tokens are then read by image. Where it
is not, the grid holds the whole batch, and tokens are read from one matrix: no operator is needed to part images from one another.

Shape letters: B images of the grid, H W map in tokens, h w window, P Q padded map, p q windows along each axis, n = p*q, N = h*w,
k heads, W largest window, R = 2W-1 differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx_ir as ir

from reference_model.config import WindowPolicy
from reference_model.windows import MASKED, AxisPlan, nearby_windows, plan_axis
from swinv2_deploy.export.graph import GraphBuilder
from swinv2_deploy.runtime.fitting import JOINED_TOKENS


@dataclass(frozen=True, slots=True)
class MapSize:
    """Size of a stage's map.

    Attributes:
        value: Height and width in tokens, an int64 vector, constant where one size is exported.
        smallest: The smallest height and width inside the declared range.
        largest: The largest ones.
        count: Windows of the wanted size along each axis, one that sticks out included; an int64 vector.
    """

    value: ir.Value
    smallest: tuple[int, int]
    largest: tuple[int, int]
    count: ir.Value

    @property
    def known(self) -> tuple[int, int] | None:
        """The size where the range has only one."""
        return self.smallest if self.smallest == self.largest else None


def map_sizes(
    graph: GraphBuilder, image: ir.Value, low: tuple[int, int], high: tuple[int, int], strides: list[int], window_size: int
) -> list[MapSize]:
    """Sizes of the maps of all stages, in tokens of ``strides`` px, from height and width of the image and their range in px.

    Computed side by side: a stage's map is half of the one before, rounded up, which is the image over the stride, rounded up.
    """
    images = graph.op("Concat", *[image] * len(strides), axis=0, name="image_sizes")
    values = _rounded_up(graph, images, [stride for stride in strides for _ in range(2)], "map_sizes")
    counts = _rounded_up(graph, values, [window_size] * (2 * len(strides)), "window_counts")
    pairs = [2] * len(strides)
    parts = zip(graph.split(values, pairs, 0, "map_size"), graph.split(counts, pairs, 0, "window_count"), strict=True)
    ends = (tuple((-(-low[axis] // stride), -(-high[axis] // stride)) for axis in (0, 1)) for stride in strides)
    return [
        MapSize(value, (rows[0], columns[0]), (rows[1], columns[1]), count)
        for (value, count), (rows, columns) in zip(parts, ends, strict=True)
    ]


def _rounded_up(graph: GraphBuilder, values: ir.Value, divisors: list[int], name: str) -> ir.Value:
    """Quotients, rounded up."""
    reach = graph.op("Add", values, graph.ints(*(divisor - 1 for divisor in divisors)), name=f"reach_of_{name}")
    return graph.op("Div", reach, graph.ints(*divisors), name=name)


class StageWindows:
    """Index tensors and masks of one stage, shared by its blocks because the graph makes the same value once.

    Args:
        graph: Graph to write into.
        size: Map of the stage.
        window_size: Window that the config asks for.
        scope: Prefix of the names.
        batch: Images, an int64 vector of one element.
        policy: Whether that window is kept or one nearby is chosen for each size.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        size: MapSize,
        window_size: int,
        scope: str,
        batch: ir.Value,
        policy: WindowPolicy = "fixed",
    ) -> None:
        self.graph = graph
        self.size = size
        self.batch = batch
        self.by_image = size.known is not None
        """Whether tokens are read image by image, with constant indices."""
        self.images = graph.ints(1) if self.by_image else batch
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
            self.count = size.count
            if policy == "adaptive":
                less = graph.op("Sub", self.window, graph.ints(1, 1), name="window_less_1")
                self.count = graph.op("Div", graph.op("Add", size.value, less, name="reach"), self.window, name="window_count")
            self.padded = graph.op("Mul", self.count, self.window, name="padded")
            self.window_tokens = graph.op("ReduceProd", self.window, keepdims=1, name="window_tokens")

    def split_images(self, x: ir.Value, width: int, name: str) -> ir.Value:
        """Rows of a width, as they are read: (B, rows, width) image by image, else (rows, width)."""
        return self.graph.reshape(x, *([self.batch] if self.by_image else []), -1, width, name=name)

    def read(self, x: ir.Value, index: ir.Value, name: str) -> ir.Value:
        """Rows of what :meth:`split_images` made: the index's shape in the place of the rows."""
        return self.graph.op("Gather", x, index, axis=int(self.by_image), name=name)

    def zero_row(self, x: ir.Value, width: int) -> ir.Value:
        """Tokens (rows, width) with a row of zeros before the first one, as :meth:`split_images` makes them."""
        graph = self.graph
        if self.by_image:
            x = self.split_images(x, width, "batched")
        pads = graph.ints(0, 1, 0, 0, 0, 0) if self.by_image else graph.ints(1, 0, 0, 0)
        return graph.op("Pad", x, pads, name="zero_row")

    def window_indices(self, heads: int, *, shifted: bool) -> list[ir.Value]:
        """For queries, keys and values: the row that every place of every window reads, each (B*n, k, N).

        Rows are those of a matrix of ``3k`` rows a token: its queries by head, then its keys, then its values. Where
        :attr:`known_single`, (k, N).
        """
        graph = self.graph
        with graph.root_scope(self.scope):
            tokens = self._windowed(shifted=shifted)
            if shifted:
                tokens = graph.op("Mod", tokens, self._tag(), name="window_index")
            start = graph.op("Mul", tokens, graph.ints(3 * heads), name="first_row")
            rows = graph.constant(np.arange(3 * heads, dtype=np.int64)[:, None])
            index = graph.op("Add", start, rows, name="qkv_index")
            if self.known_single:
                index = graph.reshape(index, 3 * heads, -1, name="index_of_the_window")
            parts = graph.split(index, [heads] * 3, 0 if self.known_single else 1, "window_indices")
            return [graph.stored_index(part) for part in parts]

    def token_indices(self, heads: int, *, shifted: bool) -> ir.Value:
        """The way back, for every token and head: its row of windows, heads and places flattened, (B*H*W, k)."""
        graph = self.graph
        with graph.root_scope(self.scope):
            sizes = graph.shape(self.images, self.count, heads, self.window)
            slots = graph.reshape(graph.range(graph.product(sizes)), sizes, name="slot_numbers")
            slots = graph.op("Transpose", slots, perm=[0, 1, 4, 2, 5, 3], name="slots_by_place")
            slots = graph.reshape(slots, self.images, self.padded, heads, name="slot_map")
            start, end = graph.ints(0, 0), self.size.value
            if shifted:
                slots = graph.op("Concat", slots, slots, axis=1, name="slots_twice_down")
                slots = graph.op("Concat", slots, slots, axis=2, name="slots_twice")
                start = graph.op("Sub", self.padded, self._shift(), name="unrolled_start")
                end = graph.op("Add", start, self.size.value, name="unrolled_end")
            if shifted or self.may_pad:
                slots = graph.slice(slots, start, end, axes=(1, 2), name="slots_of_tokens")
            return graph.stored_index(graph.reshape(slots, -1, heads, name="token_indices"))

    def shift_mask(self, masked: float = MASKED) -> ir.Value:
        """Additive mask (B*n, 1, N, N) of a shifted block, float32; of every image where windows are :attr:`joined`.

        ``masked`` is added where two tokens are not to see one another.

        Only the last windows of an axis hold what came around an edge. So there are four masks, which the corners of the map show,
        and every window takes one of them: its last token tells which.
        """
        graph = self.graph
        with graph.root_scope(self.scope):
            corners = self._cut(shifted=True)
            for axis in (1, 2):
                corners = graph.op("Gather", corners, graph.ints(0, -1), axis=axis, name="outer_windows")
            corners = graph.op("Gather", corners, graph.ints(0), axis=0, name="corner_windows")
            regions = graph.op("Div", corners, self._tag(), name="regions")
            queries = graph.reshape(regions, 4, -1, 1, name="query_regions")
            keys = graph.reshape(regions, 4, 1, -1, name="key_regions")
            together = graph.op("Equal", queries, keys, name="same_region")
            masks = graph.op("Where", together, graph.float(0.0), graph.float(masked), name="shift_masks")
            last = graph.op("Gather", self._windowed(shifted=True), graph.constant(np.asarray(-1)), axis=2, name="last_token")
            index = graph.op("Div", last, self._tag(), name="mask_index")
            if self.by_image and self.joined:
                index = graph.op("Tile", index, graph.shape(self.batch, 1), name="mask_indices")
            return graph.op("Gather", masks, index, axis=0, name="shift_mask")

    def position_bias(self, table: ir.Value, heads: int, first_row: ir.Value | None) -> ir.Value:
        """(k, N, N) from the table (R*R, k) of the largest window, which begins in ``first_row``.

        Gathered twice, so that all moves in rows: first, for every difference of rows and every column, the biases to all columns,
        of all heads at once; of these, turned, every pair of places reads one row of ``w`` numbers.
        """
        graph, side = self.graph, self.window_size
        step, places = 2 * side - 1, np.arange(side)
        differences = places[:, None] - places + side - 1
        column_index = np.arange(step)[:, None, None] * step + differences
        row_index = (differences[:, None, :] * side + places[:, None]).astype(np.int32)
        width = graph.op("Gather", self.window, graph.ints(1), axis=0, name="window_width")
        ends = graph.op("Gather", self.window, graph.ints(0, 1, 0), axis=0, name="row_ends")
        columns = graph.slice(
            graph.constant(column_index.astype(np.int64)), graph.ints(0), width, axes=(2,), name="column_index"
        )
        rows = graph.slice(graph.constant(row_index), graph.ints(0, 0, 0), ends, axes=(0, 1, 2), name="row_index")
        if first_row is not None:
            columns = graph.op("Add", columns, first_row, name="column_rows")
        bias = graph.op("Gather", table, columns, axis=0, name="to_columns")
        bias = graph.op("Transpose", bias, perm=[3, 0, 1, 2], name="to_columns_by_head")
        bias = graph.reshape(bias, heads, step * side, -1, name="rows_to_columns")
        bias = graph.op("Gather", bias, rows, axis=1, name="to_places")
        return graph.reshape(bias, heads, self.window_tokens, self.window_tokens, name="biases")

    def merge_indices(self, half: ir.Value) -> ir.Value:
        """For patch merging to a map of ``half``: the four tokens of every merged one, (B * H/2 * W/2 * 4,).

        Neighbors come in the published order (0,0), (1,0), (0,1), (1,1) of (row, column); beyond an odd edge stands row 0.
        """
        graph = self.graph
        with graph.root_scope(self.scope):
            grid = self._grid(padded=self.merge_may_pad)
            if self.merge_may_pad:
                even = graph.op("Mul", half, graph.ints(2, 2), name="even_size")
                grid = graph.slice(grid, graph.ints(0, 0), even, axes=(1, 2), name="even_grid")
            sizes = graph.shape(self.images, half, 2)
            sizes = graph.op("Gather", sizes, graph.ints(0, 1, 3, 2, 3), name="pair_sizes")
            grid = graph.reshape(grid, sizes, name="pairs")
            grid = graph.op("Transpose", grid, perm=[0, 1, 3, 4, 2], name="neighbors")
            return graph.stored_index(graph.reshape(grid, -1, name="merge_indices"))

    @property
    def joined(self) -> bool:
        """Whether the windows of all images share an axis; one window an image needs no other.

        Small windows of a known size keep an axis for the image, see `JOINED_TOKENS`.
        """
        tokens = self.graph.known(self.window_tokens)
        return self.known_single or tokens is None or not self.by_image or int(tokens[0]) >= JOINED_TOKENS

    @property
    def known_single(self) -> bool:
        """Whether the map is one window, and its size known."""
        count = self.graph.known(self.count)
        return self.by_image and count is not None and count.tolist() == [1, 1]

    @property
    def may_be_largest(self) -> bool:
        """Whether some size in the range has the largest window along both axes."""
        return all(any(plan.window == self.window_size for plan in plans) for plans in self.plans)

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

    def _stop(self, start: int) -> ir.Value:
        """One more than the last token's number, where the first one has ``start``; a scalar."""
        graph = self.graph
        count = graph.product(graph.shape(self.images, self.size.value))
        return graph.op("Add", count, graph.constant(np.asarray(start, np.int64)), name="after_last") if start else count

    def _tag(self) -> ir.Value:
        """More than any token's number: its multiples mark what came around an edge.

        No larger than needed, as OpenVINO computes with integers as float32, which holds them to 2**24.
        """
        return self._stop(1)

    def _grid(self, *, padded: bool) -> ir.Value:
        """Number of every token, (B, H, W); with zeros below and to the right and numbers from 1 where it is padded."""
        graph = self.graph
        start = int(padded)
        grid = graph.reshape(graph.range(self._stop(start), start), self.images, self.size.value, name="grid")
        if not padded:
            return grid
        ends = max(self.window_size - 1, 1)
        return graph.op("Pad", grid, graph.ints(0, 0, 0, 0, ends, ends), name="padded_grid")

    def _windowed(self, *, shifted: bool) -> ir.Value:
        """The grid as windows, (B*n, 1, N); rolled and marked with multiples of the tag in a shifted block."""
        return self.graph.reshape(self._cut(shifted=shifted), -1, 1, self.window_tokens, name="windowed")

    def _cut(self, *, shifted: bool) -> ir.Value:
        """The same cut into windows, (B, p, q, h, w)."""
        graph = self.graph
        grid = self._grid(padded=self.may_pad)
        if self.may_pad:
            grid = graph.slice(grid, graph.ints(0, 0), self.padded, axes=(1, 2), name="whole_windows")
        if shifted:
            grid = self._rolled(grid)
        sizes = graph.shape(self.images, self.count, self.window)
        sizes = graph.op("Gather", sizes, graph.ints(0, 1, 3, 2, 4), name="cut_sizes")
        return graph.op("Transpose", graph.reshape(grid, sizes, name="cut"), perm=[0, 1, 3, 2, 4], name="windows")

    def _rolled(self, grid: ir.Value) -> ir.Value:
        """The maps of (P, Q) rolled up and left by the shift: a part of the map beside itself.

        What came around the right edge is marked by one tag, around the lower edge by two. The published three regions differ
        inside a window only there: their other border lies between two windows.
        """
        graph = self.graph
        tag = self._tag()
        beside = graph.op("Concat", grid, graph.op("Add", grid, tag, name="beside"), axis=2, name="twice_beside")
        twice = graph.op("Add", tag, tag, name="two_tags")
        both = graph.op("Concat", beside, graph.op("Add", beside, twice, name="below"), axis=1, name="twice")
        shift = self._shift()
        return graph.slice(both, shift, graph.op("Add", shift, self.padded, name="rolled_end"), axes=(1, 2), name="rolled")
