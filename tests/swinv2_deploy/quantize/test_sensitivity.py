"""A sweep finds the site that hurts; a search leaves in float what a budget demands, and no more."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibration.dataset import ImageFolder
from calibration.errors import CalibrationError
from reference_model.config import SwinV2Config, make_config
from reference_model.model import SwinV2
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import QuantizeError, SpecError
from swinv2_deploy.modeling import Policy, quantization_sites
from swinv2_deploy.quantize.drift import DriftProbe, SiteDrift, known_labels
from swinv2_deploy.quantize.ptq import SENSITIVITY, quantize
from swinv2_deploy.quantize.search import unused
from swinv2_deploy.quantize.sensitivity import Budget, Sensitivity, SiteSensitivity, cheapest, sweep
from swinv2_deploy.quantize.sensitivity_picture import KINDS, SWEEP_PICTURE, draw_sweep
from swinv2_deploy.quantize.spec import QuantizeSpec

pytest.importorskip("modelopt")

WRONG = "layers.1.blocks.0.mlp.fc1"


@pytest.fixture
def probe(tiny_config: SwinV2Config, make_model: Callable[[SwinV2Config], SwinV2]) -> DriftProbe:
    """Ranges that fit every site but one, whose range is twenty times too small."""
    model = make_model(tiny_config)
    images = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    ranges: dict[str, float] = {}
    hooks = [
        model.get_submodule(site).register_forward_pre_hook(
            lambda _, arguments, site=site: ranges.__setitem__(site, float(arguments[0].abs().max()))
        )
        for site in quantization_sites(tiny_config)
    ]
    with torch.no_grad():
        answers = model(torch.cat(images)).argmax(dim=1)
    for hook in hooks:
        hook.remove()
    return DriftProbe(model, ranges | {WRONG: ranges[WRONG] / 20}, images, answers.tolist())


def test_the_sweep_names_the_site_that_hurts(probe: DriftProbe) -> None:
    steps: list[tuple[int, int]] = []
    found = sweep(probe, lambda done, total: steps.append((done, total)))

    assert [site.site for site in found.sites] == list(probe.macs)
    assert found.worst()[0].site == WRONG
    assert max(found.sites, key=lambda site: site.without.sqnr_db).site == WRONG
    assert sum(site.macs for site in found.sites) == pytest.approx(1)
    assert steps[-1] == (len(steps), 2 * len(found.sites) + 1)
    assert found.to_dict()["sites"][0]["alone"]["sqnr_db"] == found.sites[0].alone.sqnr_db


def test_work_is_counted_by_tokens_and_channels(probe: DriftProbe) -> None:
    """At 32 px with patches of 2 the first stage has 256 tokens of 16 channels, the second 64 of 32."""
    assert probe.macs["layers.0.blocks.0.mlp.fc1"] == probe.macs["layers.0.blocks.1.mlp.fc2"]
    assert probe.macs["layers.0.blocks.0.attn.qkv"] == pytest.approx(3 * probe.macs["layers.0.blocks.0.attn.proj"])
    assert probe.macs["layers.0.blocks.0.mlp.fc1"] == pytest.approx(probe.macs["layers.1.blocks.0.mlp.fc1"])


def test_no_site_is_no_drift_and_all_sites_are_the_worst(probe: DriftProbe) -> None:
    assert probe(()) == SiteDrift(sqnr_db=float("inf"), agreement=1.0, drop=0.0)
    assert probe(probe.macs).sqnr_db < probe([WRONG]).sqnr_db + 1


def test_a_budget_leaves_out_the_wrong_site_alone(probe: DriftProbe) -> None:
    found = sweep(probe)
    rest = [site for site in probe.macs if site != WRONG]
    choice = cheapest(probe, found, Budget(sqnr_db=probe(rest).sqnr_db - 0.5))

    assert choice.left == (WRONG,)
    assert choice.sites == tuple(rest)
    assert choice.share == pytest.approx(1 - probe.macs[WRONG])
    assert choice.drift == probe(rest)


def test_a_budget_that_holds_keeps_every_site(probe: DriftProbe) -> None:
    choice = cheapest(probe, sweep(probe), Budget(sqnr_db=-100.0, drop=100.0))

    assert choice.left == ()
    assert choice.tried == 1


def test_a_budget_that_nothing_meets_is_refused(probe: DriftProbe) -> None:
    with pytest.raises(QuantizeError, match=r"No site can be quantized within .*the quietest one alone has an SQNR of"):
        cheapest(probe, sweep(probe), Budget(sqnr_db=300.0))


def test_a_budget_of_accuracy_counts_points() -> None:
    assert Budget(drop=0.3).holds(SiteDrift(sqnr_db=0, drop=0.3))
    assert not Budget(drop=0.3).holds(SiteDrift(sqnr_db=99, drop=0.31))
    assert not Budget(drop=0.3, sqnr_db=30).holds(SiteDrift(sqnr_db=29, drop=0.0))
    with pytest.raises(QuantizeError, match="folders named as the model's classes"):
        Budget(drop=0.3).holds(SiteDrift(sqnr_db=99))


def test_labels_are_numbered_as_the_model_numbers_them(photos: Path) -> None:
    images = ImageFolder.open(photos)
    names = tuple(reversed(images.classes))

    assert known_labels(images, names) == [names.index(name.split("/")[0]) for name in images.names]
    assert known_labels(images, names[1:]) is None


def test_the_sweep_sees_no_calibration_image(photos: Path) -> None:
    images = ImageFolder.open(photos)
    chosen = images.select(10)

    assert not set(unused(images, chosen, 64, 0).names) & set(chosen.names)
    assert len(unused(images, chosen, 9, 0)) == 9
    with pytest.raises(QuantizeError, match="leaves 1 for the sweep; expected at least 8"):
        unused(images, images.select(20), 64, 0)


def test_quantize_writes_the_sweep_and_only_the_chosen_sites(
    tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    spec = QuantizeSpec(calibrator="max", unsigned="never", images=10)
    images = ImageFolder.open(photos)
    plain = quantize(tiny_artifact, replace(spec, sensitivity=True), images, tmp_path / "all")
    assert plain.sensitivity is not None
    assert plain.choice is None
    assert len(plain.table.sites) == len(quantization_sites(tiny_artifact.config))
    best = max(site.without.sqnr_db for site in plain.sensitivity.sites)
    budget = (plain.sensitivity.together.sqnr_db + best) / 2

    result = quantize(tiny_artifact, replace(spec, budget_sqnr=budget), images, tmp_path / "some")
    assert result.choice is not None
    assert result.choice.drift.sqnr_db >= budget
    assert 0 < len(result.choice.left) < len(result.choice.sites)
    assert tuple(result.table.sites) == result.choice.sites
    assert SENSITIVITY in result.artifact.lineage.files
    drawn = result.artifact.file(SWEEP_PICTURE)
    assert result.sweep_picture == drawn
    assert drawn.read_text("utf-8").count(">left in float<") == 1
    assert plain.sweep_picture is not None
    assert ">left in float<" not in plain.sweep_picture.read_text("utf-8")


@pytest.mark.parametrize(("depths", "policy"), [((2, 2), "mlp"), ((2, 2, 18, 2), "attention")])
def test_the_picture_of_a_sweep_shows_every_site_in_the_order_of_the_network(
    depths: tuple[int, ...], policy: Policy, tmp_path: Path
) -> None:
    """From 8 to 147 sites, also where one adds no noise at all: block numbers, stages, a color a kind, the same bytes each time."""
    config = make_config(embed_dim=16, depths=depths, num_heads=(2,) * len(depths), window_size=4, image_size=64, num_classes=2)
    names = quantization_sites(config, policy)
    drifts = [SiteDrift(sqnr_db=40.0 + place % 7) for place in range(len(names))]
    drifts[1] = SiteDrift(sqnr_db=float("inf"))
    sites = [
        SiteSensitivity(site=name, macs=0.1, alone=drift, without=drift) for name, drift in zip(names, drifts, strict=True)
    ]
    found = Sensitivity(sites=tuple(sites), together=SiteDrift(sqnr_db=33.3), images=12)
    for name in ("a.svg", "b.svg"):
        draw_sweep(found, names[:1], tmp_path / name)
    text = (tmp_path / "a.svg").read_text("utf-8")

    assert text == (tmp_path / "b.svg").read_text("utf-8")
    assert [label for label in re.findall(r">stage (\d+)<", text)] == [str(stage) for stage in range(len(depths))]
    numbers = re.findall(r">(\d+)<", text[text.index(">all but this site") :])
    blocks = [str(block) for depth in depths for block in range(depth)]
    assert [number for number in numbers if number in blocks][-len(blocks) :] == blocks
    kinds = {kind: color for kind, color in KINDS.items() if any(name.endswith(kind) for name in names)}
    assert [kind for kind in KINDS if f">{kind}<" in text] == list(kinds)
    assert all(text.count(color) >= sum(name.endswith(kind) for name in names) for kind, color in kinds.items())
    assert "all together: 33.3 dB" in text


def test_impossible_searches_are_refused() -> None:
    with pytest.raises(SpecError, match="budget_sqnr is nan"):
        QuantizeSpec(budget_sqnr=float("nan"))
    with pytest.raises(SpecError, match="tuning_images is 3; expected at least 8"):
        QuantizeSpec(tuning_images=3)
    assert not QuantizeSpec().searches
    assert QuantizeSpec(budget_drop=0.0).searches


def test_a_table_of_some_sites_holds_those(tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    table = quantize(tiny_artifact, QuantizeSpec(unsigned="never"), ImageFolder.open(photos), tmp_path / "int8").table
    first = next(iter(table.sites))

    assert list(table.only([first]).sites) == [first]
    with pytest.raises(CalibrationError, match=r"no sites ..no such site"):
        table.only(["no such site"])
