"""The result as a picture: one panel for each model and batch, one bar for each peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "swinv2-deploy"
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot as plt  # noqa: E402  # after the back end is chosen
from matplotlib.patches import Patch  # noqa: E402

COLORS = {"peers, floating point": "#9ca3af", "peers, INT8": "#4b5563", "ours, FP32": "#93c5fd", "ours, INT8": "#1d4ed8"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Write an SVG: bars are medians, lines quartiles, dots ratios of minima; the cosine stands beside each bar."""
    runs = result["runs"]
    height = 0.9 + max(len(run["rows"]) for run in runs) * 0.29
    figure, panels = plt.subplots(len(runs), 1, figsize=(9, height * len(runs) + 0.6), squeeze=False)
    for run, panel in zip(runs, panels[:, 0], strict=True):
        _panel(run, panel)
    title = f"Speed over timm eager FP32; {result['machine']['processor']}, {result['settings']['threads']} threads"
    if result["settings"]["limit"] >= 1:
        title += " (not a quiet machine)"
    figure.suptitle(title, fontsize=11)
    handles = [Patch(color=color, label=label) for label, color in COLORS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _panel(run: dict[str, Any], panel: Any) -> None:
    rows = run["rows"][::-1]
    longest = max((row["speed"]["high"] for row in rows if "speed" in row), default=1.0)
    for place, row in enumerate(rows):
        if "speed" not in row:
            panel.text(0.02 * longest, place, "failed", va="center", fontsize=8, color="#b91c1c")
            continue
        speed = row["speed"]
        panel.barh(place, speed["median"], color=COLORS[_kind(row)], height=0.72)
        panel.plot([speed["low"], speed["high"]], [place, place], color="black", linewidth=1.2)
        panel.plot(speed["of_minima"], place, "o", color="white", markeredgecolor="black", markersize=4)
        end = max(speed["high"], speed["of_minima"], speed["median"])
        text = f"{speed['median']:.2f}" + (f"   cos {row['drift']['cosine']:.4f}" if row["precision"] == "int8" else "")
        panel.text(end + 0.015 * longest, place, text, va="center", fontsize=8)
    panel.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
    panel.axvline(1, color="black", linewidth=0.8, linestyle=":")
    panel.set_xlim(0, 1.22 * longest)
    panel.set_title(f"{run['model']}, batch {run['batch']}", loc="left", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)


def _kind(row: dict[str, Any]) -> str:
    ours, integer = row["peer"].startswith("ours"), row["precision"] == "int8"
    if ours:
        return "ours, INT8" if integer else "ours, FP32"
    return "peers, INT8" if integer else "peers, floating point"
