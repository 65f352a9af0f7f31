"""ONNX Runtime as a runner. What it falls back to, and which sizes a file is right at, are checked and never assumed."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from swinv2_deploy.errors import BackendMissing, RunnerError, SpecError
from swinv2_deploy.runtime.inputs import checked_inputs
from swinv2_deploy.runtime.masks import BoolArray, Masks
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.runtime.pinned import Pinned, agreed, pinned_range, pinned_shapes
from swinv2_deploy.runtime.products import check_mode, found_products, has_integers, is_exact, probe_input, probe_model
from swinv2_deploy.runtime.runner import Array, BackEnd, Images, ProductMode, Products, Provider, check_threads

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions, SessionOptions

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Entry of the session that says where a model given as bytes has its outside weights."""

EXACT_PRODUCTS = ("session.x64quantprecision", "1")
"""Entry of the session that takes ONNX Runtime off the saturating instruction of x86 CPUs without VNNI."""


class OnnxRunner:
    """Runs an exported ONNX file.

    Args:
        path: File that ``export`` or ``quantize`` wrote.
        threads: CPU threads; None leaves ONNX Runtime's choice.
        provider: Execution provider to run on.
        masks: What a masked image model hides where :meth:`run` is not told; None means nothing.
        products: Whether integers are multiplied exactly on every CPU, or as ONNX Runtime does by itself.
        emulated: Whether to compute in float32 and round every result to the file's type; None means where there is no other way.
        frugal: Whether working memory is given back after every run instead of kept for the next one: slower, same outputs.
        pinned: The one batch, height and width it will run, as fast as a file exported for that size; None means any.

    Attributes:
        integer_products: What the products of integers really are here, measured.
        emulated: Whether results are computed in float32 and rounded to the file's type, as ONNX Runtime has no BF16 kernels on
            a CPU. Such a runner tells how far the file drifts, and nothing about its speed.

    Raises:
        RunnerError: When the file is missing, damaged, not ours, not right at the pinned size, or ONNX Runtime refuses it.
        BackendMissing: When the provider is not usable on this machine.
        SpecError: On an unknown provider or mode, a number of threads below 1, or a pinned size that is none.
    """

    back_end: BackEnd = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        provider: Provider = "cpu",
        products: ProductMode = "exact",
        masks: Masks | None = None,
        emulated: bool | None = None,
        frugal: bool = False,
        pinned: Pinned | None = None,
    ) -> None:
        check_threads(threads)
        if provider not in get_args(Provider):
            raise SpecError(f"There is no provider {provider!r}; expected one of {list(get_args(Provider))}.")
        check_mode(products)
        self.path = path
        self.name = path.stem
        self.facts = read_facts(path)
        self.precision = self.facts.precision
        pinned = agreed(pinned, self.facts, self.name)
        self._shapes = None if pinned is None else pinned_shapes(pinned, self.facts, self.name)
        self.resolutions = pinned_range(pinned, self.facts)
        self._masks = masks
        # Only where it changes something: on other CPUs the entry could choose a slower kernel for nothing.
        probed = has_integers(self.precision) and provider == "cpu"
        exact = probed and products == "exact" and saturates()
        cannot = self.facts.rest == "bf16" and provider == "cpu"
        self.emulated = cannot if emulated is None else emulated
        options = session_options(threads, exact=exact)
        if pinned is not None:
            unplanned(options)
        self._session = _session(path, options, provider, self._content())
        self.integer_products: Products = found_products(self.precision, exact=_is_exact(exact=exact) if probed else None)
        used = self._session.get_providers()[0]
        self.provider: str = f"{self.facts.rest} emulated, {used}" if self.emulated else used
        self._options = _frugal_options() if frugal and provider == "cpu" else None
        if frugal:
            _return_freed_memory()
        self.output_names = tuple(output.name for output in self._session.get_outputs())

    def _content(self) -> bytes | None:
        """What is loaded in the place of the file, if anything is."""
        shapes = None if self.facts.pinned else self._shapes
        if shapes is None and not self.emulated:
            return None
        import onnx_ir as ir

        from swinv2_deploy.runtime.emulation import emulate
        from swinv2_deploy.runtime.fitting import fitted, serialized

        model = ir.load(self.path) if shapes is None else fitted(self.path, shapes)
        return serialized(emulate(model) if self.emulated else model)

    def run(self, images: Images, bool_masked_pos: BoolArray | None = None) -> dict[str, Array]:
        """Outputs by name, each (B, ...), of what the file takes.

        Args:
            images: Normalized float32 (B, 3, H, W), or uint8 (B, H, W, 3) for a file that takes photographs.
            bool_masked_pos: Bool (B, P) for a masked image model.

        Raises:
            RunnerError: When the size is outside the file's range or not the pinned one, the images or masks have another form, or
                ONNX Runtime fails.
        """
        feeds = checked_inputs(self.facts, images, bool_masked_pos, self._masks, self.name, self._shapes)
        try:
            outputs = self._session.run(list(self.output_names), feeds, self._options)
        except failures() as error:
            size = "x".join(map(str, images.shape))
            raise RunnerError(f"ONNX Runtime failed on {self.path} with images of {size}: {error}") from error
        return dict(zip(self.output_names, outputs, strict=True))


def saturates() -> bool:
    """Whether ONNX Runtime, left alone, saturates products of integers on this CPU."""
    return not _is_exact(exact=False)


@cache
def _is_exact(*, exact: bool) -> bool:
    import onnxruntime

    session = onnxruntime.InferenceSession(probe_model(), session_options(1, exact=exact), providers=[PROVIDERS["cpu"]])
    return is_exact(session.run(None, {"x": probe_input()})[0])


def _session(path: Path, options: SessionOptions, provider: Provider, content: bytes | None) -> InferenceSession:
    import onnxruntime

    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise BackendMissing(
            f"ONNX Runtime here has no {wanted}, only {onnxruntime.get_available_providers()}; install the 'gpu' extra on a "
            "machine with an NVIDIA GPU, or use --provider cpu."
        )
    if content is not None:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    try:
        session = onnxruntime.InferenceSession(content or str(path), options, providers=[wanted])
    except failures() as error:
        raise RunnerError(f"ONNX Runtime does not load {path}: {error}. Export it again.") from error
    used = session.get_providers()[0]
    if used != wanted:
        raise BackendMissing(f"ONNX Runtime fell back from {wanted} to {used}; repair its installation, or use --provider cpu.")
    return session


def session_options(threads: int | None, *, exact: bool) -> SessionOptions:
    """How every session of this project runs; ``exact`` takes it off the saturating instruction."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Its errors reach the user as exceptions; its own log would print each a second time.
    options.log_severity_level = 4
    # Several sessions share the cores: threads that spin after a run would slow the next runner down and blur latencies.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The published shift mask of -100, which blocks with hot heads keep, leaves denormal numbers behind exp(); flushing them to
    # zero moves no output, and processors compute with them slowly.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if exact:
        options.add_session_config_entry(*EXACT_PRODUCTS)
    return options


def unplanned(options: SessionOptions) -> None:
    """Let buffers be taken when they are needed.

    Where ONNX Runtime knows every shape it plans all of them before the first run. Its plan takes twice the memory that it takes
    without one, and the run is no faster for it.
    """
    options.enable_mem_pattern = options.enable_mem_reuse = False


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


def failures() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions: they have no common base class but ``Exception``."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)
