"""A drift report for people: one column a file, one row a question. Uses rich; the words are plain text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from swinv2_deploy.verify.bisect import Bisection
from swinv2_deploy.verify.metrics import ClassDrift
from swinv2_deploy.verify.report import BACK_ENDS, CandidateReport, DriftReport

BASELINE = "model"
MOST_FLIPS = 10
"""Flips listed for each file; the report file has all."""
FOLDED = 20
"""Where the name of a file may be folded."""
BORDER = 3
"""What a column of a table takes beside its words: a line and a space on either side."""


def drift_tables(report: DriftReport, width: int) -> Iterator[Table]:
    """Everything that was measured, the files side by side: in one table, or in as many as it takes to cut no word.

    Args:
        report: What to show.
        width: Characters of a line.
    """
    first = next((item for item in report.candidates if item.name == BASELINE), None)
    columns = [(item, dict(_rows(item, baseline=item is first))) for item in report.candidates]
    named = max(len(name) for _, rows in columns for name in rows) + BORDER + 1
    title = f"Drift from {report.reference} on {_count(report.images, 'image')}; top-1 is reference -> file"
    while columns:
        room, count = width - named, 0
        for item, rows in columns:
            room -= max(min(len(item.title), FOLDED), *map(len, rows.values())) + BORDER
            if room < 0 and count:
                break
            count += 1
        yield _table(columns[:count], title)
        columns, title = columns[count:], ""


def _table(columns: Sequence[tuple[CandidateReport, Mapping[str, str]]], title: str) -> Table:
    # Folded, not cut: names of files often differ in what they end in.
    headers = [Column(item.title, overflow="fold") for item, _ in columns]
    table = Table(Column("", no_wrap=True), *headers, title=title or None, title_justify="left", title_style="bold")
    for name in dict.fromkeys(name for _, rows in columns for name in rows):
        table.add_row(name, *(rows.get(name, "-") for _, rows in columns))
    table.add_section()
    table.add_row("verdict", *("[bold green]PASS[/]" if item.passed else "[bold red]FAIL[/]" for item, _ in columns))
    return table


def notes(report: DriftReport) -> Iterator[str]:
    """What a reader must know beside the numbers, as lines with markup."""
    for notice in report.notices:
        yield f"[yellow]note:[/] {escape(notice)}"
    if report.skipped:
        yield f"[yellow]note:[/] left out, for they could not be decoded: {_count(len(report.skipped), 'image')}"
        for skipped in report.skipped[:MOST_FLIPS]:
            yield f"  {escape(skipped.image)}: {escape(skipped.reason)}"
    for candidate in report.candidates:
        for check in candidate.checks:
            if check.passed is None:
                yield f"[yellow]undecided:[/] {candidate.label}: {escape(check.text)}"
            elif (
                check.passed
                and "noise of the reference" in check.text
                and check.name.startswith("max abs ")
                and " at " not in check.name
            ):
                yield f"[yellow]note:[/] {candidate.label}: judged against the noise floor: {escape(check.text)}."


def preprocessing_lines(report: DriftReport) -> Iterator[str]:
    """What other preprocessings do to the reference itself, as lines with markup."""
    if report.preprocessing:
        yield "The FP32 reference on pixels that are made otherwise:"
    width = max((len(row.name) for row in report.preprocessing), default=0)
    for row in report.preprocessing:
        words = f"  {row.name:<{width}}  pixels {row.gray_levels:5.1f} of 255 apart, cosine {row.cosine:.4f}"
        if row.classes is not None:
            words += f", agrees on {row.classes.agreement:.1%}"
            if row.classes.drop is not None and row.classes.drop_interval is not None:
                low, high = row.classes.drop_interval
                words += f", loses {row.classes.drop:.1f} points ({low:.1f} to {high:.1f})"
        yield escape(words)


def flip_lines(report: DriftReport) -> Iterator[str]:
    """Images that change their class, clearest first, as lines with markup."""
    for candidate in report.candidates:
        flips = candidate.classes.flips if candidate.classes is not None else ()
        if flips:
            yield f"{candidate.label}: {_count(len(flips), 'flip')}, reference -> file (logits apart in the reference)"
        for flip in flips[:MOST_FLIPS]:
            label = f", is {flip.label}" if flip.label else ""
            tie = ", tied" if flip.tie else ""
            yield escape(f"  {flip.image}: {flip.reference} -> {flip.candidate} ({flip.margin:.3g}{label}{tie})")
        if len(flips) > MOST_FLIPS:
            yield f"  ... and {len(flips) - MOST_FLIPS} more in the report"


def layer_lines(report: DriftReport) -> Iterator[str]:
    """Where every file first diverges, and its loudest parts: what they make of the reference's own inputs. Lines with markup."""
    for candidate in report.candidates:
        if candidate.first_divergent:
            carried = next(row.carried_db for row in candidate.layers if row.name == candidate.first_divergent)
            limit = report.tolerances[candidate.precision]["site_sqnr_db"]
            yield escape(
                f"{candidate.label}: first divergent layer: {candidate.first_divergent}, {_db(carried)} of signal over noise, less "
                f"than the {limit:g} dB that a part alone must give"
            )
        if candidate.precision == "fp32" and candidate.passed:
            continue
        sites = [row for row in candidate.layers if row.kind == "site" and row.alone_db is not None]
        loud = sorted(sites, key=lambda row: row.alone_db or 0.0)[:3]
        if loud:
            names = ", ".join(f"{row.name} {_db(row.alone_db)}" for row in loud)
            yield escape(f"{candidate.label}: most noise is made in {names}")


