"""The quantize stage: an artifact with FP32 graphs becomes one that also holds them in INT8, and the ranges these came from.

Quantization-aware training comes between the ranges and the graphs: it hands over other weights, other ranges and graphs made of
them; from there on nothing differs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no type information

from calibration.dataset import ImageFolder
from calibration.errors import CalibrationError
from calibration.histograms import save_histograms
from calibration.lints import Finding
from calibration.table import CalibrationTable
from reference_model.model import SwinV2
from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import (
    GROWING,
    LINEAGE,
    Lineage,
    ModelArtifact,
    WeightsOrigin,
    file_sha256,
    read_artifact,
    write_artifact,
    write_json,
)
from swinv2_deploy.drawing import has_matplotlib
from swinv2_deploy.errors import ArtifactError, QuantizeError, RunnerError
from swinv2_deploy.modeling.io import LARGEST_INLINE, SMALLEST_OUTSIDE, WEIGHTS, load_model, write_model_files
from swinv2_deploy.modeling.pruned import read_record
from swinv2_deploy.modeling.sites import watched_inputs
from swinv2_deploy.modeling.trained import TRAINED_WEIGHTS
from swinv2_deploy.quantize.calibrate import HISTOGRAMS, TABLE, Progress, calibrate, readable
from swinv2_deploy.quantize.picture import PICTURE, draw, drawable
from swinv2_deploy.quantize.qat import HISTORY as QAT_HISTORY
from swinv2_deploy.quantize.qat import Gain, Retrained, Trainer
from swinv2_deploy.quantize.qdq import Flavor, insert_qdq
from swinv2_deploy.quantize.search import search, unused
from swinv2_deploy.quantize.sensitivity import Choice, Sensitivity
from swinv2_deploy.quantize.sensitivity_picture import SWEEP_PICTURE, draw_sweep
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.quantize.timing import speedup
from swinv2_deploy.runtime import OnnxRunner, masks_for, prove
from swinv2_deploy.runtime.grid import grid_for
from swinv2_deploy.runtime.load import preprocessing_for
from swinv2_deploy.runtime.onnx_file import FROM_IMAGES, OnnxFacts, append_metadata, read_facts

SENSITIVITY = "sensitivity.json"
OURS = (TABLE, HISTOGRAMS, PICTURE, SENSITIVITY, SWEEP_PICTURE, TRAINED_WEIGHTS, QAT_HISTORY)
"""Files that a quantization writes: those of an earlier one are not taken over."""
WORTH_KEEPING = 1.03
"""``model_uint8.onnx`` is kept where it is at least this many times as fast as ``model_int8.onnx``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeResult:
    """What a quantization made.

    Attributes:
        artifact: The new artifact.
        table: Range of every site.
        unsigned_speedup: Speed of the unsigned form over the signed one in ONNX Runtime, or None when it was not measured.
        skipped: Images that could not be read, with the reason.
        sensitivity: The sweep over all sites, where one was asked for.
        choice: The sites that a budget chose, where there was one.
        gain: What training brought on images set aside, where there was one.
        findings: What looks wrong about the calibration and did not stop it.
        picture: The drawing of what every site saw, or None where there is no matplotlib or nothing to draw.
        sweep_picture: The drawing of the sweep, or None where there is no matplotlib or no sweep.
    """

    artifact: ModelArtifact
    table: CalibrationTable
    unsigned_speedup: float | None
    skipped: tuple[str, ...]
    sensitivity: Sensitivity | None = None
    choice: Choice | None = None
    gain: Gain | None = None
    findings: tuple[Finding, ...] = ()
    picture: Path | None = None
    sweep_picture: Path | None = None


