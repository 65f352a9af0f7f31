"""``swinv2-deploy prune``."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from swinv2_deploy.cli.console import Output, reported_errors, warn
from swinv2_deploy.cli.options import ARTIFACTS, Artifact, Data, DryRun, Force, Json, Out, Quiet, Seed, Verbose
from swinv2_deploy.cli.progress import progress_of
from swinv2_deploy.cli.training_progress import stop_requests, training_progress

if TYPE_CHECKING:
    from swinv2_deploy.artifacts import ModelArtifact
    from swinv2_deploy.pipeline import PlannedPruning, PruneResult
    from swinv2_deploy.prune.spec import Measure, RecoverSpec

Share = float | None


def prune_command(
    model: Artifact = None,
    data: Data = None,
    params: Annotated[Share, typer.Option("--params", help="Share of the parameters to remove, such as 0.25.")] = None,
    macs: Annotated[
        Share, typer.Option("--macs", help="Share of the multiplications and additions to remove, at --res.")
    ] = None,
    heads: Annotated[Share, typer.Option("--heads", help="Share of the attention heads to remove, and nothing else.")] = None,
    latency: Annotated[
        Share, typer.Option("--latency", help="Share of the time in ONNX Runtime here to remove, by a table measured first.")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="prune_plan.json made before, perhaps edited, to apply.")] = None,
    criterion: Annotated[
        str, typer.Option("--criterion", help="How units are judged: taylor, activation, magnitude or random.")
    ] = "taylor",
    images: Annotated[int, typer.Option("--images", min=1, help="Photographs that importance is measured on.")] = 256,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Photographs a pass while measuring. Default: by their size.")
    ] = None,
    res: Annotated[
        str | None,
        typer.Option("--res", help="Size that MACs and latency are counted at: 256 or 384x512. Default: the model's own."),
    ] = None,
    multiple: Annotated[int, typer.Option("--multiple", min=1, help="Hidden units of a block stay a multiple of this.")] = 8,
    min_heads: Annotated[int, typer.Option("--min-heads", min=1, help="Heads that every block keeps.")] = 1,
    min_hidden: Annotated[int, typer.Option("--min-hidden", min=1, help="Hidden units that every block keeps.")] = 32,
    check_heads: Annotated[
        int, typer.Option("--check-heads", min=0, help="Heads also left out one at a time, to see whether the ranking holds.")
    ] = 0,
    recover: Annotated[
        bool, typer.Option("--recover/--no-recover", help="Train the cut model to answer as the whole one did.")
    ] = True,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the photographs. Default: 3.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Cuts on the way to the budget, with an epoch between. Default: 1.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate. Default: 4e-4 times the share removed.")
    ] = None,
    train_batch: Annotated[
        int | None, typer.Option("--train-batch", min=1, help="Photographs a step. Default: 32, or all where there are fewer.")
    ] = None,
    distill_weight: Annotated[
        float | None,
        typer.Option("--distill-weight", help="Share of the loss that follows the unpruned model, 0 to 1. Default: 1."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, or bf16 with attention logits in float32. Default: fp32.")
    ] = None,
    checkpoint_blocks: Annotated[
        bool, typer.Option("--checkpoint-blocks", help="Save memory in training: run blocks again for the gradient.")
    ] = False,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", help="Artifact with the unpruned weights, for one that was pruned before. Default: found."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of the checkpoints; a run found there goes on. Default: ./runs/<name>.")
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Remove heads and hidden units by importance, under one budget, and train what is left to answer as before.

    A folder with ``train`` and ``val`` is measured and trained on in ``train``, and judged on ``val``. With --dry-run the plan is
    printed, and with --out written into that folder, to be looked at, edited, and applied with --plan.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    with reported_errors(output):
        import torch

        from calibration.dataset import open_split
        from calibration.samples import sample_folder
        from swinv2_deploy.artifacts import newest_artifact, read_artifact
        from swinv2_deploy.errors import SpecError
        from swinv2_deploy.modeling.io import WEIGHTS
        from swinv2_deploy.modeling.pruned import teacher_of
        from swinv2_deploy.pipeline import Recovery, plan_from_file, plan_pruning, prune_artifact
        from swinv2_deploy.prune.cost import parameter_count
        from swinv2_deploy.prune.plan import read_plan
        from swinv2_deploy.prune.spec import CRITERIA, MEASURES, PruneSpec, as_criterion
        from swinv2_deploy.training.finish import batch_that_fits
        from swinv2_deploy.verify import parse_sizes

        # The shift mask of -100 leaves denormal numbers behind the softmax, and processors compute with those many times slower.
        torch.set_flush_denormal(True)
        measure, share = _budget(params, macs, heads, latency, plan)
        size = parse_sizes(res)[0] if res is not None else None
        spec = None
        if measure is not None:
            spec = PruneSpec(
                measure=measure,
                share=share,
                criterion=as_criterion(criterion),
                images=images,
                batch_size=batch_size,
                size=size,
                multiple=multiple,
                min_heads=min_heads,
                min_hidden=min_hidden,
                check_heads=check_heads,
                seed=seed,
            )
        given = {
            "epochs": epochs,
            "steps": steps,
            "learning_rate": learning_rate,
            "batch_size": train_batch,
            "distill_weight": distill_weight,
            "precision": precision,
            "checkpoint_blocks": checkpoint_blocks or None,
        }
        trains = _recover_spec({name: value for name, value in given.items() if value is not None}, run, seed, recover=recover)
        artifact = read_artifact(model) if model else newest_artifact(ARTIFACTS, besides="quantize")
        if data is None and trains is not None and not dry_run:
            raise SpecError(
                "Recovery trains on labeled photographs, and the bundled ones are too few for that; give a folder of your own with "
                "--data, or leave the weights as they are with --no-recover."
            )
        folder, held = open_split(data or sample_folder("calibrate"))
        if trains is not None and train_batch is None:
            share_aside = trains.recipe(8, trains.epochs).tune_share
            trains = replace(trains, batch_size=batch_that_fits(folder, trains.batch_size, share_aside))
        path = out or artifact.path.with_name(f"{re.sub('-pruned$', '', artifact.name)}-pruned")
        unpruned = teacher_of(artifact, teacher, (ARTIFACTS,)) if trains or teacher else None
        output.say(f"Pruning {artifact.path}" + ("" if model else " (the newest artifact)"))
        if spec is not None:
            output.say(f"  budget: {spec.share:.1%} of the {spec.measure} ({MEASURES[spec.measure]})")
            output.say(f"  importance: {spec.criterion}, {CRITERIA[spec.criterion]}; photographs: {folder.root}")
        if not artifact.lineage.weights.trained:
            warn("the weights are untrained: sizes and speed are real, importance and accuracy are not.")
        with progress_of(output) as progress:
            if spec is not None:
                planned = plan_pruning(artifact, spec, folder, progress)
            elif plan is not None:
                planned = plan_from_file(artifact, read_plan(plan, artifact.config, artifact.lineage.files[WEIGHTS]), size)
        show_plan(planned, artifact, output)
        if dry_run:
            _dry(planned, artifact, out, output, force=force)
            return
        recovery = None
        if trains is not None and unpruned is not None:
            where = run or Path("runs") / path.name
            rate = trains.rate(1 - planned.after.parameters / parameter_count(unpruned.config))
            output.say(
                f"  recovery: {trains.epochs} epochs of {len(folder)} photographs, peak learning rate {rate:.2g}, "
                f"learning from {unpruned.name}; checkpoints in {where}"
            )
            recovery = Recovery(spec=trains, images=folder, teacher=unpruned, run=where)
        with training_progress(output) as show, stop_requests(output) as stop:
            if recovery is not None:
                recovery = replace(recovery, report=show, stop=stop)
            result = prune_artifact(
                artifact,
                spec,
                planned,
                path,
                recovery=recovery,
                unpruned=unpruned or _origin(artifact),
                held=held,
                force=force,
            )
        _report(result, output, named=out is not None or model is not None)


def _budget(params: Share, macs: Share, heads: Share, latency: Share, plan: Path | None) -> tuple[Measure | None, float]:
    """The one budget that was given, or None for a plan.

    Raises:
        SpecError: When there is none, or several.
    """
    from swinv2_deploy.errors import SpecError

    budgets: dict[Measure, Share] = {"params": params, "macs": macs, "heads": heads, "latency": latency}
    found = [(measure, share) for measure, share in budgets.items() if share is not None]
    if len(found) + (plan is not None) != 1:
        asked = ", ".join(f"--{measure}" for measure, _ in found) + (" --plan" if plan else "")
        raise SpecError(
            f"Say how much goes, in one way: --params 0.25, --macs 0.3, --heads 0.25, --latency 0.2, or --plan FILE; got "
            f"{asked or 'none of them'}."
        )
    return found[0] if found else (None, 0.0)


def _recover_spec(given: dict[str, object], run: Path | None, seed: int, *, recover: bool) -> RecoverSpec | None:
    """The recipe, or None without recovery.

    Raises:
        SpecError: When options of training are given without it.
    """
    from swinv2_deploy.errors import SpecError
    from swinv2_deploy.prune.spec import RecoverSpec

    if recover:
        return RecoverSpec(**given, seed=seed)  # type: ignore[arg-type]  # checked there
    unused = sorted(given) + (["run"] if run is not None else [])
    if unused:
        raise SpecError(f"{', '.join(unused)} would train, and --no-recover does not; leave out one of the two.")
    return None


def _origin(artifact: ModelArtifact) -> ModelArtifact | None:
    """The unpruned artifact, where a model that was pruned before is cut again without training."""
    from swinv2_deploy.modeling.pruned import read_record, teacher_of

    return teacher_of(artifact, None, (ARTIFACTS,)) if read_record(artifact) else None


def show_plan(planned: PlannedPruning, artifact: ModelArtifact, output: Output) -> None:
    """The plan as a table: what every block keeps, and what that comes to."""
    from swinv2_deploy.prune.units import as_ranges, blocks_of, units_of

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "block", "heads", "removed heads", "hidden", "kept"):
        table.add_column(name, justify="left" if name in ("removed heads", "kept") else "right")
    for at in blocks_of(artifact.config):
        of_heads, of_hidden = units_of(artifact.config, "heads", at), units_of(artifact.config, "hidden", at)
        kept, hidden = planned.plan.heads[at], planned.plan.hidden[at]
        gone = as_ranges(head for head in range(of_heads) if head not in kept)
        bar = "█" * max(1, round(20 * len(hidden) / of_hidden))
        table.add_row(
            str(at[0] + 1),
            str(at[1]),
            f"{len(kept)} of {of_heads}",
            gone or "-",
            f"{len(hidden)} of {of_hidden}",
            f"{bar:░<20}",
        )
    output.console.print(table)
    before, after = planned.before, planned.after
    height, width = planned.size
    for name, first, last in (
        ("parameters", before.parameters, after.parameters),
        (f"MACs at {height}x{width} px", before.macs, after.macs),
        ("heads", before.heads, after.heads),
        ("hidden units", before.hidden, after.hidden),
    ):
        output.say(f"  {name:<22} {first:>14,} -> {last:>14,}   {1 - last / first:6.1%} removed")
    if planned.left_out is not None:
        found = planned.left_out
        output.say(
            f"  {len(found.heads)} heads left out one at a time: rank correlation of what that does with the scores "
            f"{found.rank_correlation:.2f}"
        )


def _dry(planned: PlannedPruning, artifact: ModelArtifact, out: Path | None, output: Output, *, force: bool) -> None:
    """Say what would be done; with a folder named, write plan and picture there."""
    from swinv2_deploy.drawing import INSTALL, has_matplotlib
    from swinv2_deploy.errors import SpecError
    from swinv2_deploy.pipeline.pruned import PLAN
    from swinv2_deploy.prune.picture import PICTURE, draw_importance

    files: dict[str, str] = {}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        target = out / PLAN
        if target.exists() and not force:
            raise SpecError(f"{target} exists already; use --force to replace it, or --out for another folder.")
        planned.plan.save(target, artifact.config)
        files["plan"] = str(target)
        output.say(f"Wrote the plan: {target}")
        if planned.importance is not None and has_matplotlib():
            draw_importance(planned.importance, planned.plan, artifact.config, out / PICTURE)
            files["picture"] = str(out / PICTURE)
            output.say(f"  and the picture: {out / PICTURE}")
        elif planned.importance is not None:
            output.say(f"  not drawn, for matplotlib is not installed: {escape(INSTALL)}")
    else:
        output.say("Nothing was removed (--dry-run); with --out the plan is written into that folder.")
    output.result({"dry_run": True, **_figures(planned), **files, "keep": planned.plan.to_dict(artifact.config)["keep"]})


def _figures(planned: PlannedPruning) -> dict[str, object]:
    return {
        "before": asdict(planned.before),
        "after": asdict(planned.after),
        "size": list(planned.size),
        "removed": planned.removed,
        "rank_correlation": planned.left_out.rank_correlation if planned.left_out else None,
    }


def _report(result: PruneResult, output: Output, *, named: bool) -> None:
    from swinv2_deploy.drawing import INSTALL

    artifact = result.artifact
    output.say(f"[green]Pruned[/]: {artifact.path}")
    for name, file in artifact.onnx_files.items():
        output.say(f"  {file.name:<28} {file.stat().st_size / 2**20:8.1f} MiB" + ("" if name != "model" else ", checked"))
    if result.accuracy:
        output.say(f"  on {result.judged_on}:")
        for row in result.accuracy:
            low, high = row.interval
            output.say(
                f"    {row.form:<10} top-1 {row.top1:7.2%}  lost {row.lost:+.2f} points ({low:+.2f} to {high:+.2f})  "
                f"{row.agreement:.1%} as before"
            )
    if result.picture is not None:
        output.say(f"  importance and what went: {result.picture}")
    elif result.planned.importance is not None:
        output.say(f"  no picture of the importance, for matplotlib is not installed: {escape(INSTALL)}")
    output.say("  transformers cannot express blocks of different widths, so config.json is in this program's own form.")
    tail = f" --model {shlex.quote(str(artifact.path))}" if named else ""
    if not artifact.onnx_files:
        output.say(f"Next: swinv2-deploy export{tail}")
    elif result.teacher or artifact.config.task != "classification":
        output.say(f"Next: swinv2-deploy quantize{tail}")  # only classifiers are trained here
    else:
        output.say(f"Next: swinv2-deploy quantize{tail} --method qat --data DIR, which trains it as well")
    output.result(
        {
            "artifact": str(artifact.path),
            **_figures(result.planned),
            "teacher": result.teacher,
            "judged_on": result.judged_on,
            "accuracy": [asdict(row) for row in result.accuracy],
            "history": result.history,
            "picture": str(result.picture) if result.picture else None,
        }
    )
