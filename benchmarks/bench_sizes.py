"""One dynamic ONNX graph of tiny at sizes far from the trained one: equal to the reference, in bounded memory, in linear time.

    python benchmarks/bench_sizes.py --out benchmarks/results/sizes.json

Reference and ONNX Runtime each run 2560x1600 px in a process of their own, whose peak of resident memory is reported. Time is told
as the ratio of the fastest of interleaved runs at 1024x1024 and 256x256 px: the number of pixels grows 16 times.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from reference_model.variants import find_variant
from swinv2_deploy.artifacts import WeightsOrigin, read_artifact
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.source import Source, published_preprocessing, untrained_model
from swinv2_deploy.runtime import OnnxRunner, TorchRunner
from swinv2_deploy.runtime.proof import difference, noise_images

LARGE = (2560, 1600)
PAIR = ((256, 256), (1024, 1024))


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved runs of the two sizes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--part", choices=("torch", "onnx"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run_large(arguments.part, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.rounds)
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Export once, then memory, error and time."""
    variant = find_variant("tiny", 256, 8)
    source = Source(
        model=untrained_model(variant.config, 0),
        preprocessing=published_preprocessing(variant),
        origin=WeightsOrigin(kind="untrained", source="seed 0"),
        name="tiny",
    )
    artifact = export(source, ExportSpec(largest=(2560, 2560)), folder / "tiny")
    peaks = {part: _peak_of(part, folder) for part in ("torch", "onnx")}
    error = difference(np.load(folder / "torch.npy"), np.load(folder / "onnx.npy"))
    return {
        "model": variant.name,
        "size": list(LARGE),
        "peak_bytes": peaks,
        "max_abs_error": error,
        "time_ratio": time_ratio(OnnxRunner(artifact.onnx_files["model"]), rounds),
        "pixel_ratio": 16,
    }


def run_large(part: str, folder: Path) -> None:
    """One forward pass of the large image; prints the peak of resident memory in bytes."""
    artifact = read_artifact(folder / "tiny")
    runner = TorchRunner(load_model(artifact)) if part == "torch" else OnnxRunner(artifact.onnx_files["model"])
    np.save(folder / f"{part}.npy", runner.run(noise_images(LARGE, 1, 3))["logits"])
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def time_ratio(runner: OnnxRunner, rounds: int) -> float:
    """Fastest run of the second size of the pair over the fastest of the first."""
    seconds: dict[tuple[int, int], list[float]] = {size: [] for size in PAIR}
    images = {size: noise_images(size, 1, 3) for size in PAIR}
    for size in PAIR:
        runner.run(images[size])
    for _ in range(rounds):
        for size in (PAIR[0], PAIR[0], PAIR[0], PAIR[1]):
            started = perf_counter()
            runner.run(images[size])
            seconds[size].append(perf_counter() - started)
    return round(min(seconds[PAIR[1]]) / min(seconds[PAIR[0]]), 2)


def _peak_of(part: str, folder: Path) -> int:
    done = subprocess.run(
        [sys.executable, __file__, "--part", part, "--folder", str(folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
