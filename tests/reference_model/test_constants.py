"""Tensors cached by shape serve every later model, whatever mode the first one ran in."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
import torch

from reference_model.config import make_config
from reference_model.model import SwinV2Classifier
from reference_model.position_bias import relative_coords_table, relative_position_index
from reference_model.windows import shift_mask

CONFIG = make_config(embed_dim=16, depths=(2, 1), num_heads=(2, 2), window_size=4, image_size=32, num_classes=3)


@pytest.fixture(autouse=True)
def empty_caches() -> None:
    for cached in (relative_coords_table, relative_position_index, shift_mask):
        cached.cache_clear()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_model_trains_after_another_ran_in_any_mode(mode: type[AbstractContextManager[None]]) -> None:
    with mode():
        SwinV2Classifier(CONFIG)(torch.zeros(1, 3, 32, 32))
    model = SwinV2Classifier(CONFIG)
    model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().sum().backward()

    gradient = model.patch_embed.proj.weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()


def test_a_default_device_is_not_remembered() -> None:
    with torch.device("meta"):
        relative_coords_table((4, 4), (4, 4))
        relative_position_index((4, 4))

    assert relative_coords_table((4, 4), (4, 4)).device.type == "cpu"
    assert relative_position_index((4, 4)).device.type == "cpu"
