"""The training loop."""

from __future__ import annotations

import time
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
from swinv2_deploy.errors import SpecError, TrainingError, TrainingStopped
from swinv2_deploy.training.accuracy import share_right
from swinv2_deploy.training.checkpoint import Identity, load_checkpoint, owned, save_checkpoint
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.distill import check_teacher, fingerprint
from swinv2_deploy.training.processes import join_processes, largest_over, mean_over, rows_of
from swinv2_deploy.training.schedule import learning_rate, parameter_groups
from swinv2_deploy.training.spec import TrainSpec
from swinv2_deploy.training.state import TrainingState
from swinv2_deploy.training.step import Stepper

Report = Callable[[dict[str, Any]], None]
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
    process calls this with the same arguments; each takes its rows of the same batches, and the first one writes and reports.

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
    rows = rows_of(accelerator, spec)
    main = accelerator.is_main_process
    identity = Identity(spec=spec.to_dict(), images_sha256=training.sha256, teacher_sha256=fingerprint(teacher))
    with owned(folder, writes=main), _prepared(model, spec):
        model.to(accelerator.device)
        optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate)
        average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        state = TrainingState(model=model, average=average, optimizer=optimizer)
        load_checkpoint(folder, state, identity)
        _same_everywhere(accelerator, state, folder)
        if state.snapshot is None and spec.max_rollbacks:
            state.remember()
        run = _Run(
            spec=spec,
            state=state,
            stepper=Stepper(
                spec=spec,
                accelerator=accelerator,
                parallel=accelerator.prepare_model(model) if accelerator.num_processes > 1 else model,
                teacher=None if teacher is None else teacher.to(accelerator.device).eval(),
                rows=rows,
            ),
            training=training,
            preprocessing=preprocessing,
            classes=classes,
            save=lambda: save_checkpoint(folder, state, identity) if main else None,
            report=(report if main else None) or (lambda _: None),
            stop=stop or (lambda: 0),
        )
        if state.epoch < spec.epochs:
            run.report({"processes": accelerator.num_processes, "step": state.step, "device": str(accelerator.device)})
        while state.epoch < spec.epochs:
            record = run.epoch()
            if tuning is not None and len(tuning) and (record["epoch"] % measure_every == 0 or record["epoch"] == spec.epochs):
                record["tune_top1"] = share_right(_result(state, spec), tuning, preprocessing, accelerator)
            run.close_epoch(record)
        accelerator.wait_for_everyone()
        return TrainResult(model=_result(state, spec).cpu(), history=state.history)


@dataclass(frozen=True, slots=True)
class _Run:
    """The parts of a run that its epochs share."""

    spec: TrainSpec
    state: TrainingState
    stepper: Stepper
    training: TrainingImages
    preprocessing: Preprocessing
    classes: int
    save: Callable[[], None]
    report: Report
    stop: Callable[[], int]

    def epoch(self) -> dict[str, Any]:
        """Make the steps that are left of the epoch under way; returns its record."""
        spec, state = self.spec, self.state
        steps = self.training.steps(spec)
        begin = state.epoch * steps
        started, made = time.perf_counter(), 0
        state.model.train()
        while state.step < begin + steps:
            for images, targets in self.training.batches(
                spec, state.epoch, self.preprocessing, self.classes, first=state.step - begin, rows=self.stepper.rows
            ):
                rate = self.rate(steps)
                device = self.stepper.accelerator.device
                loss, wrong = self.stepper(state, images.to(device), targets.to(device), rate)
                if wrong:
                    self.go_back(wrong)
                    break
                made += 1
                seconds = time.perf_counter() - started
                self.report(
                    {
                        "epoch": state.epoch,
                        "step": state.step,
                        "steps": steps * spec.epochs,
                        "loss": loss,
                        "learning_rate": rate,
                        "images_per_s": made * spec.batch_size / seconds,
                    }
                )
                if state.step < begin + steps:
                    self.between(state.step - begin)
        return {
            "epoch": state.epoch + 1,
            "resolution_px": spec.resolution_at(state.epoch),
            "loss": state.loss_sum / steps,
            "learning_rate": rate,
            "images_per_s": made * spec.batch_size / (time.perf_counter() - started),
        }

    def rate(self, steps: int) -> float:
        """Learning rate of the step to come, with ``steps`` an epoch."""
        spec = self.spec
        return self.state.rate_factor * learning_rate(
            self.state.step,
            steps=steps * spec.epochs,
            warmup=round(steps * spec.warmup_epochs),
            peak=spec.learning_rate,
            final=spec.final_learning_rate,
        )

    def go_back(self, wrong: str) -> None:
        """Return to the last good state with a lower learning rate, or give up."""
        spec, state = self.spec, self.state
        if len(state.rollbacks) >= spec.max_rollbacks:
            tried = f" (times {state.rate_factor:g} already, after {len(state.rollbacks)} rollbacks)" if state.rollbacks else ""
            raise TrainingError(f"{wrong} at step {state.step}; lower the learning rate{tried}, or use --precision fp32.")
        self.report({"rollback": state.roll_back(wrong, spec.rollback_factor)})

    def between(self, done: int) -> None:
        """Save within an epoch, ``done`` steps into it, where the recipe says so or the run shall stop."""
        signal = self.asked_to_stop()
        if self.spec.checkpoint_every and done % self.spec.checkpoint_every == 0:
            if self.spec.max_rollbacks:
                self.state.remember()
            self.save()
        elif signal:
            self.save()
        self.leave(signal)

    def close_epoch(self, record: dict[str, Any]) -> None:
        """Put an epoch's record into the history and save."""
        state = self.state
        begin = state.step - self.training.steps(self.spec)
        rollbacks = [rollback for rollback in state.rollbacks if rollback["back_to"] >= begin]
        state.history.append(record | ({"rollbacks": rollbacks} if rollbacks else {}))
        state.epoch += 1
        state.loss_sum = 0.0
        if self.spec.max_rollbacks:
            state.remember()
        self.save()
        self.report(state.history[-1])
        self.leave(self.asked_to_stop())

    def asked_to_stop(self) -> int:
        """Number of the signal that any process got; 0 when the run shall go on."""
        return largest_over(self.stepper.accelerator, self.stop())

    def leave(self, signal: int) -> None:
        """End the run if a signal asked for it."""
        if signal:
            raise TrainingStopped(
                f"Stopped after step {self.state.step}, whose checkpoint is written; the same command goes on from there.",
                signal,
            )


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


def _result(state: TrainingState, spec: TrainSpec) -> Any:
    """Copy of the model with the parameters a user gets, in eval mode."""
    model = deepcopy(state.model)
    part_of_batch(model, None)
    if spec.checkpoint_blocks or spec.window_chunk:
        limit_memory(model)
    if spec.ema_decay > 0:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.average[name])
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
