"""Bad input ends in one clear error and its exit code, and nothing is written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from typer.testing import Result

from reference_model.model import SwinV2
from reference_model.variants import Variant
from swinv2_deploy import artifacts
from swinv2_deploy.artifacts import ModelArtifact, file_sha256, read_artifact
from swinv2_deploy.modeling import source

Run = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("fresh_folder")


def refused(result: Result, *words: str, code: int, folder: Path) -> None:
    """One clear error on standard error, the exit code, and nothing written."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.count("error:") == 1
    for word in words:
        assert word in result.stderr, result.stderr
    assert not list(folder.rglob("*")), list(folder.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "base", "--res", "300"), ("no base at 300 px", "256 px", "384 px")),
        (("--size", "enormous"), ("no size 'enormous'", "tiny, small, base")),
        (("--size", "base", "--res", "256"), ("names 3 models", "--window 8 or 16 or 12to16")),
        (("--size", "tiny", "--window", "99"), ("window 99", "--window 8 or 16")),
        (("--model", "gone"), ("There is no folder gone",)),
        (("--weights", "gone.pth"), ("gone.pth, which does not exist",)),
        (("--size", "tiny", "--window", "8", "--input-size", "big"), ("'big' is not a size", "384x512")),
        (("--size", "tiny", "--window", "8", "--input-size", "0"), ("'0' is not a size",)),
        (("--size", "tiny", "--window", "8", "--static", "--min-res", "64"), ("A static graph has one size",)),
        (("--size", "mini", "--min-res", "64"), ("widen --min-res and --max-res",)),
        (("--size", "mini", "--task", "detection"), ("expected one of backbone",)),
        (("--size", "mini", "--out-features", "stem"), ("add --task backbone",)),
        (("--size", "mini", "--task", "backbone", "--out-features", "stage9"), ("stage9", "stage1")),
        (("--size", "mini", "--window-policy", "wide"), ("--window-policy is 'wide'", "fixed, adaptive")),
        (("--size", "mini", "--precision", "int8"), ("'int8' is not a precision that export writes", "swinv2-deploy quantize")),
        (("--res", "256"), ("add --size",)),
        (("--model", "x", "--size", "tiny"), ("--model is a whole model",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and value[0].startswith("-") else "",
)
def test_export_requests_that_make_no_sense_are_usage_errors(
    arguments: tuple[str, ...], words: tuple[str, ...], run: Run, mini: Variant, fresh_folder: Path
) -> None:
    """Exit code 2, the choices, nothing written."""
    refused(run("export", *arguments), *words, code=2, folder=fresh_folder)


class Hostile:
    """A pickle that runs a command when it is loaded the naive way."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch hacked",))


def bad_weights(kind: str, path: Path, model: SwinV2) -> tuple[str, ...]:
    """Write a checkpoint that cannot be used; returns words of the message."""
    if kind == "text":
        path.write_text("<html>Not found</html>", "utf-8")
        return ("is no checkpoint: it starts with b'<html>",)
    if kind == "empty":
        path.touch()
        return ("is empty; download it again",)
    if kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "utf-8")
        return ("Git LFS pointer",)
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps({"model": Hostile()}, protocol=int(kind[-1])))
        return ("system" if kind == "pickle 2" else "no weights file of torch.save", "nothing was executed")
    state = model.state_dict()
    if kind == "classes":
        state["head.weight"], state["head.bias"] = state["head.weight"][:3].clone(), state["head.bias"][:3].clone()
    if kind == "nan":
        state["head.bias"] = state["head.bias"] * float("nan")
    if kind == "missing":
        del state["norm.weight"]
    save_file(state, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    return {
        "classes": ("num_classes", "--classes 3"),
        "nan": ("NaN or infinite weights: head.bias",),
        "missing": ("norm.weight",),
        "truncated": ("is a damaged safetensors file",),
    }[kind]


@pytest.mark.parametrize("kind", ["text", "empty", "lfs", "pickle 2", "pickle 4", "truncated", "classes", "nan", "missing"])
def test_checkpoints_that_cannot_be_used_are_refused(
    kind: str, run: Run, mini: Variant, make_model: Any, tmp_path: Path, fresh_folder: Path
) -> None:
    """Exit code 1, the reason, nothing written, and nothing run."""
    words = bad_weights(kind, tmp_path / "weights.pth", make_model(mini.config))
    refused(run("export", "--size", "mini", "--weights", tmp_path / "weights.pth"), *words, code=1, folder=fresh_folder)


def test_weights_of_other_classes_export_when_their_number_is_given(
    run: Run, mini: Variant, make_model: Any, tmp_path: Path, fresh_folder: Path
) -> None:
    """What the message above tells to type."""
    bad_weights("classes", tmp_path / "weights.safetensors", make_model(mini.config))
    result = run("export", "--size", "mini", "--weights", tmp_path / "weights.safetensors", "--classes", "3")
    assert result.exit_code == 0, result.output
    assert read_artifact(fresh_folder / "artifacts/swinv2-mini").config.num_classes == 3


def test_a_folder_without_a_model_is_told(run: Run, photos: Path, fresh_folder: Path) -> None:
    """An image folder given as a model."""
    refused(run("export", "--model", photos), "has none of", code=1, folder=fresh_folder)


def test_a_hub_id_without_network_is_told(run: Run, fresh_folder: Path) -> None:
    """No untrained weights in the place of the user's own."""
    refused(run("export", "--model", "me/swin"), "the hub cannot be reached", code=1, folder=fresh_folder)


def test_an_installation_without_the_bundled_model_is_told(
    run: Run, fresh_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to type instead."""
    monkeypatch.setattr(source, "files", lambda _: tmp_path)
    refused(run("export"), "The bundled model is missing", "--size", code=1, folder=fresh_folder)


@pytest.mark.parametrize("command", ["quantize", "verify"])
def test_a_fresh_folder_says_how_to_begin(command: str, run: Run, fresh_folder: Path) -> None:
    """No artifact to take."""
    refused(run(command), "make one with 'swinv2-deploy export'", code=1, folder=fresh_folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone", "does not exist"), ("empty", "holds no image"), ("file", "is a file"), ("corrupt", "None of the 1 images")],
)
@pytest.mark.parametrize("command", ["quantize", "train"])
def test_image_folders_that_hold_nothing_usable_are_refused(
    command: str, name: str, words: str, run: Run, tiny_artifact: ModelArtifact, tmp_path: Path, fresh_folder: Path
) -> None:
    """Missing, empty, not a folder, only damaged files."""
    data = tmp_path / "data"
    (data / "empty").mkdir(parents=True)
    (data / "corrupt/a").mkdir(parents=True)
    (data / "corrupt/a/x.png").write_text("nothing", "utf-8")
    (data / "file").touch()
    options = ["--out", "out"] if command == "quantize" else []
    if command == "train" and name == "corrupt":
        words = "has 1 class folders"
    code = 2 if "class folders" in words else 1
    result = run(command, "--model", tiny_artifact.path, "--data", data / name, *options)
    refused(result, words, code=code, folder=fresh_folder)


def test_a_damaged_training_image_is_named(
    run: Run, photos: Path, bundled: ModelArtifact, tmp_path: Path, fresh_folder: Path
) -> None:
    """Before an hour was spent on the others."""
    shutil.copytree(photos, tmp_path / "data")
    (tmp_path / "data/cat/1.png").write_bytes(b"\x89PNG")
    result = run("train", "--data", tmp_path / "data", "--model", bundled.path, "--batch-size", "4")
    refused(result, "cat/1.png", code=1, folder=fresh_folder)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ((), "Name what to train", 2),
        (("--size", "nano", "--phases", "big"), "is not a list of resolutions", 2),
        (("--size", "nano", "--phases", "96:0.5"), "add up to 1", 2),
        (("--size", "nano", "--lr", "nan"), "learning_rate", 2),
        (("--size", "nano", "--precision", "fp8"), "precision is 'fp8'", 2),
        (("--size", "nano", "--batch-size", "500"), "do not fill a batch of 500", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_training_requests_that_make_no_sense_are_refused(
    arguments: tuple[str, ...], words: str, code: int, run: Run, photos: Path, fresh_folder: Path
) -> None:
    """Nothing written, no run folder either."""
    refused(run("train", "--data", photos, *arguments), words, code=code, folder=fresh_folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--calibrator", "guess"), "There is no calibrator 'guess'"),
        (("--policy", "all"), "There is no policy 'all'"),
        (("--uint8", "maybe"), "expected auto, always or never"),
        (("--accept", "stale-table"), "The lint 'stale-table' cannot be accepted"),
        (("--table", "t.json", "--calibrator", "max"), "expected none of them. Leave them out."),
        (("--table", "t.json", "--images", "4"), "expected none of them. Leave them out."),
        (("--table", "t.json", "--seed", "4"), "expected none of them. Leave them out."),
    ],
)
def test_quantization_requests_that_make_no_sense_are_refused(
    arguments: tuple[str, ...], words: str, run: Run, tiny_artifact: ModelArtifact, fresh_folder: Path
) -> None:
    """With the choices."""
    refused(run("quantize", "--model", tiny_artifact.path, *arguments), words, code=2, folder=fresh_folder)


@pytest.mark.parametrize("kind", ["damaged", "garbage", "foreign", "none"])
def test_a_wrong_onnx_file_is_refused(
    kind: str, run: Run, tiny_artifact: ModelArtifact, changed: Any, photos: Path, fresh_folder: Path
) -> None:
    """Changed after it was written; or written by someone else under a right hash: no ONNX, or another model."""

    def rename(proto: Any) -> None:
        for node in proto.graph.node:
            node.name = f"other.{node.name}"

    artifact = changed(tiny_artifact, {"model": rename} if kind == "foreign" else None)
    file = artifact.path / "onnx/model.onnx"
    if kind in ("damaged", "garbage"):
        file.write_bytes(b"garbage")
    if kind == "none":
        shutil.rmtree(file.parent)
    if kind == "garbage":
        content = json.loads((artifact.path / "lineage.json").read_text("utf-8"))
        content["files"]["onnx/model.onnx"] = file_sha256(file)
        (artifact.path / "lineage.json").write_text(json.dumps(content), "utf-8")
    words = {
        "damaged": "was changed or damaged",
        "garbage": "is no ONNX file",
        "foreign": "belongs to another model",
        "none": "export it first",
    }
    result = run("quantize", "--model", artifact.path, "--data", photos, "--out", "out/q")
    refused(result, words[kind], code=1, folder=fresh_folder)


def test_an_artifact_of_the_wrong_kind_of_folder_is_told(run: Run, photos: Path, fresh_folder: Path) -> None:
    """Photographs given as a model to quantize."""
    refused(run("quantize", "--model", photos), "is not an artifact", code=1, folder=fresh_folder)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "may not be written")],
)
@pytest.mark.parametrize("command", ["export", "quantize"])
def test_a_place_that_cannot_be_written_is_told(
    command: str,
    number: int,
    words: str,
    run: Run,
    bundled: ModelArtifact,
    photos: Path,
    fresh_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is left, no folder either."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(artifacts, "_finish", fail)
    options = ["--model", str(bundled.path), "--data", str(photos), "--out", "out/q"] if command == "quantize" else []
    refused(run(command, *options), words, "--out", code=1, folder=fresh_folder)


def test_a_small_disk_is_told_before_any_work(run: Run, bundled: ModelArtifact, tmp_path: Path, fresh_folder: Path) -> None:
    """A real file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs more rights")
    try:
        refused(run("export", "--out", disk / "nano"), "the disk is full", "MiB are needed", code=1, folder=fresh_folder)
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_existing_artifact_is_not_replaced_unasked(run: Run, bundled: ModelArtifact, fresh_folder: Path) -> None:
    """--force does it."""
    run("export")
    before = read_artifact(fresh_folder / "artifacts/tiny").sha256
    again = run("export")
    assert (again.exit_code, "exists already; use --force" in again.stderr) == (1, True)
    assert read_artifact(fresh_folder / "artifacts/tiny").sha256 == before
    assert run("export", "--force").exit_code == 0
    assert read_artifact(fresh_folder / "artifacts/tiny").sha256 != before


def test_a_second_run_ends_with_75(run: Run, bundled: ModelArtifact, fresh_folder: Path) -> None:
    """What schedulers retry on."""
    with artifacts.write_artifact(fresh_folder / "artifacts/tiny", bundled.lineage) as folder:
        result = run("export")
        shutil.copytree(bundled.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lineage.json"))
    assert result.exit_code == 75
    assert "Another run is writing" in result.stderr
