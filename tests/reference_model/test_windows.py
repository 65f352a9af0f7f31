"""Adaptive windows: the plan they make, the position bias they keep, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from reference_model.checkpoint import CheckpointError, config_to_huggingface
from reference_model.config import WINDOW_POLICIES, ConfigError, SwinV2Config, make_config
from reference_model.flops import block_flops, window_savings
from reference_model.model import SwinV2, build_model
from reference_model.position_bias import PositionBias, relative_coords_table
from reference_model.variants import VARIANTS
from reference_model.windows import (
    bias_window,
    nearby_windows,
    pad_map,
    plan_axis,
    plan_windows,
    window_partition,
    window_reverse,
)

MakeModel = Callable[[SwinV2Config], SwinV2]

sides = st.integers(1, 400)
window_sizes = st.integers(1, 32)


@given(size=sides, window_size=window_sizes, shifted=st.booleans())
def test_an_adaptive_plan_covers_the_map_with_a_window_near_the_trained_one(size: int, window_size: int, shifted: bool) -> None:
    """Whole windows, less than one of padding, a window within a quarter or the whole map, and half of it as shift."""
    plan = plan_axis(size, window_size, shifted=shifted, policy="adaptive")

    assert plan.count * plan.window == plan.padded
    assert 0 <= plan.padded - size < plan.window
    assert plan.window == size or 0.75 * window_size <= plan.window <= 1.25 * window_size
    assert plan.shift == (plan.window // 2 if shifted and plan.count > 1 else 0)


@given(size=sides, window_size=window_sizes)
def test_an_adaptive_window_never_pads_more_than_the_fixed_one(size: int, window_size: int) -> None:
    """And where the fixed one does not pad, it is kept."""
    fixed = plan_axis(size, window_size, shifted=True)
    adaptive = plan_axis(size, window_size, shifted=True, policy="adaptive")

    assert adaptive.padded <= fixed.padded
    if fixed.padded == size:
        assert adaptive == fixed


@given(size=sides, window_size=window_sizes)
def test_a_fixed_plan_keeps_the_trained_window(size: int, window_size: int) -> None:
    """The published rule, which is the default of the functions and of the config."""
    plan = plan_axis(size, window_size, shifted=True)

    assert plan.window == min(window_size, size)
    assert plan.shift == (window_size // 2 if size > window_size else 0)
    assert plan == plan_axis(size, window_size, shifted=True, policy="fixed")
    assert (
        make_config(embed_dim=8, depths=[1], num_heads=[1], window_size=4, image_size=32, num_classes=2).window_policy
        == "fixed"
    )


@pytest.mark.parametrize(
    ("size", "window"),
    [(64, 8), (36, 9), (28, 7), (18, 9), (60, 10), (12, 6), (22, 8), (9, 9), (10, 10), (11, 6), (7, 7), (3, 3)],
)
def test_ties_go_to_the_trained_window_then_the_nearest_then_the_larger(size: int, window: int) -> None:
    """Trained window 8. 60: 6 and 10 both fit, 10 is the larger. 22: 6 and 8 both pad 2, 8 is the trained one."""
    assert nearby_windows(8) == (8, 9, 7, 10, 6)
    assert plan_axis(size, 8, shifted=False, policy="adaptive").window == window


@given(height=st.integers(1, 50), width=st.integers(1, 50), window_size=st.integers(1, 12))
def test_partition_then_reverse_is_the_identity(height: int, width: int, window_size: int) -> None:
    """On adaptive windows of unequal sides."""
    plan = plan_windows(height, width, window_size, shifted=True, policy="adaptive")
    padded = pad_map(torch.arange(2 * height * width).view(2, height, width, 1), plan)

    cut = window_partition(padded, plan.window)

    assert cut.shape[1] == plan.window[0] * plan.window[1]
    assert torch.equal(window_reverse(cut, plan.window, plan.height.padded, plan.width.padded), padded)


@pytest.mark.parametrize("pretrained", [(0, 0), (6, 3)], ids=["as trained", "of another window"])
def test_policies_give_the_same_bits_where_no_map_needs_padding(make_model: MakeModel, pretrained: tuple[int, int]) -> None:
    """At the trained size, whose second stage is lower than the window; and not where a map is padded."""
    sizes = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 5}
    config = make_config(window_size=8, image_size=(32, 64), pretrained_window_sizes=pretrained, **sizes)
    fixed, adaptive = (make_model(replace(config, window_policy=policy)) for policy in WINDOW_POLICIES)
    generator = torch.Generator().manual_seed(0)
    whole, broken = (torch.randn(2, 3, *size, generator=generator) for size in ((32, 64), (36, 64)))

    with torch.no_grad():
        assert torch.equal(fixed(whole), adaptive(whole))
        assert not torch.allclose(fixed(broken), adaptive(broken), atol=1e-3)


def test_the_bias_of_a_distance_is_that_of_the_trained_window() -> None:
    """Windows 6 and 10 of a net trained with 8 read the same function at the same distances."""
    torch.manual_seed(0)
    bias = PositionBias(3)
    trained = bias.bias_table((10, 10), (8, 8)).view(19, 19, 3)
    smaller = bias.bias_table((6, 10), (8, 8)).view(11, 19, 3)

    torch.testing.assert_close(trained[4:15], smaller)
    assert float(relative_coords_table((8, 8), (8, 8)).max()) == pytest.approx(
        float(relative_coords_table((10, 8), (8, 8))[-1, 1])
    )


def test_unnormalized_stages_keep_the_window_they_were_trained_with() -> None:
    """Window 16 at 256 px: the last stage was trained on a map of 8, so 8 normalizes it; fixed windows keep the published rule."""
    fixed = VARIANTS["swinv2-tiny-patch4-window16-256"].config
    adaptive = replace(fixed, window_policy="adaptive")
    grown = replace(VARIANTS["swinv2-base-patch4-window12to24-192to384-22kto1k-ft"].config, window_policy="adaptive")

    assert [bias_window(fixed, stage) for stage in range(4)] == [None] * 4
    assert [bias_window(adaptive, stage) for stage in range(4)] == [(16, 16), (16, 16), (16, 16), (8, 8)]
    assert bias_window(replace(adaptive, image_size=(64, 256)), 1) == (8, 16)
    assert [bias_window(grown, stage) for stage in range(4)] == [(12, 12), (12, 12), (12, 12), (6, 6)]


def test_the_policy_survives_a_trip_and_is_checked(tiny_config: SwinV2Config) -> None:
    """Configs written before the policy existed are fixed."""
    adaptive = replace(tiny_config, window_policy="adaptive")
    older = tiny_config.to_dict()
    del older["window_policy"]

    assert SwinV2Config.from_dict(adaptive.to_dict()) == adaptive
    assert SwinV2Config.from_dict(older) == tiny_config
    with pytest.raises(ConfigError, match=r"window_policy is 'wide'; expected one of \['fixed', 'adaptive'\]"):
        SwinV2Config.from_dict(older | {"window_policy": "wide"})


def test_transformers_can_express_adaptive_windows_where_they_are_the_trained_ones(tiny_config: SwinV2Config) -> None:
    """It knows one image size; there the windows must be the same."""
    adaptive = replace(tiny_config, window_policy="adaptive")

    assert config_to_huggingface(adaptive) == config_to_huggingface(tiny_config)
    with pytest.raises(CheckpointError, match="it uses other windows"):
        config_to_huggingface(replace(adaptive, image_size=(36, 36)))


@pytest.mark.parametrize("policy", ["fixed", "adaptive"])
@pytest.mark.parametrize("size", [(32, 32), (36, 52), (90, 20)])
def test_counted_flops_are_those_that_pytorch_counts(tiny_config: SwinV2Config, policy: str, size: tuple[int, int]) -> None:
    """All products of the blocks but those of the position-bias MLP, with uneven heads and hidden units."""
    config = SwinV2Config.from_dict(
        tiny_config.to_dict() | {"window_policy": policy, "num_heads": [[2, 1], [3, 4]], "mlp_hidden": [[64, 32], [128, 8]]}
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build_model(config)(torch.zeros(1, 3, *size))
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    blocks = sum(count for name, count in counts.items() if name.count(".") == 4 and ".blocks." in name)
    biases = sum(count for name, count in counts.items() if name.endswith(".cpb_mlp"))

    assert biases > 0
    assert block_flops(config, *size).total == blocks - biases


def test_padding_and_savings_are_zero_where_nothing_is_padded(tiny_config: SwinV2Config) -> None:
    """And positive at a size of broken windows, by the number that the plan gives."""
    whole = window_savings(tiny_config, [(32, 32)])
    broken = window_savings(tiny_config, [(36, 36)])

    assert (whole.fixed_padding, whole.adaptive_padding, whole.saved) == (0, 0, 0)
    assert broken.adaptive_padding < broken.fixed_padding
    assert 0 < broken.saved == broken.most_saved == broken.least_saved
    assert block_flops(tiny_config, 36, 36).padding == broken.fixed_padding


@pytest.mark.parametrize("name", [name for name in VARIANTS if "giant" not in name])
def test_adaptive_windows_waste_at_most_five_percent_on_average(name: str) -> None:
    """Over sizes from 160 to 1,024 px, square and rectangular."""
    sizes = [(height, width) for height in range(160, 1025, 96) for width in (160, 224, 328, 540, 1024)]

    assert window_savings(VARIANTS[name].config, sizes).adaptive_padding <= 0.05
