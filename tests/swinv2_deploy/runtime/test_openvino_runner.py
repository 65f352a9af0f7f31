"""OpenVINO as a runner: the same files, the same numbers, and nothing chosen silently."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from calibration.dataset import ImageFolder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import BackendMissing, RunnerError, SpecError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner, OpenVinoRunner, TorchRunner, masks_for, openvino_runner
from swinv2_deploy.runtime.products import has_integers


@pytest.fixture(scope="module")
def file(tiny_artifact: ModelArtifact) -> Path:
    return tiny_artifact.onnx_files["model"]


@pytest.fixture(scope="module")
def runner(file: Path) -> OpenVinoRunner:
    return OpenVinoRunner(file, threads=1)


@pytest.fixture(scope="module")
def quantized(tiny_artifact: ModelArtifact, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    spec = QuantizeSpec(calibrator="max", unsigned="always")
    return quantize(tiny_artifact, spec, ImageFolder.open(photos), tmp_path_factory.mktemp("q") / "tiny-int8").artifact


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_equals_the_reference_at_any_size_and_batch(tiny_artifact: ModelArtifact, runner: OpenVinoRunner) -> None:
    """One runner, sizes that pad, shrink a window, or are no square, and batches that grow and shrink again."""
    reference = TorchRunner(load_model(tiny_artifact))
    for batch, height, width in [(1, 32, 32), (3, 16, 96), (2, 57, 41), (1, 16, 16), (17, 33, 20), (1, 64, 96)]:
        images = noise(batch, 3, height, width)
        expected, found = reference.run(images), runner.run(images)
        assert list(expected) == list(found)
        np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4, err_msg=f"{batch}x{height}x{width}")


def test_the_int8_file_gives_what_onnx_runtime_gives(quantized: ModelArtifact) -> None:
    """Other kernels, the same integers: cosine similarity of every image at least 0.999."""
    file = quantized.onnx_files["model_int8"]
    for shape in [(4, 3, 32, 32), (2, 3, 57, 41)]:
        images = noise(*shape)
        first, second = (runner.run(images)["logits"].astype(np.float64) for runner in (OnnxRunner(file), OpenVinoRunner(file)))
        cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        assert cosines.min() >= 0.999


def test_outputs_stay_when_the_next_batch_runs(runner: OpenVinoRunner) -> None:
    """OpenVINO writes every result into the same memory; the runner's are copies."""
    first = runner.run(noise(1, 3, 32, 32))["logits"]
    before = first.copy()
    runner.run(-noise(1, 3, 32, 32))

    np.testing.assert_array_equal(first, before)


def test_tells_what_it_is(runner: OpenVinoRunner) -> None:
    """Device and precision as the compiled model reports them."""
    assert ("model", "fp32", "CPU f32") == (runner.name, runner.precision, runner.provider)
    assert ("openvino", "f32", "none") == (runner.back_end, runner.inference_precision, runner.integer_products)
    assert ((16, 16), (64, 96)) == (runner.resolutions.min, runner.resolutions.max)


@pytest.mark.parametrize("size", [(15, 32), (65, 32), (32, 97)])
def test_a_size_out_of_range_is_refused(size: tuple[int, int], runner: OpenVinoRunner) -> None:
    with pytest.raises(RunnerError, match=r"outside what this file was exported for: 16x16 to 64x96 px.*export again"):
        runner.run(np.zeros((1, 3, *size), np.float32))


def test_threads_reach_openvino(file: Path, runner: OpenVinoRunner) -> None:
    runners = (runner, OpenVinoRunner(file, threads=2))

    assert [1, 2] == [each._model.get_property("INFERENCE_NUM_THREADS") for each in runners]


def test_a_missing_extra_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino_runner._core.cache_clear()
    try:
        with pytest.raises(BackendMissing, match=r"not usable here .*pip install 'swinv2-deploy\[openvino\]'"):
            OpenVinoRunner(file)
    finally:
        openvino_runner._core.cache_clear()


def test_a_precision_the_cpu_lacks_is_no_fallback(file: Path) -> None:
    """Asking for bfloat16 where there is none fails instead of computing in float32."""
    if "BF16" in openvino_runner._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert OpenVinoRunner(file, precision="bf16").provider == "CPU bf16"
        return
    with pytest.raises(BackendMissing, match=r"This CPU has no bf16 for OpenVINO, only .*fp32.*; use f32"):
        OpenVinoRunner(file, precision="bf16")


