"""The images of a verification: which ones, with which labels, none the artifact has seen, and decoded while a model runs.

Shape letters: B batch, H W height and width in px.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.dataset import ImageFolder, Manifest, overlap
from calibration.errors import CalibrationError
from calibration.table import CalibrationTable
from reference_model.config import SwinV2Config
from reference_model.preprocessing import ImageError, Preprocessing, read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.runtime.runner import Array
from swinv2_deploy.verify.spec import VerifySpec

SEEN = ("calibration_table.json", "training_manifest.json")
"""Files of an artifact that tell which images it has seen."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be used, and why."""

    image: str
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that were decoded.

    Attributes:
        names: Names in the folder.
        labels: Class index in the model, or None where it is unknown.
        images: Normalized pixels (B, 3, H, W).
    """

    names: tuple[str, ...]
    labels: tuple[int | None, ...]
    images: Array


@dataclass(slots=True)
class VerifyImages:
    """Chosen images of a folder.

    Attributes:
        folder: Those images.
        labels: Name to class index in the model; empty when accuracy cannot be told.
        excluded: Names left out because the artifact has seen them.
        notices: What a reader of the report must know about them.
        skipped: Images that could not be decoded; filled while batches are read.
    """

    folder: ImageFolder
    labels: dict[str, int]
    excluded: tuple[str, ...] = ()
    notices: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.folder)

    def none_usable(self, reason: str) -> ArtifactError:
        """The error where not one image can be decoded; ``reason`` is that of the first."""
        return ArtifactError(
            f"None of the {len(self)} images of {self.folder.root} can be used; the first: {reason} "
            "Give a folder with intact images."
        )

    def part(self, start: int, stop: int) -> VerifyImages:
        """The images from one number to another, with their labels."""
        names = self.folder.names[start:stop]
        labels = {name: self.labels[name] for name in names if name in self.labels}
        return VerifyImages(ImageFolder(self.folder.root, names, self.folder.classes), labels)

    def batches(self, preprocessing: Preprocessing, batch_size: int) -> Iterator[Batch]:
        """Decode in a thread, at most two batches ahead; damaged images are noted in :attr:`skipped` and left out."""
        self.skipped.clear()
        names: list[str] = []
        arrays: list[Array] = []
        for name, result in self._decoded(preprocessing, 2 * batch_size):
            if isinstance(result, str):
                self.skipped.append(Skipped(name, result))
                continue
            names.append(name)
            arrays.append(result)
            if len(names) == batch_size:
                yield self._batch(names, arrays)
                names, arrays = [], []
        if names:
            yield self._batch(names, arrays)

    def photographs(self) -> Iterator[tuple[str, int | None, NDArray[np.uint8]]]:
        """Name, class index or None, and the decoded photograph (H, W, 3) of every image; damaged ones as in :meth:`batches`."""
        self.skipped.clear()
        for name, path in zip(self.folder.names, self.folder.paths, strict=True):
            try:
                photo = read_image(path)
            except ImageError as error:
                self.skipped.append(Skipped(name, str(error)))
                continue
            yield name, self.labels.get(name), photo

    def _batch(self, names: list[str], arrays: list[Array]) -> Batch:
        return Batch(tuple(names), tuple(self.labels.get(name) for name in names), np.stack(arrays))

    def _decoded(self, preprocessing: Preprocessing, ahead: int) -> Iterator[tuple[str, Array | str]]:
        waiting: deque[tuple[str, Future[Array | str]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
            try:
                for name, path in zip(self.folder.names, self.folder.paths, strict=True):
                    waiting.append((name, pool.submit(_decode, path, preprocessing)))
                    if len(waiting) >= ahead:
                        first, future = waiting.popleft()
                        yield first, future.result()
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def choose_images(artifact: ModelArtifact, spec: VerifySpec, others: Sequence[ModelArtifact] = ()) -> VerifyImages:
    """The images of ``spec.data`` to verify on, none of which the artifact or one of the others has seen.

    Raises:
        ArtifactError: When the artifact has seen some of them, or nothing is left.
        SpecError: When ``limit`` is above the number of images, or no class is a label of the model and labels must match.
        CalibrationError: When the folder is missing or holds no image.
    """
    folder = ImageFolder.open(spec.data)
    if spec.limit is not None and spec.limit < len(folder):
        folder = folder.select(spec.limit, spec.seed)
    labels, notices = _labels(folder, artifact.config, spec)
    by_artifact = {one.name: _overlap(folder, one) for one in (artifact, *others)}
    known = tuple(dict.fromkeys(name for names in by_artifact.values() for name in names))
    if known and not spec.exclude_overlap:
        shown = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
        guilty = next(name for name, names in by_artifact.items() if names)
        raise ArtifactError(
            f"{guilty} was calibrated or trained on {len(known)} of the {len(folder)} images ({shown}), which so prove "
            "nothing; use other images, or --exclude-overlap to leave these out."
        )
    if known:
        left = tuple(name for name in folder.names if name not in set(known))
        if not left:
            raise ArtifactError(f"{artifact.name} was calibrated or trained on all {len(folder)} images; use other images.")
        folder = ImageFolder(folder.root, left, folder.classes)
        notices.append(f"{len(known)} images were left out: the artifact was calibrated or trained on them.")
    return VerifyImages(folder, {name: labels[name] for name in folder.names if name in labels}, known, notices)


def _overlap(folder: ImageFolder, artifact: ModelArtifact) -> tuple[str, ...]:
    """Images of a folder that an artifact was calibrated or trained on."""
    seen = seen_images(artifact)
    return tuple(name for name, _ in overlap(folder.manifest(), seen)) if seen is not None else ()


def seen_images(artifact: ModelArtifact) -> Manifest | None:
    """Images the artifact was calibrated or trained on; None when there are none.

    Raises:
        ArtifactError: When the evidence is damaged.
    """
    files: dict[str, str] = {}
    for name in SEEN:
        if name not in artifact.lineage.files:
            continue
        path = artifact.file(name)
        try:
            if name == "calibration_table.json":
                found = CalibrationTable.load(path).manifest
            else:
                found = Manifest(json.loads(path.read_text(encoding="utf-8"))["files"])
        except (CalibrationError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} does not say which images were used ({error}); make the artifact again.") from error
        files |= {f"{name}/{image}": digest for image, digest in found.files.items()}
    return Manifest(files) if files else None


def _labels(folder: ImageFolder, config: SwinV2Config, spec: VerifySpec) -> tuple[dict[str, int], list[str]]:
    """Name of an image to class index in the model, matched by the class's name; and what could not be matched."""
    index = {label: position for position, label in enumerate(config.labels)}
    matched = [name for name in folder.classes if name in index]
    if config.task != "classification" or spec.labels == "ignore":
        return {}, []
    if not folder.classes:
        return {}, ["The images have no labels (no class folders): agreement is judged, accuracy is not."]
    if not config.labels:
        return {}, ["The model has no label names, so classes cannot be matched: agreement is judged, accuracy is not."]
    if not matched:
        theirs, ours = _some(folder.classes), _some(config.labels)
        if spec.labels == "match":
            raise SpecError(
                f"No class folder of {folder.root} is a label of the model. Folders: {theirs}. Labels: {ours}. Rename the "
                "folders, or use --ignore-labels to judge agreement alone."
            )
        return {}, [f"The folders ({theirs}) are not labels of the model ({ours}): agreement is judged, accuracy is not."]
    unmatched = [name for name in folder.classes if name not in index]
    notices = [f"Accuracy leaves out the folders that are no labels of the model: {_some(unmatched)}."] if unmatched else []
    return {name: index[name.split("/")[0]] for name in folder.names if name.split("/")[0] in index}, notices


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def _decode(path: Path, preprocessing: Preprocessing) -> Array | str:
    try:
        return preprocessing(read_image(path))
    except ImageError as error:
        return str(error)
