"""Load weights of Microsoft, SimMIM, timm, Hugging Face or this project into our model, strictly.

The layout is recognized by what the file holds. Every tensor must find its place and every place its tensor: what is missing,
unexpected or of another shape is listed and stops the load. Nothing is dropped but what :class:`LoadedWeights` names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference_model.checkpoint_config import (
    config_from_buffers,
    config_from_microsoft,
    infer_config,
    matching_variants,
    measure,
    mismatches,
)
from reference_model.checkpoint_files import CheckpointError, RawCheckpoint, listing, read_checkpoint, read_json
from reference_model.checkpoint_formats import Format, NativeWeights, native_from_any
from reference_model.config import DECODER_TASKS, UPSCALES, ConfigError, SwinV2Config, Task
from reference_model.huggingface import config_from_huggingface, config_to_huggingface, state_to_huggingface
from reference_model.model import SwinV2, build_model
from reference_model.variants import VARIANTS, Variant

__all__ = [
    "CheckpointError",
    "Format",
    "LoadedWeights",
    "config_from_huggingface",
    "config_to_huggingface",
    "infer_config",
    "load_model",
    "load_weights",
    "model_from_weights",
    "state_to_huggingface",
]

_LOGGER = logging.getLogger(__name__)
_HEAD = ("head.weight", "head.bias")
_DECODER = ("decoder.0.weight", "decoder.0.bias")
_HEADS: dict[Task, tuple[str, ...]] = {
    "classification": _HEAD,
    "masked_image_modeling": ("mask_token", *_DECODER),
    "image_reconstruction": _DECODER,
}
_FINAL_NORM = ("norm.weight", "norm.bias")
_COMPARED = (
    "image_size",
    "patch_size",
    "num_channels",
    "embed_dim",
    "depths",
    "num_heads",
    "head_dims",
    "mlp_hidden",
    "window_size",
    "pretrained_window_sizes",
    "extra_norm_period",
    "removed_norms",
    "layer_norm_eps",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedWeights:
    """Weights of a checkpoint under our names, in float32.

    Attributes:
        path: Where they came from.
        format: The layout they came in. Old timm files have exactly our own names and count as ``native``.
        state_dict: Parameters of the encoder and, if the checkpoint has one, the classifier.
        extras: ``mask_token`` and ``decoder.0.*`` of a model that returns an image, which other tasks leave out.
        config: What the checkpoint says about its architecture; None when it does not say enough.
        notes: What was left out or changed on the way, or will be left out by most tasks, one sentence each.
    """

    path: Path
    format: Format
    state_dict: dict[str, Tensor]
    extras: dict[str, Tensor]
    config: SwinV2Config | None
    notes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Rows of the classifier, 0 when there is none."""
        head = self.state_dict.get("head.weight")
        return 0 if head is None else int(head.shape[0])

    @property
    def masked_image_model(self) -> bool:
        """Whether these are weights for masked image modeling: a decoder, and a token for what is hidden."""
        return self.extras.keys() >= set(_HEADS["masked_image_modeling"])


def load_weights(path: str | Path) -> LoadedWeights:
    """Read weights from a file or a folder, whatever layout they have.

    The config comes from, in this order: the folder's ``config.json`` (ours, Hugging Face's, or timm's if it names a published
    model), the settings in a Microsoft training checkpoint, the derived buffers in a Microsoft release file.

    Args:
        path: A ``.safetensors``, ``.pth`` or ``.bin`` file, or a folder that holds one under its usual name.

    Raises:
        CheckpointError: When it is missing, damaged, hostile or no Swin Transformer V2.
    """
    path = Path(path)
    raw = read_checkpoint(path)
    native = native_from_any(raw.tensors)
    state_dict, notes = _to_float32(path, native.state_dict)
    measured = measure(state_dict)
    config = _config_of(path, raw, native, measured)
    if native.wrapper:
        notes.append(f"Took {native.wrapper!r} off the names.")
    if native.buffers:
        notes.append(f"Dropped {len(native.buffers)} derived buffers, which the model computes itself.")
    if native.extras:
        notes.append(f"Holds {listing(sorted(native.extras))}, which only a model that returns an image uses.")
    return LoadedWeights(
        path=path,
        format=native.format,
        state_dict=state_dict,
        extras=_to_float32(path, native.extras)[0],
        config=config,
        notes=tuple(notes),
    )


