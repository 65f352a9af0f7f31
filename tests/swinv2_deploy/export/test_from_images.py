"""Preprocessing inside the graph: the very pixels of Pillow, at any size of photograph, and what cannot be baked is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import PIL
import pytest
import torch
from onnx import numpy_helper

from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from reference_model.preprocessing import Preprocessing, read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, ExportError, RunnerError, SpecError, UnsupportedModelError
from swinv2_deploy.export import ExportSpec, export, preprocessing_graph
from swinv2_deploy.export.check import prove_artifact
from swinv2_deploy.export.from_images import with_preprocessing
from swinv2_deploy.export.graph import GraphBuilder
from swinv2_deploy.export.preprocessing_graph import PreprocessingGraph
from swinv2_deploy.modeling import load_model
from swinv2_deploy.modeling.source import source_from_artifact
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner, OpenVinoRunner, TorchRunner, openvino_runner
from swinv2_deploy.runtime.grid import photograph_sizes
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.runtime.proof import synthetic_photographs

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
        noise = generator.integers(0, 256, (1, height, width, 3)).astype(np.uint8)
        photos = np.concatenate([synthetic_photographs((height, width), 2), noise])
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
            [photo] = synthetic_photographs(size, 1)
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
    """Valid ONNX of standard operators; the metadata name the input, the recipe, and at which photographs it was run."""
    file = baked.onnx_files["model_from_images"]
    onnx.checker.check_model(str(file), full_check=True)
    runner = OnnxRunner(file)
    proof = runner.facts.values["proof"]

    assert ("images", "fp32") == (runner.facts.takes, runner.precision)
    assert json.loads(json.dumps(runner.facts.values["preprocessing"]))["resize_shortest"] == 36
    assert [list(size) for size in photograph_sizes((32, 32))] == [row["size"] for row in proof["grid"]]
    assert [["1", "2"]] * 5 == [list(row["errors"]) for row in proof["grid"]]
    assert proof["max_abs"] < 1e-4
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
    """The same scales: the file gives what model_int8.onnx gives for the preprocessed photograph. No unsigned form is written."""
    spec = QuantizeSpec(calibrator="max", unsigned="always")
    made = quantize(baked, spec, ImageFolder.open(photos), tmp_path / "q").artifact
    files = made.onnx_files
    photo = read_image(next(iter(ImageFolder.open(photos).paths)))
    found = OnnxRunner(files["model_int8_from_images"]).run(photo[None])["logits"]
    expected = OnnxRunner(files["model_int8"]).run(baked.preprocessing(photo)[None])["logits"]

    assert {"model", "model_from_images", "model_int8", "model_uint8", "model_int8_from_images"} == set(files)
    assert found @ expected.T / np.linalg.norm(found) / np.linalg.norm(expected) > 0.9999
    facts = read_facts(files["model_int8_from_images"])
    assert ("images", "int8") == (facts.takes, facts.precision)
    assert [list(size) for size in photograph_sizes((32, 32))] == [row["size"] for row in facts.values["proof"]["grid"]]
    assert facts.values["proof"]["max_abs"] > 100 * read_facts(files["model_from_images"]).values["proof"]["max_abs"]
    # What a second run makes takes its place; nothing is quantized twice.
    again = quantize(made, replace(spec, unsigned="never"), ImageFolder.open(photos), tmp_path / "again").artifact
    assert {"model", "model_from_images", "model_int8", "model_int8_from_images"} == set(again.onnx_files)


def test_a_wrong_filter_fails_the_export(tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is run on photographs before it is kept, and nothing is left behind."""
    bilinear = PreprocessingGraph.__init__
    monkeypatch.setattr(
        PreprocessingGraph,
        "__init__",
        lambda self, graph, recipe: bilinear(self, graph, replace(recipe, interpolation="bilinear")),
    )

    with pytest.raises(
        ExportError,
        match=r"model_from_images: logits differs by .* for photographs of .* px.*Export without --bake-preprocessing",
    ):
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


def test_masked_image_models_are_refused(masked_artifact: ModelArtifact, tmp_path: Path) -> None:
    """Their mask is one of pixels at the size of the model. Nothing is left behind."""
    with pytest.raises(UnsupportedModelError, match=r"bool_masked_pos.*can be put before RGB pixels alone"):
        export(source_from_artifact(masked_artifact), ExportSpec(bake_preprocessing=True), tmp_path / "masked")
    assert list(tmp_path.iterdir()) == []


def test_a_masked_image_model_that_says_it_takes_photographs_is_refused(
    masked_artifact: ModelArtifact,
    changed: Callable[..., ModelArtifact],
    edit_metadata: Callable[..., object],
) -> None:
    other = changed(masked_artifact, {"model": edit_metadata("input", "images")})
    with pytest.raises(RunnerError, match="holds a masked image model, which takes a mask beside its pixels"):
        OnnxRunner(other.onnx_files["model"])


