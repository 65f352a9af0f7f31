"""A prepared file in its runtime, ready to run. All runtimes get the same number of threads and the same treatment of denormals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.cases import Case
from benchmarks.peers.peers import PEERS

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model that runs.

    Attributes:
        run: Function from images (B, 3, H, W) to logits (B, K).
        facts: What the runtime says about it: nodes, precision.
    """

    run: Callable[[Array], Array]
    facts: dict[str, Any]


def in_batches(pixels: Array, batch: int) -> list[Array]:
    """Images (n, 3, H, W) cut into as many batches (B, 3, H, W) as hold all; the last begins again with the first images."""
    count = -(-len(pixels) // batch)
    return list(np.ascontiguousarray(pixels[np.arange(count * batch) % len(pixels)].reshape(count, batch, *pixels.shape[1:])))


def load(key: str, case: Case, batch: int, folder: Path, weights: Path, *, threads: int, flush: bool) -> Loaded:
    """Load a peer.

    Args:
        key: Its name in ``PEERS``.
        case: Model.
        batch: Images a run.
        folder: Folder of its last step.
        weights: Folder of the weights.
        threads: Threads of the runtime.
        flush: Whether denormal numbers count as zero.
    """
    peer = PEERS[key]
    file = folder / peer.model_file
    if peer.runtime in ("torch", "compile"):
        return _torch(key, case, weights, threads=threads, flush=flush)
    if peer.runtime == "onnxruntime":
        return _onnxruntime(file, pinned="pinned" in key, threads=threads, flush=flush)
    height, width = case.config.image_size
    static = "dynamic" not in key
    return _openvino(
        file,
        (batch, case.config.num_channels, height, width) if static else None,
        threads=threads,
        flush=flush,
        precision="f32" if peer.precision == "fp32" else None,
    )


def _torch(key: str, case: Case, weights: Path, *, threads: int, flush: bool) -> Loaded:
    import torch

    from benchmarks.peers.models import timm_model, transformers_model

    torch.set_num_threads(threads)
    torch.set_flush_denormal(flush)  # before the threads start, which inherit it
    model: Any = (transformers_model if key == "transformers" else timm_model)(case, weights)
    if PEERS[key].runtime == "compile":
        model = torch.compile(model)

    def run(images: Array) -> Array:
        with torch.inference_mode():
            logits: Array = model(torch.from_numpy(images)).numpy()
        return logits

    return Loaded(run=run, facts={"precision": "fp32"})


def _onnxruntime(file: Path, *, pinned: bool, threads: int, flush: bool) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # As this project's runner has it, for everybody: threads that spin after a run would disturb the next peer.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", "1" if flush else "0")
    if pinned:  # as this project's runner has it, which is not imported here: it would bring PyTorch into the memory measured
        options.enable_mem_pattern = options.enable_mem_reuse = False
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Array) -> Array:
        logits: Array = session.run(None, {name: images})[0]
        return logits

    return Loaded(run=run, facts={})


def _openvino(file: Path, shape: tuple[int, ...] | None, *, threads: int, flush: bool, precision: str | None) -> Loaded:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    if shape is not None:
        model.reshape(list(shape))
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "CPU_DENORMALS_OPTIMIZATION": flush,
    }
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(model, "CPU", settings)
    used = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
    request = compiled.create_infer_request()

    def run(images: Array) -> Array:
        logits: Array = request.infer([images])[0]
        return logits

    return Loaded(run=run, facts={"float_precision": used})
