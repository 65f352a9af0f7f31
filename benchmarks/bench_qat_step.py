"""How much longer a training step takes with fake quantizers: forward, backward and AdamW, interleaved, medians of ratios.

    python benchmarks/bench_qat_step.py --out benchmarks/results/qat-step.json

Ratios are over the same step in FP32, without a teacher in both, and with the teacher's forward pass in both.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.collect import collect
from calibration.dataset import Manifest
from reference_model.model import SwinV2
from reference_model.variants import find_variant
from swinv2_deploy.modeling import quantization_sites
from swinv2_deploy.modeling.fake_quant import fake_quantize
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact, source_from_variant

CASES = {"nano, 128 px, batch 32": ("nano", 128, 32), "tiny window 8, 256 px, batch 4": ("tiny", 256, 4)}


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    print("| model | ranges | step over FP32 (quartiles) | with a teacher in both |\n|---|---|---|---|")
    rows = []
    for name, (size, resolution, batch) in CASES.items():
        for row in measure(name, model_of(size, resolution), torch.randn(batch, 3, resolution, resolution), arguments.rounds):
            rows.append(row)
            cells = [f"{row[key][1]:.2f} ({row[key][0]:.2f} to {row[key][2]:.2f})" for key in ("plain", "taught")]
            print(f"| {name} | {row['ranges']} | {cells[0]} | {cells[1]} |", flush=True)
    if arguments.out:
        content = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": arguments.rounds, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def model_of(size: str, resolution: int) -> SwinV2:
    """The bundled model, or a published one with untrained weights."""
    if size == "nano":
        return source_from_artifact(bundled_artifact()).model
    return source_from_variant(find_variant(size, resolution, "8"), seed=0).model


def measure(name: str, model: SwinV2, images: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Quartiles of time(with fake quantizers) / time(FP32), for frozen and learned ranges."""
    ranges = ranges_on(model, images)
    students = {"fp32": copy.deepcopy(model)}
    for kind in ("frozen", "learned"):
        students[kind] = copy.deepcopy(model)
        fake_quantize(students[kind], ranges, learned=kind == "learned")
    optimizers = {kind: torch.optim.AdamW(student.parameters(), lr=1e-5) for kind, student in students.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in students} | {"teacher": []}
    for round_ in range(rounds + 1):
        for kind, student in students.items():
            spent = step(student, optimizers[kind], images)
            if round_:  # the first one warms up
                seconds[kind].append(spent)
        started = perf_counter()
        with torch.no_grad():
            model(images)
        if round_:
            seconds["teacher"].append(perf_counter() - started)
    return [
        {
            "model": name,
            "ranges": kind,
            "plain": quantiles([a / b for a, b in zip(seconds[kind], seconds["fp32"], strict=True)], n=4),
            "taught": quantiles(
                [(a + t) / (b + t) for a, b, t in zip(seconds[kind], seconds["fp32"], seconds["teacher"], strict=True)], n=4
            ),
        }
        for kind in ("frozen", "learned")
    ]


def step(student: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    """Seconds of one step."""
    started = perf_counter()
    student.train()
    logits = student(images)
    F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return perf_counter() - started


def ranges_on(model: SwinV2, images: Tensor) -> dict[str, float]:
    """Largest magnitude at every site."""
    nothing = "0" * 64  # noise is no photograph, and the weights are not asked about
    sites = {site: site for site in quantization_sites(model.config)}
    return collect(model, [images], sites, manifest=Manifest({"noise": nothing}), model_sha256=nothing).amax


if __name__ == "__main__":
    main()
