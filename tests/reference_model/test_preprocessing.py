"""Preprocessing against direct computations with Pillow and against transformers' image processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from reference_model import preprocessing
from reference_model.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageError,
    Preprocessing,
    PreprocessingError,
    read_image,
)


def random_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torchvision_resize_and_crop(image: NDArray[np.uint8], short: int, crop: int) -> NDArray[np.uint8]:
    """torchvision.transforms.Resize(short, BICUBIC) and CenterCrop(crop), spelled out with Pillow."""
    height, width = image.shape[:2]
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    resized = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
    top, left = round((new_height - crop) / 2.0), round((new_width - crop) / 2.0)
    return resized[top : top + crop, left : left + crop]


# The published recipes


@given(height=st.integers(1, 400), width=st.integers(1, 400), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_256_px_recipe_equals_torchvisions_resize_292_and_center_crop(height: int, width: int, seed: int) -> None:
    if max(height, width) > 20 * min(height, width):
        width = height
    image = random_image(height, width, seed)
    expected = torchvision_resize_and_crop(image, 292, 256)
    np.testing.assert_array_equal(Preprocessing.published(256).resize(image), expected)


def test_192_px_recipe_resizes_the_short_side_to_219() -> None:
    recipe = Preprocessing.published(192)
    assert recipe.resize_shortest == 219
    image = random_image(300, 201)
    np.testing.assert_array_equal(recipe.resize(image), torchvision_resize_and_crop(image, 219, 192))


def test_384_px_recipe_squashes_the_whole_image() -> None:
    image = random_image(123, 457)
    expected = np.asarray(Image.fromarray(image).resize((384, 384), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Preprocessing.published(384).resize(image), expected)


def test_non_square_sizes_are_height_then_width() -> None:
    assert Preprocessing(size=(128, 192), resize_shortest=220).resize(random_image(300, 500)).shape == (128, 192, 3)
    assert Preprocessing(size=(128, 192), resize_shortest=None).resize(random_image(300, 500)).shape == (128, 192, 3)


def test_normalization_is_per_channel_in_rgb_order() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 255
    out = Preprocessing(size=(4, 4), resize_shortest=None)(image)
    assert out.dtype == np.float32
    assert out.shape == (3, 4, 4)
    expected = (np.array([1.0, 0.0, 0.0]) - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(out[:, 0, 0], expected, rtol=1e-6)


def test_another_resolution_keeps_the_share_that_the_crop_keeps() -> None:
    assert Preprocessing.published(256).resized_to(512, 512).resize_shortest == 584
    assert Preprocessing.published(384).resized_to(256, 256).resize_shortest is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (3, 9_000)])
def test_extreme_shapes_give_an_input_of_the_right_size(shape: tuple[int, int]) -> None:
    image = random_image(*shape)
    for resolution in (256, 384):
        out = Preprocessing.published(resolution)(image)
        assert out.shape == (3, resolution, resolution)
        assert np.isfinite(out).all()


@pytest.mark.parametrize("shape", [(31, 400), (400, 31), (97, 101)])
def test_computing_the_crop_alone_is_within_two_gray_levels(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = (np.linspace(0, 9, side) for side in shape)
    waves = np.sin(rows[:, None, None] + np.arange(3)) * np.cos(columns[:, None] * np.array([1.0, 2.0, 3.0]))
    image = (128 + 100 * waves).astype(np.uint8)
    recipe = Preprocessing.published(256)
    expected = recipe.resize(image).astype(int)
    monkeypatch.setattr(preprocessing, "MAX_PIXELS", 1)
    assert np.abs(recipe.resize(image).astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    "image",
    [np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)],
)
def test_an_array_that_is_no_rgb_image_is_refused(image: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \(H, W, 3\)"):
        Preprocessing.published(256).resize(image)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (0, 4), "resize_shortest": None}, "both positive"),
        ({"size": (256, 256), "resize_shortest": 255}, "use at least 256"),
        ({"size": (4, 4), "resize_shortest": None, "interpolation": "box"}, "expected one of"),
        ({"size": (4, 4), "resize_shortest": None, "std": (0.0, 1.0, 1.0)}, "std above 0"),
        ({"size": (4, 4), "resize_shortest": None, "mean": (float("nan"), 1.0, 1.0)}, "finite"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PreprocessingError, match=message):
        Preprocessing(**fields)


# preprocessor_config.json


@pytest.mark.parametrize(
    "recipe",
    [
        Preprocessing.published(192),
        Preprocessing.published(256),
        Preprocessing.published(384),
        Preprocessing(size=(64, 96), resize_shortest=100, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.3)),
    ],
)
def test_preprocessor_config_round_trips_through_json(recipe: Preprocessing) -> None:
    assert Preprocessing.from_huggingface(json.loads(json.dumps(recipe.to_huggingface()))) == recipe


def published_config() -> dict[str, Any]:
    """As in microsoft/swinv2-tiny-patch4-window8-256."""
    return {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "ViTImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 256, "width": 256},
    }


def test_the_published_hugging_face_config_is_read_as_a_squash() -> None:
    assert Preprocessing.from_huggingface(published_config()) == Preprocessing(size=(256, 256), resize_shortest=None)
    assert Preprocessing.from_huggingface(published_config() | {"size": 256}).size == (256, 256)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": {"shortest_edge": 292}, "crop_size": 256}, 292),
        ({"size": 292, "crop_size": {"height": 256, "width": 256}}, 292),
        ({"size": {"height": 256, "width": 256}, "crop_size": 256}, None),
    ],
)
def test_center_crops_of_hugging_face_configs_are_read(changes: dict[str, Any], expected: int | None) -> None:
    recipe = Preprocessing.from_huggingface(published_config() | {"do_center_crop": True} | changes)
    assert recipe == Preprocessing(size=(256, 256), resize_shortest=expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "do_resize = false"),
        ({"do_normalize": False}, "do_normalize = false"),
        ({"rescale_factor": 1.0}, "only 1/255"),
        ({"resample": 4}, "resample 4"),
        ({"resample": [3]}, "lacks or mistypes"),
        ({"size": {"shortest_edge": 256}}, "lacks or mistypes 'height'"),
        ({"size": {"height": "x", "width": 1}}, "lacks or mistypes"),
        ({"image_mean": None}, "lacks or mistypes"),
        ({"image_mean": [0.5]}, "a finite number for every channel"),
        ({"image_mean": [], "image_std": []}, "a finite number for every channel"),
        ({"do_center_crop": True, "size": {"height": 292, "width": 292}, "crop_size": 256}, "squashes to"),
    ],
)
def test_a_hugging_face_config_that_is_not_reproduced_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PreprocessingError, match=message):
        Preprocessing.from_huggingface(published_config() | changes)


@pytest.mark.parametrize("key", ["size", "resample", "image_mean", "image_std"])
def test_a_hugging_face_config_without_a_needed_key_is_refused(key: str) -> None:
    config = published_config()
    del config[key]
    with pytest.raises(PreprocessingError, match=f"lacks or mistypes '{key}'"):
        Preprocessing.from_huggingface(config)


def test_a_hugging_face_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(PreprocessingError, match="holds a list"):
        Preprocessing.from_huggingface([])


# Parity with transformers, read from the file that we write


def transformers_pixels(folder: Path, recipe: Preprocessing, picture: Image.Image) -> NDArray[np.float32]:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe.to_huggingface()))
    processor = transformers.AutoImageProcessor.from_pretrained(str(folder), backend="pil", local_files_only=True)
    out: NDArray[np.float32] = processor(picture, return_tensors="np")["pixel_values"][0]
    return out


@pytest.mark.parametrize("resolution", [192, 256, 384])
@pytest.mark.parametrize("shape", [(300, 400), (214, 160), (160, 213), (256, 256), (40, 31)])
def test_transformers_computes_the_same_pixels_from_the_written_config(
    tmp_path: Path, resolution: int, shape: tuple[int, int]
) -> None:
    recipe = Preprocessing.published(resolution)
    image = random_image(*shape)
    theirs = transformers_pixels(tmp_path, recipe, Image.fromarray(image))
    ours = recipe(image)
    if recipe.resize_shortest is not None:
        margins = [recipe.resize_shortest * side // min(shape) - resolution for side in shape]
        # The documented exception: transformers rounds the crop offset down, torchvision (and we) half to even.
        if any(margin % 4 == 3 for margin in margins):
            height, width = (side + (margin % 4 == 3) for side, margin in zip(recipe.size, margins, strict=True))
            top, left = height - resolution, width - resolution
            wider = transformers_pixels(
                tmp_path, Preprocessing(size=(height, width), resize_shortest=recipe.resize_shortest), Image.fromarray(image)
            )
            theirs = wider[:, top:, left:]
    np.testing.assert_allclose(theirs, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_transformers_reads_other_modes_from_the_written_config(tmp_path: Path, mode: str) -> None:
    recipe = Preprocessing.published(256)
    picture = Image.fromarray(random_image(64, 64)).convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    picture.save(path)
    theirs = transformers_pixels(tmp_path, recipe, Image.open(path))
    np.testing.assert_allclose(theirs, recipe(read_image(path)), atol=1e-5, rtol=0)
