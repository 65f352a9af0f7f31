"""What a pruned artifact remembers: what it was cut from, whether it has been trained since, and how to find its teacher.

The record travels to artifacts made of a pruned one, so that a later stage still knows the model it has to live up to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2_deploy.artifacts import LINEAGE, ModelArtifact, read_artifact, write_json
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.modeling.io import WEIGHTS
from swinv2_deploy.modeling.source import PRUNING, bundled_artifact

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PruningRecord:
    """Content of ``pruning.json``.

    Attributes:
        teacher: Name of the artifact whose unpruned weights it was cut from.
        teacher_sha256: Hash of these weights.
        removed: Share of the parameters that went, all in all.
        recovered: How it was trained since the cut: empty for not at all, ``prune`` or ``quantize``.
        facts: What else a reader should know: budget, costs before and after, accuracy.
    """

    teacher: str
    teacher_sha256: str
    removed: float
    recovered: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put the record into an artifact that is being made."""
        content = {
            "schema": SCHEMA,
            "teacher": self.teacher,
            "teacher_sha256": self.teacher_sha256,
            "removed": self.removed,
            "recovered": self.recovered,
        }
        write_json(folder / PRUNING, content | dict(self.facts))


def read_record(artifact: ModelArtifact) -> PruningRecord | None:
    """The record of a pruned artifact, after its hash was checked; None for one that was never pruned.

    Raises:
        ArtifactError: When it is damaged.
    """
    if PRUNING not in artifact.lineage.files:
        return None
    path = artifact.file(PRUNING)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        removed = float(content.pop("removed"))
        known = {name: str(content.pop(name)) for name in ("teacher", "teacher_sha256", "recovered")}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path} does not say what was pruned ({error}); prune again.") from error
    return PruningRecord(removed=removed, facts=content, **known)


def find_teacher(record: PruningRecord, near: Sequence[Path]) -> ModelArtifact | None:
    """The artifact with the unpruned weights, among those in some folders and the bundled model; None where it is not there.

    Args:
        record: What is looked for.
        near: Folders of artifacts.
    """
    for artifact in _artifacts(near):
        if artifact.lineage.files.get(WEIGHTS) == record.teacher_sha256:
            return artifact
    return None


def teacher_of(artifact: ModelArtifact, named: Path | None, near: Sequence[Path] = ()) -> ModelArtifact:
    """The artifact that a model has to live up to: itself, unless it was pruned.

    A pruned model that was trained again and whose origin is not at hand teaches itself.

    Args:
        artifact: Artifact that is worked on.
        named: What the user named as the teacher, or None.
        near: Folders to look for it in, besides the artifact's own.

    Raises:
        ArtifactError: When the unpruned weights of a model that was not trained since are not found.
        SpecError: When the named artifact is not the one it was cut from.
    """
    record = read_record(artifact)
    if named is not None:
        if record is None:
            raise SpecError(
                f"--teacher names what a pruned model was cut from, and {artifact.name} was not pruned; leave it out."
            )
        teacher = read_artifact(named)
        found = teacher.lineage.files.get(WEIGHTS, "")
        if found != record.teacher_sha256:
            raise SpecError(
                f"--teacher {named} has the weights {found[:12]}, and {artifact.name} was cut from {record.teacher} with "
                f"{record.teacher_sha256[:12]}; name that one."
            )
        return teacher
    if record is None:
        return artifact
    origin = find_teacher(record, (artifact.path.parent, *near))
    if origin is None and not record.recovered:
        raise ArtifactError(
            f"{artifact.name} was cut from {record.teacher} (weights {record.teacher_sha256[:12]}) and not trained since, and that "
            "artifact is not beside it. Name it with --teacher."
        )
    return origin or artifact


def _artifacts(folders: Sequence[Path]) -> Iterator[ModelArtifact]:
    for folder in folders:
        for file in sorted(folder.glob(f"*/{LINEAGE}")):
            # One that is damaged is not the one that is looked for.
            with suppress(ArtifactError):
                yield read_artifact(file.parent)
    with suppress(ArtifactError):
        yield bundled_artifact()
