"""An engine as a runner: only after its sidecar was compared with the artifact and this machine, and never without a GPU.

Every shape that is run has a slot: an execution context on a stream of its own, buffers on both sides, and from its second run on a
CUDA graph. Slots of different shapes and profiles can be in flight at once. Only the slots used last are kept.

Source: TensorRT documentation, "Dynamic shapes" and "CUDA graphs" (a captured graph belongs to one context with one shape).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import BackendMissing, RunnerError
from swinv2_deploy.runtime.inputs import checked_inputs
from swinv2_deploy.runtime.masks import BoolArray, Masks, masks_for
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.runtime.runner import Array, BackEnd, Images, Products
from swinv2_deploy.runtime.tensorrt.backend import Backend, cache_folder, choose_backend
from swinv2_deploy.runtime.tensorrt.device import CudaDevice, Device
from swinv2_deploy.runtime.tensorrt.gpu import Gpu, find_gpu
from swinv2_deploy.runtime.tensorrt.sidecar import EngineSidecar, check_engine, read_sidecar

MOST_SLOTS = 4
"""Shapes kept ready. Each holds the activations of its profile in device memory."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every input: what a slot is made for."""


class TensorRtRunner:
    """Runs an engine of an artifact.

    Args:
        artifact: Artifact with the engine.
        name: Name of the engine, without suffix.
        backend: What runs it; None takes what it was built by.
        device: Where it runs; None takes the GPU.
        graphs: Whether the work of a shape is recorded and launched as a whole from its second run on.
        slots: Shapes kept ready at most.
        kernels: File of kernels that TensorRT-RTX compiled when the engine ran before; None takes one in the user's cache.
        masks: What a masked image model hides where :meth:`run` is not told; None means what the artifact's model is trained with.

    Raises:
        BackendMissing: When there is no GPU, or TensorRT is not installed.
        ArtifactError: When the engine is missing, changed, stale or foreign.
        RunnerError: When TensorRT does not load it.
    """

    back_end: BackEnd = "tensorrt"
    emulated = False

    def __init__(
        self,
        artifact: ModelArtifact,
        name: str,
        *,
        backend: Backend | None = None,
        device: Device | None = None,
        graphs: bool = True,
        slots: int = MOST_SLOTS,
        kernels: Path | None = None,
        masks: Masks | None = None,
    ) -> None:
        if device is None:
            gpu = find_gpu()
            if not isinstance(gpu, Gpu):
                raise BackendMissing(f"An engine runs on a GPU, and there is none here ({gpu}); run the ONNX file instead.")
            device = CudaDevice(gpu.name)
        self._backend = backend or choose_backend(_built_by(artifact, name))
        self._device = device
        self._graphs = graphs
        self._most_slots = slots
        plan, sidecar = check_engine(artifact, name, self._backend)
        self.sidecar: EngineSidecar = sidecar
        self._kernels = kernels or cache_folder("kernels") / f"{sidecar.plan_sha256[:16]}-{self._backend.version}.cache"
        self.path = artifact.path / "engines" / sidecar.plan
        self.name = name
        self.facts = read_facts(artifact.path / sidecar.onnx)
        self.precision = self.facts.precision
        self.resolutions = self.facts.resolutions
        self.integer_products: Products = "not checked" if self.precision == "int8" else "none"
        self.provider = f"{self._backend.flavor} {self._backend.version}, {device.name}"
        self._masks = masks or masks_for(artifact.config)
        self._engine = self._loaded(plan)
        self.output_names = tuple(sidecar.outputs)
        self._slots: OrderedDict[Shapes, _Slot] = OrderedDict()

    def run(self, images: Images, bool_masked_pos: BoolArray | None = None) -> dict[str, Array]:
        """Outputs by name, each (B, ...), of normalized float32 images (B, 3, H, W).

        A batch that no profile takes is run in parts.

        Args:
            images: Any batch, at a size of one of the engine's profiles.
            bool_masked_pos: Bool (B, P) for a masked image model.

        Raises:
            RunnerError: When no profile takes the size, the images have another form, or TensorRT fails.
        """
        feeds = checked_inputs(self.facts, images, bool_masked_pos, self._masks, self.name)
        step = self._largest_batch(feeds)
        parts = []
        for start in range(0, len(images), step):
            part = {name: torch.from_numpy(np.ascontiguousarray(value[start : start + step])) for name, value in feeds.items()}
            slot = self._slot(part)
            slot.start_from_host(part)
            parts.append({name: value.numpy().copy() for name, value in slot.to_host().items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in self.output_names}

    def run_torch(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs by name, on the device, of images (B, 3, H, W) that lie there already; nothing passes through the host.

        The outputs are the runner's own memory: the next run of the same shape writes over them.

        Args:
            images: Contiguous float32 on the device, any batch of one profile.
            bool_masked_pos: Bool (B, P) on the device for a masked image model.

        Raises:
            RunnerError: When no profile takes the shape, or TensorRT fails.
        """
        part = {"pixel_values": images} | ({} if bool_masked_pos is None else {"bool_masked_pos": bool_masked_pos})
        wrong = [name for name, value in part.items() if not value.is_contiguous()]
        if wrong or part.keys() != self.sidecar.inputs.keys():
            raise RunnerError(
                f"{self.name} takes {list(self.sidecar.inputs)} without gaps in memory; got {list(part)}, gaps in {wrong}."
            )
        slot = self._slot(part)
        slot.start_on_device(part)
        return slot.outputs

    def _loaded(self, plan: bytes) -> Any:
        with self._backend.logger.recording() as records:
            runtime = self._backend.trt.Runtime(self._backend.logger)
            reason = self._backend.validity(runtime, plan)
            engine = None if reason else runtime.deserialize_cuda_engine(plan)
        if engine is None:
            said = reason or "; ".join(self._backend.errors(records)) or "no reason was given"
            raise RunnerError(f"{self.path} is not loaded here: {' '.join(said.split())}. Compile it again on this machine.")
        self._runtime = runtime  # an engine needs its runtime as long as it lives
        return engine

    def _largest_batch(self, feeds: Mapping[str, Any]) -> int:
        """Largest batch that a profile takes at the size of what is fed."""
        fitting = [
            profile["pixel_values"][2][0]
            for profile in self.sidecar.profiles
            if all(_inside(value.shape[1:], profile[name], start=1) for name, value in feeds.items())
        ]
        if not fitting:
            raise RunnerError(self._refusal(feeds["pixel_values"].shape))
        return int(max(fitting))

    def _slot(self, part: Mapping[str, Tensor]) -> _Slot:
        """The slot for the shapes of what is fed, which becomes the one used last."""
        shapes: Shapes = tuple((name, tuple(value.shape)) for name, value in part.items())
        if shapes in self._slots:
            self._slots.move_to_end(shapes)
            return self._slots[shapes]
        place = self._profile(part)
        while len(self._slots) >= self._most_slots:
            _, oldest = self._slots.popitem(last=False)
            oldest.finish()
        slot = _Slot(
            self._backend,
            self._engine,
            self._device,
            place,
            shapes,
            self.sidecar,
            self._kernels,
            graphs=self._graphs,
            name=self.name,
        )
        self._slots[shapes] = slot
        return slot

    def _profile(self, part: Mapping[str, Tensor]) -> int:
        """The profile whose preferred shape is nearest among those that take what is fed."""
        fitting = [
            (abs(value.numel() - int(np.prod(profile["pixel_values"][1]))), place)
            for place, profile in enumerate(self.sidecar.profiles)
            for value in (part["pixel_values"],)
            if all(_inside(tensor.shape, profile[name]) for name, tensor in part.items())
        ]
        if not fitting:
            raise RunnerError(self._refusal(part["pixel_values"].shape))
        return min(fitting)[1]

    def _refusal(self, shape: Sequence[int]) -> str:
        ranges = [
            " to ".join("x".join(map(str, bound)) for bound in (profile["pixel_values"][0], profile["pixel_values"][2]))
            for profile in self.sidecar.profiles
        ]
        return (
            f"{self.name} was given images of {'x'.join(map(str, shape))}, which none of its profiles takes: {'; '.join(ranges)}. "
            "Resize the images, or compile with other profiles."
        )


def _built_by(artifact: ModelArtifact, name: str) -> str | None:
    """The back end that built an engine, as its sidecar says; None where there is none, which the check of the engine tells."""
    path = artifact.path / "engines" / f"{name}.json"
    return read_sidecar(path).backend if path.is_file() else None


def _inside(shape: Sequence[int], bounds: Sequence[Sequence[int]], *, start: int = 0) -> bool:
    low, _, high = bounds
    return all(a <= side <= b for a, side, b in zip(low[start:], shape, high[start:], strict=True))


class _Slot:
    """Everything that one shape needs to run: a context, a stream, and buffers that stay where they are.

    Args:
        backend: What runs the engine.
        engine: Deserialized engine.
        device: Where it runs.
        profile: Number of the profile.
        shapes: Name and shape of every input.
        sidecar: Types of inputs and outputs.
        kernels: File of kernels compiled at run time.
        graphs: Whether to record the work.
        name: Runner, for messages.
    """

    def __init__(
        self,
        backend: Backend,
        engine: Any,
        device: Device,
        profile: int,
        shapes: Shapes,
        sidecar: EngineSidecar,
        kernels: Path,
        *,
        graphs: bool,
        name: str,
    ) -> None:
        self._backend, self._device, self._graphs, self._name = backend, device, graphs, name
        self._kernels = kernels
        self._stream = device.stream()
        self._context = backend.create_context(engine, kernels)
        if self._context is None:
            needed = backend.engine_memory(engine) / 2**20
            raise RunnerError(
                f"{name}: the GPU has too little memory left for an execution context of {needed:.0f} MiB; compile with smaller "
                "profiles, or keep fewer shapes ready."
            )
        if not self._context.set_optimization_profile_async(profile, device.handle(self._stream)):
            raise RunnerError(f"{name}: TensorRT does not take profile {profile}; compile the engine again.")
        self._inputs = {key: device.empty(shape, _torch_type(sidecar.inputs[key])) for key, shape in shapes}
        for key, shape in shapes:
            if not self._context.set_input_shape(key, shape):
                raise RunnerError(
                    f"{name}: TensorRT refuses {key} of {'x'.join(map(str, shape))}, which its profile should take."
                )
        missing = self._context.infer_shapes()
        if missing:
            raise RunnerError(f"{name}: TensorRT cannot tell the shapes of {list(missing)}; compile the engine again.")
        self.outputs = {
            key: device.empty(tuple(self._context.get_tensor_shape(key)), _torch_type(facts))
            for key, facts in sidecar.outputs.items()
        }
        self._host_inputs = {key: device.pinned(tuple(value.shape), value.dtype) for key, value in self._inputs.items()}
        self._host_outputs = {key: device.pinned(tuple(value.shape), value.dtype) for key, value in self.outputs.items()}
        for key, value in (*self._inputs.items(), *self.outputs.items()):
            self._place(key, value)
        self._runs = 0
        self._replay: Callable[[], None] | None = None

    def start_from_host(self, part: Mapping[str, Tensor]) -> None:
        """Queue a run on tensors of the host."""
        self.finish()
        for key, value in part.items():
            self._host_inputs[key].copy_(value)
            self._device.copy(self._inputs[key], self._host_inputs[key], self._stream)
        self._execute()

    def start_on_device(self, part: Mapping[str, Tensor]) -> None:
        """Queue a run on tensors of the device, between what the caller queued before and what it queues after."""
        self._device.wait_for_caller(self._stream)
        for key, value in part.items():
            # A recorded graph reads from where it was recorded; without one the engine reads where the tensor lies.
            if self._graphs:
                self._device.copy(self._inputs[key], value, self._stream)
            else:
                self._place(key, value)
        self._execute()
        self._device.let_caller_wait(self._stream)

    def to_host(self) -> dict[str, Tensor]:
        """Outputs on the host, after waiting for them; the next run writes over them."""
        for key, value in self.outputs.items():
            self._device.copy(self._host_outputs[key], value, self._stream)
        self.finish()
        return self._host_outputs

    def finish(self) -> None:
        """Wait for what is in flight."""
        self._device.synchronize(self._stream)

    def _place(self, key: str, value: Tensor) -> None:
        """Tell the engine where a tensor lies; it refuses addresses that are no multiple of what it needs."""
        if not self._context.set_tensor_address(key, value.data_ptr()):
            raise RunnerError(f"{self._name}: TensorRT does not take {key} where it lies in memory; pass a copy of it.")

    def _execute(self) -> None:
        if self._graphs and self._runs == 1:
            self._replay = self._device.record(self._enqueue, self._stream)
        if self._replay is not None:
            self._replay()
        else:
            self._enqueue()
        if self._runs == 0:
            self._backend.keep_cache(self._context, self._kernels)
        self._runs += 1

    def _enqueue(self) -> None:
        with self._backend.logger.recording() as records:
            done = self._context.execute_async_v3(self._device.handle(self._stream))
        if not done:
            said = "; ".join(self._backend.errors(records)) or "no reason was given"
            raise RunnerError(f"{self._name}: TensorRT failed: {' '.join(said.split())}")


def _torch_type(facts: Mapping[str, Any]) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, facts["dtype"])
    return dtype
