"""The way of a new user: two commands make an INT8 model, and each says what it took, what it wrote and what to type next."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from reference_model.variants import Variant
from swinv2_deploy.artifacts import ModelArtifact, read_artifact

Run = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("fresh_folder")


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
