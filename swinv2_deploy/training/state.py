"""Everything a run needs to go on, as tensors and numbers, and the way back to an earlier moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_deploy.errors import TrainingError
from swinv2_deploy.training.sharding import cut_like, own_part, part_like


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment to go back to, in main memory.

    Attributes:
        tensors: What :meth:`TrainingState.tensors` gave, copied; of a sharded model, what this process holds of it.
        step: Steps finished then.
        loss_sum: Sum of the losses of its epoch until then.
    """

    tensors: dict[str, Tensor]
    step: int
    loss_sum: float


@dataclass(slots=True)
class TrainingState:
    """Everything a run needs to go on.

    Attributes:
        model: The module being trained, with its buffers.
        average: Moving average of its parameters, by name.
        optimizer: AdamW over its parameters.
        epoch: Epochs finished.
        step: Steps finished.
        loss_sum: Sum of the losses of the epoch that is under way.
        history: One record an epoch.
        rate_factor: What the schedule's learning rate is multiplied by since the last rollback.
        rollbacks: One record each.
        snapshot: Last good state; None where the recipe never goes back.
    """

    model: nn.Module
    average: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    rate_factor: float = 1.0
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    snapshot: Snapshot | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: ``model.``, its whole state; ``average.``; ``optimizer.<what>.``. Parted where the model is sharded.

        Raises:
            TrainingError: When the model keeps something that is no tensor.
        """
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        foreign = [name for name, value in found.items() if not isinstance(value, Tensor)]
        if foreign:
            raise TrainingError(
                f"The model's state holds {foreign}, which are no tensors; expected parameters and buffers only."
            )
        found |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        return {name: value.detach() for name, value in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave, parted or whole, in place.

        Raises:
            RuntimeError: When names or shapes are not those of this model, as ``load_state_dict`` does.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        own = self.model.state_dict()
        self.model.load_state_dict({name: cut_like(value, own.get(name, value)) for name, value in parts["model"].items()})
        parameters = dict(self.model.named_parameters())
        shapes = {name: tuple(value.shape) for name, value in parts["average"].items()}
        if shapes != {name: tuple(parameter.shape) for name, parameter in parameters.items()}:
            raise RuntimeError("its averages have other names or shapes")
        for name, value in parts["average"].items():
            self.average[name].copy_(cut_like(value, self.average[name]))
        self.optimizer.state.clear()
        for name, value in parts["optimizer"].items():
            key, _, parameter_name = name.partition(".")
            parameter = parameters[parameter_name]
            if key == "step":  # which AdamW counts in main memory
                self.optimizer.state[parameter][key] = value.to("cpu", copy=True)
            else:
                self.optimizer.state[parameter][key] = cut_like(value.to(parameter.device, copy=True), parameter)

    def remember(self) -> None:
        """Make this moment the last good state."""
        copied = {name: own_part(value).to("cpu", copy=True).contiguous() for name, value in self.tensors().items()}
        self.snapshot = Snapshot(copied, self.step, self.loss_sum)

    def earlier(self) -> dict[str, Tensor]:
        """The last good state as :meth:`tensors` gave it, parted where the model is sharded; nothing where there is none."""
        if self.snapshot is None:
            return {}
        now = self.tensors()
        return {name: part_like(value, now[name]) for name, value in self.snapshot.tensors.items()}

    def roll_back(self, cause: str, factor: float) -> dict[str, Any]:
        """Go back to the last good state and lower the learning rate; returns the record of it.

        Args:
            cause: What was no finite number, with its value.
            factor: What the learning rate is multiplied by from here on.

        Raises:
            TrainingError: When there is no such state.
        """
        if self.snapshot is None:
            raise TrainingError(f"{cause} at step {self.step}, and no earlier state was kept; lower the learning rate.")
        self.rate_factor *= factor
        record = {
            "step": self.step,
            "back_to": self.snapshot.step,
            "cause": cause,
            "learning_rate_factor": self.rate_factor,
        }
        self.rollbacks.append(record)
        self.restore(self.earlier())
        self.step, self.loss_sum = self.snapshot.step, self.snapshot.loss_sum
        return record

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average towards the parameters."""
        # Early on the plain mean of the steps so far is better than a long memory of the initialization.
        decay = min(decay, self.step / (self.step + 10))
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter, 1 - decay)
