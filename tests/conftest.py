"""What every test shares: no network, and a model small enough to run anywhere.

Heavy imports stay inside the fixtures, so that tests/meta starts fast.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from reference_model.config import SwinV2Config
    from reference_model.model import SwinV2

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            pytest.fail(f"A test tried to connect to {address[0]}; tests need no network.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def tiny_config() -> SwinV2Config:
    """Classifier of two stages: 32 px, patches of 2, window 4, so that both stages shift, and 5 classes."""
    from reference_model.config import make_config

    return make_config(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, image_size=32, patch_size=2, num_classes=5)


@pytest.fixture
def make_model() -> Iterator[Callable[[SwinV2Config], SwinV2]]:
    """Function from a config to its model in eval mode, seeded, with no bias or gain at a value that hides an error."""
    import torch

    from reference_model.model import build_model

    def make(config: SwinV2Config) -> SwinV2:
        torch.manual_seed(0)
        model = build_model(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.1 * torch.randn_like(parameter)
        return model

    with torch.random.fork_rng():
        yield make


@pytest.fixture
def tiny_model(make_model: Callable[[SwinV2Config], SwinV2], tiny_config: SwinV2Config) -> SwinV2:
    """The model of :func:`tiny_config`."""
    return make_model(tiny_config)