def bisection_lines(report: DriftReport) -> Iterator[str]:
    """What makes a file fail, and what would mend it, as lines with markup."""
    for candidate in report.candidates:
        found = candidate.bisection
        if found is None:
            continue
        site = f", in {found.site}" if found.site else ""
        yield f"[bold]{escape(candidate.label)}: {escape(found.culprit)}{escape(site)}[/]"
        yield f"  {escape(found.reason)}"
        for names, passed in found.tried:
            yield escape(f"  given back {names}: {'passes' if passed else 'still fails'}")
        if candidate.precision in ("int8", "uint8") and found.sites:
            flags = " ".join(f"--float {site}" for site in quantized_names(found))
            yield escape(f"  To leave it in float: swinv2-deploy quantize {flags}")


def quantized_names(found: Bisection) -> tuple[str, ...]:
    """Sites of the loudest parts, as ``quantize --float`` takes them."""
    names = []
    for site in found.sites:
        parent, _, part = site.rpartition(".")
        if part == "attn":
            names += [f"{site}.qkv"]
        elif part == "norm" or part.startswith("norm"):
            continue
        else:
            names.append(f"{parent}.{part}")
    return tuple(names)


def _db(value: float | None) -> str:
    return "not measured" if value is None else "equal" if value == math.inf else f"{value:.1f} dB"


def verdict_lines(report: DriftReport) -> Iterator[str]:
    """Failing gates, then the verdict, as lines with markup."""
    for failure in report.failures:
        yield f"[bold red]FAIL[/] {escape(failure)}"
    color = "green" if report.passed else "red"
    yield f"[bold {color}]{escape(report.verdict)}[/]"


def best_file(report: DriftReport) -> Path:
    """The file to deploy: the fastest that passed, else the first."""
    passed = [item for item in report.candidates if item.passed] or list(report.candidates)
    best = max(passed, key=lambda item: item.latencies[0].speedup if item.latencies else 0.0)
    return Path(report.artifact) / best.file


def _rows(item: CandidateReport, *, baseline: bool) -> Iterator[tuple[str, str]]:
    yield "precision", item.precision
    yield BACK_ENDS[item.back_end], item.provider.removesuffix("ExecutionProvider")
    if item.integer_products != "none":
        yield "integer products", item.integer_products
    if item.classes is not None:
        yield from _class_rows(item.classes)
    for name, drift in item.outputs.items():
        prefix = f"{name} " if len(item.outputs) > 1 else ""
        yield f"{prefix}max abs", f"{drift.max_abs:.1e}"
        yield f"{prefix}mean abs", f"{drift.mean_abs:.1e}"
        yield f"{prefix}cosine", f"{drift.cosine:.6f}"
        yield f"{prefix}worst cosine", f"{drift.worst_cosine:.6f}"
        yield f"{prefix}SQNR", "equal" if drift.sqnr_db == math.inf else f"{drift.sqnr_db:.1f} dB"
    if item.nonfinite:
        yield "NaN or infinity", _count(len(item.nonfinite), "image")
    if item.sweep:
        worst = min(item.sweep, key=lambda drift: (drift.cosine, -drift.max_abs))
        yield "sizes tried", f"{len(item.sweep)}{' of photographs' if item.takes == 'images' else ''}"
        yield "  max abs", f"{max(drift.max_abs for drift in item.sweep):.1e}"
        yield "  worst cosine", f"{worst.cosine:.6f}"
        yield "  at", f"{worst.size[0]}x{worst.size[1]} px"
    yield (
        f"batches to {max(item.slots.batch_sizes)}",
        "equal" if item.slots.max_abs == 0 else f"within {item.slots.max_abs:.1e}",
    )
    for latency in item.latencies:
        first, third = latency.spread
        yield f"batch of {latency.batch}", f"{latency.median_ms:.1f} ms"
        yield f"  speed, batch {latency.batch}", "1" if baseline else f"{latency.speedup:.2f}x"
        yield f"  quartiles, {latency.batch}", "-" if baseline else f"{first:.2f}x to {third:.2f}x"
    yield "file", f"{item.size_bytes / 2**20:.1f} MiB"
    if item.size_ratio is not None:
        yield "size over FP32", f"{item.size_ratio:.2f}x"


def _class_rows(classes: ClassDrift) -> Iterator[tuple[str, str]]:
    if classes.top1 is not None and classes.drop is not None and classes.drop_interval is not None:
        low, high = classes.drop_interval
        yield f"top-1 of {classes.labeled}", f"{classes.top1[0]:.1%} -> {classes.top1[1]:.1%}"
        yield "  points lost", f"{classes.drop:.1f}"
        yield "  95 % interval", f"{low:.1f} to {high:.1f}"
    if classes.top5 is not None:
        yield "top-5", f"{classes.top5[0]:.1%} -> {classes.top5[1]:.1%}"
    ties = sum(flip.tie for flip in classes.flips)
    yield "agreement", f"{classes.agreement:.1%}, {_count(len(classes.flips), 'flip')}{f', {ties} tied' if ties else ''}"
    yield "KL divergence", f"{classes.kl:.1e} nats"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
