"""A published name is one model, with the hub's weights or with untrained ones that say so; a request names one thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from reference_model.checkpoint import CheckpointError
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from reference_model.variants import VARIANTS, Variant, VariantError
from swinv2_deploy.artifacts import ModelArtifact, file_sha256
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.modeling import source
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.modeling.source import resolve

HUB_ID = "microsoft/swinv2-small-published"
HubSays = Callable[[pytest.MonkeyPatch, Path | Exception], list[str]]
SameWeights = Callable[[SwinV2, SwinV2], bool]


class Response:
    """What huggingface_hub's errors want to be made from."""

    headers: dict[str, str] = {}  # noqa: RUF012  # an attribute of the thing it stands for
    request = None
    status_code = 404


# --- published names ---------------------------------------------------------------------------------------------------


def test_a_published_model_without_network_is_untrained_and_says_so(small: Variant) -> None:
    """In the name, in the lineage, and in a sentence with the reason."""
    found = resolve(SourceRequest(size="mini", seed=3))

    assert found.name == "swinv2-small-published-untrained"
    assert found.origin.kind == "untrained"
    assert not found.origin.trained
    assert found.seed == 3
    (note,) = found.notes
    assert "UNTRAINED weights (seed 3)" in note
    assert "the hub cannot be reached" in note
    assert "its answers mean nothing" in note
    assert found.preprocessing == Preprocessing(size=(32, 32), resize_shortest=36)


def test_a_published_model_uses_the_weights_of_the_hub(
    hub_says: HubSays, same_weights: SameWeights, small: Variant, model: SwinV2, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hash and id are the origin; class names come from their config."""
    asked = hub_says(monkeypatch, folder)
    found = resolve(SourceRequest(size="mini"))

    assert asked == [HUB_ID]
    assert same_weights(found.model, model)
    assert found.origin.kind == "hub"
    assert found.origin.source == HUB_ID
    assert found.origin.sha256 == file_sha256(folder / "model.safetensors")
    assert found.name == small.name


def test_the_hub_of_a_damaged_model_is_an_error_and_not_untrained_weights(
    hub_says: HubSays, small: Variant, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an unreachable hub leads to untrained weights."""
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    hub_says(monkeypatch, folder)
    with pytest.raises(CheckpointError, match="damaged safetensors"):
        resolve(SourceRequest(size="mini"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RepositoryNotFoundError("404", response=Response()), "The hub has no model"),  # type: ignore[arg-type]
        (GatedRepoError("403", response=Response()), "is gated on the hub"),  # type: ignore[arg-type]
    ],
    ids=["missing", "gated"],
)
def test_a_refusal_of_the_hub_is_an_error(
    error: Exception, words: str, hub_says: HubSays, small: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub answered: the user must know, and not get untrained weights."""
    hub_says(monkeypatch, error)
    with pytest.raises(ArtifactError, match=words):
        resolve(SourceRequest(size="mini"))


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no"), TimeoutError("late"), ConnectionError()], ids=repr)
def test_every_kind_of_silence_is_an_unreachable_hub(
    error: Exception, hub_says: HubSays, small: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cache, a time-out, no connection."""
    hub_says(monkeypatch, error)
    assert not resolve(SourceRequest(size="mini")).origin.trained


def test_simmim_models_are_not_asked_of_the_hub_by_name(hub_says: HubSays, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their repository holds many files under one id; the message says what to do."""
    asked = hub_says(monkeypatch, AssertionError("asked"))
    variant = VARIANTS["simmim-small-pretrain-patch4-window12-192"]
    with torch.device("meta"):
        monkeypatch.setattr(source, "untrained_model", lambda config, _: source.build_model(config))
        found = source.source_from_variant(variant)

    assert asked == []
    assert "--weights FILE" in found.notes[0]


def test_nano_is_the_bundled_model(monkeypatch: pytest.MonkeyPatch, tiny_artifact: ModelArtifact) -> None:
    """Asked for by name or by naming nothing; the hub is never asked."""
    monkeypatch.setattr(source, "bundled_artifact", lambda: tiny_artifact)
    for request in (SourceRequest(), SourceRequest(size="nano")):
        found = resolve(request)
        assert found.artifact == tiny_artifact
        assert found.origin.trained
        assert found.notes == ()


def test_a_missing_bundled_model_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An incomplete installation, not a missing artifact of the user."""
    monkeypatch.setattr(source, "files", lambda _: tmp_path)
    with pytest.raises(ArtifactError, match=r"bundled model is missing from this installation .* name a model with --size"):
        resolve(SourceRequest())


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"size": "base", "resolution": 300}, "no base at 300 px"),
        ({"size": "base", "resolution": 256}, "names 3 models"),
        ({"size": "enormous"}, "no size 'enormous'"),
        ({"size": "tiny", "resolution": 256, "window": "7"}, "window 7"),
    ],
)
def test_names_that_fit_no_or_several_models_list_the_choices(request_: dict[str, Any], words: str) -> None:
    """The user is never given a model that was not asked for."""
    with pytest.raises(VariantError, match=words):
        resolve(SourceRequest(**request_))


# --- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"model": "a", "size": "tiny"}, "--model is a whole model"),
        ({"model": "a", "weights": Path(__file__)}, "--model is a whole model"),
        ({"resolution": 256}, "add --size"),
        ({"window": "8"}, "add --size"),
        ({"task": "segmentation"}, "expected one of backbone, classification, encoder"),
        ({"task": "segmentation"}, "encoder, image-reconstruction, masked-image-modeling"),
        ({"task": "image_reconstruction", "upscale": 3}, r"--upscale is 3; it is one of \(2, 4\)"),
        ({"task": "masked_image_modeling", "upscale": 2}, "for --task image-reconstruction only"),
        ({"out_features": ("stage1",)}, "add --task backbone"),
        ({"out_features": ("stage1",), "task": "encoder"}, "add --task backbone"),
        ({"weights": Path("gone.pth")}, "gone.pth, which does not exist"),
        ({"classes": 5, "size": "tiny"}, "--classes"),
        ({"classes": 5, "weights": Path(__file__)}, "--classes"),
        ({"classes": 0, "size": "tiny", "weights": Path(__file__)}, "--classes"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(request_: dict[str, Any], words: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(SpecError, match=words):
        SourceRequest(**request_)
