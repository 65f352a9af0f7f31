"""Names of weights in the published layouts, and the way from each to ours, which is Microsoft's.

| layout      | recognized by                              | differs from ours in                                        |
|-------------|--------------------------------------------|-------------------------------------------------------------|
| microsoft   | derived buffers stored with the weights    | those buffers                                               |
| simmim      | ``encoder.patch_embed.proj.weight``        | ``encoder.`` before every name, ``rpe_mlp`` for ``cpb_mlp`` |
| timm        | ``head.fc.`` or patch merging a stage late | patch merging opens the next stage; old files equal ours    |
| huggingface | ``embeddings.patch_embeddings.projection`` | every name; separate query, key and value                   |

Training frameworks put names of their own before all of these (``module.``, ``model.``, ``net.backbone.``): whatever stands before
the one patch embedding is taken off.

Source: microsoft/Swin-Transformer utils_simmim.py (f82860b); timm 1.0.31 swin_transformer_v2.py checkpoint_filter_fn;
transformers 5.23 models/swinv2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reference_model.checkpoint_files import CheckpointError, listing

Format = Literal["huggingface", "microsoft", "native", "simmim", "timm"]

_BUFFERS = ("relative_coords_table", "relative_position_index", "attn_mask")
_EXTRAS = ("mask_token", "decoder.0.weight", "decoder.0.bias")
_STAGE = re.compile(r"layers\.(\d{1,3})\.(.+)")
_BLOCK = re.compile(r"layers\.(\d{1,3})\.blocks\.(\d{1,4})\.(.+)")
_HF_BLOCK = re.compile(r"encoder\.layers\.(\d{1,3})\.blocks\.(\d{1,4})\.(.+)")

_HF_TOP = {
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "patch_embed.norm.weight": "embeddings.norm.weight",
    "patch_embed.norm.bias": "embeddings.norm.bias",
    "mask_token": "embeddings.mask_token",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_HF_IN_BLOCK = {
    "attn.logit_scale": "attention.self.logit_scale",
    "attn.cpb_mlp.0.weight": "attention.self.continuous_position_bias_mlp.0.weight",
    "attn.cpb_mlp.0.bias": "attention.self.continuous_position_bias_mlp.0.bias",
    "attn.cpb_mlp.2.weight": "attention.self.continuous_position_bias_mlp.2.weight",
    "attn.q_bias": "attention.self.query.bias",
    "attn.v_bias": "attention.self.value.bias",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "norm1.weight": "layernorm_before.weight",
    "norm1.bias": "layernorm_before.bias",
    "mlp.fc1.weight": "intermediate.dense.weight",
    "mlp.fc1.bias": "intermediate.dense.bias",
    "mlp.fc2.weight": "output.dense.weight",
    "mlp.fc2.bias": "output.dense.bias",
    "norm2.weight": "layernorm_after.weight",
    "norm2.bias": "layernorm_after.bias",
}
_HF_QKV = tuple(f"attention.self.{part}.weight" for part in ("query", "key", "value"))
_TOP_FROM_HF = {theirs: ours for ours, theirs in _HF_TOP.items()}
_BLOCK_FROM_HF = {theirs: ours for ours, theirs in _HF_IN_BLOCK.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeWeights:
    """Weights under our names.

    Attributes:
        state_dict: Parameters of the encoder and classifier; names that no layout knows keep theirs and fail the strict load.
        format: The layout they came in.
        buffers: Derived tensors that some files store, under our names; the model computes its own.
        extras: ``mask_token`` and ``decoder.0.*`` of a model that returns an image.
        wrapper: What stood before the names of a layout, such as ``model.`` in a training framework's checkpoint; empty for none.
    """

    state_dict: dict[str, Tensor]
    format: Format
    buffers: dict[str, Tensor]
    extras: dict[str, Tensor]
    wrapper: str = ""


def native_from_any(tensors: Mapping[str, Tensor]) -> NativeWeights:
    """Recognize the layout of ``tensors`` and rename them.

    Raises:
        CheckpointError: When it is no Swin Transformer V2, or two names become one.
    """
    names = {_without(name, ("module.", "_orig_mod.")): name for name in tensors}
    wrapper = _wrapper(names)
    names = {_without(name, (wrapper,)): old for name, old in names.items()}
    _refuse_other_models(names)
    layout: Format = "native"
    if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in names):
        layout = "huggingface"
        renamed = _from_huggingface({_without(name, ("swinv2.",)): tensors[old] for name, old in names.items()})
    else:
        prefixes: tuple[str, ...] = ()
        if "encoder.patch_embed.proj.weight" in names:
            layout, prefixes = "simmim", ("encoder.",)
        pairs = [(_without(name, prefixes).replace(".rpe_mlp.", ".cpb_mlp."), tensors[old]) for name, old in names.items()]
        renamed = _rename(pairs)
        if any(name.startswith("head.fc.") for name in renamed) or _merging_opens_stage(renamed):
            layout = "timm"
            renamed = _from_timm(renamed)
    if "patch_embed.proj.weight" not in renamed:
        raise CheckpointError(
            "These weights are no Swin Transformer V2 in a known layout: there is no 'patch_embed.proj.weight', but names like "
            f"{listing(sorted(tensors), 4)}. Known layouts are those of Microsoft, SimMIM, timm and Hugging Face."
        )
    buffers = {name: tensor for name, tensor in renamed.items() if _is_derived(name, tensor)}
    extras = {name: tensor for name, tensor in renamed.items() if name in _EXTRAS}
    if buffers and layout == "native":
        layout = "microsoft"
    state = {name: tensor for name, tensor in renamed.items() if name not in buffers and name not in extras}
    return NativeWeights(state_dict=state, format=layout, buffers=buffers, extras=extras, wrapper=wrapper)


def huggingface_from_native(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Rename our weights to Hugging Face's names, with ``prefix`` (``"swinv2."`` or nothing) before the encoder's."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        block = _BLOCK.fullmatch(name)
        if name.startswith("head."):
            renamed["classifier" + name.removeprefix("head")] = tensor
        elif name.startswith("decoder."):
            renamed[name] = tensor
        elif block is None:
            renamed[prefix + _HF_TOP.get(name, f"encoder.{name}")] = tensor
        else:
            path = f"{prefix}encoder.layers.{block[1]}.blocks.{block[2]}."
            if block[3] == "attn.qkv.weight":
                for part, rows in zip(_HF_QKV, tensor.chunk(3), strict=True):
                    renamed[path + part] = rows.contiguous()
            else:
                renamed[path + _HF_IN_BLOCK[block[3]]] = tensor
    return renamed


def _from_huggingface(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    pairs: list[tuple[str, Tensor]] = []
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        block = _HF_BLOCK.fullmatch(name)
        if block is not None:
            path = f"layers.{block[1]}.blocks.{block[2]}."
            if block[3] in _HF_QKV:
                parts.setdefault(path, {})[block[3]] = tensor
            else:
                pairs.append((path + _BLOCK_FROM_HF.get(block[3], block[3]), tensor))
        elif name.startswith("classifier."):
            pairs.append(("head." + name.removeprefix("classifier."), tensor))
        elif name.startswith("encoder.layers."):
            pairs.append((name.removeprefix("encoder."), tensor))
        else:
            pairs.append((_TOP_FROM_HF.get(name, name), tensor))
    for path, found in parts.items():
        if len(found) == 3 and all(tensor.ndim == 2 for tensor in found.values()):
            pairs.append((path + "attn.qkv.weight", torch.cat([found[part] for part in _HF_QKV])))
        else:  # incomplete: left under their own names, so that the strict load lists them
            pairs.extend((path + part, tensor) for part, tensor in found.items())
    return _rename(pairs)


def _merging_opens_stage(tensors: Mapping[str, Tensor]) -> bool:
    stages = {int(match[1]) for match in map(_STAGE.fullmatch, tensors) if match}
    merging = {int(match[1]) for match in map(_STAGE.fullmatch, tensors) if match and match[2].startswith("downsample.")}
    return bool(merging) and 0 not in merging and max(stages) in merging


def _from_timm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    late = _merging_opens_stage(tensors)
    pairs = []
    for name, tensor in tensors.items():
        match = _STAGE.fullmatch(name)
        if late and match and match[2].startswith("downsample."):
            name = f"layers.{int(match[1]) - 1}.{match[2]}"
        elif name.startswith("head.fc."):
            name = "head." + name.removeprefix("head.fc.")
        pairs.append((name, tensor))
    return _rename(pairs)


def _is_derived(name: str, tensor: Tensor) -> bool:
    if name.endswith(".k_bias"):  # timm's placeholder; a key bias with values would be another model
        return not bool(tensor.any())
    return name.endswith(_BUFFERS)


def _wrapper(names: Mapping[str, str]) -> str:
    """What stands before the one patch embedding there is, less what a layout has there itself."""
    ends = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
    found = {name.removesuffix(end) for name in names for end in ends if name.endswith(f".{end}")}
    if len(found) != 1:
        return ""
    prefix = found.pop()
    for own in ("encoder.", "swinv2."):
        prefix = prefix.removesuffix(own)
    return prefix


def _refuse_other_models(names: Mapping[str, str]) -> None:
    if any(name.endswith("relative_position_bias_table") for name in names):
        raise CheckpointError(
            "These weights are a Swin Transformer of version 1: they hold 'relative_position_bias_table'. Expected version 2, "
            "which computes that table with 'cpb_mlp'; choose a swinv2 checkpoint."
        )
    if any(".attn.meta_mlp." in name for name in names):
        raise CheckpointError(
            "These weights are of timm's swinv2_cr, another model than Swin Transformer V2 as published: they hold "
            "'attn.meta_mlp'. Expected 'attn.cpb_mlp'; choose a checkpoint of timm's swinv2 models, without cr."
        )
    if any(name.endswith("embeddings.position_embeddings") for name in names):
        raise CheckpointError(
            "These Hugging Face weights hold 'embeddings.position_embeddings', with one row more than there are patches; "
            "transformers itself cannot run such a Swinv2, so there is nothing to reproduce."
        )


def _without(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _rename(pairs: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    renamed = dict(pairs)
    if len(renamed) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise CheckpointError(f"Two tensors of the checkpoint mean the same weight: {listing(twice)}. Keep one of each.")
    return renamed
