"""What the lints see in pixels and answers: synthetic photographs pass, each fault is named, and no name is unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.answers import FEWEST, advantage, answer_findings, losses
from calibration.errors import CalibrationError
from calibration.lints import CERTAIN, STATISTICAL, Finding, LintError, require, table_findings
from calibration.pixels import PixelStatistics, pixel_findings
from calibration.statistics import wilson_interval

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Array = np.ndarray[Any, Any]


def photographs(count: int = 32, side: int = 64, seed: int = 0) -> Array:
    """Images (count, 3, side, side) in 0 to 1 with the spectrum of smooth photographs: a power of the frequency."""
    random = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1 / side
    shape = (count, 1, side, side // 2 + 1)
    waves = (random.normal(size=shape) + 1j * random.normal(size=shape)) / frequency**1.4
    light = np.fft.irfft2(waves, s=(side, side))
    light = (light - light.mean(axis=(2, 3), keepdims=True)) / light.std(axis=(2, 3), keepdims=True)
    return np.clip(0.45 + 0.2 * light * np.ones((1, 3, 1, 1)), 0, 1)


def found(images: Array, *, mean: Any = MEAN, std: Any = STD) -> set[str]:
    """Names of what is wrong with raw images (n, 3, H, W) after a recipe."""
    return codes(normalized(images, mean, std), mean, std)


def normalized(images: Array, mean: Any = MEAN, std: Any = STD) -> Array:
    return ((images - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))).astype(np.float32)


def codes(pixels: Array, mean: Any = MEAN, std: Any = STD) -> set[str]:
    seen = PixelStatistics(mean, std)
    for part in np.array_split(pixels, 3):
        seen.collect(part)
    return {finding.code for finding in pixel_findings(seen)}


def shuffled(images: Array, side: int) -> Array:
    """Squares of each image in an order of its own."""
    random, size = np.random.default_rng(0), images.shape[2] // side
    made = []
    for image in images:
        squares = image.reshape(3, size, side, size, side).transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        squares = random.permutation(squares).reshape(size, size, 3, side, side)
        made.append(squares.transpose(2, 0, 3, 1, 4).reshape(image.shape))
    return np.stack(made)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("side", [32, 64, 96])
def test_images_with_the_spectrum_of_photographs_pass(seed: int, side: int) -> None:
    assert found(photographs(side=side, seed=seed)) == set()


@pytest.mark.parametrize("side", [1, 4, 8, 16, 32])
def test_shuffled_squares_are_scrambled(side: int) -> None:
    assert "scrambled-images" in found(shuffled(photographs(), side))


@pytest.mark.parametrize("count", [1, 4, 15])
def test_few_images_are_judged_by_themselves_alone(count: int) -> None:
    """A seam in all of them says nothing before there are sixteen; unrelated neighbors do."""
    assert found(photographs(count)) == set()
    assert found(shuffled(photographs(count), 1)) == {"scrambled-images"}
    assert found(shuffled(photographs(count), 32)) == set()


def test_a_minority_of_bad_images_is_not_blamed() -> None:
    images = photographs(40)
    images[:18] = shuffled(images[:18], 1)
    assert found(images) == set()
    images[:22] = shuffled(images[:22], 1)
    assert found(images) == {"scrambled-images"}


def test_images_of_one_color_are_flat() -> None:
    assert found(np.full((8, 3, 32, 32), 0.5) + np.linspace(-0.2, 0.2, 8)[:, None, None, None]) == {"flat-images"}


@pytest.mark.parametrize("factor", [1 / 255, 255.0, 0.1])
def test_pixels_on_another_scale_have_odd_statistics(factor: float) -> None:
    assert "odd-pixel-statistics" in found(photographs() * factor)


def test_pixels_that_never_went_through_the_recipe_have_odd_statistics() -> None:
    """What an own loop forgets: the pixels are raw, the recipe says otherwise."""
    assert codes(photographs().astype(np.float32)) == {"odd-pixel-statistics", "wrong-normalization"}


def test_a_recipe_without_a_center_is_named() -> None:
    zero, one, half = (0.0,) * 3, (1.0,) * 3, (0.5,) * 3
    assert found(photographs(), mean=zero, std=one) == {"wrong-normalization"}
    assert found(photographs(), mean=half, std=half) == set()


def test_statistics_keep_constant_memory_and_ignore_the_split() -> None:
    whole, parts = PixelStatistics(MEAN, STD), PixelStatistics(MEAN, STD)
    images = normalized(photographs(24))
    whole.collect(images)
    for image in images:
        parts.collect(image[None])
    for name in ("raw_mean", "raw_deviation", "negative_share", "unlike_neighbors", "unlike_far", "flat", "seam"):
        assert getattr(whole, name) == pytest.approx(getattr(parts, name), rel=1e-12), name
    sizes = {name: np.size(value) for name, value in vars(whole).items()}
    whole.collect(np.concatenate([images] * 4))
    assert {name: np.size(value) for name, value in vars(whole).items()} == sizes


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 8, 32)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CalibrationError, match=r"expected \(B, 3, H, W\)"):
        PixelStatistics(MEAN, STD).collect(np.zeros(shape, np.float32))


def test_another_size_is_refused_and_no_image_is_no_finding() -> None:
    seen = PixelStatistics(MEAN, STD)
    assert pixel_findings(seen) == ()
    seen.collect(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(CalibrationError, match="expected one size"):
        seen.collect(np.zeros((1, 3, 32, 48), np.float32))


# --- answers -----------------------------------------------------------------------------------------------------------


def answers(labels: Array, confidence: float, noise: float = 1.0, classes: int = 10, seed: int = 0) -> Array:
    """Logits (n, classes) that favor the right class."""
    logits = noise * np.random.default_rng(seed).normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += confidence
    return logits.astype(np.float32)


BALANCED = np.arange(40) % 10


def names(logits: Array, labels: Any, others: Any = None) -> set[str]:
    return {finding.code for finding in answer_findings(logits, list(labels), others or {})}


def test_right_answers_to_images_of_all_classes_pass() -> None:
    others = {"swapped": ("swapped-channels", answers(BALANCED, 1.0, seed=1))}
    assert names(answers(BALANCED, 4.0), BALANCED, others) == set()


def test_better_answers_to_another_form_are_named() -> None:
    others = {
        "with red and blue swapped": ("swapped-channels", answers(BALANCED, 4.0, seed=1)),
        "with mean 0": ("wrong-normalization", answers(BALANCED, 1.5, seed=2)),
    }
    assert names(answers(BALANCED, 2.5), BALANCED, others) == {"swapped-channels"}
    assert names(answers(BALANCED, 2.5), [None] * 40, others) == set()


def test_answers_no_better_than_chance_are_named() -> None:
    assert names(answers(BALANCED, 0.0), BALANCED) == {"low-accuracy"}
    assert names(answers(BALANCED[:15], 0.0), BALANCED[:15]) == set()  # fewer than can be judged
    assert FEWEST == 16


def test_images_of_one_class_are_named_by_label_or_by_answer() -> None:
    same = np.full(40, 3)
    assert names(answers(same, 5.0), same) == {"few-classes"}
    assert names(answers(same, 5.0), [None] * 40) == {"few-classes"}
    assert names(answers(same % 2, 5.0, classes=2), [None] * 40) == set()  # two classes may well be unequal
    assert names(answers(BALANCED, 0.0)[:, [0] * 10] - np.arange(10), BALANCED) == {"low-accuracy"}  # labels know better


def test_losses_equal_torch() -> None:
    import torch

    logits = answers(BALANCED, 2.0) * 300
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(BALANCED), reduction="none"
    )
    np.testing.assert_allclose(losses(logits, BALANCED), expected.numpy(), rtol=1e-12)


def test_the_advantage_is_a_paired_t_statistic() -> None:
    from scipy.stats import ttest_rel

    random = np.random.default_rng(0)
    first, second = random.normal(1.0, 1.0, 30), random.normal(0.5, 1.0, 30)
    assert advantage(first, second) == pytest.approx(float(ttest_rel(first, second).statistic))
    assert advantage(first, first) == 0.0


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (3, 10), (32, 64), (64, 64)])
def test_wilson_equals_scipy(hits: int, count: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


# --- findings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_certain_findings_stop_and_others_only_when_strict(strict: bool) -> None:
    warning, error = Finding(code="few-classes", text="a"), Finding(code="dead-head", text="b")
    with pytest.raises(LintError) as caught:
        require([warning, error], strict=strict)
    assert caught.value.findings == ((warning, error) if strict else (error,))
    assert "dead-head: b" in str(caught.value)
    if not strict:
        assert require([warning]) == (warning,)


def test_names_are_known_and_unlike() -> None:
    assert not set(CERTAIN) & set(STATISTICAL)
    with pytest.raises(CalibrationError, match="There is no lint 'odd'; expected one of dead-head"):
        Finding(code="odd", text="")
    assert Finding(code="nan-scale", text="a", value=1.0).to_dict() == {
        "code": "nan-scale",
        "text": "a",
        "value": 1.0,
        "limit": None,
        "certain": True,
    }


def test_clipping_is_named_with_the_worst_site() -> None:
    assert table_findings({"a": 0.001, "b": 0.02}) == ()
    (own,) = table_findings({"a": 0.03, "b": 0.5, "c": 0.0})
    assert (own.code, own.value) == ("too-much-clipping", 0.5)
    assert "2 of 3 sites clip more than 2% of their values, b the most, 50.00%" in own.text
    assert table_findings({"a": 0.03}, others=True)[0].code == "out-of-range"
