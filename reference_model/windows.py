"""Window plan: how a feature map of any height and width is cut into attention windows.

The rule, for each stage and each axis alone: the window is ``min(window_size, map)``; the shift is half a window, and zero on an
axis that has one window only; the map is zero-padded at the bottom and right to a multiple of the window, *before* it is rolled;
the regions that may attend to each other are computed on the padded map.

The policy ``adaptive`` replaces ``window_size`` by the window near it that needs least padding. The position bias is a function
of the distance in tokens, so other windows than the trained one have one too; see :func:`bias_window`.

Shape letters: B batch, H W map height and width in tokens, P Q the padded H and W, h w window height and width, N = h*w tokens of
a window, n number of windows, C channels.

Source: microsoft/Swin-Transformer models/swin_transformer_v2.py (f82860b) where the map divides into windows;
huggingface/transformers models/swinv2/modeling_swinv2.py (5.23) for the padding order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_model.config import SwinV2Config, WindowPolicy
from reference_model.constants import constant

MASKED = -100.0
"""Added to the attention logits of pairs from different regions (value of the published code)."""

NEARBY = 0.25
"""An adaptive window differs from the trained one by at most this share of it; docs/methods/adaptive-windows.md says why."""


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """One axis of a window plan, in tokens.

    Attributes:
        size: Tokens of the map.
        window: Tokens of a window.
        shift: Tokens the map is rolled by.
        padded: Tokens after padding, a multiple of ``window``.
    """

    size: int
    window: int
    shift: int
    padded: int

    @property
    def count(self) -> int:
        """Windows along this axis."""
        return self.padded // self.window


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Both axes of a window plan."""

    height: AxisPlan
    width: AxisPlan

    @property
    def window(self) -> tuple[int, int]:
        return (self.height.window, self.width.window)

    @property
    def shift(self) -> tuple[int, int]:
        return (self.height.shift, self.width.shift)

    @property
    def padding(self) -> tuple[int, int]:
        """Rows added at the bottom and columns added at the right."""
        return (self.height.padded - self.height.size, self.width.padded - self.width.size)


def plan_axis(size: int, window_size: int, *, shifted: bool, policy: WindowPolicy = "fixed") -> AxisPlan:
    """Plan of one axis of ``size`` tokens.

    Raises:
        ValueError: When a number is not positive.
    """
    if size < 1 or window_size < 1:
        raise ValueError(f"A map of {size} tokens with windows of {window_size} has no plan; both must be at least 1.")
    wanted = window_size if policy == "fixed" else least_padding(size, nearby_windows(window_size))
    window = min(wanted, size)
    shift = window // 2 if shifted and size > window else 0
    return AxisPlan(size=size, window=window, shift=shift, padded=-(-size // window) * window)


def plan_windows(height: int, width: int, window_size: int, *, shifted: bool, policy: WindowPolicy = "fixed") -> WindowPlan:
    """Plan of a map of ``height`` by ``width`` tokens; ``shifted`` for every second block."""
    return WindowPlan(
        plan_axis(height, window_size, shifted=shifted, policy=policy),
        plan_axis(width, window_size, shifted=shifted, policy=policy),
    )


def nearby_windows(window_size: int, reach: float = NEARBY) -> tuple[int, ...]:
    """Windows within ``reach`` of the trained one, in order of preference: itself, then the nearest, of two the larger first."""
    windows = range(max(1, math.ceil((1 - reach) * window_size)), math.floor((1 + reach) * window_size) + 1)
    return tuple(sorted(windows, key=lambda window: (abs(window - window_size), -window)))


def least_padding(size: int, windows: Sequence[int]) -> int:
    """The window of ``windows`` that pads ``size`` tokens least; the first of several."""
    return min(windows, key=lambda window: -size % window)


def bias_window(config: SwinV2Config, stage: int) -> tuple[int, int] | None:
    """Window (height, width) that normalizes the position-bias coordinates of a stage; None means the window in use.

    Normalized by the window in use, another window would change the bias of every distance. So an adaptive window keeps the
    normalization of the window that the stage was trained with.
    """
    size = config.pretrained_window_sizes[stage]
    if size > 0:
        return (size, size)
    if config.window_policy == "fixed":
        return None
    height, width = stage_maps(*config.image_size, config.patch_size, config.num_stages)[stage]
    return (min(config.window_size, height), min(config.window_size, width))


def stage_maps(height: int, width: int, patch_size: int, num_stages: int) -> tuple[tuple[int, int], ...]:
    """Height and width in tokens of every stage for an image of ``height`` by ``width`` px: divisions round up."""
    maps = [(-(-height // patch_size), -(-width // patch_size))]
    for _ in range(num_stages - 1):
        maps.append((-(-maps[-1][0] // 2), -(-maps[-1][1] // 2)))
    return tuple(maps)


def pad_map(x: Tensor, plan: WindowPlan) -> Tensor:
    """Zero-pad (B, H, W, C) at the bottom and right to (B, P, Q, C)."""
    rows, columns = plan.padding
    return F.pad(x, (0, 0, 0, columns, 0, rows)) if rows or columns else x


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut (B, P, Q, C) into windows (B*n, N, C), row by row."""
    batch, height, width, channels = x.shape
    h, w = window
    x = x.view(batch, height // h, h, width // w, w, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, h * w, channels)


def window_reverse(windows: Tensor, window: tuple[int, int], height: int, width: int) -> Tensor:
    """Inverse of :func:`window_partition`: (B*n, N, C) back to (B, P, Q, C) with ``height`` = P and ``width`` = Q."""
    h, w = window
    x = windows.view(-1, height // h, width // w, h, w, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def shift_regions(plan: WindowPlan) -> Tensor:
    """Region of every token of the padded, rolled map: (P, Q) int64. Tokens of different regions were not neighbors."""
    rows = _axis_regions(plan.height)
    columns = _axis_regions(plan.width)
    return rows[:, None] * 3 + columns[None, :]


@lru_cache(maxsize=8)
@constant
def shift_mask(plan: WindowPlan) -> Tensor | None:
    """Additive attention mask (n, N, N), float32: 0 within a region, :data:`MASKED` across; None when nothing is shifted."""
    if plan.shift == (0, 0):
        return None
    regions = window_partition(shift_regions(plan)[None, :, :, None], plan.window).squeeze(-1)
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape).masked_fill_(apart, MASKED)


def _axis_regions(axis: AxisPlan) -> Tensor:
    positions = torch.arange(axis.padded)
    if axis.shift == 0:
        return torch.zeros_like(positions)
    return (positions >= axis.padded - axis.window).long() + (positions >= axis.padded - axis.shift).long()
