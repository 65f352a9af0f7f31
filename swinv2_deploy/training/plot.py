"""A picture of a finished run: loss and watched accuracy over the epochs. matplotlib is imported only when it draws."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from swinv2_deploy.drawing import INSTALL, has_matplotlib

NOT_DRAWN = f"No picture of the run: matplotlib is missing; {INSTALL}."


def draw_history(history: Sequence[dict[str, Any]], path: Path) -> bool:
    """Write an SVG file with a shade for each resolution and a line where the run went back; False without matplotlib."""
    if not has_matplotlib():
        return False
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="tight")
    loss = figure.subplots()
    epochs = [record["epoch"] for record in history]
    lines = loss.plot(epochs, [record["loss"] for record in history], color="#b45309", label="training loss")
    watched = [(record["epoch"], 100 * record["tune_top1"]) for record in history if "tune_top1" in record]
    if watched:
        accuracy = loss.twinx()
        lines += accuracy.plot(*zip(*watched, strict=True), "o-", color="#1d4ed8", label="top-1 on the images set aside, %")
        accuracy.set_ylabel("top-1, %")
    starts = [0] + [i for i, (a, b) in enumerate(pairwise(history), 1) if a["resolution_px"] != b["resolution_px"]]
    for number, start in enumerate(starts):
        end = epochs[starts[number + 1] - 1] if number + 1 < len(starts) else epochs[-1]
        loss.axvspan(epochs[start] - 0.5, end + 0.5, color="black", alpha=min(0.3, 0.04 * (number + 1)), linewidth=0)
        loss.text(epochs[start], loss.get_ylim()[1], f" {history[start]['resolution_px']} px", va="top")
    for record in history:
        if "rollbacks" in record:
            lines += [
                loss.axvline(record["epoch"], color="#be123c", linestyle=":", label=f"went back in epoch {record['epoch']}")
            ]
    loss.set_xlabel("epoch")
    loss.set_ylabel("training loss")
    loss.legend(handles=lines, loc="center right")
    with matplotlib.rc_context({"svg.hashsalt": "swinv2-deploy"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True
