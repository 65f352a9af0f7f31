"""A picture of a sweep: what every site costs alone, and what leaving it in float would bring.

Needs matplotlib, from the extra ``report``. Labels are left as text, and equal sweeps give equal bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from swinv2_deploy.drawing import INK, LINE, STYLE
from swinv2_deploy.quantize.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SWEEP_PICTURE = "sensitivity.svg"
KINDS = {
    "attn.qkv": "#1d4ed8",
    "attn.qk": "#0e9f9a",
    "attn.av": "#9333ea",
    "attn.proj": "#7aa7f0",
    "mlp.fc1": "#f59e0b",
    "mlp.fc2": "#dc2626",
    "downsample.reduction": "#15803d",
}
"""Color of each kind of site, in the order they run in a block."""
OTHER = "#6b7280"
BAND = "#f3f4f6"
FEW = 40
"""Sites below which bars become narrower instead of filling the picture."""


def draw_sweep(found: Sensitivity, left: Collection[str], path: Path) -> None:
    """Write the picture of a sweep; the suffix of ``path`` chooses the format.

    Above, the signal to noise of the output with one site in INT8, over the line of all together: a short stem is a loud site.
    Below, what the output gains where all but this site are in INT8.

    Args:
        found: The sweep.
        left: Sites that a budget leaves in float; they are crossed out.
        path: Picture to make.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [site.site for site in found.sites]
    with rc_context(STYLE):
        figure = Figure(figsize=(11.0, 5.0))
        figure.subplots_adjust(left=0.055, right=0.99, bottom=0.12, top=0.86, hspace=0.1)
        alone, without = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _stems(alone, names, [site.alone.sqnr_db for site in found.sites], found.together.sqnr_db, left)
        _bars(without, names, [site.without.sqnr_db - found.together.sqnr_db for site in found.sites])
        for panel in (alone, without):
            _network(panel, names)
        _block_axis(without, names)
        images = "1 image" if found.images == 1 else f"{found.images} images"
        figure.text(
            0.012,
            0.95,
            f"What INT8 costs at every site, over {images}. A short stem is a loud site; a bar is what leaving it in float brings.",
            fontsize=9,
            color=INK,
        )
        _legend(alone, names, left)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def _stems(panel: Axes, names: Sequence[str], values: Sequence[float], together: float, left: Collection[str]) -> None:
    """Points over the line of all sites together; infinite values lie at the edge, as triangles."""
    finite = [value for value in (*values, together) if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = max(0.08 * (high - low), 0.5)
    base = min(max(together, low - room), high + room)
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        height = min(max(value, low - room), high + room)
        marker = "o" if math.isfinite(value) else "^" if value > 0 else "v"
        panel.vlines(place, base, height, color=_color(name), linewidth=1, alpha=0.5)
        panel.plot(place, height, marker, color=_color(name), markersize=3.5, clip_on=False)
        if name in left:
            panel.plot(place, height, "x", color=INK, markersize=7, markeredgewidth=1.2)
    panel.axhline(base, color=LINE, linewidth=1)
    panel.annotate(
        f"all together: {together:.1f} dB",
        (0, base),
        xytext=(3, -3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="top",
        color=LINE,
        fontsize=7,
    )
    panel.set_ylim(low - 2.2 * room, high + 1.5 * room)
    panel.set_ylabel("only this site in INT8:\nSQNR of the output, dB", color=INK)


def _bars(panel: Axes, names: Sequence[str], gains: Sequence[float]) -> None:
    shown = [gain if math.isfinite(gain) else 0.0 for gain in gains]
    width = 0.75 * min(1.0, len(names) / FEW)
    panel.bar(range(len(names)), shown, width=width, color=[_color(name) for name in names])
    panel.axhline(0, color=INK, linewidth=0.6)
    panel.set_ylabel("all but this site in INT8:\ndB gained over all", color=INK)


def _network(panel: Axes, names: Sequence[str]) -> None:
    """Every second block on a shade, and a line where a stage ends."""
    for number, (_, places) in enumerate(_runs([_block(name) for name in names])):
        if number % 2:
            panel.axvspan(places[0] - 0.5, places[-1] + 0.5, color=BAND, linewidth=0, zorder=0)
    for _, places in _runs([_stage(name) for name in names])[1:]:
        panel.axvline(places[0] - 0.5, color="#9ca3af", linewidth=0.8)
    panel.set_xlim(-0.6, len(names) - 0.4)
    panel.set_xticks([])
    panel.grid(axis="y", color="#e5e7eb", linewidth=0.5)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=7, colors=INK, length=2)
    for side in ("top", "right", "bottom"):
        panel.spines[side].set_visible(False)


def _block_axis(panel: Axes, names: Sequence[str]) -> None:
    """The number of each block under its sites, and of each stage under its blocks."""
    blocks = [(block.partition(".")[2], places) for block, places in _runs([_block(name) for name in names])]
    stages = [(f"stage {stage}" if stage else "", places) for stage, places in _runs([_stage(name) for name in names])]
    for runs, height, size in ((blocks, -0.04, 7), (stages, -0.17, 8)):
        for words, places in runs:
            at = (places[0] + places[-1]) / 2
            panel.text(
                at, height, words, transform=panel.get_xaxis_transform(), ha="center", va="top", fontsize=size, color=INK
            )
    panel.text(-0.008, -0.04, "block", transform=panel.transAxes, ha="right", va="top", fontsize=7, color=INK)


def _legend(panel: Axes, names: Sequence[str], left: Collection[str]) -> None:
    from matplotlib.lines import Line2D

    kinds = {_kind(name) for name in names}
    known = [kind for kind in KINDS if kind in kinds] + sorted(kinds - KINDS.keys())
    handles = [Line2D([], [], marker="o", linestyle="", color=KINDS.get(kind, OTHER), label=kind) for kind in known]
    if left:
        handles.append(Line2D([], [], marker="x", linestyle="", color=INK, label="left in float"))
    panel.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.05, 1.0),
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        handletextpad=0.1,
        columnspacing=1.4,
        labelcolor=INK,
    )


def _runs(labels: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Neighbors with the same label, and their places."""
    return [(label, list(places)) for label, places in groupby(range(len(labels)), key=lambda place: labels[place])]


def _stage(name: str) -> str:
    found = re.match(r"layers\.(\d+)\.", name)
    return found.group(1) if found else ""


def _block(name: str) -> str:
    """``layers.2.blocks.5.attn.qkv`` as ``2.5``; what is in no block as its stage."""
    found = re.match(r"layers\.\d+\.blocks\.(\d+)\.", name)
    return f"{_stage(name)}.{found.group(1)}" if found else _stage(name)


def _kind(name: str) -> str:
    return re.sub(r"^layers\.\d+\.(blocks\.\d+\.)?", "", name)


def _color(name: str) -> str:
    return KINDS.get(_kind(name), OTHER)
