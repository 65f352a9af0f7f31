"""The batched products of attention are places to look at: they hold nothing and change no bit."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reference_model.attention import Product, WindowAttention

WINDOW = (4, 4)


def attention() -> WindowAttention:
    torch.manual_seed(0)
    module = WindowAttention(dim=12, num_heads=3, head_dim=4, pretrained_window=None, qkv_bias=True).eval()
    with torch.no_grad():
        for name in ("q_bias", "v_bias", "logit_scale"):
            parameter = getattr(module, name)
            parameter += torch.randn_like(parameter)
    return module


def written_out(module: WindowAttention, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Equation 2 as one expression after the other, and the four tensors that are multiplied."""
    rows, tokens, _ = x.shape
    bias = module.qkv_bias()
    assert bias is not None
    q, k, v = (module.qkv(x) + bias).view(rows, tokens, 3, module.num_heads, module.head_dim).permute(2, 0, 3, 1, 4)
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    scale = module.logit_scale.clamp(max=math.log(100.0)).exp()
    logits = q @ k.transpose(-2, -1) * scale + module.cpb_mlp(WINDOW, None)
    weights = logits.softmax(dim=-1)
    return module.proj((weights @ v).transpose(1, 2).reshape(rows, tokens, -1)), [q, k.transpose(-2, -1), weights, v]


def test_products_as_modules_change_no_bit_and_add_no_parameter() -> None:
    module = attention()
    x = torch.randn(5, 16, 12)
    with torch.no_grad():
        expected, _ = written_out(module, x)
        assert torch.equal(module(x, WINDOW, None), expected)
    assert not [name for name in module.state_dict() if name.startswith(("qk.", "av."))]


def test_both_tensors_of_each_product_can_be_watched() -> None:
    """Whole, and a few windows at a time."""
    module = attention()
    x = torch.randn(5, 16, 12)
    seen: dict[str, list[tuple[Tensor, ...]]] = {"qk": [], "av": []}
    for name, found in seen.items():
        product = module.get_submodule(name)
        assert isinstance(product, Product)
        product.register_forward_pre_hook(lambda _, arguments, found=found: found.append(arguments))
    with torch.no_grad():
        module(x, WINDOW, None)
        [first], [second] = seen["qk"], seen["av"]
        assert all(map(torch.equal, (*first, *second), written_out(module, x)[1]))
        module.window_chunk = 2
        module(x, WINDOW, None)
    assert [part[0].shape[0] for part in seen["qk"][1:]] == [part[0].shape[0] for part in seen["av"][1:]] == [2, 2, 1]
