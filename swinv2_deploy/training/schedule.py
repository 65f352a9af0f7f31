"""Learning rate over a run and over the layers, and which parameters decay."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

from swinv2_deploy.errors import SpecError

_BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.blocks\.(\d+)\.")
_MERGING = re.compile(r"(?:^|\.)layers\.(\d+)\.downsample\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:patch_embed\.|absolute_pos_embed$|mask_token$)")


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, final: float) -> float:
    """Linear warm-up to ``peak`` over ``warmup`` steps, then a half cosine to ``final`` at ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Optimizer groups by weight decay and learning rate.

    Matrices decay; vectors, single numbers, ``logit_scale`` and the position-bias MLP do not (as published). Each group's
    ``lr_scale`` multiplies the learning rate of the schedule: ``layer_decay`` to the number of layers above its own. Parameters
    that need no gradient are in no group.

    Raises:
        SpecError: When layers shall differ and the model has no numbered blocks.
    """
    layers = number_layers(model) if layer_decay != 1.0 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or "logit_scale" in name or "cpb_mlp" in name or "pos_embed" in name
        scale = layer_decay ** (max(layers.values()) - layers[name]) if layers else 1.0
        groups.setdefault((scale, 0.0 if plain else weight_decay), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
    return [{"params": found, "weight_decay": decay, "lr_scale": scale} for (scale, decay), found in ordered]


def number_layers(model: nn.Module) -> dict[str, int]:
    """Layer of every parameter, by name: 0 for what embeds the patches, one a block, one more for everything above the blocks.

    Patch merging belongs to the block below it.

    Raises:
        SpecError: When no parameter's name holds ``layers.<stage>.blocks.<block>.``.

    Source: microsoft/SimMIM optimizer.py (0e71746), get_swin_layer.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = sorted({(int(found[1]), int(found[2])) for name in names if (found := _BLOCK.search(name))})
    if not blocks:
        raise SpecError(
            f"{type(model).__name__} has no parameter named layers.<stage>.blocks.<block>, so its layers cannot have rates of "
            "their own; use a layer decay of 1."
        )
    numbers = {}
    for name in names:
        block, merging = _BLOCK.search(name), _MERGING.search(name)
        if block:
            numbers[name] = blocks.index((int(block[1]), int(block[2]))) + 1
        elif merging:
            numbers[name] = sum(stage <= int(merging[1]) for stage, _ in blocks)
        else:
            numbers[name] = 0 if _EMBEDDING.search(name) else len(blocks) + 1
    return numbers
