"""Preprocessing inside the graph: the very pixels of Pillow, at any size of photograph, and what cannot be baked is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import PIL
import pytest
import torch

from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from reference_model.preprocessing import Preprocessing, read_image
from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.errors import ExportError, RunnerError, SpecError, UnsupportedModelError
from swinv2_deploy.export import ExportSpec, export, preprocessing_graph
from swinv2_deploy.export.from_images import synthetic_image, with_preprocessing
from swinv2_deploy.export.graph import GraphBuilder
from swinv2_deploy.export.preprocessing_graph import PreprocessingGraph
from swinv2_deploy.modeling import load_model
from swinv2_deploy.modeling.source import source_from_artifact
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.resolution import photograph_sizes
from swinv2_deploy.runtime import OnnxRunner, OpenVinoRunner, TorchRunner, openvino_runner

RECIPES = {
    "crop": Preprocessing(size=(32, 32), resize_shortest=36),
    "squash": Preprocessing(size=(40, 24), resize_shortest=None),
    "odd margin": Preprocessing(size=(31, 36), resize_shortest=37),
    "bilinear": Preprocessing(size=(32, 32), resize_shortest=36, interpolation="bilinear"),
}


def model_bytes(recipe: Preprocessing) -> bytes:
    """The preprocessing alone as an ONNX model."""
    images = ir.Value(name="images", shape=ir.Shape(["batch", "h", "w", 3]), type=ir.TensorType(ir.DataType.UINT8))
    builder = GraphBuilder()
    pixels = PreprocessingGraph(builder, recipe).write(images)
    model = builder.model([images], [pixels], name="preprocessing", producer_version="")
    return bytes(ir.serde.serialize_model(model).SerializeToString())


@pytest.fixture(scope="module")
def baked(tiny_artifact: ModelArtifact, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    spec = ExportSpec(smallest=(16, 16), largest=(64, 96), bake_preprocessing=True)
    return export(source_from_artifact(tiny_artifact), spec, tmp_path_factory.mktemp("baked") / "tiny")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_makes_the_very_pixels_of_pillow(recipe: Preprocessing) -> None:
    """Not one differs, at sizes that enlarge, shrink by whole and odd factors, stand, lie, or are one pixel."""
    session = ort.InferenceSession(model_bytes(recipe), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    sizes = [*photograph_sizes(recipe.size), (1, 1), (2, 3), (72, 72), (144, 36), (35, 300), (301, 40), (500, 333)]
    sizes += [(int(height), int(width)) for height, width in generator.integers(10, 260, (12, 2))]
    for height, width in sizes:
        photos = np.stack([synthetic_image(height, width), generator.integers(0, 256, (height, width, 3)).astype(np.uint8)])
        [found] = session.run(None, {"images": photos})
        np.testing.assert_array_equal(found, np.stack([recipe(photo) for photo in photos]), err_msg=f"{height}x{width}")


def test_the_order_of_the_axes_is_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that always takes the width first differs from a Pillow that does not, by more than rounding."""
    if int(PIL.__version__.split(".")[0]) < preprocessing_graph.HEIGHT_FIRST_SINCE:
        pytest.skip("this Pillow always takes the width first")
    recipe = RECIPES["squash"]
    monkeypatch.setattr(preprocessing_graph, "HEIGHT_FIRST_SINCE", 1000)
    session = ort.InferenceSession(model_bytes(recipe), providers=["CPUExecutionProvider"])
    differing = {}
    for size in [(200, 60), (60, 200)]:
        photo = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
        differing[size] = (session.run(None, {"images": photo[None]})[0][0] != recipe(photo)).mean()

    assert differing[60, 200] == 0
    assert differing[200, 60] > 0.05


