"""Importance and plan as one picture: heads as tiles, hidden units as sorted curves, and what goes crossed out.

Needs matplotlib, from the extra ``report``. Labels are left as text, and equal plans give equal bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from reference_model.config import SwinV2Config
from swinv2_deploy.drawing import INK, LINE, LOST, STYLE
from swinv2_deploy.prune.importance import Importance
from swinv2_deploy.prune.plan import PrunePlan
from swinv2_deploy.prune.units import Block, blocks_of, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "importance.svg"
PALE = "#e5e7eb"


def draw_importance(importance: Importance, plan: PrunePlan, config: SwinV2Config, path: Path) -> None:
    """Write the picture; the suffix of ``path`` chooses the format.

    Left, one row a block and one tile a head, darker for more important, crossed out where it goes. Right, the hidden units of
    every block from the least important to the most, on a logarithmic scale, red where they go.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    blocks = list(blocks_of(config))
    with rc_context(STYLE):
        height = max(2.2, 0.26 * len(blocks) + 1.1)
        figure = Figure(figsize=(10.0, height))
        figure.subplots_adjust(left=0.085, right=0.985, bottom=0.42 / height, top=1 - 0.45 / height, wspace=0.24)
        heads, hidden = figure.subplots(1, 2)
        _tiles(heads, importance, plan, config, blocks)
        _curves(hidden, importance, plan, blocks)
        images = f", over {importance.images} images" if importance.images else ""
        figure.text(
            0.012,
            1 - 0.24 / height,
            f"Importance by {importance.criterion}{images}. Left, heads: darker is more important, a red cross is removed. "
            "Right, hidden units of each MLP, sorted: red is removed.",
            fontsize=8.5,
            color=INK,
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def _tiles(panel: Axes, importance: Importance, plan: PrunePlan, config: SwinV2Config, blocks: list[Block]) -> None:
    from matplotlib.patches import Rectangle

    values = [value for at in blocks for value in importance.scores["heads"][at]]
    logs = [math.log(value) for value in values if value > 0] or [0.0]
    low, high = min(logs), max(logs)
    for row, at in enumerate(blocks):
        kept = set(plan.heads[at])
        for head, value in enumerate(importance.scores["heads"][at]):
            share = 0.0 if value <= 0 else (math.log(value) - low) / ((high - low) or 1.0)
            shade = tuple(0.95 - share * (0.95 - dark) for dark in (0.11, 0.31, 0.85))
            panel.add_patch(Rectangle((head, row), 0.94, 0.9, facecolor=shade, linewidth=0))
            if head not in kept:
                panel.plot([head + 0.1, head + 0.84], [row + 0.1, row + 0.8], color=LOST, linewidth=1)
                panel.plot([head + 0.1, head + 0.84], [row + 0.8, row + 0.1], color=LOST, linewidth=1)
    most = max(units_of(config, "heads", at) for at in blocks)
    panel.set_xlim(0, most)
    panel.set_xticks([head + 0.47 for head in range(most)], [str(head) for head in range(most)])
    _rows(panel, blocks)
    panel.set_xlabel("head", color=INK)


def _curves(panel: Axes, importance: Importance, plan: PrunePlan, blocks: list[Block]) -> None:
    values = sorted(value for at in blocks for value in importance.scores["hidden"][at] if value > 0) or [1.0]
    # A few units at either end would leave a flat line to all others.
    edge = len(values) // 100
    low, high = math.log10(values[edge]), math.log10(values[-1 - edge])
    for row, at in enumerate(blocks):
        scores = importance.scores["hidden"][at]
        kept = set(plan.hidden[at])
        order = sorted(range(len(scores)), key=lambda unit: (scores[unit], unit))
        xs = [place / len(order) for place in range(len(order))]
        ys = [row + 0.9 - 0.86 * _place(scores[unit], low, high) for unit in order]
        panel.axhline(row + 0.92, color=PALE, linewidth=0.6, zorder=0)
        gone = [index for index, unit in enumerate(order) if unit not in kept]
        first = gone[-1] + 1 if gone else 0
        panel.plot(xs[first:], ys[first:], color=LINE, linewidth=1)
        if first:
            panel.plot(xs[: first + 1], ys[: first + 1], color=LOST, linewidth=1.6)
        panel.annotate(f"{len(kept)} of {len(order)}", (1.0, row + 0.85), ha="right", va="bottom", fontsize=6, color=INK)
    panel.set_xlim(0, 1)
    _rows(panel, blocks)
    panel.set_xlabel("hidden units of the block, least important first (share)", color=INK)


def _place(score: float, low: float, high: float) -> float:
    """Where a score lies between two powers of ten, in [0, 1]."""
    return 0.0 if score <= 0 else min(1.0, max(0.0, (math.log10(score) - low) / ((high - low) or 1.0)))


def _rows(panel: Axes, blocks: list[Block]) -> None:
    panel.set_ylim(len(blocks), -0.1)
    panel.set_yticks([row + 0.45 for row in range(len(blocks))], [f"stage {s + 1}, block {b}" for s, b in blocks])
    panel.tick_params(labelsize=6, colors=INK, length=0)
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(False)
