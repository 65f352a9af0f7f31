"""Artifacts never change unnoticed, and what is no artifact is told when it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_deploy.artifacts import Lineage, ModelArtifact, WeightsOrigin, read_artifact, write_artifact
from swinv2_deploy.errors import ArtifactError

LINEAGE = Lineage(stage="export", spec={"a": 1}, weights=WeightsOrigin(kind="untrained", source="seed 0"))
Fill = Callable[..., None]
Make = Callable[..., ModelArtifact]
Rewrite = Callable[[Path, Callable[[dict[str, Any]], object]], None]


@pytest.fixture
def make(make: Make) -> Make:
    """With the lineage of this file, which tests here change."""
    return lambda path, lineage=LINEAGE: make(path, lineage)


# --- hashes ------------------------------------------------------------------------------------------------------------


def test_every_changed_byte_is_found(make: Make, tmp_path: Path) -> None:
    """One flipped bit at every position of a file, and a cut and a longer file."""
    artifact = make(tmp_path / "nano")
    path = artifact.path / "onnx/model.onnx"
    good = path.read_bytes()
    flipped = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    for content in (*flipped, good[:-1], good + b"\0", b""):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="changed or damaged"):
            artifact.file("onnx/model.onnx")
    path.write_bytes(good)
    assert artifact.file("onnx/model.onnx") == path


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_changed_description_is_refused_on_opening(name: str, make: Make, tmp_path: Path) -> None:
    """Still valid JSON, but not what was written."""
    make(tmp_path / "nano")
    with (tmp_path / "nano" / name).open("a") as file:
        file.write(" \n")
    with pytest.raises(ArtifactError, match=f"{name} was changed or damaged"):
        read_artifact(tmp_path / "nano")


def test_a_file_that_is_not_there_is_named_with_those_that_are(make: Make, tmp_path: Path) -> None:
    """Both one that never was and one that was deleted."""
    artifact = make(tmp_path / "nano")
    with pytest.raises(ArtifactError, match=r"has no onnx/model_int8.onnx; it holds \['config.json'"):
        artifact.file("onnx/model_int8.onnx")
    (artifact.path / "onnx/model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"has no onnx/model\.onnx"):
        artifact.file("onnx/model.onnx")


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "train"},
        {"spec": {"a": 2}},
        {"weights": WeightsOrigin(kind="file", source="x", sha256="0" * 64)},
        {"parent": {"name": "p", "sha256": "1" * 64}},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_lineage_hash_changes_when_anything_changes(
    change: dict[str, Any], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked, of what, from where; the same twice is the same hash but for the time."""

    class Clock:
        @staticmethod
        def now(_: object) -> Clock:
            return Clock()

        def isoformat(self, **_: object) -> str:
            return "2026-01-01T00:00:00.000+00:00"

    monkeypatch.setattr("swinv2_deploy.artifacts.datetime", Clock)
    from dataclasses import replace

    first, again = make(tmp_path / "a"), make(tmp_path / "b")
    other = make(tmp_path / "c", replace(LINEAGE, **change))

    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_the_lineage_hash_covers_every_file(fill: Fill, make: Make, tmp_path: Path) -> None:
    """A changed file, and a file more, change the list of hashes; reports and engines come later and do not."""
    first = make(tmp_path / "a")
    with write_artifact(tmp_path / "b", LINEAGE) as folder:
        fill(folder, content=b"weightz")
    with write_artifact(tmp_path / "c", LINEAGE) as folder:
        fill(folder)
        (folder / "more").touch()
    (first.path / "reports").mkdir()
    (first.path / "reports" / "report.json").touch()

    hashes = [dict(read_artifact(tmp_path / name).lineage.files) for name in "abc"]
    assert hashes[0] != hashes[1]
    assert hashes[0] != hashes[2]
    assert read_artifact(first.path).sha256 == first.sha256


# --- reading -----------------------------------------------------------------------------------------------------------


def test_another_schema_is_refused(make: Make, rewrite: Rewrite, tmp_path: Path) -> None:
    """Both numbers are in the message."""
    make(tmp_path / "nano")
    rewrite(tmp_path / "nano", lambda content: content.update(schema=99))
    with pytest.raises(ArtifactError, match="schema 99, this version reads 1; make the artifact again"):
        read_artifact(tmp_path / "nano")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("weights"), "incomplete"),
        (lambda content: content.pop("files"), "incomplete"),
        (lambda content: content.update(weights={"kind": "file"}), "incomplete"),
        (lambda content: content.update(weights=3), "incomplete"),
        (lambda content: content.update(files=["a"]), "must be objects"),
        (lambda content: content.update(spec=None), "must be objects"),
        (lambda content: content["files"].update({"../../secret": "0"}), "outside the artifact"),
        (lambda content: content["files"].update({"/etc/hostname": "0"}), "outside the artifact"),
    ],
)
def test_a_lineage_that_is_not_ours_is_refused(
    change: Callable[[dict[str, Any]], object], words: str, make: Make, rewrite: Rewrite, tmp_path: Path
) -> None:
    """Missing keys, wrong types, and names that lead out of the folder."""
    make(tmp_path / "nano")
    rewrite(tmp_path / "nano", change)
    with pytest.raises(ArtifactError, match=words):
        read_artifact(tmp_path / "nano")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_lineage_is_refused(content: bytes, make: Make, tmp_path: Path) -> None:
    """Empty, cut, or other bytes."""
    make(tmp_path / "nano")
    (tmp_path / "nano/lineage.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is not an artifact: it has no readable lineage\.json"):
        read_artifact(tmp_path / "nano")


def test_what_is_no_artifact_is_told_apart(tmp_path: Path) -> None:
    """A missing folder, a file, and a folder without lineage."""
    (tmp_path / "file").touch()
    for name in ("gone", "file"):
        with pytest.raises(ArtifactError, match=r"There is no artifact at .*; make one with"):
            read_artifact(tmp_path / name)
    with pytest.raises(ArtifactError, match="is not an artifact"):
        read_artifact(tmp_path)
