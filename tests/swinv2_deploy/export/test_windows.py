"""Adaptive windows in the written graph: the choice, the outputs at every size, and what runtimes need of the form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from reference_model.config import SwinV2Config, WindowPolicy, make_config
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from reference_model.windows import plan_axis
from swinv2_deploy.artifacts import ResolutionRange, WeightsOrigin
from swinv2_deploy.errors import SpecError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.export.graph import GraphBuilder
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.export.window_graph import MapSize, StageWindows
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.source import Source, source_from_artifact
from swinv2_deploy.runtime import TorchRunner

MakeModel = Callable[[SwinV2Config], SwinV2]

FULL = ResolutionRange(min=(32, 32), opt=(128, 128), max=(384, 384))
SIZES = [(32, 32), (64, 64), (96, 64), (80, 112), (100, 147), (200, 331), (224, 224), (256, 256)]
TOLERANCE = 1e-4
LARGEST = 300


def config(policy: WindowPolicy, window: int = 8, **changes: Any) -> SwinV2Config:
    sizes: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "image_size": 192, "num_classes": 5}
    grown = {"pretrained_window_sizes": (12, 6)} if window == 24 else {}
    return make_config(**sizes | grown | {"window_size": window, "window_policy": policy} | changes)


def static(height: int, width: int) -> ResolutionRange:
    return ResolutionRange(min=(height, width), opt=(height, width), max=(height, width))


def write(model: SwinV2, resolutions: ResolutionRange) -> ir.Model:
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return SwinGraph(model.config, weights, resolutions).build("0")


def session(graph: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])


def images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1000 * height + width))


def difference(model: SwinV2, found: ort.InferenceSession, pixels: torch.Tensor) -> float:
    """Largest absolute difference of a logit."""
    with torch.no_grad():
        expected = TorchRunner(model).run(pixels.numpy())["logits"]
    return float(np.abs(found.run(["logits"], {"pixel_values": pixels.numpy()})[0] - expected).max())


@pytest.mark.parametrize("policy", ["fixed", "adaptive"])
@pytest.mark.parametrize("window", [8, 24])
def test_one_graph_equals_the_reference_at_every_size(make_model: MakeModel, window: int, policy: WindowPolicy) -> None:
    """Window 8 as trained and 24 grown from 12, at sizes from one window to many. Measured: 4e-7."""
    model = make_model(config(policy, window))
    graph = write(model, FULL)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    found = session(graph)

    errors = {size: difference(model, found, images(2 if window == 8 else 1, *size)) for size in SIZES}

    assert {size: error for size, error in errors.items() if not error <= TOLERANCE} == {}


def test_the_comparison_above_can_fail(make_model: MakeModel) -> None:
    """The graph of the other policy is wrong by far where a map is padded."""
    fixed, adaptive = make_model(config("fixed")), make_model(config("adaptive"))

    assert difference(fixed, session(write(adaptive, FULL)), images(2, 80, 112)) > 100 * TOLERANCE


@pytest.mark.parametrize("size", [(64, 64), (80, 112), (100, 147), (36, 48), (40, 128)])
def test_a_static_graph_equals_the_reference_and_computes_no_shapes(make_model: MakeModel, size: tuple[int, int]) -> None:
    """The window is chosen while exporting."""
    model = make_model(config("adaptive"))
    graph = write(model, static(*size))

    assert difference(model, session(graph), images(2, *size)) <= TOLERANCE
    assert not {node.op_type for node in graph.graph} & {"Range", "Slice", "Mod", "Min", "Sub", "Split", "ReduceMin"}


@pytest.mark.parametrize(
    ("resolutions", "sizes"),
    [
        pytest.param(ResolutionRange(min=(64, 32), opt=(64, 64), max=(64, 160)), [(64, 32), (64, 101)], id="height fixed"),
        pytest.param(ResolutionRange(min=(37, 37), opt=(40, 40), max=(40, 40)), [(37, 37), (38, 40)], id="one window of 10"),
        pytest.param(ResolutionRange(min=(8, 8), opt=(24, 24), max=(36, 36)), [(8, 8), (24, 13), (33, 36)], id="never shifts"),
        pytest.param(ResolutionRange(min=(41, 41), opt=(44, 44), max=(44, 44)), [(41, 43), (44, 44)], id="always windows of 6"),
    ],
)
def test_a_narrower_range_is_right_inside_it(
    make_model: MakeModel, resolutions: ResolutionRange, sizes: list[tuple[int, int]]
) -> None:
    """What the range decides is decided while exporting."""
    model = make_model(config("adaptive"))
    found = session(write(model, resolutions))

    assert max(difference(model, found, images(2, *size)) for size in sizes) <= TOLERANCE


def test_every_row_of_a_batch_is_the_image_alone(make_model: MakeModel) -> None:
    """Batches to 17 at a rectangle that pads."""
    model = make_model(config("adaptive"))
    found = session(write(model, FULL))
    pixels = images(17, 52, 88)

    assert difference(model, found, pixels) <= TOLERANCE
    alone = [found.run(None, {"pixel_values": pixels[row : row + 1].numpy()})[0][0] for row in range(17)]
    np.testing.assert_allclose(found.run(None, {"pixel_values": pixels.numpy()})[0], np.stack(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 7, 8, 16, 24])
def test_the_graph_chooses_window_and_shift_as_the_reference_does(window: int) -> None:
    """At every map of 1 to 300 tokens."""
    graph = GraphBuilder()
    value = ir.Value(name="size", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.INT64))
    windows = StageWindows(
        graph, MapSize(value, (1, 1), (LARGEST, LARGEST), graph.ints(1, 1)), window, "windows", graph.ints(1), "adaptive"
    )
    outputs = [windows.window, windows._shift()]
    for output in outputs:
        output.type, output.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([2])
    found = session(graph.model([value], outputs, name="choice", producer_version="0"))

    for height, width in [(side, LARGEST + 1 - side) for side in range(1, LARGEST + 1)]:
        plans = [plan_axis(side, window, shifted=True, policy="adaptive") for side in (height, width)]
        chosen, shift = found.run(None, {"size": np.asarray([height, width], np.int64)})
        assert (chosen.tolist(), shift.tolist()) == ([plan.window for plan in plans], [plan.shift for plan in plans])


def test_the_graph_has_the_form_that_tensorrt_needs(make_model: MakeModel) -> None:
    """Constant padding by the largest window less one, and no operator that TensorRT cannot compute for shapes."""
    graph = write(make_model(config("adaptive")), FULL).graph
    pads = [node.inputs[1].const_value for node in graph if node.op_type == "Pad" and node.name and "windows" in node.name]

    assert pads
    assert all(pad is not None and pad.numpy().tolist() == [0, 0, 0, 0, 9, 9] for pad in pads)
    assert not {node.op_type for node in graph} & {"ArgMin", "ArgMax", "TopK", "NonZero", "Loop", "If"}


def test_the_bias_table_reaches_the_largest_window(make_model: MakeModel) -> None:
    """Window 8: 10 at most, so 19 relative positions an axis; folded, because one normalization serves every window."""
    graph = write(make_model(config("adaptive")), FULL).graph
    tables = [value.const_value for name, value in graph.initializers.items() if name.endswith("position_bias_table")]

    assert [tuple(table.shape) for table in tables if table is not None] == [(19 * 19, 2), (19 * 19, 4)]
    assert not [name for name in graph.initializers if "cpb_mlp" in name]


def test_an_artifact_remembers_its_policy(make_model: MakeModel, tmp_path: Path) -> None:
    """In the config, in the lineage and in the file; an export of it keeps the policy unless told otherwise."""
    model = make_model(config("fixed"))
    source = Source(
        model=model,
        preprocessing=Preprocessing(size=(48, 48), resize_shortest=None),
        origin=WeightsOrigin(kind="file", source="weights.pth", sha256="0" * 64),
        name="tiny",
    )
    low = {"resolution": (48, 48), "smallest": (32, 32), "largest": (96, 96)}

    adaptive = export(source, ExportSpec(**low, window_policy="adaptive"), tmp_path / "adaptive")
    kept = export(source_from_artifact(adaptive), ExportSpec(**low), tmp_path / "kept")
    back = export(source_from_artifact(kept), ExportSpec(**low, window_policy="fixed"), tmp_path / "back")

    assert [artifact.config.window_policy for artifact in (adaptive, kept, back)] == ["adaptive", "adaptive", "fixed"]
    assert adaptive.lineage.spec["window_policy"] == "adaptive"
    assert load_model(adaptive).config.window_policy == "adaptive"
    assert '"window_policy": "adaptive"' in str(onnx.load(adaptive.onnx_files["model"]).metadata_props).replace("\\", "")
    assert model.config.window_policy == "fixed"
    with torch.no_grad():
        assert torch.equal(load_model(back)(images(1, 52, 60)), model(images(1, 52, 60)))


def test_an_unknown_policy_is_refused() -> None:
    """By the spec, before anything is made."""
    with pytest.raises(SpecError, match="--window-policy is 'wide'; expected one of fixed, adaptive"):
        ExportSpec(window_policy="wide")  # type: ignore[arg-type]


def test_a_range_is_sampled_inside_its_bounds() -> None:
    """Every pair of 32 heights and widths, both ends among them."""
    sizes = ExportSpec(smallest=(32, 64), largest=(384, 384)).sample_sizes(config("adaptive"))

    assert len(sizes) == len(set(sizes)) == 32 * 32
    assert (sizes[0], sizes[-1]) == ((32, 64), (384, 384))
    assert ExportSpec(static=True).sample_sizes(config("adaptive")) == [(192, 192)]


@pytest.mark.parametrize(
    "resolutions", [FULL, ResolutionRange(min=(8, 8), opt=(16, 16), max=(28, 28))], ids=["full", "never 8"]
)
def test_position_biases_are_computed_only_where_a_window_shrinks(make_model: MakeModel, resolutions: ResolutionRange) -> None:
    """One position instead of all where it does not; and no table of the largest window where no size in the range has it."""
    model = make_model(config("fixed"))
    graph = write(model, resolutions)
    proto = ir.to_proto(graph)
    last = [node for node in proto.graph.node if node.name == "layers.1.position_bias.table"]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(last[0].output[0], onnx.TensorProto.FLOAT, None))
    stored = "layers.1.position_bias_table" in graph.graph.initializers
    found = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])

    counts = []
    for size in (resolutions.min, resolutions.opt, resolutions.max) if stored else (resolutions.opt,):
        counts.append(found.run([last[0].output[0]], {"pixel_values": images(1, *size).numpy()})[0].shape[1])

    assert (stored, counts) == ((True, [225, 1, 1]) if resolutions is FULL else (False, [225]))
