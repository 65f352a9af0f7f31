"""``swinv2-deploy compile``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swinv2_deploy.cli.console import Output, artifact_to_run, reported_errors
from swinv2_deploy.cli.options import Artifact, DryRun, Json, Quiet, Verbose
from swinv2_deploy.cli.progress import progress_of

if TYPE_CHECKING:
    from swinv2_deploy.artifacts import ModelArtifact
    from swinv2_deploy.engine.compile import CompileResult
    from swinv2_deploy.engine.profiles import Profile
    from swinv2_deploy.engine.spec import EngineSpec


def compile_command(
    model: Artifact = None,
    onnx: Annotated[
        str | None,
        typer.Option("--onnx", help="ONNX file of the artifact. Default: model_int8, else model_fp16, else model."),
    ] = None,
    rest: Annotated[
        str, typer.Option("--rest", help="For an INT8 file, the format of everything else: fp16, bf16, fp32.")
    ] = "fp16",
    batch: Annotated[str, typer.Option("--batch", help="Largest batch, or smallest, preferred and largest: 1,4,8.")] = "8",
    smallest: Annotated[
        str | None, typer.Option("--min", help="Smallest batch x height x width. Default: that of the file.")
    ] = None,
    preferred: Annotated[
        str | None, typer.Option("--opt", help="Batch x height x width that kernels are chosen for. Default: that of the file.")
    ] = None,
    largest: Annotated[
        str | None,
        typer.Option("--max", help="Largest batch x height x width, which memory is reserved for. Default: that of the file."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes", help="A profile for each of these sizes instead of one wide one: 256,384x512 (height x width)."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the engine. Default: that of the ONNX file and the rest.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="tensorrt or tensorrt-rtx. Default: what is installed.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="Compute capability to build for with TensorRT-RTX, such as 8.6; repeatable."),
    ] = None,
    level: Annotated[
        int | None, typer.Option("--level", help="Builder optimization level: 0 builds fastest, 5 runs fastest.")
    ] = None,
    workspace: Annotated[int | None, typer.Option("--workspace", help="Largest scratch memory of a kernel in MiB.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Let later versions of TensorRT run the engine.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Let GPUs of other generations run the engine.")
    ] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Let weights stay in host memory, for models larger than the GPU's.")
    ] = False,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="File of kernel timings. Default: one for this machine and version.")
    ] = None,
    no_timing_cache: Annotated[bool, typer.Option("--no-timing-cache", help="Measure every kernel anew.")] = False,
    require_int8_gemms: Annotated[
        float | None,
        typer.Option("--require-int8-gemms", help="Fail where a smaller share of the linear layers became INT8 products: 1.0."),
    ] = None,
    require_fused_attention: Annotated[
        float | None,
        typer.Option("--require-fused-attention", help="Fail where a smaller share of the attentions became one kernel: 1.0."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an engine of that name.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compile an ONNX file of an artifact to a TensorRT engine, and report what the compiler made of every layer.

    With TensorRT-RTX no GPU is needed: the engine is compiled ahead of time for the named compute capabilities. With TensorRT it is
    built for the GPU of this machine. The engine, its sidecar and the report go to the artifact's folder 'engines'.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    with reported_errors(output):
        from swinv2_deploy.engine.profiles import parse_batches, parse_shape
        from swinv2_deploy.engine.spec import EngineSpec, as_rest
        from swinv2_deploy.errors import SpecError
        from swinv2_deploy.export.spec import parse_sizes

        if timing_cache is not None and no_timing_cache:
            raise SpecError("--timing-cache names a file and --no-timing-cache wants none; give the one or the other.")
        bounds = {"--min": smallest, "--opt": preferred, "--max": largest}
        low, middle, high = (parse_shape(text, option) if text else None for option, text in bounds.items())
        spec = EngineSpec(
            onnx=onnx,
            rest=as_rest(rest),
            batches=parse_batches(batch),
            sizes=parse_sizes(sizes) if sizes else (),
            bounds=(low, middle, high),
            backend=backend,
            targets=tuple(target or ()),
            level=level,
            workspace_mib=workspace,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            weight_streaming=weight_streaming,
            timing_cache="" if no_timing_cache else str(timing_cache) if timing_cache else None,
            require_int8_gemms=require_int8_gemms,
            require_fused_attention=require_fused_attention,
        )
        _run(artifact_to_run(model, output), spec, name, output, force=force, dry_run=dry_run)


def _run(artifact: ModelArtifact, spec: EngineSpec, name: str | None, output: Output, *, force: bool, dry_run: bool) -> None:
    from swinv2_deploy.pipeline import compile_artifact, planned_engine

    planned = planned_engine(artifact, spec, name, force=force)
    where = f"{planned.backend.flavor} {planned.backend.version}"
    output.say(f"Compiling {planned.onnx}.onnx ({planned.precision}) of {artifact.name} with {where}")
    for profile in planned.profiles:
        output.say(f"  profile: {_words(profile)}")
    content: dict[str, Any] = {
        "artifact": str(artifact.path),
        "onnx": planned.onnx,
        "precision": planned.precision,
        "engine": str(planned.plan),
        "backend": planned.backend.name,
        "version": planned.backend.version,
        "dry_run": dry_run,
    }
    if dry_run:
        output.say(f"Would write {planned.plan}")
        output.result(content)
        return
    with progress_of(output) as progress:
        result = compile_artifact(artifact, spec, planned, force=force, progress=progress)
    _tell(result, output)
    output.result(content | {"report": result.report.summary(), "page": str(result.page)})


def _words(profile: Profile) -> str:
    low, middle, high = str(profile).split()
    return (
        f"{low} (batch x height x width) only"
        if low == high
        else f"{low} to {high} (batch x height x width), chosen for {middle}"
    )


def _tell(result: CompileResult, output: Output) -> None:
    report = result.report
    weights = f", {report.weight_bytes / 2**20:.1f} MiB of weights on the GPU" if report.weight_bytes is not None else ""
    output.say(
        f"[green]Compiled[/] in {report.seconds:.1f} s: {result.plan} ({report.plan_bytes / 2**20:.1f} MiB{weights}), "
        f"for {', '.join(report.targets)}"
    )
    for covered in report.coverage:
        known = covered.profile < len(report.activation_bytes)
        memory = f", {report.activation_bytes[covered.profile] / 2**20:.1f} MiB of activations" if known else ""
        output.say(
            f"  profile {covered.profile}: {covered.int8_gemms} of {len(covered.linear)} linear layers are INT8 products, "
            f"{covered.fused_attention} of {len(covered.attention)} attentions fused, {covered.layers['movement']} of "
            f"{sum(covered.layers.values())} layers only move data{memory}"
        )
    output.say(f"Layer by layer: {shlex.quote(str(result.page))}")
