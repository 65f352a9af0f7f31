"""OpenVINO on the CPU as a runner: the same files as ONNX Runtime, in the precision that was asked for and no other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from reference_model.masking import patch_count
from swinv2_deploy.errors import BackendMissing, RunnerError, SpecError
from swinv2_deploy.runtime.inputs import checked_inputs
from swinv2_deploy.runtime.masks import BoolArray, Masks
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.runtime.openvino_norms import exact_norms
from swinv2_deploy.runtime.pinned import Pinned, agreed, pinned_range, pinned_shapes
from swinv2_deploy.runtime.products import check_mode, found_products, has_integers, is_exact, probe_input, probe_model
from swinv2_deploy.runtime.runner import (
    Array,
    BackEnd,
    FloatPrecision,
    Images,
    ProductMode,
    Products,
    check_threads,
    output_names,
)

if TYPE_CHECKING:
    from openvino import CompiledModel, Core

DEVICE = "CPU"
NAMES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""How OpenVINO spells a precision when it is asked for one, by how it spells the one it uses."""

EXACT_PRODUCTS = {"LP_TRANSFORMS_MODE": "NO"}
"""Leaves quantized layers to the float32 kernels, which hold the sums of a SwinV2 layer's integers to float32's rounding.

Not documented by OpenVINO, so whether it helps is measured."""

MOST_MARK = 2**24
"""Up to here float32, with which OpenVINO computes remainders of integers, holds every one. Where sizes are free the graph marks
tokens by numbers up to four times their count."""


