"""The page of a report: self-contained, escaped, readable without its colors."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.verify import DriftReport, VerifySpec, verify
from swinv2_deploy.verify.charts import decibels, short
from swinv2_deploy.verify.page import report_page

Edit = Callable[..., object]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report(tiny_artifact: ModelArtifact, photos: Path) -> DriftReport:
    """A report with labels, latencies and a drifted copy beside the healthy file."""
    spec = VerifySpec(data=photos, sizes=((32, 32), (40, 36)), batch_sizes=(1, 2), latency_seconds=0.2)
    return verify(tiny_artifact, spec)


@pytest.fixture
def broken(
    tiny_artifact: ModelArtifact, photos: Path, changed: Callable[..., ModelArtifact], edit_initializer: Callable[..., Edit]
) -> tuple[DriftReport, ModelArtifact]:
    """The same of a file whose answers differ."""
    artifact = changed(
        tiny_artifact, {"model": edit_initializer("head.bias", lambda bias: bias + np.eye(7, dtype=np.float32)[0] * 9)}
    )
    spec = VerifySpec(data=photos, sizes=((32, 32),), batch_sizes=(1, 2), latency_seconds=0)
    return verify(artifact, spec), artifact


def test_a_page_needs_nothing_beside_it(report: DriftReport, tiny_artifact: ModelArtifact) -> None:
    page = report_page(report, tiny_artifact)
    assert len(page) < 2_000_000
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert "http" not in page.replace("http-equiv", "")
    for part in ("Files", "Drift by layer", "Other sizes", "Speed against accuracy", "All gates", "Lineage"):
        assert part in page
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    assert all(label for label in re.findall(r'role="img" aria-label="([^"]*)"', page))


def test_the_figures_are_in_the_page(report: DriftReport, tiny_artifact: ModelArtifact) -> None:
    page = report_page(report, tiny_artifact)
    found = re.search(r'href="data:application/json;base64,([^"]+)"', page)
    assert found is not None
    assert json.loads(base64.b64decode(found[1])) == json.loads(json.dumps(report.to_dict()))


def test_changed_answers_have_pictures_and_both_top_fives(broken: tuple[DriftReport, ModelArtifact]) -> None:
    report, artifact = broken
    page = report_page(report, artifact)
    assert "FAIL" in page
    classes = report.candidates[0].classes
    assert classes is not None
    assert len(classes.flips) > 3
    assert page.count("data:image/jpeg;base64,") == min(12, len(classes.flips))
    assert all(len(first) == len(second) == 5 for first, second in (flip.top5 for flip in classes.flips))
    assert all(1.001 > sum(value for _, value in flip.top5[0]) > 0.2 for flip in classes.flips)
    gone = replace(report, data="/nowhere")
    assert "data:image/jpeg" not in report_page(gone, artifact)


def test_names_with_markup_stay_text(report: DriftReport, tiny_artifact: ModelArtifact) -> None:
    evil = '<img src=x onerror="alert(1)">'
    (candidate,) = report.candidates
    classes = candidate.classes
    assert classes is not None
    marked = replace(
        candidate, name=evil, classes=replace(classes, per_class=((evil, 3, 2, 1),), confusion=((evil, "a", evil, 2),))
    )
    page = report_page(replace(report, candidates=(marked,), notices=(evil,), data=evil), tiny_artifact)
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_reports_go_to_an_artifact_a_file_or_junit(report: DriftReport, tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(tiny_artifact.path, tmp_path / "tiny"))
    page = report_page(report, tiny_artifact)
    saved = report.save(artifact, page)
    assert saved.with_name("report.html").read_text("utf-8") == page
    assert report.write(tmp_path / "a/page.html", page).read_text("utf-8") == page
    assert json.loads(report.write(tmp_path / "a/report.json", page).read_text("utf-8"))["passed"] is True
    suites = ElementTree.fromstring(report.to_junit())
    (suite,) = suites
    assert suite.get("tests") == str(len(report.candidates[0].checks))
    assert suite.get("failures") == "0"


def test_a_failed_gate_is_a_failure_in_junit(broken: tuple[DriftReport, ModelArtifact]) -> None:
    report, _ = broken
    failures = ElementTree.fromstring(report.to_junit()).findall(".//failure")
    assert len(failures) == len(report.failures) > 0
    assert "differs by" in str(failures[0].get("message"))


def test_words() -> None:
    assert short("layers.0.blocks.1.mlp.fc2") == "1.1 mlp.fc2"
    assert short("layers.1.downsample.reduction") == "2.merge reduction"
    assert short("patch_embed") == "embed"
    assert decibels(float("inf")) == "equal"
    assert decibels(None) == "not measured"
    assert decibels(31.25) == "31.2 dB"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on the path")
@pytest.mark.parametrize("width", [390, 768, 1440])
def test_a_browser_shows_it_without_complaint(
    width: int, report: DriftReport, tiny_artifact: ModelArtifact, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(report_page(report, tiny_artifact), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
    quiet = ("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}")
    command = ["chromium", *flags, *quiet, "--enable-logging=stderr", f"--window-size={width},900", "--dump-dom"]
    found = subprocess.run(
        [*command, f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in found.stderr
    assert 'id="lineage"' in found.stdout
