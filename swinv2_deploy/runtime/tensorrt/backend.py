"""What TensorRT 10, TensorRT 11 and TensorRT-RTX have in common, and which of them is used.

Where they differ a method says so; each flavor is one small file: ``tensorrt10``, ``tensorrt11``, ``rtx``.

Source: TensorRT 10.13 and 11 migration guides; TensorRT-RTX 1.7.1 (its Python module, and the pages "CPU-only ahead-of-time
compilation" and "Engine compatibility").
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from swinv2_deploy.errors import BackendMissing, SpecError
from swinv2_deploy.runtime.tensorrt.gpu import Gpu, find_gpu
from swinv2_deploy.runtime.tensorrt.logger import Record, logger_for

BackendName = Literal["tensorrt", "tensorrt-rtx"]

OLDEST = (10, 13)
"""First version of TensorRT whose strongly typed networks, quantization and profiles this project relies on."""
OLDEST_RTX = (1, 2)

INSTALL = {
    "tensorrt": "pip install 'tensorrt-cu13>=10.13' (CUDA 13) or 'tensorrt-cu12>=10.13' (CUDA 12)",
    "tensorrt-rtx": "pip install 'swinv2-deploy[rtx]'",
}


class Backend(ABC):
    """One installed TensorRT.

    Args:
        trt: The imported module.

    Attributes:
        name: How options and sidecars call it.
        flavor: How people call it.
        version: Version of the module.
        trt: The module.
        logger: Its logger.
        has_timing_cache: Whether kernels are timed when an engine is built.
    """

    name: ClassVar[BackendName]
    flavor: ClassVar[str]
    has_timing_cache: ClassVar[bool] = True

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.version = str(trt.__version__)
        self.logger = logger_for(trt)

    @abstractmethod
    def network_flags(self) -> int:
        """Bits that make a network strongly typed."""

    def create_network(self, builder: Any) -> Any:
        """A strongly typed network: precision is what the ONNX file says, never the builder's choice."""
        return builder.create_network(self.network_flags())

    @abstractmethod
    def set_targets(self, options: Any, names: Sequence[str]) -> None:
        """Choose the GPUs to build for, by compute capability such as ``8.6``; none leaves the default.

        Raises:
            SpecError: When the back end builds for the GPU at hand only, or does not know one.
        """

    @abstractmethod
    def targets(self, options: Any) -> tuple[str, ...]:
        """What will be built for: compute capabilities, or name and compute capability of the GPU at hand."""

    @property
    @abstractmethod
    def default_targets(self) -> tuple[str, ...]:
        """What is built for where nothing is asked."""

    def require_timing_cache(self, file: str) -> None:
        """Refuse the name of a timing cache where there is none.

        Raises:
            SpecError: With the reason.
        """
        if not self.has_timing_cache:
            raise SpecError(
                f"{self.flavor} times no kernels when it builds, so {file} would stay empty; leave --timing-cache out."
            )

    def set_compatibility(self, options: Any, *, version: bool, hardware: bool) -> None:
        """Let later versions, or GPUs of other generations, run the engine.

        Raises:
            SpecError: When the flavor cannot.
        """
        if version:
            options.set_flag(self.trt.BuilderFlag.VERSION_COMPATIBLE)
        if hardware:
            options.hardware_compatibility_level = self.trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def set_weight_streaming(self, options: Any, on: bool) -> None:
        """Let weights stay in host memory while the engine runs."""
        if on:
            options.set_flag(self.trt.BuilderFlag.WEIGHT_STREAMING)

    def errors(self, records: Sequence[Record]) -> list[str]:
        """Messages of errors among what was logged."""
        severe = (self.trt.ILogger.ERROR, self.trt.ILogger.INTERNAL_ERROR)
        return [message for severity, message in records if severity in severe]

    def engine_memory(self, engine: Any) -> int:
        """Bytes of device memory that a context of an engine needs."""
        return int(engine.device_memory_size_v2)

    def validity(self, runtime: Any, plan: bytes) -> str | None:
        """Why this machine cannot run a plan, where the back end can tell without loading it; else None."""
        return None

    def create_context(self, engine: Any, cache: Path | None = None) -> Any:
        """An execution context.

        Args:
            engine: Deserialized engine.
            cache: File of kernels that were compiled when the engine ran before; only TensorRT-RTX compiles then.
        """
        return engine.create_execution_context()

    def keep_cache(self, context: Any, cache: Path) -> None:
        """Write what :meth:`create_context` may read the next time."""
        return None

    def runs_later(self, built_with: str) -> bool:
        """Whether this version runs version-compatible engines of that one: of the same major version or the one before it."""
        major, built = (int(text.split(".")[0]) for text in (self.version, built_with))
        return built in (major, major - 1)


