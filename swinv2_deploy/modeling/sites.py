"""Quantization sites: the matrix products whose inputs a policy turns into INT8. No torch import.

A site is a linear layer, or a batched product of two activations inside attention. A linear layer has one activation with a range,
named as the layer; a batched product has two, named ``<site>.<input>``.

Never a site: the L2 norm of queries and keys, the input of the softmax, LayerNorm, the position-bias MLP, the logit scale, and the
patch embedding. The classifier is left in float as well: one small product whose error lands on the logits unattenuated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from reference_model.config import SwinV2Config
from swinv2_deploy.errors import QuantizeError

LEVELS = 127
"""Steps from zero to the end of a range: symmetric INT8 uses -127 to 127, so that a scale means the same for both signs."""

Policy = Literal["mlp", "linear", "attention"]

POLICIES: dict[Policy, str] = {
    "mlp": "both linear layers of every MLP",
    "linear": "every linear layer of every block, and patch merging",
    "attention": "the same and both batched products of attention: queries by keys, softmax weights by values",
}

BATCHED: dict[str, tuple[str, str]] = {"attn.qk": ("q", "k"), "attn.av": ("weights", "v")}
"""Batched products of a block, and what their two inputs are called."""

_LAYERS: dict[Policy, tuple[str, ...]] = {
    "mlp": ("mlp.fc1", "mlp.fc2"),
    "linear": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    "attention": ("attn.qkv", "attn.qk", "attn.av", "attn.proj", "mlp.fc1", "mlp.fc2"),
}


def quantization_sites(config: SwinV2Config, policy: Policy = "linear") -> tuple[str, ...]:
    """Names of the products that a policy quantizes, in the order they run; none that no output depends on."""
    sites = []
    for stage, depth in enumerate(config.running_depths):
        sites += [f"layers.{stage}.blocks.{block}.{layer}" for block in range(depth) for layer in _LAYERS[policy]]
        if policy != "mlp" and stage < config.running_stages - 1:
            sites.append(f"layers.{stage}.downsample.reduction")
    return tuple(sites)


def input_names(site: str) -> tuple[str, ...]:
    """Names of the activations of a site that have a range: its own name, or ``<site>.q`` and ``<site>.k``."""
    return tuple(f"{site}.{name}" for name in _two_inputs(site)) or (site,)


def watched_inputs(sites: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Every activation of some sites by name: the module it enters, and at which position."""
    return {name: (site, place) for site in sites for place, name in enumerate(input_names(site))}


def ranges_by_site(ranges: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
    """Ranges of activations put together by site, in the order of the inputs.

    Raises:
        QuantizeError: When a batched product has the range of one input only.
    """
    found: dict[str, tuple[float, ...]] = {}
    for name in ranges:
        parent, _, last = name.rpartition(".")
        site = parent if last in _two_inputs(parent) else name
        missing = [part for part in input_names(site) if part not in ranges]
        if missing:
            raise QuantizeError(f"There is no range of {missing[0]}; expected one of both inputs of {site}. Calibrate again.")
        found[site] = tuple(ranges[part] for part in input_names(site))
    return found


def _two_inputs(site: str) -> tuple[str, ...]:
    return next((names for product, names in BATCHED.items() if site.endswith(f".{product}")), ())
