"""What a checkpoint says about its architecture: by tensor shapes, by derived buffers, by Microsoft's training settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from reference_model.checkpoint_files import CheckpointError
from reference_model.config import ConfigError, SwinV2Config, make_config
from reference_model.variants import VARIANTS

MAX_DEPTH = 1000
"""Blocks of a stage accepted from a config file; the deepest published stage has 18."""

_BLOCK = re.compile(r"layers\.(\d{1,3})\.blocks\.(\d{1,4})\.")
_MEASURED_WORDS = {
    "embed_dim": "channels of the first stage",
    "depths": "blocks in each stage",
    "num_heads": "heads of each block",
    "head_dims": "channels of a head",
    "mlp_hidden": "MLP hidden units of each block",
    "num_classes": "classes",
}


def measure(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of a config that tensor shapes decide, by the names of :class:`SwinV2Config`.

    Args:
        state_dict: Weights under our names.

    Raises:
        CheckpointError: When a tensor is missing or its shape makes no sense.
    """
    patch = _shape(state_dict, "patch_embed.proj.weight", 4)
    if patch[2] != patch[3]:
        raise CheckpointError(f"patch_embed.proj.weight has patches of {patch[2]}x{patch[3]} px; only square patches exist.")
    depths = _depths(state_dict)
    heads, hidden, head_dims = [], [], []
    for stage, depth in enumerate(depths):
        paths = [f"layers.{stage}.blocks.{block}." for block in range(depth)]
        heads.append(tuple(_shape(state_dict, path + "attn.logit_scale", 3)[0] for path in paths))
        hidden.append(tuple(_shape(state_dict, path + "mlp.fc1.weight", 2)[0] for path in paths))
        rows = [_shape(state_dict, path + "attn.qkv.weight", 2)[0] for path in paths]
        widths = {row / (3 * max(count, 1)) for row, count in zip(rows, heads[-1], strict=True)}
        width = widths.pop()
        if widths or width != int(width) or width < 1:
            raise CheckpointError(
                f"Stage {stage} has attn.qkv.weight with {rows} rows for {list(heads[-1])} heads; "
                "expected 3 * heads * channels of a head, equal for all blocks of a stage."
            )
        head_dims.append(int(width))
    return {
        "embed_dim": patch[0],
        "num_channels": patch[1],
        "patch_size": patch[2],
        "depths": tuple(depths),
        "num_heads": tuple(heads),
        "head_dims": tuple(head_dims),
        "mlp_hidden": tuple(hidden),
        "qkv_bias": "layers.0.blocks.0.attn.q_bias" in state_dict,
        "use_absolute_embeddings": "absolute_pos_embed" in state_dict,
        "patch_norm": "patch_embed.norm.weight" in state_dict,
        "extra_norm_period": _extra_norm_period(state_dict),
        "num_classes": _shape(state_dict, "head.weight", 2)[0] if "head.weight" in state_dict else 0,
    }


def infer_config(state_dict: Mapping[str, Tensor], like: SwinV2Config) -> SwinV2Config:
    """Config of ``state_dict``: widths from the tensors, windows, resolution and everything else from ``like``.

    Raises:
        CheckpointError: When the two cannot be combined, as with another number of stages.
    """
    measured = measure(state_dict)
    task = "encoder" if like.task == "classification" and not measured["num_classes"] else like.task
    labels = like.labels if measured["num_classes"] == like.num_classes else ()
    try:
        return replace(like, **measured, task=task, labels=labels)
    except ConfigError as error:
        raise CheckpointError(f"The weights do not fit the given config: {error}") from error


def mismatches(measured: Mapping[str, Any], config: SwinV2Config) -> list[str]:
    """One line for every field on which tensor shapes and ``config`` disagree.

    A missing classifier is none of them: the strict load decides whether the task needs one.
    """
    lines = []
    for name, found in measured.items():
        wanted = getattr(config, name)
        if found == wanted or (name == "num_classes" and 0 in (found, wanted)):
            continue
        if name == "extra_norm_period" and not found and not config.has_extra_norms:
            continue
        words = f"{name} ({_MEASURED_WORDS[name]})" if name in _MEASURED_WORDS else name
        lines.append(f"{words}: the weights have {_short(found)}, the config says {_short(wanted)}")
    return lines


def matching_variants(measured: Mapping[str, Any]) -> list[str]:
    """Names of the published models whose tensors have these shapes."""
    return [name for name, variant in VARIANTS.items() if not mismatches(measured, variant.config)]


