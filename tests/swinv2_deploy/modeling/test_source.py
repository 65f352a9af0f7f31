"""A folder, a file, a hub id or an artifact becomes one model. What cannot be had is said, never invented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reference_model.checkpoint import CheckpointError
from reference_model.config import DECODER_TASKS, ConfigError, SwinV2Config
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from reference_model.variants import VARIANTS, Variant
from swinv2_deploy.artifacts import ModelArtifact, file_sha256
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.modeling.source import resolve, untrained_model

HUB_ID = "microsoft/swinv2-small-published"
Make = Callable[[SwinV2Config], SwinV2]
HubSays = Callable[[pytest.MonkeyPatch, Path | Exception], list[str]]
SameWeights = Callable[[SwinV2, SwinV2], bool]


@pytest.fixture
def weights_file(model: SwinV2, tmp_path: Path) -> Path:
    """A file of weights alone, which does not tell its window."""
    path = tmp_path / "best.safetensors"
    save_file(model.state_dict(), path)
    return path


# --- folders and files -------------------------------------------------------------------------------------------------


def test_a_huggingface_folder_is_read_whole(same_weights: SameWeights, model: SwinV2, folder: Path) -> None:
    """Architecture, weights and preprocessing come from it."""
    found = resolve(SourceRequest(model=str(folder)))

    assert same_weights(found.model, model)
    assert found.preprocessing == Preprocessing(size=(32, 32), resize_shortest=None)
    assert (found.name, found.origin.kind) == ("from-the-hub", "file")
    assert not found.model.training


def test_a_hub_id_without_network_is_a_clear_error() -> None:
    """A model of one's own cannot be replaced by an untrained one."""
    with pytest.raises(ArtifactError, match=r"the hub cannot be reached .* Download it where there is a network"):
        resolve(SourceRequest(model="me/my-swin"))


