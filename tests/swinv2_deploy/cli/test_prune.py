"""What ``prune`` prints, writes and refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.cli.app import app

Run = Callable[..., Result]


@pytest.fixture
def run(tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Function from more arguments to the result of pruning the tiny model in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = ("prune", "--model", str(tiny_artifact.path))
    yield lambda *arguments: CliRunner().invoke(app, [*start, *(str(argument) for argument in arguments)])
    torch.set_num_threads(threads)


def test_a_plan_is_printed_written_edited_and_applied(run: Run, photos: Path, tmp_path: Path) -> None:
    dry = run("--params", "0.25", "--data", photos, "--dry-run", "--out", "plan", "--images", "7", "--check-heads", "4")
    assert dry.exit_code == 0, dry.output
    assert "budget: 25.0% of the params" in dry.stdout
    assert "4 heads left out one at a time: rank correlation" in dry.stdout
    assert "Wrote the plan: plan/prune_plan.json" in dry.stdout
    assert (tmp_path / "plan/importance.svg").exists()
    again = run("--params", "0.25", "--data", photos, "--dry-run", "--out", "plan", "--images", "7")
    assert (again.exit_code, "exists already; use --force" in again.stderr) == (2, True)

    file = tmp_path / "plan/prune_plan.json"
    content = json.loads(file.read_text())
    content["keep"][0]["keep_heads"] = "1"
    file.write_text(json.dumps(content))
    made = run("--plan", file, "--no-recover", "--out", "small", "--json")
    assert made.exit_code == 0, made.output
    result = json.loads(made.stdout)
    assert read_artifact(tmp_path / "small").config.num_heads[0][0] == 1
    assert result["after"]["parameters"] < result["before"]["parameters"]
    assert result["teacher"] == ""


def test_a_quarter_is_removed_and_recovered(run: Run, photos: Path, tmp_path: Path) -> None:
    """Judged on what was held out, and the next command is named."""
    root = tmp_path / "data"
    for part in ("train", "val"):
        (root / part).mkdir(parents=True)
        for folder in photos.iterdir():
            (root / part / folder.name).symlink_to(folder)
    made = run("--params", "0.25", "--data", root, "--epochs", "1", "--out", "small")
    assert made.exit_code == 0, made.output
    assert (
        "recovery: 1 epochs of 21 photographs, peak learning rate 0.0001, learning from tiny; checkpoints in runs/small"
        in made.stdout
    )
    assert "parameters" in made.stdout
    assert "25." in made.stdout
    assert f"on 21 photographs in {root / 'val'}:" in made.stdout
    for form in ("before", "cut", "recovered"):
        assert f"    {form:<10} top-1" in made.stdout
    assert "Next: swinv2-deploy quantize --model" in made.stdout
    assert "transformers cannot express blocks of different widths" in made.stdout
    assert (tmp_path / "runs/small/recovery/checkpoint.safetensors").exists()


def test_heads_alone_show_how_little_they_are(run: Run, photos: Path) -> None:
    dry = run("--heads", "0.25", "--data", photos, "--dry-run", "--images", "7", "--json")
    assert dry.exit_code == 0, dry.output
    result = json.loads(dry.stdout)
    assert result["before"]["heads"] - result["after"]["heads"] == 3
    assert result["before"]["hidden"] == result["after"]["hidden"]
    assert len(result["keep"]) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            (),
            2,
            "Say how much goes, in one way: --params 0.25, --macs 0.3, --heads 0.25, --latency 0.2, or --plan FILE; got none",
        ),
        (("--params", "0.2", "--macs", "0.1"), 2, "got --params, --macs"),
        (("--params", "1.5"), 2, "share to remove is 1.5"),
        (("--params", "0.2", "--criterion", "luck"), 2, "There is no criterion 'luck'"),
        (("--params", "0.2"), 2, "Recovery trains on labeled photographs, and the bundled ones are too few"),
        (("--params", "0.2", "--no-recover", "--epochs", "2"), 2, "epochs would train, and --no-recover does not"),
        (("--params", "0.99", "--no-recover"), 2, "99.0% of the params cannot go"),
        (("--plan", "none.json", "--no-recover"), 2, "none.json cannot be read"),
        (("--params", "0.2", "--data", "nowhere"), 1, "nowhere"),
    ],
)
def test_bad_requests_end_in_one_line(run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("*pruned*"))


def test_folders_of_other_names_are_refused_before_any_work(run: Run, tmp_path: Path, photos: Path) -> None:
    other = tmp_path / "other"
    (other / "spoon").mkdir(parents=True)
    (other / "spoon/0.png").symlink_to(photos / "cat/0.png")
    result = run("--params", "0.2", "--data", other)
    assert result.exit_code == 2, result.output
    assert "has the class folders ['spoon']" in result.stderr


def test_qat_of_a_cut_model_finds_its_teacher(run: Run, tiny_artifact: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """And PTQ of it warns."""
    pytest.importorskip("modelopt")
    assert run("--params", "0.2", "--no-recover", "--criterion", "magnitude", "--out", "cut").exit_code == 0

    def quantize(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["quantize", "--model", "cut", "--data", str(photos), "--uint8", "never", *arguments])

    plain = quantize("--out", "ptq")
    assert plain.exit_code == 0, plain.output
    assert "was pruned and not trained since" in plain.stderr
    lost = quantize("--method", "qat", "--out", "qat")
    assert lost.exit_code == 1
    assert "Name it with --teacher" in lost.stderr
    made = quantize("--method", "qat", "--epochs", "1", "--teacher", str(tiny_artifact.path), "--out", "qat")
    assert made.exit_code == 0, made.output
    assert re.search(r"training with the rounding: 1 epochs, peak learning rate [78]\.?\d?e-05, ranges frozen", made.stdout)
    assert "learning from tiny, which this model was cut from" in made.stdout
    unused = quantize("--teacher", str(tiny_artifact.path), "--out", "x")
    assert (unused.exit_code, "teacher would train, and --method ptq does not" in unused.stderr) == (2, True)
