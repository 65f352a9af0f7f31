"""Scaled cosine window attention.

Shape letters: B batch, n windows of an image, N tokens of a window, C channels in and out, k heads, d channels of a head.

Source: Swin Transformer V2, section 3.2, equation 2; microsoft/Swin-Transformer models/swin_transformer_v2.py (f82860b).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reference_model.position_bias import PositionBias

MAX_LOGIT_SCALE = math.log(100.0)
"""The learned temperature is clamped so that a cosine is multiplied by 100 at most."""


class Product(nn.Module):
    """Where the two tensors of a batched product meet: ``a @ b``.

    It has no parameters. As a module it lets both tensors be watched from outside by name, as a linear layer lets its input.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., m, c) and (..., c, n) to (..., m, n)."""
        return a @ b


class WindowAttention(nn.Module):
    """Self-attention inside each window: ``softmax(cos(q, k) * scale + bias + mask) v``.

    Args:
        dim: Channels C.
        num_heads: Heads k, possibly fewer than trained after pruning.
        head_dim: Channels d of a head.
        pretrained_window: Window that normalizes the position bias; None means the window in use.
        qkv_bias: Whether query and value have a bias. Key has none.
    """

    def __init__(
        self, *, dim: int, num_heads: int, head_dim: int, pretrained_window: tuple[int, int] | None, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.pretrained_window = pretrained_window
        self.window_chunk = 0  # windows at a time, 0 for all: how it is computed, never what; see memory.limit_memory
        width = num_heads * head_dim
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = PositionBias(num_heads)
        self.qkv = nn.Linear(dim, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.qk = Product()  # of normalized queries and keys
        self.av = Product()  # of attention weights and values
        self.proj = nn.Linear(width, dim)

    def forward(self, x: Tensor, window: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Attend within windows.

        Args:
            x: Tokens of all windows, (B*n, N, C).
            window: Height and width of the window, with product N.
            mask: Additive mask (n, N, N) or None.

        Returns:
            Tokens (B*n, N, C).
        """
        # Outside autocast, as the logits that it is added to.
        with torch.autocast(x.device.type, enabled=False):
            bias = self.cpb_mlp(window, self.pretrained_window)
        if 0 < self.window_chunk < x.shape[0]:
            return self.attend_in_chunks(x, bias, mask)
        return self.attend(x, bias, mask)

    def attend_in_chunks(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """The same as :meth:`attend`, (B*n, N, C) to (B*n, N, C), ``window_chunk`` windows at a time: none looks at another.

        Where gradients are wanted, a chunk's logits are computed again on the way back instead of being kept.
        """
        out = []
        for start in range(0, x.shape[0], self.window_chunk):
            part = x[start : start + self.window_chunk]
            # Each window of the chunk gets its own mask: the chunk may begin or end inside an image.
            at = torch.arange(start, start + part.shape[0], device=x.device)
            part_mask = None if mask is None else mask[at % mask.shape[0]]
            if torch.is_grad_enabled():
                part = checkpoint(self.attend, part, bias, part_mask, use_reentrant=False)
            else:
                part = self.attend(part, bias, part_mask)
            out.append(part)
        return torch.cat(out)

    def attend(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows (B*n, N, C), given the position bias (k, N, N) and the mask (n, N, N) or None."""
        rows, tokens, _ = x.shape
        qkv = self.qkv(x)
        qkv_bias = self.qkv_bias()
        if qkv_bias is not None:
            qkv = qkv + qkv_bias.to(qkv.dtype)
        q, k, v = qkv.view(rows, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        # Logits reach 116, so under autocast they stay in float32: bfloat16 would round them by up to 0.5.
        with torch.autocast(x.device.type, enabled=False):
            scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
            precise = torch.promote_types(q.dtype, torch.float32)
            q, k = F.normalize(q.to(precise), dim=-1), F.normalize(k.to(precise), dim=-1)
            logits = self.qk(q, k.transpose(-2, -1)) * scale
            logits = logits + bias
            if mask is not None:
                windows = mask.shape[0]
                logits = logits.view(-1, windows, self.num_heads, tokens, tokens) + mask[:, None]
                logits = logits.view(rows, self.num_heads, tokens, tokens)
            weights = logits.softmax(dim=-1).to(v.dtype)
        out = self.av(weights, v).transpose(1, 2).reshape(rows, tokens, -1)
        projected: Tensor = self.proj(out)
        return projected

    def qkv_bias(self) -> Tensor | None:
        """Bias of the joint projection, (3*k*d,), zero for the keys; None when there is none."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
