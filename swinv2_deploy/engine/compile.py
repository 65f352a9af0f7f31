"""The compile stage: an ONNX file of an artifact becomes an engine in its ``engines`` folder, with a sidecar and a layer report."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from swinv2_deploy.artifacts import ModelArtifact, file_sha256, write_json
from swinv2_deploy.atomic import disk_errors, flush, locked, sweep
from swinv2_deploy.engine.build import Built, Progress, build
from swinv2_deploy.engine.coverage import check_floors, coverage
from swinv2_deploy.engine.inspect import layers_of
from swinv2_deploy.engine.profiles import Profile, profiles_for
from swinv2_deploy.engine.report import LayerReport, write_page
from swinv2_deploy.engine.spec import EngineSpec
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.modeling.io import WEIGHTS
from swinv2_deploy.runtime.onnx_file import OnnxFacts
from swinv2_deploy.runtime.tensorrt.backend import Backend
from swinv2_deploy.runtime.tensorrt.sidecar import EngineSidecar, this_system, write_sidecar

ENGINES = "engines"
PREFERRED = ("model_int8", "model_fp16", "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSource:
    """What an engine is built from.

    Attributes:
        path: ONNX file.
        facts: What it says of itself.
        derived: Whether it was made for this engine and is kept beside it.
    """

    path: Path
    facts: OnnxFacts
    derived: bool = False

    @property
    def precision(self) -> str:
        """Number format, with that of the rest of an INT8 file: ``int8+fp16``."""
        if self.facts.precision in ("int8", "uint8"):
            return f"{self.facts.precision}+{self.facts.rest}"
        return self.facts.precision


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileResult:
    """What a compilation made.

    Attributes:
        plan: The engine.
        sidecar: What it was built from and for.
        report: What the compiler made of the network.
        page: The report as a page.
    """

    plan: Path
    sidecar: EngineSidecar
    report: LayerReport
    page: Path


def chosen_onnx(artifact: ModelArtifact, name: str | None) -> str:
    """Name of the ONNX file to compile.

    Raises:
        SpecError: When there is no such file.
        ArtifactError: When the artifact has none at all.
    """
    files = artifact.onnx_files
    if not files:
        raise ArtifactError(f"{artifact.path} has no ONNX file to compile; make one with 'swinv2-deploy export'.")
    if name is None:
        return next((preferred for preferred in PREFERRED if preferred in files), next(iter(files)))
    stem = name.removesuffix(".onnx")
    if stem not in files:
        raise SpecError(f"{artifact.path} has no onnx/{stem}.onnx; it holds {', '.join(files)}.")
    return stem


def refuse_unsuited(source: Path, facts: OnnxFacts) -> None:
    """Refuse what no engine can take before anything is built.

    Raises:
        SpecError: With what to compile instead.
    """
    if facts.precision == "uint8":
        raise SpecError(f"{source.name} is the form for ONNX Runtime alone; compile model_int8, the same numbers for TensorRT.")
    if facts.takes == "images":
        raise SpecError(
            f"{source.name} resizes photographs with an antialiased filter, which TensorRT does not have; compile a file that "
            "takes pixel_values, and prepare photographs outside the engine."
        )


def profiles_of(spec: EngineSpec, facts: OnnxFacts) -> tuple[Profile, ...]:
    """The profiles that a spec asks of a file.

    Raises:
        SpecError: When a bound is outside the file's range.
    """
    return profiles_for(facts.resolutions, spec.batches, sizes=spec.sizes, bounds=spec.bounds)


def place_for(artifact: ModelArtifact, name: str, *, force: bool) -> Path:
    """Where an engine goes.

    Raises:
        ArtifactError: When one of that name is there and may not be replaced.
        SpecError: When the name is none for a file.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise SpecError(f"An engine cannot be called {name!r}; expected a plain file name without a suffix.")
    plan = artifact.path / ENGINES / f"{name}.plan"
    _refuse_taken(plan, force=force)
    return plan


def _refuse_taken(plan: Path, *, force: bool) -> None:
    if plan.exists() and not force:
        raise ArtifactError(f"{plan} exists already; use --force to replace it, or --name for another name.")


