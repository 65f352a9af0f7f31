"""From an image folder to training images, and from a finished run to an artifact."""

from __future__ import annotations

from pathlib import Path

from calibration.dataset import ImageFolder
from reference_model.model import SwinV2Classifier
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import Lineage, ModelArtifact, WeightsOrigin, read_artifact, write_artifact, write_json
from swinv2_deploy.errors import SpecError
from swinv2_deploy.modeling.io import write_model_files
from swinv2_deploy.training.data import TrainingImages, split_tuning
from swinv2_deploy.training.loop import TrainResult
from swinv2_deploy.training.plot import draw_history
from swinv2_deploy.training.spec import TrainSpec
from swinv2_deploy.training.start import MANIFEST, Start

PICTURE = "history.svg"
ROOM_FOR_CROPS = 1.25
"""Images are kept in memory at this many times the largest training resolution."""


def square_side(preprocessing: Preprocessing) -> int:
    """Side in px of the square that a model is trained at.

    Raises:
        SpecError: When it takes images of another shape.
    """
    height, width = preprocessing.size
    if height != width:
        raise SpecError(f"The model takes images of {height}x{width} px; training needs square ones.")
    return height


def numbered(images: ImageFolder, names: tuple[str, ...]) -> ImageFolder:
    """The same images with classes numbered as a model's logits are.

    Raises:
        SpecError: When a folder bears no name of the model's classes.
    """
    unknown = sorted(set(images.classes) - set(names))
    if unknown or not images.classes:
        raise SpecError(
            f"{images.root} has the class folders {unknown[:5] or '(none)'}, and the model the classes {list(names)[:10]}; "
            "expected folders named as the classes."
        )
    return ImageFolder(images.root, images.names, names)


def batch_that_fits(images: ImageFolder, batch_size: int, tune_share: float) -> int:
    """A batch size, or the number of images that are trained on where these are fewer.

    Args:
        images: All images, some of which are set aside.
        batch_size: Images a step that are wanted.
        tune_share: Share of the images that is set aside, by the hash of their content.
    """
    if len(images) > 2 * batch_size:
        return batch_size
    return max(1, min(batch_size, len(images) - sum(split_tuning(list(images.paths), tune_share))))


def split_images(images: ImageFolder, spec: TrainSpec) -> tuple[TrainingImages, TrainingImages]:
    """Decode all images and part them into those trained on and those set aside.

    Raises:
        ImageError: When an image cannot be read.
    """
    aside = split_tuning(list(images.paths), spec.tune_share)
    short_side = round(ROOM_FOR_CROPS * max(phase.resolution for phase in spec.phases))
    parts = []
    for wanted in (False, True):
        names = [name for name, held in zip(images.names, aside, strict=True) if held == wanted]
        files = [images.root / name for name in names]
        parts.append(TrainingImages(files, [images.labels[name] for name in names], short_side))
    return parts[0], parts[1]


def finish(
    result: TrainResult[SwinV2Classifier],
    start: Start,
    spec: TrainSpec,
    images: ImageFolder,
    path: Path,
    *,
    force: bool = False,
) -> ModelArtifact:
    """Write the trained model with its history, drawn where matplotlib is there, and the hashes of every image it may have seen.

    Raises:
        ArtifactError: When the folder cannot be written.
    """
    manifest = images.manifest()
    lineage = Lineage(
        stage="train",
        spec=spec.to_dict(),
        weights=WeightsOrigin(kind="trained", source=start.description, sha256=manifest.sha256),
        parent=start.parent,
        seed=spec.seed,
    )
    with write_artifact(path, lineage, force=force) as folder:
        write_model_files(folder, result.model, start.preprocessing)
        write_json(folder / "history.json", result.history)
        draw_history(result.history, folder / PICTURE)
        write_json(folder / MANIFEST, {"files": start.seen | dict(manifest.files)})
    return read_artifact(path)
