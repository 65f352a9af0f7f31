"""Which TensorRT is used, and where its flavors differ."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from swinv2_deploy.errors import BackendMissing, SpecError
from swinv2_deploy.runtime.tensorrt import backend as face
from swinv2_deploy.runtime.tensorrt.backend import Backend, choose_backend
from swinv2_deploy.runtime.tensorrt.gpu import Gpu, find_gpu

GPU = Gpu("NVIDIA Test", "9.0", 80 * 2**30)
Make = Callable[[str], Backend]


def test_what_the_fake_offers_exists_in_the_installed_module(fakes: ModuleType) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    fake = fakes.fake_module("tensorrt_rtx", "1")
    for name, value in vars(fake).items():
        if name in ("calls", "__version__", "nptype"):
            continue
        original = getattr(real, name)
        if isinstance(value, type) and issubclass(value, Enum):
            assert set(value.__members__) <= set(original.__members__), name
        elif isinstance(value, type):
            public = [item for item in vars(value) if not item.startswith("_")]
            assert [item for item in public if not hasattr(original, item) and item not in fakes_own(name)] == [], name


def fakes_own(name: str) -> tuple[str, ...]:
    """Plain data that the fakes keep in a class."""
    own = {"IRuntimeConfig": ("cache",), "IRuntimeCache": ("content",), "ICudaEngine": (), "IBuilderConfig": ()}
    return own.get(name, ())


def test_a_network_is_strongly_typed_in_every_flavor(make_backend: Make) -> None:
    flags = {}
    for flavor in ("tensorrt10", "tensorrt11", "tensorrt_rtx"):
        backend = make_backend(flavor)
        backend.create_network(backend.trt.Builder(backend.logger))
        flags[flavor] = backend.trt.calls["network"]
    assert flags == {"tensorrt10": [(2,)], "tensorrt11": [(0,)], "tensorrt_rtx": [(1,)]}


def test_rtx_is_told_its_compute_capabilities(make_backend: Make) -> None:
    backend = make_backend("tensorrt_rtx")
    options = backend.trt.IBuilderConfig()
    assert backend.targets(options) == ("every GPU it supports",)
    backend.set_targets(options, ("8.6", "sm89", "SM_120"))
    assert backend.targets(options) == ("8.6", "8.9", "12.0")


def test_an_unknown_compute_capability_is_refused_with_the_known_ones(make_backend: Make) -> None:
    backend = make_backend("tensorrt_rtx")
    with pytest.raises(SpecError, match=r"does not compile for 9\.0; expected some of 7\.5, 8\.0, 8\.6, 8\.9, 12\.0, 12\.1"):
        backend.set_targets(backend.trt.IBuilderConfig(), ("8.6", "9.0"))


@pytest.mark.parametrize("flavor", ["tensorrt10", "tensorrt11"])
def test_tensorrt_builds_for_the_gpu_at_hand_alone(make_backend: Make, flavor: str) -> None:
    backend = make_backend(flavor)
    options = backend.trt.IBuilderConfig()
    backend.set_targets(options, ())
    assert backend.targets(options) == ("NVIDIA Test (9.0)",)
    with pytest.raises(SpecError, match=r"builds for the GPU at hand, NVIDIA Test \(9\.0\), not for 8\.6"):
        backend.set_targets(options, ("8.6",))


def test_compatibility_is_set_or_refused_by_name(make_backend: Make) -> None:
    backend = make_backend("tensorrt11")
    options = backend.trt.IBuilderConfig()
    backend.set_compatibility(options, version=True, hardware=True)
    backend.set_weight_streaming(options, True)
    assert backend.trt.calls["flag"] == [("VERSION_COMPATIBLE",), ("WEIGHT_STREAMING",)]
    assert options.hardware_compatibility_level.name == "AMPERE_PLUS"
    rtx = make_backend("tensorrt_rtx")
    with pytest.raises(SpecError, match="leave --version-compatible out"):
        rtx.set_compatibility(rtx.trt.IBuilderConfig(), version=True, hardware=False)
    with pytest.raises(SpecError, match="leave --hardware-compatible out"):
        rtx.set_compatibility(rtx.trt.IBuilderConfig(), version=False, hardware=True)


def test_memory_is_read_as_each_version_has_it(make_backend: Make) -> None:
    backend = make_backend("tensorrt11")
    engine = backend.trt.ICudaEngine([])
    assert backend.engine_memory(engine) == 4096


def test_kernels_compiled_at_run_time_are_kept_for_the_next_time(make_backend: Make, tmp_path: Path) -> None:
    backend, cache = make_backend("tensorrt_rtx"), tmp_path / "kernels" / "jit"
    for expected in (b"+jit", b"+jit+jit"):
        context = backend.create_context(backend.trt.ICudaEngine([]), cache)
        backend.keep_cache(context, cache)
        assert cache.read_bytes() == expected
    assert [path.name for path in cache.parent.iterdir()] == ["jit"]


def test_one_logger_serves_a_module_and_records_everything_for_a_while(
    make_backend: Make, caplog: pytest.LogCaptureFixture
) -> None:
    backend = make_backend("tensorrt_rtx")
    severity = backend.trt.ILogger
    assert type(backend)(backend.trt).logger is backend.logger
    with backend.logger.recording() as records, caplog.at_level(logging.DEBUG):
        backend.logger.log(severity.VERBOSE, "detail")
        backend.logger.log(severity.ERROR, "broken")
    assert [message for _, message in records] == ["detail", "broken"]
    assert backend.errors(records) == ["broken"]
    assert not caplog.records
    with caplog.at_level(logging.DEBUG):
        backend.logger.log(severity.VERBOSE, "detail")
        backend.logger.log(severity.WARNING, "strange")
    assert [(record.name, record.message) for record in caplog.records] == [("swinv2_deploy.tensorrt", "strange")]


def test_the_back_end_is_what_is_installed_and_fits_the_machine(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {name: fakes.fake_module(flavor, version) for name, flavor, version in INSTALLED}
    install(monkeypatch, modules)
    assert choose_backend(gpu=GPU).flavor == "TensorRT"
    assert choose_backend(gpu="no GPU").name == "tensorrt-rtx"
    assert choose_backend("tensorrt-rtx", gpu=GPU).name == "tensorrt-rtx"
    with pytest.raises(BackendMissing, match=r"there is none here \(no GPU\); use --backend tensorrt-rtx instead"):
        choose_backend("tensorrt", gpu="no GPU")
    with pytest.raises(SpecError, match="no back end 'trt'; expected one of tensorrt, tensorrt-rtx"):
        choose_backend("trt", gpu=GPU)


INSTALLED = (("tensorrt", "tensorrt11", "11.4.0"), ("tensorrt_rtx", "tensorrt_rtx", "1.7.1"))


def install(monkeypatch: pytest.MonkeyPatch, modules: dict[str, Any]) -> None:
    """Let only these be installed."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, modules.get(name))
    monkeypatch.setattr(face, "_installed", lambda name: modules.get(name) is not None)


