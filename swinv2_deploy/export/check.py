"""Run what was written: the ONNX file against the reference model, at sizes that decide whether it is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from reference_model.model import EncoderOutput, SwinV2
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import ExportError
from swinv2_deploy.export.spec import HalfPrecision
from swinv2_deploy.runtime.emulation import WEIGHTS_FOLDER, emulated_bytes

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

ORT_ERRORS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)

TOLERANCE = 1e-3
"""Largest error relative to the largest magnitude of the output; float32 noise of a SwinV2 stays below 1e-4."""


HALF_TOLERANCES: Mapping[HalfPrecision, float] = {"fp16": 0.1, "bf16": 0.4}
"""Largest root mean square of the error over that of the output. Random weights with temperatures up to 100, where float32 itself
is uncertain, reach 0.05 and 0.25; the bundled model 0.0006 and 0.005. NaN and infinity never pass."""


def check_sizes(resolutions: ResolutionRange) -> list[tuple[int, int]]:
    """Sizes to try: the one it is meant for, the smallest, and an odd rectangle between the two."""
    if resolutions.static:
        return [resolutions.opt]
    between = tuple((low + high) // 2 + step for low, high, step in zip(resolutions.min, resolutions.opt, (1, -6), strict=True))
    rectangle = tuple(
        min(max(side, low), high) for side, low, high in zip(between, resolutions.min, resolutions.max, strict=True)
    )
    return list(dict.fromkeys([resolutions.opt, resolutions.min, (rectangle[0], rectangle[1])]))


def check_graph(path: Path, model: SwinV2, resolutions: ResolutionRange) -> dict[str, float]:
    """Largest absolute error of an FP32 file against the reference model, by size ("256x256").

    Raises:
        ExportError: When ONNX Runtime refuses the file or an output is wrong.
    """
    session = _session(path)
    errors: dict[str, float] = {}
    for height, width in check_sizes(resolutions):
        images, expected = _case(model, height, width)
        found = session.run(list(expected), {"pixel_values": images.numpy()})
        largest = 0.0
        for (name, wanted), got in zip(expected.items(), found, strict=True):
            difference = float(np.abs(wanted - got).max())
            if not difference <= TOLERANCE * float(np.abs(wanted).max()):
                raise ExportError(
                    f"The exported graph is wrong at {height}x{width} px: {name} differs by {difference:.2e} where the reference "
                    f"reaches {float(np.abs(wanted).max()):.2e}. This is a bug of the exporter; please report the config."
                )
            largest = max(largest, difference)
        errors[f"{height}x{width}"] = largest
    return errors


def check_half_graph(
    path: Path, model: SwinV2, resolutions: ResolutionRange, precision: HalfPrecision
) -> tuple[dict[str, float], str]:
    """Largest absolute error of an FP16 or BF16 file, by size, and how it was run.

    Every result is rounded to the file's type, for a runtime on a CPU may leave roundings out and hide that one leaves the range.
    ONNX Runtime itself runs FP16 too; the larger error counts.

    Raises:
        ExportError: When ONNX Runtime refuses the file, or an output is not finite or too far from the reference.
    """
    sessions = {"float32 rounded after every operator": _session(path, emulated=True)}
    if precision == "fp16":
        sessions["ONNX Runtime"] = _session(path)
    errors: dict[str, float] = {}
    for height, width in check_sizes(resolutions):
        images, expected = _case(model, height, width)
        largest = 0.0
        for how, session in sessions.items():
            found = session.run(list(expected), {"pixel_values": images.numpy()})
            for (name, wanted), got in zip(expected.items(), found, strict=True):
                drift, limit = _relative_error(wanted, got), HALF_TOLERANCES[precision]
                if not drift <= limit:
                    others = "bf16 or fp32" if precision == "fp16" else "fp16 or fp32"
                    raise ExportError(
                        f"{path.name} is too far from the reference at {height}x{width} px ({how}): {name} is off by {drift:.1%} "
                        f"of its magnitude; expected at most {limit:.0%}. This model does not suit {precision}: use {others}."
                    )
                largest = max(largest, float(np.abs(wanted - got).max()))
        errors[f"{height}x{width}"] = largest
    return errors, " and ".join(sessions)


def _relative_error(wanted: Array, got: Array) -> float:
    """Root mean square of the error over that of the output; NaN where an output is not finite."""
    if not np.isfinite(got).all():
        return float("nan")
    return float(np.linalg.norm(wanted - got) / max(float(np.linalg.norm(wanted)), 1e-30))


def _session(path: Path, *, emulated: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Several sessions and PyTorch take turns on the same cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    try:
        return ort.InferenceSession(
            emulated_bytes(path) if emulated else str(path), options, providers=["CPUExecutionProvider"]
        )
    except ORT_ERRORS as error:
        raise ExportError(f"ONNX Runtime does not load the exported graph: {error}") from error


def _case(model: SwinV2, height: int, width: int) -> tuple[torch.Tensor, Mapping[str, Array]]:
    """Two images of noise, and what the reference makes of them."""
    generator = torch.Generator().manual_seed(height * 10_000 + width)
    images = torch.randn(2, model.config.num_channels, height, width, generator=generator)
    with torch.no_grad():
        return images, reference_outputs(model, images)


def reference_outputs(model: SwinV2, images: torch.Tensor) -> dict[str, Array]:
    """Outputs of the reference model under the names that the graph gives them."""
    out = model(images)
    if isinstance(out, EncoderOutput):
        return {"last_hidden_state": out.last_hidden_state.numpy(), "pooler_output": out.pooler_output.numpy()}
    if isinstance(out, dict):
        return {f"feature_maps.{name}": value.numpy() for name, value in out.items()}
    return {"logits": out.numpy()}
