"""Run what was written: the ONNX file against the reference model, at sizes that decide whether it is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from reference_model.model import EncoderOutput, SwinV2
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import ExportError
from swinv2_deploy.runtime.masks import MASK_INPUT, masks_for
from swinv2_deploy.runtime.runner import output_names

ORT_ERRORS = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)

TOLERANCE = 1e-3
"""Largest error relative to the largest magnitude of the output; float32 noise of a SwinV2 stays below 1e-4."""


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
    """Largest absolute error against the reference model, by size ("256x256").

    Raises:
        ExportError: When ONNX Runtime refuses the file or an output is wrong.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise ExportError(f"ONNX Runtime does not load the exported graph: {error}") from error
    errors: dict[str, float] = {}
    for height, width in check_sizes(resolutions):
        generator = torch.Generator().manual_seed(height * 10_000 + width)
        images = torch.randn(2, model.config.num_channels, height, width, generator=generator)
        masks = masks_for(model.config)
        hidden = {} if masks is None else {MASK_INPUT: masks(images.numpy())}
        with torch.no_grad():
            expected = reference_outputs(model, images, *(torch.from_numpy(mask) for mask in hidden.values()))
        found = session.run(list(expected), {"pixel_values": images.numpy()} | hidden)
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


def reference_outputs(
    model: SwinV2, images: torch.Tensor, *masks: torch.Tensor
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Outputs of the reference model under the names that the graph gives them."""
    out = model(images, *masks)
    if isinstance(out, EncoderOutput):
        return {"last_hidden_state": out.last_hidden_state.numpy(), "pooler_output": out.pooler_output.numpy()}
    if isinstance(out, dict):
        return {f"feature_maps.{name}": value.numpy() for name, value in out.items()}
    return {output_names(model.config)[0]: out.numpy()}
