"""A graph fitted to one size computes what it computed, and has no more in it than a graph exported for that size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from calibration.dataset import ImageFolder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import source_from_artifact
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner, OpenVinoRunner
from swinv2_deploy.runtime.fitting import fitted
from swinv2_deploy.runtime.known_integers import KnownIntegers
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.runtime.pinned import Pinned, pinned_shapes

WHOLE = (2, 32, 32)
"""Two windows along each axis of the first map, nothing padded."""
PADDED = (3, 45, 30)
OTHERS = {"single window": (2, 16, 16), "rectangle": (1, 64, 32), "one axis padded": (2, 64, 46)}
SMALL = [(2, 8, 8), (1, 4, 32), (3, 5, 7)]
"""Below the window in some stage."""
SIZES = {"Range", "Shape", "Mod", "Less", "Greater", "ReduceProd", "ReduceMin", "Min", "Max"}
"""Operators with which a graph computes of sizes and indices alone."""


def fit(file: Path, pinned: Pinned) -> ir.Model:
    return fitted(file, pinned_shapes(pinned, read_facts(file), file.stem))


def noise(pinned: Pinned) -> np.ndarray[Any, np.dtype[np.float32]]:
    batch, *size = pinned
    return np.random.default_rng(0).standard_normal((batch, 3, *size), dtype=np.float32)


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.fixture(scope="module")
def files(
    tiny_artifact: ModelArtifact,
    photos: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_artifact: Callable[..., ModelArtifact],
) -> dict[str, Path]:
    """Every kind of file that takes pixels."""
    folder, source = tmp_path_factory.mktemp("fitted"), source_from_artifact(tiny_artifact)
    reach = {"smallest": (16, 16), "largest": (64, 96)}
    found = {"model": tiny_artifact.onnx_files["model"]}
    halves = export(source, ExportSpec(**reach, half_precisions=("fp16", "bf16")), folder / "halves")
    found |= {name: halves.onnx_files[name] for name in ("model_fp16", "model_bf16")}
    shrinking = export(source, ExportSpec(smallest=(4, 4), largest=(64, 96)), folder / "shrinking")
    found["shrinking"] = shrinking.onnx_files["model"]
    found["adaptive"] = export(source, ExportSpec(**reach, window_policy="adaptive"), folder / "adaptive").onnx_files["model"]
    for policy in ("linear", "attention"):
        spec = QuantizeSpec(calibrator="max", policy=policy, unsigned="always")  # type: ignore[arg-type]
        files = quantize(tiny_artifact, spec, ImageFolder.open(photos), folder / policy).artifact.onnx_files
        found |= {f"{policy} {name}": files[name] for name in ("model_int8", "model_uint8")}
    config = replace(tiny_artifact.config, task="backbone", out_features=("stem", "stage1", "stage2"), num_classes=0, labels=())
    found["backbone"] = make_artifact(config).onnx_files["model"]
    return found


NAMES = [
    "model",
    "model_fp16",
    "model_bf16",
    "adaptive",
    "shrinking",
    "backbone",
    *(f"{policy} {name}" for policy in ("linear", "attention") for name in ("model_int8", "model_uint8")),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pinned", [WHOLE, PADDED, *OTHERS.values()], ids=["whole", "padded", *OTHERS])
def test_nothing_changes_in_onnx_runtime(name: str, pinned: Pinned, files: dict[str, Path]) -> None:
    """Every kind of file, at every kind of size; the same operators on the same numbers."""
    free, fixed = OnnxRunner(files[name], threads=1), OnnxRunner(files[name], threads=1, pinned=pinned)
    expected, found = (runner.run(noise(pinned)) for runner in (free, fixed))

    assert found.keys() == expected.keys()
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, atol=1e-5, rtol=1e-5, err_msg=output)


@pytest.mark.parametrize("pinned", SMALL)
@pytest.mark.parametrize("kind", [OnnxRunner, OpenVinoRunner])
def test_windows_that_shrink(kind: Any, pinned: Pinned, files: dict[str, Path]) -> None:
    expected = OnnxRunner(files["shrinking"], threads=1).run(noise(pinned))["logits"]
    found = kind(files["shrinking"], threads=1, pinned=pinned).run(noise(pinned))["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["model", "adaptive", "backbone", "linear model_int8"])
@pytest.mark.parametrize("pinned", [WHOLE, PADDED, *OTHERS.values()], ids=["whole", "padded", *OTHERS])
def test_nothing_changes_in_openvino(name: str, pinned: Pinned, files: dict[str, Path]) -> None:
    """Against ONNX Runtime; in INT8 one activation may fall on the other side of a step."""
    expected = OnnxRunner(files[name], threads=1).run(noise(pinned))
    found = OpenVinoRunner(files[name], threads=1, pinned=pinned).run(noise(pinned))
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, atol=1e-4 if "int8" not in name else 0.05 * np.abs(values).max())


@pytest.mark.parametrize("name", NAMES)
def test_at_a_whole_size_nothing_of_it_is_left(name: str, files: dict[str, Path]) -> None:
    """Neither arithmetic with sizes nor a row of zeros; every image has windows of its own, where the products are ONNX's."""
    before, after = ir.load(files[name]), fit(files[name], WHOLE)

    assert kinds(before).keys() >= {"Range", "Shape", "Mod", "Pad"}
    assert not kinds(after).keys() & SIZES
    assert "Pad" not in kinds(after)
    turns = [tuple(node.attributes.get_ints("perm")) for node in after.graph if node.name.endswith("attn.k_t")]
    assert turns == [(0, 1, 3, 2) if name == "attention model_uint8" else (0, 1, 2, 4, 3)] * 4


