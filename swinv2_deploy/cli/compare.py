"""``swinv2-deploy compare``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from swinv2_deploy.cli.console import Output, reported_errors, warn
from swinv2_deploy.cli.options import Json, Quiet, Verbose


def compare_command(
    first: Annotated[Path, typer.Argument(help="report.json, its folder, or an artifact, whose newest report is taken.")],
    second: Annotated[Path, typer.Argument(help="The same, to be compared with it.")],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Put two drift reports side by side, file by file, and mark what became better or worse."""
    output = Output(json=json, quiet=quiet, verbose=verbose)
    with reported_errors(output):
        from swinv2_deploy.verify.beside import compare_reports, read_report

        reports = [read_report(path) for path in (first, second)]
        rows, notices = compare_reports(*reports)
        for notice in notices:
            warn(notice)
        table = Table("file", "figure", "first", "second", "change", box=None, header_style="bold", pad_edge=False)
        last = ""
        for row in rows:
            change = ""
            if row.first is not None and row.second is not None and row.first != row.second:
                color = "green" if row.better else "red"
                change = f"[{color}]{row.second - row.first:+.4g} {'better' if row.better else 'worse'}[/]"
            cells = ["-" if value is None else f"{value:.4g}" for value in (row.first, row.second)]
            table.add_row(row.file if row.file != last else "", row.figure, *cells, change)
            last = row.file
        output.say(f"first:  {reports[0]['path']}: {reports[0]['verdict']}")
        output.say(f"second: {reports[1]['path']}: {reports[1]['verdict']}")
        output.console.print(table)
        output.result(
            {
                "first": reports[0]["path"],
                "second": reports[1]["path"],
                "notices": notices,
                "rows": [asdict(row) for row in rows],
            }
        )
