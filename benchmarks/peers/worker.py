"""One peer in a process of its own: it loads, answers what memory and drift are, and times blocks when told to.

python -m benchmarks.peers.worker REQUEST takes JSON: peer, case, batch, folder, weights, threads, flush, logits (file to write). It
answers one JSON line when it is ready, then one for each line {"runs": n} that comes in, until its input ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.peers.cases import CASES
from benchmarks.peers.guard import foreign_share, snapshot
from benchmarks.peers.loading import Array, Loaded, in_batches, load
from benchmarks.peers.process import peak_memory, private_output


def main() -> None:
    """Load, answer, and time until the input ends."""
    request = json.loads(sys.argv[1])
    batch, cores = request["batch"], request["cores"]
    weights = Path(request["weights"])
    with private_output() as answer:
        started = perf_counter()
        loaded = load(
            request["peer"],
            CASES[request["case"]],
            batch,
            Path(request["folder"]),
            weights,
            threads=request["threads"],
            flush=request["flush"],
        )
        load_seconds = perf_counter() - started
        pixels = np.load(weights / "drift.npy")
        chunks = in_batches(pixels, batch)
        images = chunks[0]
        loaded.run(images)
        seconds = min(_times(loaded, images, 2))
        facts = loaded.facts | {"load_seconds": load_seconds, "seconds": seconds, "peak_memory": peak_memory()}
        if request.get("logits"):
            np.save(request["logits"], np.concatenate([loaded.run(chunk).copy() for chunk in chunks])[: len(pixels)])
        answer(json.dumps(facts))
        for line in sys.stdin:
            answer(json.dumps(_block(loaded, images, json.loads(line)["runs"], cores)))


def _block(loaded: Loaded, images: Array, runs: int, cores: int) -> dict[str, Any]:
    before = snapshot()
    times = _times(loaded, images, runs)
    return {"seconds": median(times), "foreign": foreign_share(before, snapshot(), cores)}


def _times(loaded: Loaded, images: Array, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        started = perf_counter()
        loaded.run(images)
        times.append(perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
