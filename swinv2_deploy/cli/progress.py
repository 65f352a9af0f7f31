"""Progress of a command that counts its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from swinv2_deploy.cli.console import Output

LINE_EVERY_S = 10.0
"""How often progress is a line where there is no terminal."""


@contextmanager
def progress_of(output: Output) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left on a terminal; elsewhere a line when something begins and every ten seconds."""
    console = output.console
    if console.is_terminal and not output.quiet:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("Loading")

            def draw(what: str, done: int, total: int) -> None:
                if bar.tasks[0].description != what:
                    bar.reset(task)
                bar.update(task, description=what, completed=done, total=total)

            yield draw
        return
    last, since = "", 0.0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last, since
        now = time.monotonic()
        if what != last:
            output.say(f"{what} ...")
        elif done < total and now - since >= LINE_EVERY_S:
            output.say(f"  {done} of {total}")
        else:
            return
        last, since = what, now

    yield tell
