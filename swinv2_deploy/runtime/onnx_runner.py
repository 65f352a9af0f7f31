"""ONNX Runtime as a runner. What it falls back to, and which sizes a file is right at, are checked and never assumed."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from swinv2_deploy.errors import BackendMissing, RunnerError, SpecError
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.runtime.runner import Array, Provider, check_images

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxRunner:
    """Runs an exported ONNX file.

    Args:
        path: File that ``export`` or ``quantize`` wrote.
        threads: CPU threads; None leaves ONNX Runtime's choice.
        provider: Execution provider to run on.
        frugal: Whether working memory is given back after every run instead of kept for the next one: slower, same outputs.

    Raises:
        RunnerError: When the file is missing, damaged, not ours, or ONNX Runtime refuses it.
        BackendMissing: When the provider is not usable on this machine.
        SpecError: On an unknown provider or a number of threads below 1.
    """

    def __init__(self, path: Path, *, threads: int | None = None, provider: Provider = "cpu", frugal: bool = False) -> None:
        if threads is not None and threads < 1:
            raise SpecError(f"threads is {threads}; expected at least 1.")
        if provider not in get_args(Provider):
            raise SpecError(f"There is no provider {provider!r}; expected one of {list(get_args(Provider))}.")
        self.path = path
        self.name = path.stem
        self.facts = read_facts(path)
        self.precision = self.facts.precision
        self.resolutions = self.facts.resolutions
        self._session = _session(path, threads, provider)
        self._options = _frugal_options() if frugal and provider == "cpu" else None
        if frugal:
            _return_freed_memory()
        self.provider: str = self._session.get_providers()[0]
        self.output_names = tuple(output.name for output in self._session.get_outputs())

    def run(self, images: Array) -> dict[str, Array]:
        """Outputs by name, each (B, ...), of normalized float32 images (B, 3, H, W).

        Raises:
            RunnerError: When the size is outside the file's range, the images have another form, or ONNX Runtime fails.
        """
        check_images(images, self.name, self.facts.config.num_channels, self.resolutions)
        try:
            outputs = self._session.run(list(self.output_names), {"pixel_values": np.ascontiguousarray(images)}, self._options)
        except _failures() as error:
            size = "x".join(map(str, images.shape))
            raise RunnerError(f"ONNX Runtime failed on {self.path} with images of {size}: {error}") from error
        return dict(zip(self.output_names, outputs, strict=True))


def _session(path: Path, threads: int | None, provider: Provider) -> InferenceSession:
    import onnxruntime

    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise BackendMissing(
            f"ONNX Runtime here has no {wanted}, only {onnxruntime.get_available_providers()}; install the 'gpu' extra on a "
            "machine with an NVIDIA GPU, or use --provider cpu."
        )
    options = onnxruntime.SessionOptions()
    # Its errors reach the user as exceptions; its own log would print each a second time.
    options.log_severity_level = 4
    # Several sessions share the cores: threads that spin after a run would slow the next runner down and blur latencies.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The published shift mask of -100 leaves denormal numbers behind exp(), which processors compute with slowly; flushing them to
    # zero moves no output.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except _failures() as error:
        raise RunnerError(f"ONNX Runtime does not load {path}: {error}. Export it again.") from error
    used = session.get_providers()[0]
    if used != wanted:
        raise BackendMissing(f"ONNX Runtime fell back from {wanted} to {used}; repair its installation, or use --provider cpu.")
    return session


def _frugal_options() -> RunOptions:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _return_freed_memory() -> None:
    """Hand back what loading a file freed: glibc keeps it, more than half the size of a file with its weights inside."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have no such function
        if trim is not None:
            trim(0)


def _failures() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions: they have no common base class but ``Exception``."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)
