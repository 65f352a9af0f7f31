"""One exported file of each kind of model against the reference at sizes that nothing traced, every row of every batch.

The reference decides windows, shifts and padding anew at each size, as a model built for that size does; that it then equals
transformers' model built for that size is shown in tests/reference_model. Windows and resolutions are those of published models,
with fewer blocks and channels; ``swinv2-deploy export --prove`` does the same for any model at full size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from reference_model.config import SwinV2Config, make_config
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from reference_model.variants import find_variant
from swinv2_deploy.artifacts import WeightsOrigin
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import Source, bundled_artifact, source_from_artifact, untrained_model
from swinv2_deploy.runtime import OnnxRunner, prove
from swinv2_deploy.runtime.grid import BATCHES, FULL_SIZES, full_grid
from swinv2_deploy.runtime.proof import LIMIT, difference, noise_images

PIXELS = 17 * 100 * 147
"""Most pixels of a batch here: all batches up to 100x147 px, fewer beyond, one image of the largest."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(size: str, resolution: int, window: str, depths: tuple[int, ...] = (2, 1, 2, 2), **task: Any) -> Source:
    """A published model with few channels and blocks; gains, biases and temperatures are away from where they hide an error."""
    full = find_variant(size, resolution, window).config
    config = make_config(
        embed_dim=16,
        depths=depths,
        num_heads=(1, 1, 2, 2),
        window_size=full.window_size,
        image_size=full.image_size,
        pretrained_window_sizes=full.pretrained_window_sizes,
        **task,
    )
    model = untrained_model(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "logit_scale" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    origin = WeightsOrigin(kind="untrained", source="test")
    return Source(model=model, preprocessing=Preprocessing.published(resolution), origin=origin, name=size)


SOURCES = {
    "tiny, window 8, backbone": lambda: small("tiny", 256, "8", task="backbone", out_features=("stem", "stage1", "stage4")),
    # Attention of 576 tokens a window: two blocks where there are several windows, one elsewhere.
    "base, window 24, encoder": lambda: small("base", 384, "12to24", (2, 1, 1, 1), task="encoder"),
    "bundled, classifier": lambda: source_from_artifact(bundled_artifact()),
}
COSTLY = 512 * 512
"""Most pixels of an image for the models that have more to compute."""


@pytest.mark.parametrize("name", SOURCES)
def test_one_file_equals_the_reference_everywhere(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = SOURCES[name]()
    path = tmp_path_factory.mktemp("everywhere") / "artifact"
    artifact = export(source, ExportSpec(smallest=(32, 32), largest=(1024, 1024)), path)
    runner = OnnxRunner(artifact.onnx_files["model"], threads=1)
    grid = full_grid(runner.resolutions, PIXELS)
    if not name.startswith("tiny"):
        grid = {size: batches for size, batches in grid.items() if math.prod(size) <= COSTLY or size == (1024, 640)}

    assert set(grid) >= {size for size in FULL_SIZES if math.prod(size) <= COSTLY}
    assert {batch for size, batches in grid.items() if math.prod(size) <= 100 * 147 for batch in batches} == set(BATCHES)
    found = prove(runner, source.model, grid)
    assert found.failures == ()
    assert LIMIT >= found.max_abs


def test_a_wrong_window_would_be_seen() -> None:
    """The limit is tight enough: the same weights with the windows of another size are far outside it."""
    model = small("tiny", 256, "8", num_classes=100).model
    other = type(model)(replace(SwinV2Config.from_dict(model.config.to_dict()), window_size=7))
    other.load_state_dict(model.state_dict())
    image = torch.from_numpy(noise_images((256, 256), 1, 3))
    with torch.no_grad():
        right, wrong = (made.eval()(image).numpy() for made in (model, other))

    assert 100 * LIMIT < difference(right, wrong)


def test_the_file_of_a_published_model_is_lean(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nodes of full-size tiny, counted where writing them is cheap."""
    import onnx_ir as ir

    from swinv2_deploy.export.swin_graph import SwinGraph

    model: SwinV2 = untrained_model(find_variant("tiny", 256, 8).config, seed=0)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    graph: ir.Model = SwinGraph(model.config, weights, ExportSpec().resolutions(model.config)).build("0")

    assert 1200 >= len(list(graph.graph))
