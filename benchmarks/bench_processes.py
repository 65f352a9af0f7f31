"""Train the same toy with one process and with two, and compare the losses of every step.

    python benchmarks/bench_processes.py --out benchmarks/results/processes.json

The batch of the recipe is shared between the processes, so the curves are the same but for the order in which floats are added. The
toy is that of ``bench_resume.py``, with stochastic depth, mixing and averaging, without the step that fails. The processes meet as
torchrun has them meet: gloo, on this machine, at a store that the starting process keeps.
Sharded, each holds a part of every parameter.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch.distributed import TCPStore

from benchmarks.bench_resume import SPEC, failing, images, toy
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import TrainingStopped
from swinv2_deploy.training import train
from swinv2_deploy.training.sharding import own_part

RECIPE = replace(SPEC, epochs=4, batch_size=8, accumulate=1)  # 24 steps
STEPS = 20
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Case:
    """How to train.

    Attributes:
        accumulate: Parts of each process's share of a batch.
        sharded: Whether each process holds a part of the model, as a launcher asks with FSDP.
        stops_after: Step after which the run is asked to stop; 0 lets it end.
        fails_at: Step whose loss is no number until the run went back; -1 lets none fail.
    """

    accumulate: int = 1
    sharded: bool = False
    stops_after: int = 0
    fails_at: int = -1


def work(folder: Path, rank: int, world: int, port: int, case: Case, pipe: Connection) -> None:
    """Train as one of ``world`` processes; send the figures, or the traceback of what stopped it."""
    try:
        pipe.send(learned(folder, rank, world, port, case))
    except BaseException:
        pipe.send(traceback.format_exc())
        raise


def learned(folder: Path, rank: int, world: int, port: int, case: Case) -> dict[str, Any]:
    """Train as one of ``world`` processes: the losses and the processes that were there."""
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if case.sharded:
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    if world > 1:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "OMP_NUM_THREADS": 1}
        os.environ.update({name: str(value) for name, value in (meeting | places).items()})
    told: list[dict[str, Any]] = []
    model = toy(moves=0.0)  # a range that followed the images would follow those of each part
    weights: list[float] = []
    with failing(case.fails_at), suppress(TrainingStopped):
        result = train(
            model,
            replace(RECIPE, accumulate=case.accumulate),
            training=images(),
            tuning=images(),
            preprocessing=Preprocessing(size=(16, 16), resize_shortest=None),
            folder=folder,
            num_classes=2,
            report=told.append,
            stop=lambda: 15 * any(figures.get("step") == case.stops_after > 0 for figures in told),
        )
        weights = torch.cat([value.flatten() for value in result.model.state_dict().values()]).tolist()
    joined = {name: told[0][name] for name in ("processes", "sharded", "step")} if told else {}
    losses = [figures["loss"] for figures in told if "steps" in figures]
    held = sum(own_part(parameter).numel() for parameter in model.parameters())
    return joined | {"told": len(told), "losses": losses, "weights": weights, "held": held}


def figures_of(process: BaseProcess, receiving: Connection) -> dict[str, Any]:
    """What one process sent; see `run`."""
    try:
        figures: dict[str, Any] | str = receiving.recv()
    except EOFError:
        process.join()
        figures = f"exit code {process.exitcode}"
    if isinstance(figures, str):
        raise RuntimeError(f"A process ended without figures: {figures}")
    return figures


def run(folder: Path, world: int, case: Case = Case()) -> list[dict[str, Any]]:
    """What each of ``world`` processes sent, in order of rank.

    Raises:
        RuntimeError: When one of them ended without figures, with its traceback or else its exit code.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.bench_processes"])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started: dict[Connection, BaseProcess] = {}
    for rank in range(world):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(folder, rank, world, store.port, case, sending))
        process.start()
        sending.close()
        started[receiving] = process
    sent: dict[Connection, dict[str, Any]] = {}
    try:
        while len(sent) < world:
            # As they come: one that fails is seen while the others still wait for it.
            for ready in wait([receiving for receiving in started if receiving not in sent]):
                sent[ready] = figures_of(started[ready], ready)
    finally:
        for receiving, process in started.items():
            receiving.close()
            if len(sent) < world:
                process.kill()
            process.join()
    return [sent[receiving] for receiving in started]


def main() -> None:
    """Measure, print, and write JSON if asked; exit code 1 beyond the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        [one] = run(Path(temporary) / "one", 1)
        rows = []
        for world, accumulate, sharded in ((2, 1, False), (1, 2, False), (2, 2, False), (2, 1, True), (2, 2, True)):
            folder = Path(temporary) / f"{world}x{accumulate}-{sharded}"
            sent = run(folder, world, Case(accumulate=accumulate, sharded=sharded))
            apart = max(abs(a - b) for a, b in zip(one["losses"][:STEPS], sent[0]["losses"][:STEPS], strict=True))
            drift = max(abs(a - b) for a, b in zip(one["weights"], sent[0]["weights"], strict=True))
            rows.append(
                {
                    "processes": sent[0]["processes"],
                    "sharded": sent[0]["sharded"],
                    "accumulate": accumulate,
                    "loss_apart": apart,
                    "weights_apart": drift,
                    "parameters_held": sent[0]["held"],
                }
            )
            print(
                f"{world} processes{', sharded' * sharded}, {accumulate} parts: loss apart {apart:.1e} in {STEPS} steps, "
                f"weights {drift:.1e} in the end"
            )
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"torch": torch.__version__, "steps": STEPS, "runs": rows}, indent=2) + "\n", "utf-8"
        )
    raise SystemExit(max(row["loss_apart"] for row in rows) > TOLERANCE)


if __name__ == "__main__":
    from benchmarks import bench_processes

    bench_processes.main()
