"""Profiles: from a file's range, from named sizes, or as they are given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reference_model.config import SwinV2Config
from swinv2_deploy.engine.profiles import Profile, parse_batches, parse_shape, profiles_for
from swinv2_deploy.errors import SpecError
from swinv2_deploy.resolution import ResolutionRange

RANGE = ResolutionRange(min=(32, 48), opt=(224, 224), max=(512, 640))


def test_one_profile_covers_the_range_of_the_file() -> None:
    [profile] = profiles_for(RANGE, (1, 2, 8))
    assert str(profile) == "1x32x48 2x224x224 8x512x640"


def test_bounds_that_are_given_replace_those_of_the_range_and_move_the_preferred_shape_inside() -> None:
    [profile] = profiles_for(RANGE, (1, 1, 8), bounds=((2, 256, 256), None, (4, 384, 384)))
    assert str(profile) == "2x256x256 2x256x256 4x384x384"


def test_every_named_size_gets_a_profile_of_its_own_once() -> None:
    found = profiles_for(RANGE, (1, 4, 8), sizes=[(256, 256), (384, 512), (256, 256)])
    assert [str(profile) for profile in found] == ["1x256x256 4x256x256 8x256x256", "1x384x512 4x384x512 8x384x512"]


def test_a_range_in_steps_is_kept_to() -> None:
    stepped = ResolutionRange(min=(30, 30), opt=(100, 100), max=(130, 130), multiple=32)
    [profile] = profiles_for(stepped, (1, 1, 1))
    assert str(profile) == "1x32x32 1x96x96 1x128x128"


@pytest.mark.parametrize("sizes", [[(16, 64)], [(256, 700)]])
def test_a_size_that_the_file_does_not_take_is_refused(sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(SpecError, match="cannot take what its ONNX file does not"):
        profiles_for(RANGE, (1, 1, 1), sizes=sizes)


def test_bounds_and_sizes_together_are_refused() -> None:
    with pytest.raises(SpecError, match="give the one or the other"):
        profiles_for(RANGE, (1, 1, 1), sizes=[(64, 64)], bounds=((1, 32, 48), None, None))


@pytest.mark.parametrize(("low", "high"), [((0, 32, 32), (1, 32, 32)), ((2, 32, 32), (1, 32, 32)), ((1, 64, 32), (1, 32, 32))])
def test_an_empty_profile_is_refused(low: tuple[int, int, int], high: tuple[int, int, int]) -> None:
    with pytest.raises(SpecError, match="is empty; expected 1 <= min <= opt <= max"):
        Profile(min=low, opt=low, max=high)


def test_a_masked_image_model_has_two_inputs(tiny_config: SwinV2Config) -> None:
    masked = replace(tiny_config, task="masked_image_modeling", num_classes=0, labels=())
    profile = Profile(min=(1, 32, 32), opt=(1, 32, 33), max=(2, 32, 64))
    assert profile.shapes(masked) == {
        "pixel_values": ((1, 3, 32, 32), (1, 3, 32, 33), (2, 3, 32, 64)),
        "bool_masked_pos": ((1, 256), (1, 272), (2, 512)),
    }


def test_text_becomes_shapes_and_batches_or_is_refused() -> None:
    assert parse_shape("4x256X320", "--max") == (4, 256, 320)
    assert parse_batches("8") == (1, 1, 8)
    assert parse_batches("2, 4,8") == (2, 4, 8)
    for text in ("256x256", "axbxc", "1x2x3x4", ""):
        with pytest.raises(SpecError, match="expected batch x height x width"):
            parse_shape(text, "--max")
    for text in ("0", "1,2", "8,4,1", "x", "-1"):
        with pytest.raises(SpecError, match="--batch is"):
            parse_batches(text)
