"""The other end of a worker: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers.process import last_error
from benchmarks.peers.rounds import Block, WorkerError

ROOT = Path(__file__).parents[2]


def environment(threads: int, folder: Path) -> dict[str, str]:
    """Environment of every child: thread pools of the same size, nothing asked of a network, the compiler's files kept."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


class Worker:
    """A peer's process.

    Args:
        request: What ``benchmarks.peers.worker`` takes.

    Raises:
        WorkerError: When it does not become ready.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", json.dumps(request)],
            cwd=ROOT,
            env=environment(request["threads"], Path(request["folder"])),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.facts = self._answer()
        except WorkerError:
            self.close()
            raise

    def block(self, runs: int) -> Block:
        """Time some runs.

        Raises:
            WorkerError: When the process ended.
        """
        try:
            _pipe(self._process.stdin).write(json.dumps({"runs": runs}) + "\n")
            _pipe(self._process.stdin).flush()
        except OSError as error:
            raise WorkerError(self._why()) from error
        return Block(**self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise WorkerError(self._why())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _why(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        return f"{last_error(self._errors.read())} (exit code {code})"


def _pipe(stream: Any) -> Any:
    if stream is None:
        raise WorkerError("The worker has no pipe.")
    return stream
