"""The epochs of a run: steps, and what happens between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import TrainingError, TrainingStopped
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.processes import largest_over
from swinv2_deploy.training.schedule import learning_rate
from swinv2_deploy.training.spec import TrainSpec
from swinv2_deploy.training.state import TrainingState
from swinv2_deploy.training.step import Stepper

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Run:
    """What the epochs share.

    Attributes:
        spec: Recipe.
        state: Changed in place.
        stepper: Makes a step.
        training: Images trained on.
        preprocessing: Mean and standard deviation of the pixels.
        classes: Number of classes.
        save: Writes a checkpoint of the state.
        report: Told the figures of every step, epoch and rollback.
        stop: Gives the number of a signal that asks the run to stop, or 0.
    """

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
                        "images_a_step": spec.batch_size,
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
