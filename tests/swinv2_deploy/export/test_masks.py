"""The shift mask leaves no denormal numbers behind, and hides no more than the published one does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from reference_model.config import SwinV2Config, make_config
from reference_model.model import SwinV2
from reference_model.windows import MASKED
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.export import attention_graph
from swinv2_deploy.export.attention_graph import UNSEEN
from swinv2_deploy.export.swin_graph import SwinGraph

MakeModel = Callable[[SwinV2Config], SwinV2]
CONFIG = make_config(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, image_size=64, num_classes=5)
DYNAMIC = ResolutionRange(min=(16, 16), opt=(64, 64), max=(256, 256))
STATIC = ResolutionRange(min=(64, 64), opt=(64, 64), max=(64, 64))
SMALLEST_NORMAL = np.finfo(np.float32).tiny


@pytest.fixture
def with_temperature(make_model: MakeModel) -> Callable[[float], SwinV2]:
    """A model whose shifted heads have one temperature."""

    def make(temperature: float) -> SwinV2:
        model = make_model(CONFIG)
        with torch.no_grad():
            for stage in range(CONFIG.num_stages):
                model.get_parameter(f"layers.{stage}.blocks.1.attn.logit_scale").fill_(float(np.log(temperature)))
        return model

    return make


def write(model: SwinV2, resolutions: ResolutionRange) -> ir.Model:
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    return SwinGraph(model.config, weights, resolutions).build("0")


def masks_of(model: ir.Model) -> set[float]:
    """What is added between regions, in every shift mask of a graph."""
    nodes = [node for node in model.graph if node.op_type == "Where" and "shift_masks" in str(node.name)]
    assert nodes
    return {float(node.inputs[2].const_value.numpy().item()) for node in nodes}  # type: ignore[union-attr]


def run(model: ir.Model, images: np.ndarray, *watched: str) -> list[np.ndarray]:
    """Outputs of a session that keeps denormal numbers, as sessions do unless told otherwise."""
    proto = ir.to_proto(model)
    names = [output.name for output in proto.graph.output]
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in watched)
    torch.set_flush_denormal(False)  # which sessions of other tests may have left on for this thread
    options = ort.SessionOptions()
    options.add_session_config_entry("session.set_denormal_as_zero", "0")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([*watched, *names], {"pixel_values": images})


@pytest.mark.parametrize("resolutions", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_no_denormal_numbers_and_the_same_bits(
    resolutions: ResolutionRange, with_temperature: Callable[[float], SwinV2], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention weights are normal numbers or zero; with the published mask many are neither. The outputs are equal to the bit."""
    model = with_temperature(10.0)
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    watched = "layers.0.blocks.1.attn.softmax"

    graph = write(model, resolutions)
    assert masks_of(graph) == {UNSEEN}
    weights, outputs = run(graph, images, watched)
    assert not ((weights > 0) & (weights < SMALLEST_NORMAL)).any()

    monkeypatch.setattr(attention_graph, "UNSEEN", MASKED)
    published = write(model, resolutions)
    assert masks_of(published) == {MASKED}
    weights, expected = run(published, images, watched)
    assert ((weights > 0) & (weights < SMALLEST_NORMAL)).any()
    np.testing.assert_array_equal(outputs, expected)


def test_hot_heads_keep_what_they_see_across_the_border(
    with_temperature: Callable[[float], SwinV2], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a temperature of 100 the published mask does not hide all; a mask that does would compute another function."""
    model = with_temperature(100.0)
    images = np.random.default_rng(1).standard_normal((8, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()

    graph = write(model, DYNAMIC)
    assert masks_of(graph) == {MASKED}
    [found] = run(graph, images)
    np.testing.assert_allclose(found, expected, atol=2e-5)

    monkeypatch.setattr(attention_graph, "MASKED", -1e6)  # as if the border could never be outweighed
    [blind] = run(write(model, DYNAMIC), images)
    assert np.abs(blind - expected).max() > 1e-4


def test_each_block_has_the_mask_of_its_own_heads(make_model: MakeModel) -> None:
    """One hot head keeps the published mask for its block alone."""
    model = make_model(make_config(embed_dim=16, depths=(4,), num_heads=(2,), window_size=4, image_size=64, num_classes=5))
    with torch.no_grad():
        model.get_parameter("layers.0.blocks.1.attn.logit_scale")[1] = 4.0
    assert masks_of(write(model, DYNAMIC)) == {MASKED, UNSEEN}
