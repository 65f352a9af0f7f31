"""Kill ``quantize --method qat`` again and again, and see whether it ends as when it was left alone, bit by bit.

    python benchmarks/bench_resume_qat.py --out benchmarks/results/resume-qat.json

The command quantizes a tiny classifier with ``--policy attention --ranges learned --run FOLDER`` on images of noise: 2 epochs of 52
steps, with a checkpoint after the 50th and at the end of each. Each command is a process of its own and gets SIGKILL: right after a
step, when half of a checkpoint is written, or half of the trained weights in the artifact. The same command line is then started
again. Trained weights, ranges, history, calibration table and INT8 file are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # also for the processes started from here

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from benchmarks.bench_resume import different, run, tell_all, torn
from reference_model.config import make_config
from reference_model.model import SwinV2Classifier, initialize
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import WeightsOrigin
from swinv2_deploy.cli import quantize_aware
from swinv2_deploy.cli.app import app
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling import trained
from swinv2_deploy.modeling.source import Source
from swinv2_deploy.training import checkpoint

IMAGES = 56
STEPS = 104
"""Two epochs of one image a step, without the four images set aside."""
CLASSES = ("bright", "dark")


def quantize(folder: Path, pipe: Connection, torn_save: int) -> None:
    """``quantize --method qat`` in this process, on what :func:`prepare` made beside ``folder``; -1 tears the trained weights."""
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"

    @contextmanager
    def telling(_: object) -> Iterator[Callable[[dict[str, Any]], None]]:
        yield lambda figures: pipe.send(figures["step"]) if "steps" in figures else None

    beside = folder.parent
    words = "quantize --method qat --policy attention --ranges learned --calibrator max --epochs 2 --train-batch 1 --lr 1e-3"
    places = {"--model": beside / "model", "--data": beside / "images", "--run": folder / "run", "--out": folder / "artifact"}
    options = [part for name, path in places.items() for part in (name, str(path))]
    with (
        patch.object(quantize_aware, "training_progress", telling),
        patch.object(checkpoint, "save_tensors", torn(pipe, torn_save)),
        patch.object(trained, "save_tensors", torn(pipe, -torn_save, "artifact")),
    ):
        ended = app([*words.split(), "--uint8", "never", "--quiet", *options], standalone_mode=False)
    pipe.send("end" if not ended else f"exit code {ended}")


def prepare(root: Path) -> None:
    """A tiny classifier with its graph, and 56 images of noise, dark or bright."""
    config = make_config(
        embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, image_size=16, patch_size=2, num_classes=2, labels=CLASSES
    )
    model = SwinV2Classifier(config)
    initialize(model, torch.Generator().manual_seed(0))
    source = Source(
        model=model.eval(),
        preprocessing=Preprocessing(size=(16, 16), resize_shortest=None),
        origin=WeightsOrigin(kind="trained", source="noise"),
        name="toy",
    )
    export(source, ExportSpec(static=True), root / "model")
    noise = np.random.default_rng(0)
    for index in range(IMAGES):
        name = CLASSES[index % 2]
        (root / "images" / name).mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 156, (18, 18, 3), np.uint8) + np.uint8(100 * (name == "bright"))
        Image.fromarray(pixels).save(root / "images" / name / f"{index}.png")


def left(folder: Path) -> dict[str, Any]:
    """Every tensor, range and number of the artifact, but for times, and the hashes of its files that hold none."""
    found: dict[str, Any] = {}
    artifact = folder / "artifact"
    with safe_open(artifact / trained.TRAINED_WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # not a dict
            found[name] = file.get_tensor(name)
        ranges = json.loads(file.metadata()["swinv2_deploy.qat"])["ranges"]
    found |= {f"range of {name}": value for name, value in ranges.items()}
    for name in (trained.TRAINED_WEIGHTS, "calibration_table.json", "onnx/model_int8.onnx"):
        found[name] = hashlib.sha256((artifact / name).read_bytes()).hexdigest()
    found["history"] = json.loads((artifact / "qat_history.json").read_text(encoding="utf-8"))
    for record in found["history"]:
        del record["images_per_s"]
    return found


def measure(kills: int, seed: int) -> list[dict[str, Any]]:
    """Kill ``kills`` commands: within two saves and the artifact, at the first step, at the last, and at random steps."""
    random_steps = random.Random(seed).sample(range(2, STEPS), max(0, kills - 5))
    moments = [("within save", 2), ("within artifact", -1), ("after step", 1), ("after step", STEPS), ("within save", 4)]
    moments = moments[:kills] + [("after step", step) for step in sorted(random_steps)]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        prepare(root)
        if (ended := run(root / "whole", lambda _: False, task=quantize)) != "end":
            raise SystemExit(f"The uninterrupted command did not end, but: {ended}.")
        whole = left(root / "whole")
        for number, (where, which) in enumerate(moments):
            folder = root / str(number)
            if where == "after step":
                killed = run(folder, lambda told, which=which: told == which, task=quantize)
            else:
                killed = run(folder, lambda told: told in ("save", "artifact"), torn_save=which, task=quantize)
            kept, early = steps_kept(folder), (folder / "artifact").exists()
            resumed = run(folder, lambda _: False, task=quantize)
            apart = [resumed] if resumed != "end" else different(left(folder), whole)
            if early:
                apart.append("an artifact before the end")
            rows.append(
                {
                    "where": where,
                    "which": abs(which),
                    "ended": killed,
                    "resumed_from": kept,
                    "compared": len(whole),
                    "different": apart,
                }
            )
    return rows


def steps_kept(folder: Path) -> int:
    """Step of the checkpoint that a killed command left; 0 without one."""
    path = folder / "run" / checkpoint.FILE_NAME
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        return int(json.loads(file.metadata()["run"])["step"])


def main() -> None:
    """Measure, print a table, and write JSON if asked; exit code 1 when anything is different."""
    tell_all(measure, __doc__)


if __name__ == "__main__":
    # Under its own name, so that started processes find the functions.
    from benchmarks import bench_resume_qat

    bench_resume_qat.main()