def test_what_moves_tokens_is_that_of_a_graph_of_one_size(
    files: dict[str, Path], make_artifact: Callable[..., ModelArtifact]
) -> None:
    of_one_size = kinds(ir.load(make_artifact(static=True).onnx_files["model"]))
    found = kinds(fit(files["model"], WHOLE))
    for name in ("Gather", "Gemm", "MatMul", "Transpose", "LpNormalization", "Softmax", "LayerNormalization", "Gelu", "Pad"):
        assert found[name] == of_one_size[name], name


def test_rows_of_zeros_stay_where_they_are_read(files: dict[str, Path]) -> None:
    """45x30 px are a map of 23x15 tokens, padded to windows and to be merged; 12x8 tokens, after that, are not padded."""
    pads = [node.name for node in fit(files["model"], PADDED).graph if node.op_type == "Pad"]
    assert pads == ["layers.0.blocks.0.attn.zero_row", "layers.0.blocks.1.attn.zero_row", "layers.0.downsample.zero_row"]


def test_inputs_and_outputs_have_the_size(files: dict[str, Path]) -> None:
    graph = fit(files["backbone"], PADDED).graph
    assert [tuple(value.shape or ()) for value in graph.inputs] == [(3, 3, 45, 30)]
    assert {(value.shape or [None])[0] for value in graph.outputs} == {3}
    graph = fit(files["model"], PADDED).graph
    assert [tuple(value.shape or ()) for value in graph.outputs] == [(3, 7)]


