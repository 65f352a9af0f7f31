"""One exported file of the full-size tiny model against the reference at sizes that nothing traced, every row of every batch.

The reference decides windows, shifts and padding anew at each size, as a model built for that size does; that it then equals
transformers' model built for that size is shown in tests/reference_model.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from reference_model.variants import find_variant
from swinv2_deploy.artifacts import WeightsOrigin
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import Source, untrained_model
from swinv2_deploy.runtime import OnnxRunner

SIZES = [(256, 256), (320, 320), (288, 416), (257, 301), (512, 512), (640, 480), (32, 32), (100, 147)]
BATCHES = (1, 2, 3, 17)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tiny() -> SwinV2:
    """Tiny, window 8, seeded, with gains, biases and temperatures away from where they hide an error."""
    model = untrained_model(find_variant("tiny", 256, 8).config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "logit_scale" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def runner(tiny: SwinV2, tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    source = Source(
        model=tiny,
        preprocessing=Preprocessing.published(256),
        origin=WeightsOrigin(kind="untrained", source="test"),
        name="tiny",
    )
    path = tmp_path_factory.mktemp("tiny") / "artifact"
    return OnnxRunner(export(source, ExportSpec(), path).onnx_files["model"])


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_row_of_every_batch_equals_the_reference(tiny: SwinV2, runner: OnnxRunner, size: tuple[int, int]) -> None:
    images = torch.randn(max(BATCHES), 3, *size, generator=torch.Generator().manual_seed(size[0] * 1000 + size[1]))
    with torch.no_grad():
        expected = torch.cat([tiny(part) for part in images.split(4)]).numpy()
    for batch in BATCHES:
        found = runner.run(images[:batch].numpy())["logits"]
        assert (batch, 1000) == found.shape
        assert TOLERANCE >= float(np.abs(found - expected[:batch]).max())


def test_the_file_is_lean(runner: OnnxRunner) -> None:
    graph = onnx.load(runner.path).graph

    assert 1200 >= len(graph.node)


def test_a_wrong_window_would_be_seen(tiny: SwinV2, runner: OnnxRunner) -> None:
    """The tolerance is tight enough: the same weights with the windows of another size are far outside it."""
    other = SwinV2Config.from_dict(tiny.config.to_dict() | {"window_size": 7})
    frozen = type(tiny)(other)
    frozen.load_state_dict(tiny.state_dict())
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wrong = frozen.eval()(image).numpy()

    assert 100 * TOLERANCE < float(np.abs(wrong - runner.run(image.numpy())["logits"]).max())
