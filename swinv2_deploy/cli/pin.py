"""``swinv2-deploy pin``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from swinv2_deploy.cli.console import Output, artifact_to_run, reported_errors
from swinv2_deploy.cli.options import Artifact, DryRun, Json, Quiet, Verbose
from swinv2_deploy.cli.progress import progress_of


def pin_command(
    model: Artifact = None,
    res: Annotated[
        str | None, typer.Option("--res", help="Size in px: 384, or 384x512 (height x width). Default: that of the artifact.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at once.")] = 1,
    onnx: Annotated[
        str | None, typer.Option("--onnx", help="ONNX file of the artifact. Default: all that take pixels.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write. Default: <artifact>/pinned/<batch>x<height>x<width>.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are already there.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write an artifact's ONNX files for one batch and one size, as fast as an export for that size.

    Weights, integers and ranges stay what they are: nothing is exported, calibrated or trained again. Every file is run beside the
    one it was made from. Programs in any language load the result; 'load_runner(..., pinned=...)' does the same in memory.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    with reported_errors(output):
        from swinv2_deploy.export.pin import chosen_files, pin_files, place_of
        from swinv2_deploy.export.spec import parse_size

        artifact = artifact_to_run(model, output)
        pinned = (batch, *(parse_size(res) if res else artifact.preprocessing.size))
        (files, left), place = chosen_files(artifact, pinned, onnx), place_of(artifact, pinned, out)
        words = f"{batch} image{'s' if batch > 1 else ''} of {pinned[1]}x{pinned[2]} px"
        output.say(f"Pinning {', '.join(f'{name}.onnx' for name in files)} of {escape(artifact.name)} to {words}")
        for name, reason in left.items():
            output.say(f"  left out {escape(name)}.onnx: {escape(reason)}")
        content = {"folder": str(place), "parent": str(artifact.path), "batch": batch, "size": pinned[1:], "left_out": left}
        if dry_run:
            output.say(f"Would write {escape(str(place))}")
            output.result(content | {"files": [f"{name}.onnx" for name in files], "dry_run": True})
            return
        with progress_of(output) as progress:
            found = pin_files(artifact, pinned, name=onnx, out=out, force=force, progress=progress)
        for row in found:
            same = "the same outputs" if row.change == 0 else f"outputs moved by {row.change:.1e} of their size"
            output.say(f"  {row.name}.onnx: {row.nodes[0]} operators became {row.nodes[1]}, {same}")
        output.say(f"Wrote {escape(str(place))}")
        output.result(content | {"files": [asdict(row) for row in found]})
        if quiet and not json:
            typer.echo(str(place))
