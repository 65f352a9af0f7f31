"""Weights whose every number matters, and the published implementation to compare with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from reference_model.checkpoint import config_to_huggingface, state_to_huggingface
from reference_model.config import SwinV2Config, make_config
from reference_model.model import SwinV2, build_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads, and other work on the machine keeps its cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def randomized() -> Callable[[SwinV2Config], SwinV2]:
    """Function from a config to a model in eval mode with every parameter random.

    Post-norm gains too: as published they start at zero, which makes every block the identity and any two models equal.
    """

    def make(config: SwinV2Config, seed: int = 0) -> SwinV2:
        with torch.device("meta"):
            model = build_model(config)
        model = model.to_empty(device="cpu").eval()
        randomize(model, seed)
        return model

    return make


def randomize(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("logit_scale"):
                parameter.copy_(2.5 + 1.5 * noise)  # from cool to beyond the clamp at ln(100)
                if "blocks.1." in name:  # shifted: see test_masked_pairs_leak_where_a_head_is_sharp
                    parameter.clamp_(max=3.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise)


@pytest.fixture
def published() -> Callable[[SwinV2], Any]:
    """Function from our classifier, encoder or backbone to transformers' with the same weights, built for ``image_size``."""
    transformers = pytest.importorskip("transformers")
    from transformers.initialization import no_init_weights

    def make(model: SwinV2, image_size: tuple[int, int] | None = None) -> Any:
        values = config_to_huggingface(model.config)
        if image_size is not None:
            values["image_size"] = list(image_size)
        with no_init_weights():
            theirs = getattr(transformers, values["architectures"][0])(transformers.Swinv2Config(**values))
        theirs.load_state_dict(state_to_huggingface(model.state_dict(), model.config), strict=True)
        return theirs.eval()

    return make


@pytest.fixture
def images_of() -> Callable[..., Tensor]:
    """Function from a size in px to normalized images (B, 3, height, width)."""

    def make(height: int, width: int, batch: int = 1) -> Tensor:
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))

    return make


@pytest.fixture
def golden() -> Callable[[str], tuple[SwinV2Config, dict[str, Tensor], dict[str, Tensor]]]:
    """Function from a golden file's name to its config, its state dict and its inputs and outputs."""

    def read(name: str) -> tuple[SwinV2Config, dict[str, Tensor], dict[str, Tensor]]:
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            values = json.loads(file.metadata()["config"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no dict
        state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
        classes = next((len(value) for key, value in state.items() if key in ("head.bias", "head.fc.bias")), 0)
        config = make_config(**values, image_size=32, task="classification" if classes else "encoder", num_classes=classes)
        return config, state, {key: value for key, value in tensors.items() if not key.startswith("state.")}

    return read
