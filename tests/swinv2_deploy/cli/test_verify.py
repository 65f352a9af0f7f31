"""``swinv2-deploy verify`` as it is typed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.cli.app import app


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Function that runs the command in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *options: CliRunner().invoke(app, ["verify", "--threads", "1", *map(str, options)])


@pytest.fixture
def own(tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact]) -> ModelArtifact:
    """A right artifact that a test may write to."""
    return changed(tiny_artifact)


@pytest.fixture
def wrong(tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], edit_initializer: Any) -> ModelArtifact:
    """An artifact whose FP32 file answers another class."""

    def bias(array: np.ndarray) -> np.ndarray:
        array[2] += 100
        return array

    return changed(tiny_artifact, {"model": edit_initializer("head.bias", bias)}, name="wrong")


def test_passing_ends_with_verdict_paths_and_next_command(run: Callable[..., Result], own: ModelArtifact, photos: Path) -> None:
    result = run("--model", own.path, "--data", photos)
    (saved,) = (own.path / "reports").glob("*/report.json")

    assert 0 == result.exit_code, result.output
    assert "PASS: model.onnx: within tolerance" in result.output
    assert f"Report: {saved.with_name('report.html')}" in result.output
    assert "<!doctype html>" in saved.with_name("report.html").read_text("utf-8")
    assert f"Next: swinv2-deploy quantize --model {own.path}" in result.output


def test_what_to_deploy_is_named_and_how_to_pin_it(
    run: Callable[..., Result], tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact], photos: Path
) -> None:
    """The command that it names works as it stands; files of one size have nothing to pin."""
    artifact = changed(tiny_artifact, {"other_int8": lambda proto: None})
    options = ("--model", artifact.path, "--data", photos, "--latency-seconds", 0)

    lines = run(*options, "--candidate", "model").stdout.splitlines()

    assert lines[-2] == f"Deploy: {artifact.path}/onnx/model.onnx"
    command = lines[-1].removeprefix("Faster where only one size is run: swinv2-deploy ").split()
    assert command == ["pin", "--model", str(artifact.path), "--onnx", "model"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (artifact.path / "pinned/1x32x32/model.onnx").is_file()


def test_defaults_are_printed(run: Callable[..., Result], own: ModelArtifact) -> None:
    """Without options: the newest artifact, the bundled photographs, agreement where the labels differ."""
    Path("artifacts").mkdir()
    shutil.copytree(own.path, "artifacts/tiny")

    result = run("--limit", 10)

    assert 0 == result.exit_code, result.output
    assert "No --model was given: taking the newest artifact" in result.output
    assert "No --data was given: taking the bundled photographs" in result.output
    assert "are not labels of the model" in result.output


def test_drift_ends_with_3_and_the_failing_lines(run: Callable[..., Result], wrong: ModelArtifact, photos: Path) -> None:
    result = run("--model", wrong.path, "--data", photos)

    assert 3 == result.exit_code
    assert "FAIL model: logits differs by 1.00e+02" in result.output
    assert "FAIL: model.onnx: drift beyond tolerance." in result.output
    assert "-> dog" in result.output
    assert list((wrong.path / "reports").glob("*/report.json"))


@pytest.mark.parametrize(("kind", "code"), [("own", 0), ("wrong", 3)])
def test_json_is_one_object_on_stdout(
    kind: str, code: int, run: Callable[..., Result], photos: Path, request: pytest.FixtureRequest
) -> None:
    """Also when it fails; words go to standard error."""
    artifact = request.getfixturevalue(kind)

    result = run("--model", artifact.path, "--data", photos, "--json")
    content = json.loads(result.stdout)

    assert code == result.exit_code
    assert (code == 0) is content["passed"]
    assert bool(content["failures"]) is (code == 3)
    assert Path(content["report"]).is_file()
    assert "Comparing 21 images" in result.stderr


def test_quiet_prints_the_verdict_only(run: Callable[..., Result], own: ModelArtifact, photos: Path) -> None:
    result = run("--model", own.path, "--data", photos, "--quiet")

    assert "PASS: model.onnx: within tolerance of the FP32 reference.\n" == result.output


def test_tolerances_decide(run: Callable[..., Result], own: ModelArtifact, photos: Path) -> None:
    """A stricter file turns a pass into a failure."""
    Path("verify.toml").write_text("[fp32]\nmax_abs = 0.0\nnoise_factor = 0.0\n", "utf-8")

    assert 3 == run("--model", own.path, "--data", photos, "--tolerances", "verify.toml").exit_code
    assert 3 == (found := run("--model", own.path, "--data", photos)).exit_code
    assert "taking the limits in verify.toml" in found.output


def test_sizes_are_swept_as_named(run: Callable[..., Result], own: ModelArtifact, photos: Path) -> None:
    result = run("--model", own.path, "--data", photos, "--sizes", "17x19,64", "--json")

    assert [[17, 19], [64, 64]] == [drift["size"] for drift in json.loads(result.stdout)["candidates"][0]["sweep"]]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model", "none"], 1, "There is no artifact at"),
        (["--sizes", "8x"], 2, "is not a size"),
        (["--sizes", "999x999"], 2, "is outside what this file was exported for"),
        (["--candidate", "model_int8"], 2, "no ONNX file named ['model_int8']"),
        (["--tolerances", "none.toml"], 2, "cannot be read"),
        (["--provider", "tpu"], 2, "no provider 'tpu'"),
        (["--data", "none"], 1, "does not exist"),
        (["--limit", "0"], 2, "--limit"),
    ],
)
def test_mistakes_are_told_apart(
    options: list[str], code: int, message: str, run: Callable[..., Result], own: ModelArtifact, photos: Path
) -> None:
    """Each has its exit code and one line; nothing is written."""
    given = dict(zip(options[::2], options[1::2], strict=True))

    result = run(*(item for pair in ({"--model": own.path, "--data": photos} | given).items() for item in pair))

    assert code == result.exit_code, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (own.path / "reports").exists()


def test_labels_of_other_names_need_a_word(
    run: Callable[..., Result], own: ModelArtifact, photos: Path, tmp_path: Path
) -> None:
    """Photographs that the user names must have the model's classes, or say that they have none."""
    shutil.copytree(photos / "cow", tmp_path / "mine" / "kuh")

    assert 2 == run("--model", own.path, "--data", tmp_path / "mine").exit_code
    assert 0 == run("--model", own.path, "--data", tmp_path / "mine", "--ignore-labels").exit_code


