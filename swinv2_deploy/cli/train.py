"""``swinv2-deploy train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from swinv2_deploy.cli.console import Output, reported_errors
from swinv2_deploy.cli.options import ARTIFACTS, Classes, DryRun, Force, Json, Model, Out, Quiet, Seed, Verbose


def train_command(
    data: Annotated[Path, typer.Option("--data", help="Training images, one sub-folder a class.")],
    size: Annotated[
        str | None, typer.Option("--size", help="Train a published architecture from scratch: nano, tiny, ...")
    ] = None,
    res: Annotated[
        int | None, typer.Option("--res", help="Resolution of that architecture in px, where several exist.")
    ] = None,
    window: Annotated[str | None, typer.Option("--window", help="Window of that architecture, where several fit.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Fine-tune from this checkpoint instead.")] = None,
    classes: Classes = None,
    model: Model = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the images.")] = 120,
    phases: Annotated[
        str | None,
        typer.Option("--phases", help="Resolutions with shares of the run, as 96:0.7,128:0.3. Default: the model's."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images a step.")] = 64,
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[float, typer.Option("--warmup", help="Epochs of linear warm-up.")] = 5.0,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Decoupled weight decay of matrices.")] = 0.05,
    mixup: Annotated[float, typer.Option("--mixup", help="Probability that a batch is mixed pixel by pixel.")] = 0.2,
    cutmix: Annotated[float, typer.Option("--cutmix", help="Probability that a batch has boxes swapped.")] = 0.3,
    crop_scale: Annotated[float, typer.Option("--crop-scale", help="Smallest share of the area a random crop keeps.")] = 0.4,
    drop_path: Annotated[float, typer.Option("--drop-path", help="Stochastic depth of the last block.")] = 0.1,
    precision: Annotated[str, typer.Option("--precision", help="fp32, or bf16 with attention logits in float32.")] = "fp32",
    tune_share: Annotated[
        float, typer.Option("--tune-share", help="Share of the images set aside to watch accuracy, never trained on.")
    ] = 0.05,
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of the checkpoint; a run found there goes on. Default: ./runs/<name>.")
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a classifier on an image folder, from scratch or from weights, and write it as an artifact.

    After a crash the same command goes on from the last finished epoch.
    """
    output = Output(json=json, quiet=quiet, verbose=verbose)
    with reported_errors(output):
        from calibration.dataset import ImageFolder
        from swinv2_deploy.errors import SpecError
        from swinv2_deploy.modeling.request import SourceRequest
        from swinv2_deploy.training.spec import TrainSpec, as_precision, parse_phases
        from swinv2_deploy.training.start import prepare

        if size is None and weights is None and model is None:
            raise SpecError(
                "Name what to train: --size for an architecture from scratch, or --model or --weights to fine-tune."
            )
        request = SourceRequest(
            size=size, resolution=res, window=window, weights=weights, model=model, seed=seed, classes=classes
        )
        images = ImageFolder.open(data)
        start = prepare(request, images, drop_path=drop_path)
        spec = TrainSpec(
            epochs=epochs,
            phases=parse_phases(phases or str(start.preprocessing.size[0])),
            batch_size=batch_size,
            learning_rate=learning_rate,
            final_learning_rate=min(1e-5, learning_rate),
            warmup_epochs=min(warmup, epochs / 2),
            weight_decay=weight_decay,
            mixup=mixup,
            cutmix=cutmix,
            crop_scale=crop_scale,
            drop_path=drop_path,
            precision=as_precision(precision),
            tune_share=tune_share,
            seed=seed,
        )
        path = out or ARTIFACTS / start.name
        folder = run or Path("runs") / start.name
        output.say(f"Training {start.description} on {len(images)} images of {len(images.classes)} classes in {images.root}")
        output.say(f"  {spec.epochs} epochs, {spec.precision}, seed {seed}; checkpoint in {folder}")
        if dry_run:
            output.say(f"Would write {path}")
            output.result({"artifact": str(path), "dry_run": True, "spec": spec.to_dict()})
            return
        from swinv2_deploy.training.finish import finish, split_images
        from swinv2_deploy.training.loop import train

        if path.exists() and not force:
            raise SpecError(f"{path} exists already; use --force to replace it, or --out for another folder.")
        with output.working("Reading images"):
            training, tuning = split_images(images, spec)
        with _bar(output) as bar:
            task = bar.add_task("training", total=None, note="")
            result = train(
                start.model,
                spec,
                training=training,
                tuning=tuning,
                preprocessing=start.preprocessing,
                folder=folder,
                report=lambda figures: _show(bar, task, figures, output),
            )
        artifact = finish(result, start, spec, images, path, force=force)
        last = result.history[-1]
        output.say(f"[green]Trained[/]: {artifact.path}")
        if "tune_top1" in last:
            output.say(f"  top-1 on the {len(tuning)} images set aside: {last['tune_top1']:.1%}")
        output.say(f"Next: swinv2-deploy export --model {shlex.quote(str(path))} --out {shlex.quote(f'{path}-onnx')}")
        output.result({"artifact": str(artifact.path), "history": result.history})


def _bar(output: Output) -> Progress:
    console = output.console
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        disable=output.quiet or not console.is_terminal,
    )


def _show(bar: Progress, task: TaskID, figures: dict[str, Any], output: Output) -> None:
    if "steps" in figures:
        bar.update(task, completed=figures["step"], total=figures["steps"], note=f"loss {figures['loss']:.3f}")
        return
    accuracy = f", top-1 {figures['tune_top1']:.1%}" if "tune_top1" in figures else ""
    output.say(
        f"  epoch {figures['epoch']:>3}  {figures['resolution_px']} px  loss {figures['loss']:.3f}"
        f"  {figures['images_per_s']:.0f} images/s{accuracy}"
    )
