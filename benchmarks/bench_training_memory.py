"""Peak memory of a training step with and without recomputed blocks and chunked attention, and of inference on huge images.

    python benchmarks/bench_training_memory.py --out benchmarks/results/training-memory.json

Each row is a process of its own. *Peak* is the largest resident memory (VmHWM) of the whole process, libraries, weights, gradients
and optimizer included; *extra* leaves out what it held before the first step. Training makes two AdamW steps in float32 with
stochastic depth; the gradients of the first are compared with those of the plain row. Inference compares logits in the same way.
Memory does not depend on the speed of the machine, but on the version of PyTorch and a little on the number of threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
MODEL = "swinv2-tiny-patch4-window8-256"

WORK = """
    import json, sys
    from dataclasses import replace

    import torch
    from safetensors.torch import save_file

    from reference_model.memory import limit_memory
    from reference_model.model import SwinV2Classifier, initialize
    from reference_model.variants import find_variant

    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    torch.set_flush_denormal(True)

    def status(name):
        return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

    model = SwinV2Classifier(replace(find_variant(task["model"]).config, drop_path_rate=0.2))
    initialize(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)  # the published zeros would make every block the identity
    limit_memory(model, checkpoint_blocks=task["checkpoint_blocks"], window_chunk=task["window_chunk"])
    images = torch.randn(task["batch"], 3, *task["size"], generator=torch.Generator().manual_seed(1))
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak of making the model
    before = status("VmRSS")
    if task["train"]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        targets = torch.arange(task["batch"]) % 1000
        for step in range(2):
            torch.manual_seed(step)
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model.train()(images), targets).backward()
            if step == 0:
                kept = {name: value.grad.clone() for name, value in model.named_parameters()}
                save_file(kept, sys.argv[2])
                del kept
            optimizer.step()
    else:
        with torch.no_grad():
            save_file({"logits": model.eval()(images)}, sys.argv[2])
    print(json.dumps({"before_bytes": before, "peak_bytes": status("VmHWM")}))
"""

TRAINING = {"train": True, "batch": 16, "size": (256, 256)}
PLAIN = {"checkpoint_blocks": False, "window_chunk": 0}
GROUPS: dict[str, list[dict[str, Any]]] = {
    "training, 16 images of 256x256 px": [
        TRAINING | PLAIN,
        TRAINING | PLAIN | {"window_chunk": 128},
        TRAINING | PLAIN | {"checkpoint_blocks": True},
        TRAINING | {"checkpoint_blocks": True, "window_chunk": 128},
    ],
    "inference, one image of 2560x1600 px": [
        {"train": False, "batch": 1, "size": (2560, 1600)} | PLAIN | {"window_chunk": chunk} for chunk in (0, 256)
    ],
    "inference, one image of 2560x2560 px": [
        {"train": False, "batch": 1, "size": (2560, 2560)} | PLAIN | {"window_chunk": chunk} for chunk in (0, 256)
    ],
}
LEAST_SAVING, LARGEST_BYTES = 0.40, 8 * 2**30


def measure(task: dict[str, Any], file: Path, threads: int) -> dict[str, Any]:
    """Do one task in a process of its own; its tensors are in ``file`` afterwards."""
    words = json.dumps(task | {"model": MODEL, "threads": threads})
    command = [sys.executable, "-c", textwrap.dedent(WORK), words, str(file)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = task | json.loads(done.stdout.splitlines()[-1])
    return row


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all tensors, relative to the largest value of each."""
    return max(float((one[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)) for name, value in other.items())


def main() -> None:
    """Measure, print a table, and write JSON if asked; exit code 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--processor", default=platform.processor() or platform.machine(), help="how to call it in the JSON")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "model": MODEL,
        "torch": torch.__version__,
        "processor": arguments.processor,
        "threads": arguments.threads,
        "groups": {},
    }
    broken = []
    for title, tasks in GROUPS.items():
        print(title)
        print(f"  {'blocks':<10} {'windows':>8} {'peak':>10} {'extra':>10} {'peak saved':>11} {'extra saved':>12}  difference")
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            for number, task in enumerate(tasks):
                file = Path(folder) / f"{number}.safetensors"
                row = measure(task, file, arguments.threads)
                plain = rows[0] if rows else row
                row["extra_bytes"] = row["peak_bytes"] - row["before_bytes"]
                row["peak_saved"] = round(1 - row["peak_bytes"] / plain["peak_bytes"], 3)
                row["extra_saved"] = round(1 - row["extra_bytes"] / plain["extra_bytes"], 3)
                row["difference"] = largest_difference(load_file(file), load_file(Path(folder) / "0.safetensors"))
                rows.append(row)
                print(
                    f"  {'recomputed' if row['checkpoint_blocks'] else 'kept':<10} {row['window_chunk'] or 'all':>8}"
                    f" {row['peak_bytes'] / 2**20:6.0f} MiB {row['extra_bytes'] / 2**20:6.0f} MiB {row['peak_saved']:>11.1%}"
                    f" {row['extra_saved']:>12.1%}  {row['difference']:.1e}",
                    flush=True,
                )
        result["groups"][title] = rows
        if rows[0]["train"] and rows[-1]["peak_saved"] < LEAST_SAVING:
            broken.append(f"{title}: {rows[-1]['peak_saved']:.1%} saved, expected {LEAST_SAVING:.0%}")
        broken += [
            f"{title}: {row['peak_bytes']} bytes" for row in rows if not row["train"] and row["peak_bytes"] > LARGEST_BYTES
        ]
        broken += [f"{title}: different by {row['difference']:.1e}" for row in rows if row["difference"] > 1e-3]
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    raise SystemExit("\n".join(broken) or 0)


if __name__ == "__main__":
    main()
