"""A backbone that does not return its last map: what lies behind the last one it returns is no part of anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.dataset import ImageFolder
from reference_model.config import make_config
from reference_model.flops import block_flops, window_savings
from reference_model.model import build_model
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.engine.coverage import coverage
from swinv2_deploy.engine.layers import EngineLayer
from swinv2_deploy.errors import SpecError, UnsupportedModelError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.modeling.sites import POLICIES, quantization_sites
from swinv2_deploy.pipeline import plan_pruning, prune_artifact
from swinv2_deploy.prune.cost import figures_of
from swinv2_deploy.prune.cut import masked
from swinv2_deploy.prune.spec import PruneSpec
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner, TorchRunner
from swinv2_deploy.runtime.graph_parts import GraphParts
from swinv2_deploy.verify import VerifySpec, verify

FULL = make_config(
    task="backbone",
    embed_dim=16,
    depths=(2, 1, 2),
    num_heads=(2, 4, 8),
    window_size=4,
    image_size=32,
    patch_size=2,
    out_features=("stage2", "stem"),
)
STEM = replace(FULL, out_features=("stem",))


@pytest.fixture(scope="module")
def artifact(make_artifact: Callable[..., ModelArtifact]) -> ModelArtifact:
    return make_artifact(FULL)


@pytest.fixture(scope="module")
def images(photos: Path) -> ImageFolder:
    return ImageFolder.open(photos)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("features", "stages"), [(("stem",), 0), (("stage1",), 1), (("stage2", "stem"), 2), (("stem", "stage3"), 3)]
)
def test_what_runs_ends_with_the_last_map_returned(features: tuple[str, ...], stages: int) -> None:
    """The maps are those of the model that returns all; a stage behind them is never entered."""
    config = replace(FULL, out_features=features)
    model, whole = build_model(config).eval(), build_model(replace(FULL, out_features=FULL.stage_names)).eval()
    whole.load_state_dict(model.state_dict())
    entered: list[int] = []
    for index, stage in enumerate(model.layers):
        stage.register_forward_pre_hook(lambda *_, index=index: entered.append(index))
    pixels = torch.from_numpy(noise(1, 3, 36, 28))
    with torch.inference_mode():
        maps, every = model(pixels), whole(pixels)

    assert config.running_stages == stages
    assert entered == list(range(stages))
    assert list(maps) == list(features)
    assert all(torch.equal(maps[name], every[name]) for name in features)


def test_every_other_task_runs_whole() -> None:
    assert replace(FULL, task="encoder", out_features=()).running_depths == FULL.depths


@pytest.mark.parametrize("policy", POLICIES)
def test_is_quantized(artifact: ModelArtifact, images: ImageFolder, tmp_path: Path, policy: str) -> None:
    """Every site there is, in both forms, near the model in float."""
    spec = QuantizeSpec(calibrator="max", policy=policy, unsigned="always")  # type: ignore[arg-type]
    made = quantize(artifact, spec, images, tmp_path / "int8").artifact
    pixels = noise(2, 3, 32, 32)
    expected = TorchRunner(load_model(artifact)).run(pixels)

    assert not any(site.startswith(("layers.2.", "layers.1.downsample")) for site in quantization_sites(artifact.config))
    assert len(quantization_sites(artifact.config, "linear")) == 4 * 3 + 1
    for name in ("model_int8", "model_uint8"):
        found = OnnxRunner(made.onnx_files[name], threads=1).run(pixels)
        assert list(found) == ["feature_maps.stage2", "feature_maps.stem"]
        error = found["feature_maps.stage2"] - expected["feature_maps.stage2"]
        assert (error**2).mean() < 0.01 * (expected["feature_maps.stage2"] ** 2).mean()


def test_is_verified_block_by_block(artifact: ModelArtifact, photos: Path) -> None:
    report = verify(artifact, VerifySpec(data=photos, sizes=((32, 32),), batch_sizes=(1, 2), latency_seconds=0, threads=1))
    units = [row.name for row in report.candidates[0].layers if row.kind == "unit"]

    assert report.passed
    assert units == ["patch_embed", "layers.0.blocks.0", "layers.0.blocks.1", "layers.0.downsample", "layers.1.blocks.0"]
    assert [unit.name for unit in GraphParts(artifact.onnx_files["model"]).units] == units[1:]


def test_cut_equals_silenced_and_leaves_what_does_not_run(artifact: ModelArtifact, images: ImageFolder, tmp_path: Path) -> None:
    spec = PruneSpec(measure="params", share=0.25, images=14, multiple=4)
    planned = plan_pruning(artifact, spec, images)
    pruned = prune_artifact(artifact, spec, planned, tmp_path / "pruned").artifact
    model, pixels = load_model(artifact), noise(2, 3, 32, 48)
    with masked(model, planned.plan):
        expected = TorchRunner(model).run(pixels)
    found = OnnxRunner(pruned.onnx_files["model"], threads=1).run(pixels)

    assert planned.after.parameters == pytest.approx(0.75 * planned.before.parameters, rel=0.01)
    assert pruned.config.num_heads[2] == FULL.num_heads[2]
    assert pruned.config.mlp_hidden[2] == FULL.mlp_hidden[2]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4)


def test_counts_are_of_what_runs() -> None:
    """The same as of a model that has no stage behind."""
    shorter = make_config(
        task="backbone",
        embed_dim=16,
        depths=(2, 1),
        num_heads=(2, 4),
        window_size=4,
        image_size=32,
        patch_size=2,
        out_features=("stage2",),
    )
    mine, theirs = figures_of(FULL, (32, 32)), figures_of(shorter, (32, 32))

    assert mine == theirs
    assert block_flops(FULL, 36, 52) == block_flops(shorter, 36, 52)


def test_an_engine_is_asked_only_for_what_runs(artifact: ModelArtifact) -> None:
    layer = EngineLayer(name="", type="NoOp", kind="other", tactic="", inputs=(), constants=(), outputs=(), origins=())
    (found,) = coverage([layer], artifact.config)

    assert [layer.name for layer in found.linear] == list(quantization_sites(artifact.config))
    assert [block.name for block in found.attention] == ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"]


def test_a_stem_alone_is_verified_and_neither_quantized_nor_pruned(
    make_artifact: Callable[..., ModelArtifact], images: ImageFolder
) -> None:
    stem = make_artifact(STEM)
    report = verify(stem, VerifySpec(data=images.root, sizes=((32, 32),), batch_sizes=(1, 2), latency_seconds=0, threads=1))
    assert report.passed
    assert report.candidates[0].layers == ()
    with pytest.raises(UnsupportedModelError, match="no parts to look at"):
        GraphParts(stem.onnx_files["model"])
    with pytest.raises(SpecError, match=r"returns the stem alone.*nothing to quantize"):
        QuantizeSpec(left=("layers.0",)).sites(stem.config)
    with pytest.raises(SpecError, match=r"returns the stem alone.*nothing to prune"):
        plan_pruning(stem, PruneSpec(measure="heads", share=0.2), images)


def test_a_stem_alone_wastes_nothing() -> None:
    assert block_flops(STEM, 50, 50).padding == 0
    assert window_savings(STEM, [(50, 50), (32, 40)]).saved == 0
