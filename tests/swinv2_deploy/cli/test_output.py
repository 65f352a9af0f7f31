"""What scripts read: one JSON object, or a path alone; a dry run writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from reference_model.variants import Variant
from swinv2_deploy.artifacts import ModelArtifact

Run = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("fresh_folder")


def test_json_is_one_object_on_standard_output(run: Run, bundled: ModelArtifact, photos: Path) -> None:
    """Words go to standard error; paths are those that were written."""
    exported = run("export", "--json")
    content = json.loads(exported.stdout)
    assert Path(content["onnx"]).is_file()
    assert content["weights"] == "trained"
    assert "Exported" in exported.stderr
    quantized = run("quantize", "--json", "--data", photos, "--uint8", "never")
    content = json.loads(quantized.stdout)
    assert content["onnx"]["model_int8"]["bytes"] == Path(content["onnx"]["model_int8"]["path"]).stat().st_size
    assert content["images"] == 21
    assert json.loads(run("list", "--json").stdout)["artifacts"][0]["stage"] == "export"


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (("export", "--size", "enormous"), "VariantError", 2),
        (("export", "--model", "gone"), "SpecError", 2),
        (("quantize",), "ArtifactError", 1),
        (("train", "--data", "gone", "--size", "nano"), "CalibrationError", 1),
        (("verify",), "ArtifactError", 1),
    ],
)
def test_errors_are_json_too(arguments: tuple[str, ...], kind: str, code: int, run: Run) -> None:
    """With the name of the error, the message and the exit code."""
    result = run(*arguments, "--json")
    content = json.loads(result.stdout)
    assert (content["error"], content["exit_code"], result.exit_code) == (kind, code, code)
    assert content["message"] in result.stderr


def test_quiet_prints_the_path_and_nothing_else(run: Run, bundled: ModelArtifact, photos: Path) -> None:
    """Made for ``model=$(swinv2-deploy export --quiet)``."""
    exported = run("export", "--quiet")
    assert (exported.stdout, exported.stderr) == (f"{Path('artifacts/tiny')}\n", "")
    quantized = run("quantize", "--quiet", "--data", photos, "--uint8", "never")
    assert quantized.stdout.splitlines() == [str(Path("artifacts/tiny-int8").absolute())]


def test_quiet_still_shows_warnings_and_errors(run: Run, mini: Variant) -> None:
    """Untrained weights are never silent."""
    assert "UNTRAINED" in run("export", "--size", "mini", "--quiet").stderr
    assert "exists already" in run("export", "--size", "mini", "--quiet").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("export",),
        ("export", "--size", "mini"),
        ("quantize", "--model", "MODEL"),
        ("train", "--data", "DATA", "--size", "nano"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("json_", [False, True])
def test_a_dry_run_writes_nothing_and_says_what_it_would(
    json_: bool,
    arguments: tuple[str, ...],
    run: Run,
    bundled: ModelArtifact,
    mini: Variant,
    photos: Path,
    fresh_folder: Path,
) -> None:
    """As words and as JSON."""
    places = {"MODEL": str(bundled.path), "DATA": str(photos)}
    result = run(*(places.get(argument, argument) for argument in arguments), "--dry-run", *(["--json"] if json_ else []))
    assert result.exit_code == 0, result.output
    assert list(fresh_folder.rglob("*")) == []
    if json_:
        assert json.loads(result.stdout)["dry_run"] is True
    else:
        assert "Would write" in result.stdout
