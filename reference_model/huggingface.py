"""Configs and weights in the form that transformers' Swinv2 reads, where that form can express the model.

Source: huggingface/transformers models/swinv2 (5.23).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reference_model.checkpoint_config import checked_depths
from reference_model.checkpoint_files import CheckpointError
from reference_model.checkpoint_formats import huggingface_from_native
from reference_model.config import ConfigError, SwinV2Config, Task, make_config
from reference_model.windows import plan_windows, stage_maps

ARCHITECTURES: dict[Task, str] = {
    "classification": "Swinv2ForImageClassification",
    "encoder": "Swinv2Model",
    "backbone": "Swinv2Backbone",
    "masked_image_modeling": "Swinv2ForMaskedImageModeling",
}
_TASKS: dict[str, Task] = {name: task for task, name in ARCHITECTURES.items()}
_WRAPPED: tuple[Task, ...] = ("classification", "masked_image_modeling")
"""Tasks whose class keeps the encoder in its attribute ``swinv2``."""
_DEFAULTS: dict[str, Any] = {  # config.json leaves out what equals these
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "drop_path_rate": 0.1,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
    "encoder_stride": 32,
}
_GENERIC_LABEL = re.compile(r"LABEL_\d+")


def config_from_huggingface(values: Mapping[str, Any], *, num_classes: int | None = None) -> SwinV2Config:
    """Config from the content of a Hugging Face ``config.json``.

    Args:
        values: The parsed file.
        num_classes: Rows of the classifier, for a file that names no classes.

    Raises:
        CheckpointError: When it is no Swinv2, or one that this model does not compute.
    """
    if values.get("model_type") != "swinv2":
        raise CheckpointError(f"config.json has model_type {values.get('model_type')!r}; expected 'swinv2'.")
    merged = _DEFAULTS | dict(values)
    if merged["hidden_act"] != "gelu":
        raise CheckpointError(f"config.json has hidden_act {merged['hidden_act']!r}; this model computes 'gelu' only.")
    if merged["use_absolute_embeddings"]:
        raise CheckpointError("config.json has use_absolute_embeddings; transformers cannot run such a Swinv2 itself.")
    if merged["layer_norm_eps"] != 1e-5:
        raise CheckpointError(
            f"config.json has layer_norm_eps {merged['layer_norm_eps']}, which transformers applies to some norms and not to "
            "others; only 1e-05 is unambiguous."
        )
    architectures = values.get("architectures") or []
    task = next((_TASKS[name] for name in architectures if name in _TASKS), "classification" if num_classes else "encoder")
    try:
        labels = [str(name) for _, name in sorted((values.get("id2label") or {}).items(), key=lambda item: int(item[0]))]
        classes = len(labels) or num_classes or int(values.get("num_labels", 2)) if task == "classification" else 0
        named = task == "classification" and not all(_GENERIC_LABEL.fullmatch(label) for label in labels)
        stages = [f"stage{i + 1}" for i in range(len(merged["depths"]))]
        features = tuple(values.get("out_features") or stages[-1:]) if task == "backbone" else ()
        config = make_config(
            embed_dim=int(merged["embed_dim"]),
            depths=checked_depths(merged["depths"]),
            num_heads=tuple(merged["num_heads"]),
            window_size=int(merged["window_size"]),
            image_size=_side_or_pair(merged["image_size"]),
            # transformers reads one a stage and ignores the rest: its default has four whatever the depths
            pretrained_window_sizes=tuple(merged.get("pretrained_window_sizes") or ())[: len(stages)] or None,
            mlp_ratio=float(merged["mlp_ratio"]),
            task=task,
            patch_size=_side(merged["patch_size"]),
            num_channels=int(merged["num_channels"]),
            qkv_bias=bool(merged["qkv_bias"]),
            drop_path_rate=float(merged["drop_path_rate"]),
            num_classes=classes,
            labels=tuple(labels) if named else (),
            out_features=features,
        )
    except (ConfigError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"config.json does not describe a Swinv2: {error}") from error
    if task == "masked_image_modeling" and merged["encoder_stride"] != config.encoder_stride:
        raise CheckpointError(
            f"config.json has encoder_stride {merged['encoder_stride']}; one token of this encoder is {config.encoder_stride} px "
            "wide, and only that gives an image of the input's size. Correct it, or load the weights as an encoder."
        )
    return config


def config_to_huggingface(config: SwinV2Config) -> dict[str, Any]:
    """Content of a ``config.json`` with which transformers computes the same as this model.

    Raises:
        CheckpointError: When transformers' Swinv2 cannot express the model; every reason is listed.
    """
    reasons = _inexpressible(config)
    if reasons:
        raise CheckpointError(
            "Hugging Face's Swinv2 cannot express this model: " + "; ".join(reasons) + ". Keep it in this project's own format."
        )
    height, width = config.image_size
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.task]],
        "model_type": "swinv2",
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": [heads[0] for heads in config.num_heads],
        "window_size": config.window_size,
        "pretrained_window_sizes": list(config.pretrained_window_sizes),
        "mlp_ratio": _mlp_ratio(config),
        "qkv_bias": config.qkv_bias,
        "hidden_act": "gelu",
        "drop_path_rate": config.drop_path_rate,
        "use_absolute_embeddings": False,
        "layer_norm_eps": config.layer_norm_eps,
    }
    if config.task == "classification":
        labels = config.labels or tuple(f"LABEL_{i}" for i in range(config.num_classes))
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    if config.task == "masked_image_modeling":
        values["encoder_stride"] = config.encoder_stride
    if config.task == "backbone":
        # transformers wants the maps in the order of the stages
        values["out_features"] = [name for name in config.stage_names if name in config.out_features]
    return values


def state_to_huggingface(state_dict: Mapping[str, Tensor], config: SwinV2Config) -> dict[str, Tensor]:
    """Weights under the names of the transformers class that :func:`config_to_huggingface` gives, no more and no fewer.

    Raises:
        CheckpointError: When transformers' Swinv2 cannot express the model.
    """
    config_to_huggingface(config)
    # Swinv2Backbone has no final norm: it returns maps before it.
    kept = {name: value for name, value in state_dict.items() if config.task != "backbone" or not name.startswith("norm.")}
    return huggingface_from_native(kept, "swinv2." if config.task in _WRAPPED else "")


def _inexpressible(config: SwinV2Config) -> list[str]:
    reasons = []
    if config.task not in ARCHITECTURES:
        reasons.append(f"it has no class for task {config.task!r}")
    height, width = config.image_size
    if config.task == "masked_image_modeling" and (height != width or height % config.encoder_stride):
        reasons.append(f"it reconstructs only squares of whole tokens of {config.encoder_stride} px, not {height}x{width} px")
    if any(len(set(heads)) > 1 for heads in config.num_heads):
        reasons.append(f"the blocks of a stage have different numbers of heads {config.num_heads}")
    elif any(config.num_heads[i][0] * config.head_dims[i] != config.stage_dim(i) for i in range(config.num_stages)):
        reasons.append("heads times channels of a head is not the width of the stage, as after head pruning")
    if _mlp_ratio(config) is None:
        reasons.append(f"one MLP ratio cannot give the hidden units {config.mlp_hidden}")
    if config.has_extra_norms:
        reasons.append(f"it has no extra norm after every {config.extra_norm_period} blocks")
    if config.removed_norms:
        reasons.append(f"it cannot leave out the norms {config.removed_norms}")
    if config.use_absolute_embeddings:
        reasons.append("its absolute embedding has one row too many and does not run")
    if not config.patch_norm:
        reasons.append("it always normalizes the patches")
    if config.layer_norm_eps != 1e-5:
        reasons.append(f"it applies layer_norm_eps {config.layer_norm_eps} to some norms and 1e-05 to the others")
    if 1 in config.pretrained_window_sizes:
        reasons.append("a pretrained window of 1 divides by zero there")
    if not _same_windows(config):
        reasons.append(
            f"at image_size {config.image_size} it uses other windows (it rounds odd maps down, and keeps one window and shift "
            "for both axes); with a square image_size of whole windows the same weights can be written"
        )
    return reasons


def _same_windows(config: SwinV2Config) -> bool:
    """Whether transformers cuts a map of ``config.image_size`` as our window plan does."""
    height, width = config.image_size
    for stage, maps in enumerate(stage_maps(height, width, config.patch_size, config.num_stages)):
        plan = plan_windows(*maps, config.window_size, shifted=True, policy=config.window_policy)
        frozen = height // config.patch_size // 2**stage
        window = min(frozen, config.window_size)
        shift = config.window_size // 2 if frozen > window else 0
        if set(plan.window) != {window} or set(plan.shift) != {shift}:
            return False
    return True


def _mlp_ratio(config: SwinV2Config) -> float | None:
    ratio = config.mlp_hidden[0][0] / config.embed_dim
    even = all(hidden == int(ratio * config.stage_dim(i)) for i, stage in enumerate(config.mlp_hidden) for hidden in stage)
    return ratio if even else None


def _side(value: Any) -> int:
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise ConfigError(f"patch_size is {value}; only square patches exist")
        return int(value[0])
    return int(value)


def _side_or_pair(value: Any) -> int | tuple[int, int]:
    if isinstance(value, list | tuple):
        height, width = value
        return (int(height), int(width))
    return int(value)
