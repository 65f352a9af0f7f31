"""Making the graphs of an artifact again, of other weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reference_model.model import SwinV2
from swinv2_deploy.artifacts import ModelArtifact, WeightsOrigin
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.modeling.source import Source
from swinv2_deploy.runtime.onnx_file import OnnxFacts, read_facts


def export_like(artifact: ModelArtifact, model: SwinV2, path: Path, origin: WeightsOrigin | None = None) -> ModelArtifact:
    """Export trained weights as every FP32 graph of an artifact: the same sizes, under the same names.

    Args:
        artifact: Artifact whose graphs are made again.
        model: Other weights, of the same architecture or a pruned one.
        path: Artifact folder to make.
        origin: Where these weights come from; None means where the artifact's do.

    Raises:
        ArtifactError: When the artifact's graphs cannot be made again.
        ExportError: When a graph is wrong.
    """
    found = {name: read_facts(file) for name, file in artifact.onnx_files.items()}
    graphs = {name: facts for name, facts in found.items() if facts.precision == "fp32"}
    source = Source(
        model=model,
        preprocessing=artifact.preprocessing,
        origin=origin or artifact.lineage.weights,
        name=artifact.name,
        parent={"name": artifact.name, "sha256": artifact.sha256},
        seed=artifact.lineage.seed,
    )
    exported = export(source, _spec_of(graphs), path)
    missing = sorted(graphs.keys() - exported.onnx_files.keys())
    if missing:
        raise ArtifactError(
            f"{artifact.path} holds the graphs {missing}, which this version does not know how to make of trained weights; export "
            "again without them."
        )
    return exported


def _spec_of(graphs: Mapping[str, OnnxFacts]) -> ExportSpec:
    """What export is to be asked for, to make graphs of these sizes and names."""
    whole = graphs["model"].resolutions
    fixed = whole.min == whole.max
    pixels = {name: facts.resolutions for name, facts in graphs.items() if facts.takes == "pixel_values" and name != "model"}
    return ExportSpec(
        resolution=whole.opt,
        static=fixed,
        smallest=None if fixed else whole.min,
        largest=None if fixed else whole.max,
        sizes=tuple(found.opt for found in pixels.values() if found.min == found.max),
        bake_preprocessing=any(facts.takes == "images" for facts in graphs.values()),
    )
