"""Command line of the benchmark with peers: ``python -m benchmarks.peers``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.peers.cases import CASES
from benchmarks.peers.guard import LIMIT
from benchmarks.peers.machine import cpu_kind, machine_facts
from benchmarks.peers.measure import Settings, measure
from benchmarks.peers.peers import BASELINE, PEERS
from benchmarks.peers.report import table
from benchmarks.peers.workers import ROOT


def main() -> None:
    """Measure, write JSON and a plot, and print the tables."""
    arguments = parser().parse_args()
    if arguments.report:
        result = json.loads(arguments.report.read_text(encoding="utf-8"))
        out = arguments.out or arguments.report
    else:
        result = {"machine": machine_facts()}
        out = arguments.out or ROOT / "benchmarks" / "results" / f"peers-{cpu_kind(result['machine'])}.json"
        result |= measure(settings(arguments))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    from benchmarks.peers.plot import draw  # matplotlib is slow to load

    draw(result, out.with_suffix(".svg"))
    print(table(result))
    print(f"\n{arguments.report or out}\n{out.with_suffix('.svg')}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    made.add_argument("--models", type=_names(CASES), default=list(CASES), help=f"comma-separated: {','.join(CASES)}")
    made.add_argument("--batches", type=_numbers, help="comma-separated batch sizes; default: each model's own")
    made.add_argument("--peers", type=_names(PEERS), default=list(PEERS), help=f"comma-separated: {','.join(PEERS)}")
    made.add_argument("--rounds", type=_positive, help="quiet blocks wanted of each peer (default 15; 3 with --quick)")
    made.add_argument("--block", type=float, help="seconds of one block (default 1; 0.3 with --quick)")
    made.add_argument(
        "--quiet-limit", type=float, help=f"foreign share of CPU time allowed (default {LIMIT}; 1 with --quick: off)"
    )
    made.add_argument("--attempts", type=_positive, default=20, help="blocks tried for one peer in one round (default 20)")
    made.add_argument(
        "--threads", type=_positive, default=len(os.sched_getaffinity(0)), help="threads of every runtime (default: all cores)"
    )
    made.add_argument("--keep-denormals", action="store_true", help="do not count denormal numbers as zero, in any runtime")
    made.add_argument(
        "--quick", action="store_true", help="few short rounds on a machine that need not be quiet: to see that it works"
    )
    made.add_argument(
        "--fresh", action="store_true", help="prepare every model again, to measure its seconds on a quiet machine"
    )
    made.add_argument("--cache", type=Path, default=ROOT / "build" / "bench", help="folder of prepared models")
    made.add_argument(
        "--out", type=Path, help="JSON file; the plot lies beside it (default benchmarks/results/peers-<processor>.json)"
    )
    made.add_argument("--report", type=Path, help="measure nothing: print the tables of this JSON file and draw its plot")
    return made


def settings(arguments: argparse.Namespace) -> Settings:
    """What was asked for, with the defaults of a quick or a full run."""
    quick = arguments.quick
    return Settings(
        models=tuple(arguments.models),
        batches=arguments.batches,
        peers=tuple(dict.fromkeys((BASELINE, *arguments.peers))),
        rounds=arguments.rounds or (3 if quick else 15),
        block_seconds=arguments.block or (0.3 if quick else 1.0),
        limit=(1.0 if quick else LIMIT) if arguments.quiet_limit is None else arguments.quiet_limit,
        attempts=arguments.attempts,
        threads=arguments.threads,
        flush=not arguments.keep_denormals,
        quick=quick,
        fresh=arguments.fresh,
        cache=arguments.cache.resolve(),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )


def _names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"unknown {unknown}; expected some of {', '.join(known)}")
        return names

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small; expected at least 1")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    numbers = tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of batch sizes; expected for example 1,8")
    return numbers


if __name__ == "__main__":
    main()
