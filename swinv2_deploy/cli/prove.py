"""``swinv2-deploy export --prove``: the grid a graph is run at, shown while it runs and as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from swinv2_deploy.cli.console import Output
from swinv2_deploy.cli.progress import progress_of
from swinv2_deploy.errors import SpecError, ToleranceExceeded

if TYPE_CHECKING:
    from swinv2_deploy.artifacts import ModelArtifact
    from swinv2_deploy.modeling.request import SourceRequest
    from swinv2_deploy.runtime.grid import Grid
    from swinv2_deploy.runtime.onnx_file import OnnxFacts
    from swinv2_deploy.runtime.proof import ProofRow

GRIDS = ("full", "quick", "file")
Rows = dict[str, list["ProofRow"]]


def chosen_grid(grid: str | None, *, prove: bool, again: bool) -> Any:
    """The grid that ``--grid`` and ``--prove`` mean, in a proof of files that are there already or with a new export.

    Raises:
        SpecError: When the two do not fit together.
    """
    if grid is not None and not prove:
        raise SpecError(f"--grid {grid} says at what --prove runs the graph; add --prove.")
    if grid is not None and grid not in GRIDS:
        raise SpecError(f"There is no grid {grid!r}; expected one of {', '.join(GRIDS)}.")
    if grid == "file" and not again:
        raise SpecError("--grid file runs an exported file again; give its folder with --model and nothing else.")
    return grid or ("file" if again else "full" if prove else "quick")


def proved_before(request: SourceRequest) -> ModelArtifact | None:
    """The artifact a request names, where it holds ONNX files and nothing else was asked for."""
    from swinv2_deploy.artifacts import LINEAGE, read_artifact

    if request.model is None or request != type(request)(model=request.model) or not (Path(request.model) / LINEAGE).is_file():
        return None
    artifact = read_artifact(Path(request.model))
    return artifact if artifact.onnx_files else None


def prove_again(artifact: ModelArtifact, grid: Literal["file", "quick", "full"], output: Output, *, dry_run: bool) -> None:
    """Run the files of an artifact once more and print what was found.

    Raises:
        typer.Exit: With the code of :class:`ToleranceExceeded` when a file is wrong somewhere.
    """
    from swinv2_deploy.export.check import failures, prove_artifact
    from swinv2_deploy.runtime.grid import grid_for
    from swinv2_deploy.runtime.onnx_file import read_facts

    names = list(artifact.onnx_files)
    output.say(f"Proving {artifact.path}: {', '.join(names)} against its weights, grid {grid}")
    if dry_run:
        output.result({"artifact": str(artifact.path), "files": names, "grid": grid, "dry_run": True})
        return
    found = {name: read_facts(path) for name, path in artifact.onnx_files.items()}
    baked = [name for name, facts in found.items() if facts.takes == "images"]
    if baked:
        output.say(f"  {', '.join(baked)}: at sizes of photographs, which are the same for every grid")
    # How many sizes a file states is not known before it is loaded; most often as many as the quick grid has.
    counted = [grid_for("quick" if grid == "file" else grid, facts.resolutions, facts.takes) for facts in found.values()]
    with shown_proof(counted, output, table=True) as progress:
        proofs = prove_artifact(artifact, grid, progress)
    wrong = failures(proofs)
    for line in wrong:
        output.say(f"[bold red]FAIL[/] {escape(line)}")
    verdict = f"{len(wrong)} sizes beyond tolerance" if wrong else "equal to the reference model"
    output.say(f"[bold {'red' if wrong else 'green'}]{verdict}[/]")
    content = {name: proof.to_dict() | {"failures": proof.failures} for name, proof in proofs.items()}
    output.result({"artifact": str(artifact.path), "passed": not wrong, "files": content})
    if wrong:
        raise typer.Exit(ToleranceExceeded.exit_code)


@contextmanager
def shown_proof(grids: Iterable[Grid], output: Output, *, table: bool) -> Iterator[Callable[[str, ProofRow], None]]:
    """Function that is told every size that was run: progress at once, and a table at the end, however it ends.

    Args:
        grids: Grid of every file, as far as it is known before.
        output: Where to print.
        table: Whether a table is printed.
    """
    rows: Rows = {}
    total = sum(len(grid) for grid in grids)
    what = "Running every size against the reference model"
    try:
        with progress_of(output) as progress:
            progress(what, 0, total)

            def told(name: str, row: ProofRow) -> None:
                rows.setdefault(name, []).append(row)
                done = sum(len(found) for found in rows.values())
                progress(what, done, max(done, total))

            yield told
    finally:
        if table and rows:
            output.console.print(proof_table(rows))


def in_a_line(facts: OnnxFacts) -> str:
    """What the proof that a file states found."""
    proof = facts.values["proof"]
    worst = max(proof["grid"], key=lambda row: max(row["errors"].values()))
    judged = all(row["limit"] is not None for row in proof["grid"])
    before, after = ("takes photographs, ", " of them") if facts.takes == "images" else ("", "")
    sizes = f"{len(proof['grid'])} size{'s' if len(proof['grid']) > 1 else ''}"
    return (
        f"{before}{'equals' if judged else 'follows'} the reference model at {sizes}{after} within "
        f"{proof['max_abs']:.0e} (worst: {worst['size'][0]}x{worst['size'][1]} px)"
    )


def proof_table(rows: Rows) -> Table:
    """What was found at every size."""
    table = Table(
        *("file", "px", "batches, every row", "max abs error", "at most"),
        title="Against the reference model in FP32",
        title_justify="left",
        title_style="bold",
    )
    for name, found in rows.items():
        for index, row in enumerate(found):
            failed = bool(row.failure)
            error = "not finite" if math.isinf(row.max_abs) else f"{row.max_abs:.1e}"
            table.add_row(
                f"{name}.onnx" if index == 0 else "",
                "x".join(map(str, row.size)),
                " ".join(map(str, row.errors)),
                f"[bold red]{error}[/]" if failed else error,
                "-" if row.limit is None else f"{row.limit:.0e}" + (" (noise)" if row.noise is not None else ""),
            )
        table.add_section()
    return table
