"""The reference model with fake quantizers at its sites: what an INT8 file computes, in PyTorch, with gradients.

The quantizers are ModelOpt's ``TensorQuantizer``: one for what enters a linear layer and one for its weight, or one for each of the
two activations of a batched product. A learned range goes through ModelOpt's door for other arithmetic: its own learned ranges are
for blocks of FP4 alone.

Weights are scaled by the largest magnitude of each output channel at every step, as ``quantize`` scales them when they are done, so
training sees exactly the rounding that ships. Ranges of activations come from a calibration table; they stay as they are, or are
learned with the weights.

Source: learned step size quantization (arXiv:1902.08153) for the gradient of a range; nvidia-modelopt 0.47
torch/quantization/nn/modules/tensor_quantizer.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_model.attention import Product
from swinv2_deploy.errors import BackendMissing, QuantizeError
from swinv2_deploy.modeling.sites import LEVELS, input_names, ranges_by_site

if TYPE_CHECKING:
    from collections.abc import Iterable

LEARNED = "swinv2_deploy.learned_range"
"""Name of the arithmetic registered with ModelOpt."""

RANGE_GAIN = 100.0
"""A learned range moves this many times faster, relative to itself, than a weight: Adam ignores the size of a gradient."""


class FakeQuantLinear(nn.Linear):
    """A linear layer that rounds its input and its weight to INT8 before it multiplies in float.

    Args:
        linear: Layer whose parameters it takes over.
        amax: Largest magnitude of the input that is represented.
        learned: Whether that range is trained.

    Raises:
        QuantizeError: When the range is not positive.
        BackendMissing: When ModelOpt is not installed.
    """

    def __init__(self, linear: nn.Linear, amax: float, *, learned: bool) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.input_quantizer = _quantizer(amax=amax, learned=learned).to(linear.weight.device)
        self.weight_quantizer = _quantizer(axis=0)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)

    @property
    def amax(self) -> tuple[float]:
        """Largest magnitude of the input that is represented, as it is now."""
        return (_range(self.input_quantizer),)


class FakeQuantProduct(Product):
    """A batched product that rounds both tensors to INT8 before it multiplies in float.

    Args:
        amax: Largest magnitude of either tensor that is represented.
        learned: Whether these ranges are trained.

    Raises:
        QuantizeError: When a range is not positive.
        BackendMissing: When ModelOpt is not installed.
    """

    def __init__(self, amax: Sequence[float], *, learned: bool) -> None:
        super().__init__()
        first, second = amax
        self.first_quantizer = _quantizer(amax=first, learned=learned)
        self.second_quantizer = _quantizer(amax=second, learned=learned)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., m, c) and (..., c, n) to (..., m, n)."""
        return super().forward(self.first_quantizer(a), self.second_quantizer(b))

    @property
    def amax(self) -> tuple[float, float]:
        """Largest magnitude of either tensor that is represented, as it is now."""
        return _range(self.first_quantizer), _range(self.second_quantizer)


FakeQuantized = FakeQuantLinear | FakeQuantProduct


def fake_quantize(model: nn.Module, ranges: Mapping[str, float], *, learned: bool = False) -> None:
    """Put fake quantizers at the sites of a model, in place.

    Args:
        model: Reference model; its parameters stay the same objects.
        ranges: Largest magnitude of every activation that enters a site, by name.
        learned: Whether the ranges are trained with the weights.

    Raises:
        QuantizeError: When a site is no product of the model, lacks a range, or its range is not positive.
        BackendMissing: When ModelOpt is not installed.
    """
    sites = ranges_by_site(ranges)
    wrong = unknown_sites(model, sites)
    if wrong or not sites:
        raise QuantizeError(
            f"The model has no linear layers or batched products {wrong[:5]}; expected at least one site, and ranges of this model."
        )
    modules = dict(model.named_modules())
    device = next(model.parameters()).device
    for site, amax in sites.items():
        module, (parent, _, name) = modules[site], site.rpartition(".")
        if isinstance(module, nn.Linear):
            setattr(modules[parent], name, FakeQuantLinear(module, amax[0], learned=learned))
        else:
            setattr(modules[parent], name, FakeQuantProduct(amax, learned=learned).to(device))


def unknown_sites(model: nn.Module, sites: Iterable[str]) -> list[str]:
    """Those that are neither a linear layer nor a batched product of the model, sorted."""
    modules = dict(model.named_modules())
    return sorted(
        site for site in sites if not isinstance(modules.get(site), nn.Linear if len(input_names(site)) == 1 else Product)
    )


