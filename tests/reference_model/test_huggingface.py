"""To Hugging Face's format and back: transformers computes the same, and what it cannot express is refused."""

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

from reference_model.checkpoint import (
    CheckpointError,
    config_from_huggingface,
    config_to_huggingface,
    load_model,
    load_weights,
    state_to_huggingface,
)
from reference_model.config import SwinV2Config, Task
from reference_model.model import SwinV2
from reference_model.variants import VARIANTS

transformers = pytest.importorskip("transformers")


@pytest.fixture
def config(tiny_config: SwinV2Config) -> SwinV2Config:
    return replace(tiny_config, labels=("ant", "bee", "cat", "dog", "eel"), pretrained_window_sizes=(6, 3), drop_path_rate=0.1)


def write(folder: Path, model: SwinV2) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_to_huggingface(model.config)), "utf-8")
    tensors = state_to_huggingface(model.state_dict(), model.config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_transformers_loads_our_classifier_with_equal_logits(
    config: SwinV2Config, randomized: Callable[..., SwinV2], images_of: Callable[..., Tensor], tmp_path: Path
) -> None:
    model = randomized(config)
    theirs, report = transformers.Swinv2ForImageClassification.from_pretrained(
        write(tmp_path / "hf", model), output_loading_info=True
    )

    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "eel"}
    images = images_of(32, 32, batch=2)
    with torch.no_grad():
        assert float((model(images) - theirs.eval()(images).logits).abs().max()) <= 1e-5


def test_transformers_loads_our_encoder_and_backbone(
    config: SwinV2Config, randomized: Callable[..., SwinV2], images_of: Callable[..., Tensor], tmp_path: Path
) -> None:
    bare = replace(config, task="encoder", num_classes=0, labels=())
    encoder = randomized(bare)
    backbone = randomized(replace(bare, task="backbone", out_features=("stem", "stage2")))
    their_encoder = transformers.Swinv2Model.from_pretrained(write(tmp_path / "encoder", encoder)).eval()
    their_backbone = transformers.Swinv2Backbone.from_pretrained(write(tmp_path / "backbone", backbone)).eval()
    images = images_of(32, 32)
    with torch.no_grad():
        ours, theirs = encoder(images), their_encoder(images)
        assert float((ours.last_hidden_state - theirs.last_hidden_state).abs().max()) <= 1e-5
        assert float((ours.pooler_output - theirs.pooler_output).abs().max()) <= 1e-5
        maps = their_backbone(images).feature_maps
        for ours_map, their_map in zip(backbone(images).values(), maps, strict=True):
            assert float((ours_map - their_map).abs().max()) <= 1e-5


@pytest.mark.parametrize("task", ["classification", "encoder", "backbone", "masked_image_modeling"])
def test_round_trip_changes_nothing(
    task: Task, config: SwinV2Config, randomized: Callable[..., SwinV2], tmp_path: Path
) -> None:
    if task != "classification":
        features = ("stage1", "stage2") if task == "backbone" else ()
        config = replace(config, task=task, num_classes=0, labels=(), out_features=features)
    model = randomized(config)
    folder = write(tmp_path / "hf", model)

    loaded = load_model(folder)

    assert load_weights(folder).format == "huggingface"
    assert loaded.config == config
    unused = ("norm.weight", "norm.bias") if task == "backbone" else ()  # a backbone of transformers has no final norm
    kept = loaded.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items() if name not in unused)


