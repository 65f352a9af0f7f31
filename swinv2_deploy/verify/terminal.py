"""A drift report for people: one column a file, one row a question. Uses rich; the words are plain text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from swinv2_deploy.verify.report import CandidateReport, DriftReport

MOST_FLIPS = 10
"""Flips listed for each file; the report file has all."""


def drift_table(report: DriftReport) -> Table:
    """Everything that was measured."""
    title = f"Drift from {report.reference}, {_count(report.images, 'image')}"
    table = Table(
        "", *(f"{item.name}.onnx" for item in report.candidates), title=title, title_justify="left", title_style="bold"
    )
    columns = [dict(_rows(item)) for item in report.candidates]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "-") for column in columns))
    table.add_section()
    table.add_row("verdict", *("[bold green]PASS[/]" if item.passed else "[bold red]FAIL[/]" for item in report.candidates))
    return table


def notes(report: DriftReport) -> Iterator[str]:
    """What a reader must know beside the numbers, as lines with markup."""
    for notice in report.notices:
        yield f"[yellow]note:[/] {escape(notice)}"
    if report.skipped:
        yield f"[yellow]note:[/] {_count(len(report.skipped), 'image')} could not be decoded and {_were(report.skipped)} left out:"
        for skipped in report.skipped[:MOST_FLIPS]:
            yield f"  {escape(skipped.image)}: {escape(skipped.reason)}"
    for candidate in report.candidates:
        for check in candidate.checks:
            if check.passed is None:
                yield f"[yellow]undecided:[/] {candidate.name}: {escape(check.text)}"
            elif (
                check.passed
                and "float32 noise" in check.text
                and check.name.startswith("max abs ")
                and " at " not in check.name
            ):
                yield f"[yellow]note:[/] {candidate.name}: judged against the noise floor: {escape(check.text)}."


def flip_lines(report: DriftReport) -> Iterator[str]:
    """Images that change their class, clearest first, as lines with markup."""
    for candidate in report.candidates:
        flips = candidate.classes.flips if candidate.classes is not None else ()
        if flips:
            yield f"{candidate.name}: {_count(len(flips), 'flip')} (reference -> candidate, lead of the reference's first logit)"
        for flip in flips[:MOST_FLIPS]:
            label = f", is {flip.label}" if flip.label else ""
            tie = ", tied" if flip.tie else ""
            yield escape(f"  {flip.image}: {flip.reference} -> {flip.candidate} ({flip.margin:.3g}{label}{tie})")
        if len(flips) > MOST_FLIPS:
            yield f"  ... and {len(flips) - MOST_FLIPS} more in the report"


def verdict_lines(report: DriftReport) -> Iterator[str]:
    """Failing gates, then the verdict, as lines with markup."""
    for failure in report.failures:
        yield f"[bold red]FAIL[/] {escape(failure)}"
    color = "green" if report.passed else "red"
    yield f"[bold {color}]{escape(report.verdict)}[/]"


def best_file(report: DriftReport) -> Path:
    """The file to deploy: the fastest that passed, else the first."""
    passed = [item for item in report.candidates if item.passed] or list(report.candidates)
    best = max(passed, key=lambda item: item.latency.speedup if item.latency is not None else 0.0)
    return Path(report.artifact) / best.file


def _rows(item: CandidateReport) -> Iterator[tuple[str, str]]:
    yield "precision", item.precision
    yield "computed by", item.provider
    if item.classes is not None:
        yield from _class_rows(item)
    for name, drift in item.outputs.items():
        prefix = f"{name}: " if len(item.outputs) > 1 else ""
        yield f"{prefix}max abs (mean abs)", f"{drift.max_abs:.2e} ({drift.mean_abs:.1e})"
        yield f"{prefix}cosine (worst image)", f"{drift.cosine:.6f} ({drift.worst_cosine:.6f})"
        yield f"{prefix}SQNR", "equal" if drift.sqnr_db == math.inf else f"{drift.sqnr_db:.1f} dB"
    if item.nonfinite:
        yield "NaN or infinity", _count(len(item.nonfinite), "image")
    if item.sweep:
        worst = min(item.sweep, key=lambda drift: (drift.cosine, -drift.max_abs))
        size = "x".join(map(str, worst.size))
        yield f"worst of {len(item.sweep)} sizes", f"cosine {worst.cosine:.6f}, {worst.max_abs:.1e}, at {size} px"
    batches = ", ".join(map(str, item.slots.batch_sizes))
    yield f"rows of batches {batches}", "equal" if item.slots.max_abs == 0 else f"within {item.slots.max_abs:.1e}"
    if item.latency is not None:
        first, third = item.latency.spread
        yield "speed over model.onnx", f"{item.latency.speedup:.2f}x ({first:.2f} to {third:.2f})"
        yield "latency, batch 1", f"{item.latency.median_ms:.1f} ms"
    ratio = "" if item.size_ratio is None else f", {item.size_ratio:.2f}x"
    yield "file", f"{item.size_bytes / 2**20:.1f} MiB{ratio}"


def _class_rows(item: CandidateReport) -> Iterator[tuple[str, str]]:
    classes = item.classes
    if classes is None:
        return
    if classes.top1 is not None and classes.drop is not None and classes.drop_interval is not None:
        low, high = classes.drop_interval
        yield "top-1, reference -> this", f"{classes.top1[0]:.1%} -> {classes.top1[1]:.1%} (n = {classes.labeled})"
        yield "top-1 lost, 95 %", f"{classes.drop:.1f} points ({low:.1f} to {high:.1f})"
    if classes.top5 is not None:
        yield "top-5, reference -> this", f"{classes.top5[0]:.1%} -> {classes.top5[1]:.1%}"
    ties = sum(flip.tie for flip in classes.flips)
    tied = f", {ties} tied" if ties else ""
    yield "top-1 agreement", f"{classes.agreement:.1%} ({_count(len(classes.flips), 'flip')}{tied})"
    yield "KL divergence", f"{classes.kl:.2e} nats"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _were(items: tuple[object, ...]) -> str:
    return "was" if len(items) == 1 else "were"
