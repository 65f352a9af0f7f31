"""One folder with ``train`` and ``val`` for every command: learned from the one, judged on the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.training.start import MANIFEST


@pytest.fixture
def parted(photos: Path, tmp_path: Path) -> Path:
    """Of every class two photographs to learn from and one to be judged on."""
    for path in photos.glob("*/*.png"):
        place = tmp_path / "parted" / ("val" if path.stem == "0" else "train") / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return tmp_path / "parted"


def test_trains_on_train(
    parted: Path, run: Callable[..., Result], tiny_artifact: ModelArtifact, fresh_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    short = ("--epochs", 1, "--batch-size", 4, "--phases", 16, "--warmup", 0, "--out", "artifacts/tuned")
    result = run("train", "--data", parted, "--model", tiny_artifact.path, *short)

    assert result.exit_code == 0, result.output
    tuned = read_artifact(fresh_folder / "artifacts" / "tuned")
    assert tuned.config.labels == tiny_artifact.config.labels
    seen = json.loads(tuned.file(MANIFEST).read_text("utf-8"))
    assert "14 images of 7 classes" in result.output
    assert len(seen["files"]) == 14


def test_verifies_on_val(parted: Path, run: Callable[..., Result], tiny_artifact: ModelArtifact, fresh_folder: Path) -> None:
    fast = ("--sizes", "32", "--latency-seconds", 0, "--report", "report.json")
    result = run("verify", "--data", parted, "--model", tiny_artifact.path, *fast)

    assert result.exit_code == 0, result.output
    assert f"judging on {parted / 'val'}" in result.output.replace("\n", "")
    report = json.loads((fresh_folder / "report.json").read_text("utf-8"))
    assert (report["images"], report["data"]) == (7, str(parted / "val"))


def test_a_folder_with_one_of_them_is_what_it_was(
    parted: Path, run: Callable[..., Result], tiny_artifact: ModelArtifact
) -> None:
    """A class may be called ``val``."""
    shutil.rmtree(parted / "train")
    result = run("verify", "--data", parted, "--model", tiny_artifact.path)

    assert result.exit_code != 0
    assert "is a label of the model" in result.output.replace("\n", "")
