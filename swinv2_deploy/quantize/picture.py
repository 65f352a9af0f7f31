"""What every site saw and the range that was chosen, as one picture: a small histogram a site, in the order they run."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.histograms import Histogram
from calibration.table import CalibrationTable, SiteRange
from swinv2_deploy.drawing import INK, LINE, LOST, STYLE, has_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "calibration.svg"
BINS = 128
COLUMNS = 5
FILL = "#93b4e8"


def drawable(table: CalibrationTable) -> bool:
    """Whether the table has histograms, and matplotlib is installed."""
    return bool(table.histograms) and has_matplotlib()


def draw(table: CalibrationTable, path: Path) -> None:
    """Write the picture of a table with histograms; the suffix of ``path`` chooses the format.

    Every panel counts magnitudes on a logarithmic scale. The line is the amax; what lies beyond it is red, and its share stands
    beside the amax above the panel.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(table.sites)
    rows = math.ceil(len(names) / COLUMNS)
    with rc_context(STYLE):
        height = 1.25 * rows + 0.6
        figure = Figure(figsize=(2.5 * COLUMNS, height))
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.28 / height, top=1 - 0.62 / height, wspace=0.08, hspace=0.5)
        panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for panel, name in zip(panels, names, strict=False):
            _panel(panel, name, table.sites[name], table.histograms[name].coarse(BINS))
        for panel in panels[len(names) :]:
            panel.axis("off")
        images = "1 image" if table.images == 1 else f"{table.images} images"
        figure.text(
            0.01,
            1 - 0.25 / height,
            f"What enters each site, over {images}: magnitudes, counted on a logarithmic scale. Line and number: "
            f"amax ({table.calibrator}). Red, and percent: beyond it, clipped.",
            fontsize=9,
            color=INK,
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def _panel(panel: Axes, name: str, site: SiteRange, seen: Histogram) -> None:
    used = max(index for index, count in enumerate(seen.counts) if count) + 1
    edges = [index * seen.width for index in range(used + 1)]
    counts = seen.counts[:used]
    cut = next((index for index, edge in enumerate(edges) if edge >= site.amax), used)
    panel.stairs(counts, edges, fill=True, color=FILL, linewidth=0)
    if cut < used:
        panel.stairs(counts[cut:], edges[cut:], fill=True, color=LOST, linewidth=0)
    panel.axvline(site.amax, color=LINE, linewidth=1)
    panel.set_yscale("log")
    panel.set_ylim(0.5, 3 * max(counts))
    panel.set_xlim(0, max(edges[-1], site.amax) * 1.02)
    panel.set_title(_short(name), loc="left", fontsize=7, color=INK, pad=3)
    panel.set_title(f"{site.amax:.3g}, {site.clipped:.3%}", loc="right", fontsize=7, color=LINE, pad=3)
    panel.set_yticks([])
    panel.minorticks_off()
    panel.locator_params(axis="x", nbins=4)
    panel.tick_params(labelsize=6, colors=INK, length=2, pad=1)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _short(name: str) -> str:
    """``layers.0.blocks.1.attn.qkv`` as ``0.1 attn.qkv``: stage, block and layer; other names as they are."""
    found = re.fullmatch(r"layers\.(\d+)\.(?:blocks\.(\d+)\.)?(.+)", name)
    if not found:
        return name
    stage, block, layer = found.groups()
    return f"{stage}.{block} {layer}" if block else f"{stage} {layer}"
