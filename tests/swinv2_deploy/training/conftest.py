"""Images a toy model learns in seconds, and the toy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from reference_model.config import SwinV2Config
    from swinv2_deploy.training.data import TrainingImages


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small matrices gain nothing from threads; the processor is where every bit is promised."""
    import torch

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 24 images a child can tell apart: stripes that lie, and stripes that stand. A flip changes neither."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("stripes")
    noise = np.random.default_rng(0)
    for name in ("lying", "standing"):
        (root / name).mkdir()
        for index in range(24):
            wave = 127 + 100 * np.sin(np.arange(20) * 2 * np.pi / 5 + noise.uniform(0, 6))
            image = np.broadcast_to(wave[:, None] if name == "lying" else wave[None, :], (20, 20))
            pixels = image[..., None] + noise.normal(0, 15, (20, 20, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def images(stripes: Path) -> TrainingImages:
    """The 48 of them."""
    from calibration.dataset import ImageFolder
    from swinv2_deploy.training.data import TrainingImages

    folder = ImageFolder.open(stripes)
    return TrainingImages(list(folder.paths), list(folder.labels.values()), 20)


@pytest.fixture
def config(tiny_config: SwinV2Config) -> SwinV2Config:
    """Two stages of two blocks at 16 px, with stochastic depth."""
    return replace(tiny_config, image_size=(16, 16), num_classes=2, labels=("lying", "standing"), drop_path_rate=0.3)