def compile_engine(
    artifact: ModelArtifact,
    source: EngineSource,
    spec: EngineSpec,
    profiles: tuple[Profile, ...],
    plan: Path,
    backend: Backend,
    *,
    force: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> CompileResult:
    """Build an engine and add it to an artifact: the plan, its sidecar, and the layer report as JSON and as a page.

    Nothing is added when the build fails or falls short of a floor.

    Args:
        artifact: Artifact that the ONNX file belongs to or was derived from.
        source: The ONNX file, which :func:`refuse_unsuited` let pass.
        spec: How to build.
        profiles: What :func:`profiles_of` made of the spec.
        plan: Where :func:`place_for` puts the engine.
        backend: What builds.
        force: Whether an engine of that name is replaced.
        progress: Called as the build goes on.

    Raises:
        SpecError: When the back end lacks an option.
        EngineBuildError: When the back end refuses the network, or the engine covers too little.
        ArtifactError: When the place is taken or cannot be written.
        ArtifactLocked: When another run is writing it.
    """
    name = plan.stem
    with _entry(plan, force=force) as folder:
        kept = _kept(source, folder, name)
        built = build(backend, kept, artifact.config, profiles, spec, progress=progress)
        layers = layers_of(backend, built)
        covered = coverage(layers, artifact.config)
        check_floors(covered, spec.require_int8_gemms, spec.require_fused_attention)
        report = LayerReport(
            name=name,
            onnx=source.path.name,
            backend=f"{backend.flavor} {backend.version}",
            targets=built.targets,
            precision=source.precision,
            profiles=profiles,
            coverage=covered,
            layers=layers,
            plan_bytes=len(built.plan),
            activation_bytes=built.activation_bytes,
            weight_bytes=built.weight_bytes,
            seconds=built.seconds,
        )
        (folder / plan.name).write_bytes(built.plan)
        write_json(folder / f"{name}.layers.json", report.to_dict())
        write_page(report, artifact.config, folder / f"{name}.html")
        sidecar = _sidecar(artifact, source, spec, kept, built, profiles, plan, backend)
        write_sidecar(folder / f"{name}.json", sidecar)
    return CompileResult(plan=plan, sidecar=sidecar, report=report, page=plan.with_suffix(".html"))


def _kept(source: EngineSource, folder: Path, name: str) -> Path:
    """The file to compile: that of the artifact, or a derived one, moved to where it stays."""
    if not source.derived:
        return source.path
    target = folder / f"{name}.onnx"
    for extra in source.facts.external:
        # Its name stands in the file that refers to it.
        shutil.copyfile(source.path.with_name(extra), folder / extra)
    shutil.copyfile(source.path, target)
    return target


def _sidecar(
    artifact: ModelArtifact,
    source: EngineSource,
    spec: EngineSpec,
    kept: Path,
    built: Built,
    profiles: tuple[Profile, ...],
    plan: Path,
    backend: Backend,
) -> EngineSidecar:
    """What stands beside the plan. A derived ONNX file is named where it will lie."""
    beside = ENGINES if source.derived else "onnx"
    hashes = {
        f"{beside}/{file.name}": file_sha256(file) for file in (kept, *(kept.with_name(name) for name in source.facts.external))
    }
    return EngineSidecar(
        plan=plan.name,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        plan_bytes=len(built.plan),
        onnx=f"{beside}/{kept.name}",
        onnx_sha256=hashes,
        model_sha256=artifact.lineage.files[WEIGHTS],
        artifact_sha256=artifact.sha256,
        precision=source.precision,
        backend=backend.name,
        version=backend.version,
        targets=built.targets,
        system=this_system(),
        profiles=[profile.shapes(artifact.config) for profile in profiles],
        inputs={tensor.name: {"shape": tensor.shape, "dtype": tensor.dtype} for tensor in built.inputs},
        outputs={tensor.name: {"shape": tensor.shape, "dtype": tensor.dtype} for tensor in built.outputs},
        version_compatible=spec.version_compatible,
        hardware_compatible=spec.hardware_compatible,
        weight_streaming=spec.weight_streaming,
        options={"level": spec.level, "workspace_mib": spec.workspace_mib},
        activation_bytes=built.activation_bytes,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


@contextmanager
def _entry(plan: Path, *, force: bool) -> Iterator[Path]:
    """A hidden folder whose files become those of the engine when the block ends well; the sidecar, which others go by, comes last.

    An older engine goes first, so that at no moment files of two engines look like one.
    """
    place, name = plan.parent, plan.stem
    with disk_errors(place):
        made = not place.exists()
        place.mkdir(exist_ok=True)
        try:
            with locked(plan.with_suffix("")):
                sweep(plan.with_suffix(""))
                _refuse_taken(plan, force=force)  # again: the run that held the lock until now may have made it
                temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=place))
                try:
                    yield temporary
                    _move(temporary, place, name)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
        finally:
            if made and not any(place.iterdir()):
                place.rmdir()


def _move(temporary: Path, place: Path, name: str) -> None:
    for file in temporary.iterdir():
        file.chmod(0o644)
        flush(file)
    sidecar = f"{name}.json"
    (place / sidecar).unlink(missing_ok=True)
    for file in sorted(temporary.iterdir(), key=lambda file: file.name == sidecar):
        os.replace(file, place / file.name)
    flush(place)
