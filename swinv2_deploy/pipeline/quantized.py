"""Quantization-aware training between calibration and the INT8 graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibration.dataset import ImageFolder
from calibration.table import CalibrationTable
from reference_model.model import SwinV2
from swinv2_deploy.artifacts import ModelArtifact, WeightsOrigin
from swinv2_deploy.errors import QuantizeError
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.pruned import read_record
from swinv2_deploy.pipeline.exported import export_like
from swinv2_deploy.quantize.calibrate import Progress
from swinv2_deploy.quantize.ptq import QuantizeResult, quantize
from swinv2_deploy.quantize.qat import Report, Retrained, train_quantized
from swinv2_deploy.quantize.spec import QatSpec, QuantizeSpec
from swinv2_deploy.training.start import also_seen, seen_by


def quantize_aware(
    artifact: ModelArtifact,
    spec: QuantizeSpec,
    qat: QatSpec,
    images: ImageFolder,
    path: Path,
    *,
    run: Path,
    teacher: ModelArtifact | None = None,
    table: CalibrationTable | None = None,
    force: bool = False,
    progress: Progress | None = None,
    searched: Progress = lambda done, total: None,
    report: Report | None = None,
    stop: Callable[[], int] | None = None,
) -> QuantizeResult:
    """Calibrate, train with the rounding, export what the model became, and write it in INT8 beside the FP32 model it came from.

    Args:
        artifact: Artifact of a classifier with ``onnx/model.onnx``.
        spec: How to calibrate, and which sites.
        qat: How to train.
        images: Labeled photographs to calibrate and train on; never those that accuracy is judged on.
        path: Artifact folder to make.
        run: Folder of the training's checkpoint; a run found there goes on.
        teacher: Artifact to learn from; None means the artifact itself. One that was pruned and not trained since needs the
            artifact it was cut from: its own weights are nothing to live up to, and those trained here take their place.
        table: Ranges measured before, instead of measuring them.
        force: Whether an artifact that is already there is replaced.
        progress: Called with images calibrated and in all.
        searched: Called with measurements of a sweep done and in all.
        report: Called after every step and epoch of the training.
        stop: Asked after every step; the number of a signal ends the run with a checkpoint.

    Raises:
        QuantizeError: When the model is no classifier.
        SpecError: When the images do not fit the model.
        TrainingError: When training fails.
        TrainingStopped: When ``stop`` asked for it.
        ArtifactError: When the artifact cannot be read or the folder not be written.
    """
    if artifact.config.task != "classification":
        raise QuantizeError(
            f"{artifact.path} is a model for {artifact.config.task}; quantization-aware training needs a classifier and labeled "
            "images. Use --method ptq."
        )

    record = read_record(artifact)
    instead = record is not None and not record.recovered
    if instead and teacher is None:
        raise QuantizeError(
            f"{artifact.path} was pruned and not trained since; it learns from the model it was cut from. Name it."
        )
    learned_from = None if teacher is None else load_model(teacher)

    @contextmanager
    def train(model: SwinV2, ranges: CalibrationTable) -> Iterator[Retrained]:
        result = train_quantized(
            model, ranges, qat, images, artifact.preprocessing, run, teacher=learned_from, report=report, stop=stop
        )
        with tempfile.TemporaryDirectory() as folder:
            exported = export_like(artifact, result.form.model, Path(folder) / "trained")
            yield Retrained(
                form=result.form,
                onnx=exported.path / "onnx",
                history=result.history,
                seen=also_seen(seen_by(artifact), images.manifest().files, "qat"),
                gain=result.gain,
                instead=instead,
            )

    recipe: dict[str, Any] = {"qat": qat.to_dict()}
    weights = None
    if teacher is not None:
        recipe["teacher"] = {"name": teacher.name, "sha256": teacher.sha256}
    if instead and artifact.lineage.weights.trained:
        source = f"{artifact.name}, trained with its rounding"
        weights = WeightsOrigin(kind="trained", source=source, sha256=images.manifest().sha256)
    return quantize(
        artifact,
        spec,
        images,
        path,
        table=table,
        force=force,
        progress=progress,
        searched=searched,
        train=train,
        recipe=recipe,
        weights=weights,
    )
