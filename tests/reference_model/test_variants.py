"""The table of published models, and finding one in it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from reference_model.model import build_model
from reference_model.preprocessing import Preprocessing
from reference_model.variants import VARIANTS, VariantError, find_variant

# Millions of parameters as printed in Microsoft's MODELHUB.md; the 22K models have another classifier than the rows there.
PUBLISHED_SIZES = {
    "swinv2-tiny-patch4-window8-256": 28,
    "swinv2-tiny-patch4-window16-256": 28,
    "swinv2-small-patch4-window8-256": 50,
    "swinv2-small-patch4-window16-256": 50,
    "swinv2-base-patch4-window8-256": 88,
    "swinv2-base-patch4-window16-256": 88,
    "swinv2-base-patch4-window12to16-192to256-22kto1k-ft": 88,
    "swinv2-base-patch4-window12to24-192to384-22kto1k-ft": 88,
    "swinv2-large-patch4-window12to16-192to256-22kto1k-ft": 197,
    "swinv2-large-patch4-window12to24-192to384-22kto1k-ft": 197,
    "simmim-small-pretrain-patch4-window12-192": 49,
    "simmim-base-pretrain-patch4-window12-192": 87,
    "simmim-large-pretrain-patch4-window12-192": 195,
    "simmim-huge-pretrain-patch4-window12-192": 655,
    "simmim-giant-pretrain-patch4-window12-192": 1061,
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_variant_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = build_model(VARIANTS[name].config)

    assert abs(sum(parameter.numel() for parameter in model.parameters()) / 1e6 - PUBLISHED_SIZES[name]) < 1


def test_every_name_is_its_variants() -> None:
    assert list(VARIANTS) == [variant.name for variant in VARIANTS.values()]
    assert len(VARIANTS) == 23


def test_window_grown_models_keep_the_pretrained_window_of_every_stage() -> None:
    for variant in VARIANTS.values():
        grown = "to" in variant.window
        assert variant.config.pretrained_window_sizes == ((12, 12, 12, 6) if grown else (0,) * 4) or variant.name == "nano"


def test_preprocessing_facts_are_those_of_the_recipe() -> None:
    for variant in VARIANTS.values():
        recipe = Preprocessing.published(variant.resolution)
        assert (variant.resize_shortest, variant.interpolation) == (recipe.resize_shortest, recipe.interpolation)


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (("base", 384), "swinv2-base-patch4-window12to24-192to384-22kto1k-ft"),
        (("large", 256), "swinv2-large-patch4-window12to16-192to256-22kto1k-ft"),
        (("base", 192), "swinv2-base-patch4-window12-192-22k"),
        (("base", 256, 16), "swinv2-base-patch4-window16-256"),
        (("base", 256, "12to16"), "swinv2-base-patch4-window12to16-192to256-22kto1k-ft"),
        (("Tiny", None, "8"), "swinv2-tiny-patch4-window8-256"),
        (("huge", 224), "simmim-huge-finetune-patch4-window14-224"),
        (("nano",), "nano"),
        (("swinv2-tiny-patch4-window8-256",), "swinv2-tiny-patch4-window8-256"),
    ],
)
def test_request_names_one_variant(request_: tuple[str, int, str], name: str) -> None:
    assert find_variant(*request_).name == name


def test_every_variant_can_be_asked_for_by_size_resolution_and_window() -> None:
    for variant in VARIANTS.values():
        assert find_variant(variant.size, variant.resolution, variant.window) is variant


def test_ambiguous_request_lists_the_windows_and_how_they_were_trained() -> None:
    with pytest.raises(VariantError) as caught:
        find_variant("base", 256)

    message = str(caught.value)
    assert message.startswith("base at 256 px names 3 models:")
    assert "window 12to16  swinv2-base-patch4-window12to16-192to256-22kto1k-ft" in message
    assert "ImageNet-22K at 192 px with window 12, then ImageNet-1K" in message
    assert message.endswith("Choose with --window 8 or 16 or 12to16.")


def test_unknown_resolution_lists_what_exists() -> None:
    with pytest.raises(VariantError) as caught:
        find_variant("tiny", 384)

    assert str(caught.value).startswith("There is no tiny at 384 px. Of this size exist:")
    assert "swinv2-tiny-patch4-window16-256" in str(caught.value)


def test_unknown_window_lists_what_exists() -> None:
    with pytest.raises(
        VariantError, match=r"There is no base at 384 px with window 16\. There are:\n(.*\n)+Give .*--window 12to24"
    ):
        find_variant("base", 384, 16)


def test_unknown_size_lists_the_sizes() -> None:
    with pytest.raises(VariantError, match=r"no size 'medium'\. Choose one of tiny, small, base, large, .* or nano"):
        find_variant("medium")


def test_missing_resolution_is_asked_for() -> None:
    with pytest.raises(VariantError, match=r"Choose with --res 192 or 256 or 384, --window"):
        find_variant("large")


def test_table_needs_no_torch() -> None:
    code = "import sys, reference_model.variants; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
