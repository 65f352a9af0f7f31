"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reference_model.model import SwinV2Classifier
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import SpecError, TrainingError
from swinv2_deploy.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.schedule import learning_rate, parameter_groups
from swinv2_deploy.training.spec import TrainSpec

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        model: The trained model (averaged weights when the recipe averages), in eval mode.
        history: One record an epoch: loss, tuning accuracy when measured, learning rate, images/s.
    """

    model: SwinV2Classifier
    history: list[dict[str, Any]]


def train(
    model: SwinV2Classifier,
    spec: TrainSpec,
    *,
    training: TrainingImages,
    tuning: TrainingImages | None,
    preprocessing: Preprocessing,
    folder: Path,
    report: Report | None = None,
    measure_every: int = 5,
) -> TrainResult:
    """Train in place, with a checkpoint in ``folder`` after every epoch; goes on from one that is there.

    Args:
        model: Classifier to train.
        spec: Recipe.
        training: Images trained on.
        tuning: Images accuracy is watched on, or None.
        preprocessing: Recipe the tuning images (and later users) go through.
        folder: Where the checkpoint lives.
        report: Called after every step and epoch with the figures of that moment.
        measure_every: Epochs between two looks at the tuning images.

    Raises:
        TrainingError: When the loss stops being finite, or the checkpoint belongs to another run.
    """
    if len(training) < spec.batch_size:
        raise SpecError(f"{len(training)} training images do not fill a batch of {spec.batch_size}; lower the batch size.")
    optimizer = torch.optim.AdamW(parameter_groups(model, spec.weight_decay), lr=spec.learning_rate)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    state = TrainingState(model=model, average=average, optimizer=optimizer, epoch=0, step=0, history=[])
    load_checkpoint(folder, state, spec.to_dict(), training.sha256)
    steps = training.steps(spec)
    for epoch in range(state.epoch, spec.epochs):
        started = time.perf_counter()
        losses = []
        model.train()
        for images, targets in training.batches(spec, epoch, preprocessing, model.config.num_classes):
            rate = learning_rate(
                state.step,
                steps=steps * spec.epochs,
                warmup=round(steps * spec.warmup_epochs),
                peak=spec.learning_rate,
                final=spec.final_learning_rate,
            )
            losses.append(_step(state, images, targets, spec, rate))
            if report:
                report({"epoch": epoch, "step": state.step, "steps": steps * spec.epochs, "loss": losses[-1]})
        seconds = time.perf_counter() - started
        state.epoch = epoch + 1
        record: dict[str, Any] = {
            "epoch": state.epoch,
            "resolution_px": spec.resolution_at(epoch),
            "loss": float(np.mean(losses)),
            "learning_rate": rate,
            "images_per_s": len(losses) * spec.batch_size / seconds,
        }
        if tuning is not None and len(tuning) and (state.epoch % measure_every == 0 or state.epoch == spec.epochs):
            record["tune_top1"] = accuracy(_averaged(state, spec), tuning, preprocessing)
        state.history.append(record)
        save_checkpoint(folder, state, spec.to_dict(), training.sha256)
        if report:
            report(record)
    return TrainResult(model=_averaged(state, spec), history=state.history)


def accuracy(model: SwinV2Classifier, images: TrainingImages, preprocessing: Preprocessing, batch_size: int = 64) -> float:
    """Share of images whose largest logit is their class, in [0, 1]."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            pixels = np.stack([preprocessing(image) for image in images.images[start : start + batch_size]])
            predicted = model(torch.from_numpy(pixels)).argmax(dim=1).numpy()
            right += int((predicted == images.classes[start : start + batch_size]).sum())
    return right / max(1, len(images))


def _step(state: TrainingState, images: Tensor, targets: Tensor, spec: TrainSpec, rate: float) -> float:
    # Stochastic depth draws from the global generator: seeding it by step makes a resumed run draw the same.
    torch.manual_seed(spec.seed * 1_000_003 + state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(images.device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
        logits = state.model(images)
    loss = F.cross_entropy(logits.float(), targets)
    value = loss.item()
    if not np.isfinite(value):
        raise TrainingError(f"The loss is {value} at step {state.step}; lower the learning rate, or use --precision fp32.")
    state.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), spec.clip_norm)
    state.optimizer.step()
    state.step += 1
    _update_average(state, spec.ema_decay)
    return value


@torch.no_grad()
def _update_average(state: TrainingState, decay: float) -> None:
    # Early on the plain mean of the steps so far is better than a long memory of the initialization.
    decay = min(decay, state.step / (state.step + 10))
    for name, parameter in state.model.named_parameters():
        state.average[name].lerp_(parameter, 1 - decay)


def _averaged(state: TrainingState, spec: TrainSpec) -> SwinV2Classifier:
    if not isinstance(state.model, SwinV2Classifier):
        raise TrainingError("Only a classifier can be trained on class labels.")
    model = SwinV2Classifier(state.model.config)
    model.load_state_dict(state.model.state_dict() if spec.ema_decay == 0 else state.model.state_dict() | state.average)
    return model.eval()
