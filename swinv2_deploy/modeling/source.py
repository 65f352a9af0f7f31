"""Where a model comes from: a published name, a checkpoint, a folder, the hub, or the bundled default."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn

from reference_model.checkpoint import CheckpointError, load_weights, model_from_weights, task_for_variant
from reference_model.checkpoint_files import read_json
from reference_model.config import DECODER_TASKS, UPSCALES, SwinV2Config, Task, WindowPolicy
from reference_model.model import Block, SwinV2, build_model, encoder_parameters, initialize
from reference_model.preprocessing import Preprocessing
from reference_model.variants import VARIANTS, Variant, find_variant
from swinv2_deploy.artifacts import LINEAGE, ModelArtifact, WeightsOrigin, file_sha256, read_artifact
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.modeling.hub import HubUnreachable, download
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.request import SourceRequest

PRUNING = "pruning.json"
"""File of an artifact that says what it was cut from."""

EVIDENCE = ("training_manifest.json", "calibration_table.json", PRUNING)
"""Files that travel from an artifact to those made from it: which images it has already seen, and what it was cut from."""


class _Chosen(TypedDict):
    task: Task | None
    out_features: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model ready for a stage, with its origin.

    Attributes:
        model: The reference model, in evaluation mode.
        preprocessing: What images go through.
        origin: Origin of the weights.
        name: Good name for an artifact made of it.
        parent: Name and lineage hash of the artifact it was read from; empty otherwise.
        seed: Seed of untrained weights, or None.
        notes: What the user should know, one sentence each.
        artifact: The artifact it was read from, or None.
    """

    model: SwinV2
    preprocessing: Preprocessing
    origin: WeightsOrigin
    name: str
    parent: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    notes: tuple[str, ...] = ()
    artifact: ModelArtifact | None = None

    def with_window_policy(self, policy: WindowPolicy) -> Source:
        """The same weights in a model that cuts its maps by this policy; weights are shared, not copied."""
        if policy == self.model.config.window_policy:
            return self
        with torch.device("meta"):
            model = build_model(replace(self.model.config, window_policy=policy))
        model.load_state_dict(self.model.state_dict(), assign=True)
        return replace(self, model=model.eval())

    def copy_evidence(self, folder: Path) -> None:
        """Copy the record of images already seen into an artifact that is being made."""
        for name in EVIDENCE:
            if self.artifact is not None and name in self.artifact.lineage.files:
                shutil.copyfile(self.artifact.file(name), folder / name)


def bundled_artifact() -> ModelArtifact:
    """The small trained model that comes with the package.

    Raises:
        ArtifactError: When this installation lacks it.
    """
    path = Path(str(files("swinv2_deploy") / "default_model"))
    if not path.is_dir():
        raise ArtifactError(
            f"The bundled model is missing from this installation (expected at {path}); install the package again, or name a "
            "model with --size, --weights or --model."
        )
    return read_artifact(path)


def resolve(request: SourceRequest) -> Source:
    """The model a request names.

    Raises:
        SpecError: When nothing has that name, or its decoder makes an image of another size.
        ArtifactError: When an artifact is damaged, or the hub has no such model.
        CheckpointError: When the weights cannot be read or do not fit.
        VariantError: When no or several published models fit.
    """
    source = _resolved(request)
    found = source.model.config.upscale
    if request.upscale is not None and request.upscale != found:
        raise SpecError(f"--upscale is {request.upscale} and the weights make an image {found} times larger; leave it out.")
    return source


def _resolved(request: SourceRequest) -> Source:
    chosen: _Chosen = {"task": request.task, "out_features": request.out_features}
    if request.model is not None:
        return source_from_model(request.model, **chosen)
    if request.size is not None:
        variant = find_variant(request.size, request.resolution, request.window)
        if request.weights is not None:
            return source_from_weights(request.weights, variant=variant, classes=request.classes, **chosen)
        return source_from_variant(variant, seed=request.seed, upscale=request.upscale, **chosen)
    if request.weights is not None:
        return source_from_weights(request.weights, **chosen)
    return source_from_artifact(bundled_artifact(), **chosen)


