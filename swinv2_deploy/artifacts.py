"""Artifacts: folders that are written whole or not at all, never change afterwards, and know where they come from.

``lineage.json`` is written last: a folder without it is not an artifact. It holds the hash of every other file, of the parent
artifact, what was asked, by which tools, and where the weights come from. No torch import.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from reference_model.config import ConfigError, SwinV2Config
from reference_model.preprocessing import Preprocessing, PreprocessingError
from swinv2_deploy.atomic import flush, whole_folder
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.resolution import ResolutionRange

__all__ = [
    "Lineage",
    "ModelArtifact",
    "ResolutionRange",
    "WeightsOrigin",
    "file_sha256",
    "newest_artifact",
    "read_artifact",
    "write_artifact",
    "write_json",
]

SCHEMA = 1
LINEAGE = "lineage.json"
TOOLS = ("torch", "onnx", "onnx-ir", "onnxruntime", "numpy", "pillow", "safetensors")
GROWING = ("engines", "pinned", "reports")
"""Sub-folders that gain entries after an artifact is finished, and so are not part of its hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsOrigin:
    """Where the weights come from.

    Attributes:
        kind: ``untrained``, ``file``, ``hub`` or ``trained``.
        source: File, folder or hub id; for untrained weights the seed.
        sha256: Hash of the source file, empty where there is none.
    """

    kind: str
    source: str
    sha256: str = ""

    @property
    def trained(self) -> bool:
        return self.kind != "untrained"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """What made an artifact. See ``docs/artifacts.md`` for the file.

    Attributes:
        stage: Command that made it.
        spec: What was asked of that command.
        weights: Origin of the weights.
        parent: Name and lineage hash of the artifact it was made from; empty for the first.
        seed: Seed of everything random in the stage, or None.
        created: UTC time, ISO 8601.
        command: Command line.
        tools: Versions of what computed it.
        files: sha256 of every file, by path inside the folder.
    """

    stage: str
    spec: Mapping[str, Any]
    weights: WeightsOrigin
    parent: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    created: str = ""
    command: tuple[str, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelArtifact:
    """A finished artifact folder.

    Attributes:
        path: The folder.
        config: Architecture of the weights.
        preprocessing: What images go through.
        lineage: What made it.
        sha256: Hash of ``lineage.json``, which pins every other file.
    """

    path: Path
    config: SwinV2Config
    preprocessing: Preprocessing
    lineage: Lineage
    sha256: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def onnx_files(self) -> dict[str, Path]:
        """Name without suffix to path of every ONNX file, ``model`` first."""
        found = sorted((self.path / "onnx").glob("*.onnx"), key=lambda path: (path.stem != "model", path.stem))
        return {path.stem: path for path in found}

    def file(self, name: str) -> Path:
        """A file of the artifact after its hash was checked.

        Raises:
            ArtifactError: When it is missing or differs from what was written.
        """
        path = self.path / name
        expected = self.lineage.files.get(name)
        if expected is None or not path.is_file():
            raise ArtifactError(f"{self.path} has no {name}; it holds {sorted(self.lineage.files)}.")
        if file_sha256(path) != expected:
            raise ArtifactError(
                f"{path} was changed or damaged after it was written (its hash differs); make the artifact again."
            )
        return path


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON with a stable layout, flushed to disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def write_artifact(path: Path, lineage: Lineage, *, force: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Fill the yielded folder; it becomes the artifact ``path`` when the block ends well, and vanishes when it does not.

    Args:
        path: Folder to make.
        lineage: What is being made; files, tools, time and command are added here.
        force: Whether an artifact that is already there is replaced.
        needed_bytes: Estimated size; refused before any work where the disk has less room.

    Raises:
        ArtifactError: When the place is taken, cannot be written, or the disk is full.
        ArtifactLocked: When another run is writing it.
    """
    path = path.absolute()
    with whole_folder(path, lambda: _refuse_taken(path, force=force), needed_bytes=needed_bytes) as temporary:
        yield temporary
        _finish(temporary, lineage)


def read_artifact(path: Path) -> ModelArtifact:
    """Open an artifact folder. Hashes are checked file by file, when a file is used.

    Raises:
        ArtifactError: When it is missing, incomplete, damaged or of another schema.
    """
    path = path.absolute()
    if not path.is_dir():
        raise ArtifactError(f"There is no artifact at {path}; make one with 'swinv2-deploy export'.")
    lineage = _lineage(path)
    artifact = ModelArtifact(
        path=path,
        config=_config(path),
        preprocessing=_preprocessing(path),
        lineage=lineage,
        sha256=file_sha256(path / LINEAGE),
    )
    for name in ("config.json", "preprocessor_config.json"):
        artifact.file(name)
    if artifact.preprocessing.channels != artifact.config.num_channels:
        raise ArtifactError(
            f"{path} gives a mean for {artifact.preprocessing.channels} channels, and its model reads "
            f"{artifact.config.num_channels}; make the artifact again."
        )
    return artifact


def newest_artifact(root: Path, *, besides: str | None = None) -> ModelArtifact:
    """The artifact in ``root`` that was made last. Older ones that are damaged do not matter.

    Args:
        root: Folder of artifacts.
        besides: Stage whose artifacts are passed over while there are others.

    Raises:
        ArtifactError: When there is none, or the newest is damaged.
    """
    found: list[tuple[bool, str, str]] = []
    for file in root.glob(f"*/{LINEAGE}"):
        with suppress(ArtifactError):
            content = _read_json(file, "")
            if not file.parent.name.startswith("."):
                found.append((content.get("stage") != besides, str(content.get("created")), file.parent.name))
    if not found:
        raise ArtifactError(
            f"There is no artifact in {root.absolute()}; make one with 'swinv2-deploy export', or name one with --model."
        )
    return read_artifact(root / max(found)[2])


def _lineage(path: Path) -> Lineage:
    content = _read_json(path / LINEAGE, f"{path} is not an artifact: it has no readable {LINEAGE}")
    if content.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path / LINEAGE} has schema {content.get('schema')!r}, this version reads {SCHEMA}; make the artifact again."
        )
    try:
        weights = WeightsOrigin(**content["weights"])
        names = ("stage", "spec", "parent", "seed", "created", "tools", "files")
        lineage = Lineage(weights=weights, command=tuple(content["command"]), **{name: content[name] for name in names})
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path / LINEAGE} is incomplete ({error}); make the artifact again.") from error
    if not all(isinstance(value, dict) for value in (lineage.spec, lineage.parent, lineage.tools, lineage.files)):
        raise ArtifactError(f"{path / LINEAGE} is damaged: spec, parent, tools and files must be objects; make it again.")
    # Later stages copy these files: a name must not lead out of the folder.
    outside = [name for name in lineage.files if not name or PurePosixPath(name).is_absolute() or ".." in name.split("/")]
    if outside:
        raise ArtifactError(f"{path / LINEAGE} names files outside the artifact: {outside[:3]}. Refused.")
    return lineage


def _config(path: Path) -> SwinV2Config:
    content = _read_json(path / "config.json", f"{path} has no readable config.json")
    try:
        return SwinV2Config.from_dict(content["swinv2_deploy"])
    except (KeyError, ConfigError) as error:
        raise ArtifactError(f"{path / 'config.json'} does not describe a model ({error}); make the artifact again.") from error


def _preprocessing(path: Path) -> Preprocessing:
    content = _read_json(path / "preprocessor_config.json", f"{path} has no readable preprocessor_config.json")
    try:
        return Preprocessing.from_huggingface(content)
    except PreprocessingError as error:
        raise ArtifactError(f"{path / 'preprocessor_config.json'} is not usable: {error}") from error


def _read_json(path: Path, problem: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{problem} ({error}). It was not finished, or is something else.") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{problem}: expected a JSON object.")
    return content


def _finish(folder: Path, lineage: Lineage) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/")[0] not in GROWING:
            path.chmod(0o644)
            flush(path)
            files[name] = file_sha256(path)
    tools = {name: metadata.version(name) for name in (*TOOLS, "swinv2-deploy") if _installed(name)}
    content = asdict(lineage) | {
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "tools": tools | {"python": platform.python_version()},
        "files": files,
    }
    write_json(folder / LINEAGE, {"schema": SCHEMA} | content)
    for place in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush(place)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _refuse_taken(path: Path, *, force: bool) -> None:
    if not path.exists():
        return
    if not force:
        raise ArtifactError(f"{path} exists already; use --force to replace it, or --out for another folder.")
    if not (path / LINEAGE).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise ArtifactError(f"{path} is not an artifact, so it is not replaced; use --out for another folder.")
