"""A pruned artifact is one like any other: exported, quantized, compiled, pruned again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibration.dataset import ImageFolder
from reference_model.config import make_config
from reference_model.preprocessing import read_image
from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.errors import ArtifactError, QuantizeError, SpecError, TrainingError, UnsupportedModelError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.modeling.pruned import read_record, teacher_of
from swinv2_deploy.pipeline import PruneResult, Recovery, plan_from_file, plan_pruning, prune_artifact, quantize_aware
from swinv2_deploy.prune.cost import parameter_count
from swinv2_deploy.prune.plan import PrunePlan, read_plan
from swinv2_deploy.prune.spec import PruneSpec, RecoverSpec
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QatSpec, QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner
from swinv2_deploy.verify import VerifySpec, verify

SPEC = PruneSpec(measure="params", share=0.25, images=14)
RECOVER = RecoverSpec(epochs=2, batch_size=7, learning_rate=1e-3)


@pytest.fixture(scope="module")
def images(photos: Path) -> ImageFolder:
    return ImageFolder.open(photos)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pruned")


@pytest.fixture(scope="module")
def cut_only(tiny_artifact: ModelArtifact, images: ImageFolder, place: Path) -> PruneResult:
    """A quarter of the parameters gone, and nothing trained."""
    return prune_artifact(tiny_artifact, SPEC, plan_pruning(tiny_artifact, SPEC, images), place / "cut")


@pytest.fixture(scope="module")
def recovered(tiny_artifact: ModelArtifact, images: ImageFolder, place: Path) -> PruneResult:
    """The same, trained."""
    recovery = Recovery(spec=RECOVER, images=images, teacher=tiny_artifact, run=place / "run")
    planned = plan_pruning(tiny_artifact, SPEC, images)
    return prune_artifact(tiny_artifact, SPEC, planned, place / "recovered", recovery=recovery, held=images)


def pixels(artifact: ModelArtifact, images: ImageFolder, count: int = 4) -> np.ndarray[Any, Any]:
    return np.stack([artifact.preprocessing(read_image(path)) for path in images.paths[:count]])


def logits(artifact: ModelArtifact, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found: np.ndarray[Any, Any] = load_model(artifact)(torch.from_numpy(batch)).numpy()
    return found


def test_pruning_nothing_is_bit_identical(tiny_artifact: ModelArtifact, images: ImageFolder, tmp_path: Path) -> None:
    spec = replace(SPEC, share=0.0)
    same = prune_artifact(tiny_artifact, spec, plan_pruning(tiny_artifact, spec, images), tmp_path / "same").artifact
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert same.file(name).read_bytes() == tiny_artifact.file(name).read_bytes()
    batch = pixels(tiny_artifact, images)
    runs = [OnnxRunner(artifact.file("onnx/model.onnx")).run(batch)["logits"] for artifact in (same, tiny_artifact)]
    assert np.array_equal(runs[0], runs[1])


def test_a_cut_artifact_is_smaller_and_its_graph_is_right(
    cut_only: PruneResult, tiny_artifact: ModelArtifact, images: ImageFolder
) -> None:
    artifact = cut_only.artifact
    before, after = parameter_count(tiny_artifact.config), parameter_count(artifact.config)
    assert abs((1 - after / before) / 0.25 - 1) <= 0.01
    assert cut_only.planned.after.parameters == after
    assert artifact.file("onnx/model.onnx").stat().st_size < tiny_artifact.file("onnx/model.onnx").stat().st_size
    batch = pixels(artifact, images)
    for size in ((32, 32), (48, 40)):
        resized = np.ascontiguousarray(batch[:, :, : size[0], : size[1]])
        found = OnnxRunner(artifact.file("onnx/model.onnx")).run(resized)["logits"]
        np.testing.assert_allclose(found, logits(artifact, resized), atol=1e-4)
    assert artifact.lineage.stage == "prune"
    assert artifact.lineage.parent == {"name": tiny_artifact.name, "sha256": tiny_artifact.sha256}
    assert artifact.lineage.weights == tiny_artifact.lineage.weights


def test_evidence_of_a_cut(cut_only: PruneResult, tiny_artifact: ModelArtifact) -> None:
    """Plan, scores, picture, and which images were looked at, so that verify refuses them."""
    artifact = cut_only.artifact
    plan = read_plan(artifact.file("prune_plan.json"), tiny_artifact.config, tiny_artifact.lineage.files["model.safetensors"])
    assert (plan.heads, plan.hidden) == (cut_only.planned.plan.heads, cut_only.planned.plan.hidden)
    assert len(json.loads(artifact.file("importance.json").read_text())["blocks"]) == 4
    picture = artifact.file("importance.svg").read_text()
    assert "stage 2, block 1" in picture
    assert "importance.svg" in artifact.lineage.files
    assert len(json.loads(artifact.file("training_manifest.json").read_text())["files"]) == 14
    record = read_record(artifact)
    assert record is not None
    assert (record.teacher, record.recovered) == ("tiny", "")
    assert record.teacher_sha256 == tiny_artifact.lineage.files["model.safetensors"]
    assert cut_only.accuracy == ()


def test_the_same_seed_gives_the_same_bytes(
    cut_only: PruneResult, tiny_artifact: ModelArtifact, images: ImageFolder, tmp_path: Path
) -> None:
    again = prune_artifact(tiny_artifact, SPEC, plan_pruning(tiny_artifact, SPEC, images), tmp_path / "cut").artifact
    for name in ("model.safetensors", "prune_plan.json", "importance.json", "importance.svg"):
        assert again.file(name).read_bytes() == cut_only.artifact.file(name).read_bytes()


def test_a_saved_plan_gives_the_same_model(cut_only: PruneResult, tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    plan = read_plan(
        cut_only.artifact.file("prune_plan.json"), tiny_artifact.config, tiny_artifact.lineage.files["model.safetensors"]
    )
    made = prune_artifact(tiny_artifact, None, plan_from_file(tiny_artifact, plan), tmp_path / "again").artifact
    assert made.file("model.safetensors").read_bytes() == cut_only.artifact.file("model.safetensors").read_bytes()


def test_recovery_learns_from_the_unpruned_model(
    recovered: PruneResult, cut_only: PruneResult, tiny_artifact: ModelArtifact, images: ImageFolder
) -> None:
    batch = pixels(tiny_artifact, images, 21)
    expected = logits(tiny_artifact, batch)
    distances = [float(np.abs(logits(made.artifact, batch) - expected).mean()) for made in (cut_only, recovered)]
    assert distances[1] < distances[0]
    assert [row.form for row in recovered.accuracy] == ["before", "cut", "recovered"]
    assert recovered.accuracy[0].lost == 0
    assert all(row.images == 21 and row.interval[0] <= row.lost <= row.interval[1] for row in recovered.accuracy)
    assert len(recovered.history) == 2
    record = read_record(recovered.artifact)
    assert record is not None
    assert record.recovered == "prune"
    assert [row["form"] for row in record.facts["accuracy"]] == ["before", "cut", "recovered"]
    assert recovered.artifact.lineage.weights.kind == "trained"
    assert len(json.loads(recovered.artifact.file("training_manifest.json").read_text())["files"]) == 21


def test_a_form_is_judged_before_training_touches_it(
    recovered: PruneResult, cut_only: PruneResult, images: ImageFolder
) -> None:
    """The cut form's figure is that of the cut, not of what training made of it."""
    batch = pixels(cut_only.artifact, images, 21)
    classes = np.array([images.labels[name] for name in images.names])
    found = float((logits(cut_only.artifact, batch).argmax(axis=1) == classes).mean())
    assert recovered.accuracy[1].top1 == pytest.approx(found)


