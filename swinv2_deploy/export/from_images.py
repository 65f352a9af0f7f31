"""A file that takes photographs instead of pixels: the preprocessing and the model in one graph, run before it is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import ExportError, UnsupportedModelError
from swinv2_deploy.export.check import TOLERANCE, reference_outputs
from swinv2_deploy.export.graph import GraphBuilder
from swinv2_deploy.export.preprocessing_graph import PreprocessingGraph
from swinv2_deploy.resolution import photograph_sizes
from swinv2_deploy.runtime import OnnxRunner

NAME = "model_from_images"
"""File without suffix; ``uint8`` in a name is taken: there it is the form of the weights."""

INPUT = "images"


def with_preprocessing(model: ir.Model, preprocessing: Preprocessing) -> ir.Model:
    """Put the preprocessing before a model that takes ``pixel_values`` of its size, in place.

    Args:
        model: Static graph for ``preprocessing.size``.
        preprocessing: From photograph to pixels.

    Raises:
        UnsupportedModelError: When the model takes more than three channels or more than pixels, or the filter has no graph.
    """
    [pixels, *more] = model.graph.inputs
    if more or pixels.shape is None or pixels.shape[1] != 3:
        taken = [f"{value.name} {value.shape}" for value in model.graph.inputs]
        raise UnsupportedModelError(
            f"The model takes {taken}; preprocessing can be put before RGB pixels alone. Leave out --bake-preprocessing."
        )
    images = ir.Value(
        name=INPUT, shape=ir.Shape(["batch", "image_height", "image_width", 3]), type=ir.TensorType(ir.DataType.UINT8)
    )
    builder = GraphBuilder("preprocessing_")
    made = PreprocessingGraph(builder, preprocessing).write(images)
    part = builder.model([images], [made], name="preprocessing", producer_version="").graph
    nodes, stored = list(part), list(part.initializers.values())
    part.outputs.clear()
    part.remove(nodes)
    part.inputs.clear()
    part.initializers.clear()
    ir.convenience.replace_all_uses_with(pixels, made)
    model.graph.inputs[0] = images
    for value in stored:
        model.graph.register_initializer(value)
    model.graph.insert_before(model.graph[0], nodes)
    return model


def check_from_images(path: Path, model: SwinV2, preprocessing: Preprocessing) -> dict[str, float]:
    """Largest absolute error against preprocessing in Python and the reference model, by size of the photograph ("300x200").

    Raises:
        ExportError: When an output is wrong.
        RunnerError: When ONNX Runtime refuses the file.
    """
    runner = OnnxRunner(path)
    errors: dict[str, float] = {}
    for height, width in photograph_sizes(preprocessing.size):
        image = synthetic_image(height, width)
        with torch.no_grad():
            expected = reference_outputs(model, torch.from_numpy(preprocessing(image))[None])
        found = runner.run(image[None])
        size = f"{height}x{width}"
        for name, wanted in expected.items():
            difference, largest = float(np.abs(found[name] - wanted).max()), float(np.abs(wanted).max())
            if not difference <= TOLERANCE * largest:
                raise ExportError(
                    f"The exported preprocessing is wrong for photographs of {size} px: {name} differs by {difference:.2e} where "
                    f"the reference reaches {largest:.2e}. Export without --bake-preprocessing, and please report the recipe."
                )
            errors[size] = max(errors.get(size, 0.0), difference)
    return errors


def synthetic_image(height: int, width: int) -> NDArray[np.uint8]:
    """A seeded image (H, W, 3) with slopes, hard edges and noise, so that filters overshoot and round."""
    generator = np.random.default_rng([height, width])
    slope = np.linspace(0, 160, width)[None, :, None] + np.linspace(60, 0, height)[:, None, None]
    edges = 255.0 * (np.indices((height, width)).sum(0) // 7 % 2)[..., None]
    mixed = np.where(generator.random((height, width, 1)) < 0.3, edges, slope) + generator.normal(0, 12, (height, width, 3))
    return np.asarray(mixed.clip(0, 255), np.uint8)


def static_range(preprocessing: Preprocessing) -> ResolutionRange:
    """The one size that the preprocessing makes."""
    return ResolutionRange(min=preprocessing.size, opt=preprocessing.size, max=preprocessing.size)
