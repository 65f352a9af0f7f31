"""What a quantization is told. No torch import."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from calibration.lints import STATISTICAL
from swinv2_deploy.errors import SpecError
from swinv2_deploy.modeling.sites import POLICIES, Policy

CALIBRATORS = ("max", "percentile", "entropy", "mse")

ACCEPTABLE = ("dead-head", *STATISTICAL)
"""Lints that ``accept`` may name; without the others there are no scales, or not this model's."""

Unsigned = Literal["auto", "always", "never"]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeSpec:
    """How a model is quantized after training.

    Attributes:
        calibrator: How a site's range is chosen from what it saw.
        policy: Which sites are quantized.
        images: Calibration images, chosen evenly over the classes; None means all, 512 at most.
        batch_size: Images a forward pass while calibrating; None takes what fits into about 1 GiB.
        unsigned: Whether ``model_uint8.onnx`` is written: ``auto`` keeps it where it is measurably faster in ONNX Runtime here.
        seed: Seed of the choice of images.
        strict: Whether a lint that only warns stops the quantization.
        accept: Names of lints that never stop it.
    """

    calibrator: str = "percentile"
    policy: Policy = "linear"
    images: int | None = None
    batch_size: int | None = None
    unsigned: Unsigned = "auto"
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
        for code in self.accept:
            if code not in ACCEPTABLE:
                raise SpecError(f"The lint {code!r} cannot be accepted; expected one of {', '.join(ACCEPTABLE)}.")

    def batch_for(self, size: tuple[int, int]) -> int:
        """Images a forward pass at (height, width) in px: as many as have the pixels of eight 256-px images, 16 at most."""
        return self.batch_size or min(16, max(1, 8 * 256 * 256 // (size[0] * size[1])))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def as_policy(text: str) -> Policy:
    """The option's text as a policy; :class:`QuantizeSpec` checks it."""
    return cast("Policy", text)


def as_unsigned(text: str) -> Unsigned:
    """The option's text; :class:`QuantizeSpec` checks it."""
    return cast("Unsigned", text)
