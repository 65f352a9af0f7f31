"""Every matrix product of one forward pass, counted from the config. No torch import.

A product multiplies (M, K) by (K, N); shape letters otherwise: B batch, H W map in tokens, C channels, w window side.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from reference_model.config import SwinV2Config


@dataclass(frozen=True, slots=True)
class Product:
    """One shape of product.

    Attributes:
        m: Rows of the left matrix.
        k: Columns of the left matrix.
        n: Columns of the right matrix.
        stack: Products of this shape computed at once (windows x heads in attention).
        linear: Whether it belongs to a block's linear layers or patch merging, which this project quantizes.
    """

    m: int
    k: int
    n: int
    stack: int = 1
    linear: bool = True

    @property
    def operations(self) -> int:
        """Floating point operations: a multiplication and an addition each."""
        return 2 * self.m * self.k * self.n * self.stack


def products(config: SwinV2Config, batch: int) -> Counter[Product]:
    """How often each product occurs in one forward pass of the classifier at its own image size."""
    found: Counter[Product] = Counter()
    height, width = (-(-side // config.patch_size) for side in config.image_size)
    found[Product(batch * height * width, config.num_channels * config.patch_size**2, config.embed_dim, linear=False)] += 1
    for stage, depth in enumerate(config.depths):
        channels, head_dim = config.stage_dim(stage), config.head_dims[stage]
        sides = [min(config.window_size, side) for side in (height, width)]
        windows = -(-height // sides[0]) * -(-width // sides[1])
        tokens, area = batch * height * width, sides[0] * sides[1]
        padded = batch * windows * area
        for block in range(depth):
            heads, hidden = config.num_heads[stage][block], config.mlp_hidden[stage][block]
            inner = heads * head_dim
            found[Product(padded, channels, 3 * inner)] += 1
            found[Product(area, head_dim, area, batch * windows * heads, linear=False)] += 1
            found[Product(area, area, head_dim, batch * windows * heads, linear=False)] += 1
            found[Product(padded, inner, channels)] += 1
            found[Product(tokens, channels, hidden)] += 1
            found[Product(tokens, hidden, channels)] += 1
        if stage < config.num_stages - 1:
            height, width = -(-height // 2), -(-width // 2)
            found[Product(batch * height * width, 4 * channels, 2 * channels)] += 1
    found[Product(batch, config.final_dim, config.num_classes, linear=False)] += 1
    return found


def operations(found: Counter[Product], *, linear: bool) -> int:
    """Floating point operations of the products that INT8 reaches, or of the others."""
    return sum(product.operations * count for product, count in found.items() if product.linear == linear)
