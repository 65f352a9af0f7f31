"""From tokens back to pixels: one 1x1 convolution, then a pixel shuffle. With it, what masked image modeling needs besides a model.

Shape letters: B batch, H W map of the last stage in tokens, C its channels, P patches of an image, s stride: pixels that a token of
the last stage becomes along each axis.

Source: SimMIM (arXiv:2111.09886); microsoft/Swin-Transformer models/simmim.py (f82860b).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_model.config import SwinV2Config


class MaskError(ValueError):
    """A mask that does not fit its images."""


class PixelShuffleDecoder(nn.Sequential):
    """Every token of the last stage becomes a square of s x s pixels, on its own.

    The stride is what the encoder reduces the image by, times ``config.upscale``. Its layers are ``0`` and ``1``, as in SimMIM.
    """

    def __init__(self, config: SwinV2Config) -> None:
        stride = config.encoder_stride * config.upscale
        super().__init__(
            nn.Conv2d(config.final_dim, config.num_channels * stride**2, kernel_size=1),
            nn.PixelShuffle(stride),
        )
        self.encoder_stride = config.encoder_stride
        self.upscale = config.upscale

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]  # an image needs its size
        """Tokens (B, H*W, C) of an image of ``size`` (height, width) in px to pixels (B, 3, height, width), times the upscale.

        The encoder pads below and to the right, so that the image is the upper left part of what its tokens become.
        """
        rows, columns = (-(-side // self.encoder_stride) for side in size)
        pixels: Tensor = self[1](self[0](tokens.transpose(1, 2).reshape(tokens.shape[0], -1, rows, columns)))
        return pixels[:, :, : size[0] * self.upscale, : size[1] * self.upscale]


def replace_masked(patches: Tensor, bool_masked_pos: Tensor, mask_token: Tensor) -> Tensor:
    """Put the mask token in the place of masked patches.

    Args:
        patches: Embedded patches (B, H, W, C), of the first stage's map.
        bool_masked_pos: True where a patch is hidden, bool (B, P), patches in rows.
        mask_token: (1, 1, C).

    Raises:
        MaskError: When the mask is of another type or shape.
    """
    batch, rows, columns, _ = patches.shape
    if bool_masked_pos.dtype != torch.bool or tuple(bool_masked_pos.shape) != (batch, rows * columns):
        raise MaskError(
            f"bool_masked_pos is {bool_masked_pos.dtype} of shape {tuple(bool_masked_pos.shape)}; expected torch.bool of shape "
            f"{(batch, rows * columns)}: {rows} rows of {columns} patches for each of {batch} images. Make it for this size."
        )
    return torch.where(bool_masked_pos.view(batch, rows, columns, 1), mask_token[:, :, None], patches)


def masked_l1_loss(images: Tensor, reconstruction: Tensor, bool_masked_pos: Tensor, patch_size: int) -> Tensor:
    """Mean absolute error over the pixels of masked patches: the loss that SimMIM trains with.

    Args:
        images: Normalized pixels (B, 3, height, width).
        reconstruction: What the model makes of them, of the same shape.
        bool_masked_pos: Its mask, bool (B, P).
        patch_size: Side of a patch in px.
    """
    height, width = images.shape[-2:]
    rows, columns = -(-height // patch_size), -(-width // patch_size)
    mask = bool_masked_pos.view(-1, 1, rows, columns).to(images.dtype)
    mask = mask.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)[:, :, :height, :width]
    error = F.l1_loss(reconstruction, images, reduction="none") * mask
    return error.sum() / (mask.sum() + 1e-5) / images.shape[1]
