"""A device of host memory, and an artifact with an engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swinv2_deploy.artifacts import ModelArtifact, file_sha256
from swinv2_deploy.runtime.tensorrt.backend import Backend
from swinv2_deploy.runtime.tensorrt.sidecar import EngineSidecar, this_system, write_sidecar


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the user's cache alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class HostDevice:
    """A device that is the host; streams are lists of what was asked of them."""

    name = "host"

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, float("nan"), dtype=dtype)

    pinned = empty

    def stream(self) -> Any:
        return []

    def handle(self, stream: Any) -> int:
        return 7

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        target.copy_(source)

    def wait_for_caller(self, stream: Any) -> None:
        stream.append("wait")

    def let_caller_wait(self, stream: Any) -> None:
        stream.append("let wait")

    def synchronize(self, stream: Any) -> None:
        stream.append("synchronize")

    def record(self, work: Callable[[], None], stream: Any) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


@pytest.fixture
def host_device() -> HostDevice:
    """A device for the runner without a GPU."""
    return HostDevice()


@pytest.fixture
def with_engine(changed: Callable[..., ModelArtifact], tiny_artifact: ModelArtifact) -> Callable[..., ModelArtifact]:
    """Function from a back end, and profiles, to an artifact with an engine ``fast`` that it built."""

    def make(backend: Backend, *profiles: list[list[int]], **other: Any) -> ModelArtifact:
        artifact = changed(tiny_artifact)
        found = list(profiles) or [[[1, 3, 16, 16], [2, 3, 32, 32], [4, 3, 64, 96]]]
        plan = json.dumps([found]).encode()
        folder = artifact.path / "engines"
        folder.mkdir()
        (folder / "fast.plan").write_bytes(plan)
        facts: dict[str, Any] = {
            "plan": "fast.plan",
            "plan_sha256": hashlib.sha256(plan).hexdigest(),
            "plan_bytes": len(plan),
            "onnx": "onnx/model.onnx",
            "onnx_sha256": {"onnx/model.onnx": file_sha256(artifact.path / "onnx" / "model.onnx")},
            "model_sha256": artifact.lineage.files["model.safetensors"],
            "artifact_sha256": artifact.sha256,
            "precision": "fp32",
            "backend": backend.name,
            "version": backend.version,
            "targets": backend.default_targets,
            "system": this_system(),
            "profiles": [{"pixel_values": profile} for profile in found],
            "inputs": {"pixel_values": {"shape": [-1, 3, -1, -1], "dtype": "float32"}},
            "outputs": {"logits": {"shape": [-1, 7], "dtype": "float32"}},
            "version_compatible": False,
            "hardware_compatible": False,
            "weight_streaming": False,
            "options": {},
            "activation_bytes": [1],
            "created": "2026-01-01T00:00:00+00:00",
        }
        write_sidecar(folder / "fast.json", EngineSidecar(**(facts | other)))
        return artifact

    return make