def test_untrained_weights_need_a_word(run: Callable[..., Result], make_artifact: Callable[..., ModelArtifact]) -> None:
    """With it, a few of the bundled photographs are enough, and the verdict says what it means."""
    artifact = make_artifact(trained=False)

    assert 1 == run("--model", artifact.path).exit_code
    result = run("--model", artifact.path, "--allow-untrained")
    assert 0 == result.exit_code, result.output
    assert "16 photographs tell whether the files compute the same" in result.output
    assert "accuracy means nothing" in result.output


def test_a_report_elsewhere(run: Callable[..., Result], own: ModelArtifact, photos: Path) -> None:
    result = run("--model", own.path, "--data", photos, "--report", "out/report.json")

    assert 0 == result.exit_code, result.output
    assert json.loads(Path("out/report.json").read_text("utf-8"))["passed"] is True
    assert not (own.path / "reports").exists()


def test_a_report_that_cannot_be_kept_loses_no_verdict(run: Callable[..., Result], own: ModelArtifact, photos: Path) -> None:
    """In the artifact it is a warning; a place asked for by name fails the command after the verdict."""
    (own.path / "reports").write_text("in the way", "utf-8")

    result = run("--model", own.path, "--data", photos)
    assert 0 == result.exit_code
    assert "PASS: model.onnx" in result.output
    assert "use --report FILE" in result.stderr
    Path("file").write_text("in the way", "utf-8")
    result = run("--model", own.path, "--data", photos, "--report", "file/report.json")
    assert 1 == result.exit_code
    assert "PASS: model.onnx" in result.output


@pytest.mark.skipif(os.name != "posix", reason="the width of the terminal is an environment variable on POSIX")
def test_a_terminal_gets_a_bar(own: ModelArtifact, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress on a terminal leaves the same words behind."""
    monkeypatch.setenv("FORCE_COLOR", "1")

    result = CliRunner().invoke(app, ["verify", "--model", str(own.path), "--data", str(photos), "--threads", "1"])

    assert 0 == result.exit_code
    assert "PASS" in result.output


def test_two_libraries_are_named_with_a_comma(run: Callable[..., Result], own: ModelArtifact, photos: Path) -> None:
    result = run("--model", own.path, "--data", photos, "--runner", "onnxruntime,openvino", "--limit", 7)

    assert 0 == result.exit_code, result.output
    assert "PASS: model.onnx, model.onnx in OpenVINO" in result.output
    assert 2 == run("--model", own.path, "--data", photos, "--runner", "tflite").exit_code


def test_a_library_that_is_not_installed_ends_with_4(
    run: Callable[..., Result], own: ModelArtifact, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, with the command that installs it."""
    from swinv2_deploy.runtime import openvino_runner

    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino_runner._core.cache_clear()
    result = run("--model", own.path, "--data", photos, "--runner", "openvino")
    openvino_runner._core.cache_clear()

    assert 4 == result.exit_code
    assert "pip install 'swinv2-deploy[openvino]'" in " ".join(result.stderr.split())


def test_bisect_names_what_is_wrong(run: Callable[..., Result], wrong: ModelArtifact, photos: Path) -> None:
    """A classifier that is off lies behind every block."""
    result = run("--model", wrong.path, "--data", photos, "--bisect", "--json", "--junit", "gates.xml")
    (candidate,) = json.loads(result.stdout)["candidates"]

    assert result.exit_code == 3
    assert candidate["bisection"]["culprit"] == "head"
    assert "model: head" in result.stderr
    assert "It fails even with every block computed by the reference" in result.stderr
    assert "<failure" in Path("gates.xml").read_text("utf-8")


def test_another_artifact_is_compared_with_the_same_reference(
    run: Callable[..., Result], own: ModelArtifact, wrong: ModelArtifact, photos: Path
) -> None:
    """Its accuracy is judged, not its distance: it may be another function."""
    other = read_artifact(wrong.path)
    result = run("--model", own.path, "--data", photos, "--with", other.path, "--json")
    first, second = json.loads(result.stdout)["candidates"]

    assert (first["owner"], second["owner"]) == ("", other.name)
    assert f"{other.name}: model" in result.stderr
    assert "max abs logits" in [check["name"] for check in first["checks"]]
    assert "max abs logits" not in [check["name"] for check in second["checks"]]
    assert "top1 drop" in [check["name"] for check in second["checks"]]
