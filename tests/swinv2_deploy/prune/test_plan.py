"""One ranking over the whole model, the budget met, and a file that can be edited and applied again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reference_model.config import SwinV2Config, make_config
from reference_model.model import SwinV2, build_model
from reference_model.variants import VARIANTS
from swinv2_deploy.errors import SpecError
from swinv2_deploy.prune.cost import Costs, head_counts, mac_costs, mac_count, parameter_costs, parameter_count
from swinv2_deploy.prune.cut import cut_config
from swinv2_deploy.prune.importance import Scores, measure
from swinv2_deploy.prune.latency import LatencyTable, slope, stage_config, widths
from swinv2_deploy.prune.plan import PrunePlan, make_plan, read_plan, whole
from swinv2_deploy.prune.spec import PruneSpec, RecoverSpec
from swinv2_deploy.prune.units import KINDS, as_ranges, blocks_of, from_ranges, units_of


def scores_for(config: SwinV2Config, seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {
        kind: {at: tuple(torch.rand(units_of(config, kind, at), generator=generator).tolist()) for at in blocks_of(config)}
        for kind in KINDS
    }


def spec_of(measure: Any, share: float, **others: Any) -> PruneSpec:
    return PruneSpec(measure=measure, share=share, **{"min_hidden": 8} | others)


NANO = VARIANTS["nano"].config
BASE = next(variant.config for variant in VARIANTS.values() if variant.size == "base" and variant.resolution == 256)


@pytest.mark.parametrize("config", [NANO, BASE], ids=["nano", "base"])
@pytest.mark.parametrize("measure", ["params", "macs"])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_budget_is_met_within_one_percent(config: SwinV2Config, measure: str, share: float) -> None:
    """By counting the cut model again, not by the plan's own sum."""
    costs = parameter_costs(config) if measure == "params" else mac_costs(config, config.image_size)
    plan = make_plan(config, scores_for(config, 3), costs, spec_of(measure, share))
    small = cut_config(config, plan)
    if measure == "params":
        removed = 1 - parameter_count(small) / parameter_count(config)
    else:
        removed = 1 - mac_count(small, config.image_size) / mac_count(config, config.image_size)
    assert abs(removed / share - 1) <= 0.01
    assert plan.cost_removed(config, costs) / costs.total == pytest.approx(removed, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_floors_and_multiples_hold(seed: int) -> None:
    spec = spec_of("params", 0.6, multiple=16, min_hidden=48, min_heads=2)
    plan = make_plan(NANO, scores_for(NANO, seed), parameter_costs(NANO), spec)
    for at in blocks_of(NANO):
        assert len(plan.heads[at]) >= 2
        assert len(plan.hidden[at]) >= 48
        assert len(plan.hidden[at]) % 16 == 0


def test_the_least_for_their_cost_go_first() -> None:
    """Within a block, no removed unit is worth more than one that stays."""
    scores = scores_for(NANO, 0)
    plan = make_plan(NANO, scores, parameter_costs(NANO), spec_of("params", 0.3))
    for kind in KINDS:
        for at in blocks_of(NANO):
            kept = plan.kept(kind)[at]
            values = scores[kind][at]
            gone = [values[unit] for unit in range(len(values)) if unit not in kept]
            assert not gone or max(gone) <= min(values[unit] for unit in kept)


def test_an_odd_width_comes_to_a_multiple_first(tiny_config: SwinV2Config) -> None:
    odd = replace(tiny_config, mlp_hidden=((61, 64), (128, 128)))
    plan = make_plan(odd, scores_for(odd, 0), parameter_costs(odd), spec_of("params", 0.3))
    assert all(len(kept) % 8 == 0 or len(kept) == 61 for kept in plan.hidden.values())


def test_heads_only_counts_heads() -> None:
    plan = make_plan(NANO, scores_for(NANO, 1), head_counts(NANO), spec_of("heads", 0.25))
    assert sum(plan.removed(NANO, "heads", at) for at in blocks_of(NANO)) == 7  # of 28
    assert all(plan.removed(NANO, "hidden", at) == 0 for at in blocks_of(NANO))


def test_nothing_asked_nothing_removed() -> None:
    for costs in (parameter_costs(NANO), head_counts(NANO)):
        plan = make_plan(NANO, scores_for(NANO, 1), costs, spec_of(costs.measure, 0.0))
        assert (plan.heads, plan.hidden) == (whole(NANO).heads, whole(NANO).hidden)


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    with pytest.raises(
        SpecError, match=r"95\.0% of the params cannot go: with at least 1 heads and 32 hidden .* \d\d\.\d% can"
    ):
        make_plan(NANO, scores_for(NANO, 0), parameter_costs(NANO), spec_of("params", 0.95, min_hidden=32))
    with pytest.raises(SpecError, match=r"90\.0% of the heads cannot go"):
        make_plan(NANO, scores_for(NANO, 0), head_counts(NANO), spec_of("heads", 0.9))


def test_a_budget_between_two_units_says_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"the nearest that whole heads and multiples of 512 hidden units come to is"):
        make_plan(NANO, scores_for(NANO, 0), parameter_costs(NANO), spec_of("params", 0.1, multiple=512, min_heads=8))


