"""Two reports side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.cli.app import app
from swinv2_deploy.verify import DriftReport, VerifySpec, verify


@pytest.fixture(scope="module")
def report(tiny_artifact: ModelArtifact, photos: Path) -> DriftReport:
    spec = VerifySpec(data=photos, sizes=((32, 32),), batch_sizes=(1,), latency_seconds=0, layer_images=0)
    return verify(tiny_artifact, spec)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_what_became_better_or_worse_is_marked(report: DriftReport, tmp_path: Path) -> None:
    (candidate,) = report.candidates
    classes = candidate.classes
    assert classes is not None
    worse = replace(candidate, classes=replace(classes, agreement=0.5, drop=9.0), size_bytes=candidate.size_bytes // 2)
    first = report.write(tmp_path / "a/report.json")
    second = replace(report, candidates=(worse,), images=7).write(tmp_path / "b/report.json")
    result = run(first, second.parent, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["figure"]: row for row in json.loads(result.stdout)["rows"]}
    assert (rows["agreement, %"]["first"], rows["agreement, %"]["second"], rows["agreement, %"]["better"]) == (
        100.0,
        50.0,
        False,
    )
    assert rows["MiB"]["better"] is True
    assert rows["SQNR, dB"]["better"] is None
    assert "a number of photographs, 21 and 7; figures may not be comparable" in result.stderr
    assert "worse" in run(first, second).stdout


def test_the_newest_report_of_an_artifact_is_taken(report: DriftReport, tmp_path: Path) -> None:
    older = report.save(tmp_path)
    newer = replace(report, created="2999-01-01T00:00:00").save(tmp_path)
    result = json.loads(run(tmp_path, older, "--json").stdout)
    assert (result["first"], result["second"]) == (str(newer), str(older))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no report"),
        ("{", "is no drift report"),
        ('{"schema": 9, "candidates": []}', "has schema 9"),
        ("[]", "is no drift"),
    ],
)
def test_what_is_no_report_is_refused(content: str | None, message: str, report: DriftReport, tmp_path: Path) -> None:
    good = report.write(tmp_path / "good.json")
    bad = tmp_path / "bad"
    bad.mkdir()
    if content is not None:
        (bad / "report.json").write_text(content)
    result = run(good, bad)
    assert (result.exit_code, message in result.stderr) == (1, True), result.output
    assert run(good, tmp_path / "nowhere").exit_code == 1
