"""What ``quantize`` prints of its lints, its picture and a table that is used again."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.cli.app import app

Run = Callable[..., Result]


@pytest.fixture
def run(tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Function from more arguments to the result of quantizing a model whose labels it names no better than chance."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = ("quantize", "--model", str(tiny_artifact.path), "--uint8", "never")
    yield lambda *arguments: CliRunner().invoke(app, [*start, *(str(argument) for argument in arguments)])
    torch.set_num_threads(threads)


def test_a_statistical_lint_warns_or_stops(run: Run, photos: Path, tmp_path: Path) -> None:
    """By its name; in JSON either way; and with --accept it only warns again."""
    warned = run("--data", photos, "--out", "warned", "--json")
    assert warned.exit_code == 0, warned.output
    assert "warning: low-accuracy: The FP32 model names" in warned.stderr
    (lint,) = json.loads(warned.stdout)["lints"]
    assert (lint["code"], lint["certain"], lint["limit"]) == ("low-accuracy", False, 0.5)

    stopped = run("--data", photos, "--out", "stopped", "--strict", "--json")
    content = json.loads(stopped.stdout)
    assert (stopped.exit_code, content["error"]) == (1, "LintError")
    assert content["lints"] == [lint]
    assert not (tmp_path / "stopped").exists()

    accepted = run("--data", photos, "--out", "accepted", "--strict", "--accept", "low-accuracy")
    assert accepted.exit_code == 0, accepted.output
    assert "warning: low-accuracy: " in accepted.stderr


def test_a_table_is_used_again_or_refused(run: Run, photos: Path, tmp_path: Path) -> None:
    """The same graph from it; images judge it and change nothing; one of another model, or with NaN, is an error with a name."""
    assert run("--data", photos, "--out", "first", "--calibrator", "entropy").exit_code == 0
    table = tmp_path / "first/calibration_table.json"
    for arguments in ((), ("--data", photos, "--images", "7", "--seed", "2")):
        again = run("--table", table, "--out", "again", "--force", *arguments)
        assert again.exit_code == 0, again.output
        assert f"ranges: {table}; policy linear" in again.stdout
        for name in ("calibration_table.json", "onnx/model_int8.onnx"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    content = json.loads(table.read_text("utf-8"))
    changes = ({"model_sha256": "0" * 64}, "stale-table"), ({"sites": {"a": 1}}, "expected an object"), (None, "nan-scale")
    for change, name in changes:
        other = tmp_path / "other.json"
        text = json.dumps(content | change) if change else table.read_text("utf-8").replace('"low": ', '"low": NaN, "was": ', 1)
        other.write_text(text, "utf-8")
        refused = run("--table", other, "--out", "refused")
        assert refused.exit_code == 1
        assert name in refused.stderr
    assert not (tmp_path / "refused").exists()


def test_without_matplotlib_one_line_says_how_to_get_the_picture(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with it where the picture is."""
    drawn = run("--data", photos, "--images", "4", "--out", "drawn")
    assert "what every site saw, and its range: " in drawn.stdout
    assert (tmp_path / "drawn/calibration.svg").is_file()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest))
    bare = run("--data", photos, "--images", "4", "--out", "bare")
    assert "no picture of the ranges, for matplotlib is not installed: pip install 'swinv2-deploy[report]'" in bare.stdout
    assert not (tmp_path / "bare/calibration.svg").exists()


def test_sites_stay_in_float_by_name(run: Run, photos: Path, tmp_path: Path) -> None:
    """A site, a block or a stage; a wrong name is answered with the nearest."""
    made = run("--data", photos, "--out", "left", "--float", "layers.1.blocks.0", "--float", "layers.0.blocks.0.mlp.fc2")
    assert made.exit_code == 0, made.output
    assert "12 sites" in made.stdout
    sites = json.loads((tmp_path / "left/calibration_table.json").read_text("utf-8"))["sites"]
    assert not any(name.startswith("layers.1.blocks.0") or name == "layers.0.blocks.0.mlp.fc2" for name in sites)
    wrong = run("--data", photos, "--out", "no", "--float", "layers.0.blocks.0.mlp.fc3")
    assert (wrong.exit_code, "did you mean layers.0.blocks.0.mlp.fc" in wrong.stderr) == (2, True)
    none = run("--data", photos, "--out", "no", "--float", "layers.0", "--float", "layers.1")
    assert (none.exit_code, "nothing to quantize" in none.stderr) == (2, True)
