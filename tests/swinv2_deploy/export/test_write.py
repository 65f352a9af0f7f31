"""Files written without a copy of the weights are those that the usual tools would write, and can share their weights."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from swinv2_deploy.errors import ExportError
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.export.write import PAGE, OnnxWriter
from swinv2_deploy.modeling.io import SMALLEST_OUTSIDE
from swinv2_deploy.resolution import ResolutionRange
from swinv2_deploy.runtime.onnx_file import append_metadata

DYNAMIC = ResolutionRange(min=(16, 16), opt=(32, 32), max=(64, 64))
STATIC = ResolutionRange(min=(32, 32), opt=(32, 32), max=(32, 32))


def graph_of(model: SwinV2, resolutions: ResolutionRange = DYNAMIC) -> ir.Model:
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return SwinGraph(model.config, weights, resolutions).build("0")


def write(model: ir.Model, path: Path, data: Path | None = None) -> onnx.ModelProto:
    with OnnxWriter(data) as writer:
        writer.write(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path)


def content(proto: onnx.ModelProto) -> tuple[bytes, dict[str, Any]]:
    """The graph without its weights and their types, which a file need not state twice, and the weights by name."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    bare.graph.ClearField("initializer")
    bare.graph.ClearField("value_info")
    bare.graph.value_info.extend(value for value in proto.graph.value_info if value.name not in arrays)
    return bare.SerializeToString(deterministic=True), arrays


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
@pytest.mark.parametrize("resolutions", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_a_file_holds_what_the_usual_tools_write(
    outside: bool, resolutions: ResolutionRange, tiny_model: SwinV2, tmp_path: Path
) -> None:
    model = graph_of(tiny_model, resolutions)
    found = content(write(model, tmp_path / "model.onnx", tmp_path / "weights" if outside else None))
    expected = content(ir.to_proto(model))

    assert found[0] == expected[0]
    assert list(found[1]) == list(expected[1])
    for name, array in expected[1].items():
        assert found[1][name].dtype == array.dtype
        np.testing.assert_array_equal(found[1][name], array)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (300, 2)], ids=str)
def test_tensors_of_every_kind_are_kept(dtype: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Scalars, nothing at all, and columns that do not lie in a row in memory."""
    array = np.asarray(np.arange(int(np.prod(shape))).reshape(shape[::-1]).T.astype(dtype))
    value = ir.Value(name="x", const_value=ir.Tensor(array, name="x"))
    y = ir.node("Identity", [value]).outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(shape)
    graph = ir.Graph([], [y], nodes=[y.producer()], initializers=[value], opset_imports={"": 20}, name="g")
    proto = write(ir.Model(graph, ir_version=10), tmp_path / "model.onnx", tmp_path / "weights")
    (found,) = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer)

    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_graphs_share_their_weights(tiny_model: SwinV2, tmp_path: Path) -> None:
    """What two graphs hold both lies in the file once, at the beginning of a page."""
    with OnnxWriter(tmp_path / "weights") as writer:
        for name, resolutions in (("a", DYNAMIC), ("b", STATIC)):
            writer.write(graph_of(tiny_model, resolutions), tmp_path / f"{name}.onnx")
    places: dict[str, dict[str, tuple[int, int]]] = {}
    for name in "ab":
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
        for tensor in onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert bool(entries) == (tensor.data_location == onnx.TensorProto.EXTERNAL)
            if entries:
                assert entries["location"] == "weights"
                assert int(entries["offset"]) % PAGE == 0
                assert int(entries["length"]) >= SMALLEST_OUTSIDE
                places.setdefault(name, {})[tensor.name] = (int(entries["offset"]), int(entries["length"]))
    shared = [name for name in places["a"] if name in places["b"] and name.startswith("layers.0.blocks.0.mlp")]

    assert len(shared) == 2
    assert all(places["a"][name] == places["b"][name] for name in shared)
    ends = sorted({place for of in places.values() for place in of.values()})
    assert all(start + length <= after for (start, length), (after, _) in pairwise(ends))


def test_weights_are_not_copied(
    tiny_config: SwinV2Config, make_model: Callable[[SwinV2Config], SwinV2], tmp_path: Path
) -> None:
    """Neither to check the graph nor to write it."""
    model = graph_of(make_model(tiny_config))
    large = ir.Tensor(np.ones((4096, 4096), np.float32), name="head.weight")
    model.graph.initializers["layers.0.blocks.0.mlp.fc1.weight"].const_value = large
    for data in (None, tmp_path / "weights"):
        tracemalloc.start()
        with OnnxWriter(data) as writer, pytest.raises(ExportError, match="not valid ONNX"):
            writer.write(model, tmp_path / "model.onnx")  # the product does not fit: found by type and shape alone
        with OnnxWriter(data) as writer:
            writer._initializer(model.graph.initializers["layers.0.blocks.0.mlp.fc1.weight"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.1 * large.nbytes


def test_metadata_can_be_added_to_a_file_that_is_there(tiny_model: SwinV2, tmp_path: Path) -> None:
    """The graph stays as it is, for readers of any kind."""
    before = write(graph_of(tiny_model), tmp_path / "model.onnx")
    append_metadata(tmp_path / "model.onnx", {"a": {"b": [1]}, "c": "text"})
    after = onnx.load(tmp_path / "model.onnx")

    assert {entry.key: entry.value for entry in after.metadata_props} == {
        "swinv2_deploy.a": '{"b": [1]}',
        "swinv2_deploy.c": "text",
    }
    after.ClearField("metadata_props")
    assert after == before
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
