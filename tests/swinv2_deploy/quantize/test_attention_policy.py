"""The policy ``attention``: both products of every attention in INT8, alike in PyTorch and in both files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from calibration.dataset import ImageFolder
from calibration.samples import sample_folder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import QuantizeError
from swinv2_deploy.modeling.fake_quant import (
    FakeQuantProduct,
    fake_quantize,
    only_quantized,
    plain_state,
    quantizers_of,
    ranges_of,
)
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.sites import operand_of, quantization_sites
from swinv2_deploy.modeling.trained import TrainedForm, read_trained
from swinv2_deploy.quantize.ptq import QuantizeResult, quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import OnnxRunner

pytest.importorskip("modelopt")

SIZES = ((32, 32), (16, 64), (64, 96), (33, 47))


@pytest.fixture(scope="module")
def result(tiny_artifact: ModelArtifact, tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    spec = QuantizeSpec(policy="attention", calibrator="max", images=6, unsigned="always")
    path = tmp_path_factory.mktemp("attention") / "int8"
    return quantize(tiny_artifact, spec, ImageFolder.open(sample_folder("calibrate")), path)


def pixels(size: tuple[int, int], count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(sum(size)))


def test_the_policy_adds_four_operands_a_block(tiny_artifact: ModelArtifact) -> None:
    linear = quantization_sites(tiny_artifact.config)
    attention = quantization_sites(tiny_artifact.config, "attention")
    added = [site for site in attention if site not in linear]
    assert set(linear) < set(attention)
    assert added[:4] == [f"layers.0.blocks.0.attn.{name}" for name in ("qk.0", "qk.1", "av.0", "av.1")]
    assert len(added) == 4 * sum(tiny_artifact.config.depths)
    assert operand_of("layers.0.blocks.1.attn.av.1") == ("layers.0.blocks.1.attn.av", 1)
    assert operand_of("layers.0.blocks.1.attn.qkv") is None
    assert operand_of("decoder.0") is None


def test_calibration_sees_what_enters_the_products(result: QuantizeResult) -> None:
    amax = result.table.amax
    for site in amax:
        operand = operand_of(site)
        if operand and (operand[0].endswith("qk") or operand[1] == 0):
            # Normalized queries and keys, and the weights of a softmax.
            assert 0 < amax[site] <= 1 + 1e-5, site


def test_a_product_rounds_its_operands_alone() -> None:
    product = FakeQuantProduct()
    product.add(1, 127.0, learned=False)
    left, right = torch.tensor([[0.3, 0.4]]), torch.tensor([[1.4], [-200.0]])
    assert torch.equal(product(left, right), left @ torch.tensor([[1.0], [-128.0]]))
    with pytest.raises(QuantizeError, match="expected a positive number"):
        product.add(0, 0.0, learned=False)


@pytest.mark.parametrize("size", SIZES)
def test_the_file_computes_what_the_fake_quantizers_do(
    result: QuantizeResult, tiny_artifact: ModelArtifact, size: tuple[int, int]
) -> None:
    model = load_model(tiny_artifact)
    exact = model(pixels(size)).detach()
    fake_quantize(model, result.table.amax)
    with torch.no_grad():
        expected = model(pixels(size)).numpy()
    found, unsigned = (
        OnnxRunner(result.artifact.path / "onnx" / f"model_{flavor}.onnx").run(pixels(size).numpy())["logits"]
        for flavor in ("int8", "uint8")
    )
    spread = float(exact.std())
    assert np.abs(expected - exact.numpy()).max() > 0.001 * spread  # it does round
    # A value between two steps may fall either way, and later layers round what follows from it.
    assert np.abs(found - expected).max() < 0.05 * spread
    assert np.abs(unsigned - found).max() < 0.05 * spread


def test_every_product_of_the_file_rounds_as_its_fake_quantizers(result: QuantizeResult, tiny_artifact: ModelArtifact) -> None:
    """Given the same operands: at most one step apart, where a value lies between two."""
    model = load_model(tiny_artifact)
    fake_quantize(model, result.table.amax)
    seen: dict[str, tuple[torch.Tensor, ...]] = {}
    products = {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantProduct)}
    for name, module in products.items():
        module.register_forward_pre_hook(lambda _, arguments, name=name: seen.__setitem__(name, arguments))
    with torch.no_grad():
        model(pixels((32, 32)))
    proto = onnx.load(result.artifact.path / "onnx" / "model_int8.onnx")
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    nodes = {node.name: node for node in proto.graph.node}
    assert len(products) == 8
    for name, module in products.items():
        for place in (0, 1):
            node = nodes[f"{name}.{place}.quantize"]
            assert nodes[name].input[place] == nodes[f"{name}.{place}.dequantize"].output[0]
            scale = stored[node.input[1]]
            one = onnx.helper.make_graph(
                [onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])],
                "one",
                [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
                [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT8, None)],
                [onnx.numpy_helper.from_array(scale, "s"), onnx.numpy_helper.from_array(stored[node.input[2]], "z")],
            )
            model_one = onnx.helper.make_model(one, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
            steps = ort.InferenceSession(model_one.SerializeToString()).run(None, {"x": seen[name][place].numpy()})[0]
            expected = (module.quantizers[str(place)](seen[name][place]) / float(scale)).round().detach().numpy()
            apart = np.abs(steps.astype(np.float32) - expected)
            assert apart.max() <= 1, name
            assert (apart > 0).mean() < 1e-3, name


def test_the_temperature_stands_behind_the_product(result: QuantizeResult) -> None:
    graph = onnx.load(result.artifact.path / "onnx" / "model_int8.onnx").graph
    names = {node.name for node in graph.node}
    assert "layers.0.blocks.0.attn.qk.scaled" in names
    assert not any(name.endswith("q_scaled") for name in names)


def test_sites_are_switched_one_by_one(result: QuantizeResult, tiny_artifact: ModelArtifact) -> None:
    model = load_model(tiny_artifact)
    plain = model(pixels((32, 32))).detach()
    fake_quantize(model, result.table.amax)
    assert list(quantizers_of(model)) == list(quantization_sites(model.config, "attention"))
    assert ranges_of(model) == pytest.approx(result.table.amax)
    with torch.no_grad(), only_quantized(model, ()):
        assert torch.equal(model(pixels((32, 32))), plain)
    with torch.no_grad(), only_quantized(model, ["layers.1.blocks.1.attn.av.0"]):
        assert not torch.equal(model(pixels((32, 32))), plain)


def test_the_trained_form_comes_back_with_its_products(
    result: QuantizeResult, tiny_artifact: ModelArtifact, tmp_path: Path
) -> None:
    model = load_model(tiny_artifact)
    TrainedForm(model=model, ranges=result.table.amax).save(tmp_path / "qat.safetensors")
    back = read_trained(tmp_path / "qat.safetensors", tiny_artifact.config)
    rounded = back.fake_quantized()
    assert plain_state(rounded).keys() == model.state_dict().keys()
    assert list(ranges_of(rounded)) == list(result.table.amax)


def test_learned_ranges_of_products_have_gradients(result: QuantizeResult, tiny_artifact: ModelArtifact) -> None:
    model = load_model(tiny_artifact)
    fake_quantize(model, result.table.amax, learned=True)
    model(pixels((32, 32))).square().mean().backward()
    learned = {name: value.grad for name, value in model.named_parameters() if name.endswith("log_range")}
    products = [grad for name, grad in learned.items() if ".quantizers." in name]
    assert len(products) == 16
    assert all(grad is not None and torch.isfinite(grad) for grad in products)
