"""Kill a training run again and again, and see whether the resumed run ends as the uninterrupted one, bit by bit.

    python benchmarks/bench_resume.py --out benchmarks/results/resume.json

A toy classifier with a fake quantizer, whose range is a buffer that moves with every batch and whose gain is learned, is trained
for 18 steps with accumulation, stochastic depth, mixing, layer-wise rates and averaging. One step in the middle has a loss that is
no number, so that the run goes back once. Each run is a process of its own and gets SIGKILL: right after a step, or when half of a
checkpoint is written. It is then started again until it ends. Weights, buffers, averages, optimizer, history and the returned model
are compared.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reference_model.config import make_config
from reference_model.model import SwinV2Classifier, initialize
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.training import Phase, TrainSpec, checkpoint, train
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.state import TrainingState
from swinv2_deploy.training.step import Stepper

SPEC = TrainSpec(
    epochs=3,
    phases=(Phase(resolution=12, share=0.4), Phase(resolution=16, share=0.6)),
    batch_size=8,
    warmup_epochs=1.0,
    drop_path=0.3,
    accumulate=2,
    layer_decay=0.9,
    checkpoint_every=2,
    seed=5,
)
STEPS = 18
FAILS_AT = 9
"""Step whose loss is no number until the learning rate is lower."""


class FakeQuantized(nn.Module):
    """A classifier whose images go through a quantizer: the range may move with every batch, the gain is learned."""

    def __init__(self, model: nn.Module, moves: float) -> None:
        super().__init__()
        self.model = model
        self.moves = moves
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("amax", torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W)."""
        if self.training:
            self.amax.lerp_(images.detach().abs().max(), self.moves)
        scale = self.amax / 127
        rounded = (images / scale).round().clamp(-127, 127) * scale
        logits: Tensor = self.model(images + (rounded - images).detach()) * self.gain
        return logits


def toy(moves: float = 0.1) -> FakeQuantized:
    """Two stages of two blocks, seeded."""
    config = make_config(
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        image_size=16,
        patch_size=2,
        num_classes=2,
        drop_path_rate=SPEC.drop_path,
    )
    model = SwinV2Classifier(config)
    initialize(model, torch.Generator().manual_seed(0))
    return FakeQuantized(model, moves)


def images() -> TrainingImages:
    """48 images of noise, dark or bright."""
    noise = np.random.default_rng(0)
    made = TrainingImages([], [], 16)
    made.images = [noise.integers(0, 156, (18, 18, 3), np.uint8) + np.uint8(100 * (index % 2)) for index in range(48)]
    made.classes = np.arange(48) % 2
    return made


@contextmanager
def failing(at: int) -> Iterator[None]:
    """In this block the loss of a step is no number until the run went back."""
    gradients = Stepper._gradients

    def measure(self: Stepper, state: TrainingState, batch: Tensor, targets: Tensor) -> float:
        loss = gradients(self, state, batch, targets)
        return float("nan") if state.step == at and state.rate_factor == 1 else loss

    with patch.object(Stepper, "_gradients", measure):
        yield


def work(folder: Path, pipe: Connection, torn_save: int) -> None:
    """Train in this process, telling each step; half way through checkpoint number ``torn_save``, tell it and wait for the end."""
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"

    def tell(figures: dict[str, Any]) -> None:
        if "steps" in figures:
            pipe.send(figures["step"])

    with failing(FAILS_AT), patch.object(checkpoint, "save_tensors", torn(pipe, torn_save)):
        result = train(
            toy(),
            SPEC,
            training=images(),
            tuning=None,
            preprocessing=Preprocessing(size=(16, 16), resize_shortest=None),
            folder=folder,
            num_classes=2,
            report=tell,
        )
    save_file(result.model.state_dict(), folder / "result.safetensors")
    pipe.send("end")


Task = Callable[[Path, Connection, int], None]
"""What runs in the process: in a folder, telling what it does, until it has torn a file of this number."""


