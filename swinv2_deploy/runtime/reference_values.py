"""What the reference model computes inside, under the names that the same values have in an exported graph.

Shape letters: B batch, H W map in tokens, n windows, N tokens of a window, C channels, A = heads * channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference_model.model import Block, PatchMerging, SwinV2
from reference_model.windows import plan_windows, window_reverse
from swinv2_deploy.runtime.graph_parts import Unit
from swinv2_deploy.runtime.runner import Array


def reference_values(model: SwinV2, images: Array, masks: Callable[[Array], Any] | None = None) -> dict[str, Array]:
    """Values of one pass as rows (B*H*W, channels), by the exporter's names.

    Of every block: ``attn.joined`` and ``attn.proj`` before and after the output projection, ``norm1``, ``residual1``,
    ``mlp.fc1``, ``mlp.act``, ``mlp.fc2``, ``norm2``; of patch merging ``reduction`` and ``norm``; and under the modules' own names
    what leaves the patch embedding, every block and every patch merging.

    Args:
        model: Reference model, in evaluation mode.
        images: Normalized (B, 3, height, width).
        masks: What a masked image model hides.
    """
    found: dict[str, Tensor] = {}
    handles = []

    def rows(x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])

    def watch(module: nn.Module, name: str, *, entering: bool = False) -> None:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Any) -> None:
            found[name] = rows(arguments[0] if entering else output)

        handles.append(module.register_forward_hook(hook))

    def watch_block(block: Block, name: str) -> None:
        sizes: dict[str, tuple[int, int]] = {}

        def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            sizes["map"] = (arguments[0].shape[1], arguments[0].shape[2])
            found[f"{name}.before"] = rows(arguments[0])

        def joined(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            height, width = sizes["map"]
            plan = plan_windows(height, width, block.window_size, shifted=block.shifted, policy=block.window_policy)
            x = window_reverse(arguments[0], plan.window, plan.height.padded, plan.width.padded)
            if plan.shift != (0, 0):
                x = torch.roll(x, plan.shift, dims=(1, 2))
            found[f"{name}.attn.joined"] = rows(x[:, :height, :width])

        def after(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = rows(output)
            found[f"{name}.residual1"] = found.pop(f"{name}.before") + found[f"{name}.norm1"]

        handles.append(block.register_forward_pre_hook(before))
        handles.append(block.attn.proj.register_forward_pre_hook(joined))
        watch(block.norm1, f"{name}.attn.proj", entering=True)
        watch(block.norm1, f"{name}.norm1")
        watch(block.mlp.fc1, f"{name}.mlp.fc1")
        watch(block.mlp.fc2, f"{name}.mlp.act", entering=True)
        watch(block.mlp.fc2, f"{name}.mlp.fc2")
        watch(block.norm2, f"{name}.norm2")
        handles.append(block.register_forward_hook(after))

    for name, module in model.named_modules():
        if isinstance(module, Block):
            watch_block(module, name)
        elif isinstance(module, PatchMerging):
            watch(module.reduction, f"{name}.reduction")
            watch(module, name)
            watch(module.norm, f"{name}.norm")
    # What enters the first block has the embedding, a mask and a position behind it.
    watch(model.get_submodule("layers.0.blocks.0"), "patch_embed", entering=True)
    try:
        with torch.inference_mode():
            inputs = [torch.from_numpy(np.array(images))]
            if masks is not None:
                inputs.append(torch.from_numpy(np.array(masks(images))))
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: np.ascontiguousarray(value.float().numpy()) for name, value in found.items()}


def run_units(model: SwinV2, units: tuple[Unit, ...], rows: Array, size: tuple[int, int], batch: int) -> Array:
    """Some units in a row, by the reference model: from rows (B*H*W, C) to what leaves the last one.

    Args:
        model: Reference model, in evaluation mode.
        units: Consecutive units.
        rows: What enters the first one.
        size: Its map, (H, W).
        batch: B.
    """
    with torch.inference_mode():
        x = torch.from_numpy(np.array(rows)).view(batch, *size, -1)
        for unit in units:
            x = model.get_submodule(unit.name)(x)
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1]).numpy())
