"""The picture of a sweep holds every site, for shallow and deep models and for sites that add nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from reference_model.config import make_config
from swinv2_deploy.modeling.sites import Policy, quantization_sites
from swinv2_deploy.quantize.drift import SiteDrift
from swinv2_deploy.quantize.sensitivity import Sensitivity, SiteSensitivity
from swinv2_deploy.quantize.sweep_picture import draw


def sweep(depths: tuple[int, ...], policy: Policy) -> Sensitivity:
    config = make_config(
        depths=depths, num_heads=(2,) * len(depths), embed_dim=16, image_size=64, patch_size=2, window_size=4, num_classes=3
    )
    sites = quantization_sites(config, policy)
    found = [
        SiteSensitivity(
            site=site,
            macs=1 / len(sites),
            alone=SiteDrift(sqnr_db=math.inf if place == 3 else 45 + 12 * math.sin(place)),
            without=SiteDrift(sqnr_db=33 + 0.5 * math.cos(place)),
        )
        for place, site in enumerate(sites)
    ]
    return Sensitivity(sites=tuple(found), together=SiteDrift(sqnr_db=32.8), images=64)


@pytest.mark.parametrize(("depths", "policy"), [((2, 2, 2), "linear"), ((2, 2, 18, 2), "attention"), ((1,), "mlp")])
def test_every_block_is_named_and_the_total_is_said(depths: tuple[int, ...], policy: Policy, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(sweep(depths, policy), tmp_path / "sweep.svg")
    text = (tmp_path / "sweep.svg").read_text()
    assert "all in INT8: 32.8 dB" in text
    for stage, depth in enumerate(depths):
        for block in range(depth):
            assert f">{stage + 1}.{block + 1}<" in text
    assert text.count(">merge<") == (0 if policy == "mlp" else len(depths) - 1)
    assert "dB (higher is closer to FP32)" in text


def test_the_same_sweep_is_drawn_in_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        draw(sweep((1, 2), "linear"), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
