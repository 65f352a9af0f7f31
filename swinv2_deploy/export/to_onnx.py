"""The export stage: a model becomes an artifact with ``onnx/model.onnx``, and in half precision where that was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from swinv2_deploy import __version__
from swinv2_deploy.artifacts import Lineage, ModelArtifact, ResolutionRange, file_sha256, read_artifact, write_artifact
from swinv2_deploy.errors import ExportError
from swinv2_deploy.export.check import check_graph, check_half_graph
from swinv2_deploy.export.precision import half_from_float32
from swinv2_deploy.export.spec import ExportSpec
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.modeling.io import SMALLEST_OUTSIDE, WEIGHTS, write_model_files
from swinv2_deploy.modeling.source import Source

LARGEST_INLINE = 1_900_000_000
"""Bytes of weights that still fit into one protobuf file; beyond, they go into ``model.onnx.data`` beside it."""


def export(source: Source, spec: ExportSpec, path: Path, *, force: bool = False) -> ModelArtifact:
    """Write an artifact with weights, preprocessing and ONNX graphs that were run against the reference model.

    Args:
        source: Model to export, and where it comes from.
        spec: Sizes and precisions of the graphs.
        path: Artifact folder to make.
        force: Whether an artifact that is already there is replaced.

    Raises:
        SpecError: When the size range is empty.
        ExportError: When the graph is wrong or the file cannot be made.
        ArtifactError: When the folder cannot be written.
    """
    model = source.model
    resolutions = spec.resolutions(model.config)
    asked = spec.resolution is not None and source.preprocessing.size != resolutions.opt
    if asked or resolutions.refusal(*source.preprocessing.size):
        source = replace(source, preprocessing=source.preprocessing.resized_to(*resolutions.opt))
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    size = sum(array.nbytes for array in weights.values())
    lineage = Lineage(
        stage="export",
        spec=spec.to_dict(),
        weights=source.origin,
        parent=source.parent,
        seed=source.seed,
    )
    needed = 3 * size + size * len(spec.half_precisions) // 2
    with write_artifact(path, lineage, force=force, needed_bytes=needed) as folder:
        write_model_files(folder, model, source.preprocessing)
        source.copy_evidence(folder)
        model_sha256 = file_sha256(folder / WEIGHTS)
        file = folder / "onnx" / "model.onnx"
        file.parent.mkdir()
        graph = SwinGraph(model.config, weights, resolutions).build(__version__)
        save_graph(graph, file, size)
        errors = check_graph(file, model, resolutions)
        describe(file, source, resolutions, model_sha256, {"precision": "fp32", "tested_sizes": errors})
        for precision in spec.half_precisions:
            file = folder / "onnx" / f"model_{precision}.onnx"
            save_graph(half_from_float32(graph.clone(), precision), file, size // 2)
            errors, how = check_half_graph(file, model, resolutions, precision)
            facts = {"precision": precision, "tested_sizes": errors, "tested_with": how}
            describe(file, source, resolutions, model_sha256, facts)
    return read_artifact(path)


def save_graph(graph: ir.Model, file: Path, size: int) -> None:
    """Write a graph with ``size`` bytes of weights, these outside where they are too many for one file."""
    if size > LARGEST_INLINE:
        ir.save(graph, file, external_data=f"{file.name}.data", size_threshold_bytes=SMALLEST_OUTSIDE)
    else:
        ir.save(graph, file)


def describe(file: Path, source: Source, resolutions: ResolutionRange, model_sha256: str, facts: Mapping[str, Any]) -> None:
    """Write what a user of the file must know into its metadata, and check that the file is valid ONNX."""
    config = source.model.config
    content = {
        "schema": 1,
        "config": config.to_dict(),
        "labels": list(config.labels),
        "preprocessing": asdict(source.preprocessing),
        "resolutions": asdict(resolutions),
        "weights_origin": asdict(source.origin),
        "model_sha256": model_sha256,
        **facts,
    }
    proto = onnx.load(file, load_external_data=False)
    for name, value in content.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = f"swinv2_deploy.{name}", value if isinstance(value, str) else json.dumps(value)
    onnx.save(proto, file)
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The exported graph is not valid ONNX: {error}") from error
