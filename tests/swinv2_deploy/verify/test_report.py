"""The report as a file, as JSON and on a terminal."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.verify import DriftReport, VerifySpec, verify
from swinv2_deploy.verify.terminal import best_file, drift_tables, flip_lines, notes, verdict_lines


@pytest.fixture(scope="module")
def report(tiny_artifact: ModelArtifact, photos: Path) -> DriftReport:
    return verify(tiny_artifact, VerifySpec(data=photos, threads=1, latency_seconds=0.01, limit=7))


def test_json_is_strict(report: DriftReport) -> None:
    """No infinity, no NaN, no type of our own; equal outputs have an SQNR of null."""
    (candidate,) = report.candidates
    drift = replace(candidate.outputs["logits"], sqnr_db=float("inf"))
    perfect = replace(report, candidates=(replace(candidate, outputs={"logits": drift}),))

    content = json.loads(json.dumps(perfect.to_dict(), allow_nan=False))

    assert (1, True) == (content["schema"], content["passed"])
    assert content["candidates"][0]["outputs"]["logits"]["sqnr_db"] is None
    assert content["candidates"][0]["passed"] is True
    assert content["spec"]["batch_sizes"] == [1, 2, 3, 17]


def test_reports_grow_beside_a_valid_artifact(
    report: DriftReport, tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact]
) -> None:
    """Two reports of one second get two folders, and the artifact is the same as before."""
    artifact = changed(tiny_artifact)

    first, second = report.save(artifact.path), report.save(artifact.path)

    assert first != second
    assert json.loads(first.read_text("utf-8")) == report.to_dict() == json.loads(second.read_text("utf-8"))
    assert sorted([first.parent.name, second.parent.name]) == sorted(os.listdir(artifact.path / "reports"))
    assert read_artifact(artifact.path).sha256 == artifact.sha256


def test_a_place_that_cannot_be_written_is_an_error(report: DriftReport, tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("in the way", "utf-8")

    with pytest.raises(ArtifactError, match=r"cannot be saved in .*--report FILE"):
        report.save(tmp_path)
    with pytest.raises(ArtifactError, match=r"cannot be written to .*choose another place"):
        report.write(tmp_path / "reports" / "report.json")


def test_writing_replaces_whole_files(report: DriftReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"

    assert path == report.write(path) == report.write(path)
    assert ["report.json"] == os.listdir(path.parent)


def test_terminal_shows_every_figure(report: DriftReport) -> None:
    """The table fits 80 columns, and the lines hold notes, flips and the verdict."""
    console = Console(file=io.StringIO(), width=80)
    console.print(*drift_tables(report, 80))
    text = console.file.getvalue()  # type: ignore[attr-defined]

    for word in (
        "model.onnx",
        "top-1 of 7",
        "95 % interval",
        "agreement",
        "KL",
        "max abs",
        "cosine",
        "SQNR",
        "sizes",
        "batches",
        "PASS",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert [] == list(flip_lines(report))
    assert list(verdict_lines(report))[-1].startswith("[bold green]PASS: model.onnx")
    assert best_file(report) == Path(report.artifact) / "onnx/model.onnx"
    assert list(notes(report)) == [f"[yellow]note:[/] {notice}" for notice in report.notices]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_many_files_take_several_tables_and_no_word_is_cut(report: DriftReport, width: int) -> None:
    """Every table names its rows; beside each other they have every file once, in order."""
    (candidate,) = report.candidates
    names = [f"model_{number}_with_a_long_name" for number in range(6)]
    output = {f"feature_maps.stage{number}": candidate.outputs["logits"] for number in (1, 2)}
    many = replace(report, candidates=tuple(replace(candidate, name=name, outputs=output) for name in names))
    tables = list(drift_tables(many, width))
    console = Console(file=io.StringIO(), width=width)
    console.print(*tables)
    text = console.file.getvalue()  # type: ignore[attr-defined]

    assert len(tables) > 1
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert text.count("feature_maps.stage1 worst cosine") == len(tables)
    assert [column.header for table in tables for column in table.columns[1:]] == [f"{name}.onnx" for name in names]
    assert [bool(table.title) for table in tables] == [True] + [False] * (len(tables) - 1)
    assert len(list(drift_tables(many, 300))) == 1
