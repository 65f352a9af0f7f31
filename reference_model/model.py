"""Swin Transformer V2: encoder, image classifier, backbone, and what makes an image of an image. Read it top-down.

Shape letters: B batch, H W height and width of a stage's map in tokens, C channels of a stage, K classes.

Source: Swin Transformer V2 (arXiv:2111.09883); microsoft/Swin-Transformer models/swin_transformer_v2.py (f82860b).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reference_model.attention import WindowAttention
from reference_model.config import ConfigError, SwinV2Config, Task
from reference_model.decoder import PixelShuffleDecoder, replace_masked
from reference_model.windows import bias_window, pad_map, plan_windows, shift_mask, window_partition, window_reverse


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """What the encoder computes.

    Attributes:
        last_hidden_state: Normalized tokens of the last stage, (B, H*W, C).
        pooler_output: Their mean, (B, C).
        feature_maps: Name to map (B, C, H, W), before patch merging and without the final norm; only those asked for.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    feature_maps: dict[str, Tensor]


class SwinV2(nn.Module):
    """The encoder, base of every task. Use :func:`build_model` to get the right one for a config."""

    def __init__(self, config: SwinV2Config) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        if config.use_absolute_embeddings:
            grid = [-(-side // config.patch_size) for side in config.image_size]
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], config.embed_dim))
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        starts = [0, *accumulate(config.depths)]
        self.layers = nn.ModuleList(
            Stage(config, stage, rates[starts[stage] : starts[stage + 1]]) for stage in range(config.num_stages)
        )
        self.norm = nn.LayerNorm(config.final_dim, eps=config.layer_norm_eps)

    def encode(self, images: Tensor, out_features: tuple[str, ...] = ()) -> EncoderOutput:
        """Encode (B, 3, height, width) images of any size.

        Args:
            images: Normalized pixels, float.
            out_features: Feature maps to keep, from ``config.stage_names``.
        """
        return self.encode_patches(self.patch_embed(images), out_features)

    def encode_patches(self, x: Tensor, out_features: tuple[str, ...] = ()) -> EncoderOutput:
        """Encode embedded patches (B, H, W, C); see :meth:`encode`."""
        features, x = self.run_stages(x, self.config.num_stages)
        tokens = self.norm(x).flatten(1, 2)
        return EncoderOutput(
            last_hidden_state=tokens,
            pooler_output=tokens.mean(dim=1),
            feature_maps=_channels_first(features, out_features),
        )

    def run_stages(self, x: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        """Run the first stages on embedded patches (B, H, W, C).

        Args:
            x: Embedded patches, without positions.
            count: How many stages.

        Returns:
            The maps (B, H, W, C) by name, and the input of the stage behind them; without one, the last map.
        """
        if self.config.use_absolute_embeddings:
            x = x + self.position_embedding(x.shape[1], x.shape[2])
        features = {"stem": x}
        for name, stage in zip(self.config.stage_names[1 : count + 1], self.layers[:count], strict=True):
            features[name], x = stage(x)
        return features, x

    def position_embedding(self, height: int, width: int) -> Tensor:
        """Learned absolute embedding (1, H, W, C), resized bicubically to a map it was not trained for."""
        rows, columns = (-(-side // self.config.patch_size) for side in self.config.image_size)
        embedding = self.absolute_pos_embed.view(1, rows, columns, -1)
        if (rows, columns) == (height, width):
            return embedding
        resized = F.interpolate(embedding.permute(0, 3, 1, 2), (height, width), mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1)

    def forward(self, images: Tensor) -> EncoderOutput:
        """Encode (B, 3, height, width) images; see :meth:`encode`."""
        return self.encode(images)


class SwinV2Classifier(SwinV2):
    """Image classifier: encoder, mean over tokens, one linear layer."""

    def __init__(self, config: SwinV2Config) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.final_dim, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]  # each task returns what it is for
        """Logits (B, K) of (B, 3, height, width) images."""
        logits: Tensor = self.head(self.encode(images).pooler_output)
        return logits


class SwinV2Backbone(SwinV2):
    """Feature extractor: the maps named in ``config.out_features``."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Name to feature map (B, C, H, W) of (B, 3, height, width) images."""
        features, _ = self.run_stages(self.patch_embed(images), self.config.running_stages)
        return _channels_first(features, self.config.out_features)


class SwinV2MaskedImageModel(SwinV2):
    """Masked image model: hide patches behind a learned token, encode, and decode every pixel (SimMIM)."""

    def __init__(self, config: SwinV2Config) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.decoder = PixelShuffleDecoder(config)

    def forward(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Reconstruction (B, 3, height, width) of images of the same shape and any size.

        Args:
            images: Normalized pixels, float.
            bool_masked_pos: True where a patch is hidden, bool (B, patches), patches in rows, the last row and column of an image
                that does not end with a patch included. None hides nothing.

        Raises:
            MaskError: When the mask is of another type or shape.
        """
        x = self.patch_embed(images)
        if bool_masked_pos is not None:
            x = replace_masked(x, bool_masked_pos, self.mask_token)
        height, width = images.shape[-2:]
        pixels: Tensor = self.decoder(self.encode_patches(x).last_hidden_state, (height, width))
        return pixels


class SwinV2ImageReconstruction(SwinV2):
    """Image reconstruction, ``config.upscale`` times larger: the decoder of masked image modeling with a larger stride.

    It is a head for a model of your own; no published weights have this form.
    """

    def __init__(self, config: SwinV2Config) -> None:
        super().__init__(config)
        self.decoder = PixelShuffleDecoder(config)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Image (B, 3, upscale*height, upscale*width) of images (B, 3, height, width) of any size."""
        height, width = images.shape[-2:]
        pixels: Tensor = self.decoder(self.encode(images).last_hidden_state, (height, width))
        return pixels


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each to C channels; the image is zero-padded to whole patches."""

    def __init__(self, config: SwinV2Config) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Conv2d(config.num_channels, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if config.patch_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) to tokens (B, H, W, C)."""
        rows, columns = (-side % self.patch_size for side in images.shape[-2:])
        if rows or columns:
            images = F.pad(images, (0, columns, 0, rows))
        tokens: Tensor = self.norm(self.proj(images).permute(0, 2, 3, 1))
        return tokens


class Stage(nn.Module):
    """Blocks at one resolution, every second one shifted, then patch merging but for the last stage."""

    def __init__(self, config: SwinV2Config, stage: int, drop_path_rates: list[float]) -> None:
        super().__init__()
        self.checkpoint_blocks = False  # how gradients are computed, never what; see memory.limit_memory
        self.blocks = nn.ModuleList(
            Block(config, stage, block, drop_path_rates[block]) for block in range(config.depths[stage])
        )
        last = stage == config.num_stages - 1
        self.downsample = None if last else PatchMerging(config.stage_dim(stage), config.layer_norm_eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, H, W, C) to the same map after the blocks, and the input of the next stage."""
        for block in self.blocks:
            again = self.checkpoint_blocks and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x, x if self.downsample is None else self.downsample(x)


class Block(nn.Module):
    """Window attention and MLP, each followed by a LayerNorm inside its residual branch (res-post-norm)."""

    def __init__(self, config: SwinV2Config, stage: int, block: int, drop_path_rate: float) -> None:
        super().__init__()
        dim = config.stage_dim(stage)
        self.window_size = config.window_size
        self.window_policy = config.window_policy
        self.shifted = block % 2 == 1
        self.attn = WindowAttention(
            dim=dim,
            num_heads=config.num_heads[stage][block],
            head_dim=config.head_dims[stage],
            pretrained_window=bias_window(config, stage),
            qkv_bias=config.qkv_bias,
        )
        self.norm1 = _block_norm(config, stage, block, "norm1")
        self.mlp = Mlp(dim, config.mlp_hidden[stage][block])
        self.norm2 = _block_norm(config, stage, block, "norm2")
        self.drop_path = DropPath(drop_path_rate)
        self.norm3 = nn.LayerNorm(dim, eps=config.layer_norm_eps) if config.extra_norm_after(block) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = x + self.drop_path(self.norm1(self.attend(x)))
        x = x + self.drop_path(self.norm2(self.mlp(x)))
        out: Tensor = self.norm3(x)
        return out

    def attend(self, x: Tensor) -> Tensor:
        """Pad, shift, cut into windows, attend, and undo: (B, H, W, C) to (B, H, W, C)."""
        _, height, width, _ = x.shape
        plan = plan_windows(height, width, self.window_size, shifted=self.shifted, policy=self.window_policy)
        x = pad_map(x, plan)
        if plan.shift != (0, 0):
            x = torch.roll(x, (-plan.height.shift, -plan.width.shift), dims=(1, 2))
        mask = shift_mask(plan)
        windows = window_partition(x, plan.window)
        windows = self.attn(windows, plan.window, None if mask is None else mask.to(x.device))
        x = window_reverse(windows, plan.window, plan.height.padded, plan.width.padded)
        if plan.shift != (0, 0):
            x = torch.roll(x, plan.shift, dims=(1, 2))
        return x[:, :height, :width]


class Mlp(nn.Module):
    """Linear, GELU (exact), Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class PatchMerging(nn.Module):
    """Halve the map: four neighbors to one token of 4C channels, projected to 2C, then normalized."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H/2), ceil(W/2), 2C); an odd side is zero-padded at its end."""
        _, height, width, _ = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        out: Tensor = self.norm(self.reduction(torch.cat(corners, dim=-1)))
        return out


class DropPath(nn.Module):
    """Stochastic depth: while training, drop a residual branch for a random subset of the batch. Identity otherwise.

    A batch that is a part of a larger one, cut to fit into memory or shared between processes, draws for all rows of that one and
    keeps its own: see :func:`part_of_batch`.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.part: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        start, total = self.part or (0, x.shape[0])
        draws = torch.rand((total,) + (1,) * (x.ndim - 1), device=x.device)[start : start + x.shape[0]]
        keep = draws >= self.rate
        return x * (keep.to(x.dtype) / (1.0 - self.rate))


def part_of_batch(model: nn.Module, part: tuple[int, int] | None) -> None:
    """Have stochastic depth treat the next batches as rows of a larger one: (first row, rows of the whole); None undoes it."""
    for module in model.modules():
        if isinstance(module, DropPath):
            module.part = part


MODELS: dict[Task, type[SwinV2]] = {
    "classification": SwinV2Classifier,
    "encoder": SwinV2,
    "backbone": SwinV2Backbone,
    "masked_image_modeling": SwinV2MaskedImageModel,
    "image_reconstruction": SwinV2ImageReconstruction,
}
"""The model of every task."""

_HEADS = ("head.", "decoder.", "mask_token")


def build_model(config: SwinV2Config) -> SwinV2:
    """Model for ``config.task`` with PyTorch's default initialization; see :func:`initialize` for the published one.

    Raises:
        ConfigError: On an unknown task.
    """
    if config.task not in MODELS:
        raise ConfigError(f"task is {config.task!r}; expected one of {list(MODELS)}.")
    return MODELS[config.task](config)


def encoder_parameters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a model's parameters that every task has."""
    return {name: value for name, value in state_dict.items() if not name.startswith(_HEADS)}


def initialize(model: SwinV2, generator: torch.Generator) -> SwinV2:
    """Initialize in place as published: truncated normal weights, zero biases, zero post-norm gains.

    The zero gains make every block the identity at first (section 3.2 of the paper), so such a model computes almost nothing until
    it is trained.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Block):
            for norm in (module.norm1, module.norm2):
                if isinstance(norm, nn.LayerNorm):
                    nn.init.zeros_(norm.weight)
    if isinstance(model, SwinV2MaskedImageModel):
        nn.init.trunc_normal_(model.mask_token, std=0.02, a=-2.0, b=2.0, generator=generator)
    return model


def _channels_first(features: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Some maps (B, H, W, C) as (B, C, H, W), in the order of their names."""
    return {name: features[name].permute(0, 3, 1, 2) for name in names}


def _block_norm(config: SwinV2Config, stage: int, block: int, name: str) -> nn.Module:
    if (stage, block, name) in config.removed_norms:
        return nn.Identity()
    return nn.LayerNorm(config.stage_dim(stage), eps=config.layer_norm_eps)
