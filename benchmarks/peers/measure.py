"""The whole measurement: prepare, look at each peer alone, then time them in turns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import psutil

from benchmarks.peers.cases import CASES, Case
from benchmarks.peers.peers import BASELINE, PEERS
from benchmarks.peers.preparation import Workshop, nodes_of, size_of
from benchmarks.peers.process import last_error
from benchmarks.peers.products import operations, products
from benchmarks.peers.rounds import Record, WorkerError, groups, run_rounds
from benchmarks.peers.summary import drift, share_of_peak, speed
from benchmarks.peers.workers import ROOT, Worker, environment

MEMORY_SHARE = 0.6
"""Share of the memory that is free which the workers of one group may fill."""
PEAK_TRIES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is measured and how.

    Attributes:
        models: Names of cases.
        batches: Batch sizes of all of them; None means each one's own.
        peers: Names of peers; the baseline is among them.
        rounds: Quiet blocks wanted of each.
        block_seconds: Length of a block.
        limit: Foreign share of the CPU time that is allowed; 1 switches the guard off.
        attempts: Blocks tried for one peer in one round.
        threads: Threads of every runtime.
        flush: Whether denormal numbers count as zero.
        quick: Whether this is only a trial.
        fresh: Whether prepared models are made again.
        cache: Folder of prepared models.
        say: Called with what is going on.
    """

    models: tuple[str, ...]
    batches: tuple[int, ...] | None
    peers: tuple[str, ...]
    rounds: int
    block_seconds: float
    limit: float
    attempts: int
    threads: int
    flush: bool
    quick: bool
    fresh: bool
    cache: Path
    say: Callable[[str], object]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, of what decides the numbers."""
        values = asdict(replace(self, say=str))
        return {name: value for name, value in values.items() if name not in ("cache", "say")}


def measure(settings: Settings) -> dict[str, Any]:
    """Settings and one entry for each model and batch."""
    workshop = Workshop(settings.cache, settings.threads, settings.say, settings.fresh)
    started = perf_counter()
    runs = [
        measure_case(CASES[name], batch, settings, workshop)
        for name in settings.models
        for batch in settings.batches or CASES[name].batches
    ]
    return {"settings": settings.to_dict(), "seconds": perf_counter() - started, "runs": runs}


def measure_case(case: Case, batch: int, settings: Settings, workshop: Workshop) -> dict[str, Any]:
    """One row for each peer, whatever became of it."""
    title = f"{case.name}, batch {batch}"
    made = workshop.make(case, "weights", batch)
    if made.error:
        raise WorkerError(f"The weights of {case.name} could not be made: {made.error}")
    rows = {
        name: {"peer": name, "label": PEERS[name].label} | _file_facts(name, case, batch, workshop) for name in settings.peers
    }
    settings.say(f"{title}: peak of matrix products")
    peak = quiet_peak(lambda: _peak(case, batch, settings, workshop), settings.limit)
    with tempfile.TemporaryDirectory() as folder:
        _look_alone(rows, case, batch, settings, workshop, Path(folder), title)
    ready = {name: int(row["peak_memory"]) for name, row in rows.items() if not row["error"]}
    records = _time(ready, rows, case, batch, settings, workshop, title)
    counted = products(case.config, batch)
    work = {"linear": operations(counted, linear=True), "other": operations(counted, linear=False)}
    for name, row in rows.items():
        _finish(row, name, records, work, peak)
    return {"model": case.name, "batch": batch, "operations": work, "gemm": peak, "rows": list(rows.values())}


def _file_facts(name: str, case: Case, batch: int, workshop: Workshop) -> dict[str, Any]:
    """What is known of a peer's files before they run."""
    peer = PEERS[name]
    made = workshop.make(case, peer.step, batch)
    facts: dict[str, Any] = {"runtime": peer.runtime, "precision": peer.precision, "error": made.error}
    if made.error:
        return facts
    seconds, memory, foreign = workshop.cost(case, peer.step, batch)
    torch = peer.runtime in ("torch", "compile")
    folder = workshop.folder(case, "weights", batch) if torch else made.folder
    file = folder / ("model.safetensors" if torch else peer.model_file)
    return facts | {
        "export_seconds": seconds if peer.step != "weights" else None,
        "export_foreign": foreign,
        "export_memory": memory if peer.step != "weights" else None,
        "file_bytes": size_of(file),
        "nodes": nodes_of(file),
    }


def _request(name: str, case: Case, batch: int, settings: Settings, workshop: Workshop) -> dict[str, Any]:
    return {
        "peer": name,
        "case": case.name,
        "batch": batch,
        "folder": str(workshop.folder(case, PEERS[name].step, batch)),
        "weights": str(workshop.folder(case, "weights", batch)),
        "threads": settings.threads,
        "cores": psutil.cpu_count(),
        "flush": settings.flush,
    }


