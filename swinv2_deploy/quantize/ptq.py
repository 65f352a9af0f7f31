"""The quantize stage: an artifact with an FP32 graph becomes one that also holds INT8 graphs and the ranges they came from.

Quantization-aware training will put its learned ranges into the same calibration table; from there on nothing differs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no type information

from calibration.collect import collect
from calibration.dataset import ImageFolder
from calibration.errors import CalibrationError
from calibration.table import CalibrationTable
from reference_model.preprocessing import ImageError, Preprocessing, read_image
from swinv2_deploy.artifacts import GROWING, LINEAGE, Lineage, ModelArtifact, read_artifact, write_artifact
from swinv2_deploy.errors import ArtifactError, QuantizeError
from swinv2_deploy.modeling.io import SMALLEST_OUTSIDE, WEIGHTS, load_model
from swinv2_deploy.modeling.sites import quantization_sites
from swinv2_deploy.quantize.qdq import Flavor, insert_qdq
from swinv2_deploy.quantize.spec import QuantizeSpec
from swinv2_deploy.quantize.timing import speedup

TABLE = "calibration_table.json"
FROM_IMAGES = "model_from_images"
INT8_FROM_IMAGES = "model_int8_from_images.onnx"
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
    """Calibrate on images and write an artifact with INT8 graphs beside the FP32 one.

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
    source = artifact.file("onnx/model.onnx")
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
            _batches(chosen, artifact.preprocessing, spec.batch_for(artifact.preprocessing.size), progress),
            {site: site for site in sites},
            manifest=chosen.manifest(),
            model_sha256=artifact.lineage.files[WEIGHTS],
            calibrator=spec.calibrator,
            seed=spec.seed,
        )
        _copy(artifact, folder)
        _save(table, folder / TABLE)
        signed, unsigned = (folder / "onnx" / f"model_{flavor}.onnx" for flavor in ("int8", "uint8"))
        _write(source, signed, table, "int8")
        if FROM_IMAGES in artifact.onnx_files:
            taking_images = artifact.file(f"onnx/{FROM_IMAGES}.onnx")
            _write(taking_images, folder / "onnx" / INT8_FROM_IMAGES, table, "int8")
        faster = None
        if spec.unsigned != "never":
            _write(source, unsigned, table, "uint8")
            if spec.unsigned == "auto":
                faster = speedup(signed, unsigned, artifact.preprocessing.size)
                if faster < WORTH_KEEPING:
                    unsigned.unlink()
    return QuantizeResult(artifact=read_artifact(path), table=table, unsigned_speedup=faster, skipped=skipped)


def _save(table: CalibrationTable, path: Path) -> None:
    try:
        table.save(path)
    except CalibrationError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error  # the artifact says what is wrong with the disk
        raise


def _write(source: Path, target: Path, table: CalibrationTable, flavor: Flavor) -> None:
    try:
        model = insert_qdq(ir.load(source), table.amax, flavor)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise QuantizeError(f"{source} is not an ONNX file that can be read ({error}); export again.") from error
    facts = {"calibrator": table.calibrator, "options": dict(table.options), "images": table.images, "sites": list(table.sites)}
    model.metadata_props["swinv2_deploy.precision"] = flavor
    model.metadata_props["swinv2_deploy.quantization"] = json.dumps(facts)
    model.metadata_props.pop("swinv2_deploy.tested_sizes", None)
    if (source.parent / f"{source.name}.data").is_file():
        ir.save(model, target, external_data=f"{target.name}.data", size_threshold_bytes=SMALLEST_OUTSIDE)
    else:
        ir.save(model, target)
    try:
        onnx.checker.check_model(str(target), full_check=flavor == "int8")
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise QuantizeError(f"The quantized graph {target.name} is not valid ONNX: {error}") from error


def _copy(artifact: ModelArtifact, folder: Path) -> None:
    """Copy every file of the source that is not replaced, after its hash was checked."""
    names = ("model_int8.onnx", "model_uint8.onnx", INT8_FROM_IMAGES)
    replaced = {LINEAGE, TABLE, *(f"onnx/{name}{end}" for name in names for end in ("", ".data"))}
    for name in artifact.lineage.files:
        if name in replaced or name.split("/")[0] in GROWING:
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
    images: ImageFolder, preprocessing: Preprocessing, batch_size: int, progress: Progress | None
) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), batch_size):
        pixels = [preprocessing(read_image(path)) for path in images.paths[start : start + batch_size]]
        yield torch.from_numpy(np.stack(pixels))
        if progress is not None:
            progress(start + len(pixels), len(images))