def source_from_variant(
    variant: Variant,
    *,
    task: Task | None = None,
    out_features: tuple[str, ...] = (),
    seed: int = 0,
    upscale: int | None = None,
) -> Source:
    """A published model: with the weights of the hub, else untrained ones that say so.

    Raises:
        CheckpointError: When the weights of the hub do not fit the variant.
        ArtifactError: When the hub answers, but not with weights.
    """
    if variant.size == "nano":
        return source_from_artifact(bundled_artifact(), task=task, out_features=out_features)
    preprocessing = published_preprocessing(variant)
    reason = "no weights of it are on the hub in a form that is read by name; give them with --weights FILE"
    if variant.hub_id and not variant.size.startswith("simmim"):
        try:
            folder = download(variant.hub_id)
            loaded = load_weights(folder)
            config = _named(variant.config, loaded.config)
            model = model_from_weights(loaded, config=config, task=task, out_features=out_features)
            origin = WeightsOrigin(kind="hub", source=variant.hub_id, sha256=_folder_sha256(folder))
            return Source(model=model, preprocessing=preprocessing, origin=origin, name=variant.name, notes=loaded.notes)
        except HubUnreachable as error:
            reason = f"the hub cannot be reached ({error})"
    config = _with_task(variant.config, task, out_features, upscale)
    note = (
        f"{variant.name} has UNTRAINED weights (seed {seed}): {reason}. Its size, speed and drift are those of the "
        "real model; its answers mean nothing."
    )
    return Source(
        model=untrained_model(config, seed),
        preprocessing=preprocessing,
        origin=WeightsOrigin(kind="untrained", source=f"seed {seed}"),
        name=f"{variant.name}-untrained",
        seed=seed,
        notes=(note,),
    )


def source_from_weights(
    path: Path,
    *,
    variant: Variant | None = None,
    classes: int | None = None,
    task: Task | None = None,
    out_features: tuple[str, ...] = (),
) -> Source:
    """A checkpoint file or Hugging Face folder; the variant is needed where the file does not tell its window and resolution.

    Raises:
        CheckpointError: When the weights cannot be read or do not fit.
    """
    loaded = load_weights(path)
    config = variant.config if variant else None
    if config is not None:
        task = task or task_for_variant(config, loaded)
    if config is not None and classes is not None:
        config = replace(config, task="classification", num_classes=classes, labels=())
    patches = loaded.state_dict["patch_embed.proj.weight"]
    if config is not None and patches.ndim == 4:
        config = replace(config, num_channels=patches.shape[1])
    try:
        model = model_from_weights(loaded, config=config, task=task, out_features=out_features)
    except CheckpointError as error:
        raise CheckpointError(_in_options(str(error))) from error
    described = path / "preprocessor_config.json" if path.is_dir() else path.with_name("preprocessor_config.json")
    notes = list(loaded.notes)
    if described.is_file():
        preprocessing = Preprocessing.from_huggingface(read_json(described))
        if preprocessing.channels != model.config.num_channels:
            raise CheckpointError(
                f"{described.name} gives a mean for {preprocessing.channels} channels, and the model reads "
                f"{model.config.num_channels}; put the image_mean and image_std of its training there."
            )
    elif variant is not None:
        preprocessing = published_preprocessing(variant).with_channels(model.config.num_channels)
        notes += _about_channels(preprocessing)
    else:
        height, width = model.config.image_size
        known = (
            Preprocessing.published(height) if height == width else Preprocessing(size=(height, width), resize_shortest=None)
        )
        preprocessing = known.with_channels(model.config.num_channels)
        notes.append(f"No preprocessor_config.json beside {path.name}: preprocessing is that of published {height}-px models.")
        notes += _about_channels(preprocessing)
    digest = _folder_sha256(path) if path.is_dir() else file_sha256(path)
    return Source(
        model=model,
        preprocessing=preprocessing,
        origin=WeightsOrigin(kind="file", source=path.name, sha256=digest),
        name=variant.name if variant else path.stem if path.is_file() else path.resolve().name,
        notes=tuple(notes),
    )


def source_from_artifact(artifact: ModelArtifact, *, task: Task | None = None, out_features: tuple[str, ...] = ()) -> Source:
    """The model of an artifact.

    Raises:
        ArtifactError: When its files were changed or do not load.
    """
    model = load_model(artifact)
    notes = (
        ()
        if artifact.lineage.weights.trained
        else (f"The weights of {artifact.name} are UNTRAINED: its answers mean nothing.",)
    )
    if task is not None and (task != model.config.task or out_features):
        model = _retasked(model, task, out_features)
    return Source(
        model=model,
        preprocessing=artifact.preprocessing,
        origin=artifact.lineage.weights,
        name=artifact.name if artifact.name != "default_model" else "nano",
        parent={"name": artifact.name, "sha256": artifact.sha256},
        seed=artifact.lineage.seed,
        notes=notes,
        artifact=artifact,
    )


