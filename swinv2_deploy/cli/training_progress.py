"""What ``train`` shows while it runs, and how it is stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from swinv2_deploy.cli.console import Output, warn
from swinv2_deploy.cli.progress import LINE_EVERY_S


@contextmanager
def training_progress(output: Output) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that shows what the loop reports: a bar on a terminal, elsewhere a line now and then; a line an epoch."""
    console = output.console
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=output.quiet or not console.is_terminal) as bar:
        task = bar.add_task("training", total=None, note="")
        since = time.monotonic()

        def show(figures: dict[str, Any]) -> None:
            nonlocal since
            if "processes" in figures:
                count = figures["processes"]
                going_on = f", going on after step {figures['step']}" if figures["step"] else ""
                parted = ", each with a part of the model" if figures["sharded"] else ""
                device = figures["device"].partition(":")[0]
                output.say(f"  {count} process{'es' if count > 1 else ''} on {device}{parted}{going_on}")
            elif "rollback" in figures:
                record = figures["rollback"]
                warn(
                    f"{record['cause']} at step {record['step']}; back to step {record['back_to']} with "
                    f"{record['learning_rate_factor']:g} times the learning rate."
                )
            elif "steps" in figures:
                step, steps = figures["step"], figures["steps"]
                note = f"loss {figures['loss']:.3f}  {figures['images_per_s']:.0f} images/s"
                bar.update(task, completed=step, total=steps, note=note)
                if bar.disable and time.monotonic() - since >= LINE_EVERY_S:
                    since = time.monotonic()
                    left = (steps - step) * figures["images_a_step"] / figures["images_per_s"]
                    output.say(f"  step {step} of {steps}  {note}  {left / 60:.0f} min left")
            else:
                since = time.monotonic()
                accuracy = f", top-1 {figures['tune_top1']:.1%}" if "tune_top1" in figures else ""
                output.say(
                    f"  epoch {figures['epoch']:>3}  {figures['resolution_px']} px  loss {figures['loss']:.3f}"
                    f"  {figures['images_per_s']:.0f} images/s{accuracy}"
                )

        yield show


@contextmanager
def stop_requests(output: Output) -> Iterator[Callable[[], int]]:
    """A function that gives the number of the first SIGINT or SIGTERM, 0 before it; a second one ends the command at once."""
    asked = 0
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = number
        for known, handler in before.items():
            signal.signal(known, handler)
        output.say("Stopping after this step; once more stops now.")

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
