"""A checkpoint that does not fit is refused, with what is wrong and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reference_model.checkpoint import CheckpointError, infer_config, load_model, load_weights, model_from_weights
from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from reference_model.variants import VARIANTS


@pytest.fixture
def state(tiny_config: SwinV2Config, randomized: Callable[..., SwinV2]) -> dict[str, Tensor]:
    return dict(randomized(tiny_config).state_dict())


@pytest.fixture
def load(tiny_config: SwinV2Config, tmp_path: Path) -> Callable[..., SwinV2]:
    """Function that saves a state dict and loads it with the config of the tiny model, or with changes to it."""

    def run(state: dict[str, Tensor], **changes: Any) -> SwinV2:
        save_file(state, tmp_path / "weights")
        return load_model(tmp_path / "weights", config=replace(tiny_config, **changes))

    return run


def test_fitting_weights_load(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    assert all(torch.equal(tensor, state[name]) for name, tensor in load(state).state_dict().items())


def test_safetensors_file_that_begins_like_a_pickle_loads(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Every 32nd length of a header begins with 0x80, as every pickle does."""
    for length in range(0, 300, 8):
        save_file(state, tmp_path / "weights", metadata={"note": "x" * length})
        if (tmp_path / "weights").read_bytes()[0] == 0x80:
            break
    assert (tmp_path / "weights").read_bytes()[0] == 0x80

    loaded = load_weights(tmp_path / "weights").state_dict

    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "name",
    ["norm.bias", "layers.0.blocks.1.norm2.weight", "layers.1.blocks.0.attn.proj.bias", "layers.0.downsample.norm.weight"],
)
def test_missing_weight_is_named(name: str, state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    del state[name]

    with pytest.raises(CheckpointError, match=rf"does not fit the model:\n  1 missing: {name}\nThe file is damaged"):
        load(state)


@pytest.mark.parametrize(
    "name", ["patch_embed.proj.weight", "layers.1.blocks.0.attn.logit_scale", "layers.0.blocks.0.attn.qkv.weight"]
)
def test_missing_weight_that_decides_the_architecture_is_named(
    name: str, state: dict[str, Tensor], load: Callable[..., SwinV2]
) -> None:
    del state[name]

    with pytest.raises(CheckpointError, match=name):
        load(state)


def test_unexpected_weights_are_listed_and_the_list_is_cut(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    state |= {f"stranger.{i:02d}": torch.zeros(1) for i in range(20)}

    with pytest.raises(CheckpointError, match=r"20 unexpected: stranger\.00, .*stranger\.07 and 12 more\n"):
        load(state)


def test_extra_norms_of_a_model_described_without_are_refused(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    norms = {f"layers.{i}.blocks.1.norm3.{kind}": torch.ones(16 * 2**i) for i in (0, 1) for kind in ("weight", "bias")}

    with pytest.raises(CheckpointError, match=r"extra_norm_period: the weights have 2, the config says 0"):
        load(state | norms)
    assert load(state | norms, extra_norm_period=2).config.extra_norm_period == 2


def test_a_period_of_extra_norms_longer_than_every_stage_needs_none(
    state: dict[str, Tensor], load: Callable[..., SwinV2]
) -> None:
    """Two blocks a stage: every second one would have its norm, no third one is there."""
    assert load(state, extra_norm_period=3).config.extra_norm_period == 3
    with pytest.raises(CheckpointError, match=r"extra_norm_period: the weights have 0, the config says 2"):
        load(state, extra_norm_period=2)


def test_key_bias_with_values_is_refused(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    """timm stores zeros there; anything else would be another model."""
    state["layers.0.blocks.0.attn.k_bias"] = torch.ones(16)

    with pytest.raises(CheckpointError, match=r"1 unexpected: layers\.0\.blocks\.0\.attn\.k_bias"):
        load(state)


def test_misshapen_weight_is_named(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    state["layers.0.downsample.reduction.weight"] = torch.zeros(32, 65)

    with pytest.raises(CheckpointError, match=r"of another shape: .*reduction\.weight is \(32, 65\) instead of \(32, 64\)"):
        load(state)


def test_other_number_of_classes_is_reported_and_can_be_confirmed(
    state: dict[str, Tensor], tiny_config: SwinV2Config, load: Callable[..., SwinV2], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(state, num_classes=1000)

    assert "num_classes (classes): the weights have 5, the config says 1000" in str(caught.value)
    assert str(caught.value).endswith("If the weights were fine-tuned for 5 classes, say num_classes=5.")
    model = load_model(tmp_path / "weights", config=replace(tiny_config, num_classes=1000), num_classes=5)
    assert model.config.num_classes == 5


def test_every_mismatch_is_one_line(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(state, num_heads=((2, 2), (8, 8)), head_dims=(8, 4), patch_size=4)

    lines = str(caught.value).splitlines()
    assert "  patch_size: the weights have 2, the config says 4" in lines
    assert "  num_heads (heads of each block): the weights have (2, 4), the config says (2, 8)" in lines
    assert "  head_dims (channels of a head): the weights have 8, the config says (8, 4)" in lines


def test_missing_classifier_is_not_invented(state: dict[str, Tensor], load: Callable[..., SwinV2], tmp_path: Path) -> None:
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}

    with pytest.raises(CheckpointError, match=r"holds no classifier .* load it with task 'encoder'"):
        load(headless)


def test_file_that_does_not_tell_its_window_asks_for_it(
    randomized: Callable[..., SwinV2], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    variant = VARIANTS["nano"]
    save_file(dict(randomized(variant.config).state_dict()), tmp_path / "nano")
    save_file(state, tmp_path / "own")

    with pytest.raises(
        CheckpointError, match=r"does not tell its window and resolution, .*\n.* its tensors fit variant='nano'\."
    ):
        load_model(tmp_path / "nano")
    assert load_model(tmp_path / "nano", variant="nano").config == variant.config
    assert load_model(tmp_path / "nano", variant=variant).config == variant.config
    with pytest.raises(CheckpointError, match="fit no published model; give the config it was trained with"):
        load_model(tmp_path / "own")
    with pytest.raises(CheckpointError, match="There is no variant 'pico'; known are swinv2-tiny"):
        load_model(tmp_path / "nano", variant="pico")


def test_config_in_the_folder_and_the_given_one_must_agree(
    state: dict[str, Tensor], tiny_config: SwinV2Config, tmp_path: Path
) -> None:
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config.to_dict()), "utf-8")

    with pytest.raises(CheckpointError, match=r"window_size: the checkpoint says 4, the given config 8"):
        load_model(tmp_path, config=replace(tiny_config, window_size=8))
    with pytest.raises(CheckpointError, match="Both a variant and a config were given"):
        load_model(tmp_path, config=tiny_config, variant="nano")


def test_config_of_pruned_weights_is_inferred(
    tiny_config: SwinV2Config, randomized: Callable[..., SwinV2], tmp_path: Path
) -> None:
    """Uneven heads and MLPs are read from the shapes; window and resolution come from the model it was cut from."""
    pruned = replace(tiny_config, num_heads=((1, 2), (4, 3)), mlp_hidden=((64, 40), (8, 128)), num_classes=3)
    model = randomized(pruned)
    save_file(dict(model.state_dict()), tmp_path / "pruned")

    weights = load_weights(tmp_path / "pruned")

    assert infer_config(weights.state_dict, tiny_config) == pruned
    loaded = model_from_weights(weights, config=infer_config(weights.state_dict, tiny_config))
    images = torch.ones(1, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))


def test_removed_norm_must_be_absent(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    """What the config removes may not be in the file, and the model then runs without."""
    removed = ((0, 1, "norm2"),)
    with pytest.raises(CheckpointError, match=r"2 unexpected: layers\.0\.blocks\.1\.norm2\.bias"):
        load(state, removed_norms=removed)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("layers.0.blocks.1.norm2")}
    assert load(kept, removed_norms=removed).config.removed_norms == removed


def test_gap_in_the_blocks_is_reported(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    with pytest.raises(CheckpointError, match="expected every stage and block from 0 without a gap"):
        load({name: tensor for name, tensor in state.items() if "layers.1.blocks.0" not in name})


def test_version_1_is_named(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    state["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.zeros(49, 2)

    with pytest.raises(CheckpointError, match="are a Swin Transformer of version 1"):
        load(state)


def test_other_model_is_named_by_its_weights(load: Callable[..., SwinV2]) -> None:
    with pytest.raises(CheckpointError, match=r"no 'patch_embed\.proj\.weight', but names like fc\.weight\. Known layouts"):
        load({"fc.weight": torch.zeros(2, 2)})


def test_two_names_for_one_weight_are_refused(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    with pytest.raises(CheckpointError, match=r"mean the same weight: head\.bias"):
        load(state | {"head.fc.bias": state["head.bias"].clone()})


def test_diverged_weights_are_refused(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    state["norm.bias"] = torch.full((32,), float("nan"))

    with pytest.raises(CheckpointError, match=r"NaN or infinite weights: norm\.bias"):
        load(state)


def test_quantized_weights_are_refused(state: dict[str, Tensor], load: Callable[..., SwinV2]) -> None:
    state["head.weight"] = torch.zeros(5, 32, dtype=torch.int8)

    with pytest.raises(CheckpointError, match=r"no floating point numbers: head\.weight; quantized files are not read"):
        load(state)
