"""The runner over a fake engine that adds up every image; on a real GPU only where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import BackendMissing, RunnerError
from swinv2_deploy.runtime import load_runner
from swinv2_deploy.runtime.tensorrt import Backend
from swinv2_deploy.runtime.tensorrt.gpu import Gpu, find_gpu
from swinv2_deploy.runtime.tensorrt.runner import TensorRtRunner

Make = Callable[[str], Backend]
WithEngine = Callable[..., ModelArtifact]
FLAVORS = ("tensorrt10", "tensorrt11", "tensorrt_rtx")


def images(batch: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).random((batch, 3, height, width), np.float32)


def expected(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return pixels.reshape(len(pixels), -1).sum(axis=1, dtype=np.float64)[:, None] * np.arange(1, 8)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_outputs_are_those_of_the_images_given(
    make_backend: Make, with_engine: WithEngine, host_device: Any, flavor: str
) -> None:
    backend = make_backend(flavor)
    runner = TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device)
    for seed in range(4):  # the third run and later ones are replayed
        pixels = images(2, seed=seed)
        np.testing.assert_allclose(runner.run(pixels)["logits"], expected(pixels), rtol=1e-5)
    assert (host_device.recorded, host_device.replayed) == (1, 3)
    assert runner.provider == f"{backend.flavor} {backend.version}, host"


def test_a_large_batch_is_run_in_parts(make_backend: Make, with_engine: WithEngine, host_device: Any) -> None:
    backend = make_backend("tensorrt11")
    runner = TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device, graphs=False)
    pixels = images(11)
    np.testing.assert_allclose(runner.run(pixels)["logits"], expected(pixels), rtol=1e-5)
    assert [shape[0][0] for shape in backend.trt.calls["execute"]] == [4, 4, 3]


def test_results_of_one_run_survive_the_next(make_backend: Make, with_engine: WithEngine, host_device: Any) -> None:
    backend = make_backend("tensorrt11")
    runner = TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device)
    first = runner.run(images(1))["logits"]
    before = first.copy()
    runner.run(images(1, seed=1))
    np.testing.assert_array_equal(first, before)


def test_each_size_runs_in_the_profile_made_for_it(make_backend: Make, with_engine: WithEngine, host_device: Any) -> None:
    backend = make_backend("tensorrt11")
    small, large = [[1, 3, 32, 32]] * 3, [[1, 3, 64, 64], [2, 3, 64, 64], [2, 3, 64, 64]]
    runner = TensorRtRunner(with_engine(backend, small, large), "fast", backend=backend, device=host_device)
    for side in (64, 32):
        pixels = images(1, side, side)
        np.testing.assert_allclose(runner.run(pixels)["logits"], expected(pixels), rtol=1e-5)
    assert backend.trt.calls["profile"] == [(1,), (0,)]
    with pytest.raises(RunnerError, match=r"1x3x48x48, which none of its profiles takes: 1x3x32x32 to 1x3x32x32; 1x3x64x64 to"):
        runner.run(images(1, 48, 48))


def test_a_size_outside_the_file_is_refused(make_backend: Make, with_engine: WithEngine, host_device: Any) -> None:
    backend = make_backend("tensorrt11")
    runner = TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device)
    with pytest.raises(RunnerError, match="outside what this file was exported for"):
        runner.run(images(1, 128, 128))


def test_only_the_shapes_used_last_are_kept(make_backend: Make, with_engine: WithEngine, host_device: Any) -> None:
    backend = make_backend("tensorrt11")
    runner = TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device, slots=2)
    for side in (16, 32, 16, 48, 16, 32):
        runner.run(images(1, side, side))
    assert len(backend.trt.calls["context"]) == 4  # 16, 32, 48, and 32 again


@pytest.mark.parametrize("graphs", [True, False])
def test_tensors_on_the_device_stay_there(make_backend: Make, with_engine: WithEngine, host_device: Any, graphs: bool) -> None:
    backend = make_backend("tensorrt11")
    runner = TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device, graphs=graphs)
    for seed in range(3):
        pixels = torch.from_numpy(images(2, seed=seed))
        found = runner.run_torch(pixels)["logits"]
        np.testing.assert_allclose(found.numpy(), expected(pixels.numpy()), rtol=1e-5)
    with pytest.raises(RunnerError, match=r"without gaps in memory; got \['pixel_values'\], gaps in \['pixel_values'\]"):
        runner.run_torch(torch.zeros(2, 3, 32, 64)[..., ::2])


def test_kernels_of_rtx_are_kept_after_the_first_run(
    make_backend: Make, with_engine: WithEngine, host_device: Any, tmp_path: Path
) -> None:
    backend = make_backend("tensorrt_rtx")
    artifact = with_engine(backend)
    for expected in (b"+jit", b"+jit+jit"):
        runner = TensorRtRunner(artifact, "fast", backend=backend, device=host_device)
        runner.run(images(1))
        [kept] = (tmp_path / "cache" / "swinv2-deploy" / "kernels").iterdir()
        assert kept.read_bytes() == expected
        runner.run(images(1))
        assert kept.read_bytes() == expected


def test_the_back_end_is_the_one_that_built_the_engine(
    make_backend: Make, with_engine: WithEngine, host_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swinv2_deploy.runtime.tensorrt import runner

    backend = make_backend("tensorrt_rtx")
    asked: list[str | None] = []
    monkeypatch.setattr(runner, "choose_backend", lambda name: asked.append(name) or backend)
    TensorRtRunner(with_engine(backend), "fast", device=host_device)
    assert asked == ["tensorrt-rtx"]


def test_an_address_that_is_refused_is_no_result(
    make_backend: Make, with_engine: WithEngine, host_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend("tensorrt11")
    monkeypatch.setattr(backend.trt.IExecutionContext, "set_tensor_address", lambda self, name, memory: False)
    runner = TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device)
    with pytest.raises(RunnerError, match="does not take pixel_values where it lies in memory"):
        runner.run(images(1))


def test_too_little_memory_is_said_with_what_is_needed(
    make_backend: Make, with_engine: WithEngine, host_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend("tensorrt11")
    monkeypatch.setattr(backend.trt.ICudaEngine, "create_execution_context", lambda self: None)
    monkeypatch.setattr(backend.trt.ICudaEngine, "device_memory_size_v2", 300 * 2**20)
    runner = TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device)
    with pytest.raises(RunnerError, match="too little memory left for an execution context of 300 MiB"):
        runner.run(images(1))


def test_a_failed_run_gives_no_results(make_backend: Make, with_engine: WithEngine, host_device: Any) -> None:
    backend = make_backend("tensorrt11")
    runner = TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device)
    backend.trt.calls["fail"] = [()]
    with pytest.raises(RunnerError, match="TensorRT failed"):
        runner.run(images(1))


def test_an_engine_that_this_gpu_cannot_run_is_not_loaded(
    make_backend: Make, with_engine: WithEngine, host_device: Any
) -> None:
    backend = make_backend("tensorrt_rtx")
    backend.trt.calls["invalid"] = [()]
    with pytest.raises(RunnerError, match="this machine cannot run it"):
        TensorRtRunner(with_engine(backend), "fast", backend=backend, device=host_device)
    assert "deserialize" not in backend.trt.calls


def test_without_a_gpu_the_reason_is_said(make_backend: Make, with_engine: WithEngine) -> None:
    if isinstance(find_gpu(), Gpu):
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendMissing, match="An engine runs on a GPU, and there is none here"):
        load_runner(with_engine(make_backend("tensorrt_rtx")), "fast", back_end="tensorrt")


@pytest.mark.gpu
def test_an_engine_equals_its_onnx_file_on_a_gpu(tiny_artifact: ModelArtifact, changed: Callable[..., ModelArtifact]) -> None:
    gpu = find_gpu()
    if not isinstance(gpu, Gpu):
        pytest.skip(f"needs an NVIDIA GPU: {gpu}")
    pytest.importorskip("tensorrt")
    from swinv2_deploy.engine import EngineSpec
    from swinv2_deploy.pipeline import compile_artifact, planned_engine

    artifact = changed(tiny_artifact)
    spec = EngineSpec(onnx="model")
    compile_artifact(artifact, spec, planned_engine(artifact, spec, None))
    pixels = images(3)
    found = load_runner(artifact, "model", back_end="tensorrt").run(pixels)["logits"]
    np.testing.assert_allclose(found, load_runner(artifact, "model").run(pixels)["logits"], atol=1e-3)
