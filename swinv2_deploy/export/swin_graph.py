"""Swin Transformer V2 written as an ONNX graph, module by module, mirroring ``reference_model.model``.

Tokens travel as a matrix (B*H*W, C) so that every linear layer is one Gemm with its bias: the form that the integer kernels of
ONNX Runtime and TensorRT recognize. Names of nodes are the names of the modules they stand for.

Shape letters: B batch, H W map in tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from reference_model.config import DECODER_TASKS, SwinV2Config
from reference_model.masking import patch_count
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.export.attention_graph import Array, StageAttention
from swinv2_deploy.export.graph import GraphBuilder
from swinv2_deploy.export.window_graph import MapSize, StageWindows, map_sizes


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
        inputs = [pixels]
        if config.task == "masked_image_modeling":
            inputs.append(self._mask_input())
        x, sizes = self._patch_embed(*inputs)
        features = {"stem": (x, sizes[0])}
        for stage, size in enumerate(sizes):
            scope = f"layers.{stage}.windows"
            windows = StageWindows(graph, size, config.window_size, scope, self.batch, config.window_policy)
            x = self._stage(stage, x, windows)
            features[f"stage{stage + 1}"] = (x, size)
            if stage + 1 < len(sizes):
                x = self._merge(stage, x, windows, sizes[stage + 1])
        outputs = [self._image(x, sizes[-1], pixels)] if config.task in DECODER_TASKS else self._outputs(x, features)
        return graph.model(inputs, outputs, name="swinv2", producer_version=producer_version)

    def _mask_input(self) -> ir.Value:
        """True where a patch is hidden."""
        patches: int | str = (
            patch_count(*self.resolutions.opt, self.config.patch_size) if self.resolutions.static else "patches"
        )
        return ir.Value(name="bool_masked_pos", shape=ir.Shape(["batch", patches]), type=ir.TensorType(ir.DataType.BOOL))

    def _image_size(self, pixels: ir.Value) -> ir.Value:
        """Height and width of the input in px."""
        if self.resolutions.static:
            return self.graph.ints(*self.resolutions.opt)
        return self.graph.op("Shape", pixels, start=2, end=4, name="image_size")

    def _map_sizes(self, pixels: ir.Value) -> list[MapSize]:
        """Sizes of the stages' maps."""
        config, sides = self.config, self.resolutions
        strides = [config.patch_size * 2**stage for stage in range(config.num_stages)]
        return map_sizes(self.graph, self._image_size(pixels), sides.min, sides.max, strides, config.window_size)

    def _patch_embed(self, pixels: ir.Value, hidden: ir.Value | None = None) -> tuple[ir.Value, list[MapSize]]:
        graph, config = self.graph, self.config
        patch = config.patch_size
        # Padding by patch-1 inside the convolution completes the last patch and, with a stride of a patch, adds none.
        sides = zip(self.resolutions.min, self.resolutions.max, strict=True)
        ends = [-low % patch if low == high else patch - 1 for low, high in sides]
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
            sizes = self._map_sizes(pixels)
            if hidden is not None:
                x = self._hide(x, hidden, sizes[0])
            if config.use_absolute_embeddings:
                x = self._add_position(x, sizes[0])
        return x, sizes

    def _hide(self, x: ir.Value, hidden: ir.Value, size: MapSize) -> ir.Value:
        """The mask token in the place of hidden patches."""
        graph, dim = self.graph, self.config.embed_dim
        # With its full shape, so that a mask of another size is refused and never spread over the patches.
        count = graph.op("ReduceProd", size.value, keepdims=1, name="patch_count")
        hidden = graph.reshape(hidden, self.batch, count, 1, name="hidden")
        # Tokens stay in rows: OpenVINO does not load an INT8 file of one size that gives them another shape behind a norm.
        rows = graph.reshape(hidden, -1, 1, name="hidden_rows")
        token = graph.weight("mask_token", self.weights["mask_token"].reshape(1, dim))
        return graph.op("Where", rows, token, x, name="shown")

    def _add_position(self, x: ir.Value, size: MapSize) -> ir.Value:
        graph, dim = self.graph, self.config.embed_dim
        trained = [-(-side // self.config.patch_size) for side in self.config.image_size]
        table = self.weights["absolute_pos_embed"].reshape(1, *trained, dim).transpose(0, 3, 1, 2)
        embedding = graph.weight("absolute_pos_embed", table)
        if size.known != tuple(trained):
            target = graph.shape(1, dim, size.value)
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

    def _stage(self, stage: int, x: ir.Value, windows: StageWindows) -> ir.Value:
        """The stage's tokens behind its blocks."""
        graph, config = self.graph, self.config
        attention = StageAttention(graph, config, self.weights, stage, windows)
        with graph.scope(f"layers.{stage}"):
            for block in range(config.depths[stage]):
                with graph.scope(f"blocks.{block}"):
                    x = self._block(stage, block, x, attention)
        return x

    def _block(self, stage: int, block: int, x: ir.Value, attention: StageAttention) -> ir.Value:
        graph, config = self.graph, self.config
        prefix = f"layers.{stage}.blocks.{block}"
        with graph.scope("attn"):
            attended = attention.write(
                block, x, lambda rows, layer, bias: self._gemm(rows, f"{prefix}.attn.{layer}.weight", bias, name=layer)
            )
        x = graph.op("Add", x, self._block_norm(attended, stage, block, "norm1"), name="residual1")
        with graph.scope("mlp"):
            hidden = self._linear(x, f"{prefix}.mlp.fc1", name="fc1")
            hidden = graph.op("Gelu", hidden, name="act")
            hidden = self._linear(hidden, f"{prefix}.mlp.fc2", name="fc2")
        x = graph.op("Add", x, self._block_norm(hidden, stage, block, "norm2"), name="residual2")
        if config.extra_norm_after(block):
            x = self._layer_norm(x, f"{prefix}.norm3")
        return x

    def _merge(self, stage: int, x: ir.Value, windows: StageWindows, merged: MapSize) -> ir.Value:
        """Tokens of the next stage."""
        graph, dim = self.graph, self.config.stage_dim(stage)
        prefix = f"layers.{stage}.downsample"
        with graph.scope(prefix):
            x = windows.zero_row(x, dim) if windows.merge_may_pad else windows.split_images(x, dim, "batched")
            x = windows.read(x, windows.merge_indices(merged.value), "neighbors")
            x = graph.reshape(x, -1, 4 * dim, name="neighbor_rows")
            x = self._gemm(x, f"{prefix}.reduction.weight", None, name="reduction")
            return self._layer_norm(x, f"{prefix}.norm")

    def _outputs(self, x: ir.Value, features: Mapping[str, tuple[ir.Value, MapSize]]) -> list[ir.Value]:
        graph, config = self.graph, self.config
        sides: tuple[int | str | None, ...]
        if config.task == "backbone":
            maps = []
            for name in config.out_features:
                value, size = features[name]
                dim = value_dim(config, name)
                rows_and_columns: tuple[int | ir.Value, ...] = (size.value,)
                if size.known and _is_norm(value):
                    # In an INT8 file of one size OpenVINO moves the norm's gain behind a shape that it can make a constant,
                    # and then multiplies the wrong channels.
                    rows_and_columns = (size.known[0], -1)
                value = graph.reshape(value, self.batch, *rows_and_columns, dim, name=f"{name}_map")
                value = graph.op("Transpose", value, perm=[0, 3, 1, 2], name=f"feature_maps.{name}")
                sides = size.known or (f"{name}_height", f"{name}_width")
                maps.append(_output(value, f"feature_maps.{name}", ["batch", dim, *sides]))
            return maps
        tokens = self._layer_norm(x, "norm")
        hidden = graph.reshape(tokens, self.batch, -1, config.final_dim, name="last_hidden_state")
        pooled = graph.op("ReduceMean", hidden, graph.ints(1), keepdims=0, name="pooler_output")
        if config.task == "encoder":
            last = features[config.stage_names[-1]][1]
            count: int | str = last.known[0] * last.known[1] if last.known else "tokens"
            return [
                _output(hidden, "last_hidden_state", ["batch", count, config.final_dim]),
                _output(pooled, "pooler_output", ["batch", config.final_dim]),
            ]
        logits = self._linear(pooled, "head", name="head")
        return [_output(logits, "logits", ["batch", config.num_classes])]

    def _image(self, x: ir.Value, size: MapSize, pixels: ir.Value) -> ir.Value:
        """Decoder: every token of the last stage becomes a square of pixels; what lies beyond the image is cut off."""
        graph, config = self.graph, self.config
        side, channels = config.encoder_stride * config.upscale, config.num_channels
        weight = self.weights["decoder.0.weight"].reshape(-1, config.final_dim)
        tokens = self._layer_norm(x, "norm")
        squares = graph.op(
            "Gemm", tokens, graph.weight("decoder.0.weight", weight), self._weight("decoder.0.bias"), transB=1, name="decoder.0"
        )
        with graph.scope("decoder"):
            squares = graph.reshape(squares, self.batch, size.value, channels, side, side, name="squares")
            squares = graph.op("Transpose", squares, perm=[0, 3, 1, 4, 2, 5], name="pixel_shuffle")
            whole = graph.op("Mul", size.value, graph.ints(side, side), name="whole_size")
            image = graph.reshape(squares, self.batch, channels, whole, name="image")
            target = graph.op("Mul", self._image_size(pixels), graph.ints(config.upscale, config.upscale), name="target_size")
            ends, reached = graph.known(target), graph.known(whole)
            if ends is None or reached is None or (ends != reached).any():
                image = graph.op("Slice", image, graph.ints(0, 0), target, graph.ints(2, 3), name="cropped")
        sides: list[int | str] = ["height", "width"] if config.upscale == 1 else ["upscaled_height", "upscaled_width"]
        if ends is not None:
            sides = [int(end) for end in ends]
        return _output(image, "reconstruction", ["batch", channels, *sides])

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


def _is_norm(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "LayerNormalization"


def value_dim(config: SwinV2Config, feature: str) -> int:
    """Channels of a named feature map."""
    index = config.stage_names.index(feature)
    return config.stage_dim(max(0, index - 1))


def _output(value: ir.Value, name: str, shape: list[int | str | None]) -> ir.Value:
    value.name = name
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape(shape)
    return value
