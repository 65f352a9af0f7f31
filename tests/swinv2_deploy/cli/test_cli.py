"""The command line as a user meets it: what it prints and writes, where it stops, and how it ends."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from reference_model.model import SwinV2
from reference_model.variants import VARIANTS, Variant
from swinv2_deploy import artifacts
from swinv2_deploy.artifacts import ModelArtifact, file_sha256, read_artifact
from swinv2_deploy.cli.app import app
from swinv2_deploy.modeling import source

ROOT = Path(__file__).parents[3]
COMMANDS = ("export", "list", "quantize", "train", "verify")
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test starts in an empty folder, as a new user does."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def run() -> Run:
    """Function from arguments to the result of the command."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def bundled(tiny_artifact: ModelArtifact, monkeypatch: pytest.MonkeyPatch) -> ModelArtifact:
    """A small model in the place of the bundled one."""
    monkeypatch.setattr(source, "bundled_artifact", lambda: tiny_artifact)
    return tiny_artifact


@pytest.fixture
def mini(tiny_artifact: ModelArtifact, monkeypatch: pytest.MonkeyPatch) -> Variant:
    """A published model of the size of a test, which is on no hub."""
    config = replace(tiny_artifact.config, labels=(), num_classes=5)
    variant = replace(
        VARIANTS["nano"], name="swinv2-mini", size="mini", resolution=32, window="4", config=config, resize_shortest=36
    )
    monkeypatch.setitem(VARIANTS, variant.name, variant)
    return variant


def script(*arguments: str, folder: Path, **others: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    code = "import sys; sys.argv[0] = 'swinv2-deploy'; from swinv2_deploy.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A runner in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **others,
    )


def refused(result: Result, *words: str, code: int, folder: Path) -> None:
    """One clear error on standard error, the exit code, and nothing written."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.count("error:") == 1
    for word in words:
        assert word in result.stderr, result.stderr
    assert not list(folder.rglob("*")), list(folder.rglob("*"))


# --- the way of a new user ---------------------------------------------------------------------------------------------


def test_two_commands_without_arguments_make_an_int8_model(run: Run, bundled: ModelArtifact, fresh_folder: Path) -> None:
    """Each says what it took, what it wrote, and what to type next."""
    exported = run("export")
    assert exported.exit_code == 0, exported.output
    assert "No model was named: taking the bundled small one" in exported.stdout
    assert "Next: swinv2-deploy quantize" in exported.stdout
    quantized = run("quantize")
    assert quantized.exit_code == 0, quantized.output
    assert "(the newest artifact)" in quantized.stdout
    assert "(the bundled photographs)" in quantized.stdout
    assert "Next: swinv2-deploy verify\n" in quantized.stdout

    assert sorted(os.listdir(fresh_folder / "artifacts")) == ["tiny", "tiny-int8"]
    assert "model_int8" in read_artifact(fresh_folder / "artifacts/tiny-int8").onnx_files
    again = run("quantize", "--force")
    assert again.exit_code == 0
    assert sorted(os.listdir(fresh_folder / "artifacts")) == ["tiny", "tiny-int8"]


def test_a_published_model_without_network_warns_loudly(run: Run, mini: Variant, fresh_folder: Path) -> None:
    """On standard error, in the folder's name and in its lineage; the next command says --allow-untrained by itself."""
    exported = run("export", "--size", "mini")
    assert exported.exit_code == 0, exported.output
    assert "warning: swinv2-mini has UNTRAINED weights (seed 0)" in exported.stderr
    artifact = read_artifact(fresh_folder / "artifacts/swinv2-mini-untrained")
    assert not artifact.lineage.weights.trained

    quantized = run("quantize", "--uint8", "never", "--images", "4")
    assert "warning: the weights are untrained" in quantized.stderr
    assert "Next: swinv2-deploy verify --allow-untrained\n" in quantized.stdout


def test_preprocessing_goes_into_a_second_file(run: Run, bundled: ModelArtifact, photos: Path, fresh_folder: Path) -> None:
    """Which is told, quantized, verified and proved again beside the first."""
    result = run("export", "--bake-preprocessing", "--precision", "fp16", "--max-res", "64")

    assert 0 == result.exit_code, result.output
    assert "and model_from_images.onnx, in fp32: takes photographs of any size" in result.stdout
    assert "takes photographs, equals the reference model at 5 sizes of them within" in " ".join(result.stdout.split())
    assert (fresh_folder / "artifacts/tiny/onnx/model_from_images.onnx").is_file()
    quantized = run("quantize", "--data", photos, "--images", "7", "--uint8", "never")
    assert 0 == quantized.exit_code, quantized.output
    assert "model_int8_from_images.onnx" in quantized.stdout
    proved = run("export", "--prove", "--model", "artifacts/tiny-int8")
    assert 0 == proved.exit_code, proved.output
    words = " ".join(proved.output.split())
    assert "model_from_images, model_int8_from_images: at sizes of photographs, which are the same for every grid" in words
    verified = run("verify", "--data", photos, "--exclude-overlap", "--candidate", "model_from_images", "--sizes", "50x70")
    assert 0 == verified.exit_code, verified.output
    assert "1 of photographs" in verified.stdout


