"""What verifying many photographs costs: time over the two forward passes, memory, and what is left of a run that was killed.

    python benchmarks/bench_verify.py --data clothing10/val --out benchmarks/results/verify.json

Without a folder it uses the bundled photographs. Times are medians of ratios of interleaved runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

from benchmarks.bench_bundled import processor
from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling import load_model
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.modeling.source import bundled_artifact, resolve, source_from_artifact
from swinv2_deploy.quantize import QuantizeSpec, quantize
from swinv2_deploy.runtime import TorchRunner, load_runner
from swinv2_deploy.verify import VerifySpec
from swinv2_deploy.verify.comparison import Comparer, ComparisonPlan
from swinv2_deploy.verify.inputs import VerifyImages, choose_images
from swinv2_deploy.verify.metrics import class_names

PARTS = ("speed", "killed")
ROUNDS = 5
BATCH = 8
KILLS = 3
CLOCK = ("created", "seconds", "report")
"""Entries of a report that two runs may have different."""


def main() -> None:
    """Measure the parts that were asked for, and keep those of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=sample_folder("verify"), help="photographs")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated: {','.join(PARTS)}")
    parser.add_argument(
        "--images",
        type=int,
        default=10_600,
        help="photographs of the run that is killed, those of the calibration among them, which it leaves out",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write; parts that it has are kept")
    arguments = parser.parse_args()
    result: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    result["machine"] = {"processor": processor(), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts.split(","):
            result[part] = {"speed": speed, "killed": killed}[part](arguments, Path(folder))
            print(json.dumps({part: result[part]}, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def speed(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The comparison, and a plain loop, over the two forward passes alone."""
    nano = quantized(export(source_from_artifact(bundled_artifact()), ExportSpec(), folder / "nano"), folder / "nano-int8")
    tiny = export(resolve(SourceRequest(size="tiny", resolution=256, window="8")), ExportSpec(), folder / "tiny")
    return [row for artifact, count in ((nano, 512), (tiny, 48)) for row in speed_of(artifact, count, arguments.data)]


def quantized(artifact: ModelArtifact, out: Path) -> ModelArtifact:
    """An INT8 form of it."""
    return quantize(artifact, QuantizeSpec(unsigned="never"), ImageFolder.open(sample_folder("calibrate")), out).artifact


def speed_of(artifact: ModelArtifact, count: int, data: Path) -> list[dict[str, Any]]:
    """A row for every ONNX file."""
    count = min(count, len(ImageFolder.open(data)))
    rows = []
    for name in artifact.onnx_files:
        ways = ways_of(artifact, name, count, data)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(ROUNDS + 1):
            for way, run in ways.items():
                started = perf_counter()
                run()
                if turn:  # the first one warms up
                    seconds[way].append(perf_counter() - started)
        rows.append(
            {
                "model": artifact.name,
                "file": name,
                "images": count,
                "size": list(artifact.preprocessing.size),
                "over_forward_passes": {
                    way: ratio(seconds[way], seconds["forward passes"]) for way in ("verify", "plain loop")
                },
                "images_per_s_over_plain_loop": ratio(seconds["plain loop"], seconds["verify"]),
            }
        )
    return rows


def ways_of(artifact: ModelArtifact, name: str, count: int, data: Path) -> dict[str, Callable[[], None]]:
    """Both forward passes on pixels that lie ready, a loop that decodes and runs in turn, and the comparison of ``verify``."""
    spec = VerifySpec(
        data=data, candidates=(name,), limit=count, batch_size=BATCH, labels="auto", allow_untrained=True, exclude_overlap=True
    )
    images = choose_images(artifact, spec)
    runner, reference = load_runner(artifact, name), TorchRunner(load_model(artifact))
    plan = ComparisonPlan(
        artifact=artifact.path, others=(), spec=spec, images=images, classes=class_names(artifact.config), margins={name: 0.0}
    )
    comparer = Comparer(plan, reference, {name: runner}, artifact.preprocessing)
    decoded = [batch.images for batch in images.batches(artifact.preprocessing, BATCH)]

    def passes() -> None:
        for pixels in decoded:
            reference.run(pixels)
            runner.run(pixels)

    def plain() -> None:
        for pixels in one_by_one(images, artifact):
            reference.run(pixels)
            runner.run(pixels)

    def compared() -> None:
        for index in range(plan.shards):
            comparer.shard(index)

    return {"forward passes": passes, "plain loop": plain, "verify": compared}


def ratio(above: list[float], below: list[float]) -> list[float]:
    """Smallest, median and largest ratio of interleaved runs."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    return [ratios[0], median(ratios), ratios[-1]]


def one_by_one(images: VerifyImages, artifact: ModelArtifact) -> Any:
    """Batches as a plain loop makes them: decode, then run."""
    import numpy as np

    from reference_model.preprocessing import read_image

    paths = images.folder.paths
    for start in range(0, len(paths), BATCH):
        yield np.stack([artifact.preprocessing(read_image(path)) for path in paths[start : start + BATCH]])


def killed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Many photographs, killed three times and resumed, against one run that was left alone; and the memory of few and many."""
    artifact = quantized(export(source_from_artifact(bundled_artifact()), ExportSpec(), folder / "fp32"), folder / "int8")
    few = ImageFolder.open(arguments.data)
    many = repeated(few, arguments.images, folder / "many")
    command = [
        *(sys.executable, "-c", "from swinv2_deploy.cli.app import main; main()", "verify", "--model", str(artifact.path)),
        *("--threads", "1", "--latency-seconds", "0", "--exclude-overlap", "--json", "--quiet", "--data"),
    ]
    generator = random.Random(0)
    run, found = folder / "run", []
    for _ in range(KILLS):
        shards = run / "shards"
        there = len(list(shards.glob("[0-9]*.json"))) if shards.exists() else 0
        wanted = there + generator.randint(1, 10)
        process = subprocess.Popen(
            [*command, str(many), "--run", str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not shards.exists() or len(list(shards.glob("[0-9]*.json"))) < wanted:
            sleep(0.05)
            if process.poll() is not None:
                raise SystemExit(f"verify ended with {process.returncode} before it was killed")
        sleep(generator.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        found.append(len(list(shards.glob("[0-9]*.json"))))
    resumed, _ = reported([*command, str(many), "--run", str(run)])
    whole, memory = reported([*command, str(many)])
    _, little = reported([*command, str(few.root)])
    return {
        "images": whole["images"],
        "shards_when_killed": found,
        "identical_but_for_clock": without_clock(resumed) == without_clock(whole),
        "figures_sha256_equal": resumed["figures_sha256"] == whole["figures_sha256"],
        "peak_mib": {str(len(few)): little, str(whole["images"]): memory},
    }


def repeated(folder: ImageFolder, count: int, place: Path) -> Path:
    """So many links to the photographs, in the same class folders."""
    for index in range(count):
        name = folder.names[index % len(folder)]
        path = place / Path(name).parent / f"{index // len(folder):03d}-{Path(name).name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to((folder.root / name).resolve())
    return place


def reported(command: list[str]) -> tuple[dict[str, Any], float]:
    """Report and peak memory in MiB of a process of its own."""
    with tempfile.TemporaryFile("w+") as text:
        process = subprocess.Popen(command, stdout=text)
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status) not in (0, 3):
            raise SystemExit("verify failed")
        text.seek(0)
        return json.load(text), usage.ru_maxrss / 1024


def without_clock(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what any two runs have different."""
    return {name: value for name, value in report.items() if name not in CLOCK}


if __name__ == "__main__":
    main()
