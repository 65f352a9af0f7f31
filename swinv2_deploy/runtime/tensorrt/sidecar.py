"""The sidecar of an engine: what it was built from, by what and for what; and the check that stands before every load.

A plan is machine code. It is hashed before anything else touches it, the bytes that were hashed are the bytes that are loaded, and
every reason to refuse it is looked for first. ``engine_host_code_allowed`` is never set.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from swinv2_deploy.artifacts import ModelArtifact, file_sha256, write_json
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.modeling.io import WEIGHTS
from swinv2_deploy.runtime.tensorrt.backend import Backend

SCHEMA = 1

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSidecar:
    """What stands beside a plan.

    Attributes:
        plan: Name of the plan's file.
        plan_sha256: Its hash.
        plan_bytes: Its size.
        onnx: The ONNX file it was built from, relative to the artifact's folder.
        onnx_sha256: Hash of that file and of every file with weights beside it, by path relative to the artifact's folder.
        model_sha256: Hash of the artifact's weights.
        artifact_sha256: Hash of the artifact's lineage.
        precision: Number format of the ONNX file, with that of its rest.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        version: Version of it.
        targets: GPUs it was built for.
        system: Operating system and processor.
        profiles: Smallest, preferred and largest shape of every input, for each profile.
        inputs: Shape, with -1 where it is free, and type of every input.
        outputs: The same for outputs.
        version_compatible: Whether later versions may run it.
        hardware_compatible: Whether GPUs of other generations may run it.
        weight_streaming: Whether weights may be streamed.
        options: Other options of the builder.
        activation_bytes: Memory for activations at the largest shape of each profile.
        created: UTC time, ISO 8601.
    """

    plan: str
    plan_sha256: str
    plan_bytes: int
    onnx: str
    onnx_sha256: Mapping[str, str]
    model_sha256: str
    artifact_sha256: str
    precision: str
    backend: str
    version: str
    targets: Sequence[str]
    system: str
    profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]]
    inputs: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, Mapping[str, Any]]
    version_compatible: bool
    hardware_compatible: bool
    weight_streaming: bool
    options: Mapping[str, Any]
    activation_bytes: Sequence[int]
    created: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(json.loads(json.dumps(asdict(self))))


def this_system() -> str:
    """Operating system and processor, as sidecars name them."""
    return f"{sys.platform} {platform.machine()}"


def write_sidecar(path: Path, sidecar: EngineSidecar) -> None:
    """Write a sidecar, with a hash of its own content."""
    content = {"schema": SCHEMA} | sidecar.to_dict()
    write_json(path, content | {"sha256": _own_hash(content)})


def read_sidecar(path: Path) -> EngineSidecar:
    """Read a sidecar, strictly.

    Raises:
        ArtifactError: When it is missing, damaged, altered or of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not readable ({error}), so the engine beside it is not loaded; {_rebuild()}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ArtifactError(f"{path} is no engine sidecar of schema {SCHEMA}; {_rebuild()}")
    stated = content.pop("sha256", None)
    if stated != _own_hash(content):
        raise ArtifactError(f"{path} was changed or damaged after it was written (its hash differs); {_rebuild()}")
    names = {field.name for field in fields(EngineSidecar)}
    del content["schema"]
    if content.keys() != names:
        raise ArtifactError(
            f"{path} has other entries than this version writes: {sorted(content.keys() ^ names)}; {_rebuild()}"
        )
    return EngineSidecar(**content)


def check_engine(artifact: ModelArtifact, name: str, backend: Backend) -> tuple[bytes, EngineSidecar]:
    """The bytes of an engine, after every reason to refuse it was looked for; nothing is deserialized here.

    Args:
        artifact: Artifact with the engine.
        name: Name of the engine, without suffix.
        backend: What will run it.

    Returns:
        The plan that was hashed, and its sidecar.

    Raises:
        ArtifactError: When the engine is missing, changed, stale, or was built for another machine; with how to build it again.
    """
    folder = artifact.path / "engines"
    plan_path = folder / f"{name}.plan"
    if not plan_path.is_file():
        known = sorted(path.stem for path in folder.glob("*.plan"))
        raise ArtifactError(
            f"{artifact.path} has no engine {name!r}; it has {known or 'none'}. {_rebuild(artifact).capitalize()}"
        )
    sidecar = read_sidecar(folder / f"{name}.json")
    again = _rebuild(artifact, sidecar)
    if sidecar.plan != plan_path.name:
        raise ArtifactError(f"{folder / name}.json belongs to {sidecar.plan}, not to {plan_path.name}; {again}")
    plan = plan_path.read_bytes()
    if len(plan) != sidecar.plan_bytes or hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
        raise ArtifactError(f"{plan_path} was changed or damaged after it was built (its hash differs); {again}")
    for reason in (*_stale(artifact, sidecar), *_foreign(sidecar, backend)):
        raise ArtifactError(f"{plan_path} {reason}; {again}")
    return plan, sidecar


def _stale(artifact: ModelArtifact, sidecar: EngineSidecar) -> list[str]:
    """Why an engine is not that of the artifact as it is now."""
    found = []
    if sidecar.model_sha256 != artifact.lineage.files.get(WEIGHTS) or sidecar.artifact_sha256 != artifact.sha256:
        found.append(f"was built from another artifact than {artifact.name} is now")
    if sidecar.onnx not in sidecar.onnx_sha256:
        found.append("does not state the hash of its ONNX file")
    for file, expected in sidecar.onnx_sha256.items():
        path = artifact.path / file
        if Path(file).is_absolute() or ".." in Path(file).parts:
            found.append(f"names a file outside the artifact, {file}")
        elif not path.is_file():
            found.append(f"was built from {file}, which is gone")
        elif file_sha256(path) != expected or artifact.lineage.files.get(file, expected) != expected:
            found.append(f"was built from another {file} than lies there now")
    return found


def _foreign(sidecar: EngineSidecar, backend: Backend) -> list[str]:
    """Why an engine is not for this machine."""
    found = []
    if sidecar.backend != backend.name:
        return [f"was built by {sidecar.backend}, and {backend.flavor} is to run it"]
    same = sidecar.version == backend.version
    if not same and not (sidecar.version_compatible and backend.runs_later(sidecar.version)):
        found.append(f"was built by version {sidecar.version}, and {backend.version} is installed")
    if sidecar.system != this_system() and backend.name != "tensorrt-rtx":
        found.append(f"was built on {sidecar.system}, and this is {this_system()}")
    if backend.name == "tensorrt" and not sidecar.hardware_compatible and tuple(sidecar.targets) != backend.default_targets:
        found.append(f"was built for {', '.join(sidecar.targets)}, and this is {', '.join(backend.default_targets)}")
    return found


def _rebuild(artifact: ModelArtifact | None = None, sidecar: EngineSidecar | None = None) -> str:
    command = "swinv2-deploy compile"
    if artifact is not None:
        command += f" --model {shlex.quote(os.fspath(artifact.path))}"
    if sidecar is not None and sidecar.onnx.startswith("onnx/"):
        command += f" --onnx {shlex.quote(Path(sidecar.onnx).stem)}"
    return f"rebuild with: {command} --force"


def _own_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