class OpenVinoRunner:
    """Runs an exported ONNX file in OpenVINO on the CPU.

    Args:
        path: File that ``export`` or ``quantize`` wrote.
        threads: CPU threads; None leaves OpenVINO's choice.
        precision: Format of everything that is not an integer. OpenVINO itself would take bfloat16 wherever the CPU has it.
        products: Whether integers are multiplied exactly on every CPU, or as OpenVINO does by itself.
        masks: What a masked image model hides where :meth:`run` is not told; None means nothing.
        pinned: The one batch, height and width it will run; None means any. OpenVINO joins rounding and arithmetic to products
            only where it knows their shapes, so that an INT8 file is 1.3 to 1.6 times as fast.

    Attributes:
        inference_precision: Format that the compiled model really uses, as it reports.
        integer_products: What the products of integers really are here, measured.

    Raises:
        RunnerError: When the file is missing, damaged, not ours, not right at the pinned size, or OpenVINO refuses it.
        BackendMissing: When OpenVINO is not installed, or the CPU lacks the precision.
        SpecError: On an unknown precision or mode, a number of threads below 1, a pinned size that is none, or a file that takes
            photographs in bf16.
    """

    back_end: BackEnd = "openvino"
    emulated = False

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        precision: FloatPrecision = "f32",
        products: ProductMode = "exact",
        masks: Masks | None = None,
        pinned: Pinned | None = None,
    ) -> None:
        check_threads(threads)
        if precision not in get_args(FloatPrecision):
            raise SpecError(f"There is no precision {precision!r}; expected one of {list(get_args(FloatPrecision))}.")
        check_mode(products)
        _require(precision)
        self.path = path
        self.name = path.stem
        self.facts = read_facts(path)
        self.precision = self.facts.precision
        if self.precision == "uint8":
            raise RunnerError(
                f"{path} is the form for ONNX Runtime alone, which OpenVINO computes without its integer kernels; run "
                "model_int8.onnx, the same numbers, instead."
            )
        if self.facts.takes == "images" and precision != "f32":
            raise SpecError(
                f"{path.name} resizes photographs, for which {precision} is too coarse; use f32, or run another file."
            )
        pinned = agreed(pinned, self.facts, self.name)
        self._shapes = None if pinned is None else pinned_shapes(pinned, self.facts, self.name)
        self.resolutions = pinned_range(pinned, self.facts)
        integers = has_integers(self.precision)
        exact = integers and products == "exact" and saturates()
        shapes = None if self.facts.pinned else self._shapes
        self._model = _compiled(path, _options(threads, precision, exact=exact), shapes, self.facts.external)
        self.inference_precision = _used_precision(self._model)
        if self.inference_precision != precision:
            raise BackendMissing(
                f"OpenVINO computes {path.name} in {self.inference_precision} where {precision} was asked for; use another "
                "precision."
            )
        devices = ", ".join(self._model.get_property("EXECUTION_DEVICES"))
        self.provider = f"{devices} {self.inference_precision}"
        self.integer_products: Products = found_products(self.precision, exact=_is_exact(exact=exact) if integers else None)
        # The file's names: a port may have several, where OpenVINO dropped an operator that changes nothing.
        self.output_names = output_names(self.facts.config)
        self._masks = masks
        self._request = self._model.create_infer_request()

    def run(self, images: Images, bool_masked_pos: BoolArray | None = None) -> dict[str, Array]:
        """Outputs by name, each (B, ...), of what the file takes.

        Args:
            images: Normalized float32 (B, 3, H, W), or uint8 (B, H, W, 3) for a file that takes photographs.
            bool_masked_pos: Bool (B, P) for a masked image model.

        Raises:
            RunnerError: When the size is outside the file's range or not the pinned one, the images or masks have another form,
                there are more patches at once than OpenVINO counts exactly, or it fails.
        """
        feeds = checked_inputs(self.facts, images, bool_masked_pos, self._masks, self.name, self._shapes)
        self._check_count(images)
        try:
            with _denormals_kept():
                outputs = self._request.infer(feeds)
        except (RuntimeError, MemoryError) as error:
            size = "x".join(map(str, images.shape))
            raise RunnerError(f"OpenVINO failed on {self.path} with images of {size}: {error}") from error
        # The request owns its outputs and writes the next ones over them.
        return {name: np.array(outputs[index]) for index, name in enumerate(self.output_names)}

    def _check_count(self, images: Images) -> None:
        """Refuse more tokens at once than OpenVINO counts exactly: it would read some from wrong places, without a word."""
        if self._shapes is not None or self.facts.resolutions.static or self.facts.takes == "images":
            return  # every index is a constant
        height, width = images.shape[2:]
        tokens = patch_count(height, width, self.facts.config.patch_size)
        most = (MOST_MARK // 4 - 1) // tokens
        if len(images) > most:
            raise RunnerError(
                f"{self.name} was given {len(images)} images of {tokens} patches each; OpenVINO counts patches exactly up to "
                f"{most} such images at once. Run fewer at once, pin the runner to this size, or use ONNX Runtime."
            )


def saturates() -> bool:
    """Whether OpenVINO, left alone, saturates products of integers on this CPU.

    Raises:
        BackendMissing: When OpenVINO is not installed.
    """
    return not _is_exact(exact=False)


@cache
def _core() -> Core:
    try:
        import openvino
    except ImportError as error:
        raise BackendMissing(
            f"OpenVINO is not usable here ({error}); install it with: pip install 'swinv2-deploy[openvino]'"
        ) from error
    return openvino.Core()


def _require(precision: FloatPrecision) -> None:
    capabilities = [name.lower() for name in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")]
    if precision != "f32" and precision not in capabilities:
        raise BackendMissing(f"This CPU has no {precision} for OpenVINO, only {', '.join(capabilities)}; use f32.")


def _options(threads: int | None, precision: FloatPrecision, *, exact: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return options | (EXACT_PRODUCTS if exact else {})


def _compiled(
    path: Path, options: dict[str, Any], shapes: Mapping[str, tuple[int, ...]] | None, external: Sequence[str]
) -> CompiledModel:
    try:
        with _denormals_kept(), ExitStack() as stack:
            source: Path | bytes = path
            if shapes is not None:
                from swinv2_deploy.runtime.fitting import fitted, serialized

                source = serialized(fitted(path, shapes))
                if external:
                    # From memory OpenVINO finds no weights outside the file, and beside a file it follows no symbolic link. A hard
                    # link would make the artifact's own file one that is not loaded, see `check_external_data`.
                    folder = stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
                    for name in external:
                        shutil.copyfile(path.with_name(name), Path(folder, name))
                    content, source = source, Path(folder, path.name)
                    source.write_bytes(content)
            model = _core().read_model(source)
            if options["INFERENCE_PRECISION_HINT"] != "f16":
                exact_norms(model)
            return _core().compile_model(model, DEVICE, options)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RunnerError(f"OpenVINO does not load {path}: {reason} Export it again, or use ONNX Runtime.") from error
    except OSError as error:
        raise RunnerError(
            f"OpenVINO needs a copy of the weights of {path} to pin it ({error}); free space in the folder for temporary files, or "
            "use ONNX Runtime."
        ) from error


@cache
def _is_exact(*, exact: bool) -> bool:
    core = _core()
    try:
        with _denormals_kept():
            model = core.compile_model(core.read_model(probe_model()), DEVICE, _options(1, "f32", exact=exact))
            return is_exact(model(probe_input())[0])
    except RuntimeError:
        return False  # a version that does not know the option has no way to be exact either


def _used_precision(model: CompiledModel) -> str:
    name = str(model.get_property("INFERENCE_PRECISION_HINT").to_string())
    return NAMES.get(name, name)


@contextmanager
def _denormals_kept() -> Iterator[None]:
    """Let this thread compute with denormal numbers for a while.

    A session of ONNX Runtime that flushes them to zero leaves its thread doing so, and the threads that OpenVINO starts in it
    inherit that. There, small integers that it handles as floating point become zeros: other values, without a word.
    """
    import torch

    flushed = bool(np.float32(1e-40) * np.float32(1) == 0)
    if not flushed:
        yield
        return
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(True)
