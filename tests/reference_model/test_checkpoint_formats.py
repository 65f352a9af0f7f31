"""Weights in every published layout become the same model, recognized by what the file holds."""

from __future__ import annotations

import json
import logging
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reference_model.checkpoint import CheckpointError, LoadedWeights, load_model, load_weights, model_from_weights
from reference_model.checkpoint_formats import huggingface_from_native
from reference_model.config import SwinV2Config
from reference_model.model import SwinV2, SwinV2Backbone, SwinV2Classifier
from reference_model.variants import VARIANTS

Golden = Callable[[str], tuple[SwinV2Config, dict[str, Tensor], dict[str, Tensor]]]
DERIVED = ("relative_coords_table", "relative_position_index", "attn_mask")


@pytest.fixture
def native(golden: Golden) -> tuple[SwinV2Config, dict[str, Tensor]]:
    """Config and state dict of Microsoft's golden model under our names, without derived buffers."""
    config, state, _ = golden("microsoft")
    config = replace(config, image_size=(64, 64))
    return config, {name: tensor for name, tensor in state.items() if not name.endswith(DERIVED)}


def timm_from_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def moved(name: str) -> str:
        return re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)

    return {moved(name).replace("head.", "head.fc."): tensor for name, tensor in state.items()}


def assert_same(weights: LoadedWeights, state: dict[str, Tensor]) -> None:
    assert weights.state_dict.keys() == state.keys()
    assert all(torch.equal(weights.state_dict[name], tensor) for name, tensor in state.items())


def test_microsoft_release_file_needs_no_config(golden: Golden, tmp_path: Path) -> None:
    """Its derived buffers tell window, pretrained windows and resolution."""
    config, state, outputs = golden("microsoft")
    torch.save({"model": state}, tmp_path / "release.pth")

    weights = load_weights(tmp_path / "release.pth")
    model = load_model(tmp_path / "release.pth")

    assert weights.format == "microsoft"
    assert weights.config == replace(config, image_size=(64, 64))
    assert weights.notes == ("Dropped 10 derived buffers, which the model computes itself.",)
    assert not model.training
    with torch.no_grad():
        assert float((model(outputs["64x64.input"]) - outputs["64x64.logits"]).abs().max()) <= 1e-5