@pytest.mark.parametrize("kind", [OnnxRunner, OpenVinoRunner])
def test_weights_outside_the_file_are_read(kind: Any, files: dict[str, Path], tmp_path: Path) -> None:
    """And the folder they lie in stays as it is, even where nothing may be written."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    proto = onnx.load(files["model"])
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=1024)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.chmod(0o555)

    found = kind(folder / "m.onnx", threads=1, pinned=WHOLE).run(noise(WHOLE))["logits"]

    np.testing.assert_array_equal(found, kind(files["model"], threads=1, pinned=WHOLE).run(noise(WHOLE))["logits"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    assert len(content["weights"]) > len(content["m.onnx"])


def test_openvino_leaves_no_copy_of_weights_behind(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And while it reads, the artifact's own file stays one that others load."""
    proto = onnx.load(files["model"])
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=1024)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    seen = []

    def copy(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        seen.append(read_facts(tmp_path / "m.onnx").external)

    monkeypatch.setattr("shutil.copyfile", copy)
    OpenVinoRunner(tmp_path / "m.onnx", threads=1, pinned=WHOLE)

    assert seen == [("weights",)]
    assert not list(temporary.iterdir())


ROW = "padded = Pad(x, pads)"
GRAPHS = {
    "read at once": (f"{ROW} y = Gather(padded, index)", True),
    "through a layer": (f"{ROW} wide = Gemm(padded, w, b) rows = Reshape(wide, halves) y = Gather(rows, doubled)", True),
    "a layer of another form": (f"{ROW} wide = Gemm<transB = 1>(padded, w, b) y = Gather(wide, index)", True),
    "a bias between": (f"{ROW} sums = Add(padded, b) y = Gather(sums, index)", True),
    "something for every row between": (f"{ROW} sums = Add(padded, every) y = Gather(sums, index)", False),
    "a layer with something for every row": (f"{ROW} wide = Gemm(padded, w, every) y = Gather(wide, index)", False),
    "row of zeros read": (f"{ROW} y = Gather(padded, zeros)", False),
    "half of the row read": (f"{ROW} wide = Gemm(padded, w, b) rows = Reshape(wide, halves) y = Gather(rows, index)", False),
    "another operator between": (f"{ROW} sums = CumSum(padded, axis) y = Gather(sums, index)", False),
    "read by others too": (
        f"{ROW} all = ReduceMax<keepdims = 1>(padded) some = Gather(padded, index) y = Add(some, all)",
        False,
    ),
    "columns read": (f"{ROW} y = Gather<axis = 1>(padded, index)", False),
    "another number of rows": ("padded = Pad(x, two) y = Gather(padded, index)", False),
    "edges instead of zeros": ('padded = Pad<mode = "edge">(x, pads) y = Gather(padded, index)', False),
    "an index from elsewhere": (f"{ROW} other = Cast<to = 7>(x) flat = ReduceMax(other) y = Gather(padded, flat)", False),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_row_of_zeros_goes_only_where_nothing_reads_it(name: str, tmp_path: Path) -> None:
    """Small graphs like and unlike ours; none changes what it computes."""
    lines, goes = GRAPHS[name]
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    one (float[batch, 4] x) => (float[rows, width] y) <
        int64[4] pads = {{1, 0, 0, 0}}, int64[4] two = {{2, 0, 0, 0}}, int64[2] index = {{1, 3}}, int64[2] zeros = {{0, 2}},
        int64[2] doubled = {{2, 5}}, int64[2] halves = {{-1, 2}}, int64 axis = {{0}},
        float[4, 4] w = {{{", ".join(map(str, range(16)))}}}, float[4] b = {{1, 2, 3, 4}},
        float[6, 1] every = {{1, 2, 3, 4, 5, 6}}
    > {{ {lines} }}"""
    model = onnx.parser.parse_model(text)
    onnx.save(model, tmp_path / "m.onnx")
    after = fitted(tmp_path / "m.onnx", {"x": (5, 4)})

    assert ("Pad" not in kinds(after)) == goes
    feeds = {"x": np.random.default_rng(0).integers(-3, 3, (5, 4)).astype(np.float32)}
    expected, found = (ReferenceEvaluator(proto).run(None, feeds)[0] for proto in (model, ir.to_proto(after)))
    np.testing.assert_array_equal(found, expected)


def test_only_integers_of_sizes_are_known(tmp_path: Path) -> None:
    """Weights in INT8 stay as they are, floats are left to the runtime, and what depends on the image is not known."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    one (float[batch, h] x) => (float[n] y, float[m] z)
    <int8[2] w = {1, 2}, float scale = {0.5}, int8 zero = {0}, int64 two = {2}> {
        sizes = Shape(x)
        last = Shape<start = -1>(x)
        twice = Mul(last, two)
        weights = DequantizeLinear(w, scale, zero)
        floats = Cast<to = 1>(twice)
        y = Mul(weights, floats)
        positive = NonZero(x)
        z = Cast<to = 1>(sizes)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    model = ir.load(tmp_path / "m.onnx")
    known = KnownIntegers(model, {"x": (3, 7)})
    values = {output.name: known.get(output) for node in model.graph for output in node.outputs}

    assert {name: array.tolist() for name, array in values.items() if array is not None} == {
        "sizes": [3, 7],
        "last": [7],
        "twice": [14],
    }
    known.store()
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "Cast", "Mul", "NonZero", "Cast"]
    kept = {value.name: value.dtype for value in model.graph.initializers.values()}
    assert [kept.pop(name) for name in ("w", "scale", "zero")] == [ir.DataType.INT8, ir.DataType.FLOAT, ir.DataType.INT8]
    assert sorted(map(str, kept.values())) == ["INT64", "INT64"]
