"""``swinv2-deploy train``: options reach the recipe, none is passed over, a stopped run goes on, and a run can be seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.cli.app import app
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.training import TrainSpec, events, plot
from swinv2_deploy.training.checkpoint import FILE_NAME

ROOT = Path(__file__).parents[3]
Run = Callable[..., Result]
SHORT = ("--epochs", "2", "--batch-size", "4", "--phases", "16", "--warmup", "0")


@pytest.fixture(autouse=True)
def fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, the processor, one thread."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def run(photos: Path, tiny_artifact: ModelArtifact) -> Run:
    """Function from further options to the result of fine-tuning the toy on the photographs."""
    words = ("train", "--data", str(photos), "--model", str(tiny_artifact.path), *SHORT)
    return lambda *options: CliRunner().invoke(app, [*words, *(str(option) for option in options)])


OPTIONS: dict[str, tuple[Any, str]] = {
    "--layer-decay": (0.8, "layer_decay"),
    "--label-smoothing": (0.2, "label_smoothing"),
    "--ema": (0.5, "ema_decay"),
    "--accumulate": (2, "accumulate"),
    "--distill-weight": (0.7, "distill_weight"),
    "--temperature": (3.0, "temperature"),
    "--feature-weight": (0.25, "feature_weight"),
    "--checkpoint-every": (5, "checkpoint_every"),
    "--window-chunk": (7, "window_chunk"),
}


def test_options_reach_the_recipe(run: Run, tiny_artifact: ModelArtifact) -> None:
    """Each of them, and each differs from its default."""
    words = [str(word) for option, (value, _) in OPTIONS.items() for word in (option, value)]
    result = run("--dry-run", "--json", "--checkpoint-blocks", "--teacher", tiny_artifact.path, *words)
    assert result.exit_code == 0, result.output
    spec = json.loads(result.stdout)["spec"]
    plain = json.loads(run("--dry-run", "--json").stdout)["spec"]

    assert {name: spec[name] for _, name in OPTIONS.values()} == {name: value for value, name in OPTIONS.values()}
    assert spec["checkpoint_blocks"]
    assert not any(spec[name] == plain[name] for _, name in [*OPTIONS.values(), (0, "checkpoint_blocks")])
    assert f"learning from {tiny_artifact.path}: logits 0.7, stages 0.25" in result.stderr
    assert TrainSpec.from_dict(spec).to_dict() == TrainSpec.from_dict(json.loads(json.dumps(spec))).to_dict()


def test_a_teacher_is_asked_for_half_of_the_loss(run: Run, tiny_artifact: ModelArtifact) -> None:
    """Unless told otherwise."""
    spec = json.loads(run("--dry-run", "--json", "--teacher", tiny_artifact.path).stdout)["spec"]
    assert (spec["distill_weight"], spec["temperature"], spec["feature_weight"]) == (0.5, 2.0, 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--temperature", "3", "--feature-weight", "1"), "--temperature, --feature-weight was given without a model"),
        (("--teacher", "TEACHER", "--distill-weight", "0"), "nothing would ask the --teacher"),
        (
            ("--teacher", "TEACHER", "--distill-weight", "0", "--feature-weight", "1", "--temperature", "3"),
            "softens logits that",
        ),
        (("--teacher", "TEACHER", "--distill-weight", "2"), "distill_weight is 2.0"),
        (("--teacher", "MASKED"), "is masked_image_modeling; expected a trained classifier"),
        (("--accumulate", "3"), "equal parts of a batch of 4"),
        (("--layer-decay", "0"), "layer_decay is 0.0"),
        (("--ema", "1"), "ema_decay is 1.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_nothing_would_heed_are_refused(
    options: tuple[str, ...],
    words: str,
    run: Run,
    tiny_artifact: ModelArtifact,
    masked_artifact: ModelArtifact,
    fresh_folder: Path,
) -> None:
    """Before anything is read or written."""
    places = {"TEACHER": tiny_artifact.path, "MASKED": masked_artifact.path}
    result = run(*(str(places.get(option, option)) for option in options))

    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert not list(fresh_folder.rglob("*"))


def test_a_teacher_of_other_classes_is_refused(
    run: Run, photos: Path, changed: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact, tmp_path: Path
) -> None:
    """Its logits would mean something else."""
    (tmp_path / "data").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).symlink_to(photos / name)
    result = run("--data", tmp_path / "data", "--teacher", tiny_artifact.path)
    assert result.exit_code == 2, result.output
    assert "knows 7 classes ['cat', 'cow', 'dog', 'hen']..., and the images have 2" in result.stderr


def test_a_run_leaves_a_picture_and_events(run: Run, tiny_artifact: ModelArtifact, fresh_folder: Path) -> None:
    """Beside the history, and in the folder of the run; the words say where, and how many processes took part."""
    pytest.importorskip("matplotlib", reason="the extra report")
    result = run("--teacher", tiny_artifact.path, "--window-chunk", "9", "--checkpoint-blocks", "--layer-decay", "0.9")
    assert result.exit_code == 0, result.output
    artifact = read_artifact(fresh_folder / "artifacts/tiny-tuned")

    assert "1 process on cpu" in result.stdout
    assert "history.svg" in result.stdout
    assert artifact.file("history.svg").read_text("utf-8").startswith("<?xml")
    assert (fresh_folder / "runs/tiny-tuned" / FILE_NAME).exists()
    assert ("No event files" in result.stdout) == (find_spec("tensorboard") is None)
    assert bool(list(fresh_folder.glob("runs/tiny-tuned/events/*tfevents*"))) == (find_spec("tensorboard") is not None)
    assert load_model(artifact).config == artifact.config


def test_event_files_hold_the_curve(run: Run, fresh_folder: Path) -> None:
    """Every step and epoch, as TensorBoard reads them."""
    pytest.importorskip("tensorboard", reason="the extra train")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run("--json", "--tune-share", "0.3")
    assert result.exit_code == 0, result.output
    history = json.loads(result.stdout)["history"]
    found = EventAccumulator(str(fresh_folder / "runs/tiny-tuned/events")).Reload()

    steps = [event.step for event in found.Scalars("step/loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 4
    assert [event.value for event in found.Scalars("epoch/loss")] == pytest.approx([record["loss"] for record in history])
    assert [event.value for event in found.Scalars("epoch/tune_top1")] == pytest.approx([history[-1]["tune_top1"]])


def test_missing_extras_are_a_line_with_the_command(run: Run, fresh_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training does not depend on them."""
    monkeypatch.setattr(plot, "has_matplotlib", lambda: False)
    monkeypatch.setattr(events, "find_spec", lambda _: None)
    result = run()

    assert result.exit_code == 0, result.output
    assert "No event files: TensorBoard is missing; pip install 'swinv2-deploy[train]'." in result.stdout
    assert "No picture of the run: matplotlib is missing; pip install 'swinv2-deploy[report]'." in result.stdout
    assert "history.svg" not in read_artifact(fresh_folder / "artifacts/tiny-tuned").lineage.files


