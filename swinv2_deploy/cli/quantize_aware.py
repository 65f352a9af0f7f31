"""The part of ``quantize`` that trains, and that judges what came of it on held-out photographs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from swinv2_deploy.cli.console import Output
from swinv2_deploy.cli.training_progress import stop_requests, training_progress

if TYPE_CHECKING:
    from calibration.dataset import ImageFolder
    from calibration.table import CalibrationTable
    from swinv2_deploy.artifacts import ModelArtifact
    from swinv2_deploy.pipeline import Verdict
    from swinv2_deploy.quantize.ptq import QuantizeResult
    from swinv2_deploy.quantize.spec import QatSpec, QuantizeSpec

METHODS = ("ptq", "qat")
Counted = Callable[[int, int], object]


def is_first() -> bool:
    """Whether this is the process that talks and writes; under a launcher the others only compute."""
    from swinv2_deploy.training.processes import rank_of

    return rank_of(os.environ) == 0


def qat_spec(
    method: str, given: dict[str, Any], run: Path | None, teacher: Path | None, seed: int, *, removed: float
) -> QatSpec | None:
    """The recipe, or None for ``ptq``.

    A model that lacks a share ``removed`` of what it was, and was not trained since, takes the learning rate of a recovery.

    Raises:
        SpecError: On an unknown method, or options of training without it.
    """
    from swinv2_deploy.errors import SpecError
    from swinv2_deploy.prune.spec import RecoverSpec
    from swinv2_deploy.quantize.spec import QatSpec

    if method not in METHODS:
        raise SpecError(f"--method is {method!r}; expected one of {', '.join(METHODS)}.")
    if method == "qat":
        defaults = {"learning_rate": RecoverSpec().rate(removed)} if removed else {}
        return QatSpec(**defaults | given, seed=seed)
    unused = sorted(given) + [name for name, path in (("run", run), ("teacher", teacher)) if path is not None]
    if unused:
        raise SpecError(f"{', '.join(unused)} would train, and --method ptq does not; add --method qat, or leave it out.")
    return None


def default_run(path: Path) -> Path:
    """Folder of the checkpoint for an artifact that is to be made."""
    return Path("runs") / path.name


def train_and_quantize(
    artifact: ModelArtifact,
    spec: QuantizeSpec,
    qat: QatSpec,
    images: ImageFolder,
    path: Path,
    run: Path,
    output: Output,
    *,
    teacher: ModelArtifact | None = None,
    table: CalibrationTable | None,
    force: bool,
    progress: Counted,
    searched: Counted,
) -> QuantizeResult:
    """Quantization-aware training with its progress; processes behind the first one write to a place that is thrown away."""
    from swinv2_deploy.pipeline import quantize_aware

    with tempfile.TemporaryDirectory() as elsewhere, training_progress(output) as show, stop_requests(output) as stop:
        return quantize_aware(
            artifact,
            spec,
            qat,
            images,
            path if is_first() else Path(elsewhere) / path.name,
            run=run,
            teacher=teacher,
            table=table,
            force=force,
            progress=progress,
            searched=searched,
            report=show,
            stop=stop,
        )


def judged(
    artifact: ModelArtifact,
    made: ModelArtifact,
    qat: QatSpec | None,
    spec: QuantizeSpec,
    images: ImageFolder,
    held: ImageFolder,
    output: Output,
) -> list[Verdict]:
    """FP32, every calibrator, and what was trained, on the photographs held out."""
    from swinv2_deploy.pipeline import judge_methods

    with output.working(f"Judging every calibrator on the {len(held)} photographs in {held.root}"):
        return judge_methods(artifact, made if qat is not None else None, spec, images, held)


def show_verdicts(verdicts: list[Verdict], output: Output) -> None:
    """One line a form."""
    if not verdicts:
        return
    output.say(f"  on {verdicts[0].images} photographs held out, against the FP32 model in PyTorch:")
    for verdict in verdicts:
        low, high = verdict.interval
        output.say(
            f"    {verdict.form:<16} top-1 {verdict.top1:7.2%}  lost {verdict.lost:+.2f} points ({low:+.2f} to {high:+.2f})  "
            f"{verdict.flips:>3} flips  {verdict.sqnr_db:5.1f} dB"
        )


@contextmanager
def stage_progress(output: Output, *, searches: bool) -> Iterator[tuple[Counted, Counted]]:
    """Two functions that show what was counted: images calibrated, and measurements of a sweep."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    off = output.quiet or not output.console.is_terminal
    with Progress(*columns, console=output.console, transient=True, disable=off) as bar:
        images = bar.add_task("calibrating", total=None)
        sites = bar.add_task("measuring sites", total=None, visible=searches)
        yield (
            lambda done, total: bar.update(images, completed=done, total=total),
            lambda done, total: bar.update(sites, completed=done, total=total),
        )
