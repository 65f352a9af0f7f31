"""The work of a pruning: cut at once or in steps, train, and judge every form on photographs it was not trained on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.dataset import ImageFolder
from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import UnsupportedModelError
from swinv2_deploy.modeling.io import WEIGHTS, load_model
from swinv2_deploy.pipeline.pruning_plan import PlannedPruning, Progress, costs_of, plan_for
from swinv2_deploy.prune.cost import figures_of, parameter_count
from swinv2_deploy.prune.cut import cut
from swinv2_deploy.prune.plan import whole
from swinv2_deploy.prune.spec import PruneSpec, RecoverSpec
from swinv2_deploy.training import train
from swinv2_deploy.training.accuracy import answers
from swinv2_deploy.training.checkpoint import same_beginning
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.distill import fingerprint
from swinv2_deploy.training.epochs import Report
from swinv2_deploy.training.finish import ROOM_FOR_CROPS, numbered, split_images, square_side
from swinv2_deploy.verify.statistics import Paired

Split = tuple[TrainingImages, TrainingImages]
"""Photographs to train on, and those set aside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """What a form of a pruned classifier makes of photographs it was not trained on.

    Attributes:
        form: ``before``, ``cut`` or ``recovered``.
        images: How many.
        top1: Share named rightly, in [0, 1].
        lost: Points lost to the model before.
        interval: Paired 95 % interval of them.
        agreement: Share named as before.
    """

    form: str
    images: int
    top1: float
    lost: float
    interval: tuple[float, float]
    agreement: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """Training of a cut classifier, from the model it was cut from.

    Attributes:
        spec: How to train.
        images: Labeled photographs to train on.
        teacher: Artifact with the unpruned weights.
        run: Folder of the checkpoints.
        report: Called after every step and epoch.
        stop: Asked after every step; the number of a signal ends the run with a checkpoint.
    """

    spec: RecoverSpec
    images: ImageFolder
    teacher: ModelArtifact
    run: Path
    report: Report | None = None
    stop: Callable[[], int] | None = None

    def refuse_unsuited(self, artifact: ModelArtifact) -> None:
        """See to it that a model can be trained on the photographs, before any work.

        Raises:
            UnsupportedModelError: When it is no classifier.
            SpecError: When the folders bear other names than its classes, or it takes no square images.
        """
        if artifact.config.task != "classification":
            raise UnsupportedModelError(
                f"{artifact.name} is a model for {artifact.config.task}; recovery trains classifiers. Prune with --no-recover and "
                "train the result in your own task."
            )
        numbered(self.images, artifact.config.labels)
        square_side(artifact.preprocessing)

    def split(self, config: SwinV2Config, preprocessing: Preprocessing) -> Split:
        """Photographs to train on, and those set aside."""
        recipe = self.spec.recipe(square_side(preprocessing), self.spec.epochs)
        return split_images(numbered(self.images, config.labels), recipe)

    def __call__(
        self, model: SwinV2, split: Split, preprocessing: Preprocessing, epochs: int, name: str
    ) -> tuple[SwinV2, list[dict[str, Any]]]:
        """Train a copy of a cut model; a run found in the folder ``name`` goes on. Returns it with one record an epoch.

        Args:
            model: Cut model.
            split: What :meth:`split` gave: decoded once, however often is trained.
            preprocessing: What images go through when the model is used.
            epochs: Passes over the images.
            name: Folder of the checkpoint within the run's.

        Raises:
            TrainingError: When training fails, or the run found is of another cut.
            TrainingStopped: When ``stop`` asked for it.
        """
        removed = 1 - parameter_count(model.config) / parameter_count(self.teacher.config)
        recipe = self.spec.recipe(square_side(preprocessing), epochs, removed)
        folder = self.run / name
        begun = json.dumps({"weights_sha256": fingerprint(model)})
        same_beginning(folder, "start.json", begun, "another cut", "model, images and budget")
        training, tuning = split
        result = train(
            copy.deepcopy(model),
            recipe,
            training=training,
            tuning=tuning,
            preprocessing=preprocessing,
            folder=folder,
            teacher=load_model(self.teacher) if recipe.distills else None,
            report=self.report,
            stop=self.stop,
            measure_every=1,
        )
        return result.model, result.history


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a pruning came to.

    Attributes:
        model: What is shipped.
        planned: What was removed in the end.
        accuracy: Of every form on the way.
        judged_on: Where the photographs for that are, in words; empty where there were none.
        history: One record an epoch.
    """

    model: SwinV2
    planned: PlannedPruning
    accuracy: tuple[Accuracy, ...]
    judged_on: str
    history: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One pruning under way.

    Attributes:
        artifact: Artifact that is pruned.
        planned: What goes; of a gradual pruning what would go at once.
        recovery: How it is trained afterwards, or None.
        held: Photographs to judge on; None judges on those that training sets aside.
        progress: Told about every step.
    """

    artifact: ModelArtifact
    planned: PlannedPruning
    recovery: Recovery | None
    held: ImageFolder | None
    progress: Progress

    def at_once(self) -> Outcome:
        """Cut, and train where that was asked for."""
        model = load_model(self.artifact)
        small = cut(model, self.planned.plan)
        return self._finish(model, small, self.planned, [], self._split())

    def _split(self) -> Split | None:
        recovery, artifact = self.recovery, self.artifact
        return None if recovery is None else recovery.split(artifact.config, artifact.preprocessing)

    def gradually(self, spec: PruneSpec, recovery: Recovery) -> Outcome:
        """Cut in steps, with training between them; importance is measured again before every cut."""
        artifact, planned, steps = self.artifact, self.planned, recovery.spec.steps
        original = current = load_model(artifact)
        costs = costs_of(original.config, spec, planned.size, planned.table)
        plan, step, history = whole(original.config), planned, list[dict[str, Any]]()
        split = recovery.split(artifact.config, artifact.preprocessing)
        for index in range(1, steps + 1):
            gone = plan.cost_removed(original.config, costs)
            left = replace(costs_of(current.config, spec, planned.size, planned.table), total=costs.total - gone)
            share = max(0.0, spec.share * index / steps * costs.total - gone) / left.total
            step = plan_for(artifact, current, spec, recovery.images, left, share, self.progress)
            plan = step.plan.after(plan)
            current = cut(current, step.plan)
            if index < steps:
                current, records = recovery(
                    current, split, artifact.preprocessing, recovery.spec.between_epochs, f"step-{index}"
                )
                history += [record | {"step": index} for record in records]
        after = figures_of(current.config, planned.size)
        facts = dict(planned.plan.facts) | {"after": asdict(after), "steps": steps}
        plan = replace(plan, weights_sha256=artifact.lineage.files[WEIGHTS], facts=facts)
        removed = plan.cost_removed(original.config, costs) / costs.total
        # The scores of the last step are of a model that is half pruned, and of no use beside the whole plan.
        final = replace(planned, plan=plan, after=after, removed=removed, importance=None, left_out=None, images=step.images)
        return self._finish(original, current, final, history, split)

    def _finish(
        self, model: SwinV2, small: SwinV2, planned: PlannedPruning, history: list[dict[str, Any]], split: Split | None
    ) -> Outcome:
        forms = {"before": model, "cut": small}
        if self.recovery is not None and split is not None:
            epochs = self.recovery.spec.epochs
            forms["recovered"], records = self.recovery(small, split, self.artifact.preprocessing, epochs, "recovery")
            history = history + records
        accuracy, where = self._judge(forms, split)
        made = forms.get("recovered", small)
        return Outcome(model=made, planned=planned, accuracy=accuracy, judged_on=where, history=history)

    def _judge(self, forms: Mapping[str, SwinV2], split: Split | None) -> tuple[tuple[Accuracy, ...], str]:
        """Accuracy of every form on the photographs held out, or on those that training sets aside."""
        photographs, where = self._photographs(split)
        if photographs is None or not len(photographs):
            return (), ""
        found = {}
        for done, (form, model) in enumerate(forms.items()):
            self.progress("Judging", done, len(forms))
            found[form] = answers(model, photographs, self.artifact.preprocessing)
        before = found["before"]
        return tuple(_accuracy(form, labels, before, photographs.classes) for form, labels in found.items()), where

    def _photographs(self, split: Split | None) -> tuple[TrainingImages | None, str]:
        config, preprocessing = self.artifact.config, self.artifact.preprocessing
        if config.task != "classification":
            return None, ""
        if self.held is not None and set(self.held.classes) <= set(config.labels) and self.held.classes:
            found = _load(numbered(self.held, config.labels), preprocessing)
            return found, f"{len(found)} photographs in {self.held.root}"
        if self.recovery is not None and split is not None:
            found = split[1]
            return found, f"{len(found)} photographs of {self.recovery.images.root} that training set aside"
        return None, ""


def _accuracy(form: str, found: NDArray[np.int64], before: NDArray[np.int64], classes: NDArray[np.int64]) -> Accuracy:
    right, was = found == classes, before == classes
    pair = Paired(
        both=int((was & right).sum()),
        reference_only=int((was & ~right).sum()),
        candidate_only=int((~was & right).sum()),
        neither=int((~was & ~right).sum()),
    )
    low, high = pair.drop_interval
    return Accuracy(
        form=form,
        images=len(classes),
        top1=float(right.mean()),
        lost=100 * pair.drop,
        interval=(100 * low, 100 * high),
        agreement=float((found == before).mean()),
    )


def _load(images: ImageFolder, preprocessing: Preprocessing) -> TrainingImages:
    labels = images.labels
    short = round(ROOM_FOR_CROPS * max(preprocessing.resize_shortest or 0, *preprocessing.size))
    return TrainingImages(list(images.paths), [labels[name] for name in images.names], short)
