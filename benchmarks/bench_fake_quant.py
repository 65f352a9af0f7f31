"""Fake-quantized PyTorch against the INT8 file it becomes, beside what a hardly changed input does to PyTorch alone.

    python benchmarks/bench_fake_quant.py --train clothing10/train --val clothing10/val --out benchmarks/results/fake-quant.json

Two rounding networks that differ by float noise anywhere fall on different steps now and then, and every such step moves the layers
behind it. So the yardstick is the network itself with noise of 1e-6 on its normalized pixels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from reference_model.preprocessing import read_image
from swinv2_deploy.artifacts import read_artifact
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling import load_model
from swinv2_deploy.modeling.fake_quant import fake_quantize
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact
from swinv2_deploy.quantize import QuantizeSpec, quantize
from swinv2_deploy.runtime import OnnxRunner

NOISE = 1e-6
Array = NDArray[np.float32]


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="artifact with onnx/model.onnx; default: the bundled model")
    parser.add_argument("--train", type=Path, default=sample_folder("calibrate"), help="images to calibrate on")
    parser.add_argument("--val", type=Path, default=sample_folder("verify"), help="images to compare on")
    parser.add_argument("--images", type=int, default=256, help="calibration images")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    print("| against fake-quantized PyTorch | max abs | mean abs | cosine | top-1 agreement |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['form']} | {row['max_abs']:.2g} | {row['mean_abs']:.2g} | {row['cosine']:.6f} | {row['agreement']:.2%} "
            f"({row['flips']} of {row['images']}) |"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Logits of all forms on all images."""
    source = read_artifact(arguments.model) if arguments.model else None
    artifact = source or export(source_from_artifact(bundled_artifact()), ExportSpec(), folder / "fp32")
    images = ImageFolder.open(arguments.train)
    spec = QuantizeSpec(images=min(arguments.images, len(images)), unsigned="never")
    result = quantize(artifact, spec, images, folder / "int8")
    plain, rounding = load_model(artifact), load_model(artifact)
    fake_quantize(rounding, result.table.amax)
    runner = OnnxRunner(result.artifact.path / "onnx/model_int8.onnx")
    generator = np.random.default_rng(0)
    logits: dict[str, list[Array]] = {}
    paths = ImageFolder.open(arguments.val).paths
    for start in range(0, len(paths), 8):
        pixels = np.stack([artifact.preprocessing(read_image(path)) for path in paths[start : start + 8]])
        moved = (pixels + NOISE * generator.standard_normal(pixels.shape)).astype(np.float32)
        with torch.no_grad():
            found = {
                "fake": rounding(torch.from_numpy(pixels)).numpy(),
                f"the same with noise of {NOISE:g} on its input": rounding(torch.from_numpy(moved)).numpy(),
                "model_int8.onnx, ONNX Runtime": runner.run(pixels)["logits"],
                "the model in float": plain(torch.from_numpy(pixels)).numpy(),
            }
        for name, values in found.items():
            logits.setdefault(name, []).append(values)
    fake, *others = ((name, np.concatenate(parts)) for name, parts in logits.items())
    return [compare(name, fake[1], values) for name, values in others]


def compare(form: str, expected: Array, found: Array) -> dict[str, Any]:
    """Drift of logits (n, K)."""
    products = (expected * found).sum(axis=1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    flips = int((expected.argmax(axis=1) != found.argmax(axis=1)).sum())
    return {
        "form": form,
        "images": len(expected),
        "max_abs": float(np.abs(found - expected).max()),
        "mean_abs": float(np.abs(found - expected).mean()),
        "cosine": float(products.mean()),
        "flips": flips,
        "agreement": 1 - flips / len(expected),
    }


if __name__ == "__main__":
    main()
