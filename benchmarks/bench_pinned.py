"""What it costs to run a file for any size instead of one for this size, used as it is and pinned, in both runtimes.

    python benchmarks/bench_pinned.py --out benchmarks/results/pinned.json

Three sessions of the same weights take turns run by run: of a static export, of the default export, and of that one pinned to the
batch and size. A cost is time(session) / time(static) - 1, both of the same round, as the median over rounds with its quartiles. So
it does not matter what the machine did between two rounds. Weights are untrained: no operator is faster or slower for it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch

from benchmarks.bench_bundled import processor
from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from reference_model.model import build_model
from reference_model.preprocessing import Preprocessing
from reference_model.variants import VARIANTS
from swinv2_deploy.artifacts import WeightsOrigin
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import Source
from swinv2_deploy.quantize import QuantizeSpec, quantize
from swinv2_deploy.runtime import FileRunner, OnnxRunner, OpenVinoRunner

FORMS: dict[str, Callable[..., FileRunner]] = {
    "model, ONNX Runtime": OnnxRunner,
    "model_uint8, ONNX Runtime": OnnxRunner,
    "model_int8, ONNX Runtime": OnnxRunner,
    "model, OpenVINO": OpenVinoRunner,
    "model_int8, OpenVINO": OpenVinoRunner,
}
SESSIONS = ("static", "free", "pinned")


@dataclass(frozen=True, slots=True)
class Case:
    """A model at its size, the batches it is run with, and how often each."""

    variant: str
    rounds: dict[int, int]


CASES = {
    "tiny-256": Case("swinv2-tiny-patch4-window8-256", {1: 61, 8: 21}),
    "base-384": Case("swinv2-base-patch4-window12to24-192to384-22kto1k-ft", {1: 41}),
}


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES), help="some of the models")
    parser.add_argument("--threads", type=int, help="threads of every runtime; its own choice if not given")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows += measured(name, CASES[name], Path(folder), arguments.threads)
    print(table(rows))
    if arguments.out:
        versions = {"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__}
        content = {"machine": {"processor": processor()}, "versions": versions, "threads": arguments.threads, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def measured(name: str, case: Case, folder: Path, threads: int | None) -> list[dict[str, Any]]:
    """Cost of every form at every batch."""
    torch.manual_seed(0)
    config = VARIANTS[case.variant].config
    side = config.image_size[0]
    source = Source(
        model=build_model(config).eval(),
        preprocessing=Preprocessing(size=(side, side), resize_shortest=None),
        origin=WeightsOrigin(kind="untrained", source="seed 0"),
        name=name,
    )
    images = ImageFolder.open(sample_folder("calibrate"))
    files: dict[str, dict[str, Path]] = {}
    for kind in ("static", "dynamic"):
        exported = export(source, ExportSpec(static=kind == "static"), folder / kind)
        spec = QuantizeSpec(calibrator="max", images=8, unsigned="always")
        files[kind] = quantize(exported, spec, images, folder / f"{kind}-int8").artifact.onnx_files
    rows = []
    for batch, rounds in case.rounds.items():
        for form, runner in FORMS.items():
            stem = form.split(",")[0]
            pinned = (batch, side, side)
            # OpenVINO is given a file of one size with its batch, as everybody would load it.
            runners = {
                "static": runner(files["static"][stem], threads=threads, pinned=pinned if "OpenVINO" in form else None),
                "free": runner(files["dynamic"][stem], threads=threads),
                "pinned": runner(files["dynamic"][stem], threads=threads, pinned=pinned),
            }
            rows.append({"model": name, "batch": batch, "form": form} | costs(runners, batch, side, rounds))
            print(line(rows[-1]), flush=True)
    return rows


def costs(runners: dict[str, FileRunner], batch: int, side: int, rounds: int) -> dict[str, Any]:
    """Quartiles of time over that of the static session, less 1, and how far outputs are from that one's."""
    pixels = np.random.default_rng(0).standard_normal((batch, 3, side, side)).astype(np.float32)
    outputs = {name: runner.run(pixels)["logits"] for name, runner in runners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds):
        order = SESSIONS[number % 3 :] + SESSIONS[: number % 3]
        for name in order:
            started = perf_counter()
            runners[name].run(pixels)
            seconds[name].append(perf_counter() - started)
    static = np.asarray(seconds["static"])
    return {
        name: {
            "cost": [float(value) for value in np.percentile(np.asarray(seconds[name]) / static - 1, [25, 50, 75])],
            "cost_of_minima": min(seconds[name]) / float(static.min()) - 1,
            "max_abs": float(np.abs(outputs[name] - outputs["static"]).max()),
        }
        for name in SESSIONS[1:]
    }


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    cells = []
    for name in SESSIONS[1:]:
        low, middle, high = row[name]["cost"]
        cells.append(
            f"{middle:+.1%} ({low:+.1%} to {high:+.1%}), {row[name]['cost_of_minima']:+.1%}, {row[name]['max_abs']:.0e}"
        )
    return f"| {row['model']} | {row['batch']} | {row['form']} | {' | '.join(cells)} |"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of the result."""
    head = [
        "| model | batch | file, runtime | any size over static: time (quartiles), of minima, outputs apart | pinned over static |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(line, rows)])


if __name__ == "__main__":
    main()
