"""``swinv2-deploy quantize``."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from swinv2_deploy.cli.console import Output, reported_errors, warn
from swinv2_deploy.cli.options import ARTIFACTS, Artifact, Data, DryRun, Force, Json, Out, Quiet, Seed, Verbose
from swinv2_deploy.cli.quantize_aware import (
    default_run,
    is_first,
    judged,
    qat_spec,
    show_verdicts,
    stage_progress,
    train_and_quantize,
)

if TYPE_CHECKING:
    from swinv2_deploy.pipeline import Verdict
    from swinv2_deploy.quantize.ptq import QuantizeResult


def quantize_command(
    model: Artifact = None,
    data: Data = None,
    calibrator: Annotated[
        str | None,
        typer.Option("--calibrator", help="How ranges are chosen: max, percentile, entropy or mse. Default: percentile."),
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", help="What is quantized: linear (every linear layer of the blocks), mlp, or attention.")
    ] = "linear",
    left: Annotated[
        list[str] | None,
        typer.Option("--float", help="Site, block or stage that stays in float: layers.2.blocks.1.mlp.fc2; repeatable."),
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Calibration images to choose. Default: all, 512 at most.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Images a forward pass while calibrating. Default: by their size.")
    ] = None,
    uint8: Annotated[
        str, typer.Option("--uint8", help="Write model_uint8.onnx: auto (only where it is faster here), always or never.")
    ] = "auto",
    table: Annotated[
        Path | None,
        typer.Option("--table", help="calibration_table.json made before, instead of measuring; --data then only judges it."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop where a calibration lint would only warn.")] = False,
    accept: Annotated[
        list[str] | None, typer.Option("--accept", help="Calibration lint that must not stop, such as dead-head; repeatable.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="ptq quantizes the weights as they are, qat trains them with their rounding first.")
    ] = "ptq",
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="qat: passes over the images. Default: 1.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="qat: peak learning rate. Default: 1e-6 or prune's.")
    ] = None,
    train_batch: Annotated[
        int | None, typer.Option("--train-batch", min=1, help="qat: images a step. Default: 32, or all where there are fewer.")
    ] = None,
    ranges: Annotated[
        str | None, typer.Option("--ranges", help="qat: frozen as calibrated (the default), or learned with the weights.")
    ] = None,
    distill_weight: Annotated[
        float | None,
        typer.Option("--distill-weight", help="qat: share of the loss that follows the FP32 model, 0 to 1. Default: 1."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", help="qat: artifact to learn from. Default: the model, or what a pruned one was cut from."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="qat: folder of the checkpoint; a run found there goes on. Default: ./runs/<name>."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Judge FP32, every calibrator and the result on <data>/val, with paired intervals."),
    ] = False,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure the drift of every site, alone and left out; write sensitivity.json.")
    ] = False,
    budget_drop: Annotated[
        float | None, typer.Option("--budget-drop", help="Top-1 points that may be lost: sites stay in float until it holds.")
    ] = None,
    budget_sqnr: Annotated[
        float | None, typer.Option("--budget-sqnr", help="Least signal to noise of the output in dB: the same.")
    ] = None,
    tuning_images: Annotated[
        int, typer.Option("--tuning-images", min=8, help="Images, not calibrated on, that sites are measured on.")
    ] = 64,
    out: Out = None,
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Calibrate an artifact on images and write one that also holds INT8 graphs.

    A folder with ``train`` and ``val`` is calibrated, and with --method qat trained, on ``train``.
    """
    output = Output(json=json and is_first(), quiet=quiet or not is_first(), verbose=verbose)
    with reported_errors(output):
        import torch

        from calibration.dataset import open_split
        from calibration.samples import sample_folder
        from swinv2_deploy.artifacts import newest_artifact, read_artifact
        from swinv2_deploy.errors import SpecError
        from swinv2_deploy.modeling.pruned import read_record, teacher_of
        from swinv2_deploy.modeling.sites import POLICIES
        from swinv2_deploy.quantize.spec import QuantizeSpec, as_policy, as_ranges, as_unsigned
        from swinv2_deploy.training.finish import batch_that_fits

        # The shift mask of -100 leaves denormal numbers behind the softmax, and processors compute with those many times slower.
        torch.set_flush_denormal(True)
        spec = QuantizeSpec(
            calibrator=calibrator or "percentile",
            policy=as_policy(policy),
            left=tuple(left or ()),
            images=images,
            batch_size=batch_size,
            unsigned=as_unsigned(uint8),
            sensitivity=sensitivity,
            budget_drop=budget_drop,
            budget_sqnr=budget_sqnr,
            tuning_images=tuning_images,
            seed=seed,
            strict=strict,
            accept=tuple(accept or ()),
        )
        given = {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "batch_size": train_batch,
            "ranges": None if ranges is None else as_ranges(ranges),
            "distill_weight": distill_weight,
        }
        artifact = read_artifact(model) if model else newest_artifact(ARTIFACTS, besides="quantize")
        record = read_record(artifact)
        recovers = record is not None and not record.recovered
        chosen = {name: value for name, value in given.items() if value is not None}
        qat = qat_spec(method, chosen, run, teacher, seed, removed=record.removed if record is not None and recovers else 0.0)
        if table is not None and (calibrator or ((images or batch_size or seed) and data is None)):
            raise SpecError(
                f"--table {table} holds ranges that were measured, so that --calibrator, and without --data --images, --batch-size "
                "and --seed, change nothing; expected none of them. Leave them out."
            )
        learned_from = None
        if qat is not None and (teacher is not None or recovers):
            learned_from = teacher_of(artifact, teacher, (ARTIFACTS,))
        folder = held = None
        if table is None or data is not None or qat is not None or spec.searches:
            folder, held = open_split(data or sample_folder("calibrate"))
        if compare and held is None:
            raise SpecError(f"--compare judges on photographs held out; give --data a folder with train and val, not {data}.")
        if qat is not None and folder is not None and train_batch is None:
            qat = replace(qat, batch_size=batch_that_fits(folder, qat.batch_size, qat.recipe(8).tune_share))
        suffix = "int8" if qat is None else "qat"
        path = out or artifact.path.with_name(f"{re.sub('-(int8|qat)$', '', artifact.name)}-{suffix}")
        sites = spec.sites(artifact.config)
        output.say(f"Quantizing {artifact.path}" + ("" if model else " (the newest artifact)"))
        if folder is not None:
            output.say(f"  calibration images: {folder.root}" + ("" if data else " (the bundled photographs)"))
        if qat is not None:
            output.say(
                f"  training with the rounding: {qat.epochs} epochs, peak learning rate {qat.learning_rate:.2g}, ranges "
                f"{qat.ranges}; checkpoint in {run or default_run(path)}"
            )
            if learned_from is not None:
                output.say(f"  learning from {learned_from.name}" + (", which this model was cut from" if recovers else ""))
        measured = f"calibrator: {spec.calibrator}" if table is None else f"ranges: {table}"
        output.say(f"  {measured}; policy {spec.policy}: {POLICIES[spec.policy]}, {len(sites)} sites")
        if recovers and qat is None:
            warn(
                "the model was pruned and not trained since; its INT8 form stays as far from what it was cut from as it is. "
                "--method qat trains both away at once."
            )
        if not artifact.lineage.weights.trained:
            warn("the weights are untrained: file sizes, speed and drift are real, accuracy is not.")
        if dry_run:
            output.say(f"Would write {path}")
            output.result({"artifact": str(path), "dry_run": True, "sites": list(sites)})
            return
        from swinv2_deploy.quantize.calibrate import read_table
        from swinv2_deploy.quantize.ptq import quantize

        made = read_table(table) if table else None
        with stage_progress(output, searches=spec.searches) as (calibrated, searched):
            if qat is None or folder is None:
                result = quantize(artifact, spec, folder, path, table=made, force=force, progress=calibrated, searched=searched)
            else:
                result = train_and_quantize(
                    artifact,
                    spec,
                    qat,
                    folder,
                    path,
                    run or default_run(path),
                    output,
                    teacher=learned_from,
                    table=made,
                    force=force,
                    progress=calibrated,
                    searched=searched,
                )
        if not is_first():
            return
        verdicts = []
        if compare and folder is not None and held is not None:
            verdicts = judged(artifact, result.artifact, qat, spec, folder, held, output)
        _report(result, output, verdicts, named=out is not None or model is not None)


