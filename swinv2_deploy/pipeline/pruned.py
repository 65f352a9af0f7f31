"""Pruning: importance, plan, cut, recovery by distillation, and the graphs of what is left."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.dataset import ImageFolder
from reference_model.model import SwinV2
from swinv2_deploy.artifacts import (
    LINEAGE,
    Lineage,
    ModelArtifact,
    WeightsOrigin,
    read_artifact,
    write_artifact,
    write_json,
)
from swinv2_deploy.drawing import has_matplotlib
from swinv2_deploy.errors import SpecError
from swinv2_deploy.modeling.io import WEIGHTS, write_model_files
from swinv2_deploy.modeling.pruned import PruningRecord
from swinv2_deploy.pipeline.exported import export_like
from swinv2_deploy.pipeline.pruning_plan import PlannedPruning, Progress, silent
from swinv2_deploy.pipeline.recovered import Accuracy, Outcome, Recovery, Work
from swinv2_deploy.prune.cost import parameter_count
from swinv2_deploy.prune.picture import PICTURE, draw_importance
from swinv2_deploy.prune.spec import PruneSpec
from swinv2_deploy.training.start import MANIFEST, also_seen, seen_by

PLAN = "prune_plan.json"
IMPORTANCE = "importance.json"
HISTORY = "prune_history.json"
LATENCIES = "latency_table.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneResult:
    """What a pruning made.

    Attributes:
        artifact: The new artifact.
        planned: What was removed in the end.
        teacher: Name of the model that it learned from; empty without recovery.
        accuracy: Before, after the cut, and after recovery; empty where there were no labeled photographs to judge on.
        judged_on: Where these photographs are, in words.
        history: One record an epoch of recovery.
        picture: Drawing of importance and plan, or None without matplotlib or importance.
    """

    artifact: ModelArtifact
    planned: PlannedPruning
    teacher: str
    accuracy: tuple[Accuracy, ...]
    judged_on: str
    history: list[dict[str, Any]]
    picture: Path | None


def prune_artifact(
    artifact: ModelArtifact,
    spec: PruneSpec | None,
    planned: PlannedPruning,
    path: Path,
    *,
    recovery: Recovery | None = None,
    unpruned: ModelArtifact | None = None,
    held: ImageFolder | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> PruneResult:
    """Cut a model by a plan, train it to live up to what it was, and write it with every FP32 graph that it had.

    Args:
        artifact: Artifact to prune.
        spec: Budget, of which the steps of a gradual pruning are made; None for a plan from a file.
        planned: What goes, all at once; a gradual pruning measures again before every cut.
        path: Artifact folder to make.
        recovery: How to train; None leaves the weights as they are.
        unpruned: Artifact that a later stage shall take for the teacher; None means the one that is pruned.
        held: Photographs to judge on; None judges on those that training sets aside.
        force: Whether an artifact that is already there is replaced.
        progress: Told about every step.

    Raises:
        SpecError: When photographs or teacher do not fit the model.
        UnsupportedModelError: When a model shall be trained that is no classifier.
        TrainingError: When training fails.
        TrainingStopped: When the recovery was asked to stop.
        ArtifactError: When the folder cannot be written.
    """
    if path.resolve() == artifact.path.resolve():
        raise SpecError(f"{path} is the artifact that is being pruned; use --out for another folder.")
    gradual = recovery is not None and recovery.spec.steps > 1
    if gradual and spec is None:
        raise SpecError("A plan from a file is one cut, and --steps makes several of a budget; leave out one of the two.")
    if recovery is not None:
        recovery.refuse_unsuited(artifact)
    origin = artifact.lineage.weights
    if recovery is not None and origin.trained:
        origin = WeightsOrigin(
            kind="trained", source=f"{artifact.name}, pruned and trained", sha256=recovery.images.manifest().sha256
        )
    lineage = Lineage(
        stage="prune",
        spec={
            "prune": spec.to_dict() if spec else {"plan": "a file"},
            "recover": recovery.spec.to_dict() if recovery else None,
        },
        weights=origin,
        parent={"name": artifact.name, "sha256": artifact.sha256},
        seed=spec.seed if spec else None,
    )
    size = sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file())
    with write_artifact(path, lineage, force=force, needed_bytes=size) as folder:
        work = Work(artifact=artifact, planned=planned, recovery=recovery, held=held, progress=progress)
        outcome = work.gradually(spec, recovery) if gradual and spec and recovery else work.at_once()
        progress("Writing and checking the graphs", 0, 1)
        _write_model(artifact, outcome.model, folder, origin)
        drawn = _write_evidence(artifact, outcome, folder)
        used = recovery.images if recovery is not None else outcome.planned.images
        seen = also_seen(seen_by(artifact), used.manifest().files if used else {}, "prune")
        if seen:
            write_json(folder / MANIFEST, {"files": seen})
        _record(recovery.teacher if recovery else unpruned or artifact, recovery, outcome).write(folder)
    return PruneResult(
        artifact=read_artifact(path),
        planned=outcome.planned,
        teacher=recovery.teacher.name if recovery else "",
        accuracy=outcome.accuracy,
        judged_on=outcome.judged_on,
        history=outcome.history,
        picture=path / PICTURE if drawn else None,
    )


def _write_evidence(artifact: ModelArtifact, outcome: Outcome, folder: Path) -> bool:
    """Write plan, importance and history; whether there is a picture as well."""
    planned = outcome.planned
    planned.plan.save(folder / PLAN, artifact.config)
    if planned.table is not None:
        write_json(folder / LATENCIES, planned.table.to_dict())
    if outcome.history:
        write_json(folder / HISTORY, outcome.history)
    if planned.importance is None:
        return False
    left_out = planned.left_out.to_dict() if planned.left_out else None
    write_json(folder / IMPORTANCE, planned.importance.to_dict() | {"left_out": left_out})
    if not has_matplotlib():
        return False
    draw_importance(planned.importance, planned.plan, artifact.config, folder / PICTURE)
    return True


def _record(unpruned: ModelArtifact, recovery: Recovery | None, outcome: Outcome) -> PruningRecord:
    planned = outcome.planned
    return PruningRecord(
        teacher=unpruned.name,
        teacher_sha256=unpruned.lineage.files[WEIGHTS],
        removed=1 - planned.after.parameters / parameter_count(unpruned.config),
        recovered="prune" if recovery else "",
        facts={
            "size": list(planned.size),
            "before": asdict(planned.before),
            "after": asdict(planned.after),
            "judged_on": outcome.judged_on,
            "accuracy": [asdict(row) for row in outcome.accuracy],
        },
    )


def _write_model(artifact: ModelArtifact, model: SwinV2, folder: Path, origin: WeightsOrigin) -> None:
    """Config, weights and preprocessing of a model, and every FP32 graph that the artifact has."""
    if "model" not in artifact.onnx_files:
        write_model_files(folder, model, artifact.preprocessing)
        return
    with tempfile.TemporaryDirectory() as elsewhere:
        made = export_like(artifact, model, Path(elsewhere) / artifact.name, origin)
        for name in made.lineage.files:
            if name != LINEAGE:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made.file(name), target)
