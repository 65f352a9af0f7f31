"""Quantization sites: the inputs of matrix products that a policy turns into INT8. No torch import.

The site of a linear layer bears its name, and its weight belongs to it. A product of two activations has two sites, its name and
the place of the operand: ``layers.0.blocks.1.attn.qk.0`` is what stands left in queries times keys, normalized and not yet scaled.

Never a site: the L2 norm of queries and keys, the input of the softmax, LayerNorm, the position-bias MLP, the logit scale, and the
patch embedding. The classifier is left in float as well: one small product whose error lands on the logits unattenuated.
"""

from __future__ import annotations

from typing import Literal

from reference_model.config import SwinV2Config

LEVELS = 127
"""Steps from zero to the end of a range: symmetric INT8 uses -127 to 127, so that a scale means the same for both signs."""

Policy = Literal["mlp", "linear", "attention"]

POLICIES: dict[Policy, str] = {
    "mlp": "both linear layers of every MLP",
    "linear": "every linear layer of every block, and patch merging",
    "attention": "all of linear, and both products of activations in every attention",
}

PRODUCTS = ("attn.qk", "attn.av")
"""Products of activations of a block: queries times keys, attention weights times values."""


def quantization_sites(config: SwinV2Config, policy: Policy = "linear") -> tuple[str, ...]:
    """Sites that a policy quantizes, in the order they run."""
    operands = tuple(f"{product}.{place}" for product in PRODUCTS for place in (0, 1)) if policy == "attention" else ()
    layers = ("mlp.fc1", "mlp.fc2") if policy == "mlp" else ("attn.qkv", *operands, "attn.proj", "mlp.fc1", "mlp.fc2")
    sites = []
    for stage, depth in enumerate(config.depths):
        sites += [f"layers.{stage}.blocks.{block}.{layer}" for block in range(depth) for layer in layers]
        if policy != "mlp" and stage < config.num_stages - 1:
            sites.append(f"layers.{stage}.downsample.reduction")
    return tuple(sites)


def operand_of(site: str) -> tuple[str, int] | None:
    """Name of the product and place of the operand, for a site that is one; None for a linear layer."""
    product, _, place = site.rpartition(".")
    return (product, int(place)) if place in ("0", "1") and product.endswith(PRODUCTS) else None
