"""From an ONNX file to the bytes of an engine, with the builder's detailed log, which is the only account of it without a GPU."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from reference_model.config import SwinV2Config
from swinv2_deploy.engine.profiles import Profile
from swinv2_deploy.engine.spec import EngineSpec
from swinv2_deploy.engine.timing import timing_cache
from swinv2_deploy.errors import EngineBuildError

if TYPE_CHECKING:
    from swinv2_deploy.runtime.tensorrt.backend import Backend

Progress = Callable[[str, int, int], object]
"""Called with what the builder does, steps done and in all."""

INCONSISTENT = "kMAX values are not self-consistent"
"""Part of a warning that the largest shapes of a profile contradict each other: the engine would be wrong there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """An input or output of a network: name, sides (-1 where dynamic), and type as NumPy spells it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What a build made.

    Attributes:
        plan: The serialized engine.
        messages: Everything the builder logged.
        inputs: Inputs of the network.
        outputs: Outputs of the network.
        targets: GPUs it was built for.
        activation_bytes: Memory for activations at the largest shape of each profile.
        weight_bytes: Memory for weights on the GPU, where the builder states it.
        seconds: Time it took.
    """

    plan: bytes
    messages: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    targets: tuple[str, ...]
    activation_bytes: tuple[int, ...]
    weight_bytes: int | None
    seconds: float


def build(
    backend: Backend,
    path: Path,
    config: SwinV2Config,
    profiles: Sequence[Profile],
    spec: EngineSpec,
    *,
    progress: Progress = lambda what, done, total: None,
) -> Built:
    """Parse an ONNX file and build an engine of it, strongly typed. Ctrl-C stops the builder at its next step.

    Args:
        backend: What builds.
        path: ONNX file; weights outside of it lie beside it.
        config: Architecture of the model in it.
        profiles: Batches and sizes to build for.
        spec: Options of the builder.
        progress: Called as the build goes on.

    Raises:
        EngineBuildError: When the parser or the builder refuses the network, or a profile contradicts itself.
        SpecError: When the back end does not have an option.
    """
    trt = backend.trt
    started = time.perf_counter()
    with backend.logger.recording() as records, interruptible() as stopped:
        builder = trt.Builder(backend.logger)
        network = backend.create_network(builder)
        parser = trt.OnnxParser(network, backend.logger)
        if not parser.parse_from_file(str(path)):
            raise EngineBuildError(parse_failure(path, parser, backend))
        options = _options(backend, builder, config, profiles, spec)
        options.progress_monitor = _monitor(trt, progress, stopped)
        inputs = _tensors(trt, (network.get_input(place) for place in range(network.num_inputs)))
        outputs = _tensors(trt, (network.get_output(place) for place in range(network.num_outputs)))
        with timing_cache(backend, options, spec.timing_cache):
            plan = builder.build_serialized_network(network, options)
        messages = tuple(message for _, message in records)
        severe = backend.errors(records)
    if plan is None:
        reason = " ".join(severe[0].split()) if severe else "it gave no reason"
        raise EngineBuildError(
            f"{backend.flavor} {backend.version} did not build {path.name}: {reason} {_hint(reason)}Nothing was written."
        )
    refuse_inconsistent(messages, path)
    return Built(
        plan=bytes(plan),
        messages=messages,
        inputs=inputs,
        outputs=outputs,
        targets=backend.targets(options),
        activation_bytes=tuple(_stated(messages, "Total Activation Memory")),
        weight_bytes=next(iter(_stated(messages, "Total Weights Memory")), None),
        seconds=time.perf_counter() - started,
    )


def refuse_inconsistent(messages: Sequence[str], path: Path) -> None:
    """Refuse an engine of whose network the builder says that its largest shapes do not fit together.

    Raises:
        EngineBuildError: With the builder's words.
    """
    found = [message for message in messages if INCONSISTENT in message]
    if found:
        raise EngineBuildError(
            f"{path.name} has sizes that were frozen when it was made: at the largest shape of the profile its tensors do not fit "
            f"together ({' '.join(found[0].split())}). Such an engine computes wrongly; export the file again with this project."
        )