def source_from_model(model: str, *, task: Task | None = None, out_features: tuple[str, ...] = ()) -> Source:
    """What ``--model`` names: an artifact folder, a Hugging Face folder, or a hub id.

    Raises:
        SpecError: When it is neither a folder nor of the form of a hub id.
        ArtifactError: When the hub cannot be reached or has no such model.
        CheckpointError: When the weights cannot be read.
    """
    path = Path(model)
    if (path / LINEAGE).is_file():
        return source_from_artifact(read_artifact(path), task=task, out_features=out_features)
    if path.is_dir():
        return source_from_weights(path, task=task, out_features=out_features)
    if path.is_file():
        raise SpecError(f"{model} is a file; give a checkpoint file with --weights.")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise SpecError(f"There is no folder {model}, and it is no hub id such as microsoft/swinv2-tiny-patch4-window8-256.")
    try:
        folder = download(model)
    except HubUnreachable as error:
        raise ArtifactError(
            f"There is no folder {model}, and the hub cannot be reached for the model of that name ({error}). Download it where "
            "there is a network and give its folder."
        ) from error
    variant = next((variant for variant in VARIANTS.values() if variant.hub_id == model), None)
    source = source_from_weights(folder, variant=None, task=task, out_features=out_features)
    origin = WeightsOrigin(kind="hub", source=model, sha256=_folder_sha256(folder))
    return replace(source, origin=origin, name=variant.name if variant else model.split("/")[1])


def _about_channels(preprocessing: Preprocessing) -> list[str]:
    """What has to be said of a model that does not read RGB and came without its preprocessing."""
    if preprocessing.channels == 3:
        return []
    assumed = f"mean {preprocessing.mean} and std {preprocessing.std}"
    if preprocessing.channels == 1:
        return [f"The model reads gray; {assumed} are assumed. Put those of its training into preprocessor_config.json."]
    return [
        f"The model reads {preprocessing.channels} channels; {assumed} are written down. Commands that look at photographs refuse "
        "it."
    ]


def published_preprocessing(variant: Variant) -> Preprocessing:
    """The evaluation recipe of a published model."""
    size = (variant.resolution, variant.resolution)
    return Preprocessing(size=size, resize_shortest=variant.resize_shortest)


def untrained_model(config: SwinV2Config, seed: int) -> SwinV2:
    """A model with seeded random weights in which every parameter matters.

    The published initialization sets the gains after attention and MLP to zero, so that an untrained model computes next to nothing
    and no drift could be seen in it; here they are one.
    """
    model = initialize(build_model(config), torch.Generator().manual_seed(seed))
    for module in model.modules():
        if isinstance(module, Block):
            for norm in (module.norm1, module.norm2):
                if isinstance(norm, nn.LayerNorm):
                    nn.init.ones_(norm.weight)
    return model.eval()


def _in_options(message: str) -> str:
    """The leaf names its own arguments; a user of the command line types options."""
    message = re.sub(r"variant='([^']+)'", r"--size \1", message)
    message = re.sub(r"num_classes=(\d+)", r"--classes \1", message)
    return message.replace("load it with task 'encoder' or 'backbone'", "add --task encoder or --task backbone")


def _with_task(
    config: SwinV2Config, task: Task | None, out_features: tuple[str, ...], upscale: int | None = None
) -> SwinV2Config:
    if task is None or task == config.task:
        return config
    if task == "classification":
        raise CheckpointError("This model has no classifier; choose --task encoder or backbone.")
    features = out_features or config.stage_names[-1:]
    return replace(
        config,
        task=task,
        num_classes=0,
        labels=(),
        out_features=features if task == "backbone" else (),
        upscale=(upscale or UPSCALES[0]) if task == "image_reconstruction" else 1,
    )


def _retasked(model: SwinV2, task: Task, out_features: tuple[str, ...]) -> SwinV2:
    if model.config.task == "backbone" and task != "backbone":
        raise CheckpointError("This model is a backbone, which has no final norm; give the weights it was made from.")
    if task in DECODER_TASKS:
        raise CheckpointError(
            f"This model has no decoder for {task.replace('_', ' ')}; choose --task encoder or backbone, or give weights with one."
        )
    config = _with_task(model.config, task, out_features)
    if task == "backbone" and out_features:
        config = replace(config, out_features=out_features)
    made = build_model(config)
    state = encoder_parameters(model.state_dict())
    made.load_state_dict(state if task != "classification" else model.state_dict())
    return made.eval()


def _named(config: SwinV2Config, stored: SwinV2Config | None) -> SwinV2Config:
    """The variant's config with the class names of the checkpoint."""
    if stored is None or stored.num_classes != config.num_classes:
        return config
    return replace(config, labels=stored.labels)


def _folder_sha256(folder: Path) -> str:
    """Hash of the weights in a folder: of its one weights file, or of the hashes of its shards."""
    names = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth"))
    return file_sha256(names[0]) if len(names) == 1 else ",".join(file_sha256(path) for path in names)
