"""Counted matrix products are those that the model computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers.products import operations, products
from reference_model.config import SwinV2Config, make_config
from reference_model.model import build_model

SMALL = make_config(
    embed_dim=16, depths=(2, 1), num_heads=(2, 4), window_size=4, image_size=64, pretrained_window_sizes=(4, 4), num_classes=7
)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SMALL, id="square"),
        pytest.param(replace(SMALL, image_size=(72, 60)), id="padded-rectangle"),
        pytest.param(replace(SMALL, num_heads=((1, 2), (3,)), mlp_hidden=((24, 40), (8,))), id="pruned"),
    ],
)
def test_operations_equal_those_that_torch_counts(config: SwinV2Config) -> None:
    """Everything but the position-bias MLP, which no export computes for each image."""
    model = build_model(config).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(3, 3, *config.image_size))
    by_module = counter.get_flop_counts()
    bias = sum(sum(counts.values()) for name, counts in by_module.items() if name.endswith("cpb_mlp"))
    found = products(config, 3)

    assert operations(found, linear=True) + operations(found, linear=False) == counter.get_total_flops() - bias