def test_openvino_is_off_by_a_gray_level_at_most() -> None:
    """It computes the weights in float32, so that a pixel in some ten thousand rounds to its neighbor."""
    recipe = Preprocessing(size=(64, 64), resize_shortest=72)
    core = openvino_runner._core()
    with openvino_runner._denormals_kept():
        model = core.compile_model(core.read_model(model_bytes(recipe)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        levels = []
        for size in [(100, 150), (150, 70), (300, 90), (40, 50), (144, 144)]:
            photo = synthetic_image(*size)
            found = model({"images": photo[None]})[0][0]
            levels.append(np.abs(found - recipe(photo)) * np.float32(recipe.std)[:, None, None] * 255)

    assert max(level.max() for level in levels) < 1.01
    assert np.mean([(level > 0.5).mean() for level in levels]) < 1e-3


def test_the_file_equals_python_and_the_model_on_photographs(baked: ModelArtifact) -> None:
    """Bit by bit what preprocessing in Python and the static graph give, on the bundled photographs at the size they have."""
    recipe = baked.preprocessing
    taking_images, taking_pixels = (OnnxRunner(baked.onnx_files[name]) for name in ("model_from_images", "model"))
    for path in ImageFolder.open(sample_folder("verify")).select(10, 0).paths:
        photo = read_image(path)
        found, expected = taking_images.run(photo[None])["logits"], taking_pixels.run(recipe(photo)[None])["logits"]
        np.testing.assert_allclose(found, expected, atol=2e-5)
        np.testing.assert_allclose(found, TorchRunner(load_model(baked)).run(recipe(photo)[None])["logits"], atol=1e-4)


def test_every_row_of_a_batch_is_its_own(baked: ModelArtifact) -> None:
    runner = OnnxRunner(baked.onnx_files["model_from_images"])
    photos = np.random.default_rng(0).integers(0, 256, (5, 90, 50, 3)).astype(np.uint8)
    together = runner.run(photos)["logits"]

    for row, photo in enumerate(photos):
        np.testing.assert_allclose(together[row], runner.run(photo[None])["logits"][0], atol=1e-5)


def test_says_what_it_is(baked: ModelArtifact) -> None:
    """Valid ONNX of standard operators; the metadata name the input, the recipe, and the sizes it was run at."""
    file = baked.onnx_files["model_from_images"]
    onnx.checker.check_model(str(file), full_check=True)
    runner = OnnxRunner(file)
    tested = runner.facts.values["tested_images"]

    assert ("images", "fp32") == (runner.facts.takes, runner.precision)
    assert json.loads(json.dumps(runner.facts.values["preprocessing"]))["resize_shortest"] == 36
    assert [f"{height}x{width}" for height, width in photograph_sizes((32, 32))] == list(tested)
    assert {node.domain for node in onnx.load(file).graph.node} == {""}
    assert "onnx/model_from_images.onnx" in baked.lineage.files


@pytest.mark.parametrize("make", [OnnxRunner, OpenVinoRunner])
def test_other_images_are_refused(make: Callable[[Path], OnnxRunner | OpenVinoRunner], baked: ModelArtifact) -> None:
    runner = make(baked.onnx_files["model_from_images"])
    for images in (np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 32, 32, 4), np.uint8), np.zeros((1, 0, 5, 3), np.uint8)):
        with pytest.raises(RunnerError, match=r"was given .* expected uint8 \(B, H, W, 3\)"):
            runner.run(images)


def test_openvino_in_a_thread_that_flushes_denormals_changes_nothing(baked: ModelArtifact) -> None:
    """A session of ONNX Runtime leaves its thread so; OpenVINO's would inherit it and take small integers for zeros."""
    file = baked.onnx_files["model_from_images"]
    photo = np.random.default_rng(0).integers(0, 256, (300, 70, 3)).astype(np.uint8)
    first = OpenVinoRunner(file, threads=1)  # kept, for OpenVINO reuses the threads of a model that is gone
    expected = first.run(photo[None])["logits"]
    torch.set_flush_denormal(True)
    try:
        found = OpenVinoRunner(file, threads=1).run(photo[None])["logits"]
        assert np.float32(1e-40) * np.float32(1) == 0, "the state of the thread is left as it was"
    finally:
        torch.set_flush_denormal(False)

    np.testing.assert_array_equal(found, expected)