def test_steps_meet_the_same_budget(tiny_artifact: ModelArtifact, images: ImageFolder, tmp_path: Path) -> None:
    recovery = Recovery(spec=replace(RECOVER, epochs=1, steps=2), images=images, teacher=tiny_artifact, run=tmp_path / "run")
    made = prune_artifact(tiny_artifact, SPEC, plan_pruning(tiny_artifact, SPEC, images), tmp_path / "steps", recovery=recovery)
    before, after = parameter_count(tiny_artifact.config), parameter_count(made.artifact.config)
    assert abs((1 - after / before) - 0.25) <= 0.01
    assert len(made.history) == 2
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == {"step-1", "recovery"}
    plan = json.loads(made.artifact.file("prune_plan.json").read_text())
    assert plan["steps"] == 2
    assert plan["after"]["parameters"] == after


def test_a_run_of_another_cut_is_not_gone_on_with(
    tiny_artifact: ModelArtifact, images: ImageFolder, recovered: PruneResult, place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    spec = replace(SPEC, share=0.3)
    recovery = Recovery(spec=RECOVER, images=images, teacher=tiny_artifact, run=tmp_path / "run")
    with pytest.raises(TrainingError, match=r"began from another cut; give the same model, images and budget"):
        prune_artifact(tiny_artifact, spec, plan_pruning(tiny_artifact, spec, images), tmp_path / "other", recovery=recovery)
    assert not (tmp_path / "other").exists()


def test_a_cut_model_quantizes_to_both_forms_and_passes_verify(
    recovered: PruneResult, images: ImageFolder, tmp_path: Path
) -> None:
    made = quantize(recovered.artifact, QuantizeSpec(calibrator="max", unsigned="always"), images, tmp_path / "int8").artifact
    assert {"model", "model_int8", "model_uint8"} <= set(made.onnx_files)
    assert read_record(made) is not None
    noise = tmp_path / "noise"
    generator = np.random.default_rng(5)
    from PIL import Image

    noise.mkdir()
    for index in range(8):
        Image.fromarray(generator.integers(0, 255, (40, 40, 3), np.uint8)).save(noise / f"{index}.png")
    report = verify(made, VerifySpec(data=noise, labels="ignore", latency_seconds=0, candidates=("model", "model_int8")))
    assert report.candidates[0].passed, report.candidates[0].checks


def test_qat_of_an_unrecovered_model_learns_from_the_original(
    cut_only: PruneResult, tiny_artifact: ModelArtifact, images: ImageFolder, tmp_path: Path
) -> None:
    """Its float weights take the place of those that were only cut, and drift is measured from them."""
    pytest.importorskip("modelopt")
    qat = QatSpec(epochs=2, learning_rate=1e-3, batch_size=7)
    spec = QuantizeSpec(calibrator="max", unsigned="never")
    with pytest.raises(QuantizeError, match="pruned and not trained since; it learns from the model it was cut from"):
        quantize_aware(cut_only.artifact, spec, qat, images, tmp_path / "none", run=tmp_path / "run-none")
    made = quantize_aware(
        cut_only.artifact, spec, qat, images, tmp_path / "qat", run=tmp_path / "run", teacher=tiny_artifact
    ).artifact
    batch = pixels(tiny_artifact, images, 21)
    expected = logits(tiny_artifact, batch)
    before, after = (float(np.abs(logits(artifact, batch) - expected).mean()) for artifact in (cut_only.artifact, made))
    assert after < before
    whole = OnnxRunner(made.file("onnx/model.onnx")).run(batch)["logits"]
    np.testing.assert_allclose(whole, logits(made, batch), atol=1e-4)
    rounded = OnnxRunner(made.file("onnx/model_int8.onnx")).run(batch)["logits"]
    assert np.abs(rounded - whole).mean() < np.abs(rounded - expected).mean()
    record = read_record(made)
    assert record is not None
    assert record.recovered == "quantize"
    assert made.lineage.weights.source == "cut, trained with its rounding"
    assert made.lineage.spec["teacher"]["name"] == "tiny"
    facts = OnnxRunner(made.file("onnx/model_int8.onnx")).facts
    assert facts.model_sha256 == made.lineage.files["model.safetensors"]


def test_a_teacher_is_found_beside_named_or_missed(
    cut_only: PruneResult, tiny_artifact: ModelArtifact, recovered: PruneResult, tmp_path: Path
) -> None:
    folder = tmp_path / "artifacts"
    cut_copy = read_artifact(Path(shutil.copytree(cut_only.artifact.path, folder / "cut")))
    with pytest.raises(ArtifactError, match=r"was cut from tiny \(weights \w{12}\) and not trained since.*--teacher"):
        teacher_of(cut_copy, None)
    assert teacher_of(cut_copy, tiny_artifact.path).sha256 == tiny_artifact.sha256
    with pytest.raises(SpecError, match="was cut from tiny with"):
        teacher_of(cut_copy, recovered.artifact.path)
    shutil.copytree(tiny_artifact.path, folder / "original")
    assert teacher_of(cut_copy, None).path.name == "original"
    trained = read_artifact(Path(shutil.copytree(recovered.artifact.path, tmp_path / "alone" / "recovered")))
    assert teacher_of(trained, None).sha256 == trained.sha256  # trained, and its origin is not at hand
    assert teacher_of(tiny_artifact, None) is tiny_artifact
    with pytest.raises(SpecError, match="tiny was not pruned"):
        teacher_of(tiny_artifact, tiny_artifact.path)


def test_a_pruned_model_is_pruned_again(
    recovered: PruneResult, tiny_artifact: ModelArtifact, images: ImageFolder, tmp_path: Path
) -> None:
    spec = replace(SPEC, share=0.1)
    made = prune_artifact(
        recovered.artifact, spec, plan_pruning(recovered.artifact, spec, images), tmp_path / "twice", unpruned=tiny_artifact
    )
    before, after = parameter_count(recovered.artifact.config), parameter_count(made.artifact.config)
    assert abs((1 - after / before) - 0.1) <= 0.01
    record = read_record(made.artifact)
    assert record is not None
    assert record.teacher_sha256 == tiny_artifact.lineage.files["model.safetensors"]
    plan = made.artifact.file("prune_plan.json")
    with pytest.raises(SpecError, match=r"heads and \d+ hidden units in stage|made for weights"):
        read_plan(plan, tiny_artifact.config, tiny_artifact.lineage.files["model.safetensors"])


def test_models_without_classes_are_cut_and_not_trained(
    masked_artifact: ModelArtifact, images: ImageFolder, tmp_path: Path
) -> None:
    planned = plan_pruning(masked_artifact, SPEC, images)
    made = prune_artifact(masked_artifact, SPEC, planned, tmp_path / "masked").artifact
    assert "model" in made.onnx_files
    recovery = Recovery(spec=RECOVER, images=images, teacher=masked_artifact, run=tmp_path / "run")
    with pytest.raises(UnsupportedModelError, match=r"recovery trains classifiers\. Prune with --no-recover"):
        prune_artifact(masked_artifact, SPEC, planned, tmp_path / "no", recovery=recovery)


def test_what_cannot_be_pruned_is_refused(tiny_artifact: ModelArtifact, images: ImageFolder, tmp_path: Path) -> None:
    planned = plan_pruning(tiny_artifact, SPEC, images)
    with pytest.raises(SpecError, match="is the artifact that is being pruned"):
        prune_artifact(tiny_artifact, SPEC, planned, tiny_artifact.path, force=True)
    with pytest.raises(SpecError, match="looks at photographs; give a folder"):
        plan_pruning(tiny_artifact, SPEC, None)
    recovery = Recovery(spec=replace(RECOVER, steps=2), images=images, teacher=tiny_artifact, run=tmp_path / "run")
    with pytest.raises(SpecError, match="A plan from a file is one cut"):
        prune_artifact(tiny_artifact, None, planned, tmp_path / "no", recovery=recovery)
    pytest.importorskip("modelopt")
    qat = QatSpec(epochs=1, batch_size=7)
    trained = quantize_aware(
        tiny_artifact, QuantizeSpec(calibrator="max", unsigned="never"), qat, images, tmp_path / "qat", run=tmp_path / "run"
    ).artifact
    with pytest.raises(UnsupportedModelError, match=r"trained with its rounding, which pruning would undo.*\(tiny\)"):
        plan_pruning(trained, SPEC, images)


def test_a_budget_in_latency_is_measured_here(
    tiny_artifact: ModelArtifact, images: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table names every stage; how well it predicts is for the benchmark, not for a busy machine."""
    from swinv2_deploy.pipeline import timed

    monkeypatch.setattr(timed, "ROUNDS", 3)
    table = timed.latency_table(tiny_artifact.config, (32, 32), 8)
    assert [max(times) for times in table.times_ms["heads"]] == [2, 4]
    assert [max(times) for times in table.times_ms["hidden"]] == [64, 128]
    assert table.total_ms > 0
    assert all(value > 0 for kind in table.times_ms.values() for times in kind for value in times.values())


@pytest.mark.slow
def test_a_cut_model_compiles_with_the_same_coverage(
    make_artifact: Callable[..., ModelArtifact], images: ImageFolder, tmp_path: Path
) -> None:
    """Uneven blocks: every linear layer one INT8 product, and attention fused everywhere."""
    pytest.importorskip("tensorrt_rtx")
    from swinv2_deploy.engine import EngineSpec
    from swinv2_deploy.pipeline import compile_artifact, planned_engine

    config = make_config(
        embed_dim=64,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=8,
        image_size=64,
        patch_size=4,
        num_classes=3,
        labels=("a", "b", "c"),
    )
    whole = make_artifact(config)
    plan = PrunePlan(
        heads={(0, 0): (1,), (0, 1): (0, 1), (1, 0): (0, 2, 3), (1, 1): (1, 2)},
        hidden={(0, 0): tuple(range(40)), (0, 1): tuple(range(8, 256)), (1, 0): tuple(range(200)), (1, 1): tuple(range(512))},
    )
    small = prune_artifact(whole, None, plan_from_file(whole, plan), tmp_path / "cut").artifact
    found = []
    for artifact, name in ((whole, "whole"), (small, "small")):
        int8 = quantize(artifact, QuantizeSpec(calibrator="max", images=4, unsigned="never"), images, tmp_path / name).artifact
        engine = EngineSpec(batches=(1, 1, 2), sizes=((64, 64),))
        (coverage,) = compile_artifact(int8, engine, planned_engine(int8, engine, None)).report.coverage
        found.append(coverage)
    for coverage in found:
        assert coverage.int8_gemms == len(coverage.linear) == 17
        assert coverage.fused_attention == len(coverage.attention) == 4
