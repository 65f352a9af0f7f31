"""Every fault that can be put into a calibration is named: by the bundled model on the bundled photographs, changed on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.dataset import ImageFolder
from calibration.lints import LintError
from calibration.samples import sample_folder
from calibration.table import CalibrationTable
from reference_model.model import SwinV2
from reference_model.preprocessing import read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import SpecError
from swinv2_deploy.modeling import load_model, quantization_sites
from swinv2_deploy.modeling.source import bundled_artifact
from swinv2_deploy.quantize import ptq
from swinv2_deploy.quantize.calibrate import HISTOGRAMS, TABLE, Calibrated, calibrate, read_table
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec

SPEC = QuantizeSpec(policy="mlp")
Edit = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def nano() -> tuple[ModelArtifact, SwinV2]:
    """The bundled model."""
    artifact = bundled_artifact()
    return artifact, load_model(artifact)


@pytest.fixture(scope="module")
def healthy(nano: tuple[ModelArtifact, SwinV2]) -> Calibrated:
    """The bundled model on the bundled photographs."""
    return calibrate(*nano, SPEC, ImageFolder.open(sample_folder("calibrate")))


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., ImageFolder]:
    """Function from an edit of an image (128, 128, 3) to the bundled photographs with it."""

    def make(edit: Edit, *, labels: bool = True) -> ImageFolder:
        source, recipe = ImageFolder.open(sample_folder("calibrate")), bundled_artifact().preprocessing
        for name, path in zip(source.names, source.paths, strict=True):
            target = (tmp_path / "edited" / (name if labels else name.replace("/", "-"))).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(edit(recipe.resize(read_image(path))))).save(target)
        return ImageFolder.open(tmp_path / "edited")

    return make


def patches(image: np.ndarray[Any, Any], side: int = 16) -> np.ndarray[Any, Any]:
    """Squares in another order, the same for no two images."""
    squares = image.reshape(128 // side, side, 128 // side, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    mixed = np.random.default_rng(int(image.sum())).permutation(squares)
    return mixed.reshape(128 // side, 128 // side, side, side, 3).swapaxes(1, 2).reshape(128, 128, 3)


def codes(found: Calibrated) -> set[str]:
    return {finding.code for finding in found.findings}


# --- images ------------------------------------------------------------------------------------------------------------


def test_the_bundled_photographs_are_healthy(healthy: Calibrated) -> None:
    """Nothing is found, so that --strict lets them pass."""
    assert healthy.findings == ()


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda image: np.random.default_rng(0).permutation(image.reshape(-1, 3)).reshape(image.shape), "scrambled-images"),
        (lambda image: np.random.default_rng(0).integers(0, 256, image.shape, np.uint8), "scrambled-images"),
        (patches, "scrambled-images"),
        (lambda image: patches(image, 32), "scrambled-images"),
        (lambda image: np.full_like(image, 128), "flat-images"),
        (lambda image: image // 16, "odd-pixel-statistics"),
        (lambda image: image[..., ::-1], "swapped-channels"),
    ],
    ids=["pixels", "noise", "patches of 16", "patches of 32", "gray", "dark", "swapped channels"],
)
def test_changed_images_are_named(
    edit: Edit, code: str, nano: tuple[ModelArtifact, SwinV2], edited: Callable[..., ImageFolder]
) -> None:
    """With --strict as an error, which lists all that stop."""
    with pytest.raises(LintError, match=f"{code}: ") as caught:
        calibrate(*nano, replace(SPEC, strict=True), edited(edit))
    assert code in {finding.code for finding in caught.value.findings}


def test_a_finding_that_was_accepted_by_name_stops_nothing(
    nano: tuple[ModelArtifact, SwinV2], edited: Callable[..., ImageFolder]
) -> None:
    """It is still reported."""
    images = edited(lambda image: image[..., ::-1])
    found = calibrate(*nano, replace(SPEC, strict=True, accept=("swapped-channels", "low-accuracy")), images)
    assert "swapped-channels" in codes(found)


@pytest.mark.parametrize("labels", [True, False], ids=["folders", "no folders"])
def test_images_of_one_class_are_named(labels: bool, nano: tuple[ModelArtifact, SwinV2], tmp_path: Path) -> None:
    """By their folder, and without folders by what the model takes them for."""
    for name in ("calibrate", "verify"):
        folder = ImageFolder.open(sample_folder(name))  # type: ignore[arg-type]
        for image, path in zip(folder.names, folder.paths, strict=True):
            if image.startswith("shoes/"):
                target = tmp_path / ("shoes" if labels else "all") / f"{name}-{path.name}"
                for copy in range(2):
                    target.parent.mkdir(exist_ok=True)
                    target.with_stem(f"{target.stem}-{copy}").write_bytes(path.read_bytes())
    assert "few-classes" in codes(calibrate(*nano, SPEC, ImageFolder.open(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}, "wrong-normalization"),
        ({"std": (0.229 * 255, 0.224 * 255, 0.225 * 255)}, "low-accuracy"),
    ],
    ids=["none", "scaled twice"],
)
def test_a_wrong_recipe_is_named(changes: dict[str, Any], code: str, nano: tuple[ModelArtifact, SwinV2]) -> None:
    """What is in preprocessor_config.json is not what the model was trained with."""
    artifact, model = nano
    wrong = replace(artifact, preprocessing=replace(artifact.preprocessing, **changes))
    assert code in codes(calibrate(wrong, model, SPEC, ImageFolder.open(sample_folder("calibrate"))))


def test_labels_that_belong_to_other_classes_are_named(nano: tuple[ModelArtifact, SwinV2], tmp_path: Path) -> None:
    """Every folder has the name of the next class."""
    folder = ImageFolder.open(sample_folder("calibrate"))
    names = dict(zip(folder.classes, folder.classes[1:] + folder.classes[:1], strict=True))
    for name, path in zip(folder.names, folder.paths, strict=True):
        target = tmp_path / names[name.split("/")[0]] / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert codes(calibrate(*nano, SPEC, ImageFolder.open(tmp_path))) == {"low-accuracy"}


def test_untrained_weights_are_not_asked(
    make_artifact: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact, photos: Path
) -> None:
    """Their answers mean nothing; those of weights that count as trained do."""
    for artifact, expected in ((make_artifact(trained=False), set()), (tiny_artifact, {"low-accuracy"})):
        found = calibrate(artifact, load_model(artifact), SPEC, ImageFolder.open(photos))
        assert codes(found) & {"low-accuracy", "few-classes", "swapped-channels", "wrong-normalization"} == expected


# --- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["silent", "unread"])
def test_a_dead_head_is_an_error(how: str, tiny_artifact: ModelArtifact, photos: Path) -> None:
    """It says nothing, or nothing listens."""
    model = load_model(tiny_artifact)
    attention = model.get_submodule("layers.1.blocks.0.attn")
    size = attention.head_dim
    assert isinstance(size, int)
    with torch.no_grad():
        if how == "silent":
            attention.get_parameter("qkv.weight")[-size:] = 0
            attention.get_parameter("v_bias")[-size:] = 0
        else:
            attention.get_parameter("proj.weight")[:, -size:] = 0
    with pytest.raises(LintError, match=r"dead-head: 1 attention heads .* layers\.1\.blocks\.0\.attn head 3;"):
        calibrate(tiny_artifact, model, SPEC, ImageFolder.open(photos))
    found = calibrate(tiny_artifact, model, replace(SPEC, accept=("dead-head",)), ImageFolder.open(photos))
    assert "dead-head" in codes(found)


def test_a_dead_site_and_nan_are_errors(tiny_artifact: ModelArtifact, photos: Path) -> None:
    """There is no scale."""
    for value, code in ((0.0, "dead-site"), (float("nan"), "nan-activations")):
        model = load_model(tiny_artifact)
        with torch.no_grad():
            for parameter in model.get_submodule("layers.1.blocks.1.mlp.fc1").parameters():
                parameter.fill_(value)
        with pytest.raises(LintError, match=rf"{code}: .*layers\.1\.blocks\.1\.mlp\.fc2"):
            calibrate(tiny_artifact, model, SPEC, ImageFolder.open(photos))


# --- tables ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantized(tiny_artifact: ModelArtifact, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """The tiny artifact with INT8 graphs, a table and histograms."""
    spec = QuantizeSpec(unsigned="never")
    return quantize(tiny_artifact, spec, ImageFolder.open(photos), tmp_path_factory.mktemp("q") / "tiny-int8").artifact


def test_a_table_used_again_gives_the_same_files(
    tiny_artifact: ModelArtifact, quantized: ModelArtifact, tmp_path: Path
) -> None:
    """Graph, table, histograms and picture, and the lineage tells where the ranges are from."""
    table = read_table(quantized.path / TABLE)
    again = quantize(tiny_artifact, QuantizeSpec(unsigned="never", seed=3), None, tmp_path / "again", table=table).artifact

    for name in ("onnx/model_int8.onnx", TABLE, HISTOGRAMS, "calibration.svg"):
        assert again.file(name).read_bytes() == quantized.file(name).read_bytes(), name
    spec = again.lineage.spec
    assert (spec["reused_table"], spec["images"], spec["seed"], spec["calibrator"]) == (True, 21, 0, "percentile")


def test_a_table_of_other_weights_or_sites_is_an_error(
    tiny_artifact: ModelArtifact, quantized: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    """Before any image is read, and nothing is written."""
    table = read_table(quantized.path / TABLE)
    other = replace(table, model_sha256="0" * 64)
    with pytest.raises(LintError, match=r"stale-table: .*measured on weights 000000000000, but tiny has"):
        quantize(
            tiny_artifact, SPEC, ImageFolder.open(photos), tmp_path / "q", table=other, progress=lambda *_: pytest.fail("read")
        )
    with pytest.raises(LintError, match=r"stale-table: .*lacks 0 sites \[\] and has 9 unknown"):
        quantize(tiny_artifact, QuantizeSpec(policy="mlp"), None, tmp_path / "q", table=table)
    dead = replace(table, sites=table.sites | {next(iter(table.sites)): replace(next(iter(table.sites.values())), amax=0.0)})
    with pytest.raises(LintError, match="dead-site: "):
        quantize(tiny_artifact, QuantizeSpec(), None, tmp_path / "q", table=dead)
    assert not (tmp_path / "q").exists()


def test_images_beyond_the_ranges_of_a_table_are_named(nano: tuple[ModelArtifact, SwinV2], healthy: Calibrated) -> None:
    """Ranges of a third of what the photographs need; the right ones pass, and images do not change them."""
    images = ImageFolder.open(sample_folder("verify"))
    small = {name: replace(site, amax=site.amax / 3) for name, site in healthy.table.sites.items()}
    assert calibrate(*nano, SPEC, images, healthy.table).findings == ()
    found = calibrate(*nano, replace(SPEC, images=20), images, replace(healthy.table, sites=small))
    assert codes(found) == {"out-of-range"}
    assert found.table.sites == small


def test_ranges_that_clip_too_much_are_named(nano: tuple[ModelArtifact, SwinV2], healthy: Calibrated) -> None:
    """By the share that the table itself states."""
    sites = {name: replace(site, clipped=0.05) for name, site in healthy.table.sites.items()}
    assert codes(calibrate(*nano, SPEC, None, replace(healthy.table, sites=sites))) == {"too-much-clipping"}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_scale_that_is_no_number_is_named(value: str, quantized: ModelArtifact, tmp_path: Path) -> None:
    """While the table is read."""
    content = json.loads((quantized.path / TABLE).read_text("utf-8"))
    site = next(iter(content["sites"]))
    content["sites"][site]["amax"] = "BROKEN"
    (tmp_path / "table.json").write_text(json.dumps(content).replace('"BROKEN"', value), "utf-8")
    with pytest.raises(LintError, match="nan-scale: "):
        CalibrationTable.load(tmp_path / "table.json")


def test_neither_images_nor_table_is_refused(nano: tuple[ModelArtifact, SwinV2]) -> None:
    """There is nothing to take ranges from."""
    with pytest.raises(SpecError, match="neither images nor a calibration table"):
        calibrate(*nano, SPEC, None)


def test_only_lints_that_leave_scales_can_be_accepted() -> None:
    """A stale table cannot be lived with."""
    with pytest.raises(SpecError, match="'stale-table' cannot be accepted; expected one of dead-head, few-classes"):
        QuantizeSpec(accept=("stale-table",))


def test_without_matplotlib_there_is_no_picture(
    tiny_artifact: ModelArtifact, quantized: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else is as before."""
    assert b"<svg" in quantized.file("calibration.svg").read_bytes()
    monkeypatch.setattr(ptq, "drawable", lambda _: False)
    table = read_table(quantized.path / TABLE)
    made = quantize(tiny_artifact, QuantizeSpec(unsigned="never"), None, tmp_path / "q", table=table)
    assert made.picture is None
    assert set(quantized.lineage.files) - set(made.artifact.lineage.files) == {"calibration.svg"}


def test_the_picture_names_every_site_and_is_the_same_each_time(quantized: ModelArtifact, tmp_path: Path) -> None:
    """Stage, block and layer, the range, and what is clipped."""
    from swinv2_deploy.quantize.picture import draw

    table = read_table(quantized.path / TABLE)
    draw(table, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert text.encode() == quantized.file("calibration.svg").read_bytes()
    for name in quantization_sites(quantized.config):
        _, stage, *rest = name.split(".")
        title = f"{stage}.{rest[1]} {'.'.join(rest[2:])}" if rest[0] == "blocks" else f"{stage} {'.'.join(rest)}"
        assert f">{title}<" in text
        assert f">{table.sites[name].amax:.3g}, {table.sites[name].clipped:.3%}<" in text
