"""Quantization-aware training: the model learns to live with the rounding of its sites, from its own FP32 form.

The student starts as the model with fake quantizers at its sites, their ranges from calibration; the teacher is the model as it
was. What is left at the end is the plain network with other weights, and a range a site: what the exporter writes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.dataset import ImageFolder
from calibration.table import CalibrationTable
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import write_json
from swinv2_deploy.modeling.fake_quant import fake_quantize, plain_state, ranges_of
from swinv2_deploy.modeling.trained import TRAINED_WEIGHTS, TrainedForm
from swinv2_deploy.quantize.drift import SiteDrift, drift_between
from swinv2_deploy.quantize.spec import QatSpec
from swinv2_deploy.training import TrainSpec, train
from swinv2_deploy.training.checkpoint import same_beginning
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.finish import numbered, split_images, square_side
from swinv2_deploy.training.start import MANIFEST

Report = Callable[[dict[str, Any]], None]
HISTORY = "qat_history.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """Drift from the FP32 model before and after training, on images that were not trained on.

    Attributes:
        before: Rounded as calibrated.
        after: Rounded as trained.
        images: How many images.
    """

    before: SiteDrift
    after: SiteDrift
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class QatResult:
    """What a quantization-aware training made.

    Attributes:
        form: Trained weights and ranges.
        history: One record an epoch; accuracy is that of the rounded model on the images set aside.
        spec: The recipe that ran.
        gain: What training brought on the images set aside; None where there are none.
    """

    form: TrainedForm
    history: list[dict[str, Any]]
    spec: TrainSpec
    gain: Gain | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrained:
    """A trained model with its graphs, as the quantize stage takes it.

    Attributes:
        form: Weights and ranges.
        onnx: Folder with an FP32 graph of those weights for every FP32 graph of the artifact, under the same name.
        history: One record an epoch.
        seen: Hash of every image that was ever trained on, by name.
        gain: What training brought on the images set aside.
        instead: Whether the trained weights, in float, take the place of those that the artifact has: these were pruned and not
            trained since, and so are nothing to measure drift from.
    """

    form: TrainedForm
    onnx: Path
    history: list[dict[str, Any]]
    seen: Mapping[str, str]
    gain: Gain | None = None
    instead: bool = False

    def write(self, folder: Path) -> None:
        """Put weights, ranges, history and the images seen into an artifact that is being made."""
        self.form.save(folder / TRAINED_WEIGHTS)
        write_json(folder / HISTORY, self.history)
        write_json(folder / MANIFEST, {"files": dict(self.seen)})


Trainer = Callable[[SwinV2, CalibrationTable], AbstractContextManager[Retrained]]
"""From the model and the ranges of its sites to what training made of them, whose graphs exist while the context lasts."""


def train_quantized(
    model: SwinV2,
    table: CalibrationTable,
    spec: QatSpec,
    images: ImageFolder,
    preprocessing: Preprocessing,
    folder: Path,
    *,
    teacher: SwinV2 | None = None,
    report: Report | None = None,
    stop: Callable[[], int] | None = None,
) -> QatResult:
    """Train a copy of a classifier with fake quantizers; a checkpoint in ``folder`` is gone on from.

    Args:
        model: Classifier in float that training starts from.
        table: Ranges of its sites.
        spec: How to train.
        images: Labeled photographs, in folders named as the model's classes.
        preprocessing: What images go through when the model is used.
        folder: Where the checkpoint lives.
        teacher: Classifier to learn from; None means the model itself, as it is.
        report: Called after every step and epoch.
        stop: Asked after every step; the number of a signal ends the run with a checkpoint.

    Raises:
        SpecError: When the images have other classes than the model, or its input is not square.
        TrainingError: When training fails.
        TrainingStopped: When ``stop`` asked for it.
    """
    recipe = spec.recipe(square_side(preprocessing))
    begun = json.dumps(table.amax, indent=2)
    same_beginning(folder, "ranges.json", begun, "other ranges than those of this calibration", "images, calibrator and policy")
    training, tuning = split_images(numbered(images, model.config.labels), recipe)
    student, wanted = copy.deepcopy(model), model if teacher is None else teacher
    fake_quantize(student, table.amax, learned=spec.ranges == "learned")
    result = train(
        student,
        recipe,
        training=training,
        tuning=tuning,
        preprocessing=preprocessing,
        folder=folder,
        teacher=wanted if recipe.distills else None,
        report=report,
        stop=stop,
        measure_every=1,
    )
    plain = copy.deepcopy(model)
    plain.load_state_dict(plain_state(result.model))
    form = TrainedForm(model=plain.eval(), ranges=ranges_of(result.model))
    untrained = TrainedForm(model=model, ranges=table.amax)
    return QatResult(
        form=form,
        history=result.history,
        spec=recipe,
        gain=_gain(wanted, untrained, form, tuning, preprocessing) if len(tuning) else None,
    )


@torch.no_grad()
def _gain(model: SwinV2, before: TrainedForm, after: TrainedForm, images: TrainingImages, preprocessing: Preprocessing) -> Gain:
    batches = [
        torch.from_numpy(np.stack([preprocessing(image) for image in images.images[start : start + 16]]))
        for start in range(0, len(images), 16)
    ]
    model.eval()
    labels = torch.from_numpy(images.classes)
    expected, *found = (
        torch.cat([form(batch) for batch in batches]) for form in (model, before.fake_quantized(), after.fake_quantized())
    )
    drifts = [drift_between(expected, outputs, labels, classifies=True) for outputs in found]
    return Gain(before=drifts[0], after=drifts[1], images=len(images))
