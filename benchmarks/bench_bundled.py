"""INT8 of the bundled model with every calibrator: accuracy, drift, file size and speed, as a table and as JSON.

Run it on the data set the model was trained on:

    python benchmarks/bench_bundled.py --train clothing10/train --val clothing10/val --out benchmarks/results/bundled.json

Without folders it uses the bundled photographs, which are too few to tell calibrators apart.
Speeds are medians of ratios of interleaved runs in ONNX Runtime; absolute times do not compare between machines and are not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact
from swinv2_deploy.quantize import QuantizeSpec, quantize
from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.verify import VerifySpec, verify

CALIBRATORS = ("max", "percentile", "entropy", "mse")
BATCHES = (1, 8, 32)
ROUNDS = 31


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=sample_folder("calibrate"), help="images to calibrate on")
    parser.add_argument("--val", type=Path, default=sample_folder("verify"), help="images to judge on")
    parser.add_argument("--images", type=int, default=256, help="calibration images")
    parser.add_argument("--static", action="store_true", help="export one size only")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print(table(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Export once, then quantize and verify with each calibrator."""
    fp32 = export(source_from_artifact(bundled_artifact()), ExportSpec(static=arguments.static), folder / "fp32")
    images = ImageFolder.open(arguments.train)
    rows = []
    for calibrator in CALIBRATORS:
        count = min(arguments.images, len(images))
        spec = QuantizeSpec(calibrator=calibrator, images=count, unsigned="always")
        artifact = quantize(fp32, spec, images, folder / calibrator).artifact
        report = verify(artifact, VerifySpec(data=arguments.val, latency_seconds=0))
        for item in report.candidates:
            name = "FP32 ONNX" if item.name == "model" else f"{item.precision}, {calibrator}"
            logits, classes = item.outputs["logits"], item.classes
            if classes is None or classes.top1 is None or (item.name == "model" and rows):
                continue
            row = {
                "form": name,
                "images": report.images,
                "top1_reference": classes.top1[0],
                "top1": classes.top1[1],
                "lost_points": classes.drop,
                "lost_points_95": classes.drop_interval,
                "agreement": classes.agreement,
                "flips": len(classes.flips),
                "cosine": logits.cosine,
                "sqnr_db": logits.sqnr_db,
                "max_abs": logits.max_abs,
                "size_ratio": item.size_ratio,
            }
            rows.append(row)
    files = sorted((folder / "percentile" / "onnx").glob("*.onnx"))
    size = fp32.preprocessing.size
    return {
        "machine": {"processor": processor(), "python": platform.python_version()},
        "calibration_images": min(arguments.images, len(images)),
        "static": arguments.static,
        "rows": rows,
        "speed_over_fp32": {
            words: speeds({file.stem: OnnxRunner(file, threads=threads) for file in files}, size)
            for words, threads in (("1 thread", 1), (f"{os.cpu_count()} threads", None))
        },
    }


def speeds(runners: dict[str, OnnxRunner], size: tuple[int, int]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """First quartile, median and third quartile of time(FP32) / time(form), by batch and form."""
    result = {}
    for batch in BATCHES:
        images = np.random.default_rng(0).standard_normal((batch, 3, *size)).astype(np.float32)
        ratios: dict[str, list[float]] = {name: [] for name in runners if name != "model"}
        for runner in runners.values():
            runner.run(images)
        for _ in range(ROUNDS):
            seconds = {}
            for name, runner in runners.items():
                started = perf_counter()
                runner.run(images)
                seconds[name] = perf_counter() - started
            for name, values in ratios.items():
                values.append(seconds["model"] / seconds[name])
        result[str(batch)] = {
            name: (float(np.percentile(values, 25)), float(median(values)), float(np.percentile(values, 75)))
            for name, values in sorted(ratios.items())
        }
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown tables of the result."""
    lines = [
        "| form | top-1 | lost, points (95 %) | agreement | flips | cosine | SQNR dB | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["lost_points_95"]
        lines.append(
            f"| {row['form']} | {row['top1']:.2%} | {row['lost_points']:.2f} ({low:.2f} to {high:.2f}) | {row['agreement']:.2%} "
            f"| {row['flips']} | {row['cosine']:.5f} | {row['sqnr_db']:.1f} | {row['size_ratio']:.2f} |"
        )
    lines += ["", "| threads | batch | form | speed over FP32 ONNX (quartiles) |", "|---|---|---|---|"]
    for threads, batches in result["speed_over_fp32"].items():
        for batch, forms in batches.items():
            for name, (low, middle, high) in forms.items():
                lines.append(f"| {threads} | {batch} | {name} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


def processor() -> str:
    """Name of the processor where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