def _look_alone(
    rows: dict[str, dict[str, Any]],
    case: Case,
    batch: int,
    settings: Settings,
    workshop: Workshop,
    folder: Path,
    title: str,
) -> None:
    """Memory, load time and outputs of each peer in a process that does nothing else and then ends."""
    for name, row in rows.items():
        if row["error"]:
            continue
        settings.say(f"{title}: memory and drift of {name}")
        request = _request(name, case, batch, settings, workshop) | {"logits": str(folder / f"{name}.npy")}
        try:
            with Worker(request) as worker:
                row |= worker.facts
        except WorkerError as error:
            row["error"] = str(error)
    if rows[BASELINE]["error"]:
        raise WorkerError(f"{BASELINE} does not run, so there is nothing to compare with: {rows[BASELINE]['error']}")
    reference = np.load(folder / f"{BASELINE}.npy")
    for name, row in rows.items():
        if not row["error"]:
            row["drift"] = drift(reference, np.load(folder / f"{name}.npy"))


def _time(
    ready: dict[str, int],
    rows: dict[str, dict[str, Any]],
    case: Case,
    batch: int,
    settings: Settings,
    workshop: Workshop,
    title: str,
) -> dict[str, tuple[Record, Record]]:
    """Record of each peer, and that of the baseline in the same group."""
    budget = int(MEMORY_SHARE * psutil.virtual_memory().available)
    found: dict[str, tuple[Record, Record]] = {}
    for number, group in enumerate(groups(ready, BASELINE, budget), 1):
        settings.say(f"{title}: group {number}: {', '.join(group)}")
        with ExitStack() as stack:
            turns = {}
            for name in group:
                try:
                    worker = stack.enter_context(Worker(_request(name, case, batch, settings, workshop)))
                except WorkerError as error:
                    rows[name]["error"] = str(error)
                    continue
                runs = max(1, round(settings.block_seconds / worker.facts["seconds"]))
                turns[name] = lambda worker=worker, runs=runs: worker.block(runs)
            records = run_rounds(
                turns,
                rounds=settings.rounds,
                limit=settings.limit,
                attempts=settings.attempts,
                pause=lambda disturbed: sleep(0.05 if not disturbed else min(5.0, 0.5 * disturbed)),
                progress=lambda done: settings.say(f"{title}: round {done} of {settings.rounds}"),
            )
        for name, record in records.items():
            found.setdefault(name, (record, records.get(BASELINE, Record())))
            rows[name].setdefault("group", number)
    return found


def _finish(
    row: dict[str, Any],
    name: str,
    records: dict[str, tuple[Record, Record]],
    work: dict[str, int],
    peak: dict[str, Any],
) -> None:
    """Speed, share of the peak, and what became of the blocks."""
    if name not in records:
        return
    record, baseline = records[name]
    row["blocks"] = {"timed": record.blocks, "disturbed": record.disturbed, "rounds_given_up": record.given_up}
    row["error"] = row["error"] or record.error
    measured = speed(baseline.seconds, record.seconds)
    if measured is None:
        row["error"] = (
            row["error"] or "No round with a quiet block of this peer and of the baseline; try when the machine is idle."
        )
        return
    row["speed"] = measured.to_dict()
    row["seconds_min"] = min(record.seconds.values())
    row["seconds_median"] = float(np.median(list(record.seconds.values())))
    if "peaks" not in peak:
        return
    precision = row["precision"]
    if precision == "auto":
        precision = {"f32": "fp32", "<Type: 'float32'>": "fp32"}.get(row.get("float_precision", ""), "")
    row["share_of_peak"] = share_of_peak(row["seconds_min"], **work, peaks=peak["peaks"], precision=precision)


def quiet_peak(measure_once: Callable[[], dict[str, Any]], limit: float) -> dict[str, Any]:
    """A peak that others did not disturb, or after a few tries the least disturbed one, which tells how much it was."""
    tries: list[dict[str, Any]] = []
    while len(tries) < PEAK_TRIES:
        tries.append(measure_once())
        if "error" in tries[-1]:
            return tries[-1]
        if limit >= 1 or tries[-1]["foreign"] <= limit:
            break
    return min(tries, key=lambda peak: float(peak["foreign"]))


def _peak(case: Case, batch: int, settings: Settings, workshop: Workshop) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.gemm", case.name, str(batch), str(settings.threads)],
        cwd=ROOT,
        env=environment(settings.threads, workshop.root),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        return {"error": last_error(result.stderr)}
    peak: dict[str, Any] = json.loads(result.stdout)
    return peak
