"""No engine is touched before its sidecar, its files and this machine were found to fit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2_deploy.artifacts import ModelArtifact, read_artifact
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.runtime.tensorrt import Backend, check_engine, read_sidecar, sidecar, write_sidecar
from swinv2_deploy.runtime.tensorrt.runner import TensorRtRunner

Make = Callable[[str], Backend]
WithEngine = Callable[..., ModelArtifact]


def test_an_engine_that_fits_is_handed_out_as_it_was_hashed(make_backend: Make, with_engine: WithEngine) -> None:
    backend = make_backend("tensorrt_rtx")
    artifact = with_engine(backend)
    plan, found = check_engine(artifact, "fast", backend)
    assert plan == (artifact.path / "engines" / "fast.plan").read_bytes()
    assert found == read_sidecar(artifact.path / "engines" / "fast.json")


def edited(name: str, value: Any, *, honest: bool) -> Callable[[Path], None]:
    """Change an entry of the sidecar; an honest one has its own hash made right again."""

    def edit(path: Path) -> None:
        file = path / "engines" / "fast.json"
        content = json.loads(file.read_text())
        content[name] = value
        if honest:
            del content["sha256"]
            content["sha256"] = sidecar._own_hash(content)
        file.write_text(json.dumps(content))

    return edit


def onnx_changed(path: Path) -> None:
    file = path / "onnx" / "model.onnx"
    file.write_bytes(file.read_bytes() + b"\0")


def cut(path: Path) -> None:
    plan = path / "engines" / "fast.plan"
    plan.write_bytes(plan.read_bytes()[:-1])


ALTERATIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "plan cut off": (cut, "changed or damaged after it was built"),
    "plan gone": (lambda path: (path / "engines" / "fast.plan").unlink(), "has no engine 'fast'"),
    "sidecar gone": (lambda path: (path / "engines" / "fast.json").unlink(), "is not readable"),
    "sidecar no JSON": (lambda path: (path / "engines" / "fast.json").write_text("{"), "is not readable"),
    "sidecar edited": (edited("version", "9.9", honest=False), "changed or damaged after it was written"),
    "entry too many": (edited("extra", 1, honest=True), "has other entries"),
    "other schema": (edited("schema", 2, honest=True), "no engine sidecar of schema 1"),
    "other version": (edited("version", "1.6.0.1", honest=True), r"built by version 1\.6\.0\.1, and 1\.7\.1\.116 is installed"),
    "other back end": (edited("backend", "tensorrt", honest=True), "was built by tensorrt, and TensorRT-RTX is to run it"),
    "other plan": (edited("plan", "slow.plan", honest=True), "belongs to slow.plan"),
    "other plan hash": (edited("plan_sha256", "0" * 64, honest=True), "changed or damaged after it was built"),
    "ONNX file changed": (onnx_changed, "another onnx/model.onnx than lies there now"),
    "ONNX file gone": (lambda path: (path / "onnx" / "model.onnx").unlink(), "from onnx/model.onnx, which is gone"),
    "weights of another model": (edited("model_sha256", "0" * 64, honest=True), "built from another artifact"),
    "other artifact": (edited("artifact_sha256", "0" * 64, honest=True), "built from another artifact"),
    "file outside": (edited("onnx_sha256", {"onnx/model.onnx": "0", "../x": "0"}, honest=True), "another onnx/model.onnx"),
    "ONNX file without a hash": (edited("onnx_sha256", {}, honest=True), "does not state the hash of its ONNX file"),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_every_alteration_is_refused_before_anything_is_loaded(
    make_backend: Make, with_engine: WithEngine, host_device: Any, name: str
) -> None:
    alter, message = ALTERATIONS[name]
    backend = make_backend("tensorrt_rtx")
    artifact = with_engine(backend)
    alter(artifact.path)
    with pytest.raises(ArtifactError, match=message) as caught:
        TensorRtRunner(artifact, "fast", backend=backend, device=host_device)
    assert "rebuild with: swinv2-deploy compile" in str(caught.value).lower()
    assert "deserialize" not in backend.trt.calls


def test_no_plan_with_a_flipped_bit_is_loaded(make_backend: Make, with_engine: WithEngine, host_device: Any) -> None:
    backend = make_backend("tensorrt_rtx")
    artifact = with_engine(backend)
    plan = artifact.path / "engines" / "fast.plan"
    good = plan.read_bytes()
    chance = random.Random(0)
    for place in chance.sample(range(8 * len(good)), 50):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        plan.write_bytes(bad)
        with pytest.raises(ArtifactError, match="its hash differs"):
            TensorRtRunner(artifact, "fast", backend=backend, device=host_device)
    assert "deserialize" not in backend.trt.calls
    plan.write_bytes(good)
    TensorRtRunner(artifact, "fast", backend=backend, device=host_device)
    assert len(backend.trt.calls["deserialize"]) == 1


def test_an_engine_of_tensorrt_is_for_one_gpu_unless_it_says_otherwise(make_backend: Make, with_engine: WithEngine) -> None:
    backend = make_backend("tensorrt11")
    artifact = with_engine(backend, targets=["NVIDIA Other (8.0)"])
    with pytest.raises(ArtifactError, match=r"built for NVIDIA Other \(8\.0\), and this is NVIDIA Test \(9\.0\)"):
        check_engine(artifact, "fast", backend)


def test_compatible_engines_are_taken(make_backend: Make, with_engine: WithEngine) -> None:
    backend = make_backend("tensorrt11")
    other = {"targets": ["NVIDIA Other (8.0)"], "hardware_compatible": True, "version": "10.13.2", "version_compatible": True}
    check_engine(with_engine(backend, **other), "fast", backend)


def test_an_engine_of_another_system_is_refused(make_backend: Make, with_engine: WithEngine) -> None:
    backend = make_backend("tensorrt10")
    with pytest.raises(ArtifactError, match="was built on win32 AMD64"):
        check_engine(with_engine(backend, system="win32 AMD64"), "fast", backend)


def test_a_sidecar_comes_back_as_it_was_written(make_backend: Make, with_engine: WithEngine, tmp_path: Path) -> None:
    artifact = with_engine(make_backend("tensorrt_rtx"))
    found = read_sidecar(artifact.path / "engines" / "fast.json")
    write_sidecar(tmp_path / "again.json", found)
    assert (tmp_path / "again.json").read_bytes() == (artifact.path / "engines" / "fast.json").read_bytes()


def test_engines_do_not_change_the_artifact(make_backend: Make, with_engine: WithEngine) -> None:
    artifact = with_engine(make_backend("tensorrt_rtx"))
    assert read_artifact(artifact.path).sha256 == artifact.sha256


def test_host_code_of_an_engine_is_never_allowed() -> None:
    root = Path(sidecar.__file__).parents[3]
    sources = [path.read_text() for room in ("swinv2_deploy", "benchmarks") for path in (root / room).rglob("*.py")]
    assert sum("engine_host_code_allowed" in text for text in sources) == 1  # where the rule is written down
    assert not any("engine_host_code_allowed =" in text for text in sources)