def quantize(
    artifact: ModelArtifact,
    spec: QuantizeSpec,
    images: ImageFolder | None,
    path: Path,
    *,
    table: CalibrationTable | None = None,
    force: bool = False,
    progress: Progress | None = None,
    searched: Progress = lambda done, total: None,
    train: Trainer | None = None,
    recipe: Mapping[str, Any] | None = None,
    weights: WeightsOrigin | None = None,
) -> QuantizeResult:
    """Calibrate on images and write an artifact with INT8 graphs beside the FP32 ones.

    ``model.safetensors`` and the FP32 graphs stay those of the source, also after training: they are what drift is measured from.
    Only where the training says that it comes in their place, they are those of the trained weights in float.

    Args:
        artifact: Artifact with ``onnx/model.onnx``.
        spec: How to quantize.
        images: Photographs of what the model will see; never those that accuracy is judged on. None with a table.
        path: Artifact folder to make.
        table: Ranges measured before, instead of measuring them; the images then only judge them.
        force: Whether an artifact that is already there is replaced.
        progress: Called with images done and in all.
        searched: Called with measurements of the sweep done and in all.
        train: Trains the calibrated model and exports what it became; None quantizes the weights as they are.
        recipe: What the lineage says about that training, in plain JSON types.
        weights: Origin of the weights after training; None means that of the source.

    Raises:
        ArtifactError: When the source has no FP32 graph, or the folder cannot be written.
        CalibrationError: When a site cannot be measured; as a ``LintError``, when a finding stops it, with the names.
        QuantizeError: When scales do not fit the graph.
    """
    if "model" not in artifact.onnx_files:
        raise ArtifactError(f"{artifact.path} has no onnx/model.onnx to quantize; export it first.")
    if path.resolve() == artifact.path.resolve():
        raise ArtifactError(f"{path} is the artifact that is being quantized; use --out for another folder.")
    graphs = {name: facts for name, facts in _facts(artifact).items() if facts.precision == "fp32"}
    forms = [form for name, facts in graphs.items() for form in _forms(name, facts).values()]
    model = load_model(artifact)
    sites = spec.sites(model.config)
    lineage = Lineage(
        stage="quantize",
        spec=spec.to_dict() | {"sites": list(sites)} | (_origin(table) if table else {}) | dict(recipe or {}),
        weights=weights or artifact.lineage.weights,
        parent={"name": artifact.name, "sha256": artifact.sha256},
        seed=spec.seed,
    )
    size = sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file())
    # First of all: a place that is taken or full should be known before the images are worked through.
    with write_artifact(path, lineage, force=force, needed_bytes=2 * size) as folder:
        ranges = calibrate(artifact, model, spec, images, table, progress)
        table = ranges.table
        _copy(artifact, folder, tuple(f"onnx/{name}.onnx" for name in forms))
        sensitivity = choice = gain = None
        if spec.searches:
            if images is None or ranges.chosen is None:
                raise QuantizeError("A sweep over the sites needs images; give --data beside the calibration table.")
            rest = readable(unused(images, ranges.chosen, spec.tuning_images, spec.seed))[0]
            sensitivity, choice = search(model, artifact.preprocessing, table.amax, rest, spec, searched)
            write_json(folder / SENSITIVITY, sensitivity.to_dict() | {"choice": choice.to_dict() if choice else None})
            if has_matplotlib():
                draw_sweep(sensitivity, choice.left if choice else (), folder / SWEEP_PICTURE)
            table = table.only(watched_inputs(choice.sites)) if choice else table
        _save(table, folder / TABLE)
        drawn = drawable(table)
        if drawn:
            draw(table, folder / PICTURE)
        if train is None:
            form = _Form(folder / "onnx", table, table.amax, {"method": "ptq"})
            ratios = _quantize_graphs(folder, graphs, form, spec, artifact.preprocessing)
        else:
            with train(model, table) as trained:
                trained.write(folder)
                gain = trained.gain
                if trained.instead:
                    model = trained.form.model
                    _replace(artifact, trained, folder)
                method = {"method": "qat", "trained_sha256": file_sha256(folder / TRAINED_WEIGHTS)}
                form = _Form(trained.onnx, table, trained.form.ranges, method, file_sha256(folder / WEIGHTS))
                ratios = _quantize_graphs(folder, graphs, form, spec, artifact.preprocessing)
        for name in forms:
            _state_error(folder / "onnx" / f"{name}.onnx", model, artifact.preprocessing)
    return QuantizeResult(
        artifact=read_artifact(path),
        table=table,
        unsigned_speedup=ratios["model"],
        skipped=ranges.skipped,
        findings=ranges.findings,
        picture=path / PICTURE if drawn else None,
        sweep_picture=path / SWEEP_PICTURE if sensitivity and has_matplotlib() else None,
        sensitivity=sensitivity,
        choice=choice,
        gain=gain,
    )


def _replace(artifact: ModelArtifact, trained: Retrained, folder: Path) -> None:
    """Put the trained weights, in float, and their graphs in the place of those that were copied."""
    write_model_files(folder, trained.form.model, artifact.preprocessing)
    for file in trained.onnx.iterdir():
        shutil.copyfile(file, folder / "onnx" / file.name)
    record = read_record(artifact)
    if record is not None:
        replace(record, recovered="quantize").write(folder)


@dataclass(frozen=True, slots=True)
class _Form:
    """What becomes INT8.

    Attributes:
        onnx: Folder with the FP32 graphs.
        table: What was measured.
        amax: Ranges in use.
        facts: What a file says of how they came about.
        model_sha256: Hash of the weights a file is judged by; None where it holds these very ones.
    """

    onnx: Path
    table: CalibrationTable
    amax: Mapping[str, float]
    facts: Mapping[str, str]
    model_sha256: str | None = None


def _origin(table: CalibrationTable) -> dict[str, object]:
    """What the lineage says of a table that was made before, over what the spec would have measured."""
    return {"calibrator": table.calibrator, "images": table.images, "seed": table.seed, "reused_table": True}