def load_model(
    path: str | Path,
    *,
    task: Task | None = None,
    variant: str | Variant | None = None,
    config: SwinV2Config | None = None,
    num_classes: int | None = None,
    out_features: tuple[str, ...] = (),
) -> SwinV2:
    """Model with the weights of ``path``, in evaluation mode.

    Args:
        path: File or folder, see :func:`load_weights`.
        task: What the model is for; by default what the checkpoint or config says. A classifier is dropped, with a note in the
            log, when the task has none; it is never invented.
        variant: Published model the weights belong to, needed where the file itself does not tell its window and resolution.
        config: The same, for a model of your own. Give one of the two at most.
        num_classes: Classes of weights fine-tuned from ``variant`` with another classifier.
        out_features: For a backbone, the maps to return; by default the last stage's.

    Raises:
        CheckpointError: When the weights cannot be read or do not fit; the message lists what disagrees.
    """
    weights = load_weights(path)
    if variant is not None and config is not None:
        raise CheckpointError("Both a variant and a config were given; give the one that the weights belong to.")
    if variant is not None:
        config = _variant_config(variant)
        task = task or task_for_variant(config, weights)
    if config is not None and num_classes is not None:
        try:
            config = replace(config, num_classes=num_classes, labels=config.labels if config.num_classes == num_classes else ())
        except ConfigError as error:
            raise CheckpointError(f"num_classes {num_classes} does not fit: {error}") from error
    for note in weights.notes:
        _LOGGER.info("%s: %s", weights.path, note)
    return model_from_weights(weights, config=config, task=task, out_features=out_features)


def model_from_weights(
    weights: LoadedWeights,
    *,
    config: SwinV2Config | None = None,
    task: Task | None = None,
    out_features: tuple[str, ...] = (),
) -> SwinV2:
    """Model with ``weights``, in evaluation mode.

    Args:
        weights: From :func:`load_weights`.
        config: Architecture to compare with what the checkpoint says, or to use where it says nothing.
        task: What the model is for; by default the config's.
        out_features: For a backbone, the maps to return; by default the config's, else the last stage's.

    Raises:
        CheckpointError: When the weights do not fit.
    """
    config = _agreed_config(weights, config)
    config = _for_task(config, weights, task or config.task, out_features)
    with torch.device("meta"):  # shapes only: a hostile file must not decide how much memory is taken
        model = build_model(config)
    state_dict = weights.state_dict | weights.extras
    unused = [name for names in _HEADS.values() for name in names if name not in _HEADS.get(config.task, ())]
    dropped = [name for name in dict.fromkeys(unused) if state_dict.pop(name, None) is not None]
    if dropped:
        _LOGGER.info("%s: dropped %s, which task %r has no use for.", weights.path, listing(dropped), config.task)
    if config.task == "backbone" and not any(name in state_dict for name in _FINAL_NORM):
        # Hugging Face's backbones have no final norm, and ours returns only maps before it.
        state_dict |= {"norm.weight": torch.ones(config.final_dim), "norm.bias": torch.zeros(config.final_dim)}
    _check_fit(model, state_dict, weights.path)
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model.eval()


def task_for_variant(config: SwinV2Config, weights: LoadedWeights) -> Task | None:
    """Task of weights that belong to a published encoder: of the SimMIM models, with or without the decoder."""
    return "masked_image_modeling" if config.task == "encoder" and weights.masked_image_model else None


def _agreed_config(weights: LoadedWeights, given: SwinV2Config | None) -> SwinV2Config:
    measured = measure(weights.state_dict)
    stored = weights.config
    if given is not None and stored is not None:
        lines = [
            f"{name}: the checkpoint says {getattr(stored, name)}, the given config {getattr(given, name)}"
            for name in _COMPARED
            if getattr(stored, name) != getattr(given, name)
        ]
        if lines:
            raise CheckpointError(f"{weights.path} is not the given model:\n  " + "\n  ".join(lines) + _suggestion(measured))
    config = given or stored
    if config is None:
        raise CheckpointError(
            f"{weights.path} does not tell its window and resolution, and no config.json lies beside it."
            + _suggestion(measured, "Say which model it is: its tensors fit")
        )
    lines = mismatches(measured, config)
    if lines:
        hint = _suggestion(measured)
        if len(lines) == 1 and lines[0].startswith("num_classes"):
            hint = f"\nIf the weights were fine-tuned for {weights.num_classes} classes, say num_classes={weights.num_classes}."
        raise CheckpointError(f"{weights.path} does not fit the config:\n  " + "\n  ".join(lines) + hint)
    return config


def _for_task(config: SwinV2Config, weights: LoadedWeights, task: Task, out_features: tuple[str, ...]) -> SwinV2Config:
    if task == "classification" and not weights.num_classes:
        raise CheckpointError(
            f"{weights.path} holds no classifier (head.weight is missing); load it with task 'encoder' or 'backbone', or give "
            "weights that were fine-tuned for classification."
        )
    if task in DECODER_TASKS and _DECODER[0] not in weights.extras:
        raise CheckpointError(
            f"{weights.path} holds no decoder ({_DECODER[0]} is missing); load it with task 'encoder' or 'backbone', or give "
            f"weights that were trained for {task}."
        )
    features = (out_features or config.out_features or config.stage_names[-1:]) if task == "backbone" else ()
    try:
        return replace(
            config,
            task=task,
            num_classes=weights.num_classes if task == "classification" else 0,
            labels=config.labels if task == "classification" else (),
            out_features=features,
            upscale=_upscale(config, weights) if task == "image_reconstruction" else 1,
        )
    except ConfigError as error:
        raise CheckpointError(f"{weights.path} cannot be loaded for task {task!r}: {error}") from error


