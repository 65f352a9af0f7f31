"""Window attention of one stage as a graph: position bias of its blocks, then the attention of each block.

Cutting into windows, parting queries, keys and values, and bringing heads to the front is one Gather for each of the three; the
way back is one Gather too. No token is copied twice.

Shape letters: B batch, H W map in tokens, C channels, n windows of an image, N tokens of a window, k heads, d channels of a head,
b blocks, K heads of all blocks of a stage, T relative positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reference_model.attention import MAX_LOGIT_SCALE
from reference_model.config import SwinV2Config
from reference_model.position_bias import BIAS_LIMIT, CPB_HIDDEN, relative_coords_table, relative_position_index
from reference_model.windows import MASKED, bias_window
from swinv2_deploy.export.graph import GraphBuilder
from swinv2_deploy.export.window_graph import StageWindows

Array = NDArray[np.float32]
MOST_BIAS_BYTES = 32 * 2**20
"""Up to this size, the position biases of a stage's blocks are gathered at once. Beyond it each block gathers its own when it needs
them: those of 18 blocks with windows of 576 tokens take 382 MB, and turning and parting them held as much again."""

UNSEEN = -1000.0
"""Mask whose exponential is zero. That of the published one, -100, is a denormal number, with which processors compute many times
slower: where a runtime keeps such numbers, as ONNX Runtime does unless told otherwise, a product of weights and values takes up to
ten times as long."""
ROUNDED = 1.1
"""Above the largest product of two vectors that were normalized and then rounded: to FP16, BF16 or INT8."""

Linear = Callable[[ir.Value, str, ir.Value | None], ir.Value]


class StageAttention:
    """Writes the attention of a stage's blocks.

    Args:
        graph: Graph to write into.
        config: Architecture.
        weights: Parameters by native name.
        stage: Number of the stage.
        windows: Window plan of the stage.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        config: SwinV2Config,
        weights: Mapping[str, Array],
        stage: int,
        windows: StageWindows,
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.windows = windows
        self.prefix = f"layers.{stage}"
        self.dim = config.stage_dim(stage)
        self.heads = config.num_heads[stage]
        self.head_dim = config.head_dims[stage]
        self.pretrained = bias_window(config, stage)
        self.has_bias = config.qkv_bias
        fixed = windows.fixed_window
        self.biases: dict[int, ir.Value] = self._fixed_biases(fixed) if fixed else {}
        self.first_row: ir.Value | None = None
        """Row in which the table in use begins, a vector of one element; None where there is only one."""
        self.bias_tables = [] if fixed else self._bias_tables()

    def write(self, block: int, x: ir.Value, gemm: Linear) -> ir.Value:
        """Tokens (B*H*W, C) to the same after the attention of ``block``; ``gemm`` writes a linear layer by name."""
        graph, windows, heads = self.graph, self.windows, self.heads[block]
        module = f"{self.prefix}.blocks.{block}.attn"
        shifted = block % 2 == 1 and windows.ever_shifts
        if windows.may_pad:
            x = windows.zero_row(x, self.dim)
            if windows.by_image:
                x = graph.reshape(x, -1, self.dim, name="rows")
        x = gemm(x, "qkv", self._qkv_bias(module, heads * self.head_dim))
        x = windows.split_images(x, self.head_dim, "by_head")
        indices = windows.window_indices(heads, shifted=shifted)
        q, k, v = (windows.read(x, index, name) for index, name in zip(indices, "qkv", strict=True))
        if windows.by_image and windows.joined and not windows.known_single:
            shape = (-1, heads, windows.window_tokens, self.head_dim)
            q, k, v = (
                graph.reshape(value, *shape, name=f"{name}_windows") for value, name in zip((q, k, v), "qkv", strict=True)
            )
        # The floor of the published division, 1e-12, is below every length that float32 can square: zero stays zero.
        q = graph.op("LpNormalization", q, axis=-1, p=2, name="q_normalized")
        k = graph.op("LpNormalization", k, axis=-1, p=2, name="k_normalized")
        q = graph.op("Mul", q, self._temperature(module), name="q_scaled")
        turned = [0, 1, 3, 2] if windows.joined else [0, 1, 2, 4, 3]
        logits = graph.op("MatMul", q, graph.op("Transpose", k, perm=turned, name="k_t"), name="qk")
        logits = graph.op("Add", logits, self._bias(block), name="logits")
        if shifted:
            # As the reference does it. Bias and mask together would be a tensor of (n, k, N, N) for every block, and TensorRT's
            # compiler makes those of all blocks of a stage at once: 764 MiB for base with windows of 24 at 512 px.
            logits = graph.op("Add", logits, windows.shift_mask(self._masked(module)), name="masked_logits")
        weights = graph.op("Softmax", logits, axis=-1, name="softmax")
        out = windows.split_images(graph.op("MatMul", weights, v, name="av"), self.head_dim, "slots")
        out = windows.read(out, windows.token_indices(heads, shifted=shifted), "reverse")
        out = graph.reshape(out, -1, heads * self.head_dim, name="joined")
        return gemm(out, "proj", graph.weight(f"{module}.proj.bias", self.weights[f"{module}.proj.bias"]))

    def _qkv_bias(self, module: str, width: int) -> ir.Value | None:
        if not self.has_bias:
            return None
        q, v = self.weights[f"{module}.q_bias"], self.weights[f"{module}.v_bias"]
        return self.graph.weight(f"{module}.qkv.bias", np.concatenate([q, np.zeros(width, np.float32), v]))

    def _temperature(self, module: str) -> ir.Value:
        """(k, 1, 1)."""
        return self.graph.weight(f"{module}.temperature", self._temperatures(module).reshape(-1, 1, 1))

    def _temperatures(self, module: str) -> Array:
        clamped = np.minimum(self.weights[f"{module}.logit_scale"].astype(np.float64), MAX_LOGIT_SCALE)
        return np.exp(clamped).astype(np.float32)

    def _masked(self, module: str) -> float:
        """What is added to the logit of tokens that are not to see one another.

        The published mask can be outweighed: a logit is a cosine times the temperature plus a bias of 0 to 16, so hot heads do look
        across a border, and for them the mask stays. In cooler ones all weights across the border together are below half a unit in
        the last place of float32 next to one within it, whatever the image: there a larger mask computes the same.
        """
        reach = 2 * ROUNDED * float(self._temperatures(module).max()) + BIAS_LIMIT
        tokens = self.windows.window_size**2
        return UNSEEN if tokens * math.exp(reach + MASKED) <= 2.0**-24 else MASKED

    def _bias(self, block: int) -> ir.Value:
        """(k, N, N) of a block, gathered when the first block that shares its table asks."""
        if block not in self.biases:
            table, members = next(group for group in self.bias_tables if block in group[1])
            graph, heads = self.graph, sum(self.heads[member] for member in members)
            with graph.root_scope(f"{self.prefix}.position_bias"):
                biases = self.windows.position_bias(table, heads, self.first_row)
                parts = graph.split(biases, [self.heads[member] for member in members], 0, "bias")
            self.biases.update(zip(members, parts, strict=True))
        return self.biases[block]

    def _fixed_biases(self, window: tuple[int, int]) -> dict[int, ir.Value]:
        """(k, N, N) of every block, which runtimes fold: neither table nor index depends on the input."""
        graph = self.graph
        index = graph.constant(relative_position_index(window).numpy().astype(np.int32))
        with graph.root_scope(f"{self.prefix}.position_bias"):
            return {
                block: graph.op("Gather", graph.weight(self._table_name(block), table), index, axis=1, name="bias")
                for block, table in enumerate(self._tables(window))
            }

    def _bias_tables(self) -> list[tuple[ir.Value, range]]:
        """Tables (T, K) and the blocks in each: one for the whole stage, or one a block where the biases are large."""
        graph, side = self.graph, self.windows.window_size
        together = sum(self.heads) * side**4 * np.dtype(np.float32).itemsize <= MOST_BIAS_BYTES
        blocks = range(len(self.heads))
        groups = [blocks] if together else [range(block, block + 1) for block in blocks]
        with graph.root_scope(f"{self.prefix}.position_bias"):
            if not self.pretrained:
                table = self._computed_tables()
                sizes = [sum(self.heads[block] for block in group) for group in groups]
                return list(zip(graph.split(table, sizes, 1, "table"), groups, strict=True))
        tables = self._tables((side, side))
        if together:
            return [(graph.weight(f"{self.prefix}.position_bias_table", np.concatenate(tables).T), blocks)]
        return [(graph.weight(self._table_name(block), table.T), groups[block]) for block, table in enumerate(tables)]

    def _table_name(self, block: int) -> str:
        return f"{self.prefix}.blocks.{block}.attn.position_bias_table"

    def _tables(self, window: tuple[int, int]) -> list[Array]:
        """(k, T) of every block, in float64 until the end so that folding adds no error of its own."""
        coords = relative_coords_table(window, self.pretrained or window).numpy().astype(np.float64)
        tables = []
        for block in range(len(self.heads)):
            first, bias, second = (array.astype(np.float64) for array in self._mlp(block))
            hidden = np.maximum(coords @ first.T + bias, 0)
            tables.append((BIAS_LIMIT / (1 + np.exp(-(hidden @ second.T)))).T.astype(np.float32))
        return tables

    def _computed_tables(self) -> ir.Value:
        """Tables (T, K) of the window in use; where that can be the largest, (T + count, K): of the largest one, then computed.

        Most images are as large as the largest window asks. For them the MLPs run over a single position instead of all; not over
        none, since runtimes differ in what they do with tensors of no elements.
        """
        graph, windows, side = self.graph, self.windows, self.windows.window_size
        if not windows.may_be_largest:
            return graph.op("Transpose", self._computed_table(None), perm=[1, 0], name="table_by_position")
        positions = graph.ints((2 * side - 1) ** 2)
        with graph.root_scope(f"{self.prefix}.windows"):
            smaller = graph.op("Less", windows.window_tokens, graph.ints(side * side), name="smaller_window")
            count = graph.op("Where", smaller, positions, graph.ints(1), name="computed_positions")
            self.first_row = graph.op("Where", smaller, positions, graph.ints(0), name="first_row")
        computed = graph.op("Transpose", self._computed_table(count), perm=[1, 0], name="table_by_position")
        stored = graph.weight(f"{self.prefix}.position_bias_table", np.concatenate(self._tables((side, side))).T)
        return graph.op("Concat", stored, computed, axis=0, name="tables")

    def _computed_table(self, count: ir.Value | None) -> ir.Value:
        """(K, T), or (K, count), for the largest window, with coordinates normalized by the window in use.

        The log-CPB MLPs of the blocks stand side by side.
        """
        graph = self.graph
        first, bias, second = zip(*(self._mlp(block) for block in range(len(self.heads))), strict=True)
        most = max(self.heads)
        last = np.zeros((len(self.heads), most, CPB_HIDDEN), np.float32)
        for block, array in enumerate(second):
            last[block, : len(array)] = array
        hidden = graph.op(
            "Gemm",
            graph.weight(f"{self.prefix}.cpb_mlp.0.weight", np.concatenate(first)),
            self._coords(count),
            graph.weight(f"{self.prefix}.cpb_mlp.0.bias", np.concatenate(bias)[:, None]),
            transB=1,
            name="cpb_mlp.0",
        )
        hidden = graph.reshape(graph.op("Relu", hidden, name="cpb_mlp.1"), len(self.heads), CPB_HIDDEN, -1, name="by_block")
        raw = graph.op("MatMul", graph.weight(f"{self.prefix}.cpb_mlp.2.weight", last), hidden, name="cpb_mlp.2")
        raw = graph.reshape(raw, len(self.heads) * most, -1, name="raw")
        if len(set(self.heads)) > 1:
            kept = [block * most + head for block, heads in enumerate(self.heads) for head in range(heads)]
            raw = graph.op("Gather", raw, graph.ints(*kept), axis=0, name="kept_heads")
        return graph.op("Mul", graph.op("Sigmoid", raw, name="sigmoid"), graph.float(BIAS_LIMIT), name="table")

    def _coords(self, count: ir.Value | None) -> ir.Value:
        """Log-spaced coordinates (T, 2), or the first (count, 2), of the largest window, normalized by the window in use."""
        graph, reach = self.graph, self.windows.window_size - 1
        offsets = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
        with graph.root_scope(f"{self.prefix}.windows"):
            # An axis of one token has the single coordinate 0, whatever it is divided by.
            span = graph.op(
                "Max", graph.op("Sub", self.windows.window, graph.ints(1), name="window_less_1"), graph.ints(1), name="span"
            )
            span = graph.op("Cast", span, to=ir.DataType.FLOAT, name="span_float")
            magnitude = graph.op("Div", graph.constant(np.abs(8 * offsets).astype(np.float32)), span, name="times_8")
            magnitude = graph.op("Log", graph.op("Add", magnitude, graph.float(1.0), name="plus_1"), name="log")
            signs = graph.constant((np.sign(offsets) / np.log(8.0)).astype(np.float32))
            coords = graph.op("Mul", magnitude, signs, name="coords")
            return coords if count is None else graph.slice(coords, graph.ints(0), count, axes=(0,), name="computed_coords")

    def _mlp(self, block: int) -> tuple[Array, Array, Array]:
        prefix = f"{self.prefix}.blocks.{block}.attn.cpb_mlp"
        return self.weights[f"{prefix}.0.weight"], self.weights[f"{prefix}.0.bias"], self.weights[f"{prefix}.2.weight"]
