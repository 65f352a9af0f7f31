"""``swinv2-deploy export``."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swinv2_deploy.cli.console import Output, reported_errors, warn
from swinv2_deploy.cli.options import ARTIFACTS, Classes, DryRun, Force, Json, Model, Out, Quiet, Seed, Verbose

if TYPE_CHECKING:
    from reference_model.config import SwinV2Config
    from swinv2_deploy.export.spec import ExportSpec
    from swinv2_deploy.modeling.request import SourceRequest
    from swinv2_deploy.runtime.grid import Grid


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
        str | None,
        typer.Option(
            "--task",
            help="classification, encoder, backbone, masked-image-modeling, image-reconstruction. Default: as the weights.",
        ),
    ] = None,
    out_features: Annotated[
        str | None, typer.Option("--out-features", help="For a backbone: stem,stage1,... Default: the last stage.")
    ] = None,
    upscale: Annotated[
        int | None,
        typer.Option("--upscale", help="For image reconstruction without weights: times 2 or 4. Default: 2."),
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
    window_policy: Annotated[
        str | None,
        typer.Option(
            "--window-policy",
            help="fixed: the trained window. adaptive: at each size the window near it that pads least. Default: the model's own.",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", help="Also write static graphs, the fastest for one size each: 256,384x512 (height x width)."),
    ] = None,
    prove: Annotated[
        bool,
        typer.Option(
            "--prove", help="Run the graph at the full grid of sizes and batches; with --model ARTIFACT alone, its files again."
        ),
    ] = False,
    grid: Annotated[
        str | None,
        typer.Option("--grid", help="Grid of --prove: full, quick, or file (what the file says). Default: full; again: file."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", help="fp16, bf16: write such a graph too; repeatable, or fp32,fp16,bf16. FP32 is always written."
        ),
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

    Every graph is run against the reference model before it is kept. --prove does so at many sizes and batches, and ends with exit
    code 3 when a value of any row differs beyond float32 rounding.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    with reported_errors(output):
        from swinv2_deploy.cli.prove import chosen_grid, prove_again, proved_before
        from swinv2_deploy.export.spec import ExportSpec, as_window_policy, parse_precisions, parse_size, parse_sizes
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
            upscale=upscale,
        )
        spec = ExportSpec(
            resolution=parse_size(input_size) if input_size else None,
            static=static,
            smallest=parse_size(min_res) if min_res else None,
            largest=parse_size(max_res) if max_res else None,
            window_policy=as_window_policy(window_policy),
            sizes=parse_sizes(sizes) if sizes else (),
            half_precisions=parse_precisions(precision or ()),
            bake_preprocessing=bake_preprocessing,
        )
        before = proved_before(request) if prove and spec == ExportSpec() and out is None and not force else None
        if before is not None:
            prove_again(before, chosen_grid(grid, prove=prove, again=True), output, dry_run=dry_run)
        else:
            spec = replace(spec, grid=chosen_grid(grid, prove=prove, again=False))
            _run(request, spec, out, output, prove=prove, force=force, dry_run=dry_run)


def _run(
    request: SourceRequest,
    spec: ExportSpec,
    out: Path | None,
    output: Output,
    *,
    prove: bool,
    force: bool,
    dry_run: bool,
) -> None:
    from swinv2_deploy.cli.prove import in_a_line, shown_proof
    from swinv2_deploy.export.to_onnx import export
    from swinv2_deploy.modeling.source import resolve
    from swinv2_deploy.runtime.onnx_file import read_facts

    if request == type(request)(seed=request.seed):
        output.say("No model was named: taking the bundled small one ('swinv2-deploy list' shows the others).")
    source = resolve(request)
    for note in source.notes:
        if source.origin.trained:
            output.say(f"  {note}")
        else:
            warn(note)
    path = out or ARTIFACTS / _artifact_name(source.name, request.task, static=spec.static, windows=spec.window_policy)
    if out is None and source.artifact is not None and path.absolute() == source.artifact.path:
        path = path.with_name(f"{path.name}-onnx")
    resolutions = spec.resolutions(source.model.config)
    low, high = ("x".join(map(str, side)) for side in (resolutions.min, resolutions.max))
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    grids = _grids(spec, source.model.config)
    sizes = f"{low} px only" if spec.static else f"{low} to {high} px"
    if spec.sizes:
        sizes += f", and graphs for {', '.join(f'{height}x{width}' for height, width in spec.sizes)} px"
    output.say(f"Exporting {source.name}: {parameters / 1e6:.1f} M parameters, {sizes}, any batch")
    if spec.half_precisions:
        output.say(f"  in fp32 and {' and '.join(spec.half_precisions)}")
    if spec.bake_preprocessing:
        output.say("  and model_from_images.onnx, in fp32: takes photographs of any size, for one input size of the model")
    content: dict[str, object] = {"artifact": str(path), "name": source.name, "weights": source.origin.kind, "dry_run": dry_run}
    policy = spec.window_policy or source.model.config.window_policy
    content["window_policy"] = policy
    if policy == "adaptive":
        content["window_savings"] = _savings(source.model.config, spec, output)
    if dry_run:
        output.say(f"Would write {path}")
        output.result(content)
        return
    started = time.perf_counter()
    with shown_proof(grids, output, table=prove) as progress:
        artifact = export(source, spec, path, force=force, progress=progress)
    seconds = time.perf_counter() - started
    facts = {name: read_facts(file) for name, file in artifact.onnx_files.items()}
    output.say(f"[green]Exported[/] in {seconds:.1f} s: {artifact.path}")
    for name, file in artifact.onnx_files.items():
        output.say(f"  {file.name} ({facts[name].size_bytes / 2**20:.1f} MiB) {in_a_line(facts[name])}")
    proofs = {name: found.values["proof"] for name, found in facts.items()}
    tail = "" if out is None else f" --model {shlex.quote(str(path))}"
    output.say(f"Next: swinv2-deploy quantize{tail}")
    files = {name: str(file) for name, file in artifact.onnx_files.items()}
    output.result(content | {"onnx": files["model"], "files": files, "seconds": seconds, "proof": proofs})


def _grids(spec: ExportSpec, config: SwinV2Config) -> list[Grid]:
    """Where every file that is written will be run."""
    from swinv2_deploy.runtime.grid import grid_for

    grids = [grid_for(spec.grid, sizes) for sizes in spec.graphs(config).values() for _ in range(1 + len(spec.half_precisions))]
    return grids + [grid_for(spec.grid, spec.resolutions(config), "images")] * spec.bake_preprocessing


def _savings(config: SwinV2Config, spec: ExportSpec, output: Output) -> dict[str, object]:
    """Say what adaptive windows save at the main size and over the range, and return the numbers."""
    from dataclasses import asdict

    from reference_model.flops import window_savings

    main = spec.resolutions(config).opt
    found = {"main_size": window_savings(config, [main])}
    if not spec.static:
        found["range"] = window_savings(config, spec.sample_sizes(config))
    for name, savings in found.items():
        place = "{}x{} px".format(*main) if name == "main_size" else f"mean of {savings.sizes} sizes of the range"
        output.say(
            f"  adaptive windows, {place}: padding {savings.fixed_padding:.1%} -> {savings.adaptive_padding:.1%} of the useful "
            f"FLOPs of the blocks, {savings.saved:.1%} of all saved"
        )
    output.say(
        "  Where the window differs, the function does: measure the accuracy of both with verify, on labeled photographs."
    )
    return {name: asdict(savings) for name, savings in found.items()}


def _artifact_name(name: str, task: str | None, *, static: bool, windows: str | None) -> str:
    from swinv2_deploy.modeling.request import as_option

    parts = [name, *([as_option(task)] if task and task != "classification" else []), *(["static"] if static else [])]
    if windows == "adaptive" and not name.endswith("-adaptive"):
        parts.append(windows)
    return "-".join(parts)
