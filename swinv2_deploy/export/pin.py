"""Files for one batch and size out of files for any: same weights, same integers, and nothing left to compute of the size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from swinv2_deploy.artifacts import ModelArtifact, write_json
from swinv2_deploy.atomic import whole_folder
from swinv2_deploy.errors import ArtifactError, ExportError, RunnerError, SpecError
from swinv2_deploy.export.write import write_alone
from swinv2_deploy.runtime import OnnxRunner, masks_for
from swinv2_deploy.runtime.fitting import fit
from swinv2_deploy.runtime.onnx_file import PREFIX, OnnxFacts, read_facts
from swinv2_deploy.runtime.pinned import Pinned, pinned_range, pinned_shapes
from swinv2_deploy.runtime.runner import Array

PINNED = "pinned"
"""Folder inside an artifact that such files go to."""

REPORT = "pinned.json"

LARGEST_CHANGE = {"fp32": 1e-4}
"""Root mean square of the change over that of the output, by precision, on noise."""
LARGEST_ROUNDED_CHANGE = 0.05
"""The same where values are rounded on the way: a flip is amplified, see `half_rest`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PinnedFile:
    """One file that was written.

    Attributes:
        name: Of the file it was made from, without suffix.
        path: Where it is.
        nodes: Operators before and after.
        change: Root mean square of the change of its outputs over that of the outputs, on noise; the largest of all outputs.
    """

    name: str
    path: Path
    nodes: tuple[int, int]
    change: float


def place_of(artifact: ModelArtifact, pinned: Pinned, out: Path | None = None) -> Path:
    """Folder that the files go to."""
    return (out or artifact.path / PINNED / "x".join(map(str, pinned))).absolute()


def chosen_files(artifact: ModelArtifact, pinned: Pinned, name: str | None) -> tuple[dict[str, OnnxFacts], dict[str, str]]:
    """What the files to pin say of themselves, by name, and why the others are left out.

    They are the one that is named, or all that take pixels of this size.

    Raises:
        SpecError: When there is none of that name, or the size is none.
        ArtifactError: When there is none at all.
        RunnerError: When a file is damaged, or none is right at this size.
    """
    files = artifact.onnx_files
    if not files:
        raise ArtifactError(f"{artifact.path} has no ONNX file; make one with 'swinv2-deploy export'.")
    if name is not None:
        stem = name.removesuffix(".onnx")
        if stem not in files:
            raise SpecError(f"{artifact.name} has no file {name!r}; expected one of {', '.join(files)}.")
        facts = read_facts(files[stem])
        pinned_shapes(pinned, facts, stem)
        return {stem: facts}, {}
    chosen: dict[str, OnnxFacts] = {}
    left: dict[str, str] = {}
    refused: RunnerError | None = None
    for stem, path in files.items():
        facts = read_facts(path)
        if facts.takes == "images":
            left[stem] = "it takes photographs, whose size is another one; name it with --onnx"
            continue
        try:
            pinned_shapes(pinned, facts, stem)
        except RunnerError as error:
            left[stem], refused = str(error), error
        else:
            chosen[stem] = facts
    if len(left) == len(files) and refused is not None:
        raise refused
    return chosen, left


def pin_files(
    artifact: ModelArtifact,
    pinned: Pinned,
    *,
    name: str | None = None,
    out: Path | None = None,
    force: bool = False,
    progress: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> list[PinnedFile]:
    """Write files of an artifact for one batch and size, and run each beside the one it was made from.

    Args:
        artifact: Artifact with ONNX files.
        pinned: Batch, height and width in px. For a file that takes photographs the size is theirs.
        name: The one file to take; None means all that take pixels and are right at this size.
        out: Folder to write, which appears whole or not at all; None means one inside the artifact.
        force: Whether an older one is replaced.
        progress: Called before each file with its name, its number and how many there are.

    Raises:
        SpecError: When there is no such file, or the size is none.
        ArtifactError: When a file was changed, or the folder is taken or cannot be written.
        RunnerError: When a file is not right at this size.
        ExportError: When a file computes something else than the one it was made from.
    """
    files, _ = chosen_files(artifact, pinned, name)
    paths = {stem: artifact.file(f"onnx/{stem}.onnx") for stem in files}
    for facts in files.values():
        for extra in facts.external:
            artifact.file(f"onnx/{extra}")
    place, size = place_of(artifact, pinned, out), sum(facts.size_bytes for facts in files.values())
    with whole_folder(place, partial(_refuse_taken, place, force=force), needed_bytes=size) as folder:
        found = []
        for number, (stem, facts) in enumerate(files.items()):
            progress(stem, number, len(files))
            found.append(_pinned(artifact, paths[stem], facts, pinned, folder))
        rows = [asdict(row) | {"path": row.path.name} for row in found]
        parent = {"name": artifact.name, "lineage_sha256": artifact.sha256}
        write_json(folder / REPORT, {"parent": parent, "batch": pinned[0], "size": list(pinned[1:]), "files": rows})
    return [replace(row, path=place / row.path.name) for row in found]


def _pinned(artifact: ModelArtifact, source: Path, facts: OnnxFacts, pinned: Pinned, folder: Path) -> PinnedFile:
    target, model = folder / source.name, ir.load(source)
    before = len(model.graph)
    fit(model, pinned_shapes(pinned, facts, source.stem))
    entries = model.metadata_props
    entries.pop(f"{PREFIX}proof", None)
    entries[f"{PREFIX}pinned"] = json.dumps(pinned)
    entries[f"{PREFIX}resolutions"] = json.dumps(asdict(pinned_range(pinned, facts)))
    write_alone(model, target)
    after = len(model.graph)
    del model
    try:
        change = _change(artifact, source, target, pinned)
    except RunnerError as error:
        raise ExportError(f"{source.name} does not run once pinned: {error}") from error
    limit = LARGEST_CHANGE.get(facts.precision, LARGEST_ROUNDED_CHANGE)
    if not change <= limit:  # also where it is no number
        raise ExportError(
            f"Pinned to {'x'.join(map(str, pinned))}, {source.name} computes something else: its outputs move by {change:.2e} of "
            f"their size; expected at most {limit:.0e}. Please report the config; without pinning the file is right."
        )
    return PinnedFile(name=source.stem, path=target, nodes=(before, after), change=change)


def _change(artifact: ModelArtifact, before: Path, after: Path, pinned: Pinned) -> float:
    old, new = (_outputs(artifact, path, pinned) for path in (before, after))
    return max(float(np.sqrt(np.mean((new[key] - value) ** 2) / max(np.mean(value**2), 1e-30))) for key, value in old.items())


def _outputs(artifact: ModelArtifact, path: Path, pinned: Pinned) -> dict[str, Array]:
    """Outputs for noise, without anything left in memory of what computed them."""
    runner = OnnxRunner(path, masks=masks_for(artifact.config), frugal=True)
    batch, *size = pinned
    generator = np.random.default_rng(0)
    if runner.facts.takes == "images":
        return runner.run(generator.integers(0, 256, (batch, *size, 3), np.uint8))
    return runner.run(generator.standard_normal((batch, artifact.config.num_channels, *size), np.float32))


def _refuse_taken(place: Path, *, force: bool) -> None:
    if place.exists() and not force:
        raise ArtifactError(f"{place} exists already; use --force to replace it, or --out for another folder.")
    if place.exists() and not (place / REPORT).is_file():
        raise ArtifactError(f"{place} was not written by 'swinv2-deploy pin', so it is not replaced; use --out.")
