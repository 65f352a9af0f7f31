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
from swinv2_deploy.modeling.fake_quant import fake_quantize
from swinv2_deploy.modeling.sites import Policy, quantization_sites, watched_inputs
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact, source_from_variant

POLICIES: tuple[Policy, ...] = ("linear", "attention")
CASES = {"nano, 128 px, batch 32": ("nano", 128, 32), "tiny window 8, 256 px, batch 4": ("tiny", 256, 4)}


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    print("| model | policy | ranges | step over FP32 (quartiles) | with a teacher in both |\n|---|---|---|---|---|")
    rows = []
    for name, (size, resolution, batch) in CASES.items():
        for row in measure(name, model_of(size, resolution), torch.randn(batch, 3, resolution, resolution), arguments.rounds):
            rows.append(row)
            cells = [f"{row[key][1]:.2f} ({row[key][0]:.2f} to {row[key][2]:.2f})" for key in ("plain", "taught")]
            print(f"| {name} | {row['policy']} | {row['ranges']} | {cells[0]} | {cells[1]} |", flush=True)
    if arguments.out:
        content = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": arguments.rounds, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def model_of(size: str, resolution: int) -> SwinV2:
    """The bundled model, or a published one with untrained weights."""
    if size == "nano":
        return source_from_artifact(bundled_artifact()).model
    return source_from_variant(find_variant(size, resolution, "8"), seed=0).model


def measure(name: str, model: SwinV2, images: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Quartiles of time(with fake quantizers) / time(FP32), for each policy with frozen and learned ranges."""
    plain = ("", "fp32")
    students: dict[tuple[str, str], nn.Module] = {plain: copy.deepcopy(model)}
    for policy in POLICIES:
        ranges = ranges_on(model, images, policy)
        for kind in ("frozen", "learned"):
            students[policy, kind] = copy.deepcopy(model)
            fake_quantize(students[policy, kind], ranges, learned=kind == "learned")
    optimizers = {kind: torch.optim.AdamW(student.parameters(), lr=1e-5) for kind, student in students.items()}
    seconds: dict[tuple[str, str], list[float]] = {kind: [] for kind in students}
    teacher: list[float] = []
    for round_ in range(rounds + 1):
        for kind, student in students.items():
            spent = step(student, optimizers[kind], images)
            if round_:  # the first one warms up
                seconds[kind].append(spent)
        started = perf_counter()
        with torch.no_grad():
            model(images)
        if round_:
            teacher.append(perf_counter() - started)
    return [
        {
            "model": name,
            "policy": policy,
            "ranges": kind,
            "plain": quantiles([a / b for a, b in zip(spent, seconds[plain], strict=True)], n=4),
            "taught": quantiles([(a + t) / (b + t) for a, b, t in zip(spent, seconds[plain], teacher, strict=True)], n=4),
        }
        for (policy, kind), spent in seconds.items()
        if policy
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


def ranges_on(model: SwinV2, images: Tensor, policy: Policy) -> dict[str, float]:
    """Largest magnitude of everything that enters a site."""
    nothing = "0" * 64  # noise is no photograph, and the weights are not asked about
    sites = watched_inputs(quantization_sites(model.config, policy))
    return collect(model, [images], sites, manifest=Manifest({"noise": nothing}), model_sha256=nothing).amax


if __name__ == "__main__":
    main()
