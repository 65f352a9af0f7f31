"""From an artifact's ONNX file to an engine, over a half-precision rest where one is asked for."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.engine.build import Progress
from swinv2_deploy.engine.compile import (
    CompileResult,
    EngineSource,
    chosen_onnx,
    compile_engine,
    place_for,
    profiles_of,
    refuse_unsuited,
)
from swinv2_deploy.engine.profiles import Profile
from swinv2_deploy.engine.spec import EngineSpec
from swinv2_deploy.export.rest import half_rest
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.runtime.onnx_file import read_facts
from swinv2_deploy.runtime.runner import Rest
from swinv2_deploy.runtime.tensorrt.backend import Backend, choose_backend


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedEngine:
    """What a compilation will do, before anything is built.

    Attributes:
        onnx: Name of the ONNX file.
        rest: Format that its rest is brought into, or None where the file is compiled as it is.
        precision: Number format of what is compiled.
        profiles: Batches and sizes.
        backend: What builds.
        plan: Where the engine goes.
    """

    onnx: str
    rest: Rest | None
    precision: str
    profiles: tuple[Profile, ...]
    backend: Backend
    plan: Path


def planned_engine(artifact: ModelArtifact, spec: EngineSpec, name: str | None, *, force: bool = False) -> PlannedEngine:
    """Look at everything that a compilation depends on.

    Args:
        artifact: Artifact with ONNX files.
        spec: What is asked for.
        name: Name of the engine; None makes one of the file's and the rest's.
        force: Whether an engine of that name may be replaced.

    Raises:
        SpecError: When the request does not fit the file.
        ArtifactError: When there is no ONNX file, one was changed, or the place is taken.
        BackendMissing: When no back end is installed.
    """
    onnx = chosen_onnx(artifact, spec.onnx)
    path = artifact.file(f"onnx/{onnx}.onnx")
    facts = read_facts(path)
    refuse_unsuited(path, facts)
    source = EngineSource(path=path, facts=facts)
    rest = spec.rest if facts.precision == "int8" and facts.rest == "fp32" and spec.rest != "fp32" else None
    return PlannedEngine(
        onnx=onnx,
        rest=rest,
        precision=f"int8+{rest}" if rest else source.precision,
        profiles=profiles_of(spec, facts),
        plan=place_for(artifact, (f"{onnx}_{rest}" if rest else onnx) if name is None else name, force=force),
        backend=choose_backend(spec.backend),
    )


def compile_artifact(
    artifact: ModelArtifact,
    spec: EngineSpec,
    planned: PlannedEngine,
    *,
    force: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> CompileResult:
    """Bring an INT8 file's rest into half precision where that was asked for, and build an engine.

    Args:
        artifact: Artifact that the engine is added to.
        spec: How to build.
        planned: What :func:`planned_engine` found.
        force: Whether an engine of that name is replaced.
        progress: Called as the build goes on.

    Raises:
        ExportError: When the rest cannot be in half precision.
        EngineBuildError: When the back end refuses the network, or the engine covers too little.
        ArtifactError: When a file was changed, or the place cannot be written.
    """
    path = artifact.file(f"onnx/{planned.onnx}.onnx")
    facts = read_facts(path)
    for extra in facts.external:
        artifact.file(f"onnx/{extra}")
    source = EngineSource(path=path, facts=facts)
    with tempfile.TemporaryDirectory() as folder:
        if planned.rest == "fp16" or planned.rest == "bf16":
            progress(f"Bringing the rest into {planned.rest}", 0, 1)
            target = Path(folder) / f"{planned.plan.stem}.onnx"
            half_rest(path, target, planned.rest, load_model(artifact))
            source = EngineSource(path=target, facts=read_facts(target), derived=True)
        return compile_engine(
            artifact, source, spec, planned.profiles, planned.plan, planned.backend, force=force, progress=progress
        )
