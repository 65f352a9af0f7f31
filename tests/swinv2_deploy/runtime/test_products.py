"""Products of 8-bit integers are exact on every CPU, and whether a back end saturates is measured."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from calibration.dataset import ImageFolder
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import SpecError
from swinv2_deploy.quantize.ptq import quantize
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.runtime import BackEnd, FileRunner, OnnxRunner, OpenVinoRunner, onnx_runner, openvino_runner
from swinv2_deploy.runtime.products import is_exact, probe_values

MAKE: dict[BackEnd, Callable[..., FileRunner]] = {"onnxruntime": OnnxRunner, "openvino": OpenVinoRunner}
SATURATES: dict[BackEnd, Callable[[], bool]] = {
    "onnxruntime": onnx_runner.saturates,
    "openvino": openvino_runner.saturates,
}


@pytest.fixture(scope="module")
def int8_file(tiny_artifact: ModelArtifact, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = QuantizeSpec(calibrator="max", unsigned="never")
    folder = tmp_path_factory.mktemp("quantized") / "tiny-int8"
    return quantize(tiny_artifact, spec, ImageFolder.open(photos), folder).artifact.onnx_files["model_int8"]


def emulated(file: Path, images: np.ndarray) -> np.ndarray:
    """Logits of the same file with every quantized product computed in floating point."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixel_values": images})[0])


def x86_without_vnni() -> bool:
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.is_file() else "vnni"
    return platform.machine() in ("x86_64", "AMD64") and not any(word in flags for word in ("vnni", "amx_int8"))


@pytest.mark.parametrize("back_end", MAKE)
def test_the_runner_never_saturates(back_end: BackEnd, int8_file: Path, photos: Path) -> None:
    """Where the CPU saturates, the runner's logits lie far nearer to the exact ones than those the library makes by itself."""
    runner = MAKE[back_end](int8_file, threads=1)
    assert runner.integer_products == "exact"
    if not SATURATES[back_end]():
        pytest.skip("this CPU multiplies bytes exactly, so there is nothing to tell apart")
    images = np.random.default_rng(0).uniform(-2, 2, (4, 3, 32, 32)).astype(np.float32)
    exact = emulated(int8_file, images)

    fast = MAKE[back_end](int8_file, threads=1, products="fast")
    errors = [float(np.square(each.run(images)["logits"] - exact).sum()) for each in (runner, fast)]

    assert fast.integer_products == "may saturate"
    assert errors[0] < errors[1] / 4


@pytest.mark.skipif(not x86_without_vnni(), reason="needs an x86 CPU without VNNI")
@pytest.mark.parametrize("back_end", MAKE)
def test_the_probe_finds_what_the_cpu_lacks(back_end: BackEnd) -> None:
    """A library that no longer runs the probe in integers would make it blind."""
    assert SATURATES[back_end]()


def test_the_probe_tells_saturated_sums() -> None:
    """Exact sums pass; sums of pairs cut to 16 bits, as the instruction makes them of unsigned bytes, do not."""
    values, weight = probe_values()
    exact = values.astype(np.int64) @ weight.astype(np.int64).T
    pairs = (values.astype(np.int64) + 128)[:, None, :] * weight.astype(np.int64)[None]
    cut = (pairs[..., ::2] + pairs[..., 1::2]).clip(-32768, 32767).sum(-1) - 128 * weight.astype(np.int64).sum(1)

    assert is_exact(exact.astype(np.float32))
    assert not is_exact(cut.astype(np.float32))


def test_a_float_file_multiplies_no_integers(tiny_artifact: ModelArtifact) -> None:
    assert OnnxRunner(tiny_artifact.onnx_files["model"]).integer_products == "none"


def test_the_probe_is_valid_onnx() -> None:
    from swinv2_deploy.runtime.products import probe_model

    onnx.checker.check_model(onnx.load_from_string(probe_model()), full_check=True)


@pytest.mark.parametrize("back_end", MAKE)
def test_an_unknown_mode_is_a_usage_error(back_end: BackEnd, tiny_artifact: ModelArtifact) -> None:
    with pytest.raises(SpecError, match=r"no mode 'quick' of integer products; expected one of \['exact', 'fast'\]"):
        MAKE[back_end](tiny_artifact.onnx_files["model"], products="quick")