def _quantize_graphs(
    folder: Path, graphs: Mapping[str, OnnxFacts], form: _Form, spec: QuantizeSpec, preprocessing: Preprocessing
) -> dict[str, float | None]:
    """Write the quantized forms of all FP32 graphs; see :func:`_quantize_graph` for the numbers, by name."""
    return {
        name: _quantize_graph(folder, name, facts, form, spec, preprocessing_for(preprocessing, facts.resolutions))
        for name, facts in graphs.items()
    }


def _save(table: CalibrationTable, path: Path) -> None:
    try:
        table.save(path)
        if table.histograms:
            save_histograms(table.histograms, path.with_name(HISTOGRAMS), path)
    except CalibrationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error  # the artifact says what is wrong with the disk
        raise


def _facts(artifact: ModelArtifact) -> dict[str, OnnxFacts]:
    """What the ONNX files say about themselves, by name."""
    try:
        return {name: read_facts(artifact.file(f"onnx/{name}.onnx")) for name in artifact.onnx_files}
    except RunnerError as error:
        raise QuantizeError(f"{artifact.path} cannot be quantized: {error}") from error


def _forms(name: str, facts: OnnxFacts) -> dict[Flavor, str]:
    """Names of the quantized forms of an FP32 graph; one that takes photographs has no unsigned one, which is for speed alone."""
    if facts.takes == "images":
        return {"int8": f"{name.removesuffix(FROM_IMAGES)}_int8{FROM_IMAGES}"}
    return {flavor: f"{name}_{flavor}" for flavor in get_args(Flavor)}


def _quantize_graph(
    folder: Path, name: str, facts: OnnxFacts, form: _Form, spec: QuantizeSpec, preprocessing: Preprocessing
) -> float | None:
    """Write the quantized forms of one FP32 graph; how much faster the unsigned one is, or None when it was not measured."""
    source = form.onnx / f"{name}.onnx"
    files = {flavor: folder / "onnx" / f"{suffixed}.onnx" for flavor, suffixed in _forms(name, facts).items()}
    signed, unsigned = files["int8"], files.get("uint8")
    _write(source, signed, form, "int8")
    if spec.unsigned == "never" or unsigned is None:
        return None
    _write(source, unsigned, form, "uint8")
    if spec.unsigned == "always":
        return None
    faster = speedup(signed, unsigned, preprocessing.size)
    if faster < WORTH_KEEPING:
        unsigned.unlink()
        unsigned.with_name(f"{unsigned.name}.data").unlink(missing_ok=True)
    return faster


def _state_error(file: Path, model: SwinV2, preprocessing: Preprocessing) -> None:
    """Put the file's largest differences from the reference into its metadata; ``verify`` judges them, on photographs."""
    if not file.is_file():
        return
    runner = OnnxRunner(file, masks=masks_for(model.config), frugal=True)
    takes = runner.facts.takes
    grid = grid_for("quick", runner.resolutions, takes)
    proof = prove(runner, model, grid, preprocessing=preprocessing if takes == "images" else None, judged=False)
    append_metadata(file, {"proof": proof.to_dict()})


def _write(source: Path, target: Path, form: _Form, flavor: Flavor) -> None:
    table = form.table
    try:
        model = insert_qdq(ir.load(source), form.amax, flavor)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise QuantizeError(f"{source} is not an ONNX file that can be read ({error}); export again.") from error
    facts = {
        **form.facts,
        "calibrator": table.calibrator,
        "options": dict(table.options),
        "images": table.images,
        "sites": list(table.sites),
    }
    if form.model_sha256 is not None:
        # The model it is judged by, not the one whose weights it holds.
        model.metadata_props["swinv2_deploy.model_sha256"] = form.model_sha256
    model.metadata_props["swinv2_deploy.precision"] = flavor
    model.metadata_props["swinv2_deploy.quantization"] = json.dumps(facts)
    model.metadata_props.pop("swinv2_deploy.proof", None)
    ir.external_data.load_to_model(model)
    if sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value) > LARGEST_INLINE:
        ir.save(model, target, external_data=f"{target.name}.data", size_threshold_bytes=SMALLEST_OUTSIDE)
    else:
        ir.save(model, target)
    try:
        onnx.checker.check_model(str(target), full_check=flavor == "int8")
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise QuantizeError(f"The quantized graph {target.name} is not valid ONNX: {error}") from error


def _copy(artifact: ModelArtifact, folder: Path, replaced: tuple[str, ...]) -> None:
    """Copy every file of the source after its hash was checked, but for those whose name begins as one that is replaced."""
    for name in artifact.lineage.files:
        if name in (LINEAGE, *OURS) or name.startswith(replaced) or name.split("/")[0] in GROWING:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.file(name), target)
