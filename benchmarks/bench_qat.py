"""FP32, post-training quantization with every calibrator, and quantization-aware training, on the same held-out photographs.

    python benchmarks/bench_qat.py --data clothing10 --out benchmarks/results/qat.json

``--data`` holds ``train``, which is calibrated and trained on, and ``val``, which is judged on. Without ``--model`` the bundled
model is exported first. Training is resumable: the same command goes on where an earlier one stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import known_rows, source
from calibration.dataset import open_split
from swinv2_deploy.pipeline import judge, judge_methods, quantize_aware
from swinv2_deploy.quantize.spec import QatSpec, QuantizeSpec, as_policy, as_ranges


def main() -> None:
    """Measure, print the table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and val")
    parser.add_argument("--model", type=Path, help="artifact with onnx/model.onnx; default: the bundled model")
    parser.add_argument("--methods", default="ptq,qat", help="what to measure; rows of the other stay as --out has them")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the training")
    parser.add_argument("--ranges", default="frozen,learned", help="what becomes of the ranges")
    parser.add_argument("--calibrator", default="percentile", help="calibrator that training starts from")
    parser.add_argument("--policy", default="linear", help="which sites are quantized; other rows are named after it")
    parser.add_argument("--images", type=int, default=256, help="calibration images")
    parser.add_argument("--epochs", type=int, default=QatSpec().epochs)
    parser.add_argument("--lr", type=float, default=QatSpec().learning_rate)
    parser.add_argument("--batch-size", type=int, default=QatSpec().batch_size)
    parser.add_argument("--run", type=Path, default=Path("runs/bench-qat"), help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    # The shift mask of -100 leaves denormal numbers behind the softmax, and processors compute with those many times slower.
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Judge every form; each is printed, and written, as soon as it is there."""
    images, held = open_split(arguments.data)
    if held is None:
        raise SystemExit(f"{arguments.data} has no train and val; expected a folder with both.")
    artifact = source(arguments.model, folder)
    spec = QuantizeSpec(
        calibrator=arguments.calibrator,
        images=min(arguments.images, len(images)),
        unsigned="never",
        policy=as_policy(arguments.policy),
    )
    suffix = "" if spec.policy == "linear" else f", {spec.policy}"
    facts = {
        "model": artifact.name,
        "weights_sha256": artifact.lineage.files["model.safetensors"],
        "calibration_images": spec.images,
        "training_images": len(images),
        "held_sha256": held.manifest().sha256,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    rows = {row["form"]: row for row in known_rows(arguments.out, facts)}

    def add(row: dict[str, Any]) -> None:
        rows[row["form"]] = row
        if arguments.out:
            content = facts | {"rows": list(rows.values())}
            arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        low, high = row["interval"]
        print(
            f"| {row['form']} | {row['top1']:.2%} | {row['lost']:.2f} ({low:.2f} to {high:.2f}) | {row['flips']} | "
            f"{row['sqnr_db']:.1f} |",
            flush=True,
        )

    print("| form | top-1 | points lost (95 %) | flips | SQNR, dB |\n|---|---|---|---|---|")
    methods = arguments.methods.split(",")
    if "ptq" in methods:
        for verdict in judge_methods(artifact, None, spec, images, held):
            add(asdict(verdict) | {"form": verdict.form + suffix * (verdict.form != "fp32")})
    for ranges in arguments.ranges.split(",") if "qat" in methods else ():
        for seed in (int(text) for text in arguments.seeds.split(",")):
            qat = QatSpec(
                epochs=arguments.epochs,
                learning_rate=arguments.lr,
                batch_size=arguments.batch_size,
                ranges=as_ranges(ranges),
                seed=seed,
            )
            name = f"qat, {ranges} ranges, seed {seed}{suffix}"
            run = arguments.run / f"{artifact.name}-{ranges}-{seed}{suffix.replace(', ', '-')}"
            made = quantize_aware(artifact, spec, qat, images, folder / f"{ranges}-{seed}", run=run).artifact
            history = json.loads(made.file("qat_history.json").read_text())
            add(asdict(judge(made, held, name)) | {"recipe": qat.to_dict(), "history": history})


if __name__ == "__main__":
    main()