def torn(pipe: Connection, which: int, word: str = "save") -> Callable[[dict[str, Tensor], Path, dict[str, str]], None]:
    """What writes tensors to a file, and half way through file number ``which`` tells a word and waits for the end."""
    saves = 0

    def write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        nonlocal saves
        saves += 1
        save_file(tensors, path, metadata)
        if saves == which:
            os.truncate(path, path.stat().st_size // 2)
            pipe.send(word)
            signal.pause()

    return write


def run(folder: Path, dies: Callable[[Any], bool], torn_save: int = 0, task: Task = work) -> str:
    """Run it in a process, killed as soon as it tells something that ``dies`` is true of; how it ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([task.__module__])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=task, args=(folder, sending, torn_save))
    process.start()
    sending.close()
    ended = "without a word"
    try:
        while True:
            told = receiving.recv()
            if dies(told):
                process.kill()
                ended = f"killed at {told}"
                break
            if told == "end":
                ended = "end"
    except EOFError:
        pass
    process.join()
    receiving.close()
    return ended


def content(folder: Path) -> dict[str, Any]:
    """Every tensor and number that a run left, but for times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                found[f"{path.stem}: {name}"] = file.get_tensor(name)
            for name, value in json.loads((file.metadata() or {}).get("run", "{}")).items():
                found[f"{path.stem}: {name}"] = value
    for record in found["checkpoint: history"]:
        del record["images_per_s"]
    return found


def differences(folder: Path, whole: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the bit, and of files that should not be there."""
    names = different(content(folder), whole)
    return names + [path.name for path in folder.iterdir() if path.suffix != ".safetensors"]


def different(mine: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the bit."""
    names = sorted(mine.keys() ^ whole.keys())
    for name in mine.keys() & whole.keys():
        one, other = mine[name], whole[name]
        same = (
            torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))
            if isinstance(one, Tensor)
            else one == other
        )
        names += [] if same else [name]
    return names


def measure(kills: int, seed: int) -> list[dict[str, Any]]:
    """Kill ``kills`` runs: at the first step, at the last, twice within a save, and at random steps."""
    random_steps = random.Random(seed).sample(range(2, STEPS), max(0, kills - 4))
    moments = [("after step", 1), ("within save", 2), ("after step", STEPS), ("within save", 6)][:kills]
    moments += [("after step", step) for step in sorted(random_steps)]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if run(root / "whole", lambda _: False) != "end":
            raise SystemExit("The uninterrupted run did not end.")
        whole = content(root / "whole")
        if not whole["checkpoint: rollbacks"]:
            raise SystemExit("The uninterrupted run did not go back, as it should.")
        for number, (where, which) in enumerate(moments):
            folder = root / str(number)
            if where == "after step":
                killed = run(folder, lambda told, which=which: told == which)
            else:
                killed = run(folder, lambda told: told == "save", torn_save=which)
            kept = content(folder)["checkpoint: step"] if (folder / checkpoint.FILE_NAME).exists() else 0
            resumed = run(folder, lambda _: False)
            apart = differences(folder, whole) if resumed == "end" else [resumed]
            rows.append(
                {
                    "where": where,
                    "which": which,
                    "ended": killed,
                    "resumed_from": kept,
                    "compared": len(whole),
                    "different": apart,
                }
            )
    return rows


def main() -> None:
    """Measure, print a table, and write JSON if asked; exit code 1 when anything is different."""
    tell_all(measure, __doc__)


def tell_all(measure: Callable[[int, int], list[dict[str, Any]]], words: str | None) -> None:
    """The command line of a benchmark that kills: measure, print a table, write JSON if asked, and end with an exit code."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="chooses the random steps")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = measure(arguments.kills, arguments.seed)
    print(f"{'SIGKILL':<16} {'resumed from step':>18} {'compared':>9}  different")
    for row in rows:
        different = ", ".join(row["different"]) or "nothing"
        print(f"{row['where']} {row['which']:<4} {row['resumed_from']:>18} {row['compared']:>9}  {different}")
    same = sum(not row["different"] for row in rows)
    print(f"bit-identical: {same} of {len(rows)}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"torch": torch.__version__, "runs": rows}, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(same != len(rows))


if __name__ == "__main__":
    # Under its own name, so that started processes find the functions.
    from benchmarks import bench_resume

    bench_resume.main()
