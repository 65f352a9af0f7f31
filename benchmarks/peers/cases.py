"""The models that are measured. No torch import."""

from __future__ import annotations

from dataclasses import dataclass

from reference_model.config import SwinV2Config
from reference_model.variants import VARIANTS

SEED = 0
"""Of the weights; images take the seeds after it."""
CALIBRATION_IMAGES = 16
DRIFT_IMAGES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One model at the resolution it was published for.

    Attributes:
        name: How ``--models`` names it.
        variant: Published variant whose architecture it has.
        batches: Batch sizes measured unless ``--batches`` says otherwise.
    """

    name: str
    variant: str
    batches: tuple[int, ...]

    @property
    def config(self) -> SwinV2Config:
        """Architecture."""
        return VARIANTS[self.variant].config

    @property
    def timm_name(self) -> str:
        """Architecture's name in timm, without the tag of its weights."""
        return VARIANTS[self.variant].timm_id.split(".")[0]


CASES = {
    case.name: case
    for case in (
        Case(name="tiny-256", variant="swinv2-tiny-patch4-window8-256", batches=(1, 8)),
        Case(name="base-384", variant="swinv2-base-patch4-window12to24-192to384-22kto1k-ft", batches=(1,)),
    )
}
