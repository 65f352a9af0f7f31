"""Log-spaced continuous position bias (log-CPB): a small MLP from relative coordinates to one bias a head.

Shape letters: h w window height and width, N = h*w, T = (2h-1)*(2w-1) relative positions, n heads.

Source: Swin Transformer V2, section 3.3, equations 3 and 4; microsoft/Swin-Transformer models/swin_transformer_v2.py (f82860b).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from reference_model.constants import constant

BIAS_LIMIT = 16.0
"""The bias lies in (0, 16): ``16 * sigmoid(mlp(coords))``."""

CPB_HIDDEN = 512
"""Hidden units of the MLP in every published model."""


@lru_cache(maxsize=64)
@constant
def relative_coords_table(window: tuple[int, int], pretrained: tuple[int, int]) -> Tensor:
    """Log-spaced relative coordinates (T, 2), float32, in [-1, 1] at the pretrained window and beyond it outside.

    Args:
        window: Window in use, in tokens.
        pretrained: Window the bias was trained with, which normalizes the coordinates.
    """
    axes = []
    for size, trained in zip(window, pretrained, strict=True):
        coords = torch.arange(-(size - 1), size, dtype=torch.float32)
        # An axis of one token has the single coordinate 0; the published code divides 0 by 0 there.
        axes.append(coords / (trained - 1) if trained > 1 else coords)
    table = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)
    table *= 8
    return torch.sign(table) * torch.log2(torch.abs(table) + 1.0) / math.log2(8)


@lru_cache(maxsize=64)
@constant
def relative_position_index(window: tuple[int, int]) -> Tensor:
    """Row of the coordinate table for every (query, key) pair of a window: (N, N) int64."""
    h, w = window
    rows = torch.arange(h)
    columns = torch.arange(w)
    row_offset = rows[:, None] - rows[None, :] + h - 1
    column_offset = columns[:, None] - columns[None, :] + w - 1
    index = row_offset[:, None, :, None] * (2 * w - 1) + column_offset[None, :, None, :]
    return index.reshape(h * w, h * w)


class PositionBias(nn.Sequential):
    """The log-CPB MLP of one block: Linear(2, 512), ReLU, Linear(512, n) without bias. A Sequential for its published key names."""

    def __init__(self, num_heads: int) -> None:
        super().__init__(nn.Linear(2, CPB_HIDDEN), nn.ReLU(), nn.Linear(CPB_HIDDEN, num_heads, bias=False))

    def bias_table(self, window: tuple[int, int], pretrained: tuple[int, int] | None) -> Tensor:
        """Bias of every relative position and head: (T, n), in (0, 16).

        Args:
            window: Window in use, in tokens.
            pretrained: Window that normalizes the coordinates; None means the window in use.
        """
        parameter = next(self.parameters())
        coords = relative_coords_table(window, pretrained or window).to(parameter.device, parameter.dtype)
        hidden, activation, out = self
        table: Tensor = BIAS_LIMIT * torch.sigmoid(out(activation(hidden(coords))))
        return table

    def forward(  # type: ignore[override]  # takes a window, not a tensor
        self, window: tuple[int, int], pretrained: tuple[int, int] | None
    ) -> Tensor:
        """Bias added to the attention logits of a window: (n, N, N)."""
        table = self.bias_table(window, pretrained)
        index = relative_position_index(window).to(table.device)
        return table[index].permute(2, 0, 1)