def test_a_silent_change_of_precision_is_noticed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision is read from the compiled model, not from what was asked for."""
    monkeypatch.setattr(openvino_runner, "_used_precision", lambda model: "bf16")

    with pytest.raises(BackendMissing, match=r"computes model.onnx in bf16 where f32 was asked for"):
        OpenVinoRunner(file)


def test_the_form_of_onnx_runtime_is_refused(quantized: ModelArtifact) -> None:
    with pytest.raises(RunnerError, match=r"the form for ONNX Runtime alone.*run model_int8.onnx"):
        OpenVinoRunner(quantized.onnx_files["model_uint8"])


def test_a_graph_it_does_not_know_is_one_error(file: Path, tmp_path: Path) -> None:
    """An operator of nobody's domain passes the checks of the file and is refused by OpenVINO."""
    proto = onnx.load(file)
    for node in proto.graph.node:
        node.output[:] = ["raw" if name == "logits" else name for name in node.output]
    proto.graph.node.append(helper.make_node("Unheard", ["raw"], ["logits"], domain="elsewhere"))
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(proto, tmp_path / "model.onnx")

    with pytest.raises(RunnerError, match=r"OpenVINO does not load .*Export it again"):
        OpenVinoRunner(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "f64"}, "no precision 'f64'; expected one of"), ({"threads": 0}, "threads is 0")],
)
def test_impossible_options_are_usage_errors(options: dict[str, Any], message: str, file: Path) -> None:
    with pytest.raises(SpecError, match=message):
        OpenVinoRunner(file, **options)


def test_integers_are_told_by_the_precision() -> None:
    assert [has_integers(precision) for precision in ("fp32", "int8", "uint8")] == [False, True, True]


def test_more_patches_than_openvino_counts_are_refused(
    runner: OpenVinoRunner, tiny_artifact: ModelArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 patches of 32x32 px, marked up to 4 * (64 * B + 1): two images up to 516, three beyond it."""
    patches = (32 // tiny_artifact.config.patch_size) ** 2
    monkeypatch.setattr(openvino_runner, "MOST_MARK", 4 * (2 * patches + 1))
    assert runner.run(noise(2, 3, 32, 32))["logits"].shape[0] == 2
    with pytest.raises(RunnerError, match=f"{patches} patches each.* up to 2 such images.*ONNX Runtime"):
        runner.run(noise(3, 3, 32, 32))


def test_openvino_computes_remainders_as_float32() -> None:
    """Why: 2**24 + 1 is no float32. Where this fails, OpenVINO has become exact and the limit can go."""
    import openvino

    graph = helper.make_graph(
        [helper.make_node("Mod", ["a", "b"], ["c"])],
        "mod",
        [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1]) for name in ("a", "b")],
        [helper.make_tensor_value_info("c", onnx.TensorProto.INT64, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    found = [
        compiled([np.asarray([value], np.int64), np.asarray([2**23 + 1], np.int64)])[0][0] for value in (2**23 + 5, 2**24 + 1)
    ]

    assert found[0] == 4
    assert found[1] != (2**24 + 1) % (2**23 + 1)


@pytest.mark.parametrize(
    ("task", "others"),
    [
        ("classification", {"use_absolute_embeddings": True}),
        ("masked_image_modeling", {}),
        ("masked_image_modeling", {"use_absolute_embeddings": True}),
        ("encoder", {}),
        ("backbone", {"out_features": ("stem", "stage1", "stage2")}),
        ("image_reconstruction", {"upscale": 2}),
    ],
)
def test_an_int8_file_of_one_size_loads(
    make_artifact: Callable[..., ModelArtifact],
    tiny_artifact: ModelArtifact,
    photos: Path,
    tmp_path: Path,
    task: Any,
    others: dict[str, Any],
) -> None:
    """OpenVINO takes the gain of a norm for the scale of a dequantization and moves it behind what gives tokens another shape."""
    classes: dict[str, Any] = {} if task == "classification" else {"num_classes": 0, "labels": ()}
    artifact = make_artifact(replace(tiny_artifact.config, task=task, **classes, **others), static=True)
    made = quantize(artifact, QuantizeSpec(calibrator="max"), ImageFolder.open(photos), tmp_path / "int8").artifact
    images, masks = noise(2, 3, 32, 32), masks_for(artifact.config)
    file = made.onnx_files["model_int8"]
    expected, found = (kind(file, masks=masks).run(images) for kind in (OnnxRunner, OpenVinoRunner))

    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=0.1 * np.abs(value).max(), err_msg=name)
