"""Peak memory of a calibration over the number of images, as a table and as JSON.

    python benchmarks/bench_calibration_memory.py --data clothing10/train --images 64 1024

Each number of images runs in a process of its own, with every calibrator: the bundled model, all its sites, batches of 16,
histograms kept.
*Extra* is the peak of resident memory during the calibration less what the process held before it, libraries and model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

CALIBRATORS = ("max", "percentile", "entropy", "mse")

WORK = """
    import json, sys
    import numpy as np
    import torch

    from calibration.collect import collect
    from calibration.dataset import ImageFolder
    from reference_model.preprocessing import read_image
    from swinv2_deploy.modeling import load_model, quantization_sites
    from swinv2_deploy.modeling.source import bundled_artifact

    def memory(key):
        return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

    def batches(folder):
        for start in range(0, len(folder), 16):
            yield torch.from_numpy(np.stack([recipe(read_image(path)) for path in folder.paths[start : start + 16]]))

    torch.set_num_threads(1)
    artifact = bundled_artifact()
    model, recipe = load_model(artifact), artifact.preprocessing
    folder = ImageFolder.open(sys.argv[1])
    chosen = folder.select(int(sys.argv[2]))
    sites = {site: site for site in quantization_sites(artifact.config)}
    with torch.no_grad():
        model(next(batches(chosen)))  # what the first forward pass allocates for good
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak of loading
    before = memory("VmRSS")
    table = collect(
        model, batches(chosen), sites, manifest=chosen.manifest(), model_sha256="0" * 64, calibrator=sys.argv[3], histograms=True
    )
    print(json.dumps({"calibrator": sys.argv[3], "images": table.images, "before_bytes": before, "peak_bytes": memory("VmHWM")}))
"""


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder with at least as many images")
    parser.add_argument("--images", type=int, nargs="+", default=[64, 1024], help="numbers of images")
    parser.add_argument("--calibrators", nargs="+", choices=CALIBRATORS, default=CALIBRATORS, help="how ranges are chosen")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = [measure(arguments.data, count, name) for name in arguments.calibrators for count in arguments.images]
    print(f"{'calibrator':<12} {'images':>7} {'before':>10} {'peak':>10} {'extra':>10}")
    for row in rows:
        before, peak = row["before_bytes"] / 2**20, row["peak_bytes"] / 2**20
        print(f"{row['calibrator']:<12} {row['images']:>7} {before:6.0f} MiB {peak:6.0f} MiB {peak - before:6.1f} MiB")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def measure(data: Path, images: int, calibrator: str) -> dict[str, Any]:
    """Calibrate once in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(WORK), str(data), str(images), calibrator]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
