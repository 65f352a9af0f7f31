"""Whether the machine was quiet while a block ran: what all other processes took of its CPU time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

LIMIT = 0.08
"""Share of the machine's CPU time that others may take during a block that counts."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Clocks at one moment, in seconds.

    Attributes:
        wall: Time that passes anyway.
        machine: CPU time used since boot, by anybody; what a hypervisor took away included.
        own: CPU time used by this process.
    """

    wall: float
    machine: float
    own: float


def snapshot() -> Snapshot:
    """The clocks now, of the process that calls."""
    times = psutil.cpu_times()
    # Guest time is part of user time, and waiting for a disk is idle time.
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    return Snapshot(time.perf_counter(), busy, time.process_time())


def foreign_share(before: Snapshot, after: Snapshot, cores: int) -> float:
    """Share of the machine's CPU time between two snapshots that was not the process's own: 0 quiet, 1 all taken.

    The machine's clock ticks in hundredths of a second, so that a short block may come out a little below zero: that is zero.
    """
    available = (after.wall - before.wall) * cores
    foreign = (after.machine - before.machine) - (after.own - before.own)
    return max(0.0, foreign / available) if available > 0 else 0.0
