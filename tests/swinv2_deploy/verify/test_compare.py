"""The whole stage on small artifacts: what is right passes, and every kind of wrong file is told from a right one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, BackendMissing, RunnerError, SpecError, ToleranceExceeded
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.request import SourceRequest
from swinv2_deploy.modeling.source import resolve
from swinv2_deploy.verify import DriftReport, VerifySpec, verify

Change = Callable[..., ModelArtifact]
Edit = Callable[..., Callable[[onnx.ModelProto], None]]


@pytest.fixture
def spec(photos: Path) -> VerifySpec:
    return VerifySpec(data=photos, threads=1, latency_seconds=0.0)


def failing(report: DriftReport) -> set[str]:
    """Names of the gates that failed, sizes aside."""
    checks = [check for candidate in report.candidates for check in candidate.checks if check.passed is False]
    return {check.name.split(" at ")[0] for check in checks}


def insert_before_output(proto: onnx.ModelProto, *nodes: onnx.NodeProto, **constants: Any) -> None:
    """Rename what makes the logits to ``raw`` and append nodes that make logits of it."""
    for node in proto.graph.node:
        node.output[:] = ["raw" if name == "logits" else name for name in node.output]
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    proto.graph.node.extend(nodes)


def test_a_right_file_passes(tiny_artifact: ModelArtifact, spec: VerifySpec) -> None:
    """Everything a reader needs is in the report."""
    told: list[str] = []

    report = verify(tiny_artifact, replace(spec, latency_seconds=0.01), lambda what, done, total: told.append(what))
    (candidate,) = report.candidates

    assert report.passed
    assert (21, 7, "trained") == (report.images, report.classes, report.weights)
    assert candidate.outputs["logits"].max_abs < 1e-4
    assert candidate.classes is not None
    assert (1.0, 21) == (candidate.classes.agreement, candidate.classes.labeled)
    assert (16, 16) in [drift.size for drift in candidate.sweep]
    assert (1, 2, 3, 17) == candidate.slots.batch_sizes
    assert [1, 8] == [latency.batch for latency in candidate.latencies]
    assert all(latency.rounds >= 5 for latency in candidate.latencies)
    assert {check.name.split(" at ")[0].split(" layers.")[0] for check in candidate.checks} == {
        "site",
        "finite",
        "max abs logits",
        "cosine logits",
        "agreement",
        "max abs",
        "cosine",
        "batch slots",
    }
    assert ["Loading the reference", "Comparing 21 images", "Sweeping sizes"] == list(dict.fromkeys(told))[:3]
    report.require_passed()


def test_the_batch_size_changes_nothing(tiny_artifact: ModelArtifact, spec: VerifySpec) -> None:
    """Streaming in other batches gives the same figures but for rounding."""
    first, second = (
        verify(tiny_artifact, replace(spec, batch_size=size)).candidates[0].outputs["logits"].peak for size in (2, 21)
    )

    assert first == pytest.approx(second, rel=1e-5)


def test_a_perturbed_weight_fails(
    tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change, edit_initializer: Edit
) -> None:
    """One weight of one layer, moved a little, is beyond the tolerance."""

    def nudge(weight: np.ndarray) -> np.ndarray:
        weight[3, 5] += 0.05
        return weight

    report = verify(changed(tiny_artifact, {"model": edit_initializer("layers.0.blocks.1.mlp.fc1.weight", nudge)}), spec)

    assert "max abs logits" in failing(report)
    with pytest.raises(ToleranceExceeded, match=r"FAIL: model.onnx: drift beyond tolerance\.\n  model: logits differs by"):
        report.require_passed()


def test_only_the_wrong_file_fails(
    tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change, edit_initializer: Edit
) -> None:
    artifact = changed(tiny_artifact, {"model_bad": edit_initializer("head.bias", lambda bias: bias + 1)})

    report = verify(artifact, spec)

    assert {"model": True, "model_bad": False} == {item.name: item.passed for item in report.candidates}
    assert "model_bad.onnx" in report.verdict
    assert verify(artifact, replace(spec, candidates=("model",))).passed


def test_swapped_classes_fail(tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change, edit_initializer: Edit) -> None:
    """Two rows of the classifier exchanged: flips are listed, with the classes by name."""
    order = [1, 0, 3, 2, 5, 4, 6]

    def both(proto: onnx.ModelProto) -> None:
        for name in ("head.weight", "head.bias"):
            edit_initializer(name, lambda array: array[order])(proto)

    report = verify(changed(tiny_artifact, {"model": both}), spec)
    (candidate,) = report.candidates

    assert {"agreement", "max abs logits", "cosine logits"} <= failing(report)
    assert candidate.classes is not None
    assert candidate.classes.flips
    labels = tiny_artifact.config.labels
    assert all(order[labels.index(flip.reference)] == labels.index(flip.candidate) for flip in candidate.classes.flips)


def test_nan_fails_and_is_counted(
    tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change, edit_initializer: Edit
) -> None:
    artifact = changed(tiny_artifact, {"model": edit_initializer("head.bias", lambda bias: bias * np.float32("nan"))})

    report = verify(artifact, spec)

    assert {"finite", "batch slots"} <= failing(report)
    assert 21 == len(report.candidates[0].nonfinite)
    assert "21 images give NaN" in report.failures[0]


def test_a_leak_between_rows_fails_the_slot_check_alone(
    tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change, edit_metadata: Edit
) -> None:
    """A graph that mixes 2 % of the batch's mean into each row drifts little, but its rows depend on their neighbors."""

    def leak(proto: onnx.ModelProto) -> None:
        insert_before_output(
            proto,
            helper.make_node("ReduceMean", ["raw", "leak_axes"], ["leak_mean"], keepdims=1),
            helper.make_node("Sub", ["raw", "leak_mean"], ["leak_rest"]),
            helper.make_node("Mul", ["leak_rest", "leak_share"], ["leak_part"]),
            helper.make_node("Add", ["raw", "leak_part"], ["logits"]),
            leak_axes=np.asarray([0], np.int64),
            leak_share=np.float32(0.02),
        )
        edit_metadata("precision", "int8")(proto)

    report = verify(changed(tiny_artifact, {"model": leak}), spec)

    assert {"batch slots"} == failing(report)
    assert "of a batch of" in report.failures[0]


