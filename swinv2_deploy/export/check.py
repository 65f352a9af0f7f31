"""Run what was written: the ONNX file against the reference model, through the runner that its users have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from reference_model.model import SwinV2
from reference_model.preprocessing import MAX_PIXELS, Preprocessing
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, ExportError, RunnerError
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.runtime import FileRunner, OnnxRunner, Precision, Proof, load_runner, prove
from swinv2_deploy.runtime.grid import Grid, GridName, Size, grid_for
from swinv2_deploy.runtime.masks import masks_for
from swinv2_deploy.runtime.proof import ProofRow, read_grid

JUDGED = ("fp32",)
"""Precisions that must equal the reference within float32 rounding; what others may lose is for ``verify`` to judge."""

HALF_TOLERANCES: Mapping[Precision, float] = {"fp16": 0.1, "bf16": 0.4}
"""Largest root mean square of the error over that of the output. Random weights with temperatures up to 100, where float32 itself
is uncertain, reach 0.05 and 0.25; the bundled model 0.0006 and 0.005. NaN and infinity never pass."""

Progress = Callable[[str, ProofRow], object]
"""Called with the name of a file and what was found at one size."""


def check_graph(
    path: Path,
    model: SwinV2,
    grid: Grid,
    progress: Progress = lambda name, row: None,
    *,
    preprocessing: Preprocessing | None = None,
) -> Proof:
    """Run a file that was just written against the model it was written from.

    A file in half precision is run with every result rounded to its type, for a runtime on a CPU may leave roundings out and hide
    that a value leaves the type's range. ONNX Runtime itself runs FP16 too; the worse of the two is stated.

    Args:
        path: The file.
        model: Model it was written from.
        grid: Batches by size.
        progress: Called after every size.
        preprocessing: For a file that takes photographs, what was written into it.

    Raises:
        ExportError: When ONNX Runtime refuses the file.
    """
    told = partial(progress, path.stem)
    masks = masks_for(model.config)
    try:
        runner = OnnxRunner(path, masks=masks, frugal=True)
        proof = _proved(runner, model, grid, told, preprocessing)
        if runner.precision not in HALF_TOLERANCES or runner.emulated or proof.failures:
            return proof
        rounded = _proved(OnnxRunner(path, masks=masks, emulated=True, frugal=True), model, grid, lambda row: None)
        return rounded if rounded.failures or rounded.max_abs > proof.max_abs else proof
    except RunnerError as error:
        raise ExportError(f"The exported graph does not run: {error}") from error


def prove_artifact(
    artifact: ModelArtifact,
    grid: Literal["file"] | GridName = "file",
    progress: Progress = lambda name, row: None,
) -> dict[str, Proof]:
    """Run every ONNX file of an artifact against the artifact's own weights, once more.

    Args:
        artifact: Artifact with ONNX files.
        grid: ``file`` takes the grid each file says it was proved on, the others are those of an export. A file that takes
            photographs has one grid under both names.
        progress: Called after every size.

    Raises:
        ArtifactError: When it has no ONNX file, a file was changed, or one states no grid.
        RunnerError: When a file does not run.
    """
    if not artifact.onnx_files:
        raise ArtifactError(f"{artifact.path} has no ONNX file to prove; make one with 'swinv2-deploy export'.")
    model = load_model(artifact)
    proofs = {}
    for name in artifact.onnx_files:
        runner = load_runner(artifact, name, frugal=True)
        takes = runner.facts.takes
        chosen = _grid_of(runner, artifact) if grid == "file" else grid_for(grid, runner.resolutions, takes)
        preprocessing = artifact.preprocessing if takes == "images" else None
        proofs[name] = _proved(runner, model, chosen, partial(progress, name), preprocessing)
    return proofs


def _proved(
    runner: FileRunner,
    model: SwinV2,
    grid: Grid,
    progress: Callable[[ProofRow], object],
    preprocessing: Preprocessing | None = None,
) -> Proof:
    judged, limit = runner.precision in JUDGED, HALF_TOLERANCES.get(runner.precision)
    return prove(runner, model, grid, preprocessing=preprocessing, judged=judged, relative_limit=limit, progress=progress)


def failures(proofs: Mapping[str, Proof]) -> list[str]:
    """What is wrong with which file, a sentence each."""
    return [f"{name}: {failure}" for name, proof in proofs.items() for failure in proof.failures]


def _grid_of(runner: FileRunner, artifact: ModelArtifact) -> Grid:
    stated: Any = runner.facts.values.get("proof")
    grid = read_grid(stated)
    if grid is None or any(_outside(runner, size) for size in grid):
        raise ArtifactError(
            f"{runner.path} does not state the sizes it was proved at, or sizes outside its range; use --grid quick or "
            f"--grid full, or export {artifact.name} again."
        )
    return grid


def _outside(runner: FileRunner, size: Size) -> bool:
    """Whether a file is not made for a size; for photographs, whether one of that size would not be decoded."""
    if runner.facts.takes == "images":
        return size[0] * size[1] > MAX_PIXELS
    return runner.resolutions.refusal(*size) is not None
