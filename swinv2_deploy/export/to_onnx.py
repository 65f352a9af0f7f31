"""The export stage: a model becomes an artifact with ``onnx/model.onnx``, and with other forms of that graph if asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from swinv2_deploy import __version__
from swinv2_deploy.artifacts import Lineage, ModelArtifact, ResolutionRange, file_sha256, read_artifact, write_artifact
from swinv2_deploy.errors import ExportError, SpecError, ToleranceExceeded
from swinv2_deploy.export.attention_graph import Array
from swinv2_deploy.export.check import Progress, check_graph, failures
from swinv2_deploy.export.from_images import INPUT, NAME, static_range, with_preprocessing
from swinv2_deploy.export.metadata import describe
from swinv2_deploy.export.precision import half_from_float32
from swinv2_deploy.export.spec import ExportSpec
from swinv2_deploy.export.swin_graph import SwinGraph
from swinv2_deploy.export.write import OnnxWriter
from swinv2_deploy.modeling.io import LARGEST_INLINE, WEIGHTS, write_model_files
from swinv2_deploy.modeling.source import Source
from swinv2_deploy.runtime import Precision, Proof
from swinv2_deploy.runtime.grid import grid_for
from swinv2_deploy.runtime.onnx_file import append_metadata
from swinv2_deploy.runtime.runner import Takes

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
        SpecError: When the size range is empty, or the preprocessing is for other channels.
        ExportError: When a graph is wrong or a file cannot be made.
        ToleranceExceeded: When a graph is wrong somewhere on the full grid.
        UnsupportedModelError: When preprocessing is to be put before a model that takes no RGB pixels or more than pixels, or
            its filter has no graph.
        ArtifactError: When the folder cannot be written.
    """
    if spec.window_policy is not None:
        source = source.with_window_policy(spec.window_policy)
    model = source.model
    ranges = spec.graphs(model.config)
    if source.preprocessing.channels != model.config.num_channels:
        raise SpecError(
            f"The preprocessing has a mean for {source.preprocessing.channels} channels, and the model reads "
            f"{model.config.num_channels}; give it one for every channel."
        )
    resolutions = ranges["model"]
    asked = spec.resolution is not None and source.preprocessing.size != resolutions.opt
    if asked or resolutions.refusal(*source.preprocessing.size):
        source = replace(source, preprocessing=source.preprocessing.resized_to(*resolutions.opt))
    # These share their memory with the model.
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    size = sum(array.nbytes for array in weights.values())
    lineage = Lineage(
        stage="export",
        spec=spec.to_dict(),
        weights=source.origin,
        parent=source.parent,
        seed=source.seed,
    )
    count = len(ranges) + spec.bake_preprocessing
    outside = size * count > LARGEST_INLINE
    needed = size * (2 if outside else 1 + count) + size * len(ranges) * len(spec.half_precisions) // 2
    with write_artifact(path, lineage, force=force, needed_bytes=needed) as folder:
        write_model_files(folder, model, source.preprocessing)
        source.copy_evidence(folder)
        (folder / "onnx").mkdir()
        model_sha256 = file_sha256(folder / WEIGHTS)
        written: dict[Path, _Form] = {}
        with OnnxWriter(folder / "onnx" / DATA if outside else None) as writer:
            for form, graph in _graphs(source, spec, weights, ranges):
                file = folder / "onnx" / f"{form.name}.onnx"
                describe(graph, source, form.resolutions, model_sha256, form.facts)
                writer.write(graph, file)
                written[file] = form
        proofs = {}
        for file, form in written.items():
            grid = grid_for(spec.grid, form.resolutions, form.takes)
            preprocessing = source.preprocessing if form.takes == "images" else None
            proofs[file.stem] = check_graph(file, model, grid, progress, preprocessing=preprocessing)
            append_metadata(file, {"proof": proofs[file.stem].to_dict()})
        _refuse_wrong(proofs, spec)
    return read_artifact(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """One file to write.

    Attributes:
        name: Without suffix.
        resolutions: Sizes it is right at.
        precision: Number format.
        takes: Its input.
    """

    name: str
    resolutions: ResolutionRange
    precision: Precision = "fp32"
    takes: Takes = "pixel_values"

    @property
    def facts(self) -> dict[str, str]:
        """What its metadata say beside what those of every file do; an input that is not named is pixels."""
        return {"precision": self.precision} | ({"input": self.takes} if self.takes == "images" else {})


def _graphs(
    source: Source, spec: ExportSpec, weights: Mapping[str, Array], ranges: Mapping[str, ResolutionRange]
) -> Iterator[tuple[_Form, ir.Model]]:
    """Every graph in every precision, one at a time, and in FP32 alone the one that takes photographs."""
    config = source.model.config
    for name, sizes in ranges.items():
        graph = SwinGraph(config, weights, sizes).build(__version__)
        yield _Form(name=name, resolutions=sizes), graph
        for half in spec.half_precisions:
            form = _Form(name=f"{name}_{half}", resolutions=sizes, precision=half)
            yield form, half_from_float32(graph.clone(), half)
    if spec.bake_preprocessing:
        sizes = static_range(source.preprocessing)
        graph = SwinGraph(config, weights, sizes).build(__version__)
        yield _Form(name=NAME, resolutions=sizes, takes=INPUT), with_preprocessing(graph, source.preprocessing)


def _refuse_wrong(proofs: Mapping[str, Proof], spec: ExportSpec) -> None:
    wrong = failures(proofs)
    if not wrong:
        return
    more = f" Other sizes that are wrong: {len(wrong) - 1}." if len(wrong) > 1 else ""
    if [name for name, proof in proofs.items() if proof.failures] == [NAME]:
        advice = "Export without --bake-preprocessing, and please report the preprocessing."
    else:
        advice = (
            "In FP32 this is a bug of the exporter; please report the config. Half precision does not suit every model: leave "
            "it out."
        )
    message = f"An exported graph is wrong: {wrong[0]}.{more} Nothing was written. {advice}"
    raise ToleranceExceeded(message) if spec.grid == "full" else ExportError(message)
