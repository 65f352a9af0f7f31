"""One optimizer step: gradients part by part, clipped, checked, applied.

Shape letters: B rows of this process, K classes.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from reference_model.model import part_of_batch
from swinv2_deploy.training.distill import features_loss, listening, logits_loss
from swinv2_deploy.training.processes import mean_over
from swinv2_deploy.training.sharding import clip_gradients, is_sharded, same_buffers, share_whole, unshared
from swinv2_deploy.training.spec import TrainSpec
from swinv2_deploy.training.state import TrainingState


@dataclass(frozen=True, slots=True)
class Stepper:
    """What a step needs beside the state.

    Attributes:
        spec: Recipe.
        accelerator: The processes that take part.
        parallel: The model, wrapped where processes share gradients; sharded, it is the model itself.
        teacher: FP32 model in eval mode to learn from, or None.
        rows: Rows of the batch that this process takes.
        buffers: Buffers of a sharded model that every process takes from the first one.
    """

    spec: TrainSpec
    accelerator: Accelerator
    parallel: nn.Module
    teacher: nn.Module | None
    rows: range
    buffers: tuple[str, ...] = ()

    def __call__(self, state: TrainingState, images: Tensor, targets: Tensor, rate: float) -> tuple[float, str]:
        """Make one step, or leave the state alone where a number is not finite.

        Args:
            state: Changed in place.
            images: This process's rows, (B, 3, R, R).
            targets: Class probabilities (B, K).
            rate: Learning rate of the topmost layer.

        Returns:
            Loss over the batch of all processes, and what is wrong with it: empty, or the name and value of what is not finite.
        """
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        state.optimizer.zero_grad(set_to_none=True)
        [loss] = mean_over(self.accelerator, self._gradients(state, images, targets))
        norm = clip_gradients(state.model.parameters(), self.spec.clip_norm)
        if not math.isfinite(loss):
            return loss, f"The loss is {loss}"
        if not math.isfinite(norm):
            return loss, f"The gradient's norm is {norm}"
        state.optimizer.step()
        state.step += 1
        state.loss_sum += loss
        state.update_average(self.spec.ema_decay)
        return loss, ""

    def _gradients(self, state: TrainingState, images: Tensor, targets: Tensor) -> float:
        """Sum the gradients of the parts of a batch; returns the mean loss."""
        total, parts, sharded = 0.0, self.spec.accumulate, is_sharded(state.model)
        if sharded:
            same_buffers(state.model, self.buffers)
        size = len(images) // parts
        for part in range(parts):
            # Stochastic depth draws from the global generator: seeding it by step makes a resumed run draw the same, and each part
            # draws for the whole batch and keeps its rows.
            torch.manual_seed(self.spec.seed * 1_000_003 + state.step)
            part_of_batch(state.model, (self.rows.start + part * size, self.spec.batch_size))
            # Gradients are shared between processes with the last part.
            last = part == parts - 1
            with nullcontext() if last else unshared(state.model) if sharded else self.accelerator.no_sync(self.parallel):
                chosen = slice(part * size, (part + 1) * size)
                loss = self._loss(state.model, images[chosen], targets[chosen]) / parts
                torch.autograd.backward(loss)
            total += loss.item()
        if sharded:
            share_whole(state.model, lambda gradient: self.accelerator.reduce(gradient, "mean"))
        return total

    def _loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        spec = self.spec
        matched = spec.feature_weight > 0
        autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=spec.precision == "bf16")
        with listening(model, wanted=matched) as maps, autocast:
            logits = self.parallel(images)
        loss = F.cross_entropy(logits.float(), targets)
        if self.teacher is None:
            return loss
        with torch.no_grad(), listening(self.teacher, wanted=matched) as teacher_maps:
            teacher_logits = self.teacher(images)
        loss = (1 - spec.distill_weight) * loss
        if spec.distill_weight > 0:
            loss = loss + spec.distill_weight * logits_loss(logits, teacher_logits, spec.temperature)
        if matched:
            loss = loss + spec.feature_weight * features_loss(maps, teacher_maps)
        return loss
