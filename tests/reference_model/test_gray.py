"""Models that read gray: photographs become gray as Pillow and transformers make them; other channels are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reference_model.preprocessing import (
    GRAY_MEAN,
    GRAY_STD,
    IMAGENET_MEAN,
    ImageError,
    Preprocessing,
    PreprocessingError,
    read_image,
)

GRAY = Preprocessing(size=(24, 20), resize_shortest=28, mean=(0.5,), std=(0.25,))


def colored(height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("shortest", [28, None])
def test_a_photograph_becomes_gray_before_it_is_resized(shortest: int | None) -> None:
    recipe = replace(GRAY, resize_shortest=shortest)
    picture = Image.fromarray(colored()).convert("L")
    if shortest is None:
        resized = picture.resize((20, 24), Image.Resampling.BICUBIC)
    else:
        resized = picture.resize((33, 28), Image.Resampling.BICUBIC).crop((6, 2, 26, 26))

    found = recipe(colored())
    assert (found.shape, found.dtype) == ((1, 24, 20), np.float32)
    np.testing.assert_array_equal(
        found[0], (np.asarray(resized, np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    )


def test_a_gray_file_keeps_its_values(tmp_path: Path) -> None:
    values = np.arange(24 * 20, dtype=np.uint16).reshape(24, 20).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "gray.png")
    recipe = Preprocessing(size=(24, 20), resize_shortest=None, mean=(0.0,), std=(1.0,))

    np.testing.assert_array_equal(recipe.resize(read_image(tmp_path / "gray.png"))[:, :, 0], values)


@pytest.mark.parametrize("shortest", [28, None])
def test_transformers_computes_the_same_from_the_written_config(tmp_path: Path, shortest: int | None) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    recipe = replace(GRAY, resize_shortest=shortest)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(recipe.to_huggingface()))
    processor = transformers.AutoImageProcessor.from_pretrained(str(tmp_path), backend="pil", local_files_only=True)
    pixels = np.asarray(Image.fromarray(colored()).convert("L"))[:, :, None]
    theirs = processor(pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]

    np.testing.assert_allclose(recipe(colored()), theirs, atol=1e-6)
    assert Preprocessing.from_huggingface(recipe.to_huggingface()) == recipe


def test_what_is_assumed_where_nothing_is_said() -> None:
    rgb = Preprocessing.published(256)
    gray = rgb.with_channels(1)

    assert (gray.mean, gray.std, gray.size, gray.resize_shortest) == (GRAY_MEAN, GRAY_STD, rgb.size, rgb.resize_shortest)
    assert gray.mean[0] == pytest.approx(sum(IMAGENET_MEAN) / 3, abs=1e-3)
    assert rgb.with_channels(3) is rgb
    assert gray.with_channels(3) == rgb
    assert replace(rgb, mean=(0.5,) * 3).with_channels(3).mean == (0.5,) * 3
    assert gray.resized_to(128, 96).channels == 1


def test_other_channels_are_described_and_no_photograph_is_prepared() -> None:
    recipe = Preprocessing.published(256).with_channels(4)
    assert (recipe.mean, recipe.std) == ((0.0,) * 4, (1.0,) * 4)
    for attempt in (recipe, recipe.resize, recipe.in_channels, lambda image: recipe.require_photographs()):
        with pytest.raises(PreprocessingError, match="reads 4 channels, and photographs make three, or one in gray"):
            attempt(colored())


def test_a_picture_without_three_channels_is_refused() -> None:
    """Decoded files always have three, those of gray files being alike."""
    with pytest.raises(ImageError, match=r"expected uint8 \(H, W, 3\)"):
        GRAY(colored()[:, :, :1])
