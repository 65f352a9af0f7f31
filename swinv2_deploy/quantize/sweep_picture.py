"""The sweep over all sites as a picture: how loud each one is alone, and how quiet it gets without it."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

from swinv2_deploy.quantize.sensitivity import Sensitivity, SiteSensitivity

PICTURE = "sensitivity.svg"
COLORS = {
    "attn.qkv": "#1d4ed8",
    "attn.qk": "#0891b2",
    "attn.av": "#059669",
    "attn.proj": "#7c3aed",
    "mlp.fc1": "#d97706",
    "mlp.fc2": "#dc2626",
    "downsample.reduction": "#374151",
}
INK = "#374151"
TALLEST = 130.0
"""dB beyond which a site adds nothing that float32 could show."""


def drawable() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(found: Sensitivity, path: Path) -> None:
    """Write the picture of a sweep; the suffix of ``path`` chooses the format.

    Sites stand in the order they run, one column each, colored by kind. A dot is the SQNR in dB with this site in INT8 alone, a ring
    that with every other site in INT8, and the line that with all of them.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.hashsalt": "swinv2-deploy",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 8,
    }
    with rc_context(style):
        figure = Figure(figsize=(max(7.0, 2.0 + 0.13 * len(found.sites)), 4.2), layout="constrained")
        axes = figure.subplots()
        for kind, color in COLORS.items():
            places = [place for place, site in enumerate(found.sites) if _kind(site) == kind]
            if places:
                alone = [_height(found.sites[place].alone.sqnr_db) for place in places]
                without = [_height(found.sites[place].without.sqnr_db) for place in places]
                axes.plot(places, alone, "o", color=color, markersize=4.5, label=kind)
                axes.plot(places, without, "o", color=color, markersize=4.5, fillstyle="none", markeredgewidth=0.9)
        together = _height(found.together.sqnr_db)
        axes.axhline(together, color=INK, linewidth=0.8, linestyle="--")
        axes.annotate(
            f"all in INT8: {found.together.sqnr_db:.1f} dB",
            (1, together),
            (-3, -3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="top",
            color=INK,
        )
        starts = [
            place for place, site in enumerate(found.sites) if place == 0 or _block(site) != _block(found.sites[place - 1])
        ]
        for place in starts[1:]:
            axes.axvline(place - 0.5, color="#e5e7eb", linewidth=0.6, zorder=0)
        axes.set_xticks(starts, [_block(found.sites[place]) for place in starts], rotation=90 if len(starts) > 16 else 0)
        axes.set_xlim(-0.8, len(found.sites) - 0.2)
        axes.set_xlabel("stage.block, sites in the order they run")
        axes.set_ylabel("SQNR of the first output, dB (higher is closer to FP32)")
        axes.set_title(
            f"Dot: this site alone in INT8. Ring: every other site in INT8. On {found.images} images.", loc="left", fontsize=9
        )
        axes.grid(axis="y", color="#eef0f3")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(
            ncols=len(COLORS), frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8, handletextpad=0.2
        )
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def _height(sqnr_db: float) -> float:
    return min(sqnr_db, TALLEST) if math.isfinite(sqnr_db) or sqnr_db > 0 else 0.0


def _kind(site: SiteSensitivity) -> str:
    return re.sub(r"^layers\.\d+\.(blocks\.\d+\.)?|\.[01]$", "", site.site)


def _block(site: SiteSensitivity) -> str:
    found = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)\.)?", site.site)
    if found is None:
        return site.site
    return f"{int(found[1]) + 1}.{int(found[2]) + 1}" if found[2] else "merge"
