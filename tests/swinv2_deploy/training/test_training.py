"""Runs learn, go on after a crash exactly as if it had not been, and refuse what is not theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibration.dataset import ImageFolder
from reference_model.config import SwinV2Config
from reference_model.model import SwinV2Classifier, initialize
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import SpecError, TrainingError
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.training import Phase, TrainResult, TrainSpec, train
from swinv2_deploy.training import checkpoint as checkpoint_module
from swinv2_deploy.training.accuracy import accuracy
from swinv2_deploy.training.checkpoint import FILE_NAME
from swinv2_deploy.training.data import TrainingImages
from swinv2_deploy.training.finish import finish, split_images
from swinv2_deploy.training.start import prepare

RECIPE = Preprocessing(size=(16, 16), resize_shortest=None)
SPEC = TrainSpec(
    epochs=4,
    phases=(Phase(resolution=12, share=0.5), Phase(resolution=16, share=0.5)),
    batch_size=8,
    warmup_epochs=1.0,
    drop_path=0.3,
    seed=5,
)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def fresh(config: SwinV2Config) -> SwinV2Classifier:
    model = SwinV2Classifier(config)
    initialize(model, torch.Generator().manual_seed(0))
    return model


def run(config: SwinV2Config, images: TrainingImages, folder: Path, spec: TrainSpec = SPEC, **others: Any) -> TrainResult:
    return train(fresh(config), spec, training=images, tuning=None, preprocessing=RECIPE, folder=folder, **others)


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "images_per_s"} for record in history]


def test_a_run_learns(images: TrainingImages, config: SwinV2Config, tmp_path: Path) -> None:
    """From chance to (almost) all right in a few seconds, and it says so."""
    spec = TrainSpec(
        epochs=14,
        phases=(Phase(resolution=16, share=1.0),),
        batch_size=8,
        learning_rate=3e-3,
        warmup_epochs=1.0,
        mixup=0,
        cutmix=0,
        erase=0,
        drop_path=0,
        ema_decay=0.9,
    )
    plain = replace(config, drop_path_rate=0.0)
    model = fresh(plain)
    result = train(model, spec, training=images, tuning=images, preprocessing=RECIPE, folder=tmp_path)

    assert accuracy(fresh(plain).eval(), images, RECIPE) < 0.75
    assert accuracy(result.model, images, RECIPE) >= 0.9
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    assert result.history[-1]["tune_top1"] == accuracy(result.model, images, RECIPE)
    assert [record["epoch"] for record in result.history if "tune_top1" in record] == [5, 10, 14]
    assert not result.model.training


@pytest.mark.parametrize("moment", [0, 1, 5, 6, 7, 13, 23])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    moment: int, images: TrainingImages, config: SwinV2Config, tmp_path: Path
) -> None:
    """Killed after any step, in the first epoch, at an epoch's end, across a change of resolution: every bit is the same."""
    whole = run(config, images, tmp_path / "whole")

    def die(figures: dict[str, Any]) -> None:
        if figures.get("step") == moment + 1:
            raise Killed

    with pytest.raises(Killed):
        run(config, images, tmp_path / "killed", report=die)
    torch.rand(moment)  # the global generator is somewhere else in a new process
    resumed = run(config, images, tmp_path / "killed")

    assert without_time(resumed.history) == without_time(whole.history)
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.model.state_dict().items())
    files = [load_file(tmp_path / name / FILE_NAME) for name in ("whole", "killed")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


def test_a_finished_run_is_not_run_again(images: TrainingImages, config: SwinV2Config, tmp_path: Path) -> None:
    """The same command after the end: the same result, no step."""
    whole = run(config, images, tmp_path)
    again = run(config, images, tmp_path, report=lambda _: pytest.fail("a step was made"))
    assert again.history == whole.history
    assert torch.equal(again.model.head.weight, whole.model.head.weight)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_result_is_the_average_or_the_last_weights(
    decay: float, images: TrainingImages, config: SwinV2Config, tmp_path: Path
) -> None:
    """Recomputed from the weights after every step, as a plain loop would."""
    model = fresh(config)
    average = model.head.weight.detach().clone()
    steps = 0

    def follow(figures: dict[str, Any]) -> None:
        nonlocal steps
        if "steps" in figures:
            steps += 1
            keep = min(decay, steps / (steps + 10))
            average.lerp_(model.head.weight.detach(), 1 - keep)

    spec = replace(SPEC, ema_decay=decay)
    result = train(model, spec, training=images, tuning=None, preprocessing=RECIPE, folder=tmp_path, report=follow)

    assert steps == 24
    assert torch.allclose(result.model.head.weight, average, atol=1e-7)
    assert torch.equal(result.model.head.weight, model.head.weight) == (decay == 0)


def test_bfloat16_stays_close_to_float32(images: TrainingImages, config: SwinV2Config, tmp_path: Path) -> None:
    """Another precision, the same recipe."""
    losses = [
        run(config, images, tmp_path / name, replace(SPEC, precision=name, epochs=2)).history[-1]["loss"]  # type: ignore[arg-type]
        for name in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# --- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run(images: TrainingImages, config: SwinV2Config, tmp_path: Path) -> None:
    """With the step and what to do, and no checkpoint of it."""
    model = fresh(config)
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"The loss is nan at step 0; lower the learning rate"):
        train(model, SPEC, training=images, tuning=None, preprocessing=RECIPE, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_images_for_a_batch_are_refused(images: TrainingImages, config: SwinV2Config, tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(SpecError, match="48 training images do not fill a batch of 64"):
        run(config, images, tmp_path / "run", replace(SPEC, batch_size=64))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_recipe_is_refused_with_the_difference(
    images: TrainingImages, config: SwinV2Config, tmp_path: Path
) -> None:
    """The settings that differ are named with both values."""
    run(config, images, tmp_path, replace(SPEC, epochs=1))
    with pytest.raises(TrainingError, match=r"another recipe \(epochs 1 there, 4 now, seed 5 there, 6 now\)"):
        run(config, images, tmp_path, replace(SPEC, seed=6))


def test_a_checkpoint_of_other_images_is_refused(
    stripes: Path, images: TrainingImages, config: SwinV2Config, tmp_path: Path
) -> None:
    """The same recipe on other photographs is another run."""
    run(config, images, tmp_path, replace(SPEC, epochs=1))
    folder = ImageFolder.open(stripes)
    others = TrainingImages(list(folder.paths), [0] * len(folder), 20)
    with pytest.raises(TrainingError, match="a run on other images"):
        run(config, others, tmp_path, replace(SPEC, epochs=1))


def test_a_checkpoint_of_another_model_is_refused(images: TrainingImages, config: SwinV2Config, tmp_path: Path) -> None:
    """Its tensors do not fit."""
    run(config, images, tmp_path, replace(SPEC, epochs=1))
    with pytest.raises(TrainingError, match="does not fit this model"):
        run(replace(config, mlp_hidden=((32, 32), (64, 64))), images, tmp_path, replace(SPEC, epochs=1))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "foreign", "progress"])
def test_a_damaged_checkpoint_is_refused(damage: str, images: TrainingImages, config: SwinV2Config, tmp_path: Path) -> None:
    """Whatever happened to the file, the message says how to start over."""
    run(config, images, tmp_path, replace(SPEC, epochs=1))
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    if damage == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    elif damage == "progress":
        save_file({"a": torch.zeros(1)}, path, {"run": json.dumps({"schema": 1})})
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(TrainingError, match=r"is damaged .* delete it to start over"):
        run(config, images, tmp_path, replace(SPEC, epochs=1))


@pytest.mark.parametrize("place", ["save_tensors", "os.replace"])
def test_a_full_disk_keeps_the_checkpoint_of_the_epoch_before(
    place: str, images: TrainingImages, config: SwinV2Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run can go on later."""
    whole = run(config, images, tmp_path / "whole")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def fill(figures: dict[str, Any]) -> None:
        if figures.get("step") == 12:
            monkeypatch.setattr(checkpoint_module, place, full) if place == "save_tensors" else monkeypatch.setattr(place, full)

    with pytest.raises(TrainingError, match=r"cannot be written .*No space left.* goes on from the epoch before"):
        run(config, images, tmp_path / "run", report=fill)
    monkeypatch.undo()

    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE_NAME]
    resumed = run(config, images, tmp_path / "run")
    assert torch.equal(resumed.model.head.weight, whole.model.head.weight)


# --- start and finish --------------------------------------------------------------------------------------------------


def test_a_published_architecture_starts_from_scratch(stripes: Path) -> None:
    """With a classifier for the classes of the folder; the hub is not asked."""
    start = prepare(SourceRequest(size="nano", seed=1), ImageFolder.open(stripes), drop_path=0.2)

    assert start.model.config.labels == ("lying", "standing")
    assert start.model.config.drop_path_rate == 0.2
    assert start.parent == {}
    assert start.description == "nano from scratch"
    assert start.preprocessing.size == (128, 128)


def test_fine_tuning_replaces_a_classifier_of_other_classes(stripes: Path, tiny_artifact: ModelArtifact) -> None:
    """The encoder is kept to the bit, and where it came from is remembered."""
    start = prepare(SourceRequest(model=str(tiny_artifact.path)), ImageFolder.open(stripes), drop_path=0.0)
    before, after = load_model(tiny_artifact).state_dict(), start.model.state_dict()

    assert start.model.config.num_classes == 2
    assert all(torch.equal(after[name], value) for name, value in before.items() if not name.startswith("head."))
    assert start.parent == {"name": "tiny", "sha256": tiny_artifact.sha256}
    assert start.description == "tiny with a new classifier for 2 classes"
    assert start.preprocessing == tiny_artifact.preprocessing


def test_fine_tuning_starts_from_the_encoder_of_a_masked_image_model(stripes: Path, masked_artifact: ModelArtifact) -> None:
    """Mask token and decoder stay behind."""
    start = prepare(SourceRequest(model=str(masked_artifact.path)), ImageFolder.open(stripes), drop_path=0.0)
    state, before = start.model.state_dict(), load_model(masked_artifact).state_dict()

    assert start.model.config.task == "classification"
    assert {name for name in before if name not in state} == {"mask_token", "decoder.0.weight", "decoder.0.bias"}
    assert all(torch.equal(state[name], value) for name, value in before.items() if name in state)


def test_fine_tuning_keeps_a_classifier_of_the_same_classes(photos: Path, tiny_artifact: ModelArtifact) -> None:
    """Class names decide, in order; the same number of other classes is another classifier."""
    request = SourceRequest(model=str(tiny_artifact.path))
    same = prepare(request, ImageFolder.open(photos), drop_path=0.0)
    folder = ImageFolder.open(photos)
    renamed = replace(folder, classes=tuple(f"x{name}" for name in folder.classes))
    other = prepare(request, renamed, drop_path=0.0)
    head = load_model(tiny_artifact).state_dict()["head.weight"]

    assert torch.equal(same.model.head.weight, head)
    assert same.description == "tiny with its classifier"
    assert not torch.equal(other.model.head.weight, head)


def test_images_without_classes_cannot_be_trained_on(stripes: Path) -> None:
    """Images in one folder have no labels."""
    with pytest.raises(SpecError, match=r"has 0 class folders; expected at least two"):
        prepare(SourceRequest(size="nano"), ImageFolder.open(stripes / "lying"), drop_path=0.0)


def test_a_finished_run_is_an_artifact_that_knows_its_images(
    stripes: Path, tiny_artifact: ModelArtifact, tmp_path: Path
) -> None:
    """Trained, with its parent, its recipe, its history and the hash of every image it may have seen."""
    folder = ImageFolder.open(stripes)
    start = prepare(SourceRequest(model=str(tiny_artifact.path)), folder, drop_path=0.0)
    spec = replace(SPEC, epochs=1, tune_share=0.2)
    training, tuning = split_images(folder, spec)
    result = train(
        start.model, spec, training=training, tuning=tuning, preprocessing=start.preprocessing, folder=tmp_path / "run"
    )
    artifact = finish(result, start, spec, folder, tmp_path / "tuned")

    assert len(training) + len(tuning) == len(folder)
    assert 0 < len(tuning) < 24
    assert artifact.lineage.weights.kind == "trained"
    assert artifact.lineage.weights.sha256 == folder.manifest().sha256
    assert artifact.lineage.parent["sha256"] == tiny_artifact.sha256
    assert artifact.lineage.spec["learning_rate"] == spec.learning_rate
    assert len(json.loads(artifact.file("history.json").read_text("utf-8"))) == 1
    manifest = json.loads(artifact.file("training_manifest.json").read_text("utf-8"))
    assert manifest["files"] == dict(folder.manifest().files)
    assert torch.equal(load_model(artifact).state_dict()["head.weight"], result.model.head.weight)

    # Tuned again on other images, it still knows the first ones: verify must not judge by them.
    again = prepare(SourceRequest(model=str(artifact.path)), folder, drop_path=0.0)
    assert sorted(again.seen.values()) == sorted(folder.manifest().files.values())
    twice = finish(result, again, spec, folder, tmp_path / "twice")
    files = json.loads(twice.file("training_manifest.json").read_text("utf-8"))["files"]
    assert files == again.seen | dict(folder.manifest().files)
    assert len(files) == 2 * len(folder)
