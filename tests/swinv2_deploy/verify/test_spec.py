"""What a verification may be told, and the tolerances file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swinv2_deploy.errors import SpecError
from swinv2_deploy.verify import DEFAULTS, VerifySpec, load_tolerances, parse_sizes


def test_sizes_are_height_by_width() -> None:
    assert ((256, 256), (320, 288), (64, 64)) == parse_sizes("256x256, 320X288,64")


@pytest.mark.parametrize("text", ["", "0x4", "axb", "4x", "-1", "4x4x4", "4,,4", "9999999"])
def test_other_sizes_are_usage_errors(text: str) -> None:
    with pytest.raises(SpecError, match="is not a size; expected height x width in px"):
        parse_sizes(text)


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 0},
        {"threads": 0},
        {"batch_size": 0},
        {"batch_sizes": ()},
        {"sizes": ((0, 4),)},
        {"latency_seconds": -1.0},
        {"labels": "maybe"},
        {"provider": "tpu"},
        {"tolerances": {}},
    ],
)
def test_impossible_specs_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        VerifySpec(data=Path("photos"), **options)


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    """``false`` turns a gate off; what is not named keeps its default."""
    (tmp_path / "verify.toml").write_text("[int8]\ncosine = 0.5\nagreement = false\n", "utf-8")

    loaded = load_tolerances(tmp_path / "verify.toml")

    assert (0.5, None) == (loaded["int8"].cosine, loaded["int8"].agreement)
    assert loaded["int8"].top1_drop == DEFAULTS["int8"].top1_drop
    assert loaded["fp32"] == DEFAULTS["fp32"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[int8]\ncosin = 0.5", "'cosin' is no key of .*did you mean 'cosine'"),
        ("[in8]\ncosine = 0.5", "'in8' is no table of .*did you mean 'int8'"),
        ("int8 = 3", "expected a table"),
        ("[int8]\ncosine = 2.0", r"cosine is 2.0; expected a number from -1 to 1"),
        ("[int8]\nagreement = true", "agreement is True"),
        ("[int8]\nmax_abs = 'x'", "max_abs is 'x'"),
        ("[int8]\nmax_abs = nan", "max_abs is nan"),
        ("[fp32]\nnoise_factor = false", "noise_factor is None"),
        ("[int8", "cannot be read"),
    ],
)
def test_a_wrong_file_is_a_usage_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "verify.toml").write_text(text, "utf-8")

    with pytest.raises(SpecError, match=message):
        load_tolerances(tmp_path / "verify.toml")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_tolerances(tmp_path / "none.toml")
