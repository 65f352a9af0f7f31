"""The reference model as a runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from swinv2_deploy.errors import RunnerError
from swinv2_deploy.runtime import TorchRunner


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("classification", ("logits",)),
        ("encoder", ("last_hidden_state", "pooler_output")),
        ("backbone", ("feature_maps.stem", "feature_maps.stage2")),
        ("masked_image_modeling", ("reconstruction",)),
        ("image_reconstruction", ("reconstruction",)),
    ],
)
def test_outputs_are_named_as_in_onnx(
    task: str, names: tuple[str, ...], tiny_config: SwinV2Config, make_model: Callable[[SwinV2Config], SwinV2]
) -> None:
    """Every task's outputs are arrays under the names of the graph, a row an image."""
    features = ("stem", "stage2") if task == "backbone" else ()
    upscale = 4 if task == "image_reconstruction" else 1
    config = replace(tiny_config, task=task, out_features=features, upscale=upscale)  # type: ignore[arg-type]
    runner = TorchRunner(make_model(config))

    outputs = runner.run(np.zeros((3, 3, 33, 20), np.float32))

    assert names == runner.output_names == tuple(outputs)
    assert {(3, np.dtype(np.float32))} == {(len(array), array.dtype) for array in outputs.values()}


def test_double_precision_leaves_the_model_alone(tiny_model: SwinV2) -> None:
    """The float64 judge is a copy, and it rounds differently."""
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)

    exact = TorchRunner(tiny_model, double=True).run(images)["logits"]
    rounded = TorchRunner(tiny_model).run(images)["logits"]

    assert next(tiny_model.parameters()).dtype == torch.float32
    assert 0 < np.abs(exact - rounded).max() < 1e-5


def test_threads_are_restored(tiny_model: SwinV2) -> None:
    """A number of threads holds for the run only."""
    before = torch.get_num_threads()

    TorchRunner(tiny_model, threads=before + 1).run(np.zeros((1, 3, 32, 32), np.float32))

    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 32, 32)),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((1, 1, 32, 32), np.float32),
        np.zeros((0, 3, 32, 32), np.float32),
    ],
    ids=["float64", "no-batch", "gray", "empty"],
)
def test_other_images_are_refused(images: np.ndarray, tiny_model: SwinV2) -> None:
    """The message tells what was expected."""
    with pytest.raises(RunnerError, match=r"torch float32 was given .*expected"):
        TorchRunner(tiny_model).run(images)
