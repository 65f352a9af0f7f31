"""What a training run is told: one frozen description, validated once. No torch import."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from swinv2_deploy.errors import SpecError

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of the run at one resolution.

    Attributes:
        resolution: Side of the square input in px.
        share: Part of all epochs, in (0, 1].
    """

    resolution: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSpec:
    """Recipe of a training run.

    Attributes:
        epochs: Passes over the training images.
        phases: Resolutions in order; their shares add up to 1.
        batch_size: Images an optimizer step, over all processes and parts.
        accumulate: Parts each process cuts its share of the batch into, whose gradients are summed: the same step in less memory.
        learning_rate: Peak of the cosine schedule.
        final_learning_rate: Its end.
        warmup_epochs: Epochs of linear warm-up from zero.
        layer_decay: Factor between the learning rates of a block and the one above it, in (0, 1]; 1 gives all the same.
        weight_decay: Decoupled decay of matrices; vectors, gains and the position-bias MLP have none.
        label_smoothing: Mass spread over all classes.
        mixup: Probability that a batch is mixed pixel by pixel.
        cutmix: Probability that a batch has a box of each image swapped; together with ``mixup`` at most 1.
        crop_scale: Smallest share of the area a random crop keeps.
        color_jitter: Largest relative change of brightness, contrast and saturation.
        erase: Probability that a box of an image is blanked.
        drop_path: Stochastic depth of the last block.
        ema_decay: Decay a step of the averaged weights that are kept; 0 keeps the raw weights.
        clip_norm: Largest global gradient norm.
        distill_weight: Share of the loss that follows the teacher's logits instead of the labels, in [0, 1]; 0 needs no teacher.
        temperature: Divides both models' logits before they are compared.
        feature_weight: Weight of the difference from the teacher's stages, added to the loss; 0 leaves them out.
        max_rollbacks: How often a run goes back to its last good state when loss or gradient is no finite number.
        rollback_factor: What the learning rate is multiplied by each time.
        checkpoint_every: Steps between checkpoints within an epoch, and between the states a run can go back to; 0 keeps only the
            ends of epochs.
        checkpoint_blocks: Recompute blocks for the gradient instead of keeping what is inside them.
        window_chunk: Windows attended to at a time; 0 takes all.
        precision: ``bf16`` runs matrix products in bfloat16, attention logits in float32.
        tune_share: Share of the training images, chosen by content hash, set aside to watch accuracy and never trained on.
        seed: Seeds order, augmentation, initialization and stochastic depth.
    """

    epochs: int = 120
    phases: tuple[Phase, ...]
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    mixup: float = 0.2
    cutmix: float = 0.3
    crop_scale: float = 0.4
    color_jitter: float = 0.3
    erase: float = 0.2
    drop_path: float = 0.1
    ema_decay: float = 0.998
    clip_norm: float = 5.0
    accumulate: int = 1
    layer_decay: float = 1.0
    distill_weight: float = 0.0
    temperature: float = 2.0
    feature_weight: float = 0.0
    max_rollbacks: int = 3
    rollback_factor: float = 0.5
    checkpoint_every: int = 0
    checkpoint_blocks: bool = False
    window_chunk: int = 0
    precision: Precision = "fp32"
    tune_share: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise SpecError(f"epochs is {self.epochs} and batch_size {self.batch_size}; both must be at least 1.")
        if not self.phases or not abs(sum(phase.share for phase in self.phases) - 1) <= 1e-6:
            raise SpecError(f"phases {self.phases} must have shares that add up to 1, for example 96:0.7,128:0.3.")
        if min(phase.share for phase in self.phases) <= 0 or min(phase.resolution for phase in self.phases) < 8:
            raise SpecError(f"phases {self.phases} need a positive share and at least 8 px each.")
        shares = ("label_smoothing", "mixup", "cutmix", "erase", "drop_path", "tune_share", "ema_decay", "color_jitter")
        for name in shares:
            if not 0 <= getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; expected a number in [0, 1).")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise SpecError(
                f"accumulate is {self.accumulate}; expected a number of equal parts of a batch of {self.batch_size} images."
            )
        for name in ("max_rollbacks", "checkpoint_every", "window_chunk"):
            if getattr(self, name) < 0:
                raise SpecError(f"{name} is {getattr(self, name)}; expected a whole number from 0.")
        for name in ("layer_decay", "rollback_factor"):
            if not 0 < getattr(self, name) <= 1:
                raise SpecError(f"{name} is {getattr(self, name)}; expected a number in (0, 1].")
        if not 0 <= self.distill_weight <= 1:
            raise SpecError(f"distill_weight is {self.distill_weight}; expected a share of the loss, in [0, 1].")
        if not 0 < self.temperature < math.inf:
            raise SpecError(f"temperature is {self.temperature}; expected a positive number.")
        if self.mixup + self.cutmix > 1:
            raise SpecError(
                f"mixup {self.mixup} and cutmix {self.cutmix} are probabilities of one choice; their sum is above 1."
            )
        if not 0 < self.crop_scale <= 1:
            raise SpecError(f"crop_scale is {self.crop_scale}; expected a number in (0, 1].")
        if not 0 <= self.final_learning_rate <= self.learning_rate or not 0 < self.learning_rate < math.inf:
            raise SpecError(
                f"learning_rate is {self.learning_rate}; expected a positive number, not below final_learning_rate "
                f"{self.final_learning_rate}."
            )
        if not 0 < self.clip_norm < math.inf:
            raise SpecError(f"clip_norm is {self.clip_norm}; expected a positive number.")
        for name in ("warmup_epochs", "weight_decay", "feature_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"{name} is {getattr(self, name)}; expected a number from 0.")
        if self.seed < 0:
            raise SpecError(f"seed is {self.seed}; expected a whole number from 0.")
        if self.precision not in ("fp32", "bf16"):
            raise SpecError(f"precision is {self.precision!r}; expected 'fp32' or 'bf16'.")

    def resolution_at(self, epoch: int) -> int:
        """Resolution in px of an epoch, counted from 0."""
        end = 0.0
        for phase in self.phases:
            end += phase.share
            if epoch < round(end * self.epochs):
                return phase.resolution
        return self.phases[-1].resolution

    @property
    def distills(self) -> bool:
        """Whether the loss asks a teacher."""
        return self.distill_weight > 0 or self.feature_weight > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainSpec:
        """A recipe as a lineage holds it. What an older version did not know yet has its default, which leaves it out.

        Raises:
            SpecError: When a setting is unknown or the recipe makes no sense.
        """
        unknown = sorted(set(content) - {field.name for field in fields(cls)})
        if unknown:
            raise SpecError(
                f"The recipe has settings {unknown} that this version does not know; use the version that wrote it."
            )
        return cls(**{**content, "phases": tuple(Phase(**phase) for phase in content["phases"])})


def fine_tuning(resolution: int, epochs: int, learning_rate: float, **others: Any) -> TrainSpec:
    """A recipe for weights that are nearly right: one resolution, a short warm-up, mild augmentation, no stochastic depth.

    Args:
        resolution: Side of the square input in px.
        epochs: Passes over the images.
        learning_rate: Peak of the cosine schedule, which ends at a hundredth of it.
        others: Further settings of the recipe.

    Raises:
        SpecError: When the recipe makes no sense.
    """
    mild = {"label_smoothing": 0.1, "mixup": 0.0, "cutmix": 0.0, "erase": 0.0, "drop_path": 0.0, "ema_decay": 0.99}
    return TrainSpec(
        epochs=epochs,
        phases=(Phase(resolution=resolution, share=1.0),),
        learning_rate=learning_rate,
        final_learning_rate=learning_rate / 100,
        warmup_epochs=min(0.5, epochs / 4),
        **mild | others,
    )


def parse_phases(text: str) -> tuple[Phase, ...]:
    """``"96:0.7,128:0.3"`` (or a lone ``"128"``) to phases.

    Raises:
        SpecError: When the text has another form.
    """
    phases = []
    try:
        for part in text.split(","):
            resolution, _, share = part.partition(":")
            phases.append(Phase(resolution=int(resolution), share=float(share) if share else 1.0))
    except ValueError as error:
        raise SpecError(f"{text!r} is not a list of resolutions; expected for example 96:0.7,128:0.3 or 128.") from error
    return tuple(phases)


def as_precision(text: str) -> Precision:
    """The option's text as a precision; :class:`TrainSpec` checks it."""
    return cast("Precision", text)
