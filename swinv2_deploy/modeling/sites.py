"""Quantization sites: the inputs of matrix products that a policy turns into INT8. No torch import.

Never a site: the L2 norm of queries and keys, the input of the softmax, LayerNorm, the position-bias MLP, the logit scale, and the
patch embedding. The classifier is left in float as well: one small product whose error lands on the logits unattenuated.
"""

from __future__ import annotations

from typing import Literal

from reference_model.config import SwinV2Config

LEVELS = 127
"""Steps from zero to the end of a range: symmetric INT8 uses -127 to 127, so that a scale means the same for both signs."""

Policy = Literal["mlp", "linear"]

POLICIES: dict[Policy, str] = {
    "mlp": "both linear layers of every MLP",
    "linear": "every linear layer of every block, and patch merging",
}


def quantization_sites(config: SwinV2Config, policy: Policy = "linear") -> tuple[str, ...]:
    """Names of the linear layers whose input and weight a policy quantizes, in the order they run."""
    layers = ("mlp.fc1", "mlp.fc2") if policy == "mlp" else ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    sites = []
    for stage, depth in enumerate(config.depths):
        sites += [f"layers.{stage}.blocks.{block}.{layer}" for block in range(depth) for layer in layers]
        if policy == "linear" and stage < config.num_stages - 1:
            sites.append(f"layers.{stage}.downsample.reduction")
    return tuple(sites)
