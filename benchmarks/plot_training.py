"""Draw the curve of a training run from the history.json that an artifact of 'train' holds.

python benchmarks/plot_training.py swinv2_deploy/default_model/history.json docs/methods/bundled-model.svg
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "swinv2-deploy"
from matplotlib import pyplot as plt  # noqa: E402  # after the back end is chosen


def main() -> None:
    """Loss and watched accuracy over epochs; a shade for each resolution."""
    source, target = (Path(argument) for argument in sys.argv[1:3])
    history = json.loads(source.read_text(encoding="utf-8"))
    epochs = [record["epoch"] for record in history]
    watched = [(record["epoch"], 100 * record["tune_top1"]) for record in history if "tune_top1" in record]
    figure, loss = plt.subplots(figsize=(8, 4))
    accuracy = loss.twinx()
    [line] = loss.plot(epochs, [record["loss"] for record in history], color="#b45309", label="training loss")
    [dots] = accuracy.plot(*zip(*watched, strict=True), "o-", color="#1d4ed8", label="top-1 on the images set aside, %")
    starts = [0] + [i for i, (a, b) in enumerate(pairwise(history), 1) if a["resolution_px"] != b["resolution_px"]]
    for number, start in enumerate(starts):
        end = epochs[starts[number + 1] - 1] if number + 1 < len(starts) else epochs[-1]
        loss.axvspan(epochs[start] - 0.5, end + 0.5, color="black", alpha=0.04 * (number + 1), linewidth=0)
        loss.text(epochs[start], loss.get_ylim()[1], f" {history[start]['resolution_px']} px", va="top")
    loss.set_xlabel("epoch")
    loss.set_ylabel("training loss (MixUp, CutMix, label smoothing)")
    accuracy.set_ylabel("top-1, %")
    loss.legend(handles=[line, dots], loc="center right")
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
