"""Does verification find what is broken? Faults, one by one: what each ends in, and whether the bisection names the right block.

    python benchmarks/bench_faults.py --out benchmarks/results/faults.json

The bundled model is exported, with the file that takes photographs, and quantized on the bundled photographs; every fault is put
into a copy of it, which is verified on the other bundled photographs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.faults import Fault, faults, inject
from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import SwinDeployError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import bundled_artifact, source_from_artifact
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.verify import VerifySpec, find_culprit, verify


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a fault.

    Attributes:
        name: The fault.
        ended: ``gate`` where a gate failed, ``refused`` where the artifact was not even run, ``missed``.
        said: First line of it.
        culprit: What the bisection named; empty where there was none.
        site: Part of it.
        right: Whether that is where the fault is; None for a fault outside of the network.
    """

    name: str
    ended: str
    said: str
    culprit: str = ""
    site: str = ""
    right: bool | None = None


def main() -> None:
    """Print a row a fault, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="photographs to verify on")
    parser.add_argument(
        "--seeds", type=int, default=20, help="runs of the healthy artifact, each on other photographs and noise"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    # The shift mask of -100 leaves denormal numbers behind the softmax, and processors compute with those many times slower.
    torch.set_flush_denormal(True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        healthy = make_healthy(Path(folder))
        passed = 0
        for seed in range(arguments.seeds):
            report = verify(healthy, replace(spec_for(arguments.limit // 2), seed=seed))
            passed += report.passed
        print(
            f"without a fault: {passed} of {arguments.seeds} runs pass, each on {arguments.limit // 2} photographs", flush=True
        )
        for fault in faults():
            found = examine(fault, healthy, Path(folder) / "faulty", arguments.limit)
            rows.append(found)
            named = f"; named {found.culprit} {found.site}: {'right' if found.right else 'WRONG'}" if found.culprit else ""
            print(f"{found.name}: {found.ended}, {found.said[:90]}{named}", flush=True)
    missed = sum(row.ended == "missed" for row in rows)
    inside = [row for row in rows if row.right is not None]
    right = sum(row.right is True for row in inside)
    print(f"{len(rows)} faults, {missed} missed; of {len(inside)} inside the network the right block was named for {right}")
    if arguments.out:
        content = {
            "photographs": arguments.limit,
            "healthy_runs": arguments.seeds,
            "healthy_passes": passed,
            "faults": len(rows),
            "missed": missed,
            "inside": len(inside),
            "named_right": right,
            "rows": [{name: getattr(row, name) for name in Found.__slots__} for row in rows],
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def make_healthy(folder: Path) -> ModelArtifact:
    """The bundled model with every kind of file."""
    exported = export(source_from_artifact(bundled_artifact()), ExportSpec(bake_preprocessing=True), folder / "nano")
    images = ImageFolder.open(sample_folder("calibrate"))
    return quantize(exported, QuantizeSpec(unsigned="never"), images, folder / "healthy").artifact


def spec_for(limit: int, candidates: tuple[str, ...] = ()) -> VerifySpec:
    """How every copy is verified: no clock, and a few sizes."""
    return VerifySpec(
        data=sample_folder("verify"),
        candidates=candidates,
        limit=limit,
        sizes=((64, 64), (100, 76), (128, 128)),
        batch_sizes=(1, 3),
        latency_seconds=0,
    )


def examine(fault: Fault, healthy: ModelArtifact, path: Path, limit: int) -> Found:
    """Put a fault into a copy, verify it, and bisect it where a gate failed and there is a block to name."""
    broken = inject(fault, healthy, path)
    spec = spec_for(limit, (fault.file,))
    inside = bool(fault.units)
    try:
        report = verify(broken, spec)
    except SwinDeployError as error:
        return Found(fault.name, "refused", str(error).replace(str(path), path.name), right=False if inside else None)
    (candidate,) = report.candidates
    if report.passed:
        return Found(fault.name, "missed", report.verdict, right=False if inside else None)
    if not inside:
        return Found(fault.name, "gate", report.failures[0])
    found = find_culprit(broken, spec, report, candidate)
    return Found(fault.name, "gate", report.failures[0], found.culprit, found.site, found.culprit in fault.units)


if __name__ == "__main__":
    main()