def _report(result: QuantizeResult, output: Output, verdicts: list[Verdict], *, named: bool) -> None:
    from swinv2_deploy.drawing import INSTALL

    files = result.artifact.onnx_files
    whole = files["model"].stat().st_size
    for reason in result.skipped:
        warn(f"skipped: {reason}")
    for finding in result.findings:
        warn(str(finding))
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
    if result.picture is not None:
        output.say(f"  what every site saw, and its range: {result.picture}")
    elif result.table.histograms:
        output.say(f"  no picture of the ranges, for matplotlib is not installed: {escape(INSTALL)}")
    _report_gain(result, output)
    _report_sites(result, output)
    show_verdicts(verdicts, output)
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
            "lints": [finding.to_dict() for finding in result.findings],
            "amax": result.table.amax,
            "picture": None if result.picture is None else str(result.picture),
            "unsigned_speedup": result.unsigned_speedup,
            "saturates_here": saturates(),
            "sensitivity": result.sensitivity.to_dict() if result.sensitivity else None,
            "sensitivity_picture": None if result.sweep_picture is None else str(result.sweep_picture),
            "choice": result.choice.to_dict() if result.choice else None,
            "gain": asdict(result.gain) if result.gain else None,
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
    )


def _report_gain(result: QuantizeResult, output: Output) -> None:
    gain = result.gain
    if gain is None:
        return
    output.say(f"  drift from FP32 on {gain.images} images set aside, as calibrated and as trained:")
    for name, drift in (("ptq", gain.before), ("qat", gain.after)):
        lost = "" if drift.drop is None else f", {drift.drop:+.1f} points lost"
        agreement = "" if drift.agreement is None else f", {drift.agreement:.1%} agreement"
        output.say(f"    {name}  {drift.sqnr_db:.1f} dB{agreement}{lost}")
    if gain.after.sqnr_db <= gain.before.sqnr_db:
        warn(
            "training brought the outputs no nearer to the FP32 model than calibration alone; --method ptq keeps closer, and "
            "is what to ship unless held-out accuracy says otherwise."
        )


def _report_sites(result: QuantizeResult, output: Output) -> None:
    from swinv2_deploy.drawing import INSTALL

    found, choice = result.sensitivity, result.choice
    if found is not None:
        output.say(f"  sites by the noise they add alone, on {found.images} images set aside (sensitivity.json):")
        for site in found.worst()[:5]:
            output.say(
                f"    {site.site:<36} {site.alone.sqnr_db:6.1f} dB alone, {site.without.sqnr_db:6.1f} dB without it, "
                f"{site.macs:.1%} of the work"
            )
        output.say(f"    {'all together':<36} {found.together.sqnr_db:6.1f} dB")
        if result.sweep_picture is not None:
            output.say(f"    all of them drawn: {result.sweep_picture}")
        else:
            output.say(f"    not drawn, for matplotlib is not installed: {escape(INSTALL)}")
    if choice is not None:
        left = ", ".join(choice.left) or "none"
        output.say(
            f"  within the budget: {len(choice.sites)} sites in INT8, {choice.share:.1%} of the work, at "
            f"{choice.drift.sqnr_db:.1f} dB"
        )
        output.say(f"    left in float: {left}")
