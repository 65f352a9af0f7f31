r"""Fixed against adaptive windows: padding at thirty sizes by how near windows must stay, and accuracy of the bundled model.

Run it on photographs the bundled model has not seen:

    python benchmarks/bench_windows.py --val clothing10/val --out benchmarks/results/windows.json \
        --plot docs/methods/adaptive-windows.svg

Without a folder it uses the bundled photographs, which are too few to tell the policies apart. Padding is counted, not timed; the
formula is in ``reference_model.flops``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from reference_model import windows
from reference_model.config import WindowPolicy
from reference_model.flops import block_flops, window_savings
from reference_model.preprocessing import read_image
from reference_model.variants import VARIANTS
from swinv2_deploy.modeling.source import Source, bundled_artifact, source_from_artifact
from swinv2_deploy.verify.statistics import Paired

MODELS = {
    "tiny, window 8": "swinv2-tiny-patch4-window8-256",
    "small, window 16": "swinv2-small-patch4-window16-256",
    "base, window 16": "swinv2-base-patch4-window16-256",
    "base, window 24": "swinv2-base-patch4-window12to24-192to384-22kto1k-ft",
}
SQUARES = (160, 176, 192, 208, 224, 240, 256, 288, 320, 352, 384, 416, 448, 480, 512, 576, 640, 720, 768, 800, 896, 1024)
RECTANGLES = ((270, 480), (288, 416), (360, 640), (384, 576), (480, 640), (600, 800), (720, 1024), (800, 1024))
SIZES = sorted([*((side, side) for side in SQUARES), *RECTANGLES], key=lambda size: (size[0] * size[1], size))
REACHES = (0.125, 0.25, 0.375, 0.5)
ACCURACY_SIDES = (112, 128, 144, 160, 176, 208)
BATCH = 31


def main() -> None:
    """Measure, print tables, and write JSON and the plot if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--val", type=Path, default=sample_folder("verify"), help="labeled images to judge on")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    result = {"padding": padding(), "by_reach": by_reach(), "accuracy": accuracy(ImageFolder.open(arguments.val))}
    print(tables(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(result["padding"], arguments.plot)


@contextmanager
def reaching(reach: float) -> Iterator[None]:
    """Let adaptive windows differ from the trained one by at most this share of it."""
    with patch.object(windows, "nearby_windows", partial(windows.nearby_windows, reach=reach)):
        yield


def padding() -> list[dict[str, Any]]:
    """Padding of both policies for every model and size, and the share of all operations that is saved."""
    rows = []
    for model, name in MODELS.items():
        config = VARIANTS[name].config
        for size in SIZES:
            fixed, adaptive = (block_flops(replace(config, window_policy=policy), *size) for policy in ("fixed", "adaptive"))
            rows.append(
                {
                    "model": model,
                    "size": "{}x{}".format(*size),
                    "fixed": fixed.padding,
                    "adaptive": adaptive.padding,
                    "saved": 1 - adaptive.total / fixed.total,
                }
            )
    return rows


def by_reach() -> list[dict[str, Any]]:
    """Means over the sizes, by how near the windows must stay."""
    rows = []
    for model, name in MODELS.items():
        for reach in REACHES:
            with reaching(reach):
                config = replace(VARIANTS[name].config, window_policy="adaptive")
                savings = window_savings(config, SIZES)
                worst = max(block_flops(config, *size).padding for size in SIZES)
            rows.append({"model": model, "reach": reach, **asdict(savings), "largest_adaptive_padding": worst})
    return rows


def accuracy(images: ImageFolder) -> list[dict[str, Any]]:
    """Top-1 of the bundled model with both policies at several sizes, and how often they agree."""
    source = source_from_artifact(bundled_artifact())
    classes = [source.model.config.labels.index(name) for name in images.classes]
    labels = np.array([classes[images.labels[name]] for name in images.names])
    pictures = [read_image(path) for path in images.paths]
    rows = []
    for side in ACCURACY_SIDES:
        preprocessing = source.preprocessing.resized_to(side, side)
        batch = np.stack([preprocessing(picture) for picture in pictures])
        fixed = logits(source, "fixed", batch)
        adaptive = logits(source, "adaptive", batch)
        savings = window_savings(source.model.config, [(side, side)])
        right, kept = fixed.argmax(1) == labels, adaptive.argmax(1) == labels
        counts = (right & kept, right & ~kept, ~right & kept, ~right & ~kept)
        paired = Paired(*(int(count.sum()) for count in counts))
        rows.append(
            {
                "size_px": side,
                "images": len(labels),
                "top1_fixed": float(right.mean()),
                "top1_adaptive": float(kept.mean()),
                "lost_points": 100 * paired.drop,
                "lost_points_95": [100 * bound for bound in paired.drop_interval],
                "agreement": float((fixed.argmax(1) == adaptive.argmax(1)).mean()),
                "cosine": float((fixed * adaptive).sum() / np.linalg.norm(fixed) / np.linalg.norm(adaptive)),
                "max_abs": float(np.abs(fixed - adaptive).max()),
                "padding_fixed": savings.fixed_padding,
                "padding_adaptive": savings.adaptive_padding,
                "saved": savings.saved,
            }
        )
    return rows


def logits(source: Source, policy: WindowPolicy, images: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Logits (images, classes) of the reference model."""
    torch.set_flush_denormal(True)
    model = source.with_window_policy(policy).model
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.from_numpy(images).split(BATCH)]).numpy()


def tables(result: dict[str, Any]) -> str:
    """Markdown tables of the result."""
    lines = [
        "| model | windows within | padding fixed | padding adaptive | worst size | FLOPs saved | least saved |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['reach']:.1%} | {row['fixed_padding']:.1%} | {row['adaptive_padding']:.1%} "
        f"| {row['largest_adaptive_padding']:.1%} | {row['saved']:.1%} | {row['least_saved']:.1%} |"
        for row in result["by_reach"]
    ]
    lines += [
        "",
        "| size | top-1 fixed | top-1 adaptive | points lost (95 %) | agreement | cosine | padding | FLOPs saved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["accuracy"]:
        low, high = row["lost_points_95"]
        lines.append(
            f"| {row['size_px']} px | {row['top1_fixed']:.2%} | {row['top1_adaptive']:.2%} "
            f"| {row['lost_points']:.2f} ({low:.2f} to {high:.2f}) | {row['agreement']:.2%} | {row['cosine']:.4f} "
            f"| {row['padding_fixed']:.1%} -> {row['padding_adaptive']:.1%} | {row['saved']:.1%} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """One panel a model: padding at every size with both policies."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "swinv2-deploy"
    from matplotlib import pyplot as plt

    names = ["{}x{}".format(*size) for size in SIZES]
    figure, panels = plt.subplots(4, 1, figsize=(9, 11), sharex=True)
    for panel, model in zip(panels, MODELS, strict=True):
        mine = {row["size"]: row for row in rows if row["model"] == model}
        for shift, policy, color in ((-0.2, "fixed", "#b45309"), (0.2, "adaptive", "#1d4ed8")):
            heights = [100 * mine[name][policy] for name in names]
            label = f"{policy}, mean {np.mean(heights):.1f} %"
            panel.bar(np.arange(len(names)) + shift, heights, 0.4, color=color, label=label)
        panel.set_title(model, loc="left")
        panel.set_ylabel("padding, %")
        panel.legend(loc="upper right")
    panels[-1].set_xticks(range(len(names)), names, rotation=90)
    panels[-1].set_xlabel("image height x width, px")
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
