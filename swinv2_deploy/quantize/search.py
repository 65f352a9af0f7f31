"""The sweep and the search of a quantization: on images that were neither calibrated on nor will be judged on."""

from __future__ import annotations

from collections.abc import Mapping

from calibration.dataset import ImageFolder
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.errors import QuantizeError
from swinv2_deploy.quantize.calibrate import Progress
from swinv2_deploy.quantize.drift import DriftProbe, known_labels, load_images
from swinv2_deploy.quantize.sensitivity import Budget, Choice, Sensitivity, cheapest, sweep
from swinv2_deploy.quantize.spec import QuantizeSpec

FEWEST = 8
"""Images below which a sweep says too little."""


def unused(images: ImageFolder, chosen: ImageFolder, count: int, seed: int) -> ImageFolder:
    """Up to ``count`` images of a folder that were not chosen before.

    Raises:
        QuantizeError: When there are too few.
    """
    taken = set(chosen.names)
    rest = ImageFolder(images.root, tuple(name for name in images.names if name not in taken), images.classes)
    if len(rest) < FEWEST:
        raise QuantizeError(
            f"{len(chosen)} of the {len(images)} images in {images.root} are calibrated on, which leaves {len(rest)} for the "
            f"sweep; expected at least {FEWEST}. Calibrate on fewer with --images, or give more images with --data."
        )
    return rest.select(min(count, len(rest)), seed)


def search(
    model: SwinV2,
    preprocessing: Preprocessing,
    ranges: Mapping[str, float],
    images: ImageFolder,
    spec: QuantizeSpec,
    progress: Progress,
) -> tuple[Sensitivity, Choice | None]:
    """Sweep all sites, and choose some where there is a budget.

    Args:
        model: Reference model in float.
        preprocessing: What images go through.
        ranges: Largest magnitude of every activation that enters a site, by name.
        images: Images to measure on.
        spec: How to quantize.
        progress: Called with measurements of the sweep done and in all.

    Raises:
        QuantizeError: When the budget cannot be met, or asks for accuracy without labels.
    """
    batches = load_images(images, preprocessing, spec.batch_for(preprocessing.size))
    probe = DriftProbe(model, ranges, batches, known_labels(images, model.config.labels))
    budget = Budget(drop=spec.budget_drop, sqnr_db=spec.budget_sqnr)
    if budget.asks:
        budget.holds(probe(()))  # refuses a budget that cannot be measured before the sweep
    found = sweep(probe, progress)
    return found, cheapest(probe, found, budget) if budget.asks else None
