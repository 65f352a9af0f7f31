"""Peak memory of an export against the bytes of the weights it writes, as a table and as JSON.

    python benchmarks/bench_export_memory.py swinv2-base-patch4-window12to24-192to384-22kto1k-ft
    python benchmarks/bench_export_memory.py giant --out benchmarks/results/export-memory.json

Each model, with untrained weights, is exported in a process of its own. *Extra* is the peak of its resident memory during the
export less what it held before, libraries and the model itself, over the bytes of the weights. Resident memory counts pages of
mapped files, which the system can drop when it needs room.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORK = """
    import json, resource, sys, time
    from pathlib import Path

    import onnx, onnxruntime, torch

    from reference_model.variants import find_variant
    from swinv2_deploy.artifacts import WeightsOrigin
    from swinv2_deploy.export import ExportSpec, export
    from swinv2_deploy.modeling.source import Source, published_preprocessing, untrained_model

    def resident():
        return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

    variant = find_variant(sys.argv[1])
    libraries = resident()
    model = untrained_model(variant.config, 0)
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    source = Source(
        model=model,
        preprocessing=published_preprocessing(variant),
        origin=WeightsOrigin(kind="untrained", source="seed 0"),
        name=variant.name,
    )
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak of making the model
    before = resident()
    started = time.perf_counter()
    artifact = export(source, ExportSpec(), Path(sys.argv[2]) / "model")
    seconds = time.perf_counter() - started
    peak = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
    print(json.dumps({
        "model": variant.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": weights,
        "libraries_bytes": libraries,
        "before_bytes": before,
        "peak_bytes": peak,
        "seconds": round(seconds, 1),
        "files": {name: (artifact.path / name).stat().st_size for name in artifact.lineage.files},
    }))
"""


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["swinv2-tiny-patch4-window8-256"], help="variants to export")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = [measure(model) for model in arguments.models]
    print(f"{'model':<52} {'weights':>10} {'peak':>10} {'extra':>8} {'seconds':>8}")
    for row in rows:
        print(
            f"{row['model']:<52} {row['weights_bytes'] / 2**20:6.0f} MiB {row['peak_bytes'] / 2**20:6.0f} MiB "
            f"{row['extra_over_weights']:7.2f}x {row['seconds']:8.1f}"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def measure(model: str) -> dict[str, Any]:
    """Export one model in a process of its own."""
    import textwrap

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(WORK), model, folder], check=True, stdout=subprocess.PIPE, text=True
        )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    row["extra_over_weights"] = round((row["peak_bytes"] - row["before_bytes"]) / row["weights_bytes"], 2)
    return row


if __name__ == "__main__":
    main()
