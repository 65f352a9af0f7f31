"""``swinv2-deploy train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from swinv2_deploy.cli.console import Output, reported_errors
from swinv2_deploy.cli.options import ARTIFACTS, Classes, DryRun, Force, Json, Model, Out, Quiet, Seed, Verbose
from swinv2_deploy.cli.training_progress import stop_requests, training_progress


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
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images a step, over all processes.")] = 64,
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="Parts that a process cuts its share of a batch into, to save memory.")
    ] = 1,
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[float, typer.Option("--warmup", help="Epochs of linear warm-up.")] = 5.0,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Decoupled weight decay of matrices.")] = 0.05,
    layer_decay: Annotated[
        float, typer.Option("--layer-decay", help="Factor of the learning rate from a block down to the next; 1 is off.")
    ] = 1.0,
    label_smoothing: Annotated[float, typer.Option("--label-smoothing", help="Mass spread over all classes.")] = 0.1,
    ema: Annotated[float, typer.Option("--ema", help="Decay a step of the averaged weights that are kept; 0 is off.")] = 0.998,
    mixup: Annotated[float, typer.Option("--mixup", help="Probability that a batch is mixed pixel by pixel.")] = 0.2,
    cutmix: Annotated[float, typer.Option("--cutmix", help="Probability that a batch has boxes swapped.")] = 0.3,
    crop_scale: Annotated[float, typer.Option("--crop-scale", help="Smallest share of the area a random crop keeps.")] = 0.4,
    drop_path: Annotated[float, typer.Option("--drop-path", help="Stochastic depth of the last block.")] = 0.1,
    precision: Annotated[str, typer.Option("--precision", help="fp32, or bf16 with attention logits in float32.")] = "fp32",
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="Trained model of the same classes to learn from: artifact folder or hub id."),
    ] = None,
    distill_weight: Annotated[
        float | None,
        typer.Option("--distill-weight", help="Share of the loss that follows its logits. Default: 0.5.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="Softens both models' logits for that. Default: 2.", show_default=False),
    ] = None,
    feature_weight: Annotated[
        float | None,
        typer.Option("--feature-weight", help="Weight of the difference from its stages. Default: 0.", show_default=False),
    ] = None,
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", min=0, help="Steps between checkpoints; 0 writes one an epoch.")
    ] = 0,
    checkpoint_blocks: Annotated[
        bool, typer.Option("--checkpoint-blocks", help="Save memory: run blocks again for the gradient.")
    ] = False,
    window_chunk: Annotated[
        int, typer.Option("--window-chunk", min=0, help="Save memory: attend to so many windows at a time; 0 takes all.")
    ] = 0,
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

    Of a folder with ``train`` and ``val`` only ``train`` is looked at.

    After a crash, or Ctrl-C, the same command goes on from the last checkpoint, to the bit as if nothing had happened.
    """
    import os

    from swinv2_deploy.training.processes import rank_of

    # Of several processes the first one talks; the others tell of errors only.
    first = rank_of(os.environ) == 0
    output = Output(json=json and first, quiet=quiet or not first, verbose=verbose)
    with reported_errors(output):
        from calibration.dataset import open_split
        from swinv2_deploy.errors import SpecError, TrainingStopped
        from swinv2_deploy.modeling.request import SourceRequest
        from swinv2_deploy.training.spec import TrainSpec, as_precision, parse_phases
        from swinv2_deploy.training.start import load_teacher, prepare

        if size is None and weights is None and model is None:
            raise SpecError(
                "Name what to train: --size for an architecture from scratch, or --model or --weights to fine-tune."
            )
        request = SourceRequest(
            size=size, resolution=res, window=window, weights=weights, model=model, seed=seed, classes=classes
        )
        images, _ = open_split(data)
        start = prepare(request, images, drop_path=drop_path)
        spec = TrainSpec(
            epochs=epochs,
            phases=parse_phases(phases or str(start.preprocessing.size[0])),
            batch_size=batch_size,
            learning_rate=learning_rate,
            final_learning_rate=min(1e-5, learning_rate),
            warmup_epochs=min(warmup, epochs / 2),
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            label_smoothing=label_smoothing,
            ema_decay=ema,
            accumulate=accumulate,
            checkpoint_every=checkpoint_every,
            checkpoint_blocks=checkpoint_blocks,
            window_chunk=window_chunk,
            **_distillation(teacher, distill_weight, temperature, feature_weight),
            mixup=mixup,
            cutmix=cutmix,
            crop_scale=crop_scale,
            drop_path=drop_path,
            precision=as_precision(precision),
            tune_share=tune_share,
            seed=seed,
        )
        learned_from = None if teacher is None else load_teacher(SourceRequest(model=teacher), start)
        path = out or ARTIFACTS / start.name
        folder = run or Path("runs") / start.name
        output.say(f"Training {start.description} on {len(images)} images of {len(images.classes)} classes in {images.root}")
        output.say(f"  {spec.epochs} epochs, {spec.precision}, seed {seed}; checkpoint in {folder}")
        if teacher is not None:
            output.say(f"  learning from {teacher}: logits {spec.distill_weight:g}, stages {spec.feature_weight:g}")
        if dry_run:
            output.say(f"Would write {path}")
            if first:
                output.result({"artifact": str(path), "dry_run": True, "spec": spec.to_dict()})
            return
        from swinv2_deploy.training.events import NOT_WRITTEN, EventFiles
        from swinv2_deploy.training.finish import PICTURE, finish, split_images
        from swinv2_deploy.training.loop import train
        from swinv2_deploy.training.plot import NOT_DRAWN

        if path.exists() and not force:
            raise SpecError(f"{path} exists already; use --force to replace it, or --out for another folder.")
        with output.working("Reading images"):
            training, tuning = split_images(images, spec)
        with training_progress(output) as show, EventFiles(folder / "events") as events, stop_requests(output) as stop:
            if not events.available:
                output.say(f"  {escape(NOT_WRITTEN)}")

            def report(figures: dict[str, Any]) -> None:
                show(figures)
                events(figures)

            try:
                result = train(
                    start.model,
                    spec,
                    training=training,
                    tuning=tuning,
                    preprocessing=start.preprocessing,
                    folder=folder,
                    teacher=learned_from,
                    report=report,
                    stop=stop,
                )
            except TrainingStopped as stopped:
                if first:
                    raise
                raise typer.Exit(stopped.exit_code) from stopped
        if not first:
            return
        artifact = finish(result, start, spec, images, path, force=force)
        last = result.history[-1]
        output.say(f"[green]Trained[/]: {artifact.path}")
        if "tune_top1" in last:
            output.say(f"  top-1 on the {len(tuning)} images set aside: {last['tune_top1']:.1%}")
        picture = artifact.path / PICTURE
        output.say(f"  the run as a picture: {picture}" if picture.exists() else f"  {escape(NOT_DRAWN)}")
        output.say(f"Next: swinv2-deploy export --model {shlex.quote(str(path))} --out {shlex.quote(f'{path}-onnx')}")
        output.result({"artifact": str(artifact.path), "history": result.history})


def _distillation(
    teacher: str | None, weight: float | None, temperature: float | None, feature_weight: float | None
) -> dict[str, Any]:
    """What the recipe says about the teacher: defaults where there is one, nothing where not."""
    from swinv2_deploy.errors import SpecError

    given = {"--distill-weight": weight, "--temperature": temperature, "--feature-weight": feature_weight}
    if teacher is None:
        lonely = [name for name, value in given.items() if value is not None]
        if lonely:
            raise SpecError(f"{', '.join(lonely)} was given without a model to learn from; name one with --teacher.")
        return {}
    chosen = {"distill_weight": 0.5 if weight is None else weight, "feature_weight": feature_weight or 0.0}
    if not any(chosen.values()):
        raise SpecError("--distill-weight and --feature-weight are 0, so nothing would ask the --teacher; give one of them.")
    if temperature is not None and not chosen["distill_weight"]:
        raise SpecError(
            f"--temperature {temperature} softens logits that --distill-weight 0 leaves out; leave out one of the two."
        )
    return chosen | ({} if temperature is None else {"temperature": temperature})
