"""The one logger that a TensorRT module gets: its builder keeps the first one it sees, for the life of the process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger("swinv2_deploy.tensorrt")

Record = tuple[Any, str]
"""Severity and message."""

_loggers: dict[int, Any] = {}


def logger_for(trt: Any) -> Any:
    """The logger of a TensorRT module, made once.

    It passes warnings and errors on to Python's logging. Within ``with logger.recording() as records:`` it collects every message
    of every severity instead, in order.
    """
    if id(trt) not in _loggers:
        _loggers[id(trt)] = _made(trt)
    return _loggers[id(trt)]


def _made(trt: Any) -> Any:
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
    }

    class EngineLogger(trt.ILogger):  # type: ignore[misc]  # ships no type information
        def __init__(self) -> None:
            super().__init__()
            self.records: list[Record] | None = None

        def log(self, severity: Any, msg: str) -> None:
            """What the library calls, from any of its threads."""
            records = self.records
            if records is not None:
                records.append((severity, msg))
            elif severity in levels:
                logger.log(levels[severity], "%s", msg)

        @contextmanager
        def recording(self) -> Iterator[list[Record]]:
            """Collect messages for a while."""
            before, self.records = self.records, []
            try:
                yield self.records
            finally:
                self.records = before

    return EngineLogger()
