"""What a head or a hidden unit costs in milliseconds: a table of measured blocks, and the slope through it.

Blocks of every stage are timed with fewer heads and with narrower MLPs, beside each other in turns. A budget in latency takes the
slope of a line through these times for what one unit costs; the table itself shows where a processor prefers certain widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from reference_model.config import SwinV2Config
from reference_model.windows import stage_maps
from swinv2_deploy.prune.cost import Costs
from swinv2_deploy.prune.units import KINDS, Kind, blocks_of

POINTS = 6
"""Widths of a stage that are timed, from the full one down."""

BLOCKS = 2
"""Blocks of a timed model: one whose windows are shifted, and one whose are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyTable:
    """Times of blocks.

    Attributes:
        size: (height, width) in px of the images.
        total_ms: Median time of the whole model.
        times_ms: Median time of a model of :data:`BLOCKS` blocks, by kind, stage, and units in each block.
        machine: What it was measured on, in words.
    """

    size: tuple[int, int]
    total_ms: float
    times_ms: Mapping[Kind, Sequence[Mapping[int, float]]]
    machine: str

    def costs(self, config: SwinV2Config) -> Costs:
        """Milliseconds of one unit of every block."""
        slopes = {kind: [max(0.0, slope(times)) / BLOCKS for times in self.times_ms[kind]] for kind in KINDS}
        return Costs(
            measure="latency",
            unit="ms",
            units={kind: {at: slopes[kind][at[0]] for at in blocks_of(config)} for kind in KINDS},
            total=self.total_ms,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def slope(times: Mapping[int, float]) -> float:
    """Slope of the line with least squares through times by width; 0 where there is one width only."""
    count = len(times)
    middle, mean = sum(times) / count, sum(times.values()) / count
    spread = sum((width - middle) ** 2 for width in times)
    return sum((width - middle) * (time - mean) for width, time in times.items()) / spread if spread else 0.0


def widths(count: int, multiple: int) -> tuple[int, ...]:
    """Widths to time of ``count`` units, from all of them down to a few, multiples but for the first."""
    steps = [round(count * (POINTS - index) / POINTS / multiple) * multiple for index in range(1, POINTS)]
    return (count, *sorted({step for step in steps if 0 < step < count}, reverse=True))


def stage_config(config: SwinV2Config, stage: int, size: tuple[int, int], kind: Kind, width: int) -> SwinV2Config:
    """An encoder of :data:`BLOCKS` blocks as those of a stage, with ``width`` units of one kind in each.

    Its one stage has the map that the stage has for an image of (height, width) px.
    """
    rows, columns = stage_maps(*size, config.patch_size, config.num_stages)[stage]
    most = {"heads": max(config.num_heads[stage]), "hidden": max(config.mlp_hidden[stage])} | {kind: width}
    return replace(
        config,
        task="encoder",
        num_classes=0,
        labels=(),
        out_features=(),
        upscale=1,
        image_size=(rows * config.patch_size, columns * config.patch_size),
        embed_dim=config.stage_dim(stage),
        depths=(BLOCKS,),
        num_heads=((most["heads"],) * BLOCKS,),
        head_dims=(config.head_dims[stage],),
        mlp_hidden=((most["hidden"],) * BLOCKS,),
        pretrained_window_sizes=(config.pretrained_window_sizes[stage],),
        removed_norms=(),
        use_absolute_embeddings=False,
    )