def cache_folder(kind: str) -> Path:
    """Where this user's files of one kind are kept from run to run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swinv2-deploy" / kind


def choose_backend(name: str | None = None, *, gpu: Gpu | str | None = None) -> Backend:
    """The back end that was named; else TensorRT where it is installed beside a GPU, TensorRT-RTX where it is installed.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        gpu: The GPU at hand or the reason why there is none; None looks for one.

    Raises:
        SpecError: On another name.
        BackendMissing: When it is not installed, too old, or has no GPU to build for.
    """
    if name is not None and name not in get_args(BackendName):
        raise SpecError(f"There is no back end {name!r}; expected one of {', '.join(get_args(BackendName))}.")
    found = find_gpu() if gpu is None else gpu
    if name == "tensorrt":
        return _tensorrt(found)
    if name == "tensorrt-rtx":
        return _rtx()
    if isinstance(found, Gpu) and _installed("tensorrt"):
        return _tensorrt(found)
    if _installed("tensorrt_rtx"):
        return _rtx()
    raise BackendMissing(_what_to_install(found))


def _what_to_install(gpu: Gpu | str) -> str:
    place = f"{sys.platform} {platform.machine()}"
    if isinstance(gpu, Gpu):
        return f"No TensorRT is installed for the {gpu.name} of this {place} machine; install it with: {INSTALL['tensorrt']}"
    return (
        f"No TensorRT is installed on this {place} machine without a usable GPU ({gpu}); TensorRT-RTX compiles without one: "
        f"{INSTALL['tensorrt-rtx']}"
    )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _tensorrt(gpu: Gpu | str) -> Backend:
    from swinv2_deploy.runtime.tensorrt.tensorrt10 import TensorRt10
    from swinv2_deploy.runtime.tensorrt.tensorrt11 import TensorRt11

    trt = _imported("tensorrt", "tensorrt")
    version = _checked_version(trt, "TensorRT", OLDEST, INSTALL["tensorrt"])
    if not isinstance(gpu, Gpu):
        raise BackendMissing(
            f"TensorRT builds and runs engines on a GPU, and there is none here ({gpu}); use --backend tensorrt-rtx instead."
        )
    return TensorRt10(trt, gpu) if version[0] == 10 else TensorRt11(trt, gpu)


def _rtx() -> Backend:
    from swinv2_deploy.runtime.tensorrt.rtx import TensorRtRtx

    trt = _imported("tensorrt_rtx", "tensorrt-rtx")
    _checked_version(trt, "TensorRT-RTX", OLDEST_RTX, INSTALL["tensorrt-rtx"])
    return TensorRtRtx(trt)


def _imported(module: str, name: BackendName) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # a library that is missing or does not load raises any of these
        raise BackendMissing(f"{module} is not usable here ({error}); install it with: {INSTALL[name]}") from error


def _checked_version(trt: Any, flavor: str, oldest: tuple[int, int], install: str) -> tuple[int, ...]:
    version = tuple(int(part) for part in str(trt.__version__).split(".")[:2])
    if version < oldest:
        wanted = ".".join(map(str, oldest))
        raise BackendMissing(
            f"{flavor} {trt.__version__} is installed, and {wanted} or later is needed; update it with: {install}"
        )
    return version
