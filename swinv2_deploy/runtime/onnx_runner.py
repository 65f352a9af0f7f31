"""ONNX Runtime as a runner. What it falls back to, and which sizes a file is right at, are checked and never assumed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from swinv2_deploy.errors import BackendMissing, RunnerError, SpecError
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.runtime.products import check_mode, found_products, has_integers, is_exact, probe_input, probe_model
from swinv2_deploy.runtime.runner import (
    Array,
    BackEnd,
    Images,
    ProductMode,
    Products,
    Provider,
    check_images,
    check_photographs,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

EXACT_PRODUCTS = ("session.x64quantprecision", "1")
"""Entry of the session that takes ONNX Runtime off the saturating instruction of x86 CPUs without VNNI."""


class OnnxRunner:
    """Runs an exported ONNX file.

    Args:
        path: File that ``export`` or ``quantize`` wrote.
        threads: CPU threads; None leaves ONNX Runtime's choice.
        provider: Execution provider to run on.
        products: Whether integers are multiplied exactly on every CPU, or as ONNX Runtime does by itself.

    Attributes:
        integer_products: What the products of integers really are here, measured.

    Raises:
        RunnerError: When the file is missing, damaged, not ours, or ONNX Runtime refuses it.
        BackendMissing: When the provider is not usable on this machine.
        SpecError: On an unknown provider or mode, or a number of threads below 1.
    """

    back_end: BackEnd = "onnxruntime"

    def __init__(
        self, path: Path, *, threads: int | None = None, provider: Provider = "cpu", products: ProductMode = "exact"
    ) -> None:
        if threads is not None and threads < 1:
            raise SpecError(f"threads is {threads}; expected at least 1.")
        if provider not in get_args(Provider):
            raise SpecError(f"There is no provider {provider!r}; expected one of {list(get_args(Provider))}.")
        check_mode(products)
        self.path = path
        self.name = path.stem
        self.facts = read_facts(path)
        self.precision = self.facts.precision
        self.resolutions = self.facts.resolutions
        # Only where it changes something: on other CPUs the entry could choose a slower kernel for nothing.
        probed = has_integers(self.precision) and provider == "cpu"
        exact = probed and products == "exact" and saturates()
        self._session = _session(path, threads, provider, exact=exact)
        self.integer_products: Products = found_products(self.precision, exact=_is_exact(exact=exact) if probed else None)
        self.provider: str = self._session.get_providers()[0]
        self.output_names = tuple(output.name for output in self._session.get_outputs())

    def run(self, images: Images) -> dict[str, Array]:
        """Outputs by name, each (B, ...), of normalized float32 images (B, 3, H, W), or of uint8 (B, H, W, 3) if it takes those.

        Raises:
            RunnerError: When the size is outside the file's range, the images have another form, or ONNX Runtime fails.
        """
        if self.facts.takes == "images":
            check_photographs(images, self.name)
        else:
            check_images(images, self.name, self.facts.config.num_channels, self.resolutions)
        try:
            outputs = self._session.run(list(self.output_names), {self.facts.takes: np.ascontiguousarray(images)})
        except _failures() as error:
            size = "x".join(map(str, images.shape))
            raise RunnerError(f"ONNX Runtime failed on {self.path} with images of {size}: {error}") from error
        return dict(zip(self.output_names, outputs, strict=True))


def saturates() -> bool:
    """Whether ONNX Runtime, left alone, saturates products of integers on this CPU."""
    return not _is_exact(exact=False)


@cache
def _is_exact(*, exact: bool) -> bool:
    import onnxruntime

    session = onnxruntime.InferenceSession(probe_model(), _options(1, exact=exact), providers=[PROVIDERS["cpu"]])
    return is_exact(session.run(None, {"x": probe_input()})[0])


def _session(path: Path, threads: int | None, provider: Provider, *, exact: bool) -> InferenceSession:
    import onnxruntime

    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise BackendMissing(
            f"ONNX Runtime here has no {wanted}, only {onnxruntime.get_available_providers()}; install the 'gpu' extra on a "
            "machine with an NVIDIA GPU, or use --provider cpu."
        )
    options = _options(threads, exact=exact)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except _failures() as error:
        raise RunnerError(f"ONNX Runtime does not load {path}: {error}. Export it again.") from error
    used = session.get_providers()[0]
    if used != wanted:
        raise BackendMissing(f"ONNX Runtime fell back from {wanted} to {used}; repair its installation, or use --provider cpu.")
    return session


def _options(threads: int | None, *, exact: bool) -> SessionOptions:
    import onnxruntime

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
    if exact:
        options.add_session_config_entry(*EXACT_PRODUCTS)
    return options


def _failures() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions: they have no common base class but ``Exception``."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)
