"""INT8 of the bundled model with every policy: accuracy, drift, work in INT8, file size and speed, as a table and as JSON.

    python benchmarks/bench_policies.py --train clothing10/train --val clothing10/val --out benchmarks/results/policies.json

Without folders it uses the bundled photographs, which are too few to tell policies apart. All ranges come from one calibrator.
Speeds are medians of ratios of interleaved runs in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bench_bundled import processor, speeds
from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.sites import POLICIES, quantization_sites
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact
from swinv2_deploy.quantize import QuantizeSpec, quantize
from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.verify import VerifySpec, verify


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=sample_folder("calibrate"), help="images to calibrate on")
    parser.add_argument("--val", type=Path, default=sample_folder("verify"), help="images to judge on")
    parser.add_argument("--images", type=int, default=256, help="calibration images")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="policies to compare")
    parser.add_argument("--calibrator", default="percentile", help="how ranges are chosen")
    parser.add_argument("--static", action="store_true", help="export one size only")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print(table(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Export once, then quantize and verify with each policy; the speeds of all are taken in turns."""
    fp32 = export(source_from_artifact(bundled_artifact()), ExportSpec(static=arguments.static), folder / "fp32")
    images = ImageFolder.open(arguments.train)
    count = min(arguments.images, len(images))
    rows, files = [], {"model": fp32.onnx_files["model"]}
    for policy in arguments.policies:
        spec = QuantizeSpec(calibrator=arguments.calibrator, policy=policy, images=count, unsigned="always")
        made = quantize(fp32, spec, images, folder / policy).artifact
        rows += judged(made, arguments.val, policy)
        files |= {f"{policy}, {flavor}": made.onnx_files[f"model_{flavor}"] for flavor in ("int8", "uint8")}
    size = fp32.preprocessing.size
    return {
        "machine": {"processor": processor(), "python": platform.python_version()},
        "calibrator": arguments.calibrator,
        "calibration_images": count,
        "static": arguments.static,
        "rows": rows,
        "speed_over_fp32": {
            words: speeds({name: OnnxRunner(file, threads=threads) for name, file in files.items()}, size)
            for words, threads in (("1 thread", 1), (f"{os.cpu_count()} threads", None))
        },
    }


def judged(made: ModelArtifact, held: Path, policy: str) -> list[dict[str, Any]]:
    """One row a quantized form, on images that were held out."""
    report = verify(made, VerifySpec(data=held, latency_seconds=0))
    rows = []
    for item in report.candidates:
        logits, classes = item.outputs["logits"], item.classes
        if classes is None or classes.top1 is None or item.name == "model":
            continue
        row = {
            "policy": policy,
            "form": item.name,
            "sites": len(quantization_sites(made.config, policy)),
            "images": report.images,
            "integer_products": item.integer_products,
            "top1_reference": classes.top1[0],
            "top1": classes.top1[1],
            "lost_points": classes.drop,
            "lost_points_95": classes.drop_interval,
            "agreement": classes.agreement,
            "flips": len(classes.flips),
            "cosine": logits.cosine,
            "sqnr_db": logits.sqnr_db,
            "size_ratio": item.size_ratio,
        }
        rows.append(row)
    return rows


def table(result: dict[str, Any]) -> str:
    """Markdown tables of the result."""
    lines = [
        "| policy | form | sites | top-1 | lost, points (95 %) | flips | cosine | SQNR dB | file |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["lost_points_95"]
        lines.append(
            f"| {row['policy']} | {row['form']} | {row['sites']} | {row['top1']:.2%} | {row['lost_points']:.2f} ({low:.2f} to "
            f"{high:.2f}) | {row['flips']} | {row['cosine']:.5f} | {row['sqnr_db']:.1f} | {row['size_ratio']:.2f} |"
        )
    lines += ["", "| threads | batch | policy and form | speed over FP32 ONNX (quartiles) |", "|---|---|---|---|"]
    for threads, batches in result["speed_over_fp32"].items():
        for batch, forms in batches.items():
            for name, (low, middle, high) in forms.items():
                lines.append(f"| {threads} | {batch} | {name} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