def test_a_graph_wrong_at_other_sizes_fails_the_sweep_alone(
    tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change
) -> None:
    """A graph that is right at the native size only is what a careless export makes."""

    def freeze(proto: onnx.ModelProto) -> None:
        insert_before_output(
            proto,
            helper.make_node("Shape", ["pixel_values"], ["seen_shape"]),
            helper.make_node("Gather", ["seen_shape", "height_axis"], ["seen_height"]),
            helper.make_node("Greater", ["seen_height", "native"], ["larger"]),
            helper.make_node("Cast", ["larger"], ["error"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Add", ["raw", "error"], ["logits"]),
            height_axis=np.int64(2),
            native=np.int64(32),
        )

    report = verify(changed(tiny_artifact, {"model": freeze}), spec)

    assert {"max abs", "cosine"} == failing(report)
    assert all(" at " in line or "px" in line for line in report.failures)


def test_another_number_of_classes_is_refused(
    tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change, edit_initializer: Edit
) -> None:
    def cut(proto: onnx.ModelProto) -> None:
        for name in ("head.weight", "head.bias"):
            edit_initializer(name, lambda array: array[:5])(proto)
        proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5

    with pytest.raises(RunnerError, match=r"logits has shape \(8, 5\) and the reference \(8, 7\)"):
        verify(changed(tiny_artifact, {"model": cut}), spec)


@pytest.mark.parametrize(
    ("key", "value"), [("model_sha256", "0" * 64), ("labels", list("abcdefg")), ("preprocessing", {"size": [9, 9]})]
)
def test_a_file_of_another_model_is_refused(
    key: str, value: Any, tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change, edit_metadata: Edit
) -> None:
    with pytest.raises(ArtifactError, match=f"was made for another model: its {key} is not that of"):
        verify(changed(tiny_artifact, {"model": edit_metadata(key, value)}), spec)


def test_a_file_changed_afterwards_is_refused(tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change) -> None:
    artifact = changed(tiny_artifact)
    with (artifact.path / "onnx/model.onnx").open("ab") as file:
        file.write(b"\x00")

    with pytest.raises(ArtifactError, match="was changed or damaged"):
        verify(artifact, spec)


def test_untrained_weights_need_consent(make_artifact: Callable[..., ModelArtifact], spec: VerifySpec) -> None:
    """Without the flag nothing is judged; with it, the verdict says what it does not mean."""
    artifact = make_artifact(trained=False)

    with pytest.raises(ArtifactError, match=r"are untrained.*--allow-untrained"):
        verify(artifact, spec)
    report = verify(artifact, replace(spec, allow_untrained=True))
    assert report.passed
    assert "accuracy means nothing" in report.verdict


@pytest.mark.parametrize("task", ["encoder", "backbone"])
def test_features_are_compared_without_classes(
    task: str, make_artifact: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact, spec: VerifySpec
) -> None:
    features = ("stem", "stage2") if task == "backbone" else ()
    config = replace(tiny_artifact.config, task=task, out_features=features, num_classes=0, labels=())  # type: ignore[arg-type]

    report = verify(make_artifact(config), replace(spec, limit=4))
    (candidate,) = report.candidates

    assert report.passed
    assert candidate.classes is None
    assert list(candidate.outputs) == (
        ["last_hidden_state", "pooler_output"] if task == "encoder" else ["feature_maps.stem", "feature_maps.stage2"]
    )


def test_a_static_file_is_swept_at_its_size(make_artifact: Callable[..., ModelArtifact], spec: VerifySpec) -> None:
    report = verify(make_artifact(static=True), replace(spec, limit=4))

    assert [(32, 32)] == [drift.size for drift in report.candidates[0].sweep]
    assert report.passed


def test_unknown_candidates_and_sizes_are_usage_errors(tiny_artifact: ModelArtifact, spec: VerifySpec) -> None:
    with pytest.raises(SpecError, match=r"no ONNX file named \['model_int4'\]; it has \['model'\]"):
        verify(tiny_artifact, replace(spec, candidates=("model_int4",)))
    with pytest.raises(SpecError, match="--sizes names a size that model refuses: 8x8 px is outside"):
        verify(tiny_artifact, replace(spec, sizes=((32, 32), (8, 8))))


def test_a_missing_provider_is_told(tiny_artifact: ModelArtifact, spec: VerifySpec) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    with pytest.raises(BackendMissing):
        verify(tiny_artifact, replace(spec, provider="cuda"))


def test_damaged_photographs_are_reported(tiny_artifact: ModelArtifact, spec: VerifySpec, tmp_path: Path) -> None:
    """The first image being damaged stops neither the probes nor the comparison."""
    shutil.copytree(spec.data, tmp_path / "own")
    (tmp_path / "own/cat/0.png").write_bytes(b"damaged")

    report = verify(tiny_artifact, replace(spec, data=tmp_path / "own"))

    assert ["cat/0.png"] == [skipped.image for skipped in report.skipped]
    assert 20 == report.images


def test_an_artifact_without_onnx_is_refused(tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change) -> None:
    artifact = changed(tiny_artifact)
    shutil.rmtree(artifact.path / "onnx")

    with pytest.raises(ArtifactError, match="has no ONNX file"):
        verify(artifact, spec)


def test_a_masked_image_model_is_verified_with_hidden_patches(
    masked_artifact: ModelArtifact, spec: VerifySpec, changed: Change, edit_initializer: Edit
) -> None:
    """Drift of the image, no classes; a wrong mask token shows because something is hidden."""
    report = verify(masked_artifact, spec)
    (candidate,) = report.candidates
    wrong = verify(changed(masked_artifact, {"model": edit_initializer("mask_token", lambda token: token + 0.5)}), spec)

    assert report.passed
    assert list(candidate.outputs) == ["reconstruction"]
    assert candidate.classes is None
    assert len(candidate.sweep) > 4
    assert {"max abs reconstruction", "max abs"} <= failing(wrong)


def test_a_file_whose_config_lacks_a_later_field_is_still_its_own(
    tiny_artifact: ModelArtifact, spec: VerifySpec, changed: Change, edit_metadata: Edit
) -> None:
    older = {key: value for key, value in tiny_artifact.config.to_dict().items() if key != "upscale"}

    assert verify(changed(tiny_artifact, {"model": edit_metadata("config", older)}), spec).passed


def test_half_precision_is_judged_and_emulation_not_timed(
    tiny_artifact: ModelArtifact, spec: VerifySpec, tmp_path: Path, changed: Change
) -> None:
    """Right files pass, a wrong one fails with its name; the report says which was emulated."""
    asked = ExportSpec(smallest=(16, 16), largest=(64, 96), half_precisions=("fp16", "bf16"))
    artifact = export(resolve(SourceRequest(model=str(tiny_artifact.path))), asked, tmp_path / "halves")

    report = verify(artifact, replace(spec, latency_seconds=0.01))

    assert report.passed, report.failures
    assert {"model_fp16": 2, "model_bf16": 0, "model": 2} == {item.name: len(item.latencies) for item in report.candidates}
    assert [True] == [
        "model_bf16 was computed in float32 and rounded" in notice for notice in report.notices if "BF16" in notice
    ]
    assert {"fp16", "bf16", "fp32"} == {item.precision for item in report.candidates}

    proto = onnx.load(artifact.onnx_files["model_fp16"])
    (bias,) = (tensor for tensor in proto.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.arange(7, dtype=np.float16), "head.bias"))
    wrong = changed(artifact, {"model_fp16": lambda target: target.CopyFrom(proto)})
    judged = verify(wrong, replace(spec, candidates=("model_fp16",)))
    assert not judged.passed
    assert {"cosine logits", "agreement"} <= failing(judged)
