"""The bundled photographs: small, labeled, readable, and in two sets that share nothing."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import calibration
from calibration.dataset import ImageFolder, overlap
from calibration.errors import CalibrationError
from calibration.samples import SAMPLE_SETS, SampleSet, sample_folder

CLASSES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")


@pytest.mark.parametrize(("name", "each"), [("calibrate", 4), ("verify", 10)])
def test_every_class_has_its_images(name: SampleSet, each: int) -> None:
    folder = ImageFolder.open(sample_folder(name))
    assert folder.classes == CLASSES
    assert Counter(folder.labels.values()) == dict.fromkeys(range(10), each)


def test_the_sets_share_no_image_and_repeat_none() -> None:
    first, second = (ImageFolder.open(sample_folder(name)).manifest() for name in SAMPLE_SETS)
    assert overlap(first, second) == ()
    for manifest in (first, second):
        assert len(set(manifest.files.values())) == len(manifest.files)


def test_no_two_images_look_alike() -> None:
    paths = [path for name in SAMPLE_SETS for path in ImageFolder.open(sample_folder(name)).paths]
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB").resize((16, 16), Image.Resampling.BOX), np.float32).ravel())
    thumbnails = np.stack(pictures)
    distances = np.abs(thumbnails[:, None] - thumbnails[None]).mean(axis=2)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 12


def test_every_image_decodes_to_a_photograph_of_some_size() -> None:
    for name in SAMPLE_SETS:
        for path in ImageFolder.open(sample_folder(name)).paths:
            with Image.open(path) as picture:
                picture.load()
                assert picture.mode == "RGB"
                assert min(picture.size) >= 128


def test_all_of_it_is_below_2_mb_and_says_where_it_is_from() -> None:
    root = sample_folder("verify").parent
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) <= 2_000_000
    text = (root / "README.md").read_text(encoding="utf-8")
    assert "alexeygrigorev/clothing-dataset-small" in text
    assert "CC0" in text


def test_another_set_is_refused() -> None:
    with pytest.raises(CalibrationError, match="There is no sample set 'train'; expected one of"):
        sample_folder("train")  # type: ignore[arg-type]


def test_the_package_is_a_leaf() -> None:
    for source in Path(calibration.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in {"reference_model", "swinv2_deploy", "onnx", "onnxruntime", "transformers"}
