"""Less memory, the same result: outputs and gradients with blocks recomputed and windows taken in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from reference_model.config import ConfigError, SwinV2Config
from reference_model.memory import limit_memory
from reference_model.model import SwinV2, part_of_batch

SIZES = [(32, 32), (40, 24), (17, 50)]


@pytest.fixture
def model(randomized: Callable[[SwinV2Config], SwinV2], tiny_config: SwinV2Config) -> SwinV2:
    """Every parameter random; both stages shift, so both have masks."""
    return randomized(replace(tiny_config, drop_path_rate=0.4))


def images(height: int, width: int) -> Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))


def gradients(model: SwinV2, size: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a training step, with stochastic depth."""
    torch.manual_seed(3)
    model.train()
    model.zero_grad(set_to_none=True)
    loss = model(images(*size)).square().mean()  # type: ignore[attr-defined]  # a classifier gives a tensor
    loss.backward()
    return loss.detach(), {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("chunk", [1, 5, 7, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_chunks_of_windows_give_the_same_logits(chunk: int, size: tuple[int, int], model: SwinV2) -> None:
    """Whole images or not, one window at a time or all: masks go to the windows they belong to."""
    with torch.no_grad():
        whole = model(images(*size))
        limit_memory(model, window_chunk=chunk)
        parts = model(images(*size))
    assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_mask_at_the_wrong_window_would_be_seen(model: SwinV2, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the masks the logits are others."""
    with torch.no_grad():
        whole = model(images(32, 32))
        monkeypatch.setattr("reference_model.model.shift_mask", lambda _: None)
        assert not torch.allclose(model(images(32, 32)), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("blocks", "chunk"), [(True, 0), (False, 7), (True, 7)], ids=["blocks", "chunks", "both"])
def test_gradients_are_the_same(blocks: bool, chunk: int, size: tuple[int, int], model: SwinV2) -> None:
    """Recomputed blocks to the bit, stochastic depth included; chunks up to the order in which floats are added."""
    loss, wanted = gradients(model, size)
    limit_memory(model, checkpoint_blocks=blocks, window_chunk=chunk)
    found_loss, found = gradients(model, size)

    assert found.keys() == wanted.keys() == dict(model.named_parameters()).keys()
    if chunk == 0:
        assert torch.equal(found_loss, loss)
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert torch.allclose(found_loss, loss, rtol=1e-5)
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= 1e-4 * float(value.abs().max()), name


def test_less_is_kept_for_the_gradient(model: SwinV2) -> None:
    """Bytes of what autograd keeps fall with each setting, which is what it is for."""

    def kept() -> int:
        stored: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.train()(images(32, 32)).square().mean()
        del loss
        return sum(stored.values())

    plain = kept()
    limit_memory(model, window_chunk=8)
    chunked = kept()
    limit_memory(model, checkpoint_blocks=True)
    checkpointed = kept()

    assert chunked < 0.85 * plain
    assert checkpointed < 0.5 * plain


def test_chunks_keep_float32_logits_under_autocast(model: SwinV2) -> None:
    """The same bfloat16 products in chunks as at once."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model(images(32, 32)).float()
        limit_memory(model, window_chunk=5)
        parts = model(images(32, 32)).float()
    assert torch.allclose(parts, whole, rtol=2e-2, atol=2e-2)


def test_settings_can_be_taken_back(model: SwinV2) -> None:
    """A model is left as it was made."""
    limit_memory(model, checkpoint_blocks=True, window_chunk=3)
    limit_memory(model)
    settings = [(stage.checkpoint_blocks, [block.attn.window_chunk for block in stage.blocks]) for stage in model.layers]  # type: ignore[union-attr]
    assert settings == [(False, [0, 0]), (False, [0, 0])]


def test_what_cannot_be_limited_is_refused(model: SwinV2) -> None:
    """A setting that nothing heeds would be believed."""
    with pytest.raises(ConfigError, match="Linear holds no stage of a SwinV2"):
        limit_memory(nn.Linear(2, 2), window_chunk=4)
    with pytest.raises(ConfigError, match="window_chunk is -1"):
        limit_memory(model, window_chunk=-1)


def test_a_part_of_a_batch_drops_the_same_branches(model: SwinV2) -> None:
    """Rows 2 and 3 of 4 alone come out as they do among all four; without being told, they would not."""
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.train()

    def logits(chosen: Tensor) -> Tensor:
        torch.manual_seed(3)
        with torch.no_grad():
            found: Tensor = model(chosen)  # type: ignore[assignment]
        return found

    whole = logits(pixels)
    part_of_batch(model, (2, 4))
    told = logits(pixels[2:])
    part_of_batch(model, None)

    assert torch.allclose(told, whole[2:], atol=1e-5)
    assert not torch.allclose(logits(pixels[2:]), whole[2:], atol=1e-2)