def test_microsoft_training_file_brings_its_settings(
    native: tuple[SwinV2Config, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A yacs node in the pickle is read as a dict, with neither yacs nor its class there."""
    config, state = native
    yacs = types.ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    yacs.CfgNode = node  # type: ignore[attr-defined]

    def tree(values: dict[str, Any]) -> Any:
        made = node({key: tree(value) if isinstance(value, dict) else value for key, value in values.items()})
        made.__dict__["__immutable__"] = True
        return made

    swin = {"EMBED_DIM": 8, "DEPTHS": [2, 2], "NUM_HEADS": [1, 2], "WINDOW_SIZE": 4, "PRETRAINED_WINDOW_SIZES": [3, 2]}
    settings = tree({"DATA": {"IMG_SIZE": 64}, "MODEL": {"TYPE": "swinv2", "NUM_CLASSES": 5, "SWINV2": swin}})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", yacs)
        optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-3}]}
        torch.save({"model": state, "optimizer": optimizer, "epoch": 3, "config": settings}, tmp_path / "ckpt_epoch_3.pth")

    weights = load_weights(tmp_path / "ckpt_epoch_3.pth")

    assert weights.config == config
    assert_same(weights, state)


def test_simmim_file_is_a_masked_image_model_whose_encoder_loads_alone(golden: Golden, tmp_path: Path) -> None:
    _, state, outputs = golden("simmim")
    torch.save({"model": state}, tmp_path / "pretrained.pth")

    weights = load_weights(tmp_path / "pretrained.pth")
    model = model_from_weights(weights, task="encoder")

    assert weights.format == "simmim"
    assert sorted(weights.extras) == ["decoder.0.bias", "decoder.0.weight", "mask_token"]
    assert any(note.startswith("Holds decoder.0.bias, decoder.0.weight, mask_token, which only") for note in weights.notes)
    assert weights.config is not None
    assert weights.config.task == "masked_image_modeling"
    assert model.config.task == "encoder"
    assert model.config.image_size == (32, 32)
    with torch.no_grad():
        tokens = model(outputs["32x32.input"]).last_hidden_state
    assert float((tokens - outputs["32x32.encoded"].flatten(2).transpose(1, 2)).abs().max()) <= 1e-5


def test_timm_file_loads(golden: Golden, tmp_path: Path) -> None:
    config, state, outputs = golden("timm")
    save_file(state, tmp_path / "any.name")

    weights = load_weights(tmp_path / "any.name")
    model = load_model(tmp_path / "any.name", config=config)

    assert weights.format == "timm"
    assert weights.config is None
    with torch.no_grad():
        assert float((model(outputs["32x32.input"]) - outputs["32x32.logits"]).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (lambda state: state, "native"),
        (lambda state: {name: value for name, value in timm_from_native(state).items() if "head" not in name}, "timm"),
        (lambda state: {name.replace("head.", "head.fc."): value for name, value in state.items()}, "timm"),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, "native"),
        (lambda state: state | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}, "microsoft"),
        (lambda state: state | {"layers.0.blocks.0.attn.k_bias": torch.zeros(8)}, "microsoft"),
        (lambda state: {name.replace("cpb_mlp", "rpe_mlp"): value for name, value in state.items()}, "native"),
        (lambda state: huggingface_from_native(state, "swinv2."), "huggingface"),
        (lambda state: huggingface_from_native(state, ""), "huggingface"),
        (lambda state: {f"model.{name}": value for name, value in state.items()}, "native"),
        (lambda state: {f"net.backbone.{name.replace('head.', 'head.fc.')}": value for name, value in state.items()}, "timm"),
        (
            lambda state: {f"model.{name}": value for name, value in huggingface_from_native(state, "swinv2.").items()},
            "huggingface",
        ),
        (
            lambda state: {f"module.model.encoder.{name}": value for name, value in state.items() if "head" not in name},
            "simmim",
        ),
    ],
    ids=[
        "ours",
        "timm-headless",
        "timm-mixed",
        "parallel",
        "masks",
        "k-bias",
        "rpe",
        "huggingface",
        "huggingface-bare",
        "wrapped",
        "wrapped-timm",
        "wrapped-huggingface",
        "wrapped-simmim",
    ],
)
@pytest.mark.parametrize("container", ["safetensors", "pth", "state_dict", "legacy"])
def test_layout_is_recognized_by_content(
    layout: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    expected: str,
    container: str,
    native: tuple[SwinV2Config, dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    """Every layout in every container, under a name that says nothing."""
    _, state = native
    tensors = layout(state)
    path = tmp_path / "weights"
    if container == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        content = {"state_dict": tensors, "epoch": 1} if container == "state_dict" else tensors
        torch.save(content, path, _use_new_zipfile_serialization=container != "legacy")

    weights = load_weights(path)

    assert weights.format == expected
    headless = all("head" not in name and "classifier" not in name for name in tensors)
    assert_same(weights, {name: tensor for name, tensor in state.items() if not (headless and name.startswith("head."))})


def test_what_was_taken_off_the_names_is_said(native: tuple[SwinV2Config, dict[str, Tensor]], tmp_path: Path) -> None:
    _, state = native
    save_file({f"net.model.{name}": tensor for name, tensor in state.items()}, tmp_path / "wrapped.safetensors")

    assert "Took 'net.model.' off the names." in load_weights(tmp_path / "wrapped.safetensors").notes


def test_of_two_models_in_one_file_none_is_chosen(native: tuple[SwinV2Config, dict[str, Tensor]], tmp_path: Path) -> None:
    _, state = native
    both = {f"{who}.{name}": tensor.clone() for who in ("teacher", "student") for name, tensor in state.items()}
    save_file(both, tmp_path / "both.safetensors")

    with pytest.raises(CheckpointError, match=r"no 'patch_embed.proj.weight', but names like student\."):
        load_weights(tmp_path / "both.safetensors")


def test_what_is_beside_a_wrapped_model_is_listed(native: tuple[SwinV2Config, dict[str, Tensor]], tmp_path: Path) -> None:
    config, state = native
    save_file(
        {f"model.{name}": tensor for name, tensor in state.items()} | {"neck.0.weight": torch.zeros(1)}, tmp_path / "w.st"
    )

    with pytest.raises(CheckpointError, match=r"1 unexpected: neck\.0\.weight"):
        load_model(tmp_path / "w.st", config=config)


def test_the_other_swinv2_of_timm_is_named(tmp_path: Path) -> None:
    tensors = {
        "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4),
        "stages.0.blocks.0.attn.meta_mlp.fc1.weight": torch.zeros(4, 2),
    }
    save_file(tensors, tmp_path / "cr.safetensors")

    with pytest.raises(CheckpointError, match="timm's swinv2_cr, another model"):
        load_weights(tmp_path / "cr.safetensors")


def test_half_precision_becomes_float32_and_is_noted(native: tuple[SwinV2Config, dict[str, Tensor]], tmp_path: Path) -> None:
    _, state = native
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.safetensors")

    weights = load_weights(tmp_path / "half.safetensors")

    assert weights.notes == ("Converted from torch.float16 to torch.float32.",)
    assert_same(weights, {name: tensor.half().float() for name, tensor in state.items()})


def write_folder(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int = 1, kind: str = "safetensors"
) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = [f"{stem}.{kind}"] if shards == 1 else [f"{stem}-{i:05d}-of-{shards:05d}.{kind}" for i in range(1, shards + 1)]
    for i, name in enumerate(names):
        part = {key: value.contiguous() for j, (key, value) in enumerate(sorted(tensors.items())) if j % shards == i}
        save_file(part, folder / name) if kind == "safetensors" else torch.save(part, folder / name)
    if shards > 1:
        weight_map = {key: names[j % shards] for j, key in enumerate(sorted(tensors))}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_own_folder_loads_in_one_file_or_shards(
    kind: str, shards: int, native: tuple[SwinV2Config, dict[str, Tensor]], tmp_path: Path
) -> None:
    config, state = native
    config = replace(config, labels=("a", "b", "c", "d", "e"))
    folder = write_folder(tmp_path / "model", config.to_dict(), state, shards, kind)

    assert_same(load_weights(folder), state)
    assert load_model(folder).config == config


def test_timm_folder_is_the_variant_it_names(tmp_path: Path) -> None:
    """A hub folder of timm has "architecture" in its config, and maybe a classifier of its own."""
    values = {"architecture": "swinv2_tiny_window8_256", "num_classes": 7, "pretrained_cfg": {"tag": "ms_in1k"}}
    variant = replace(VARIANTS["swinv2-tiny-patch4-window8-256"].config, num_classes=7)
    with torch.device("meta"):
        shapes = SwinV2Classifier(variant).state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}
    folder = write_folder(tmp_path / "model", values, timm_from_native(state))

    assert load_weights(folder).config == variant

    (folder / "config.json").write_text(json.dumps(values | {"architecture": "swinv2_cr_tiny_224"}), "utf-8")
    with pytest.raises(CheckpointError, match=r"names timm's model 'swinv2_cr_tiny_224'; known are swinv2_tiny_window8_256"):
        load_weights(folder)


def test_classifier_can_become_encoder_or_backbone_and_says_what_it_drops(
    native: tuple[SwinV2Config, dict[str, Tensor]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, state = native
    save_file(state, tmp_path / "weights")

    with caplog.at_level(logging.INFO, logger="reference_model.checkpoint"):
        backbone = load_model(tmp_path / "weights", config=config, task="backbone", out_features=("stem", "stage2"))

    assert isinstance(backbone, SwinV2Backbone)
    assert list(backbone(torch.zeros(1, 3, 64, 64))) == ["stem", "stage2"]
    assert "dropped head.weight, head.bias, which task 'backbone' has no use for" in caplog.text
    assert load_model(tmp_path / "weights", config=config, task="encoder").config.num_classes == 0


def test_loading_leaves_the_file_free(native: tuple[SwinV2Config, dict[str, Tensor]], tmp_path: Path) -> None:
    """Weights are a copy: overwriting the file afterwards does not change them."""
    _, state = native
    path = tmp_path / "weights"
    save_file(state, path)
    weights = load_weights(path)
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.write(b"\xff" * size)

    assert_same(weights, state)


def test_model_trains_from_loaded_weights(native: tuple[SwinV2Config, dict[str, Tensor]], tmp_path: Path) -> None:
    config, state = native
    save_file(state, tmp_path / "weights")
    model: SwinV2 = load_model(tmp_path / "weights", config=config)
    model(torch.ones(1, 3, 64, 64)).sum().backward()

    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
