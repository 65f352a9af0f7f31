"""``export --prove`` as a user meets it: a table, an exit code, and one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.cli.app import app
from swinv2_deploy.modeling import source

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def fresh_folder(tmp_path: Path, tiny_artifact: ModelArtifact, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, with a small model in the place of the bundled one."""
    (tmp_path / "fresh").mkdir()
    monkeypatch.chdir(tmp_path / "fresh")
    monkeypatch.setattr(source, "bundled_artifact", lambda: tiny_artifact)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])


def test_a_new_export_is_proved_on_the_full_grid(run: Run) -> None:
    result = run("--prove", "--max-res", "64", "--out", "new", "--sizes", "48", "--json")
    content = json.loads(result.stdout)

    assert result.exit_code == 0, result.output
    assert "max abs error" in result.stderr
    assert "64x64" in result.stderr
    assert list(content["files"]) == ["model", "model_48x48"]
    grid = {tuple(row["size"]): list(row["errors"]) for row in content["proof"]["model"]["grid"]}
    assert grid[32, 32] == ["1", "2", "3", "17"]
    assert (64, 64) in grid
    assert read_artifact(Path("new")).lineage.spec["grid"] == "full"


def test_an_artifact_is_proved_again_and_not_touched(run: Run, tiny_artifact: ModelArtifact) -> None:
    """On the grid its file states, or on another one."""
    before = sorted(tiny_artifact.path.rglob("*"))
    result = run("--prove", "--model", tiny_artifact.path)
    assert result.exit_code == 0, result.output
    assert "model.onnx" in result.output
    assert "equal to the reference model" in result.output
    assert "Exported" not in result.output
    quick = run("--prove", "--model", tiny_artifact.path, "--grid", "quick", "--json")
    content = json.loads(quick.stdout)
    assert content["passed"] is True
    assert content["files"]["model"]["failures"] == []
    assert len(content["files"]["model"]["grid"]) == 3
    assert sorted(tiny_artifact.path.rglob("*")) == before


def test_a_wrong_file_ends_with_code_3(
    run: Run, tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], edit_initializer: Callable[..., object]
) -> None:
    """The failing sizes are listed; scripts get the same as JSON."""
    wrong = changed(tiny_artifact, {"model": edit_initializer("head.bias", lambda bias: bias + 0.01)})
    result = run("--prove", "--model", wrong.path)
    assert result.exit_code == 3
    assert "FAIL model: logits differs by 1.00e-02" in result.output
    assert "3 sizes beyond tolerance" in result.output
    content = json.loads(run("--prove", "--model", wrong.path, "--json").stdout)
    assert content["passed"] is False
    assert len(content["files"]["model"]["failures"]) == 3


def test_with_anything_else_asked_for_the_model_is_exported_anew(run: Run, tiny_artifact: ModelArtifact) -> None:
    """No option is ignored."""
    result = run("--prove", "--model", tiny_artifact.path, "--max-res", "48", "--out", "again", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "again"
    assert Path("again/onnx/model.onnx").is_file()


def test_a_dry_run_runs_nothing(run: Run, tiny_artifact: ModelArtifact) -> None:
    content = json.loads(run("--prove", "--model", tiny_artifact.path, "--dry-run", "--json").stdout)
    assert content == {"artifact": str(tiny_artifact.path), "files": ["model"], "grid": "file", "dry_run": True}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "full"], "add --prove"),
        (["--prove", "--grid", "large"], "no grid 'large'; expected one of full, quick, file"),
        (["--prove", "--grid", "file"], "give its folder with --model and nothing else"),
        (["--sizes", "99999"], "widen --min-res and --max-res"),
        (["--sizes", "32", "--static"], "leave out --static"),
    ],
)
def test_requests_that_make_no_sense_are_usage_errors(arguments: list[str], words: str, run: Run) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert list(Path().iterdir()) == []