def test_scores_that_are_no_numbers_are_refused() -> None:
    scores = scores_for(NANO, 0)
    broken = {**scores, "heads": {**scores["heads"], (1, 0): (0.1, float("nan"), 0.2, 0.3)}}
    with pytest.raises(SpecError, match="heads in stage 1, block 0"):
        make_plan(NANO, broken, parameter_costs(NANO), spec_of("params", 0.1))


def test_costs_are_what_cutting_one_unit_saves(tiny_config: SwinV2Config) -> None:
    for config in (tiny_config, replace(tiny_config, qkv_bias=False)):
        for kind in KINDS:
            for at in blocks_of(config):
                kept = {known: dict(whole(config).kept(known)) for known in KINDS}
                kept[kind][at] = kept[kind][at][:-1]
                small = cut_config(config, PrunePlan(heads=kept["heads"], hidden=kept["hidden"]))
                assert parameter_count(config) - parameter_count(small) == parameter_costs(config).units[kind][at]
                size = (48, 32)
                assert mac_count(config, size) - mac_count(small, size) == mac_costs(config, size).units[kind][at]


def test_macs_are_those_that_pytorch_counts(tiny_config: SwinV2Config) -> None:
    """Its counter takes two operations for one, and sees the position bias, which is computed once for all windows."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(tiny_config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 40, 32))
    found = counter.get_total_flops()
    bias = sum(
        flops for name, modules in counter.get_flop_counts().items() if name.endswith(".cpb_mlp") for flops in modules.values()
    )
    assert mac_count(tiny_config, (40, 32)) == (found - bias) // 2


def test_ranges_go_there_and_back() -> None:
    for indices in ((0,), (0, 1, 2, 5), (3, 4, 9, 10, 11), tuple(range(100))):
        assert from_ranges(as_ranges(indices), 100, "heads") == indices
    assert as_ranges((0, 1, 2, 5)) == "0-2,5"


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "2,1", "0,0", "-1", "0-2,2"])
def test_ranges_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="keep_heads are"):
        from_ranges(text, 8, "keep_heads")


def test_a_range_beyond_the_model_is_refused() -> None:
    with pytest.raises(SpecError, match=r"keep_heads are '0-8', and the model has 8, counted from 0"):
        from_ranges("0-8", 8, "keep_heads")


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    plan = make_plan(NANO, scores_for(NANO, 2), parameter_costs(NANO), spec_of("params", 0.25))
    replace(plan, weights_sha256="ab" * 32, facts={"model": "nano"}).save(tmp_path / "plan.json", NANO)
    return tmp_path / "plan.json"


def test_a_plan_is_read_as_it_was_written_and_edited(plan_file: Path) -> None:
    plan = read_plan(plan_file, NANO, "ab" * 32)
    assert plan.facts == {"model": "nano"}
    content = json.loads(plan_file.read_text())
    content["keep"][0]["keep_heads"] = "1"
    plan_file.write_text(json.dumps(content))
    edited = read_plan(plan_file, NANO, "ab" * 32)
    assert edited.heads[0, 0] == (1,)
    assert edited.hidden == plan.hidden


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "schema 9; this version reads 1"),
        ({"keep": []}, "0 blocks and the model has 6; the plan is for another model"),
        ({"weights_sha256": "cd" * 32}, "made for weights cdcdcdcdcdcd, and the model has abababababab"),
        ({"keep": None}, "is no plan"),
    ],
)
def test_a_plan_for_another_model_is_refused(change: dict[str, Any], message: str, plan_file: Path) -> None:
    plan_file.write_text(json.dumps(json.loads(plan_file.read_text()) | change))
    with pytest.raises(SpecError, match=message):
        read_plan(plan_file, NANO, "ab" * 32)


def test_a_plan_for_other_widths_is_refused(plan_file: Path) -> None:
    wider = replace(NANO, mlp_hidden=((256, 264), *NANO.mlp_hidden[1:]))
    with pytest.raises(SpecError, match=r"2 heads and 256 hidden units in stage 0, block 1; this one has 2 and 264"):
        read_plan(plan_file, wider, "ab" * 32)


def test_a_plan_without_a_hash_fits_the_architecture(plan_file: Path) -> None:
    plan_file.write_text(json.dumps(json.loads(plan_file.read_text()) | {"weights_sha256": ""}))
    assert read_plan(plan_file, NANO, "cd" * 32).weights_sha256 == ""


def test_a_plan_that_is_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot be read \(No such file or directory\); give a plan"):
        read_plan(tmp_path / "no.json", NANO, "")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SpecError, match=r"bad\.json is no plan"):
        read_plan(tmp_path / "bad.json", NANO, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.0}, "share to remove is 1.0; expected a number from 0 to below 1"),
        ({"share": -0.1}, "share to remove is -0.1"),
        ({"share": float("nan")}, "share to remove is nan"),
        ({"measure": "size"}, "stated in 'size'"),
        ({"criterion": "luck"}, "no criterion 'luck'"),
        ({"multiple": 0}, "multiple is 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        PruneSpec(**{"measure": "params", "share": 0.1} | change)


def test_a_recovery_that_makes_no_sense_is_refused() -> None:
    for change, message in (
        ({"steps": 0}, "steps is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ):
        with pytest.raises(SpecError, match=message):
            RecoverSpec(**change)  # type: ignore[arg-type]


def test_a_latency_table_gives_slopes() -> None:
    table = LatencyTable(
        size=(128, 128),
        total_ms=10.0,
        times_ms={
            "heads": [{2: 3.0, 1: 2.0}, {4: 5.0, 2: 4.0}, {8: 9.0, 4: 9.5}],
            "hidden": [{256: 3.0, 128: 2.0}, {512: 3.0}, {1024: 4.0, 512: 2.0, 256: 1.0}],
        },
        machine="test",
    )
    costs: Costs = table.costs(NANO)
    assert costs.units["heads"][0, 1] == pytest.approx(0.5)  # a millisecond a head, in two blocks
    assert costs.units["heads"][2, 0] == 0  # slower with fewer: nothing is gained there
    assert costs.units["hidden"][1, 0] == 0
    assert costs.units["hidden"][2, 1] == pytest.approx(slope({1024: 4.0, 512: 2.0, 256: 1.0}) / 2)
    plan = make_plan(NANO, scores_for(NANO, 0), costs, spec_of("latency", 0.1))
    assert plan.cost_removed(NANO, costs) == pytest.approx(1.0, rel=0.01)
    assert all(plan.removed(NANO, "heads", at) == 0 for at in ((2, 0), (2, 1)))


def test_timed_blocks_are_those_of_the_stage() -> None:
    probe = stage_config(NANO, 2, (128, 96), "hidden", 320)
    assert (probe.embed_dim, probe.image_size, probe.num_heads, probe.mlp_hidden) == (256, (32, 24), ((8, 8),), ((320, 320),))
    assert widths(1024, 8)[0] == 1024
    assert all(width % 8 == 0 for width in widths(1000, 8)[1:])
    assert widths(2, 1) == (2, 1)


def test_the_ranking_survives_a_real_model(tiny_model: SwinV2) -> None:
    costs = parameter_costs(tiny_model.config)
    scores = measure(tiny_model, lambda: (), "magnitude", count=0).scores
    plan = make_plan(tiny_model.config, scores, costs, spec_of("params", 0.2))
    assert cut_config(tiny_model.config, plan) != tiny_model.config


def test_uneven_heads_fit_no_published_format() -> None:
    from reference_model.checkpoint import CheckpointError, config_to_huggingface

    config = make_config(embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, image_size=32, num_classes=3)
    with pytest.raises(CheckpointError, match="head"):
        config_to_huggingface(replace(config, num_heads=((2, 1),)))
