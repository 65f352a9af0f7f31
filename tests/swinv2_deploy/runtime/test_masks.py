"""The second input of a masked image model: checked, and by default none of it hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import RunnerError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import OnnxRunner, TorchRunner, masks_for


@pytest.fixture
def images() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((3, 3, 30, 44), dtype=np.float32)


@pytest.fixture
def runners(masked_artifact: ModelArtifact) -> list[Any]:
    return [TorchRunner(load_model(masked_artifact)), OnnxRunner(masked_artifact.onnx_files["model"], threads=1)]


def test_runners_agree_with_and_without_a_mask(runners: list[Any], images: Any, masked_artifact: ModelArtifact) -> None:
    masks = masks_for(masked_artifact.config)
    assert masks is not None
    hidden = masks(images)
    found = [[runner.run(images)["reconstruction"], runner.run(images, hidden)["reconstruction"]] for runner in runners]

    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert np.abs(found[0][0] - found[0][1]).max() > 0.01
    none = np.zeros_like(hidden)
    for (whole, _), runner in zip(found, runners, strict=True):
        assert np.array_equal(whole, runner.run(images, none)["reconstruction"])


def test_masks_may_be_made_by_the_runner(images: Any, masked_artifact: ModelArtifact) -> None:
    """Where none is given; one that is given comes first."""
    masks = masks_for(masked_artifact.config)
    assert masks is not None
    plain = TorchRunner(load_model(masked_artifact))
    for runner in (
        TorchRunner(load_model(masked_artifact), masks=masks),
        OnnxRunner(masked_artifact.onnx_files["model"], threads=1, masks=masks),
    ):
        expected = [plain.run(images, mask)["reconstruction"] for mask in (masks(images), ~masks(images))]
        np.testing.assert_allclose(runner.run(images)["reconstruction"], expected[0], atol=1e-4)
        np.testing.assert_allclose(runner.run(images, ~masks(images))["reconstruction"], expected[1], atol=1e-4)


def test_a_mask_depends_on_its_image_alone(images: Any, masked_artifact: ModelArtifact) -> None:
    """So that every row of a batch and every runner hides the same of it."""
    masks = masks_for(masked_artifact.config)
    assert masks is not None
    together = masks(images)

    assert together.shape == (3, 15 * 22)
    assert len({mask.tobytes() for mask in together}) == 3
    assert all(np.array_equal(masks(images[row : row + 1])[0], together[row]) for row in range(3))
    assert masks_for(replace(masked_artifact.config, task="encoder")) is None


@pytest.mark.parametrize("kind", [0, 1], ids=["torch", "onnx"])
@pytest.mark.parametrize(
    "mask",
    [np.zeros((3, 330), np.float32), np.zeros((3, 329), np.bool_), np.zeros((1, 330), np.bool_), np.zeros(330, np.bool_)],
    ids=["float", "short", "one", "flat"],
)
def test_a_mask_that_does_not_fit_is_refused(mask: Any, kind: int, runners: list[Any], images: Any) -> None:
    with pytest.raises(
        RunnerError, match=r"was given .* bool_masked_pos of shape .*; expected bool \(3, 330\) for images of 30x44 px"
    ):
        runners[kind].run(images, mask)


def test_a_mask_for_another_task_is_refused(tiny_artifact: ModelArtifact) -> None:
    for runner in (TorchRunner(load_model(tiny_artifact)), OnnxRunner(tiny_artifact.onnx_files["model"])):
        with pytest.raises(RunnerError, match=r"was given bool_masked_pos; a model for classification takes images alone"):
            runner.run(np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 256), np.bool_))


def test_a_file_without_its_mask_is_refused(
    masked_artifact: ModelArtifact, tiny_artifact: ModelArtifact, tmp_path: Path, edit_metadata: Callable[..., Any]
) -> None:
    """The inputs must be those of the task that the file says it is for."""
    for artifact, other, words in (
        (tiny_artifact, masked_artifact, "takes .*; expected two inputs, .* and bool_masked_pos bool"),
        (masked_artifact, tiny_artifact, "bool_masked_pos bool .*; expected one input, pixel_values"),
    ):
        proto = onnx.load(artifact.onnx_files["model"])
        edit_metadata("config", other.config.to_dict())(proto)
        onnx.save(proto, tmp_path / "model.onnx")
        with pytest.raises(RunnerError, match=words):
            OnnxRunner(tmp_path / "model.onnx")
