"""An artifact whose attention is large enough to be fused, and engines of it by TensorRT-RTX, each built once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from swinv2_deploy.artifacts import ModelArtifact
    from swinv2_deploy.engine.compile import CompileResult


@pytest.fixture(scope="session")
def quantized(make_artifact: Callable[..., ModelArtifact], tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """Two stages of two blocks, heads of 32 channels and windows of 8, in FP32 and INT8. Never written to: copy it."""
    from calibration.dataset import ImageFolder
    from calibration.samples import sample_folder
    from reference_model.config import make_config
    from swinv2_deploy.quantize.ptq import quantize
    from swinv2_deploy.quantize.spec import QuantizeSpec

    config = make_config(
        embed_dim=32,
        depths=(2, 2),
        num_heads=(1, 2),
        window_size=8,
        image_size=64,
        patch_size=4,
        num_classes=3,
        labels=("a", "b", "c"),
    )
    artifact = make_artifact(config)
    images = ImageFolder.open(sample_folder("calibrate"))
    spec = QuantizeSpec(calibrator="max", images=4, unsigned="always")
    return quantize(artifact, spec, images, tmp_path_factory.mktemp("engines") / "quantized").artifact


@pytest.fixture
def fresh(quantized: ModelArtifact, tmp_path: Path) -> ModelArtifact:
    """A copy of :func:`quantized` to add engines to."""
    from swinv2_deploy.artifacts import read_artifact

    return read_artifact(Path(shutil.copytree(quantized.path, tmp_path / "quantized")))


@pytest.fixture(scope="session")
def compiled(quantized: ModelArtifact, tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    """The INT8 file with an FP16 rest, compiled for two profiles."""
    pytest.importorskip("tensorrt_rtx")
    from swinv2_deploy.artifacts import read_artifact
    from swinv2_deploy.engine import EngineSpec
    from swinv2_deploy.pipeline import compile_artifact, planned_engine

    copy = read_artifact(Path(shutil.copytree(quantized.path, tmp_path_factory.mktemp("compiled") / "quantized")))
    spec = EngineSpec(sizes=((64, 64), (64, 96)), batches=(1, 1, 2))
    return compile_artifact(copy, spec, planned_engine(copy, spec, None))
