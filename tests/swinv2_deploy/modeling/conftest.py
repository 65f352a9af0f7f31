"""A published model of the size of a test, its folder, and a hub that answers what it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from reference_model.config import SwinV2Config
    from reference_model.model import SwinV2
    from reference_model.variants import Variant


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Variant:
    """A published model, small enough to make: 5 classes at 32 px."""
    from reference_model.config import make_config
    from reference_model.variants import VARIANTS, Variant

    config = make_config(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, image_size=32, num_classes=5)
    variant = Variant(
        name="swinv2-small-published",
        size="mini",
        resolution=32,
        window="4",
        pretraining="a test",
        config=config,
        resize_shortest=36,
        hub_id="microsoft/swinv2-small-published",
    )
    monkeypatch.setitem(VARIANTS, variant.name, variant)
    return variant


@pytest.fixture
def model(small: Variant, make_model: Callable[[SwinV2Config], SwinV2]) -> SwinV2:
    """Weights of :func:`small`."""
    return make_model(small.config)


@pytest.fixture
def folder(model: SwinV2, tmp_path: Path) -> Path:
    """A Hugging Face folder of :func:`model`, with preprocessing that is not the published one."""
    from safetensors.torch import save_file

    from reference_model.checkpoint import config_to_huggingface, state_to_huggingface
    from reference_model.preprocessing import Preprocessing

    path = tmp_path / "from-the-hub"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config_to_huggingface(model.config)), "utf-8")
    recipe = Preprocessing(size=(32, 32), resize_shortest=None)
    (path / "preprocessor_config.json").write_text(json.dumps(recipe.to_huggingface()), "utf-8")
    save_file(state_to_huggingface(model.state_dict(), model.config), path / "model.safetensors")
    return path


@pytest.fixture
def hub_says() -> Callable[[pytest.MonkeyPatch, Path | Exception], list[str]]:
    """Function that replaces the hub by an answer; it returns the list of what is asked of it."""
    from swinv2_deploy.modeling import hub

    def replace(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[str]:
        asked = []

        def snapshot_download(hub_id: str, **_: Any) -> str:
            asked.append(hub_id)
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
        return asked

    return replace


@pytest.fixture
def same_weights() -> Callable[[SwinV2, SwinV2], bool]:
    """Whether two models have the same names and bits."""
    import torch

    def same(one: SwinV2, other: SwinV2) -> bool:
        first, second = one.state_dict(), other.state_dict()
        return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())

    return same
