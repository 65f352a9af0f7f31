"""Swin Transformer V2 written as an ONNX graph, module by module, mirroring ``reference_model.model``.

Tokens travel as a matrix (B*H*W, C) so that every linear layer is one Gemm with its bias: the form that the integer kernels of
ONNX Runtime and TensorRT recognize. Names of nodes are the names of the modules they stand for.

Shape letters: B batch, H W map in tokens, C channels, n windows of an image, N tokens of a window, k heads, d channels of a head,
T relative positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from reference_model.attention import MAX_LOGIT_SCALE
from reference_model.config import SwinV2Config
from reference_model.position_bias import BIAS_LIMIT, relative_coords_table
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.export.graph import GraphBuilder, Int
from swinv2_deploy.export.window_graph import (
    AxisSizes,
    StageWindows,
    axis_sizes,
    merge_indices,
    merge_may_pad,
)

Array = NDArray[np.float32]

NORM_FLOOR = 1e-12
"""Smallest length a query or key is divided by (value of ``torch.nn.functional.normalize``)."""


class SwinGraph:
    """Writes the graph of one model.

    Args:
        config: Architecture.
        weights: Parameters by native name, float32.
        resolutions: Sizes the graph must be right at; one size makes a static graph.
    """

    def __init__(self, config: SwinV2Config, weights: Mapping[str, Array], resolutions: ResolutionRange) -> None:
        self.config = config
        self.weights = weights
        self.resolutions = resolutions
        self.graph = GraphBuilder()

    def build(self, producer_version: str) -> ir.Model:
        """The whole model for ``config.task``."""
        graph, config = self.graph, self.config
        static = self.resolutions.static
        sides: list[int | str] = list(self.resolutions.opt) if static else ["height", "width"]
        pixels = ir.Value(
            name="pixel_values",
            shape=ir.Shape(["batch", config.num_channels, *sides]),
            type=ir.TensorType(ir.DataType.FLOAT),
        )
        self.batch = graph.op("Shape", pixels, start=0, end=1, name="batch")
        image = (self._image_side(pixels, axis) for axis in (0, 1))
        height, width = image
        x, sizes = self._patch_embed(pixels, height, width)
        features = {"stem": (x, sizes)}
        for stage in range(config.num_stages):
            x, merged, sizes_after = self._stage(stage, x, sizes)
            features[f"stage{stage + 1}"] = (x, sizes)
            x, sizes = merged, sizes_after
        outputs = self._outputs(x, features)
        return graph.model([pixels], outputs, name="swinv2", producer_version=producer_version)

    def _image_side(self, pixels: ir.Value, axis: int) -> Int:
        smallest, largest = self.resolutions.min[axis], self.resolutions.max[axis]
        if smallest == largest:
            return smallest
        return self.graph.op("Shape", pixels, start=2 + axis, end=3 + axis, name=("height", "width")[axis])

    def _patch_embed(self, pixels: ir.Value, height: Int, width: Int) -> tuple[ir.Value, tuple[AxisSizes, AxisSizes]]:
        graph, config = self.graph, self.config
        patch = config.patch_size
        # Padding by patch-1 inside the convolution completes the last patch and, with a stride of a patch, adds none.
        ends = [-side % patch if isinstance(side, int) else patch - 1 for side in (height, width)]
        with graph.scope("patch_embed"):
            x = graph.op(
                "Conv",
                pixels,
                self._weight("patch_embed.proj.weight"),
                self._weight("patch_embed.proj.bias"),
                kernel_shape=[patch, patch],
                strides=[patch, patch],
                pads=[0, 0, *ends],
                name="proj",
            )
            x = graph.op("Transpose", x, perm=[0, 2, 3, 1], name="channels_last")
            x = graph.reshape(x, -1, config.embed_dim, name="tokens")
            if config.patch_norm:
                x = self._layer_norm(x, "patch_embed.norm")
            sizes = self._axes(0, graph.ceil_divide(height, patch), graph.ceil_divide(width, patch))
            if config.use_absolute_embeddings:
                x = self._add_position(x, sizes)
        return x, sizes

    def _add_position(self, x: ir.Value, sizes: tuple[AxisSizes, AxisSizes]) -> ir.Value:
        graph, dim = self.graph, self.config.embed_dim
        trained = [-(-side // self.config.patch_size) for side in self.config.image_size]
        table = self.weights["absolute_pos_embed"].reshape(1, *trained, dim).transpose(0, 3, 1, 2)
        embedding = graph.weight("absolute_pos_embed", table)
        if [axis.size for axis in sizes] != trained:
            target = graph.shape(1, dim, *(axis.size for axis in sizes))
            embedding = graph.op(
                "Resize",
                embedding,
                None,
                None,
                target,
                mode="cubic",
                cubic_coeff_a=-0.75,
                coordinate_transformation_mode="half_pixel",
                name="resized_position",
            )
        flat = graph.reshape(graph.op("Transpose", embedding, perm=[0, 2, 3, 1], name="position_last"), 1, -1, dim)
        batched = graph.reshape(x, self.batch, -1, dim, name="batched")
        return graph.reshape(graph.op("Add", batched, flat, name="position"), -1, dim, name="positioned")

    def _axes(self, stage: int, height: Int, width: Int) -> tuple[AxisSizes, AxisSizes]:
        step = self.config.patch_size * 2**stage
        smallest = [-(-side // step) for side in self.resolutions.min]
        window = self.config.window_size
        return (
            axis_sizes(self.graph, height, smallest[0], window),
            axis_sizes(self.graph, width, smallest[1], window),
        )

    def _stage(
        self, stage: int, x: ir.Value, sizes: tuple[AxisSizes, AxisSizes]
    ) -> tuple[ir.Value, ir.Value, tuple[AxisSizes, AxisSizes]]:
        graph, config = self.graph, self.config
        with graph.scope(f"layers.{stage}"):
            with graph.scope("windows"):
                pretrained = config.pretrained_window_sizes[stage]
                windows = StageWindows(graph, *sizes, pretrained, scope=f"layers.{stage}.windows")
            for block in range(config.depths[stage]):
                with graph.scope(f"blocks.{block}"):
                    x = self._block(stage, block, x, windows)
            if stage == config.num_stages - 1:
                return x, x, sizes
            with graph.scope("downsample"):
                merged, height, width = self._merge(stage, x, sizes, windows.tokens)
                return x, merged, self._axes(stage + 1, height, width)

    def _block(self, stage: int, block: int, x: ir.Value, windows: StageWindows) -> ir.Value:
        graph, config = self.graph, self.config
        prefix = f"layers.{stage}.blocks.{block}"
        shifted = block % 2 == 1 and windows.ever_shifts
        dim = config.stage_dim(stage)
        attended = graph.reshape(x, self.batch, -1, dim, name="batched")
        attended = self._gather_tokens(attended, windows.window_indices(shifted=shifted), windows.may_pad, dim, "partition")
        with graph.scope("attn"):
            attended = self._attention(stage, block, attended, windows, shifted=shifted)
        attended = graph.reshape(attended, self.batch, -1, dim, name="window_slots")
        attended = graph.op("Gather", attended, windows.token_indices(shifted=shifted), axis=1, name="reverse")
        attended = graph.reshape(attended, -1, dim, name="attended")
        x = graph.op("Add", x, self._block_norm(attended, stage, block, "norm1"), name="residual1")
        with graph.scope("mlp"):
            hidden = self._linear(x, f"{prefix}.mlp.fc1", name="fc1")
            hidden = graph.op("Gelu", hidden, name="act")
            hidden = self._linear(hidden, f"{prefix}.mlp.fc2", name="fc2")
        x = graph.op("Add", x, self._block_norm(hidden, stage, block, "norm2"), name="residual2")
        if config.extra_norm_period and (block + 1) % config.extra_norm_period == 0:
            x = self._layer_norm(x, f"{prefix}.norm3")
        return x

    def _attention(self, stage: int, block: int, x: ir.Value, windows: StageWindows, *, shifted: bool) -> ir.Value:
        """Tokens in window order (B*n*N, C) to the same after attention."""
        graph = self.graph
        prefix = f"layers.{stage}.blocks.{block}.attn"
        heads, head_dim = self.config.num_heads[stage][block], self.config.head_dims[stage]
        x = self._gemm(x, f"{prefix}.qkv.weight", self._qkv_bias(prefix, heads * head_dim), name="qkv")
        x = graph.reshape(x, -1, windows.window_tokens, 3 * heads, head_dim, name="heads")
        x = graph.op("Transpose", x, perm=[0, 2, 1, 3], name="heads_first")
        qk, v = graph.split(x, [2 * heads, heads], 1, "qk_v")
        # Queries are divided by their length and multiplied by the temperature in one step; keys only divided.
        length = graph.op("ReduceL2", qk, graph.ints(-1), keepdims=1, name="length")
        length = graph.op("Max", length, graph.constant(np.asarray(NORM_FLOOR, np.float32)), name="safe_length")
        qk = graph.op("Mul", qk, graph.op("Div", self._query_key_scale(prefix, heads), length, name="factor"), name="cosine")
        q, k = graph.split(qk, [heads, heads], 1, "q_k")
        logits = graph.op("MatMul", q, graph.op("Transpose", k, perm=[0, 1, 3, 2], name="k_t"), name="qk")
        bias = self._position_bias(prefix, heads, windows)
        if shifted:
            tokens = windows.window_tokens
            bias = graph.op("Add", bias, windows.shift_mask(), name="bias_and_mask")
            logits = graph.reshape(logits, -1, windows.count, heads, tokens, tokens, name="by_window")
            logits = graph.op("Add", logits, bias, name="logits")
            weights = graph.op("Softmax", logits, axis=-1, name="softmax")
            weights = graph.reshape(weights, -1, heads, tokens, tokens, name="weights")
        else:
            weights = graph.op("Softmax", graph.op("Add", logits, bias, name="logits"), axis=-1, name="softmax")
        out = graph.op("MatMul", weights, v, name="av")
        out = graph.op("Transpose", out, perm=[0, 2, 1, 3], name="heads_last")
        out = graph.reshape(out, -1, heads * head_dim, name="joined")
        return self._linear(out, f"{prefix}.proj", name="proj")

    def _position_bias(self, prefix: str, heads: int, windows: StageWindows) -> ir.Value:
        """(k, N, N): a stored table where the window is fixed, else the log-CPB MLP in the graph."""
        graph = self.graph
        names = (f"{prefix}.cpb_mlp.0.weight", f"{prefix}.cpb_mlp.0.bias", f"{prefix}.cpb_mlp.2.weight")
        if windows.fixed_window is not None:
            pretrained = (windows.pretrained,) * 2 if windows.pretrained else windows.fixed_window
            coords = relative_coords_table(windows.fixed_window, (pretrained[0], pretrained[1])).numpy()
            table: ir.Value = graph.weight(f"{prefix}.position_bias_table", self._bias_table(names, coords))
        else:
            with graph.scope("cpb_mlp"):
                hidden = graph.op("Gemm", windows.bias_coords(), *(self._weight(name) for name in names[:2]), transB=1, name="0")
                hidden = graph.op("Relu", hidden, name="1")
                raw = graph.op("Gemm", self._weight(names[2]), hidden, transB=1, name="2")
                limit = graph.constant(np.asarray(BIAS_LIMIT, np.float32))
                table = graph.op("Mul", graph.op("Sigmoid", raw, name="sigmoid"), limit, name="table")
        return graph.op("Gather", table, windows.bias_index(), axis=1, name="position_bias")

    def _bias_table(self, names: tuple[str, str, str], coords: Array) -> Array:
        """(k, T), computed once in float64 so that folding adds no error of its own."""
        first, bias, second = (self.weights[name].astype(np.float64) for name in names)
        hidden = np.maximum(coords.astype(np.float64) @ first.T + bias, 0)
        return (BIAS_LIMIT / (1 + np.exp(-(hidden @ second.T)))).T.astype(np.float32)

    def _query_key_scale(self, prefix: str, heads: int) -> ir.Value:
        """(1, 2k, 1, 1): the temperature of every head for its query, 1 for its key."""
        scale = np.exp(np.minimum(self.weights[f"{prefix}.logit_scale"].astype(np.float64).reshape(-1), MAX_LOGIT_SCALE))
        joined = np.concatenate([scale, np.ones(heads)]).astype(np.float32)
        return self.graph.weight(f"{prefix}.query_key_scale", joined.reshape(1, -1, 1, 1))

    def _qkv_bias(self, prefix: str, width: int) -> ir.Value | None:
        if not self.config.qkv_bias:
            return None
        q, v = self.weights[f"{prefix}.q_bias"], self.weights[f"{prefix}.v_bias"]
        return self.graph.weight(f"{prefix}.qkv.bias", np.concatenate([q, np.zeros(width, np.float32), v]))

    def _merge(
        self, stage: int, x: ir.Value, sizes: tuple[AxisSizes, AxisSizes], tokens: Int
    ) -> tuple[ir.Value, Int, Int]:
        graph, dim = self.graph, self.config.stage_dim(stage)
        index, height, width = merge_indices(graph, *sizes, tokens)
        x = graph.reshape(x, self.batch, -1, dim, name="batched")
        x = self._gather_tokens(x, index, merge_may_pad(*sizes), 4 * dim, "neighbors")
        x = self._gemm(x, f"layers.{stage}.downsample.reduction.weight", None, name="reduction")
        return self._layer_norm(x, f"layers.{stage}.downsample.norm"), height, width

    def _gather_tokens(self, x: ir.Value, index: ir.Value, may_pad: bool, width: int, name: str) -> ir.Value:
        """Reorder (B, tokens, C) by ``index``, whose largest value may mean a row of zeros, to a matrix of ``width`` columns."""
        graph = self.graph
        if may_pad:
            x = graph.op("Pad", x, graph.ints(0, 0, 0, 0, 1, 0), name="zero_row")
        x = graph.op("Gather", x, index, axis=1, name=name)
        return graph.reshape(x, -1, width, name=f"{name}_rows")

    def _outputs(self, x: ir.Value, features: Mapping[str, tuple[ir.Value, tuple[AxisSizes, AxisSizes]]]) -> list[ir.Value]:
        graph, config = self.graph, self.config
        sides: tuple[int | str | None, ...]
        if config.task == "backbone":
            maps = []
            for name in config.out_features:
                value, (height, width) = features[name]
                dim = value_dim(config, name)
                value = graph.reshape(value, self.batch, height.size, width.size, dim, name=f"{name}_map")
                value = graph.op("Transpose", value, perm=[0, 3, 1, 2], name=f"feature_maps.{name}")
                sides = tuple(
                    axis.size if isinstance(axis.size, int) else f"{name}_{side}"
                    for axis, side in ((height, "height"), (width, "width"))
                )
                maps.append(_output(value, f"feature_maps.{name}", ["batch", dim, *sides]))
            return maps
        tokens = self._layer_norm(x, "norm")
        hidden = graph.reshape(tokens, self.batch, -1, config.final_dim, name="last_hidden_state")
        pooled = graph.op("ReduceMean", hidden, graph.ints(1), keepdims=0, name="pooler_output")
        if config.task == "encoder":
            last = features[config.stage_names[-1]][1]
            known = [axis.size for axis in last if isinstance(axis.size, int)]
            count: int | str = known[0] * known[1] if len(known) == 2 else "tokens"
            return [
                _output(hidden, "last_hidden_state", ["batch", count, config.final_dim]),
                _output(pooled, "pooler_output", ["batch", config.final_dim]),
            ]
        logits = self._linear(pooled, "head", name="head")
        return [_output(logits, "logits", ["batch", config.num_classes])]

    def _weight(self, name: str) -> ir.Value:
        return self.graph.weight(name, self.weights[name])

    def _linear(self, x: ir.Value, module: str, name: str) -> ir.Value:
        return self._gemm(x, f"{module}.weight", self._weight(f"{module}.bias"), name=name)

    def _gemm(self, x: ir.Value, weight: str, bias: ir.Value | None, name: str) -> ir.Value:
        inputs = [x, self._weight(weight)] if bias is None else [x, self._weight(weight), bias]
        return self.graph.op("Gemm", *inputs, transB=1, name=name)

    def _layer_norm(self, x: ir.Value, module: str) -> ir.Value:
        gain, bias = self._weight(f"{module}.weight"), self._weight(f"{module}.bias")
        name = module.rsplit(".", 1)[-1]
        return self.graph.op("LayerNormalization", x, gain, bias, axis=-1, epsilon=self.config.layer_norm_eps, name=name)

    def _block_norm(self, x: ir.Value, stage: int, block: int, norm: str) -> ir.Value:
        if (stage, block, norm) in self.config.removed_norms:
            return x
        return self._layer_norm(x, f"layers.{stage}.blocks.{block}.{norm}")


def value_dim(config: SwinV2Config, feature: str) -> int:
    """Channels of a named feature map."""
    index = config.stage_names.index(feature)
    return config.stage_dim(max(0, index - 1))


def _output(value: ir.Value, name: str, shape: list[int | str | None]) -> ir.Value:
    value.name = name
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape(shape)
    return value
