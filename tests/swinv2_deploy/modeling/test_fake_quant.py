"""Fake quantizers round as INT8 files do, have useful gradients, and come off without a trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from swinv2_deploy.errors import ArtifactError, QuantizeError
from swinv2_deploy.modeling import quantization_sites
from swinv2_deploy.modeling.fake_quant import (
    FakeQuantLinear,
    fake_quantize,
    only_quantized,
    plain_state,
    quantized_layers,
    ranges_of,
)
from swinv2_deploy.modeling.io import save_tensors
from swinv2_deploy.modeling.trained import TrainedForm, read_trained

pytest.importorskip("modelopt")


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tiny_config: SwinV2Config, make_model: Callable[[SwinV2Config], SwinV2]) -> SwinV2:
    return make_model(tiny_config)


@pytest.fixture
def ranges(model: SwinV2) -> dict[str, float]:
    """Ranges that clip a part of what enters every site."""
    found: dict[str, float] = {}
    hooks = []
    for site in quantization_sites(model.config):

        def watch(_: nn.Module, arguments: tuple[torch.Tensor], site: str = site) -> None:
            found[site] = float(arguments[0].abs().quantile(0.99))

        hooks.append(model.get_submodule(site).register_forward_pre_hook(watch))
    with torch.no_grad():
        model(images())
    for hook in hooks:
        hook.remove()
    return found


def test_a_layer_rounds_input_and_weight_as_the_files_do() -> None:
    """Steps of amax/127 from -128 to 127, weights by the largest magnitude of each channel, half to even."""
    linear = nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight[2] = 0
    # A step of 1/16, so that halves of it are exact.
    x = torch.tensor([[-9.0, -2.0, -0.5 / 16, 0.5 / 16, 1.5 / 16, 9.0]])
    layer = FakeQuantLinear(linear, 127 / 16, learned=False)

    steps = (x.double() * 16).round().clamp(-128, 127)
    assert steps.tolist() == [[-128, -32, 0, 0, 2, 127]]
    scale = linear.weight.abs().amax(dim=1, keepdim=True).double() / 127
    weight = torch.where(scale > 0, (linear.weight.double() / scale).round() * scale, 0.0)
    expected = (steps / 16) @ weight.T + linear.bias

    torch.testing.assert_close(layer(x).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("learned", [False, True])
def test_learned_ranges_start_as_the_frozen_ones(model: SwinV2, ranges: dict[str, float], learned: bool) -> None:
    fake_quantize(model, ranges, learned=learned)

    assert list(quantized_layers(model)) == list(ranges)
    assert ranges_of(model) == pytest.approx(ranges, rel=1e-6)


def test_the_gradient_of_a_range_is_that_of_learned_step_sizes() -> None:
    """Against the published formula, value by value: the rounding error inside, the end of the range outside."""
    layer = FakeQuantLinear(nn.Linear(4, 4, bias=False), 1.0, learned=True)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    x = torch.tensor([[0.3, -0.7, 4.0, -4.0]], requires_grad=True)
    layer(x).sum().backward()

    steps = x.detach() * 127
    of_step = torch.tensor([steps[0, 0].round() - steps[0, 0], steps[0, 1].round() - steps[0, 1], 127.0, -128.0])
    # log_range moves the range by 100 times itself, and the range moves the step by 1/127.
    expected = float(of_step.sum()) / (4 * 127) ** 0.5 / 127 * 100
    assert float(layer.input_quantizer.log_range.grad) == pytest.approx(expected, rel=1e-4)
    assert x.grad is not None
    assert x.grad[0].tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0], abs=1e-5)


def test_a_range_that_clips_too_much_grows(model: SwinV2, ranges: dict[str, float]) -> None:
    """A few steps towards the unrounded outputs widen ranges that were set ten times too small."""
    teacher = copy.deepcopy(model)
    fake_quantize(model, {site: amax / 10 for site, amax in ranges.items()}, learned=True)
    learned = [layer.input_quantizer.log_range for layer in quantized_layers(model).values()]
    optimizer = torch.optim.Adam(learned, lr=1e-3)
    with torch.no_grad():
        wanted = teacher(images(4))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = (model(images(4)) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.5 * losses[0]
    grown = [after > before / 10 for after, before in zip(ranges_of(model).values(), ranges.values(), strict=True)]
    assert sum(grown) > 0.5 * len(grown)


def test_switched_off_the_model_computes_what_it_did(model: SwinV2, ranges: dict[str, float]) -> None:
    with torch.no_grad():
        before = model(images())
        fake_quantize(model, ranges)
        rounded = model(images())
        with only_quantized(model, ()):
            off = model(images())
        first, second = list(ranges)[:2]
        with only_quantized(model, [first]):
            one = model(images())
            with only_quantized(model, [second]):
                other = model(images())
            again = model(images())

        assert torch.equal(off, before)
        assert torch.equal(again, one)
        assert torch.equal(model(images()), rounded)
    assert not torch.equal(rounded, before)
    assert not torch.equal(one, other)


def test_the_plain_state_is_that_of_the_reference_model(model: SwinV2, ranges: dict[str, float]) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fake_quantize(model, ranges, learned=True)
    plain = plain_state(model)

    assert plain.keys() == state.keys()
    assert all(torch.equal(plain[name], state[name]) for name in state)


def test_sites_that_are_no_linear_layers_and_empty_ranges_are_refused(model: SwinV2, ranges: dict[str, float]) -> None:
    with pytest.raises(QuantizeError, match=r"no linear layers .*layers\.9"):
        fake_quantize(model, ranges | {"layers.9.mlp": 1.0})
    with pytest.raises(QuantizeError, match="expected a positive number"):
        fake_quantize(model, ranges | {next(iter(ranges)): 0.0})
    with pytest.raises(QuantizeError, match="at least one site"):
        fake_quantize(model, {})
    fake_quantize(model, ranges)
    with pytest.raises(QuantizeError, match="have no fake quantizers"), only_quantized(model, ["head"]):
        pass


# --- the file ----------------------------------------------------------------------------------------------------------


def test_a_trained_form_is_read_back_as_it_was(model: SwinV2, ranges: dict[str, float], tmp_path: Path) -> None:
    form = TrainedForm(model=model, ranges=ranges)
    form.save(tmp_path / "qat.safetensors")
    back = read_trained(tmp_path / "qat.safetensors", model.config)

    assert dict(back.ranges) == ranges
    with torch.no_grad():
        assert torch.equal(back.model(images()), model(images()))
        assert torch.equal(back.fake_quantized()(images()), form.fake_quantized()(images()))
    assert not quantized_layers(back.model)


def test_a_trained_form_that_does_not_fit_is_refused(model: SwinV2, ranges: dict[str, float], tmp_path: Path) -> None:
    path = tmp_path / "qat.safetensors"
    form = TrainedForm(model=model, ranges=ranges)
    form.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match="damaged or of another kind"):
        read_trained(path, model.config)
    save_tensors({"x": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(ArtifactError, match="damaged or of another kind"):
        read_trained(path, model.config)
    TrainedForm(model=model, ranges=ranges | {"head.bias": 1.0}).save(path)
    with pytest.raises(ArtifactError, match=r"ranges that do not fit the model, at .'head.bias'"):
        read_trained(path, model.config)
    TrainedForm(model=model, ranges={next(iter(ranges)): float("nan")}).save(path)
    with pytest.raises(ArtifactError, match="ranges that do not fit"):
        read_trained(path, model.config)
    del model.layers[0].blocks[0].mlp.fc2
    form.save(path)
    with pytest.raises(ArtifactError, match=r"missing .*layers.0.blocks.0.mlp.fc2.bias"):
        read_trained(path, model.config)