def parse_failure(path: Path, parser: Any, backend: Backend) -> str:
    """What the parser did not take, node by node, in its own words."""
    found = [parser.get_error(place) for place in range(parser.num_errors)]
    lines = []
    for error in found[:5]:
        node = error.node_name() or f"node {error.node()}"
        lines.append(f"  {node} ({error.node_operator() or 'unknown operator'}): {' '.join(error.desc().split())}")
    more = f"\n  and {len(found) - 5} more" if len(found) > 5 else ""
    words = " ".join(error.desc() for error in found)
    return (
        f"{backend.flavor} {backend.version} cannot read {path.name}:\n"
        + "\n".join(lines)
        + more
        + f"\n{_hint(words)}Nothing was written."
    )


HINTS = (
    ("MatMulIntegerToFloat", "This is the form for ONNX Runtime alone; compile model_int8, the same numbers. "),
    ("com.microsoft", "It holds an operator of ONNX Runtime; compile a file that export or quantize wrote for every runtime. "),
    ("external", "Weights lie in a file beside it; keep both in one folder. "),
    (
        "Resize",
        "TensorRT has no such resize; compile a file that takes pixel_values, and prepare photographs outside the engine. ",
    ),
    (
        "FP32 GEMM is not supported",
        "This GPU generation has no FP32 products; compile an FP16 file or INT8 with an FP16 rest. ",
    ),
    ("identical types", "The engine is strongly typed and the file mixes number formats; export it again. "),
    ("memory", "Give the builder more memory, a smaller --max or fewer profiles. "),
)
"""Words of an error, and what to do about it."""


def _hint(words: str) -> str:
    return next((advice for word, advice in HINTS if word in words), "Export the file again, or report it with this message. ")


def _options(backend: Backend, builder: Any, config: SwinV2Config, profiles: Sequence[Profile], spec: EngineSpec) -> Any:
    trt = backend.trt
    options = builder.create_builder_config()
    # Names, types and origins of all layers: what the layer report is made of.
    options.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    backend.set_targets(options, spec.targets)
    backend.set_compatibility(options, version=spec.version_compatible, hardware=spec.hardware_compatible)
    backend.set_weight_streaming(options, spec.weight_streaming)
    if spec.level is not None:
        options.builder_optimization_level = spec.level
    if spec.workspace_mib is not None:
        options.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mib * 2**20)
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, (low, middle, high) in profile.shapes(config).items():
            made.set_shape(name, low, middle, high)
        if options.add_optimization_profile(made) < 0:
            raise EngineBuildError(f"{backend.flavor} refuses the profile {profile}; choose other --min, --opt and --max.")
    return options


def _monitor(trt: Any, progress: Progress, stopped: Callable[[], bool]) -> Any:
    """A progress monitor; made here because its base class comes with the back end."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # ships no type information
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.depth: dict[str, int] = {}
            self.stage = ""

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.depth[phase_name] = 0 if parent_phase is None else self.depth.get(parent_phase, 0) + 1
            if self.depth[phase_name] == 1:
                self.stage = phase_name
                progress(phase_name, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            # The stages below the whole, and the steps of what they consist of: the stage alone may have one step.
            total = self.steps.get(phase_name, 0)
            if self.stage and total > 1 and self.depth.get(phase_name, 0) > 0:
                progress(self.stage, min(step + 1, total), total)
            return not stopped()

    return Monitor()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM while foreign code runs, and let them act after it; the yielded function says whether one came.

    The second one acts at once, without cleaning up. A signal that is ignored stays so. Outside the main thread, which alone gets
    signals, nothing changes.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def hold(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _tensors(trt: Any, found: Iterator[Any]) -> tuple[Tensor, ...]:
    import numpy as np

    return tuple(
        Tensor(name=tensor.name, shape=tuple(tensor.shape), dtype=np.dtype(trt.nptype(tensor.dtype)).name) for tensor in found
    )


def _stated(messages: Sequence[str], what: str) -> Iterator[int]:
    for message in messages:
        found = re.match(rf"{what}: (\d+) bytes", message)
        if found:
            yield int(found[1])
