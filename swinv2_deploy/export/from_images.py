"""A graph that takes photographs instead of pixels: the preprocessing and the model in one."""

from __future__ import annotations

import onnx_ir as ir

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ResolutionRange
from swinv2_deploy.errors import UnsupportedModelError
from swinv2_deploy.export.graph import GraphBuilder
from swinv2_deploy.export.preprocessing_graph import PreprocessingGraph
from swinv2_deploy.runtime.onnx_file import FROM_IMAGES
from swinv2_deploy.runtime.runner import Takes

NAME = f"model{FROM_IMAGES}"
"""File without suffix."""

INPUT: Takes = "images"


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


def static_range(preprocessing: Preprocessing) -> ResolutionRange:
    """The one size that the preprocessing makes."""
    return ResolutionRange(min=preprocessing.size, opt=preprocessing.size, max=preprocessing.size)