def quantized_layers(model: nn.Module) -> dict[str, FakeQuantized]:
    """The layers and batched products with fake quantizers, by name, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantized)}


def ranges_of(model: nn.Module) -> dict[str, float]:
    """Name of every activation that enters a site to the largest magnitude represented there."""
    return {
        name: amax
        for site, layer in quantized_layers(model).items()
        for name, amax in zip(input_names(site), layer.amax, strict=True)
    }


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of the model without its quantizers: what the reference model loads."""
    added = tuple(f"{name}.{part}." for name, layer in quantized_layers(model).items() for part in _quantizers(layer))
    return {name: value for name, value in model.state_dict().items() if not name.startswith(added)}


@contextmanager
def only_quantized(model: nn.Module, sites: Iterable[str]) -> Iterator[None]:
    """Let only these sites round while the context lasts; all others pass their values on.

    Raises:
        QuantizeError: When one has no fake quantizer.
    """
    layers, wanted = quantized_layers(model), set(sites)
    if not wanted <= layers.keys():
        raise QuantizeError(
            f"The sites {sorted(wanted - layers.keys())} have no fake quantizers; expected some of {list(layers)}."
        )
    quantizers = [(quantizer, name in wanted) for name, layer in layers.items() for quantizer in _quantizers(layer).values()]
    before = [quantizer.is_enabled for quantizer, _ in quantizers]
    _switch((quantizer, on) for quantizer, on in quantizers)
    try:
        yield
    finally:
        _switch((quantizer, on) for (quantizer, _), on in zip(quantizers, before, strict=True))


def _quantizers(layer: FakeQuantized) -> dict[str, Any]:
    """The quantizers of a site by the name of their attribute; they are its only submodules."""
    return dict(layer.named_children())


def _range(quantizer: Any) -> float:
    return float(_input_amax(quantizer).detach())


def _switch(quantizers: Iterable[tuple[Any, bool]]) -> None:
    for quantizer, on in quantizers:
        (quantizer.enable if on else quantizer.disable)()


def _quantizer(*, amax: float | None = None, axis: int | None = None, learned: bool = False) -> Any:
    """ModelOpt's quantizer: of one range for the whole tensor, or one for each index of ``axis`` that follows the tensor."""
    if amax is not None and not (math.isfinite(amax) and amax > 0):
        raise QuantizeError(f"A range is {amax}; expected a positive number. Calibrate again on real images.")
    try:
        from modelopt.torch.quantization.config import QuantizerAttributeConfig
        from modelopt.torch.quantization.nn import TensorQuantizer
        from modelopt.torch.quantization.nn.modules.tensor_quantizer import is_registered_quant_backend, register_quant_backend
    except ImportError as error:
        raise BackendMissing(
            f"Fake quantization needs nvidia-modelopt ({error}); install it with: pip install 'swinv2-deploy[qat]'"
        ) from error
    if not is_registered_quant_backend(LEARNED):
        register_quant_backend(LEARNED, _with_learned_range)
    # A weight never reaches -128, an activation may: the same as in the files.
    config = QuantizerAttributeConfig(
        num_bits=8, axis=axis, narrow_range=axis is not None, backend=LEARNED if learned else None
    )
    quantizer = TensorQuantizer(config, amax=None if amax is None else torch.tensor(amax, dtype=torch.float32))
    if learned:
        quantizer.register_parameter("log_range", nn.Parameter(torch.zeros(())))
    return quantizer


def _input_amax(quantizer: Any) -> Tensor:
    """Range of the whole tensor, a scalar, with its gradient where it is learned."""
    amax: Tensor = quantizer._amax
    shift = quantizer._parameters.get("log_range")
    return amax if shift is None else amax * torch.exp(RANGE_GAIN * shift)


def _with_learned_range(x: Tensor, quantizer: Any) -> Tensor:
    """What ModelOpt calls for a tensor of any shape: the same shape, rounded, with a gradient for the range."""
    rounded: Tensor = _LearnedRange.apply(x.float(), _input_amax(quantizer))  # type: ignore[no-untyped-call]
    return rounded.to(x.dtype)


class _LearnedRange(torch.autograd.Function):
    """Rounds to INT8; the gradient passes where nothing is clipped, and the range has one of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, amax: Tensor) -> Tensor:
        ctx.save_for_backward(x, amax)
        return (x * (LEVELS / amax)).round_().clamp_(-LEVELS - 1, LEVELS).div_(LEVELS / amax)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, amax = ctx.saved_tensors
        steps = x * (LEVELS / amax)
        kept = steps.clamp(-LEVELS - 1, LEVELS)
        inside = kept == steps
        # d(step * round(x / step)) / d(step): the rounding error inside, the end of the range outside.
        of_step = torch.where(inside, steps.round() - steps, kept)
        # The published factor, which keeps the size of this gradient beside those of the weights.
        factor = 1.0 / math.sqrt(x.numel() * LEVELS)
        return gradient * inside, (gradient * of_step).sum() * factor / LEVELS
