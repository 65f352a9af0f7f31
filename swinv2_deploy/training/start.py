"""What a training run starts from: an architecture with fresh weights, or a checkpoint with a classifier for these classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from calibration.dataset import ImageFolder
from reference_model.config import SwinV2Config
from reference_model.model import SwinV2Classifier, encoder_parameters, initialize
from reference_model.preprocessing import Preprocessing
from reference_model.variants import find_variant
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.modeling.source import resolve

MANIFEST = "training_manifest.json"
"""File of an artifact that names every image its weights may have seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A model ready to be trained.

    Attributes:
        model: Classifier for the classes of the image folder.
        preprocessing: What images go through when the model is used.
        name: Good name for the artifact.
        description: What is trained, in words.
        parent: Name and lineage hash of the artifact the weights came from; empty otherwise.
        seen: Name to sha256 of every image that artifact was trained on.
    """

    model: SwinV2Classifier
    preprocessing: Preprocessing
    name: str
    description: str
    parent: dict[str, str]
    seen: dict[str, str] = field(default_factory=dict)


def prepare(request: SourceRequest, images: ImageFolder, *, drop_path: float) -> Start:
    """Build the classifier.

    A published architecture (``--size`` alone) starts from the published initialization. Weights keep their encoder; their
    classifier is kept where it has the same class names, else a new one is made.

    Raises:
        SpecError: When the images have no classes.
        ArtifactError: When the artifact that the weights come from does not say what they were trained on.
    """
    # The shift mask of -100 leaves denormal numbers behind the softmax, and processors compute with those many times slower.
    # Threads take the setting over when they are made, so it is set before the first of them is.
    torch.set_flush_denormal(True)
    if len(images.classes) < 2:
        raise SpecError(f"{images.root} has {len(images.classes)} class folders; expected at least two, with images in each.")
    if request.size is not None and request.weights is None:
        variant = find_variant(request.size, request.resolution, request.window)
        config = _classifier(variant.config, images.classes, drop_path)
        model = SwinV2Classifier(config)
        initialize(model, torch.Generator().manual_seed(request.seed))
        # The whole picture squashed to the model's size: center crops cut heads and feet off photographs of clothes and people.
        preprocessing = Preprocessing(size=config.image_size, resize_shortest=None)
        return Start(
            model=model, preprocessing=preprocessing, name=variant.name, description=f"{variant.name} from scratch", parent={}
        )
    source = resolve(request)
    source.preprocessing.require_photographs()
    config = _classifier(source.model.config, images.classes, drop_path)
    model = SwinV2Classifier(config)
    initialize(model, torch.Generator().manual_seed(request.seed))
    state = source.model.state_dict()
    same = source.model.config.labels == images.classes and "head.weight" in state
    kept = state if same else encoder_parameters(state)
    model.load_state_dict(model.state_dict() | kept)
    head = "its classifier" if same else f"a new classifier for {len(images.classes)} classes"
    return Start(
        model=model,
        preprocessing=source.preprocessing,
        name=f"{source.name}-tuned",
        description=f"{source.name} with {head}",
        parent=dict(source.parent),
        seen={} if source.artifact is None else seen_by(source.artifact),
    )


def load_teacher(request: SourceRequest, start: Start) -> SwinV2Classifier:
    """The model to learn from.

    Raises:
        SpecError: When it is no trained classifier of the same classes that sees pixels normalized in the same way.
    """
    source = resolve(request)
    teacher, config = source.model, source.model.config
    if not isinstance(teacher, SwinV2Classifier) or not source.origin.trained:
        kind = config.task if source.origin.trained else "untrained"
        raise SpecError(f"The teacher {source.name} is {kind}; expected a trained classifier.")
    if config.num_classes != start.model.config.num_classes or (config.labels and config.labels != start.model.config.labels):
        raise SpecError(
            f"The teacher {source.name} knows {config.num_classes} classes {list(config.labels[:4])}..., and the images have "
            f"{start.model.config.num_classes}, {list(start.model.config.labels[:4])}...; expected the same, in order."
        )
    own, theirs = start.preprocessing, source.preprocessing
    if (own.mean, own.std) != (theirs.mean, theirs.std):
        raise SpecError(
            f"The teacher {source.name} normalizes by mean {theirs.mean} and deviation {theirs.std}, the model by {own.mean} and "
            f"{own.std}; expected the same, since both see the same pixels."
        )
    return teacher


def seen_by(artifact: ModelArtifact) -> dict[str, str]:
    """Images in the training manifest of an artifact, under names that no other image has, with their sha256.

    Raises:
        ArtifactError: When the manifest does not say it.
    """
    if MANIFEST not in artifact.lineage.files:
        return {}
    path = artifact.file(MANIFEST)
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {f"{artifact.path.name}@{artifact.sha256[:8]}/{name}": str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path} does not say which images were used ({error}); make the artifact again.") from error


def _classifier(config: SwinV2Config, classes: tuple[str, ...], drop_path: float) -> SwinV2Config:
    return replace(
        config,
        task="classification",
        num_classes=len(classes),
        labels=classes,
        out_features=(),
        upscale=1,
        drop_path_rate=drop_path,
    )


def also_seen(earlier: Mapping[str, str], files: Mapping[str, str], stage: str) -> dict[str, str]:
    """Hash of every image seen so far, by name, and of those that a stage saw; those of earlier stages keep their names."""
    seen = dict(earlier)
    for name, digest in files.items():
        if digest not in seen.values():
            seen[name if name not in seen else f"{stage}/{name}"] = digest
    return seen
