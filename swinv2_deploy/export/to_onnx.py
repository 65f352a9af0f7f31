"""The export stage: a model becomes an artifact with ``onnx/model.onnx``, and with static or half-precision graphs if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from swinv2_deploy import __version__
from swinv2_deploy.artifacts import Lineage, ModelArtifact, ResolutionRange, file_sha256, read_artifact, write_artifact
from swinv2_deploy.errors import ExportError, ToleranceExceeded
from swinv2_deploy.export.check import Progress, check_graph, failures
from swinv2_deploy.export.metadata import describe
from swinv2_deploy.export.precision import half_from_float32
from swinv2_deploy.export.spec import ExportSpec, HalfPrecision
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.export.write import OnnxWriter
from swinv2_deploy.modeling.io import LARGEST_INLINE, WEIGHTS, write_model_files
from swinv2_deploy.modeling.source import Source
from swinv2_deploy.runtime import Precision, Proof
from swinv2_deploy.runtime.grid import GRIDS
from swinv2_deploy.runtime.onnx_file import append_metadata

DATA = "model.onnx.data"
"""File with the weights of all graphs, where they do not lie in the graphs themselves."""


def export(
    source: Source,
    spec: ExportSpec,
    path: Path,
    *,
    force: bool = False,
    progress: Progress = lambda name, row: None,
) -> ModelArtifact:
    """Write an artifact with weights, preprocessing and ONNX graphs that were run against the reference model.

    Args:
        source: Model to export, and where it comes from.
        spec: Sizes and precisions of the graphs.
        path: Artifact folder to make.
        force: Whether an artifact that is already there is replaced.
        progress: Called after every size at which a graph was run.

    Raises:
        SpecError: When the size range is empty.
        ExportError: When a graph is wrong or a file cannot be made.
        ToleranceExceeded: When a graph is wrong somewhere on the full grid.
        ArtifactError: When the folder cannot be written.
    """
    if spec.window_policy is not None:
        source = source.with_window_policy(spec.window_policy)
    model = source.model
    ranges = spec.graphs(model.config)
    resolutions = ranges["model"]
    asked = spec.resolution is not None and source.preprocessing.size != resolutions.opt
    if asked or resolutions.refusal(*source.preprocessing.size):
        source = replace(source, preprocessing=source.preprocessing.resized_to(*resolutions.opt))
    # These share their memory with the model.
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    size = sum(array.nbytes for array in weights.values())
    outside = size * len(ranges) > LARGEST_INLINE
    lineage = Lineage(
        stage="export",
        spec=spec.to_dict(),
        weights=source.origin,
        parent=source.parent,
        seed=source.seed,
    )
    needed = size * (2 if outside else 1 + len(ranges)) + size * len(ranges) * len(spec.half_precisions) // 2
    with write_artifact(path, lineage, force=force, needed_bytes=needed) as folder:
        write_model_files(folder, model, source.preprocessing)
        source.copy_evidence(folder)
        (folder / "onnx").mkdir()
        model_sha256 = file_sha256(folder / WEIGHTS)
        written: dict[Path, ResolutionRange] = {}
        with OnnxWriter(folder / "onnx" / DATA if outside else None) as writer:
            for name, sizes in ranges.items():
                graph = SwinGraph(model.config, weights, sizes).build(__version__)
                for suffix, precision, form in _forms(graph, spec.half_precisions):
                    file = folder / "onnx" / f"{name}{suffix}.onnx"
                    describe(form, source, sizes, model_sha256, {"precision": precision})
                    writer.write(form, file)
                    written[file] = sizes
        proofs = {}
        for file, sizes in written.items():
            proofs[file.stem] = check_graph(file, model, GRIDS[spec.grid](sizes), progress)
            append_metadata(file, {"proof": proofs[file.stem].to_dict()})
        _refuse_wrong(proofs, spec)
    return read_artifact(path)


def _forms(graph: ir.Model, halves: Sequence[HalfPrecision]) -> Iterator[tuple[str, Precision, ir.Model]]:
    """A graph in every precision, one at a time, with what its file's name ends in."""
    yield "", "fp32", graph
    for precision in halves:
        yield f"_{precision}", precision, half_from_float32(graph.clone(), precision)


def _refuse_wrong(proofs: Mapping[str, Proof], spec: ExportSpec) -> None:
    wrong = failures(proofs)
    if not wrong:
        return
    more = f" Other sizes that are wrong: {len(wrong) - 1}." if len(wrong) > 1 else ""
    message = (
        f"An exported graph is wrong: {wrong[0]}.{more} Nothing was written. In FP32 this is a bug of the exporter; please report "
        "the config. Half precision does not suit every model: leave it out."
    )
    raise ToleranceExceeded(message) if spec.grid == "full" else ExportError(message)