@pytest.mark.parametrize("kind", ["Swinv2ForImageClassification", "Swinv2ForMaskedImageModeling"])
@pytest.mark.parametrize("shard", ["1KB", "1GB"])
def test_folder_that_transformers_wrote_loads(kind: str, shard: str, images_of: Callable[..., Tensor], tmp_path: Path) -> None:
    values = {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "num_labels": 2}
    with torch.random.fork_rng():
        theirs = getattr(transformers, kind)(transformers.Swinv2Config(**values, encoder_stride=8)).eval()
        torch.nn.init.normal_(theirs.swinv2.embeddings.norm.bias)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)

    weights = load_weights(tmp_path)
    model = load_model(tmp_path)

    images = images_of(32, 32)
    with torch.no_grad():
        if "Masked" in kind:
            assert sorted(weights.extras) == ["decoder.0.bias", "decoder.0.weight", "mask_token"]
            assert float((model(images) - theirs(images).reconstruction).abs().max()) <= 1e-5
            expected = theirs.swinv2(images).last_hidden_state
            assert float((load_model(tmp_path, task="encoder")(images).last_hidden_state - expected).abs().max()) <= 1e-5
        else:
            assert float((model(images) - theirs(images).logits).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", [name for name in VARIANTS if "giant" not in name])
def test_config_of_every_variant_survives_the_round_trip(name: str) -> None:
    config = VARIANTS[name].config

    assert config_from_huggingface(json.loads(json.dumps(config_to_huggingface(config)))) == config


def test_config_left_at_transformers_defaults_is_understood() -> None:
    """config.json leaves out what equals the defaults of the class."""
    defaults = transformers.Swinv2Config()
    config = config_from_huggingface({"model_type": "swinv2", "architectures": ["Swinv2ForImageClassification"]})

    for name in ("embed_dim", "window_size", "drop_path_rate", "qkv_bias", "patch_size", "num_channels", "layer_norm_eps"):
        assert getattr(config, name) == getattr(defaults, name)
    assert config.image_size == (defaults.image_size,) * 2
    assert config.depths == tuple(defaults.depths)
    assert [heads[0] for heads in config.num_heads] == list(defaults.num_heads)
    assert config.num_classes == defaults.num_labels


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_heads": ((2, 1), (4, 4))}, "different numbers of heads"),
        ({"num_heads": ((1, 1), (4, 4))}, "is not the width of the stage"),
        ({"mlp_hidden": ((64, 64), (120, 128))}, "one MLP ratio cannot give"),
        ({"extra_norm_period": 2}, "no extra norm after every 2 blocks"),
        ({"removed_norms": ((0, 1, "norm2"),)}, "cannot leave out the norms"),
        ({"use_absolute_embeddings": True}, "its absolute embedding has one row too many"),
        ({"patch_norm": False}, "it always normalizes the patches"),
        ({"layer_norm_eps": 1e-6}, "applies layer_norm_eps 1e-06 to some norms"),
        ({"pretrained_window_sizes": (4, 1)}, "divides by zero"),
        ({"image_size": (16, 64), "window_size": 8}, "it uses other windows"),
        ({"task": "image_reconstruction", "upscale": 2}, "no class for task 'image_reconstruction'"),
        (
            {"task": "masked_image_modeling", "image_size": (32, 64)},
            "reconstructs only squares of whole tokens of 4 px, not 32x64",
        ),
        (
            {"task": "masked_image_modeling", "image_size": (30, 30)},
            "reconstructs only squares of whole tokens of 4 px, not 30x30",
        ),
    ],
)
def test_model_that_transformers_cannot_express_is_refused(changes: dict[str, Any], reason: str, config: SwinV2Config) -> None:
    changed = replace(config, **changes)

    with pytest.raises(CheckpointError, match=f"Swinv2 cannot express this model: .*{reason}.* Keep it in this project's own"):
        config_to_huggingface(changed)
    with pytest.raises(CheckpointError, match=reason):
        state_to_huggingface({}, changed)


def test_a_period_of_extra_norms_longer_than_every_stage_is_none(config: SwinV2Config) -> None:
    longer = replace(config, extra_norm_period=max(config.depths) + 1)

    assert config_to_huggingface(longer) == config_to_huggingface(config)


def test_absolute_embedding_does_not_run_in_transformers() -> None:
    """Why it is refused: the table has one row more than there are patches."""
    values = {"embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 4, "image_size": 32}
    model = transformers.Swinv2Model(transformers.Swinv2Config(**values, use_absolute_embeddings=True))

    with pytest.raises(RuntimeError, match="must match"):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "swin"}, "model_type 'swin'; expected 'swinv2'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"use_absolute_embeddings": True}, "cannot run such a Swinv2 itself"),
        ({"layer_norm_eps": 1e-6}, "only 1e-05 is unambiguous"),
        ({"patch_size": [4, 2]}, "only square patches exist"),
        ({"num_heads": [3]}, "num_heads has 1 entries"),
        ({"depths": [2, 2, 10**12, 2]}, "a stage has at most 1000 blocks"),
        ({"image_size": [64]}, "does not describe a Swinv2"),
        (
            {"architectures": ["Swinv2ForMaskedImageModeling"], "depths": [2, 2], "num_heads": [3, 6]},
            "encoder_stride 32; one token of this encoder is 8 px wide, and only that",
        ),
        ({"window_size": None}, "does not describe a Swinv2"),
        ({"id2label": {"first": "a"}}, "does not describe a Swinv2"),
    ],
)
def test_config_that_we_do_not_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_huggingface({"model_type": "swinv2"} | changes)


def test_classifier_and_labels_must_agree(config: SwinV2Config, randomized: Callable[..., SwinV2], tmp_path: Path) -> None:
    folder = write(tmp_path / "hf", randomized(config))
    values = json.loads((folder / "config.json").read_text("utf-8"))
    values["id2label"] = {str(i): f"class {i}" for i in range(21841)}
    (folder / "config.json").write_text(json.dumps(values), "utf-8")

    with pytest.raises(CheckpointError, match=r"num_classes \(classes\): the weights have 5, the config says 21841"):
        load_model(folder)


def test_incomplete_attention_is_refused(config: SwinV2Config, randomized: Callable[..., SwinV2], tmp_path: Path) -> None:
    folder = write(tmp_path / "hf", randomized(config))
    tensors = state_to_huggingface(randomized(config).state_dict(), config)
    del tensors["swinv2.encoder.layers.0.blocks.1.attention.self.key.weight"]
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"lack layers\.0\.blocks\.1\.attn\.qkv\.weight"):
        load_model(folder)