def test_what_is_missing_is_one_line_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {})
    for gpu, command in ((GPU, "tensorrt-cu13>=10.13"), ("no driver", r"swinv2-deploy\[rtx\]")):
        with pytest.raises(BackendMissing, match=command) as caught:
            choose_backend(gpu=gpu)
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
    with pytest.raises(BackendMissing, match="tensorrt_rtx is not usable here"):
        choose_backend("tensorrt-rtx", gpu=GPU)


def test_a_version_that_is_too_old_is_refused(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"tensorrt": fakes.fake_module("tensorrt10", "10.9.0.34")})
    with pytest.raises(BackendMissing, match=r"TensorRT 10\.9\.0\.34 is installed, and 10\.13 or later is needed"):
        choose_backend(gpu=GPU)


def test_the_version_chooses_the_flavor(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, name in (("10.13.2.6", "TensorRt10"), ("11.0.0.1", "TensorRt11"), ("12.1.0", "TensorRt11")):
        install(monkeypatch, {"tensorrt": fakes.fake_module("tensorrt11", version)})
        assert type(choose_backend(gpu=GPU)).__name__ == name


def test_version_compatible_engines_run_on_the_next_major_version(make_backend: Make) -> None:
    backend = make_backend("tensorrt11")
    assert [backend.runs_later(version) for version in ("11.0.0", "10.13.2", "9.3")] == [True, True, False]


def test_a_machine_without_a_gpu_says_why() -> None:
    found = find_gpu()
    if isinstance(found, Gpu):
        pytest.skip("this machine has a GPU")
    assert found
