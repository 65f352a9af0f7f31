"""What a head or a hidden unit costs, in whatever the budget is stated in.

Multiplications and additions count as one. Patch embedding, patch merging and the classifier are counted in the total, for they
are part of what a share is a share of; norms, softmax and the position bias, which is computed once for all windows, are not.

Shape letters: H W map in tokens, P Q padded map, N tokens of a window, C channels, A = heads * channels of a head, M hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from reference_model.config import SwinV2Config
from reference_model.model import build_model
from reference_model.position_bias import CPB_HIDDEN
from reference_model.windows import plan_windows, stage_maps
from swinv2_deploy.prune.spec import Measure
from swinv2_deploy.prune.units import Block, Kind, blocks_of, units_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Cost of one unit of every block, and of the whole model.

    Attributes:
        measure: What it is stated in.
        unit: Name of the unit, such as ``ms``.
        units: Cost of one unit by kind and block; 0 where a kind does not count.
        total: Cost of the whole model.
    """

    measure: Measure
    unit: str
    units: Mapping[Kind, Mapping[Block, float]]
    total: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """How large a model is.

    Attributes:
        parameters: Of all that runs.
        macs: Multiply-accumulate operations for one image of the size asked about.
        heads: Attention heads of all blocks that run.
        hidden: MLP hidden units of all blocks that run.
    """

    parameters: int
    macs: int
    heads: int
    hidden: int


def figures_of(config: SwinV2Config, size: tuple[int, int]) -> Figures:
    """Size of a model, with MACs for an image of (height, width) px."""
    return Figures(
        parameters=parameter_count(config),
        macs=mac_count(config, size),
        heads=sum(map(sum, config.num_heads[: config.running_stages])),
        hidden=sum(map(sum, config.mlp_hidden[: config.running_stages])),
    )


def parameter_count(config: SwinV2Config) -> int:
    """Parameters of all that runs: in a backbone neither the last norm nor what comes behind the last map it returns."""
    idle: tuple[str, ...] = ()
    if config.task == "backbone":
        behind = [f"layers.{stage}." for stage in range(config.running_stages, config.num_stages)]
        idle = ("norm.", f"layers.{config.running_stages - 1}.downsample.", *behind)
    with torch.device("meta"):
        return sum(value.numel() for name, value in build_model(config).named_parameters() if not name.startswith(idle))


def mac_count(config: SwinV2Config, size: tuple[int, int]) -> int:
    """Multiply-accumulate operations of all that runs, for one image of (height, width) px."""
    maps = stage_maps(*size, config.patch_size, config.num_stages)
    total = maps[0][0] * maps[0][1] * config.embed_dim * config.num_channels * config.patch_size**2
    for stage, (rows, columns) in enumerate(maps[: config.running_stages]):
        dim = config.stage_dim(stage)
        head, hidden = _block_macs(config, stage, (rows, columns))
        total += head * sum(config.num_heads[stage]) + hidden * sum(config.mlp_hidden[stage])
        if stage < config.running_stages - 1:
            height, width = maps[stage + 1]
            total += height * width * 4 * dim * 2 * dim
    height, width = maps[-1]
    total += config.final_dim * config.num_classes
    if config.task in ("masked_image_modeling", "image_reconstruction"):
        total += height * width * config.final_dim * (config.encoder_stride * config.upscale) ** 2 * config.num_channels
    return total


def parameter_costs(config: SwinV2Config) -> Costs:
    """Parameters of every unit."""

    def head(stage: int) -> int:
        dim, d = config.stage_dim(stage), config.head_dims[stage]
        # Query, key, value and projection; the biases of two of them; the temperature; a row of the position-bias MLP.
        return 4 * dim * d + (2 * d if config.qkv_bias else 0) + 1 + CPB_HIDDEN

    return Costs(
        measure="params",
        unit="parameters",
        units={
            "heads": {at: float(head(at[0])) for at in blocks_of(config)},
            "hidden": {at: float(2 * config.stage_dim(at[0]) + 1) for at in blocks_of(config)},
        },
        total=float(parameter_count(config)),
    )


def mac_costs(config: SwinV2Config, size: tuple[int, int]) -> Costs:
    """Multiply-accumulate operations of every unit for one image of (height, width) px."""
    maps = stage_maps(*size, config.patch_size, config.num_stages)
    found = {at: _block_macs(config, at[0], maps[at[0]]) for at in blocks_of(config)}
    return Costs(
        measure="macs",
        unit="MACs",
        units={
            "heads": {at: float(head) for at, (head, _) in found.items()},
            "hidden": {at: float(hidden) for at, (_, hidden) in found.items()},
        },
        total=float(mac_count(config, size)),
    )


def head_counts(config: SwinV2Config) -> Costs:
    """Heads cost one each, hidden units nothing."""
    return Costs(
        measure="heads",
        unit="heads",
        units={"heads": dict.fromkeys(blocks_of(config), 1.0), "hidden": dict.fromkeys(blocks_of(config), 0.0)},
        total=float(sum(units_of(config, "heads", at) for at in blocks_of(config))),
    )


def _block_macs(config: SwinV2Config, stage: int, map_size: tuple[int, int]) -> tuple[int, int]:
    """MACs of one head and of one hidden unit of a stage's blocks, on a map of (H, W) tokens."""
    plan = plan_windows(*map_size, config.window_size, shifted=False, policy=config.window_policy)
    dim, d = config.stage_dim(stage), config.head_dims[stage]
    padded = plan.height.padded * plan.width.padded
    tokens = plan.window[0] * plan.window[1]
    return padded * (4 * dim * d + 2 * tokens * d), 2 * map_size[0] * map_size[1] * dim
