"""``swinv2-deploy export``."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swinv2_deploy.cli.console import Output, reported_errors, warn
from swinv2_deploy.cli.options import ARTIFACTS, Classes, DryRun, Force, Json, Model, Out, Quiet, Seed, Verbose

if TYPE_CHECKING:
    from swinv2_deploy.export.spec import ExportSpec
    from swinv2_deploy.modeling.request import SourceRequest


def export_command(
    size: Annotated[
        str | None, typer.Option("--size", help="Published size: tiny, small, base, large, nano, or a full name from 'list'.")
    ] = None,
    res: Annotated[int | None, typer.Option("--res", help="Resolution in px that the published model was trained for.")] = None,
    window: Annotated[
        str | None, typer.Option("--window", help="Window of the published model, such as 8, 16 or 12to16, where several fit.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Checkpoint: Microsoft, SimMIM, timm or Hugging Face; .safetensors, .pth, .bin."),
    ] = None,
    classes: Classes = None,
    model: Model = None,
    task: Annotated[
        str | None, typer.Option("--task", help="classification, encoder or backbone. Default: what the weights are for.")
    ] = None,
    out_features: Annotated[
        str | None, typer.Option("--out-features", help="For a backbone: stem,stage1,... Default: the last stage.")
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", help="One height and width only, the fastest graph; the batch stays free.")
    ] = False,
    input_size: Annotated[
        str | None,
        typer.Option("--input-size", help="Height x width in px the graph is meant for. Default: the trained resolution."),
    ] = None,
    min_res: Annotated[str | None, typer.Option("--min-res", help="Smallest height x width in px. Default: 32.")] = None,
    max_res: Annotated[
        str | None, typer.Option("--max-res", help="Largest height x width in px. Default: 4 x the size.")
    ] = None,
    bake_preprocessing: Annotated[
        bool,
        typer.Option("--bake-preprocessing", help="Also write model_from_images.onnx, which takes photographs of any size."),
    ] = False,
    out: Out = None,
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write an artifact with weights, preprocessing and an ONNX graph that is right at every size of its range.

    Without --size, --weights or --model the small bundled model is exported. Weights that are neither given nor on a reachable
    hub are replaced by untrained ones, which the artifact's name says.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    with reported_errors(output):
        from swinv2_deploy.export.spec import ExportSpec, parse_size
        from swinv2_deploy.modeling.request import SourceRequest, as_task

        request = SourceRequest(
            size=size,
            resolution=res,
            window=window,
            weights=weights,
            model=model,
            task=as_task(task),
            out_features=tuple(part.strip() for part in out_features.split(",")) if out_features else (),
            seed=seed,
            classes=classes,
        )
        spec = ExportSpec(
            resolution=parse_size(input_size) if input_size else None,
            static=static,
            smallest=parse_size(min_res) if min_res else None,
            largest=parse_size(max_res) if max_res else None,
            bake_preprocessing=bake_preprocessing,
        )
        _run(request, spec, out, output, force=force, dry_run=dry_run)


def _run(request: SourceRequest, spec: ExportSpec, out: Path | None, output: Output, *, force: bool, dry_run: bool) -> None:
    from swinv2_deploy.export.to_onnx import export
    from swinv2_deploy.modeling.source import resolve

    if request == type(request)(seed=request.seed):
        output.say("No model was named: taking the bundled small one ('swinv2-deploy list' shows the others).")
    source = resolve(request)
    for note in source.notes:
        if source.origin.trained:
            output.say(f"  {note}")
        else:
            warn(note)
    path = out or ARTIFACTS / _artifact_name(source.name, request.task, static=spec.static)
    if out is None and source.artifact is not None and path.absolute() == source.artifact.path:
        path = path.with_name(f"{path.name}-onnx")
    resolutions = spec.resolutions(source.model.config)
    low, high = ("x".join(map(str, side)) for side in (resolutions.min, resolutions.max))
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    sizes = f"{low} px only" if spec.static else f"{low} to {high} px"
    output.say(f"Exporting {source.name}: {parameters / 1e6:.1f} M parameters, {sizes}, any batch")
    content: dict[str, object] = {"artifact": str(path), "name": source.name, "weights": source.origin.kind, "dry_run": dry_run}
    if dry_run:
        output.say(f"Would write {path}")
        output.result(content)
        return
    started = time.perf_counter()
    with output.working("Writing the graph and running it against the reference model"):
        artifact = export(source, spec, path, force=force)
    seconds = time.perf_counter() - started
    file = artifact.onnx_files["model"]
    tested = artifact_tested_sizes(file)
    output.say(f"[green]Exported[/] in {seconds:.1f} s: {file} ({file.stat().st_size / 2**20:.1f} MiB)")
    output.say(
        "  equal to the reference model: " + ", ".join(f"{name} px within {error:.0e}" for name, error in tested.items())
    )
    if spec.bake_preprocessing:
        images = artifact.onnx_files["model_from_images"]
        output.say(f"  takes photographs of any size: {images} ({images.stat().st_size / 2**20:.1f} MiB)")
    tail = "" if out is None else f" --model {shlex.quote(str(path))}"
    output.say(f"Next: swinv2-deploy quantize{tail}")
    output.result(content | {"onnx": str(file), "seconds": seconds, "tested_sizes": tested})


def artifact_tested_sizes(file: Path) -> dict[str, float]:
    """Sizes a graph was run at when it was exported, with the largest error, from its metadata."""
    import json

    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(file, load_external_data=False).metadata_props}
    tested: dict[str, float] = json.loads(properties["swinv2_deploy.tested_sizes"])
    return tested


def _artifact_name(name: str, task: str | None, *, static: bool) -> str:
    parts = [name, *([task] if task and task != "classification" else []), *(["static"] if static else [])]
    return "-".join(parts)
