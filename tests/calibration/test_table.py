"""The table keeps every bit, is written whole or not at all, and is loaded strictly."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.dataset import Manifest
from calibration.errors import CalibrationError
from calibration.table import SCHEMA, CalibrationTable, SiteRange


def example(**changes: Any) -> CalibrationTable:
    fields: dict[str, Any] = {
        "calibrator": "percentile",
        "options": {"percentile": 99.99, "num_bins": 4096.0},
        "sites": {
            "layers.1.mlp.fc2": SiteRange(amax=0.1, low=-1 / 3, high=2e-45, clipped=1e-5),
            "layers.0.mlp.fc1": SiteRange(amax=0.0, low=0.0, high=0.0),
        },
        "images": 40,
        "manifest": Manifest({"hat/b.jpg": "1" * 64, "hat/a.jpg": "0" * 64}),
        "model_sha256": "a" * 64,
        "seed": 7,
    }
    return CalibrationTable(**(fields | changes))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.json"
    example().save(path)
    return path


def test_a_saved_table_loads_bit_for_bit_and_in_order(saved: Path) -> None:
    table = CalibrationTable.load(saved)
    assert table == example()
    assert list(table.sites) == list(example().sites)
    assert table.amax == {"layers.1.mlp.fc2": 0.1, "layers.0.mlp.fc1": 0.0}
    assert table.dead_sites == ("layers.0.mlp.fc1",)


@given(bounds=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2), share=st.floats(0, 1))
def test_every_finite_range_round_trips(tmp_path_factory: pytest.TempPathFactory, bounds: list[float], share: float) -> None:
    low, high = sorted(bounds)
    site = SiteRange(amax=share * max(abs(low), abs(high)), low=low, high=high, clipped=share)
    path = tmp_path_factory.mktemp("table") / "table.json"
    table = example(sites={"x": site})
    table.save(path)
    assert CalibrationTable.load(path) == table


def test_the_same_table_is_the_same_file(saved: Path, tmp_path: Path) -> None:
    CalibrationTable.load(saved).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == saved.read_bytes()


def test_a_table_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().seed = 1  # type: ignore[misc]


# Writing


def test_saving_replaces_a_table_and_leaves_nothing_else(saved: Path) -> None:
    example(seed=8).save(saved)
    assert CalibrationTable.load(saved).seed == 8
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_keeps_the_old_table(saved: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(CalibrationError, match=r"cannot be written to .* \(No space left on device\)"):
            example(seed=8).save(saved)
    assert CalibrationTable.load(saved) == example()
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="No such file or directory"):
        example().save(tmp_path / "missing" / "table.json")


# Strict loading


def damage(saved: Path, *keys: str, value: Any = None, remove: bool = False) -> None:
    content = json.loads(saved.read_text())
    at = content
    for key in keys[:-1]:
        at = at[key]
    if remove:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    saved.write_text(json.dumps(content))


TOP = ["schema", "calibrator", "options", "images", "seed", "model_sha256", "manifest", "sites"]
SITE = ("sites", "layers.0.mlp.fc1")


@pytest.mark.parametrize(
    "keys",
    [
        *[(key,) for key in TOP],
        ("manifest", "files"),
        ("manifest", "sha256"),
        *[(*SITE, key) for key in ("amax", "low", "high", "clipped")],
    ],
)
def test_a_missing_key_is_refused(saved: Path, keys: tuple[str, ...]) -> None:
    damage(saved, *keys, remove=True)
    with pytest.raises(CalibrationError, match=rf"calibration\.json is no valid .*({keys[-1]})"):
        CalibrationTable.load(saved)


@pytest.mark.parametrize("keys", [("extra",), ("manifest", "extra"), (*SITE, "extra")])
def test_an_unknown_key_is_refused(saved: Path, keys: tuple[str, ...]) -> None:
    damage(saved, *keys, value=1)
    with pytest.raises(CalibrationError, match=r"unknown \['extra'\]"):
        CalibrationTable.load(saved)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("schema",), SCHEMA + 1, "schema is 2; this version reads 1"),
        (("schema",), True, "schema is True"),
        (("calibrator",), "", "expected a name"),
        (("options",), [], "options is a list"),
        (("options", "percentile"), "high", "option percentile is 'high'"),
        (("images",), 0, "images is 0"),
        (("images",), True, "images is True"),
        (("images",), 1.5, "images is 1.5"),
        (("seed",), "7", "seed is '7'"),
        (("model_sha256",), "A" * 64, "model_sha256 is"),
        (("model_sha256",), None, "model_sha256 is None"),
        (("sites",), {}, "at least one"),
        (("sites",), [1], "sites is a list"),
        (SITE, 3.0, "site layers.0.mlp.fc1 is a float"),
        ((*SITE, "amax"), -1.0, "site layers.0.mlp.fc1: amax -1.0"),
        ((*SITE, "amax"), 0.5, "contradict each other"),
        ((*SITE, "amax"), True, "amax is True"),
        ((*SITE, "amax"), "1", "amax is '1'"),
        ((*SITE, "amax"), None, "amax is None"),
        ((*SITE, "high"), 10**400, "expected a finite number"),
        ((*SITE, "low"), 1.0, "contradict each other"),
        ((*SITE, "clipped"), 1.5, "contradict each other"),
        (("manifest", "files"), {}, "manifest is empty"),
        (("manifest", "files", "hat/a.jpg"), "2" * 64, "but its files give"),
        (("manifest", "files", "hat/a.jpg"), 2, "expected 64 lowercase hex digits"),
        (("manifest", "sha256"), "0" * 64, "but its files give"),
    ],
)
def test_a_value_that_cannot_be_is_refused(saved: Path, keys: tuple[str, ...], value: Any, message: str) -> None:
    damage(saved, *keys, value=value)
    with pytest.raises(CalibrationError, match=message):
        CalibrationTable.load(saved)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(saved: Path, text: str) -> None:
    saved.write_text(saved.read_text().replace("99.99", text))
    with pytest.raises(CalibrationError, match=r"no number|expected a finite number"):
        CalibrationTable.load(saved)


def test_a_key_named_twice_is_refused(saved: Path) -> None:
    saved.write_text(saved.read_text().replace('"seed": 7,', '"seed": 7, "seed": 8,'))
    with pytest.raises(CalibrationError, match=r"names \['seed'\] twice"):
        CalibrationTable.load(saved)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table.json").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"table\.json is no (valid )?calibration table"):
        CalibrationTable.load(tmp_path / "table.json")


def test_a_table_cut_short_anywhere_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for length in range(0, len(content) - 2, 13):
        saved.write_bytes(content[:length])
        with pytest.raises(CalibrationError, match="is no calibration table"):
            CalibrationTable.load(saved)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read \\(No such file or directory\\)"):
        CalibrationTable.load(tmp_path / "table.json")