def test_the_name_says_what_is_special(run: Run, bundled: ModelArtifact, fresh_folder: Path) -> None:
    """Task and form are part of it, so that two exports of one model do not collide."""
    for options in ((), ("--static",), ("--task", "encoder"), ("--task", "backbone", "--out-features", "stem,stage2")):
        assert run("export", *options).exit_code == 0
    assert sorted(os.listdir(fresh_folder / "artifacts")) == ["tiny", "tiny-backbone", "tiny-encoder", "tiny-static"]


def test_adaptive_windows_say_what_they_save(run: Run, bundled: ModelArtifact, fresh_folder: Path) -> None:
    """At the main size and over the range, in words and in JSON; fixed windows say nothing."""
    options = ("--input-size", "36", "--max-res", "72", "--dry-run")
    told = run("export", "--window-policy", "adaptive", *options)
    assert told.exit_code == 0, told.output
    assert "Where the window differs, the function does" in told.stdout
    assert "adaptive windows, 36x36 px: padding " in told.stdout
    assert "of 1024 sizes of the range" in told.stdout
    content = json.loads(run("export", "--window-policy", "adaptive", "--json", *options).stdout)
    assert content["artifact"] == "artifacts/tiny-adaptive"
    assert content["window_policy"] == "adaptive"
    for part in ("main_size", "range"):
        savings = content["window_savings"][part]
        assert 0 <= savings["adaptive_padding"] < savings["fixed_padding"]
        assert savings["saved"] > 0
    static = json.loads(
        run("export", "--window-policy", "adaptive", "--static", "--input-size", "36", "--json", "--dry-run").stdout
    )
    assert list(static["window_savings"]) == ["main_size"]
    fixed = json.loads(run("export", "--json", *options).stdout)
    assert fixed["window_policy"] == "fixed"
    assert "window_savings" not in fixed


def test_masked_image_models_go_all_the_way(
    run: Run, mini: Variant, masked_artifact: ModelArtifact, photos: Path, fresh_folder: Path
) -> None:
    """Export by the name of the task or from weights that are for it, quantize, verify."""
    exported = run("export", "--size", "mini", "--task", "masked-image-modeling")
    assert exported.exit_code == 0, exported.output
    assert os.listdir(fresh_folder / "artifacts") == ["swinv2-mini-untrained-masked-image-modeling"]
    assert run("export", "--size", "mini", "--task", "image-reconstruction", "--upscale", "4").exit_code == 0
    assert read_artifact(fresh_folder / "artifacts/swinv2-mini-untrained-image-reconstruction").config.upscale == 4
    again = run("export", "--model", masked_artifact.path, "--out", "masked")
    assert again.exit_code == 0, again.output
    assert run("quantize", "--model", "masked", "--data", photos, "--uint8", "never").exit_code == 0
    options = ("--limit", "2", "--sizes", "32x48", "--candidate", "model", "--json")
    checked = run("verify", "--model", "masked-int8", *options)
    assert checked.exit_code == 0, checked.output
    (candidate,) = json.loads(checked.stdout)["candidates"]
    assert list(candidate["outputs"]) == ["reconstruction"]
    assert "model_int8" in read_artifact(fresh_folder / "masked-int8").onnx_files


def test_half_precision_goes_from_export_through_quantize_to_verify(
    run: Run, bundled: ModelArtifact, photos: Path, fresh_folder: Path
) -> None:
    """Files are told with their drift, travel along, and are verified; BF16 says how it was run."""
    exported = run("export", "--json", "--precision", "fp32,bf16", "--precision", "fp16")
    content = json.loads(exported.stdout)
    assert {Path(path).name for path in content["files"].values()} == {"model.onnx", "model_fp16.onnx", "model_bf16.onnx"}
    assert exported.stderr.count("follows the reference model at") == 2
    assert run("quantize", "--data", photos, "--images", "4", "--uint8", "never").exit_code == 0
    verified = run("verify", "--data", photos, "--exclude-overlap", "--candidate", "model_bf16", "--candidate", "model_fp16")
    assert verified.exit_code == 0, verified.output
    words = " ".join(verified.output.split())
    assert "model_bf16 was computed in float32 and rounded to BF16 after every operator" in words


def test_a_place_that_is_named_is_in_the_next_command(run: Run, bundled: ModelArtifact, fresh_folder: Path) -> None:
    """Quoted, so that it can be pasted."""
    result = run("export", "--out", "my model")
    assert "Next: swinv2-deploy quantize --model 'my model'" in result.stdout
    assert (fresh_folder / "my model/onnx/model.onnx").is_file()


