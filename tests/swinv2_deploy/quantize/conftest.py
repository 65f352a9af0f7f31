"""What the tests of quantization share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    import numpy as np

    from swinv2_deploy.artifacts import ModelArtifact
    from swinv2_deploy.quantize.ptq import QuantizeResult


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads, and bits are the same for the same number of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def result(tiny_artifact: ModelArtifact, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    """The tiny artifact, quantized in both forms."""
    from calibration.dataset import ImageFolder
    from swinv2_deploy.quantize.ptq import quantize
    from swinv2_deploy.quantize.spec import QuantizeSpec

    spec = QuantizeSpec(calibrator="max", unsigned="always")
    return quantize(tiny_artifact, spec, ImageFolder.open(photos), tmp_path_factory.mktemp("quantized") / "tiny-int8")


@pytest.fixture
def images_of() -> Callable[..., np.ndarray[Any, Any]]:
    """Function from a folder of photographs to the first of them, prepared for the tiny artifact (B, 3, 32, 32)."""
    import numpy as np

    from calibration.dataset import ImageFolder
    from reference_model.preprocessing import Preprocessing, read_image

    def prepare(photos: Path, count: int = 4) -> np.ndarray[Any, Any]:
        recipe = Preprocessing(size=(32, 32), resize_shortest=36)
        return np.stack([recipe(read_image(path)) for path in ImageFolder.open(photos).paths[:count]])

    return prepare
