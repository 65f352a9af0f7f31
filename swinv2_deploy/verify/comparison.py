"""Every file on every photograph: the part of a verification that grows with the images, cut into shards.

A shard is a fixed run of the chosen photographs. What it gives depends on nothing but the plan, so any process can compare it, in
any order, and the sum over shards in their order is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import read_artifact
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import FileRunner, Runner, TorchRunner, masks_for
from swinv2_deploy.runtime.load import preprocessing_for
from swinv2_deploy.runtime.runner import Takes
from swinv2_deploy.verify.candidates import load_candidates, load_others
from swinv2_deploy.verify.inputs import Skipped, VerifyImages
from swinv2_deploy.verify.meter import DriftMeter
from swinv2_deploy.verify.spec import VerifySpec

Groups = Mapping[Preprocessing, Mapping[str, FileRunner]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonPlan:
    """All that a process needs to compare any shard; it can be sent to another machine that sees the same folders.

    Attributes:
        artifact: Folder of the artifact.
        others: Folders of the artifacts beside it.
        spec: What was asked.
        images: The chosen photographs with their labels.
        classes: Names of a classifier's classes, else empty.
        margins: Distance of two tied logits, by file.
    """

    artifact: Path
    others: tuple[Path, ...]
    spec: VerifySpec
    images: VerifyImages
    classes: tuple[str, ...]
    margins: Mapping[str, float]

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-len(self.images) // self.spec.shard_size)

    def part(self, index: int) -> VerifyImages:
        """The photographs of one shard, counted from 0."""
        start = index * self.spec.shard_size
        return self.images.part(start, start + self.spec.shard_size)

    def meters(self) -> dict[str, DriftMeter]:
        """An empty meter for every file."""
        return {name: DriftMeter(self.classes, margin) for name, margin in self.margins.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What one shard gave.

    Attributes:
        index: Its number.
        skipped: Photographs that could not be decoded.
        meters: What each file's meter gathered, as :meth:`DriftMeter.to_dict` gives it.
    """

    index: int
    skipped: tuple[Skipped, ...]
    meters: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"index": self.index, "skipped": [asdict(item) for item in self.skipped], "meters": dict(self.meters)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Shard:
        """The reverse.

        Raises:
            KeyError, TypeError: When it is something else.
        """
        return cls(
            index=found["index"], skipped=tuple(Skipped(**item) for item in found["skipped"]), meters=dict(found["meters"])
        )


class Comparer:
    """Compares shards with models that are loaded once.

    Args:
        plan: What to compare.
        reference: What judges.
        runners: Every file by name.
        preprocessing: The artifact's own.
    """

    def __init__(
        self, plan: ComparisonPlan, reference: Runner, runners: Mapping[str, FileRunner], preprocessing: Preprocessing
    ) -> None:
        self.plan = plan
        self._reference = reference
        self._preprocessing = preprocessing
        self._groups = by_preprocessing(taking("pixel_values", runners), preprocessing)
        self._of_photographs = taking("images", runners)

    @classmethod
    def load(cls, plan: ComparisonPlan) -> Comparer:
        """The same in another process.

        Raises:
            ArtifactError: When an artifact was changed.
            RunnerError: When a file does not load.
            BackendMissing: When a back end is not usable there.
        """
        artifact = read_artifact(plan.artifact)
        runners = load_candidates(artifact, plan.spec)
        runners |= load_others([read_artifact(path) for path in plan.others], artifact, plan.spec)
        model = load_model(artifact)
        reference = TorchRunner(model, threads=plan.spec.threads, masks=masks_for(model.config))
        return cls(plan, reference, runners, artifact.preprocessing)

    @property
    def passes(self) -> int:
        """How often every photograph is compared: once for each size that files are fixed to, once more as it is."""
        return len(self._groups) + bool(self._of_photographs)

    def shard(self, index: int, progress: Callable[[int], None] = lambda done: None) -> Shard:
        """Compare one shard.

        Args:
            index: Its number, from 0.
            progress: Told how many photographs were compared just now.
        """
        meters = self.plan.meters()
        part = self.plan.part(index)
        for preprocessing, group in self._groups.items():
            for batch in part.batches(preprocessing, self.plan.spec.batch_size):
                expected = self._reference.run(batch.images)
                for name, runner in group.items():
                    meters[name].add(batch.names, batch.labels, expected, runner.run(batch.images))
                progress(len(batch.names))
        if self._of_photographs:
            for image, label, photo in part.photographs():
                expected = self._reference.run(self._preprocessing(photo)[None])
                for name, runner in self._of_photographs.items():
                    meters[name].add([image], [label], expected, runner.run(photo[None]))
                progress(1)
        progress(self.passes * len(part.skipped))
        return Shard(index=index, skipped=tuple(part.skipped), meters={name: meter.to_dict() for name, meter in meters.items()})


def add_up(plan: ComparisonPlan, shards: Iterable[Shard]) -> tuple[dict[str, DriftMeter], list[Skipped]]:
    """Meters over all photographs, and those that could not be decoded; shards are added in their order.

    Raises:
        ArtifactError: When a shard is of other files, or not one photograph could be used.
    """
    meters = plan.meters()
    skipped: list[Skipped] = []
    for shard in sorted(shards, key=lambda shard: shard.index):
        skipped += shard.skipped
        try:
            for name, meter in meters.items():
                meter.add_saved(shard.meters[name])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"Shard {shard.index} is damaged or of other files ({error!r}); delete the folder of the run and start again."
            ) from error
    if len(skipped) == len(plan.images):
        raise plan.images.none_usable(skipped[0].reason)
    return meters, skipped


def taking(takes: Takes, runners: Mapping[str, FileRunner]) -> dict[str, FileRunner]:
    """Those whose files have that input."""
    return {name: runner for name, runner in runners.items() if runner.facts.takes == takes}


def by_preprocessing(runners: Mapping[str, FileRunner], own: Preprocessing) -> Groups:
    """Files by the pixels they are given: one of a single size gets the photographs at that size."""
    groups: dict[Preprocessing, dict[str, FileRunner]] = {}
    for name, runner in runners.items():
        groups.setdefault(preprocessing_for(own, runner.resolutions), {})[name] = runner
    return groups
