"""A runner pinned to one size: the same numbers, nothing left to compute of the size, and every other size refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import RunnerError, SpecError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import BackEnd, OnnxRunner, OpenVinoRunner, TorchRunner, load_runner, masks_for
from swinv2_deploy.runtime.fitting import fitted, serialized
from swinv2_deploy.runtime.onnx_runner import session_options

RUNNERS = [OnnxRunner, OpenVinoRunner]


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("back_end", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(1, 32, 32), (3, 16, 96), (2, 57, 41)])
def test_a_pinned_runner_equals_the_reference(
    tiny_artifact: ModelArtifact, back_end: BackEnd, size: tuple[int, int, int]
) -> None:
    """At a size that needs no padding, one whose windows shrink, and one that pads."""
    images = noise(size[0], 3, *size[1:])
    expected = TorchRunner(load_model(tiny_artifact)).run(images)["logits"]
    runner = load_runner(tiny_artifact, "model", back_end=back_end, threads=1, pinned=size)

    np.testing.assert_allclose(runner.run(images)["logits"], expected, atol=1e-4)
    assert runner.resolutions.min == runner.resolutions.max == size[1:]


@pytest.mark.parametrize("back_end", ["onnxruntime", "openvino"])
def test_outputs_keep_their_names(
    make_artifact: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact, back_end: BackEnd
) -> None:
    """Where a size leaves nothing to cut from a gray image, OpenVINO drops the cut and calls the output by two names."""
    task = {"task": "image_reconstruction", "upscale": 2, "num_channels": 1, "num_classes": 0, "labels": ()}
    artifact = make_artifact(replace(tiny_artifact.config, **task))
    images = noise(1, 1, 32, 32)
    runner = load_runner(artifact, "model", back_end=back_end, threads=1, pinned=(1, 32, 32))

    assert list(runner.run(images)) == list(runner.output_names) == ["reconstruction"]


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 32, 36), (1, 3, 64, 64)])
def test_any_other_size_is_refused(tiny_artifact: ModelArtifact, kind: Any, shape: tuple[int, ...]) -> None:
    """Batch, height or width; the message names a way out."""
    runner = kind(tiny_artifact.onnx_files["model"], threads=1, pinned=(1, 32, 32))
    with pytest.raises(RunnerError, match=r"pinned to .*make another runner|takes only 32x32 px"):
        runner.run(noise(*shape))
    assert runner.run(noise(1, 3, 32, 32))["logits"].shape[0] == 1


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("pinned", [(0, 32, 32), (1, 32), (1, -32, 32), (1.0, 32, 32)])
def test_what_is_no_size_is_refused(tiny_artifact: ModelArtifact, kind: Any, pinned: Any) -> None:
    with pytest.raises(SpecError, match="cannot be pinned"):
        kind(tiny_artifact.onnx_files["model"], threads=1, pinned=pinned)


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_size_outside_the_range_is_refused(tiny_artifact: ModelArtifact, kind: Any) -> None:
    """While loading, before anything is computed wrongly."""
    with pytest.raises(RunnerError, match="cannot be pinned"):
        kind(tiny_artifact.onnx_files["model"], threads=1, pinned=(1, 8, 100_000))


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_masked_image_model_is_pinned_with_its_mask(masked_artifact: ModelArtifact, kind: Any) -> None:
    images, masks = noise(2, 3, 30, 44), masks_for(masked_artifact.config)
    expected = TorchRunner(load_model(masked_artifact), masks=masks).run(images)["reconstruction"]
    runner = kind(masked_artifact.onnx_files["model"], threads=1, masks=masks, pinned=(2, 30, 44))

    np.testing.assert_allclose(runner.run(images)["reconstruction"], expected, atol=1e-4)


def test_onnx_runtime_computes_nothing_of_the_size_any_more(tiny_artifact: ModelArtifact, tmp_path: Path) -> None:
    """The optimized graph of a pinned session has no operator that indices and masks are made with; that of a free one has."""
    import onnxruntime

    file, shapes, kinds = tiny_artifact.onnx_files["model"], {"pixel_values": (2, 3, 32, 32)}, []
    pinned = serialized(fitted(file, shapes))
    for number, content in enumerate((file.read_bytes(), pinned)):
        options = session_options(1, exact=False)
        options.optimized_model_filepath = str(tmp_path / f"{number}.onnx")
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(tmp_path / f"{number}.onnx", load_external_data=False).graph.node
        kinds.append({node.op_type for node in nodes} & {"Range", "Shape", "Mod", "Equal", "Where", "Slice", "Concat", "Pad"})

    assert kinds[0] >= {"Range", "Mod", "Equal", "Pad"}
    assert not kinds[1]


def test_openvino_knows_every_shape(tiny_artifact: ModelArtifact) -> None:
    runner = OpenVinoRunner(tiny_artifact.onnx_files["model"], threads=1, pinned=(2, 32, 32))
    assert not any(port.partial_shape.is_dynamic for port in (*runner._model.inputs, *runner._model.outputs))


def test_an_engine_is_not_pinned(tiny_artifact: ModelArtifact) -> None:
    with pytest.raises(SpecError, match="profile"):
        load_runner(tiny_artifact, "model", back_end="tensorrt", pinned=(1, 32, 32))
