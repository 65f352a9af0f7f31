"""From a failed gate to the block and the part that cause it: the images on which a candidate fails, and the gate as a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reference_model.preprocessing import read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import UnsupportedModelError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import TorchRunner, masks_for
from swinv2_deploy.runtime.graph_parts import GraphParts
from swinv2_deploy.runtime.load import preprocessing_for
from swinv2_deploy.runtime.runner import Array
from swinv2_deploy.verify.bisect import Bisection, Outputs, bisect
from swinv2_deploy.verify.gates import judge, tie_margin
from swinv2_deploy.verify.inputs import choose_images
from swinv2_deploy.verify.meter import DriftMeter
from swinv2_deploy.verify.metrics import class_names
from swinv2_deploy.verify.probes import probe_images, slot_size
from swinv2_deploy.verify.report import CandidateReport, Check, DriftReport, SlotDrift
from swinv2_deploy.verify.spec import VerifySpec

IMAGES = 32
"""Photographs that a bisection looks at; all of them where only accuracy failed."""

BATCH = 8


@dataclass(frozen=True, slots=True)
class _Case:
    """Batches (B, 3, H, W) with the names and classes of their images."""

    batches: list[Array]
    names: list[list[str]]
    labels: list[list[int | None]]


def find_culprit(artifact: ModelArtifact, spec: VerifySpec, report: DriftReport, candidate: CandidateReport) -> Bisection:
    """Bisect a candidate that failed.

    Args:
        artifact: Artifact that was verified.
        spec: How.
        report: What was found.
        candidate: The file that failed, run by ONNX Runtime.

    Raises:
        UnsupportedModelError: When it is run by another back end, takes photographs, its parts cannot be told, or what failed
            cannot be seen again on the images a bisection looks at.
    """
    if candidate.back_end != "onnxruntime":
        raise UnsupportedModelError(f"{candidate.label} cannot be taken apart; bisect the same file in ONNX Runtime.")
    failed = [check for check in candidate.checks if check.passed is False]
    if not failed:
        raise UnsupportedModelError(f"{candidate.label} passed; there is nothing to find.")
    parts = GraphParts(artifact.path / candidate.file, threads=spec.threads)
    model = load_model(artifact)
    case = _case(artifact, spec, parts, failed)
    reference = TorchRunner(model, threads=spec.threads, masks=masks_for(model.config))
    expected = [reference.run(images) for images in case.batches]
    tolerances = spec.tolerances[parts.facts.precision]
    classes = class_names(model.config)

    def passes(found: list[Outputs]) -> bool:
        meter = DriftMeter(classes, tie_margin(tolerances, report.noise))
        for names, labels, wanted, outputs in zip(case.names, case.labels, expected, found, strict=True):
            meter.add(names, labels, wanted, {name: outputs[name] for name in wanted})
        slots = SlotDrift(size=(0, 0), batch_sizes=(1,), max_abs=0.0, relative=0.0, worst=(1, 0))
        checks = judge(
            tolerances,
            outputs=meter.outputs(),
            classes=meter.class_drift(),
            nonfinite=meter.nonfinite,
            sweep=(),
            slots=slots,
            noise=report.noise,
            trained=artifact.lineage.weights.trained,
        )
        return all(check.passed is not False for check in checks)

    return bisect(parts, model, case.batches, passes)


def _case(artifact: ModelArtifact, spec: VerifySpec, parts: GraphParts, failed: Sequence[Check]) -> _Case:
    """Images on which it fails: photographs, a size of the sweep, or a batch with mixed rows."""
    recipe = preprocessing_for(artifact.preprocessing, parts.facts.resolutions)
    names = [check.name for check in failed]
    images = choose_images(artifact, spec)
    photo = read_image(images.folder.paths[0])
    sizes = [name.rpartition(" at ")[2] for name in names if " at " in name]
    if all(" at " in name or name == "batch slots" for name in names):
        if sizes:
            height, width = map(int, sizes[0].split("x"))
            batch = probe_images(photo, recipe, (height, width), spec.seed)
        else:
            size = slot_size(parts.facts.resolutions, recipe.size)
            rows = [probe_images(photo, recipe, size, spec.seed + number) for number in range(BATCH // 2)]
            batch = np.concatenate(rows)
        return _Case([batch], [[f"probe {row}" for row in range(len(batch))]], [[None] * len(batch)])
    only_accuracy = all(name == "top1 drop" for name in names)
    most = len(images) if only_accuracy else min(IMAGES, len(images))
    found = _Case([], [], [])
    for batch_of in images.batches(recipe, BATCH):
        found.batches.append(batch_of.images)
        found.names.append(list(batch_of.names))
        found.labels.append(list(batch_of.labels))
        if sum(map(len, found.names)) >= most:
            break
    return found
