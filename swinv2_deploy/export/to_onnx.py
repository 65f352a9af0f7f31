"""The export stage: a model becomes an artifact with ``onnx/model.onnx``."""

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
from swinv2_deploy.export.attention_graph import Array
from swinv2_deploy.export.check import check_graph
from swinv2_deploy.export.from_images import NAME, check_from_images, static_range, with_preprocessing
from swinv2_deploy.export.spec import ExportSpec
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.modeling.io import SMALLEST_OUTSIDE, WEIGHTS, write_model_files
from swinv2_deploy.modeling.source import Source

LARGEST_INLINE = 1_900_000_000
"""Bytes of weights that still fit into one protobuf file; beyond, they go into ``model.onnx.data`` beside it."""


def export(source: Source, spec: ExportSpec, path: Path, *, force: bool = False) -> ModelArtifact:
    """Write an artifact with weights, preprocessing and an FP32 ONNX graph that was run against the reference model.

    Args:
        source: Model to export, and where it comes from.
        spec: Sizes of the graph.
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
    with write_artifact(path, lineage, force=force, needed_bytes=(4 if spec.bake_preprocessing else 3) * size) as folder:
        write_model_files(folder, model, source.preprocessing)
        source.copy_evidence(folder)
        file = folder / "onnx" / "model.onnx"
        file.parent.mkdir()
        graph = SwinGraph(model.config, weights, resolutions).build(__version__)
        if size > LARGEST_INLINE:
            ir.save(graph, file, external_data=f"{file.name}.data", size_threshold_bytes=SMALLEST_OUTSIDE)
        else:
            ir.save(graph, file)
        errors = check_graph(file, model, resolutions)
        describe(file, source, resolutions, file_sha256(folder / WEIGHTS), {"precision": "fp32", "tested_sizes": errors})
        if spec.bake_preprocessing:
            _write_from_images(folder, source, weights, outside=size > LARGEST_INLINE)
    return read_artifact(path)


def _write_from_images(folder: Path, source: Source, weights: Mapping[str, Array], *, outside: bool) -> None:
    file, resolutions = folder / "onnx" / f"{NAME}.onnx", static_range(source.preprocessing)
    graph = SwinGraph(source.model.config, weights, resolutions).build(__version__)
    with_preprocessing(graph, source.preprocessing)
    if outside:
        ir.save(graph, file, external_data=f"{file.name}.data", size_threshold_bytes=SMALLEST_OUTSIDE)
    else:
        ir.save(graph, file)
    facts = {"precision": "fp32", "input": "images"}
    describe(file, source, resolutions, file_sha256(folder / WEIGHTS), facts)
    errors = check_from_images(file, source.model, source.preprocessing)
    proto = onnx.load(file, load_external_data=False)
    proto.metadata_props.add(key="swinv2_deploy.tested_images", value=json.dumps(errors))
    onnx.save(proto, file)


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
