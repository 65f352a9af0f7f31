"""A model that reads gray goes the whole way; one that reads other channels is exported, and refused where photographs count."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.dataset import ImageFolder
from reference_model.checkpoint import CheckpointError
from reference_model.preprocessing import GRAY_MEAN, Preprocessing, PreprocessingError, read_image
from reference_model.variants import VARIANTS
from swinv2_deploy.artifacts import LINEAGE, ModelArtifact, file_sha256, read_artifact
from swinv2_deploy.errors import ArtifactError, SpecError, UnsupportedModelError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.modeling.source import resolve, source_from_artifact
from swinv2_deploy.pipeline import plan_pruning, prune_artifact
from swinv2_deploy.prune.spec import PruneSpec
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import load_runner
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.spec import TrainSpec, parse_phases
from swinv2_deploy.training.start import prepare
from swinv2_deploy.verify import VerifySpec, verify


@pytest.fixture(scope="module")
def gray(make_artifact: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact) -> ModelArtifact:
    return make_artifact(replace(tiny_artifact.config, num_channels=1))


@pytest.fixture(scope="module")
def four(make_artifact: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact) -> ModelArtifact:
    return make_artifact(replace(tiny_artifact.config, num_channels=4))


@pytest.fixture
def images(photos: Path) -> ImageFolder:
    return ImageFolder.open(photos)


def test_a_gray_model_is_quantized_pruned_and_verified(gray: ModelArtifact, images: ImageFolder, tmp_path: Path) -> None:
    quantized = quantize(gray, QuantizeSpec(calibrator="max", images=14), images, tmp_path / "int8").artifact
    spec = PruneSpec(measure="params", share=0.2, images=14, multiple=4)
    pruned = prune_artifact(gray, spec, plan_pruning(gray, spec, images), tmp_path / "pruned").artifact
    spec = VerifySpec(
        data=images.root, sizes=((32, 32),), batch_sizes=(1, 2), latency_seconds=0, threads=1, preprocessing_images=3
    )
    spec = replace(spec, exclude_overlap=True)
    report = verify(quantized, spec)

    assert report.passed
    assert {"model", "model_int8"} <= {candidate.name for candidate in report.candidates}
    assert not any("BGR" in row.name for row in report.preprocessing)
    assert verify(pruned, replace(spec, preprocessing_images=0, candidates=("model",))).passed


def test_a_gray_model_trains_on_gray(images: ImageFolder) -> None:
    """Crops of a gray photograph that are neither colored nor mixed are what the model will be given."""
    recipe = Preprocessing(size=(32, 32), resize_shortest=None).with_channels(1)
    spec = TrainSpec(
        phases=parse_phases("32"), batch_size=7, color_jitter=0, mixup=0, cutmix=0, erase=0, crop_scale=1, label_smoothing=0
    )
    folder = images.root / "gray"
    folder.mkdir(exist_ok=True)
    file = folder / "even.png"
    Image.fromarray(np.full((40, 40), 200, np.uint8)).save(file)
    pixels, _ = next(TrainingImages([file] * 7, [0] * 7, 40).batches(spec, 0, recipe, 7))
    file.unlink()
    folder.rmdir()

    assert pixels.shape == (7, 1, 32, 32)
    torch.testing.assert_close(pixels, torch.full((7, 1, 32, 32), (200 / 255 - 0.449) / 0.226))


def test_fine_tuning_keeps_the_channels(gray: ModelArtifact, four: ModelArtifact, images: ImageFolder) -> None:
    start = prepare(SourceRequest(model=str(gray.path)), images, drop_path=0.0)
    assert start.model.config.num_channels == start.preprocessing.channels == 1
    with pytest.raises(PreprocessingError, match="reads 4 channels"):
        prepare(SourceRequest(model=str(four.path)), images, drop_path=0.0)


def test_four_channels_are_refused_where_photographs_are_needed(
    four: ModelArtifact, images: ImageFolder, tmp_path: Path
) -> None:
    """By name, and nothing is written; what needs none goes on."""
    spec = PruneSpec(measure="heads", share=0.2, images=7)
    attempts = [
        lambda: quantize(four, QuantizeSpec(calibrator="max"), images, tmp_path / "int8"),
        lambda: verify(four, VerifySpec(data=images.root, latency_seconds=0)),
        lambda: plan_pruning(four, spec, images),
    ]
    for attempt in attempts:
        with pytest.raises(PreprocessingError, match="reads 4 channels, and photographs make three"):
            attempt()
    assert list(tmp_path.iterdir()) == []
    assert plan_pruning(four, replace(spec, criterion="magnitude"), None).after.heads < sum(map(sum, four.config.num_heads))


@pytest.mark.parametrize("channels", ["gray", "four"])
def test_preprocessing_is_baked_for_rgb_only(channels: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = source_from_artifact(request.getfixturevalue(channels))
    with pytest.raises(UnsupportedModelError, match="can be put before RGB pixels alone"):
        export(source, ExportSpec(static=True, bake_preprocessing=True), tmp_path / "baked")
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_for_other_channels_is_not_exported(gray: ModelArtifact, tmp_path: Path) -> None:
    wrong = replace(source_from_artifact(gray), preprocessing=Preprocessing(size=(32, 32), resize_shortest=36))
    with pytest.raises(SpecError, match="a mean for 3 channels, and the model reads 1"):
        export(wrong, ExportSpec(static=True), tmp_path / "wrong")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_tells_its_normalization_or_is_told_what_is_assumed(gray: ModelArtifact, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(gray.file(name).read_bytes())
    found = resolve(SourceRequest(model=str(tmp_path)))
    assert found.preprocessing.mean == GRAY_MEAN
    assert any("reads gray; mean (0.449,)" in note for note in found.notes)

    described = found.preprocessing.to_huggingface()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described | {"image_mean": [0.5], "image_std": [0.2]}))
    assert resolve(SourceRequest(model=str(tmp_path))).preprocessing.mean == (0.5,)

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(Preprocessing.published(32).to_huggingface()))
    with pytest.raises(CheckpointError, match="a mean for 3 channels, and the model reads 1"):
        resolve(SourceRequest(model=str(tmp_path)))


def test_a_file_of_weights_tells_its_channels(
    gray: ModelArtifact, tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published architecture whose first layer was made for gray."""
    rgb = replace(VARIANTS["nano"], name="swinv2-mini", size="mini", resolution=32, window="4", config=tiny_artifact.config)
    monkeypatch.setitem(VARIANTS, rgb.name, rgb)
    file = tmp_path / "gray.safetensors"
    file.write_bytes(gray.file("model.safetensors").read_bytes())
    found = resolve(SourceRequest(size="mini", resolution=32, window="4", weights=file))

    assert (found.model.config.num_channels, found.preprocessing.mean) == (1, GRAY_MEAN)
    assert any("reads gray" in note for note in found.notes)


def test_an_artifact_that_contradicts_itself_is_refused(gray: ModelArtifact, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json", LINEAGE):
        (tmp_path / name).write_bytes((gray.path / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(Preprocessing.published(32).to_huggingface()))
    lineage = json.loads((tmp_path / LINEAGE).read_text())
    lineage["files"]["preprocessor_config.json"] = file_sha256(tmp_path / "preprocessor_config.json")
    (tmp_path / LINEAGE).write_text(json.dumps(lineage))
    with pytest.raises(ArtifactError, match="a mean for 3 channels, and its model reads 1"):
        read_artifact(tmp_path)


def test_the_runner_gets_gray_pixels(gray: ModelArtifact, images: ImageFolder) -> None:
    pixels = np.stack([gray.preprocessing(read_image(path)) for path in images.paths[:2]])
    assert pixels.shape == (2, 1, 32, 32)
    assert load_runner(gray, "model").run(pixels)["logits"].shape == (2, gray.config.num_classes)