def test_a_hub_id_is_downloaded(
    hub_says: HubSays, same_weights: SameWeights, model: SwinV2, folder: Path, small: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named for itself, or for the variant it publishes."""
    hub_says(monkeypatch, folder)
    found, published = (resolve(SourceRequest(model=name)) for name in ("me/my-swin", HUB_ID))

    assert same_weights(found.model, model)
    assert (found.name, found.origin.source) == ("my-swin", "me/my-swin")
    assert (published.name, published.origin.source) == (small.name, HUB_ID)


@pytest.mark.parametrize("name", ["gone", "./gone/folder", "/gone/folder", "a/b/c", "~/x"])
def test_what_is_neither_folder_nor_hub_id_is_told(name: str) -> None:
    """A mistyped folder is not asked of the hub."""
    with pytest.raises(SpecError, match="There is no folder"):
        resolve(SourceRequest(model=name))


def test_a_file_given_as_model_points_to_the_option_for_files(weights_file: Path) -> None:
    """--model wants whole models."""
    with pytest.raises(SpecError, match="give a checkpoint file with --weights"):
        resolve(SourceRequest(model=str(weights_file)))


def test_weights_with_their_variant_load(same_weights: SameWeights, model: SwinV2, weights_file: Path, small: Variant) -> None:
    """Published preprocessing, the file's name and hash as origin."""
    found = resolve(SourceRequest(size="mini", weights=weights_file))

    assert same_weights(found.model, model)
    assert found.origin.source == "best.safetensors"
    assert found.origin.sha256 == file_sha256(weights_file)
    assert found.name == small.name
    assert found.preprocessing.resize_shortest == 36


def test_weights_that_do_not_tell_their_window_ask_for_the_option(make_model: Make, tmp_path: Path) -> None:
    """In the words of the command line."""
    nano = make_model(VARIANTS["nano"].config)
    save_file(nano.state_dict(), tmp_path / "nano.safetensors")
    with pytest.raises(CheckpointError, match="does not tell its window") as caught:
        resolve(SourceRequest(weights=tmp_path / "nano.safetensors"))
    assert "--size nano" in str(caught.value)


def test_weights_of_another_class_count_say_how_to_load_them(small: Variant, make_model: Make, tmp_path: Path) -> None:
    """Refused as they stand; loaded when the number is given."""
    path = tmp_path / "tuned.safetensors"
    save_file(make_model(replace(small.config, num_classes=7)).state_dict(), path)
    with pytest.raises(CheckpointError, match="num_classes") as caught:
        resolve(SourceRequest(size="mini", weights=path))
    assert "--classes 7" in str(caught.value)

    assert resolve(SourceRequest(size="mini", weights=path, classes=7)).model.config.num_classes == 7
    with pytest.raises(CheckpointError, match="num_classes"):
        resolve(SourceRequest(size="mini", weights=path, classes=6))


def test_preprocessing_that_is_guessed_is_said(folder: Path) -> None:
    """A folder without preprocessor_config.json."""
    (folder / "preprocessor_config.json").unlink()
    found = resolve(SourceRequest(model=str(folder)))
    assert any("preprocessing is that of published 32-px models" in note for note in found.notes)


def test_simmim_weights_bring_their_decoder_by_the_name_of_the_variant(
    same_weights: SameWeights, small: Variant, make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the encoder alone is asked for."""
    masked = make_model(replace(small.config, task="masked_image_modeling", num_classes=0))
    monkeypatch.setitem(VARIANTS, small.name, replace(small, config=replace(small.config, task="encoder", num_classes=0)))
    save_file(masked.state_dict(), tmp_path / "simmim.safetensors")
    found = resolve(SourceRequest(size="mini", weights=tmp_path / "simmim.safetensors"))
    encoder = resolve(SourceRequest(size="mini", weights=tmp_path / "simmim.safetensors", task="encoder"))

    assert same_weights(found.model, masked)
    assert encoder.model.config.task == "encoder"


@pytest.mark.parametrize(
    ("request_", "upscale"),
    [
        ({"task": "masked_image_modeling"}, 1),
        ({"task": "image_reconstruction"}, 2),
        ({"task": "image_reconstruction", "upscale": 4}, 4),
    ],
)
def test_an_untrained_model_may_have_any_decoder(request_: dict[str, Any], upscale: int, small: Variant) -> None:
    """By default twice the size."""
    found = resolve(SourceRequest(size="mini", **request_))

    assert (found.model.config.task, found.model.config.upscale) == (request_["task"], upscale)
    assert not found.origin.trained


def test_an_upscale_that_the_weights_do_not_have_is_told(small: Variant, make_model: Make, tmp_path: Path) -> None:
    """The decoder's own is taken where none is asked for."""
    config = replace(small.config, task="image_reconstruction", num_classes=0, upscale=4)
    save_file(make_model(config).state_dict(), tmp_path / "w.safetensors")
    request = SourceRequest(size="mini", weights=tmp_path / "w.safetensors", task="image_reconstruction")

    assert resolve(request).model.config == config
    with pytest.raises(SpecError, match="--upscale is 2 and the weights make an image 4 times larger; leave it out"):
        resolve(replace(request, upscale=2))


# --- artifacts and tasks -----------------------------------------------------------------------------------------------


def test_an_artifact_is_a_parent(tiny_artifact: ModelArtifact) -> None:
    """Its lineage hash goes into what is made of it, its origin of weights stays."""
    found = resolve(SourceRequest(model=str(tiny_artifact.path)))

    assert found.parent == {"name": "tiny", "sha256": tiny_artifact.sha256}
    assert found.origin == tiny_artifact.lineage.weights
    assert found.preprocessing == tiny_artifact.preprocessing


def test_an_untrained_artifact_stays_untrained_and_says_so(make_artifact: Callable[..., ModelArtifact]) -> None:
    """However often it is exported."""
    found = resolve(SourceRequest(model=str(make_artifact(trained=False).path)))
    assert not found.origin.trained
    assert any("UNTRAINED" in note for note in found.notes)


def test_a_changed_artifact_is_refused(changed: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact) -> None:
    """One byte of the weights."""
    copy = changed(tiny_artifact)
    path = copy.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="changed or damaged"):
        resolve(SourceRequest(model=str(copy.path)))


@pytest.mark.parametrize("kind", ["artifact", "huggingface", "variant"])
def test_a_task_can_be_chosen(kind: str, tiny_artifact: ModelArtifact, folder: Path, small: Variant) -> None:
    """The classifier goes, the features stay those of the same weights."""
    named: dict[str, dict[str, Any]] = {
        "artifact": {"model": str(tiny_artifact.path)},
        "huggingface": {"model": str(folder)},
        "variant": {"size": "mini"},
    }
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        classifier = resolve(SourceRequest(**named[kind])).model
        encoder = resolve(SourceRequest(**named[kind], task="encoder")).model
        backbone = resolve(SourceRequest(**named[kind], task="backbone", out_features=("stem", "stage2"))).model
        last = resolve(SourceRequest(**named[kind], task="backbone")).model
        pooled = encoder(images).pooler_output

        assert torch.allclose(classifier.head(pooled), classifier(images), atol=1e-6)  # type: ignore[operator]
        assert list(backbone(images)) == ["stem", "stage2"]
        assert list(last(images)) == ["stage2"]
        assert torch.equal(last(images)["stage2"], backbone(images)["stage2"])
    assert encoder.config.num_classes == 0


def test_a_classifier_is_never_invented(make_artifact: Callable[..., ModelArtifact], tiny_config: SwinV2Config) -> None:
    """Nor a final norm for a backbone."""
    encoder = make_artifact(replace(tiny_config, task="encoder", num_classes=0))
    backbone = make_artifact(replace(tiny_config, task="backbone", num_classes=0, out_features=("stage1",)))
    with pytest.raises(CheckpointError, match="no classifier"):
        resolve(SourceRequest(model=str(encoder.path), task="classification"))
    with pytest.raises(CheckpointError, match="no final norm"):
        resolve(SourceRequest(model=str(backbone.path), task="encoder"))


def test_an_unknown_feature_map_is_refused(tiny_artifact: ModelArtifact) -> None:
    """The message names those there are."""
    with pytest.raises(ConfigError, match="stage9"):
        resolve(SourceRequest(model=str(tiny_artifact.path), task="backbone", out_features=("stage9",)))


# --- untrained weights -------------------------------------------------------------------------------------------------


def test_untrained_weights_depend_on_the_seed_alone(same_weights: SameWeights, tiny_config: SwinV2Config) -> None:
    """Not on what was drawn before."""
    first = untrained_model(tiny_config, 0)
    torch.rand(7)

    assert same_weights(first, untrained_model(tiny_config, 0))
    assert not same_weights(first, untrained_model(tiny_config, 1))


def test_every_block_of_an_untrained_model_computes_something(tiny_config: SwinV2Config) -> None:
    """With the published zero gains a quantized model could not drift."""
    model = untrained_model(tiny_config, 0)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(images)
        for stage in model.layers:
            for block in stage.blocks:  # type: ignore[union-attr]
                gain = block.mlp.fc2.weight.clone()
                block.mlp.fc2.weight.zero_()
                assert not torch.allclose(model(images), whole, atol=1e-4)
                block.mlp.fc2.weight.copy_(gain)


def test_a_masked_image_model_becomes_an_encoder_and_nothing_becomes_a_decoder(
    masked_artifact: ModelArtifact, tiny_artifact: ModelArtifact
) -> None:
    """A decoder is never invented."""
    encoder = resolve(SourceRequest(model=str(masked_artifact.path), task="encoder"))
    whole = resolve(SourceRequest(model=str(masked_artifact.path))).model.state_dict()

    assert all(torch.equal(value, whole[name]) for name, value in encoder.model.state_dict().items())
    requests = [SourceRequest(model=str(tiny_artifact.path), task=task) for task in DECODER_TASKS]
    for request in requests:
        with pytest.raises(CheckpointError, match=r"has no decoder for \w+ \w+.*; choose --task encoder"):
            resolve(request)