def test_bfloat16_is_refused(baked: ModelArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runner, "_require", lambda precision: None)

    with pytest.raises(SpecError, match="resizes photographs, for which bf16 is too coarse; use f32"):
        OpenVinoRunner(baked.onnx_files["model_from_images"], precision="bf16")


def test_an_unknown_input_is_refused(baked: ModelArtifact, tmp_path: Path) -> None:
    proto = onnx.load(baked.onnx_files["model_from_images"])
    for entry in proto.metadata_props:
        if entry.key == "swinv2_deploy.input":
            entry.value = "video"
    onnx.save(proto, tmp_path / "model.onnx")

    with pytest.raises(RunnerError, match=r"says it takes 'video'; expected one of"):
        OnnxRunner(tmp_path / "model.onnx")


def test_the_quantized_artifact_has_an_int8_form(baked: ModelArtifact, photos: Path, tmp_path: Path) -> None:
    """The same scales: the file gives what model_int8.onnx gives for the preprocessed photograph."""
    spec = QuantizeSpec(calibrator="max", unsigned="never")
    files = quantize(baked, spec, ImageFolder.open(photos), tmp_path / "q").artifact.onnx_files
    photo = read_image(next(iter(ImageFolder.open(photos).paths)))
    found = OnnxRunner(files["model_int8_from_images"]).run(photo[None])["logits"]
    expected = OnnxRunner(files["model_int8"]).run(baked.preprocessing(photo)[None])["logits"]

    assert {"model", "model_from_images", "model_int8", "model_int8_from_images"} == set(files)
    assert found @ expected.T / np.linalg.norm(found) / np.linalg.norm(expected) > 0.9999


def test_a_wrong_filter_fails_the_export(tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is run on photographs before it is kept, and nothing is left behind."""
    bilinear = PreprocessingGraph.__init__
    monkeypatch.setattr(
        PreprocessingGraph,
        "__init__",
        lambda self, graph, recipe: bilinear(self, graph, replace(recipe, interpolation="bilinear")),
    )

    with pytest.raises(ExportError, match=r"preprocessing is wrong for photographs of .* px: logits differs by"):
        export(source_from_artifact(tiny_artifact), ExportSpec(bake_preprocessing=True), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_filters_without_a_graph_are_refused(tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    source = source_from_artifact(tiny_artifact)
    source = replace(source, preprocessing=replace(source.preprocessing, interpolation="lanczos"))

    with pytest.raises(UnsupportedModelError, match=r"resizes with 'lanczos'.*Leave out --bake-preprocessing"):
        export(source, ExportSpec(bake_preprocessing=True), tmp_path / "lanczos")


def test_more_inputs_than_pixels_are_refused() -> None:
    values = [ir.Value(name=name, shape=ir.Shape([1, 3, 32, 32]), type=ir.TensorType(ir.DataType.FLOAT)) for name in "ab"]
    graph = ir.Graph(values, [values[0]], nodes=[], opset_imports={"": 20})

    with pytest.raises(UnsupportedModelError, match="can be put before RGB pixels alone"):
        with_preprocessing(ir.Model(graph, ir_version=10), RECIPES["crop"])


def test_weights_outside_of_the_file(tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models above 2 GiB keep the weights of this file beside it as well."""
    from swinv2_deploy.export import to_onnx

    monkeypatch.setattr(to_onnx, "LARGEST_INLINE", 1000)
    made = export(source_from_artifact(tiny_artifact), ExportSpec(bake_preprocessing=True), tmp_path / "large")

    assert "onnx/model_from_images.onnx.data" in read_artifact(made.path).lineage.files
    assert OnnxRunner(made.onnx_files["model_from_images"]).run(synthetic_image(40, 50)[None])["logits"].shape == (1, 7)
