"""What a pruning is told. No torch import."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from swinv2_deploy.errors import SpecError
from swinv2_deploy.training.spec import Precision, TrainSpec, fine_tuning

Criterion = Literal["taylor", "activation", "magnitude", "random"]

Measure = Literal["params", "macs", "heads", "latency"]

CRITERIA: dict[Criterion, str] = {
    "taylor": "expected square of what the loss would change by, to first order",
    "activation": "what the unit adds to its layer's output, as a share",
    "magnitude": "the unit's weights, as a share of its layer's",
    "random": "chance, to compare with",
}
"""Ways to judge heads and hidden units."""

MEASURES: dict[Measure, str] = {
    "params": "parameters of the whole model",
    "macs": "multiplications and additions for one image",
    "heads": "attention heads, and nothing else",
    "latency": "milliseconds in ONNX Runtime on this machine, from a table of measured blocks",
}
"""What a budget can be stated in."""


RATE = 4e-4
"""Peak learning rate of a recovery over the share of the parameters that went; docs/methods/pruning.md has the measurement."""

SMALLEST = 0.05
"""Share that a smaller cut counts as."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneSpec:
    """Which share of what is removed, and how units are judged.

    Attributes:
        measure: What the budget is stated in.
        share: Part of it that goes, in [0, 1).
        criterion: How units are judged.
        images: Images that importance is measured on; fewer where there are fewer.
        batch_size: Images a pass; None takes what fits into about 1 GiB.
        size: (height, width) in px that MACs and latency are counted at; None means the model's own.
        multiple: Hidden units of a block stay a multiple of this.
        min_heads: Heads that every block keeps.
        min_hidden: Hidden units that every block keeps.
        check_heads: Heads that are also left out one at a time, to see whether the ranking holds.
        seed: Seed of the choice of images and of everything random.
    """

    measure: Measure
    share: float
    criterion: Criterion = "taylor"
    images: int = 256
    batch_size: int | None = None
    size: tuple[int, int] | None = None
    multiple: int = 8
    min_heads: int = 1
    min_hidden: int = 32
    check_heads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.measure not in get_args(Measure):
            raise SpecError(f"The budget is stated in {self.measure!r}; expected one of {', '.join(MEASURES)}.")
        if not 0 <= self.share < 1:
            raise SpecError(
                f"The share to remove is {self.share}; expected a number from 0 to below 1, such as 0.25 for a quarter."
            )
        if self.criterion not in get_args(Criterion):
            raise SpecError(f"There is no criterion {self.criterion!r}; expected one of {', '.join(CRITERIA)}.")
        for name in ("images", "multiple", "min_heads", "min_hidden"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.batch_size is not None and self.batch_size < 1:
            raise SpecError(f"batch_size is {self.batch_size}; expected at least 1.")
        if self.size is not None and min(self.size) < 1:
            raise SpecError(f"size is {self.size}; expected (height, width) in px.")
        if self.check_heads < 0 or self.seed < 0:
            raise SpecError(f"check_heads is {self.check_heads} and seed {self.seed}; expected whole numbers from 0.")

    def batch_for(self, size: tuple[int, int]) -> int:
        """Images a pass at (height, width) in px: as many as have the pixels of four 256-px images, 16 at most."""
        return self.batch_size or min(16, max(1, 4 * 256 * 256 // (size[0] * size[1])))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoverSpec:
    """How a pruned model is trained, from the model it was cut from.

    Attributes:
        epochs: Passes over the images after the last cut.
        steps: Cuts on the way to the budget; between two of them the model is trained as well.
        between_epochs: Passes over the images between two cuts.
        learning_rate: Peak of the cosine schedule, which ends at a hundredth of it; None takes :data:`RATE` times the share of the
            parameters that went, for a large cut has more to learn and a small one more to lose.
        batch_size: Images a step.
        distill_weight: Share of the loss that follows the unpruned model's logits instead of the labels, in [0, 1].
        temperature: Divides both models' logits before they are compared.
        feature_weight: Weight of the difference from the unpruned model's stages, added to the loss.
        crop_scale: Smallest share of the area a random crop keeps.
        mixup: Probability that a batch is mixed pixel by pixel.
        precision: ``fp32`` or ``bf16``.
        checkpoint_every: Steps between checkpoints within an epoch; 0 keeps only the ends of epochs.
        checkpoint_blocks: Recompute blocks for the gradient instead of keeping what is inside them.
        window_chunk: Windows attended to at a time; 0 takes all.
        seed: Seeds order and augmentation.
    """

    epochs: int = 3
    steps: int = 1
    between_epochs: int = 1
    learning_rate: float | None = None
    batch_size: int = 32
    distill_weight: float = 1.0
    temperature: float = 2.0
    feature_weight: float = 0.0
    crop_scale: float = 0.6
    mixup: float = 0.0
    precision: Precision = "fp32"
    checkpoint_every: int = 50
    checkpoint_blocks: bool = False
    window_chunk: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.between_epochs < 1:
            raise SpecError(f"steps is {self.steps} and between_epochs {self.between_epochs}; expected at least 1 of both.")
        if self.learning_rate is not None and not math.isfinite(self.learning_rate):
            raise SpecError(f"learning_rate is {self.learning_rate}; expected a positive number.")
        self.recipe(8, self.epochs)  # which checks the rest

    def rate(self, removed: float) -> float:
        """Peak learning rate after a share of the parameters was removed."""
        return self.learning_rate if self.learning_rate is not None else RATE * max(removed, SMALLEST)

    def recipe(self, resolution: int, epochs: int, removed: float = 0.0) -> TrainSpec:
        """The training recipe at a resolution in px, after a share of the parameters was removed."""
        rate = self.rate(removed)
        return fine_tuning(
            resolution,
            epochs,
            rate,
            batch_size=self.batch_size,
            weight_decay=0.05,
            mixup=self.mixup,
            feature_weight=self.feature_weight,
            crop_scale=self.crop_scale,
            color_jitter=0.2,
            distill_weight=self.distill_weight,
            temperature=self.temperature,
            checkpoint_every=self.checkpoint_every,
            checkpoint_blocks=self.checkpoint_blocks,
            window_chunk=self.window_chunk,
            precision=self.precision,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def as_criterion(text: str) -> Criterion:
    """The option's text; :class:`PruneSpec` checks it."""
    return cast("Criterion", text)