def test_training_exporting_and_quantizing_fit_together(
    run: Run, photos: Path, bundled: ModelArtifact, fresh_folder: Path
) -> None:
    """Fine-tune for one epoch, export what came out, quantize it; the ranges' images are the user's."""
    options = ("--epochs", "1", "--batch-size", "4", "--phases", "16", "--tune-share", "0.3")
    trained = run("train", "--data", photos, "--model", bundled.path, *options)
    assert trained.exit_code == 0, trained.output
    assert "top-1 on the" in trained.stdout
    (following,) = (line for line in trained.stdout.splitlines() if line.startswith("Next:"))
    assert following == "Next: swinv2-deploy export --model artifacts/tiny-tuned --out artifacts/tiny-tuned-onnx"
    refused_again = run("train", "--data", photos, "--model", bundled.path, *options)
    assert refused_again.exit_code == 2
    assert "exists already" in refused_again.stderr

    assert run("quantize", "--data", photos).exit_code == 1  # it has no graph yet
    assert run(*following.split()[2:]).exit_code == 0
    quantized = run("quantize", "--data", photos, "--uint8", "never")
    assert quantized.exit_code == 0, quantized.output
    made = read_artifact(fresh_folder / "artifacts/tiny-tuned-onnx-int8")
    assert {"training_manifest.json", "calibration_table.json"} <= set(made.lineage.files)


def test_list_shows_models_and_artifacts(run: Run, bundled: ModelArtifact, fresh_folder: Path) -> None:
    """And a damaged artifact does not stop it."""
    empty = run("list")
    assert "No artifacts in ./artifacts yet" in empty.stdout
    assert "nano" in empty.stdout
    run("export")
    shutil.copytree(fresh_folder / "artifacts/tiny", fresh_folder / "artifacts/torn")
    (fresh_folder / "artifacts/torn/config.json").write_text("{}", "utf-8")
    full = run("list")

    assert full.exit_code == 0
    assert "tiny" in full.stdout
    assert "torn" in full.stderr


# --- bad input ---------------------------------------------------------------------------------------------------------


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


# --- JSON, quiet, dry run ----------------------------------------------------------------------------------------------


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


# --- help --------------------------------------------------------------------------------------------------------------


def golden() -> tuple[str, str]:
    """What the file says and what the code says."""
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "tests/golden/make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return (ROOT / "tests/golden/cli.txt").read_text("utf-8"), module.describe()


def test_commands_and_options_are_a_promise() -> None:
    """A changed name or default is seen in a diff of tests/golden/cli.txt (written by make_cli.py beside it)."""
    stored, found = golden()
    assert found == stored


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option(command: str, run: Run) -> None:
    """With a sentence each, and the command's own."""
    text = run(command, "--help").stdout
    section = golden()[0].split(f"swinv2-deploy {command}\n")[1].split("swinv2-deploy ")[0]
    for line in section.splitlines():
        assert line.strip().split(":")[0].split(",")[0] in text
    assert text.split("\n\n")[1].strip().endswith(".")


def test_help_of_every_command_is_quick() -> None:
    """It imports neither torch nor onnx."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom swinv2_deploy.cli.app import app\n"
        f"for name in {COMMANDS!r}:\n    assert CliRunner().invoke(app, [name, '--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'onnx_ir') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_an_unknown_option_is_a_usage_error(run: Run, fresh_folder: Path) -> None:
    """As are values out of bounds and commands that do not exist."""
    for arguments in (("export", "--sise", "tiny"), ("quantize", "--images", "0"), ("exprot",), ("train",)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
    assert list(fresh_folder.rglob("*")) == []


# --- real processes ----------------------------------------------------------------------------------------------------


def test_the_version_and_a_usage_error_of_the_real_command(fresh_folder: Path) -> None:
    """Exit codes reach the shell."""
    from swinv2_deploy import __version__

    process = script("--version", folder=fresh_folder)
    assert process.communicate()[0] == f"swinv2-deploy {__version__}\n"
    process = script("export", "--size", "enormous", "--json", folder=fresh_folder)
    out, err = process.communicate()
    assert process.returncode == 2
    assert json.loads(out)["error"] == "VariantError"
    assert err.startswith("error: There is no size 'enormous'")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminated"])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, code: int, fresh_folder: Path) -> None:
    """Interrupted in the middle of an export: the exit code of the signal, one line, an empty folder."""
    process = script("export", "--size", "tiny", "--window", "8", folder=fresh_folder)
    end = time.monotonic() + 60
    while not list(fresh_folder.glob("artifacts/.*.tmp/*")) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == code, err
    assert "Traceback" not in err
    assert ("stopped; nothing was left half written" in err) == (number == signal.SIGINT)
    assert list(fresh_folder.rglob("*")) == []