def test_photographs_are_not_taken_for_pixels(
    tiny_artifact: ModelArtifact,
    baked: ModelArtifact,
    changed: Callable[..., ModelArtifact],
    edit_metadata: Callable[..., object],
    tmp_path: Path,
) -> None:
    """What a file says it takes must be its input."""
    other = changed(tiny_artifact, {"model": edit_metadata("input", "images")})
    with pytest.raises(RunnerError, match=r"takes pixel_values float .*expected one input, images uint8 \(batch, height"):
        OnnxRunner(other.onnx_files["model"])
    proto = onnx.load(baked.onnx_files["model_from_images"])
    edit_metadata("input", None)(proto)
    onnx.save(proto, tmp_path / "silent.onnx")
    with pytest.raises(RunnerError, match=r"takes images uint8 .*expected one input, pixel_values float32"):
        OnnxRunner(tmp_path / "silent.onnx")


def test_a_mask_for_photographs_is_refused(baked: ModelArtifact) -> None:
    runner = OnnxRunner(baked.onnx_files["model_from_images"])
    with pytest.raises(RunnerError, match="takes images alone, so leave it out"):
        runner.run(np.zeros((1, 40, 50, 3), np.uint8), np.zeros((1, 256), np.bool_))


def test_weights_outside_of_the_file(tiny_artifact: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models whose graphs are large together keep the weights of this file beside it as well, once for all."""
    from swinv2_deploy.export import to_onnx

    weights = sum(value.numel() * 4 for value in source_from_artifact(tiny_artifact).model.state_dict().values())
    monkeypatch.setattr(to_onnx, "LARGEST_INLINE", weights)
    made = export(source_from_artifact(tiny_artifact), ExportSpec(bake_preprocessing=True), tmp_path / "large")
    file = made.onnx_files["model_from_images"]

    assert read_facts(file).external == ("model.onnx.data",) == read_facts(made.onnx_files["model"]).external
    assert (made.path / "onnx/model.onnx.data").stat().st_size < 2 * weights
    assert OnnxRunner(file).run(synthetic_photographs((40, 50), 1))["logits"].shape == (1, 7)


def test_other_forms_leave_the_file_as_it_is(tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    """Half precision and static graphs are forms of the graph that takes pixels; photographs are taken in FP32, at one size."""
    spec = ExportSpec(
        smallest=(16, 16), largest=(64, 96), sizes=((24, 24),), half_precisions=("bf16",), bake_preprocessing=True
    )
    made = export(source_from_artifact(tiny_artifact), spec, tmp_path / "all")
    facts = {name: read_facts(file) for name, file in made.onnx_files.items()}

    assert ["model", "model_24x24", "model_24x24_bf16", "model_bf16", "model_from_images"] == list(facts)
    assert ["model_from_images"] == [name for name, found in facts.items() if found.takes == "images"]
    assert "fp32" == facts["model_from_images"].precision
    assert ((32, 32), (32, 32)) == (facts["model_from_images"].resolutions.min, facts["model_from_images"].resolutions.max)


# --- proofs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["file", "quick", "full"])
def test_a_proof_can_be_run_again(grid: Literal["file", "quick", "full"], baked: ModelArtifact) -> None:
    """On photographs, whatever the grid of the others."""
    proof = prove_artifact(baked, grid)["model_from_images"]
    stated = read_facts(baked.onnx_files["model_from_images"]).values["proof"]

    assert json.loads(json.dumps(proof.to_dict())) == stated


def test_a_proof_finds_wrong_preprocessing(baked: ModelArtifact, changed: Callable[..., ModelArtifact]) -> None:
    """Every size of photograph fails, and the sentence says that it is one."""
    file = baked.onnx_files["model_from_images"]

    def darken(proto: onnx.ModelProto) -> None:
        proto.CopyFrom(onnx.load(file))
        mean = np.asarray(baked.preprocessing.mean, np.float32)
        for tensor in proto.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.shape == (1, 3, 1, 1) and np.array_equal(array.reshape(-1), mean):
                tensor.CopyFrom(numpy_helper.from_array(array * np.float32(0.9), tensor.name))

    proofs = prove_artifact(changed(baked, {"model_from_images": darken}))

    assert () == proofs["model"].failures
    assert 5 == len(proofs["model_from_images"].failures)
    assert "for photographs of 17x21 px in a batch of" in proofs["model_from_images"].failures[0]


def test_photographs_too_large_to_decode_are_not_proved_on(
    baked: ModelArtifact, changed: Callable[..., ModelArtifact], edit_metadata: Callable[..., object]
) -> None:
    """A file cannot make the proof fill the memory."""
    file = baked.onnx_files["model_from_images"]

    def grow(proto: onnx.ModelProto) -> None:
        proto.CopyFrom(onnx.load(file))
        edit_metadata("proof", {"grid": [{"size": [100_000, 100_000], "errors": {"1": 0}}]})(proto)

    with pytest.raises(ArtifactError, match="--grid quick or --grid full"):
        prove_artifact(changed(baked, {"model_from_images": grow}))
