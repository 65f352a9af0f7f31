"""TensorBoard event files of a run. TensorBoard is an extra, imported only when a run begins."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

NOT_WRITTEN = "No event files: TensorBoard is missing; pip install 'swinv2-deploy[train]'."


class EventFiles:
    """Receives what the loop reports and writes it to ``folder``; does nothing where TensorBoard is missing.

    Args:
        folder: Where the event files go; a run that goes on adds to them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.available = find_spec("tensorboard") is not None
        self._writer: Any = None

    def __enter__(self) -> EventFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, figures: dict[str, Any]) -> None:
        """Write the figures of a step or an epoch; the first ones tell at which step the run begins."""
        if not self.available:
            return
        if "processes" in figures:
            # What a killed run had written beyond its checkpoint is hidden, since those steps come again.
            module = import_module("torch.utils.tensorboard")
            self._writer = module.SummaryWriter(str(self.folder), purge_step=figures["step"])
            self._at = figures["step"]
        elif "rollback" in figures:
            record = figures["rollback"]
            self._writer.add_text(
                "rollback", f"{record['cause']} at step {record['step']}, back to {record['back_to']}", self._at
            )
        elif "steps" in figures:
            self._at = figures["step"]
            for name in ("loss", "learning_rate", "images_per_s"):
                self._writer.add_scalar(f"step/{name}", figures[name], self._at)
        else:
            for name in ("loss", "tune_top1"):
                if name in figures:
                    self._writer.add_scalar(f"epoch/{name}", figures[name], self._at)
