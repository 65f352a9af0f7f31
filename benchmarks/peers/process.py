"""Child processes: their answers and their memory. No heavy import, for every process loads it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def private_output() -> Iterator[Callable[[str], None]]:
    """Function that writes a line to standard output, where nothing else arrives meanwhile: what libraries print goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield lambda line: _write(saved, line)
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def peak_memory() -> int:
    """Most memory this process ever held, in bytes.

    Not getrusage's figure, which a child inherits from the process that started it.

    Raises:
        OSError: Where the system has no /proc.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def last_error(text: str) -> str:
    """The line of a traceback that says what went wrong, else the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith((" ", "\t", "Traceback"))]
    return (told or lines or ["ended without a word"])[-1].strip()[:500]


def _write(target: int, line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(target, data) :]
