"""What a quantization is told."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from calibration.lints import STATISTICAL
from reference_model.config import SwinV2Config
from swinv2_deploy.errors import SpecError
from swinv2_deploy.modeling.sites import POLICIES, Policy, quantization_sites
from swinv2_deploy.training.spec import Precision, TrainSpec, fine_tuning

CALIBRATORS = ("max", "percentile", "entropy", "mse")

ACCEPTABLE = ("dead-head", *STATISTICAL)
"""Lints that ``accept`` may name; without the others there are no scales, or not this model's."""

Unsigned = Literal["auto", "always", "never"]

Ranges = Literal["frozen", "learned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeSpec:
    """How a model is quantized after training.

    Attributes:
        calibrator: How a site's range is chosen from what it saw.
        policy: Which sites are quantized.
        left: Sites, or blocks and stages by the beginning of their names, that stay in float.
        images: Calibration images, chosen evenly over the classes; None means all, 512 at most.
        batch_size: Images a forward pass while calibrating; None takes what fits into about 1 GiB.
        unsigned: Whether ``model_uint8.onnx`` is written: ``auto`` keeps it where it is measurably faster in ONNX Runtime here.
        sensitivity: Whether the drift of every site is measured, alone and left out.
        budget_drop: Top-1 accuracy that may be lost on images set aside, in points: sites are left in float until it holds.
        budget_sqnr: The same for the signal to noise of the first output there, in dB.
        tuning_images: Images set aside for the sweep and the search, of those that are not calibrated on.
        seed: Seed of the choice of images.
        strict: Whether a lint that only warns stops the quantization.
        accept: Names of lints that never stop it.
    """

    calibrator: str = "percentile"
    policy: Policy = "linear"
    left: tuple[str, ...] = ()
    images: int | None = None
    batch_size: int | None = None
    unsigned: Unsigned = "auto"
    sensitivity: bool = False
    budget_drop: float | None = None
    budget_sqnr: float | None = None
    tuning_images: int = 64
    seed: int = 0
    strict: bool = False
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.calibrator not in CALIBRATORS:
            raise SpecError(f"There is no calibrator {self.calibrator!r}; expected one of {', '.join(CALIBRATORS)}.")
        if self.policy not in POLICIES:
            raise SpecError(f"There is no policy {self.policy!r}; expected one of {', '.join(POLICIES)}.")
        if self.unsigned not in ("auto", "always", "never"):
            raise SpecError(f"unsigned is {self.unsigned!r}; expected auto, always or never.")
        if any(value is not None and value < 1 for value in (self.batch_size, self.images)):
            raise SpecError(f"images is {self.images} and batch_size {self.batch_size}; both must be at least 1.")
        if self.tuning_images < 8:
            raise SpecError(f"tuning_images is {self.tuning_images}; expected at least 8.")
        for name in ("budget_drop", "budget_sqnr"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise SpecError(f"{name} is {value}; expected a finite number.")
        for code in self.accept:
            if code not in ACCEPTABLE:
                raise SpecError(f"The lint {code!r} cannot be accepted; expected one of {', '.join(ACCEPTABLE)}.")

    def sites(self, config: SwinV2Config) -> tuple[str, ...]:
        """Sites of a model that are quantized, in the order they run.

        Raises:
            SpecError: When a name to leave in float is of no site, or there is nothing to quantize.
        """
        every = quantization_sites(config, self.policy)
        if not every:
            raise SpecError("This backbone returns the stem alone, behind no block, so there is nothing to quantize.")
        for name in self.left:
            if not any(_within(site, name) for site in every):
                nearest = difflib.get_close_matches(name, every, n=1, cutoff=0.0)[0]
                raise SpecError(
                    f"--float {name} is no site of the policy {self.policy}, and the beginning of none; did you mean {nearest}?"
                )
        kept = tuple(site for site in every if not any(_within(site, name) for name in self.left))
        if not kept:
            raise SpecError("--float leaves every site in float, so there is nothing to quantize; name fewer.")
        return kept

    @property
    def searches(self) -> bool:
        """Whether sites are measured one by one."""
        return self.sensitivity or self.budget_drop is not None or self.budget_sqnr is not None

    def batch_for(self, size: tuple[int, int]) -> int:
        """Images a forward pass at (height, width) in px: as many as have the pixels of eight 256-px images, 16 at most."""
        return self.batch_size or min(16, max(1, 8 * 256 * 256 // (size[0] * size[1])))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def _within(site: str, name: str) -> bool:
    return site == name or site.startswith(f"{name}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class QatSpec:
    """How a model is trained with its rounding.

    Attributes:
        epochs: Passes over the images.
        learning_rate: Peak of the cosine schedule, which ends at a hundredth of it.
        batch_size: Images a step.
        ranges: Whether the ranges of activations stay as calibrated or are trained too.
        distill_weight: Share of the loss that follows the FP32 model's logits instead of the labels, in [0, 1].
        temperature: Divides both models' logits before they are compared.
        crop_scale: Smallest share of the area a random crop keeps.
        precision: ``fp32`` or ``bf16``.
        checkpoint_every: Steps between checkpoints within an epoch; 0 keeps only the ends of epochs.
        checkpoint_blocks: Recompute blocks for the gradient instead of keeping what is inside them.
        window_chunk: Windows attended to at a time; 0 takes all.
        seed: Seeds order and augmentation.
    """

    epochs: int = 1
    learning_rate: float = 1e-6
    batch_size: int = 32
    ranges: Ranges = "frozen"
    distill_weight: float = 1.0
    temperature: float = 2.0
    crop_scale: float = 0.6
    precision: Precision = "fp32"
    checkpoint_every: int = 50
    checkpoint_blocks: bool = False
    window_chunk: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ranges not in get_args(Ranges):
            raise SpecError(f"ranges is {self.ranges!r}; expected one of {list(get_args(Ranges))}.")
        self.recipe(8)  # which checks the rest

    def recipe(self, resolution: int) -> TrainSpec:
        """The training recipe at a resolution in px: mild augmentation, nothing mixed, no stochastic depth."""
        return fine_tuning(
            resolution,
            self.epochs,
            self.learning_rate,
            batch_size=self.batch_size,
            weight_decay=0.0,
            crop_scale=self.crop_scale,
            color_jitter=0.1,
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


def as_ranges(text: str) -> Ranges:
    """The option's text; :class:`QatSpec` checks it."""
    return cast("Ranges", text)


def as_policy(text: str) -> Policy:
    """The option's text as a policy; :class:`QuantizeSpec` checks it."""
    return cast("Policy", text)


def as_unsigned(text: str) -> Unsigned:
    """The option's text; :class:`QuantizeSpec` checks it."""
    return cast("Unsigned", text)
