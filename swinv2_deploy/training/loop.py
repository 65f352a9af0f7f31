"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from reference_model.memory import limit_memory
from reference_model.model import part_of_batch
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import SpecError, TrainingError
from swinv2_deploy.training.accuracy import share_right
from swinv2_deploy.training.checkpoint import Identity, load_checkpoint, owned, save_checkpoint
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.distill import check_teacher, fingerprint
from swinv2_deploy.training.epochs import Report, Run
from swinv2_deploy.training.processes import asked_to_shard, join_processes, mean_over, rows_of
from swinv2_deploy.training.schedule import parameter_groups
from swinv2_deploy.training.sharding import saved_buffers, shard, whole
from swinv2_deploy.training.spec import TrainSpec
from swinv2_deploy.training.state import TrainingState
from swinv2_deploy.training.step import Stepper

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class TrainResult(Generic[Model]):
    """What a run leaves behind.

    Attributes:
        model: Copy of the trained model (averaged parameters when the recipe averages), in eval mode, on the CPU.
        history: One record an epoch: loss, tuning accuracy when measured, learning rate, images/s, and rollbacks where there were.
    """

    model: Model
    history: list[dict[str, Any]]


def train(
    model: Model,
    spec: TrainSpec,
    *,
    training: TrainingImages,
    tuning: TrainingImages | None,
    preprocessing: Preprocessing,
    folder: Path,
    num_classes: int | None = None,
    teacher: nn.Module | None = None,
    report: Report | None = None,
    stop: Callable[[], int] | None = None,
    measure_every: int = 5,
) -> TrainResult[Model]:
    """Train in place, with a checkpoint in ``folder`` at the end of every epoch and as often between as the recipe says.

    A checkpoint found there is gone on from, to the bit as if nothing had happened. Under a launcher such as torchrun, every
    process calls this with the same arguments; each takes its rows of the same batches, and the first one writes and reports. Where
    the launcher asks for FSDP, each holds its part of the model, and ``model`` stays parted.

    Args:
        model: Any module whose call maps images (B, 3, R, R) to logits (B, K). The checkpoint keeps its whole state, buffers too.
        spec: Recipe.
        training: Images trained on.
        tuning: Images accuracy is watched on, or None.
        preprocessing: Recipe the tuning images (and later users) go through.
        folder: Where the checkpoint lives.
        num_classes: K; None reads it from ``model.config``.
        teacher: FP32 model to learn from, put into eval mode; needed when the recipe distills.
        report: Called after every step, epoch and rollback with the figures of that moment, and first with the number of processes.
        stop: Asked after every step; another answer than 0, the number of a signal, ends the run with a checkpoint.
        measure_every: Epochs between looks at the tuning images.

    Raises:
        SpecError: When there are fewer training images than a batch, or the recipe does not fit model, teacher or processes.
        TrainingError: When loss or gradient stay without a finite value, or the checkpoint cannot be used or written.
        TrainingStopped: When ``stop`` asked for it.
        ArtifactLocked: When another run has its checkpoint in ``folder``.
    """
    if len(training) < spec.batch_size:
        raise SpecError(
            f"{len(training)} training images do not fill a batch of {spec.batch_size}; use a smaller --batch-size."
        )
    check_teacher(model, teacher, spec)
    classes = _classes_of(model) if num_classes is None else num_classes
    groups = parameter_groups(model, spec.weight_decay, spec.layer_decay)
    accelerator = join_processes(spec)
    sharded = asked_to_shard() and accelerator.num_processes > 1
    rows = rows_of(accelerator, spec)
    main = accelerator.is_main_process
    identity = Identity(spec=spec.to_dict(), images_sha256=training.sha256, teacher_sha256=fingerprint(teacher))
    with owned(folder, writes=main), _prepared(model, spec):
        blank = deepcopy(model) if sharded else None
        model.to(accelerator.device)
        if sharded:
            groups = parameter_groups(shard(model, accelerator), spec.weight_decay, spec.layer_decay)
        # Updates of many tensors at once do not take parted ones and whole ones together.
        optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, foreach=False if sharded else None)
        average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        state = TrainingState(model=model, average=average, optimizer=optimizer)
        load_checkpoint(folder, state, identity)
        _same_everywhere(accelerator, state, folder)
        if state.snapshot is None and spec.max_rollbacks:
            state.remember()
        run = Run(
            spec=spec,
            state=state,
            stepper=Stepper(
                spec=spec,
                accelerator=accelerator,
                parallel=accelerator.prepare_model(model) if accelerator.num_processes > 1 and not sharded else model,
                teacher=None if teacher is None else teacher.to(accelerator.device).eval(),
                rows=rows,
                buffers=saved_buffers(model) if sharded else (),
            ),
            training=training,
            preprocessing=preprocessing,
            classes=classes,
            save=lambda: save_checkpoint(folder, state, identity, writes=main),
            report=(report if main else None) or (lambda _: None),
            stop=stop or (lambda: 0),
        )
        if state.epoch < spec.epochs:
            joined = {"processes": accelerator.num_processes, "sharded": sharded, "device": str(accelerator.device)}
            run.report(joined | {"step": state.step})
        while state.epoch < spec.epochs:
            record = run.epoch()
            if tuning is not None and len(tuning) and (record["epoch"] % measure_every == 0 or record["epoch"] == spec.epochs):
                record["tune_top1"] = share_right(_result(state, spec, blank), tuning, preprocessing, accelerator)
            run.close_epoch(record)
        accelerator.wait_for_everyone()
        return TrainResult(model=_result(state, spec, blank).cpu(), history=state.history)


@contextmanager
def _prepared(model: nn.Module, spec: TrainSpec) -> Iterator[None]:
    """Set what the recipe says about memory while the block runs; afterwards the model computes as a fresh one would."""
    limited = spec.checkpoint_blocks or spec.window_chunk > 0
    if limited:
        limit_memory(model, checkpoint_blocks=spec.checkpoint_blocks, window_chunk=spec.window_chunk)
    try:
        yield
    finally:
        if limited:
            limit_memory(model)
        part_of_batch(model, None)


def _result(state: TrainingState, spec: TrainSpec, blank: nn.Module | None) -> Any:
    """Copy of the model with the parameters a user gets, in eval mode; a sharded one is put together in a ``blank`` one."""
    if blank is None:
        model = deepcopy(state.model)
    else:
        model = deepcopy(blank).to(next(state.model.parameters()).device)
        model.load_state_dict({name: whole(value) for name, value in state.model.state_dict().items()})
    part_of_batch(model, None)
    if spec.checkpoint_blocks or spec.window_chunk:
        limit_memory(model)
    if spec.ema_decay > 0:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(whole(state.average[name]))
    return model.eval()


def _classes_of(model: nn.Module) -> int:
    count = getattr(getattr(model, "config", None), "num_classes", 0)
    if not isinstance(count, int) or count < 1:
        raise SpecError(f"{type(model).__name__} does not tell how many classes it has; give num_classes.")
    return count


def _same_everywhere(accelerator: Accelerator, state: TrainingState, folder: Path) -> None:
    """Refuse to start where only some of the processes found the checkpoint."""
    [mean] = mean_over(accelerator, float(state.step))
    if mean != state.step:
        raise TrainingError(
            f"This process starts at step {state.step} and the others do not, as they see other checkpoints in {folder}; put the "
            "--run folder on a disk that all machines share."
        )
