"""Learning from a teacher: its logits at a temperature, and the maps its stages give.

Shape letters: B batch, H W height and width of a stage's map, C channels, K classes.

Source: Distilling the Knowledge in a Neural Network (arXiv:1503.02531), section 2; FitNets (arXiv:1412.6550) for the stages,
without its regressor, since pruning and quantization leave their channels alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_deploy.errors import SpecError
from swinv2_deploy.training.spec import TrainSpec

_STAGE = re.compile(r"(?:.*\.)?layers\.(\d+)")


def check_teacher(model: nn.Module, teacher: nn.Module | None, spec: TrainSpec) -> None:
    """Refuse a recipe that needs a teacher without one, and a teacher that nothing asks.

    Raises:
        SpecError: In these cases, and where stages shall be compared that one of the two does not have.
    """
    if spec.distills and teacher is None:
        raise SpecError(
            f"distill_weight is {spec.distill_weight} and feature_weight {spec.feature_weight}, without a teacher; give one, or "
            "set both to 0."
        )
    if teacher is None:
        return
    if not spec.distills:
        raise SpecError("There is a teacher that nothing would ask; expected a distill_weight or a feature_weight above 0.")
    if teacher is model:
        raise SpecError("The teacher is the model that is trained; expected a copy, which stays as it is.")
    found = [sorted(name for name, _ in stages_of(module)) for module in (model, teacher)]
    if spec.feature_weight > 0 and (not found[0] or found[0] != found[1]):
        raise SpecError(
            f"The model has the stages {found[0]} and the teacher {found[1]}; expected the same modules layers.<stage>. Use a "
            "feature_weight of 0."
        )


def fingerprint(teacher: nn.Module | None) -> str:
    """Hash of all weights and buffers; empty without a teacher."""
    if teacher is None:
        return ""
    overall = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        overall.update(f"{name} {tuple(value.shape)} {value.dtype}".encode() + content.numpy().tobytes())
    return overall.hexdigest()


def stages_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Number and module of every stage, found by its name ``layers.<number>``."""
    for name, module in model.named_modules():
        if found := _STAGE.fullmatch(name):
            yield found[1], module


@contextmanager
def listening(model: nn.Module, *, wanted: bool) -> Iterator[dict[str, Tensor]]:
    """Collect what each stage gives while the model runs inside the block: number to map (B, H, W, C), where wanted."""
    maps: dict[str, Tensor] = {}

    def keep(number: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            maps[number] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(number)) for number, module in stages_of(model)] if wanted else []
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def logits_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the softened probabilities (B, K) from the teacher's, mean over B, in nats.

    Times the squared temperature, so that its gradient keeps its size as the temperature changes.

    Raises:
        SpecError: When the two name other numbers of classes.
    """
    if logits.shape != teacher_logits.shape:
        raise SpecError(
            f"The teacher gives logits {tuple(teacher_logits.shape)}, the model {tuple(logits.shape)}; expected the same classes."
        )
    own = F.log_softmax(logits.float() / temperature, dim=-1)
    theirs = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(own, theirs, reduction="batchmean", log_target=True) * temperature**2


def features_loss(maps: dict[str, Tensor], teacher_maps: dict[str, Tensor]) -> Tensor:
    """Squared difference of the stages' maps (B, H, W, C) over the teacher's mean square, mean over stages.

    Raises:
        SpecError: When a stage has another shape.
    """
    losses = []
    for number, theirs in teacher_maps.items():
        own = maps[number]
        if own.shape != theirs.shape:
            raise SpecError(
                f"Stage {number} gives {tuple(own.shape)} and the teacher's {tuple(theirs.shape)}; expected the same. Use a "
                "feature_weight of 0."
            )
        theirs = theirs.float()
        losses.append(F.mse_loss(own.float(), theirs) / theirs.square().mean().clamp(min=1e-12))
    return torch.stack(losses).mean()