def _upscale(config: SwinV2Config, weights: LoadedWeights) -> int:
    """How many times larger the decoder makes an image, from the number of its outputs."""
    rows = weights.extras[_DECODER[0]].shape[0]
    expected = {config.num_channels * (config.encoder_stride * scale) ** 2: scale for scale in UPSCALES}
    if rows not in expected:
        raise CheckpointError(
            f"{weights.path} has a decoder with {rows} outputs; expected one of {expected} (outputs: upscale) for the "
            f"{config.encoder_stride} px that this encoder makes one token of. Choose another task, or other weights."
        )
    return expected[rows]


def _check_fit(model: SwinV2, state_dict: Mapping[str, Tensor], path: Path) -> None:
    places = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in places if name not in state_dict]
    unexpected = [name for name in state_dict if name not in places]
    misshapen = [
        f"{name} is {tuple(tensor.shape)} instead of {places[name]}"
        for name, tensor in state_dict.items()
        if name in places and tuple(tensor.shape) != places[name]
    ]
    problems = [
        f"{len(names)} {kind}: {listing(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        reasons = "\n  ".join(problems)
        raise CheckpointError(f"{path} does not fit the model:\n  {reasons}\nThe file is damaged, or belongs to another model.")


def _config_of(path: Path, raw: RawCheckpoint, native: NativeWeights, measured: Mapping[str, Any]) -> SwinV2Config | None:
    file = path / "config.json" if path.is_dir() else None
    if file is not None and file.is_file():
        values = read_json(file)
        if "model_type" in values:
            return config_from_huggingface(values, num_classes=measured["num_classes"] or None)
        if "architecture" in values:  # timm: {"architecture": "swinv2_tiny_window8_256", "num_classes": 1000, ...}
            return _timm_config(values, measured, file)
        try:
            return SwinV2Config.from_dict(values)
        except ConfigError as error:
            raise CheckpointError(f"{file} is no config of this project, Hugging Face or timm: {error}") from error
    config = config_from_microsoft(raw.settings, measured) or config_from_buffers(native.buffers, measured)
    if config is not None and config.task == "encoder" and native.extras.keys() >= set(_HEADS["masked_image_modeling"]):
        return replace(config, task="masked_image_modeling")
    return config


def _timm_config(values: Mapping[str, Any], measured: Mapping[str, Any], file: Path) -> SwinV2Config:
    name = str(values["architecture"])
    found = next((v for v in VARIANTS.values() if v.timm_id and name in (v.timm_id, v.timm_id.split(".")[0])), None)
    if found is None:
        known = ", ".join(variant.timm_id for variant in VARIANTS.values() if variant.timm_id)
        raise CheckpointError(f"{file} names timm's model {name!r}; known are {known}.")
    classes = values.get("num_classes", found.config.num_classes)
    if not isinstance(classes, int) or classes < 0:
        raise CheckpointError(f"{file} has num_classes {classes!r}; expected a whole number.")
    task: Task = "classification" if classes and measured["num_classes"] else "encoder"
    return replace(found.config, task=task, num_classes=classes if task == "classification" else 0)


def _variant_config(variant: str | Variant) -> SwinV2Config:
    if isinstance(variant, Variant):
        return variant.config
    if variant not in VARIANTS:
        raise CheckpointError(f"There is no variant {variant!r}; known are {', '.join(VARIANTS)}.")
    return VARIANTS[variant].config


def _suggestion(measured: Mapping[str, Any], words: str = "Its tensors fit") -> str:
    names = matching_variants(measured)
    if not names:
        return "\nIts tensors fit no published model; give the config it was trained with."
    return f"\n{words} " + " or ".join(f"variant={name!r}" for name in names) + "."


def _copy(tensor: Tensor) -> Tensor:
    """A copy in float32 that shares memory with no file and no other tensor."""
    return tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _to_float32(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    odd = sorted(name for name, tensor in tensors.items() if not tensor.is_floating_point())
    if odd:
        raise CheckpointError(
            f"{path} holds weights that are no floating point numbers: {listing(odd)}; quantized files are not read."
        )
    converted = {name: _copy(tensor) for name, tensor in tensors.items()}
    broken = sorted(name for name, tensor in converted.items() if not bool(torch.isfinite(tensor).all()))
    if broken:
        raise CheckpointError(f"{path} holds NaN or infinite weights: {listing(broken)}; the training had diverged.")
    types = sorted({str(tensor.dtype) for tensor in tensors.values()} - {"torch.float32"})
    return converted, [f"Converted from {', '.join(types)} to torch.float32."] if types else []
