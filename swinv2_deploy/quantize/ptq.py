"""The quantize stage: an artifact with FP32 graphs becomes one that also holds them in INT8, and the ranges these came from.

Quantization-aware training will put its learned ranges into the same calibration table; from there on nothing differs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no type information

from calibration.collect import collect
from calibration.dataset import ImageFolder
from calibration.errors import CalibrationError
from calibration.table import CalibrationTable
from reference_model.model import SwinV2
from reference_model.preprocessing import ImageError, Preprocessing, read_image
from swinv2_deploy.artifacts import GROWING, LINEAGE, Lineage, ModelArtifact, read_artifact, write_artifact
from swinv2_deploy.errors import ArtifactError, QuantizeError, RunnerError
from swinv2_deploy.modeling.io import LARGEST_INLINE, SMALLEST_OUTSIDE, WEIGHTS, load_model
from swinv2_deploy.modeling.sites import quantization_sites
from swinv2_deploy.quantize.qdq import Flavor, insert_qdq
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.quantize.timing import speedup
from swinv2_deploy.runtime import Masks, OnnxRunner, masks_for, prove
from swinv2_deploy.runtime.grid import grid_for
from swinv2_deploy.runtime.load import preprocessing_for
from swinv2_deploy.runtime.onnx_file import FROM_IMAGES, OnnxFacts, append_metadata, read_facts

TABLE = "calibration_table.json"
MOST_IMAGES = 512
"""Calibration images when none are asked for; ranges do not move beyond some hundred."""
WORTH_KEEPING = 1.03
"""``model_uint8.onnx`` is kept where it is at least this many times as fast as ``model_int8.onnx``."""

Progress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeResult:
    """What a quantization made.

    Attributes:
        artifact: The new artifact.
        table: Range of every site.
        unsigned_speedup: Speed of the unsigned form over the signed one in ONNX Runtime, or None when it was not measured.
        skipped: Images that could not be read, with the reason.
    """

    artifact: ModelArtifact
    table: CalibrationTable
    unsigned_speedup: float | None
    skipped: tuple[str, ...]


def quantize(
    artifact: ModelArtifact,
    spec: QuantizeSpec,
    images: ImageFolder,
    path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Calibrate on images and write an artifact with INT8 graphs beside the FP32 ones.

    Args:
        artifact: Artifact with ``onnx/model.onnx``.
        spec: How to quantize.
        images: Photographs of what the model will see; never those that accuracy is judged on.
        path: Artifact folder to make.
        force: Whether an artifact that is already there is replaced.
        progress: Called with images done and in all.

    Raises:
        ArtifactError: When the source has no FP32 graph, or the folder cannot be written.
        CalibrationError: When a site is dead or not finite.
        QuantizeError: When scales do not fit the graph.
    """
    if "model" not in artifact.onnx_files:
        raise ArtifactError(f"{artifact.path} has no onnx/model.onnx to quantize; export it first.")
    if path.resolve() == artifact.path.resolve():
        raise ArtifactError(f"{path} is the artifact that is being quantized; use --out for another folder.")
    graphs = {name: facts for name, facts in _facts(artifact).items() if facts.precision == "fp32"}
    forms = [form for name, facts in graphs.items() for form in _forms(name, facts).values()]
    model = load_model(artifact)
    sites = quantization_sites(model.config, spec.policy)
    wanted = min(spec.images or MOST_IMAGES, len(images))
    lineage = Lineage(
        stage="quantize",
        spec=spec.to_dict() | {"sites": list(sites)},
        weights=artifact.lineage.weights,
        parent={"name": artifact.name, "sha256": artifact.sha256},
        seed=spec.seed,
    )
    size = sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file())
    # First of all: a place that is taken or full should be known before the images are worked through.
    with write_artifact(path, lineage, force=force, needed_bytes=2 * size) as folder:
        chosen, skipped = _readable(images.select(wanted, spec.seed))
        table = collect(
            model,
            _batches(
                chosen,
                artifact.preprocessing,
                spec.batch_for(artifact.preprocessing.size),
                progress,
                masks_for(model.config),
            ),
            {site: site for site in sites},
            manifest=chosen.manifest(),
            model_sha256=artifact.lineage.files[WEIGHTS],
            calibrator=spec.calibrator,
            seed=spec.seed,
        )
        _copy(artifact, folder, tuple(f"onnx/{name}.onnx" for name in forms))
        _save(table, folder / TABLE)
        ratios = {
            name: _quantize_graph(
                folder, name, facts, table, spec, preprocessing_for(artifact.preprocessing, facts.resolutions)
            )
            for name, facts in graphs.items()
        }
        for name in forms:
            _state_error(folder / "onnx" / f"{name}.onnx", model, artifact.preprocessing)
    return QuantizeResult(artifact=read_artifact(path), table=table, unsigned_speedup=ratios["model"], skipped=skipped)


def _save(table: CalibrationTable, path: Path) -> None:
    try:
        table.save(path)
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
    folder: Path, name: str, facts: OnnxFacts, table: CalibrationTable, spec: QuantizeSpec, preprocessing: Preprocessing
) -> float | None:
    """Write the quantized forms of one FP32 graph; how much faster the unsigned one is, or None when it was not measured."""
    source = folder / "onnx" / f"{name}.onnx"
    files = {flavor: folder / "onnx" / f"{form}.onnx" for flavor, form in _forms(name, facts).items()}
    signed, unsigned = files["int8"], files.get("uint8")
    _write(source, signed, table, "int8")
    if spec.unsigned == "never" or unsigned is None:
        return None
    _write(source, unsigned, table, "uint8")
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


def _write(source: Path, target: Path, table: CalibrationTable, flavor: Flavor) -> None:
    try:
        model = insert_qdq(ir.load(source), table.amax, flavor)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise QuantizeError(f"{source} is not an ONNX file that can be read ({error}); export again.") from error
    facts = {"calibrator": table.calibrator, "options": dict(table.options), "images": table.images, "sites": list(table.sites)}
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
        if name in (LINEAGE, TABLE) or name.startswith(replaced) or name.split("/")[0] in GROWING:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.file(name), target)


def _readable(images: ImageFolder) -> tuple[ImageFolder, tuple[str, ...]]:
    """The images that decode, and why the others do not."""
    good, skipped = [], []
    for name, path in zip(images.names, images.paths, strict=True):
        try:
            read_image(path)
            good.append(name)
        except ImageError as error:
            skipped.append(str(error))
    if not good:
        raise QuantizeError(f"None of the {len(images)} images in {images.root} can be read. The first: {skipped[0]}")
    return ImageFolder(images.root, tuple(good), images.classes), tuple(skipped)


def _batches(
    images: ImageFolder, preprocessing: Preprocessing, batch_size: int, progress: Progress | None, masks: Masks | None
) -> Iterator[torch.Tensor | tuple[torch.Tensor, ...]]:
    for start in range(0, len(images), batch_size):
        pixels = [preprocessing(read_image(path)) for path in images.paths[start : start + batch_size]]
        batch = np.stack(pixels)
        # Hidden patches are in every image the model was trained on, so ranges are measured with them.
        yield torch.from_numpy(batch) if masks is None else (torch.from_numpy(batch), torch.from_numpy(masks(batch)))
        if progress is not None:
            progress(start + len(pixels), len(images))