def config_from_microsoft(settings: Mapping[str, Any], measured: Mapping[str, Any]) -> SwinV2Config | None:
    """Config from the settings in a Microsoft training checkpoint; None when there are none for Swin V2.

    Raises:
        CheckpointError: When the settings are there and contradict themselves.
    """
    try:
        tree = settings["config"]
        model, image_size = tree["MODEL"], tree["DATA"]["IMG_SIZE"]
        if model["TYPE"] != "swinv2":
            return None
        swin = model["SWINV2"]
        classes = int(model.get("NUM_CLASSES", 1000)) if measured["num_classes"] else 0
        return make_config(
            embed_dim=int(swin["EMBED_DIM"]),
            depths=checked_depths(swin["DEPTHS"]),
            num_heads=[int(heads) for heads in swin["NUM_HEADS"]],
            window_size=int(swin["WINDOW_SIZE"]),
            image_size=int(image_size),
            pretrained_window_sizes=[int(size) for size in swin["PRETRAINED_WINDOW_SIZES"]],
            mlp_ratio=float(swin.get("MLP_RATIO", 4.0)),
            patch_size=int(swin.get("PATCH_SIZE", 4)),
            num_channels=int(swin.get("IN_CHANS", 3)),
            qkv_bias=bool(swin.get("QKV_BIAS", True)),
            use_absolute_embeddings=bool(swin.get("APE", False)),
            patch_norm=bool(swin.get("PATCH_NORM", True)),
            task="classification" if classes else "encoder",
            num_classes=classes,
        )
    except (KeyError, TypeError, AttributeError, IndexError):
        return None  # not Microsoft's settings, or too few of them
    except ValueError as error:
        raise CheckpointError(f"The settings stored in the checkpoint contradict themselves: {error}") from error


def config_from_buffers(buffers: Mapping[str, Tensor], measured: Mapping[str, Any]) -> SwinV2Config | None:
    """Config from the derived tensors that Microsoft's files store; None when they do not decide it.

    The shape of ``relative_coords_table`` (1, 2w-1, 2w-1, 2) is the window, its largest value the pretrained window, and the
    number of windows in ``attn_mask`` (n, w*w, w*w) the resolution. A shifted block without mask saw its map in one window.
    """
    windows, pretrained, image_size = [], [], 0
    for stage, depth in enumerate(measured["depths"]):
        table = buffers.get(f"layers.{stage}.blocks.0.attn.relative_coords_table")
        if table is None or table.ndim != 4 or table.shape[1] != table.shape[2] or not table.is_floating_point():
            return None
        window = (table.shape[1] + 1) // 2
        windows.append(window)
        pretrained.append(_pretrained_window(window, float(table.max())))
        if not image_size and depth > 1:
            mask = buffers.get(f"layers.{stage}.blocks.1.attn_mask")
            count = 1 if mask is None else mask.shape[0]
            if math.isqrt(count) ** 2 != count:
                return None
            image_size = window * math.isqrt(count) * measured["patch_size"] * 2**stage
    if not image_size:
        return None
    same = pretrained == windows
    try:
        return SwinV2Config(
            **measured,
            task="classification" if measured["num_classes"] else "encoder",
            image_size=(image_size, image_size),
            window_size=max(windows),
            pretrained_window_sizes=(0,) * len(windows) if same else tuple(pretrained),
        )
    except ConfigError:
        return None


def checked_depths(values: Sequence[Any]) -> tuple[int, ...]:
    """Depths read from a file, before anything of their size is built.

    Raises:
        ConfigError: When a stage is said to have more than :data:`MAX_DEPTH` blocks.
    """
    depths = tuple(int(value) for value in values)
    if max(depths, default=0) > MAX_DEPTH:
        raise ConfigError(f"depths is {depths}; a stage has at most {MAX_DEPTH} blocks.")
    return depths


def _pretrained_window(window: int, largest: float) -> int:
    """Solve ``largest = log2(8 * (window - 1) / (pretrained - 1) + 1) / 3`` for the pretrained window."""
    if window == 1 or not 0 < largest < 10:
        return window
    return round(1 + 8 * (window - 1) / (2 ** (3 * largest) - 1))


def _depths(state_dict: Mapping[str, Tensor]) -> list[int]:
    blocks = {(int(match[1]), int(match[2])) for match in map(_BLOCK.match, state_dict) if match}
    stages = 1 + max((stage for stage, _ in blocks), default=-1)
    depths = [sum(1 for stage, _ in blocks if stage == wanted) for wanted in range(stages)]
    expected = {(stage, block) for stage, depth in enumerate(depths) for block in range(depth)}
    if not depths or 0 in depths or blocks != expected:
        raise CheckpointError(
            f"The weights have blocks {sorted(blocks)[:8]} (stage, block); expected every stage and block from 0 without a gap."
        )
    return depths


def _extra_norm_period(state_dict: Mapping[str, Tensor]) -> int:
    with_norm = [int(match[2]) + 1 for name in state_dict if name.endswith(".norm3.weight") and (match := _BLOCK.match(name))]
    return min(with_norm, default=0)


def _shape(state_dict: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    tensor = state_dict.get(name)
    if tensor is None:
        raise CheckpointError(f"The weights lack {name}; the file is incomplete, download it again.")
    if tensor.ndim != ndim or 0 in tensor.shape:
        raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}; expected {ndim} dimensions, none of them 0.")
    return tuple(tensor.shape)


def _short(value: object) -> str:
    """Tuples of equal numbers as one number: 18 blocks of 12 heads read better as ``12``."""
    if isinstance(value, tuple):
        parts = [_short(item) for item in value]
        return parts[0] if len(set(parts)) == 1 and not isinstance(value[0], tuple) else "(" + ", ".join(parts) + ")"
    return str(value)
