"""The newest artifact of a folder, and the sizes that a file takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_deploy.artifacts import ModelArtifact, ResolutionRange, newest_artifact
from swinv2_deploy.errors import ArtifactError, SpecError

Make = Callable[..., ModelArtifact]
Rewrite = Callable[[Path, Callable[[dict[str, Any]], object]], None]
Dated = Callable[..., None]


# --- the newest --------------------------------------------------------------------------------------------------------


@pytest.fixture
def dated(make: Make, rewrite: Rewrite) -> Dated:
    """Function that makes an artifact of another time, and of another stage."""

    def write(path: Path, created: str, stage: str = "export") -> None:
        make(path)
        rewrite(path, lambda content: content.update(created=created, stage=stage))

    return write


def test_the_newest_artifact_is_the_one_made_last(dated: Dated, tmp_path: Path) -> None:
    """By the time in the lineage, not the file's: copies keep their age. Hidden and unfinished folders do not count."""
    dated(tmp_path / "zebra", "2026-01-01T00:00:00.000+00:00")
    dated(tmp_path / "aardvark", "2026-01-03T00:00:00.000+00:00")
    dated(tmp_path / "middle", "2026-01-02T00:00:00.000+00:00")
    dated(tmp_path / ".hidden", "2026-01-09T00:00:00.000+00:00")
    (tmp_path / "unfinished").mkdir()

    assert newest_artifact(tmp_path).name == "aardvark"


def test_a_stage_can_be_passed_over(dated: Dated, tmp_path: Path) -> None:
    """Quantizing again starts from what was quantized before, not from its result; where there is nothing else, that is it."""
    dated(tmp_path / "nano", "2026-01-01T00:00:00.000+00:00")
    dated(tmp_path / "nano-int8", "2026-01-02T00:00:00.000+00:00", stage="quantize")

    assert newest_artifact(tmp_path).name == "nano-int8"
    assert newest_artifact(tmp_path, besides="quantize").name == "nano"
    assert newest_artifact(tmp_path, besides="train").name == "nano-int8"
    shutil.rmtree(tmp_path / "nano")
    assert newest_artifact(tmp_path, besides="quantize").name == "nano-int8"


def test_an_old_damaged_artifact_does_not_stand_in_the_way(dated: Dated, tmp_path: Path) -> None:
    """A damaged one is an error only when it is the one to use."""
    dated(tmp_path / "old", "2026-01-01T00:00:00.000+00:00")
    dated(tmp_path / "new", "2026-01-02T00:00:00.000+00:00")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/lineage.json").write_text("{", "utf-8")
    (tmp_path / "old/config.json").write_text("{}", "utf-8")

    assert newest_artifact(tmp_path).name == "new"
    (tmp_path / "new/config.json").write_text("{}", "utf-8")
    with pytest.raises(ArtifactError, match="does not describe a model"):
        newest_artifact(tmp_path)


def test_no_artifact_says_how_to_make_one(tmp_path: Path) -> None:
    """In an empty folder and in one that does not exist."""
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ArtifactError, match=r"There is no artifact in .*; make one with 'swinv2-deploy export'"):
            newest_artifact(folder)


# --- sizes -------------------------------------------------------------------------------------------------------------


RANGE = ResolutionRange(min=(32, 64), opt=(128, 128), max=(256, 512), multiple=32)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (256, 512), (128, 128), (64, 96)])
def test_sizes_inside_the_range_are_taken(height: int, width: int) -> None:
    """Both ends belong to it."""
    assert RANGE.refusal(height, width) is None


@pytest.mark.parametrize(("height", "width"), [(31, 64), (32, 63), (257, 512), (256, 513), (33, 64), (128, 100), (64, 32)])
def test_sizes_outside_are_refused_with_the_range(height: int, width: int) -> None:
    """Height comes first, and the axes are not confused."""
    reason = RANGE.refusal(height, width)
    assert reason == (f"{height}x{width} px is outside what this file was exported for: 32x64 to 256x512 px in steps of 32.")


@pytest.mark.parametrize(
    ("size", "nearest"), [((1, 1), (32, 64)), ((999, 999), (256, 512)), ((100, 100), (96, 96)), ((64, 64), (64, 64))]
)
def test_any_size_has_a_nearest_one_inside(size: tuple[int, int], nearest: tuple[int, int]) -> None:
    """Which the range then takes."""
    assert RANGE.nearest(*size) == nearest
    assert RANGE.refusal(*RANGE.nearest(*size)) is None


def test_a_static_range_says_exactly() -> None:
    """One size, one number."""
    only = ResolutionRange(min=(128, 96), opt=(128, 96), max=(128, 96))
    assert only.static
    assert only.refusal(128, 96) is None
    assert only.refusal(96, 128) == "96x128 px is outside what this file was exported for: exactly 128x96 px."


@pytest.mark.parametrize(
    "sides",
    [((0, 1), (1, 1), (2, 2)), ((4, 4), (2, 4), (8, 8)), ((1, 1), (4, 4), (4, 3))],
)
def test_an_empty_range_is_refused(sides: tuple[tuple[int, int], ...]) -> None:
    """Min, opt and max in order, on both axes."""
    with pytest.raises(SpecError, match="is empty"):
        ResolutionRange(min=sides[0], opt=sides[1], max=sides[2])


def test_a_multiple_below_one_is_refused() -> None:
    """Nothing is a multiple of zero."""
    with pytest.raises(SpecError, match="multiple is 0"):
        ResolutionRange(min=(1, 1), opt=(1, 1), max=(1, 1), multiple=0)


def test_a_range_survives_json() -> None:
    """As the ONNX metadata keeps it."""
    from dataclasses import asdict

    assert ResolutionRange.from_dict(json.loads(json.dumps(asdict(RANGE)))) == RANGE