def test_other_processes_than_the_first_say_nothing(run: Run, fresh_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only errors: here that the others are not there."""
    monkeypatch.setenv("RANK", "1")
    assert run("--dry-run").output == ""
    monkeypatch.setenv("WORLD_SIZE", "1")
    refused = run("--accumulate", "3", "--json")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "equal parts" in refused.stderr


def script(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    code = "import sys; sys.argv[0] = 'swinv2-deploy'; from swinv2_deploy.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A runner in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminated"])
def test_a_stopped_run_goes_on(
    number: signal.Signals, code: int, photos: Path, tiny_artifact: ModelArtifact, fresh_folder: Path
) -> None:
    """After the step under way, with the exit code of the signal; the same command ends as if it had not been stopped."""
    words = ["train", "--data", str(photos), "--model", str(tiny_artifact.path), "--batch-size", "4", "--phases", "16"]
    words += ["--epochs", "14", "--checkpoint-every", "2"]
    process = script(*words, folder=fresh_folder)
    checkpoint = fresh_folder / "runs/tiny-tuned" / FILE_NAME
    end = time.monotonic() + 240
    while not checkpoint.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=240)

    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "Stopped after step" in err
    assert sorted(path.name for path in fresh_folder.iterdir()) == ["runs"]
    resumed = CliRunner().invoke(app, words)
    assert resumed.exit_code == 0, resumed.output
    assert "going on after step" in resumed.stdout
    whole = CliRunner().invoke(app, [*words, "--run", "other", "--out", "whole"])
    assert whole.exit_code == 0, whole.output
    files = [read_artifact(fresh_folder / name).file("model.safetensors") for name in ("whole", "artifacts/tiny-tuned")]
    assert files[0].read_bytes() == files[1].read_bytes()
