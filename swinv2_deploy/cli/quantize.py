"""``swinv2-deploy quantize``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from swinv2_deploy.cli.console import Output, reported_errors, warn
from swinv2_deploy.cli.options import ARTIFACTS, Artifact, Data, DryRun, Force, Json, Out, Quiet, Seed, Verbose

if TYPE_CHECKING:
    from swinv2_deploy.quantize.ptq import QuantizeResult


def quantize_command(
    model: Artifact = None,
    data: Data = None,
    calibrator: Annotated[
        str, typer.Option("--calibrator", help="How ranges are chosen: max, percentile, entropy or mse.")
    ] = "percentile",
    policy: Annotated[
        str, typer.Option("--policy", help="What is quantized: linear (every linear layer of the blocks) or mlp.")
    ] = "linear",
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Calibration images to choose. Default: all, 512 at most.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images a forward pass while calibrating. Default: by their size.")
    ] = None,
    uint8: Annotated[
        str, typer.Option("--uint8", help="Write model_uint8.onnx: auto (only where it is faster here), always or never.")
    ] = "auto",
    out: Out = None,
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Calibrate an artifact on images and write one that also holds INT8 graphs."""
    output = Output(json=json, quiet=quiet, verbose=verbose)
    with reported_errors(output):
        from calibration.dataset import ImageFolder
        from calibration.samples import sample_folder
        from swinv2_deploy.artifacts import newest_artifact, read_artifact
        from swinv2_deploy.modeling.sites import POLICIES, quantization_sites
        from swinv2_deploy.quantize.spec import QuantizeSpec, as_policy, as_unsigned

        spec = QuantizeSpec(
            calibrator=calibrator,
            policy=as_policy(policy),
            images=images,
            batch_size=batch_size,
            unsigned=as_unsigned(uint8),
            seed=seed,
        )
        artifact = read_artifact(model) if model else newest_artifact(ARTIFACTS, besides="quantize")
        folder = ImageFolder.open(data or sample_folder("calibrate"))
        path = out or artifact.path.with_name(f"{artifact.name.removesuffix('-int8')}-int8")
        sites = quantization_sites(artifact.config, spec.policy)
        output.say(f"Quantizing {artifact.path}" + ("" if model else " (the newest artifact)"))
        output.say(f"  calibration images: {folder.root}" + ("" if data else " (the bundled photographs)"))
        output.say(f"  calibrator: {spec.calibrator}; policy {spec.policy}: {POLICIES[spec.policy]}, {len(sites)} sites")
        if not artifact.lineage.weights.trained:
            warn("the weights are untrained: file sizes, speed and drift are real, accuracy is not.")
        if dry_run:
            output.say(f"Would write {path}")
            output.result({"artifact": str(path), "dry_run": True, "sites": list(sites)})
            return
        from swinv2_deploy.quantize.ptq import quantize

        with Progress(
            TextColumn("calibrating"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=output.console,
            transient=True,
            disable=quiet or not output.console.is_terminal,
        ) as bar:
            task = bar.add_task("images", total=None)
            result = quantize(
                artifact,
                spec,
                folder,
                path,
                force=force,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        _report(result, output, named=out is not None or model is not None)


def _report(result: QuantizeResult, output: Output, *, named: bool) -> None:
    files = result.artifact.onnx_files
    whole = files["model"].stat().st_size
    for reason in result.skipped:
        warn(f"skipped: {reason}")
    output.say(f"[green]Quantized[/] from {result.table.images} images: {result.artifact.path}")
    for name, file in files.items():
        size = file.stat().st_size
        output.say(f"  {file.name:<28} {size / 2**20:8.1f} MiB" + ("" if name == "model" else f"  {size / whole:.2f} of FP32"))
    if result.unsigned_speedup is not None:
        kept = "model_uint8" in files
        output.say(
            f"  the unsigned form runs at {result.unsigned_speedup:.2f} x the speed of the signed one here: "
            + ("kept as model_uint8.onnx" if kept else "not worth a second file")
        )
    widest = sorted(result.table.sites.items(), key=lambda item: -item[1].clipped)[:3]
    if widest and widest[0][1].clipped > 0:
        names = ", ".join(f"{name} {site.clipped:.3%}" for name, site in widest)
        output.say(f"  most clipped sites: {names}")
    from swinv2_deploy.runtime.onnx_runner import saturates

    if saturates():
        warn(
            "this CPU has no VNNI: left alone, ONNX Runtime and OpenVINO saturate products of integers here. This program's own "
            "runners do not; docs/how-to/verify.md has the line for your own session."
        )
    tail = f" --model {shlex.quote(str(result.artifact.path))}" if named else ""
    allow = "" if result.artifact.lineage.weights.trained else " --allow-untrained"
    output.say(f"Next: swinv2-deploy verify{tail}{allow}")
    output.result(
        {
            "artifact": str(result.artifact.path),
            "onnx": {name: {"path": str(file), "bytes": file.stat().st_size} for name, file in files.items()},
            "images": result.table.images,
            "skipped": list(result.skipped),
            "amax": result.table.amax,
            "unsigned_speedup": result.unsigned_speedup,
            "saturates_here": saturates(),
        }
    )
