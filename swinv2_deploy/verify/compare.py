"""The verify stage: the FP32 reference in torch against every ONNX file of an artifact."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from swinv2_deploy import __version__
from swinv2_deploy.artifacts import ModelArtifact, file_sha256
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.runtime import FileRunner
from swinv2_deploy.runtime.load import preprocessing_for
from swinv2_deploy.verify.candidates import (
    back_end_notices,
    back_end_versions,
    load_candidates,
    load_others,
)
from swinv2_deploy.verify.comparison import taking
from swinv2_deploy.verify.gates import judge
from swinv2_deploy.verify.inputs import choose_images
from swinv2_deploy.verify.layers import first_divergent
from swinv2_deploy.verify.probes import Size, sweep_sizes
from swinv2_deploy.verify.report import CandidateReport, DriftReport
from swinv2_deploy.verify.session import Progress, Session
from swinv2_deploy.verify.spec import VerifySpec


def verify(
    artifact: ModelArtifact,
    spec: VerifySpec,
    progress: Progress = lambda what, done, total: None,
    others: Sequence[ModelArtifact] = (),
    run: Path | None = None,
) -> DriftReport:
    """Measure how far the artifact's ONNX files drift from its weights, and judge it.

    With ``run``, what was compared is kept in that folder by the shard: a verification that was killed goes on there, and the
    processes of a launcher share it (:func:`share`).

    Args:
        artifact: Artifact with ONNX files.
        spec: Images, limits, and what to run.
        progress: Told about every step.
        others: Artifacts of the same classes, such as pruned ones, whose files are compared with the same reference.
        run: Folder for the shards; one of another verification is refused.

    Raises:
        ArtifactError: When the weights are untrained and that was not allowed, the artifact is damaged or of several models, it
            has seen the images, no image can be used, or ``run`` cannot be used.
        SpecError: When a candidate or size does not exist.
        RunnerError: When a file does not load or run.
        BackendMissing: When the provider is not usable here.
    """
    started = time.perf_counter()
    session, sizes = _session(artifact, spec, others, progress)
    meters, skipped = session.compare(others, run)
    images, runners, whole = session.images, session.runners_of_all, session.on_photographs()
    sweep = session.sweep(sizes) | whole.sweep()
    slots = session.slots() | whole.slots()
    layers = session.layers()
    preprocessing = session.other_pixels()
    latencies = session.latencies(whole.timed())
    trained = artifact.lineage.weights.trained
    candidates = []
    for name, runner in runners.items():
        outputs, classes = meters[name].outputs(), meters[name].class_drift()
        nonfinite = tuple(meters[name].nonfinite)
        checks = judge(
            session.limits(name),
            outputs=outputs,
            classes=classes,
            nonfinite=nonfinite,
            sweep=sweep[name],
            slots=slots[name],
            noise=whole.noise_of(runner) if name in whole.runners else session.noise,
            trained=trained,
            layers=layers.get(name, ()),
        )
        owner = name.rpartition(": ")[0] if name in session.elsewhere else ""
        file = str(runner.path) if owner else runner.path.relative_to(artifact.path).as_posix()
        size = runner.facts.size_bytes
        candidates.append(
            CandidateReport(
                name=runner.name,
                takes=runner.facts.takes,
                back_end=runner.back_end,
                file=file,
                sha256=file_sha256(runner.path) if owner else artifact.lineage.files[file],
                precision=runner.precision,
                provider=runner.provider,
                integer_products=runner.integer_products,
                size_bytes=size,
                size_ratio=size / session.baseline.facts.size_bytes if session.baseline is not None else None,
                outputs=outputs,
                classes=classes,
                nonfinite=nonfinite,
                sweep=tuple(sweep[name]),
                slots=slots[name],
                latencies=latencies.get(name, ()),
                checks=checks,
                owner=owner,
                layers=layers.get(name, ()),
                first_divergent=first_divergent(layers.get(name, ()), session.limits(name).site_sqnr_db or -math.inf),
            )
        )
    return DriftReport(
        artifact=str(artifact.path),
        artifact_sha256=artifact.sha256,
        task=artifact.config.task,
        weights=artifact.lineage.weights.kind,
        reference=session.reference.name,
        data=str(images.folder.root),
        images=next(iter(meters.values())).images,
        classes=len(images.folder.classes),
        skipped=tuple(skipped),
        excluded=images.excluded,
        noise=session.noise,
        notices=tuple(
            images.notices
            + _notices(session.runners, sizes, artifact, spec)
            + whole.notices()
            + back_end_notices(runners, artifact, spec)
        ),
        spec=spec.to_dict(),
        tolerances={precision: asdict(limits) for precision, limits in spec.tolerances.items()},
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=time.perf_counter() - started,
        tools=_tools() | back_end_versions(spec),
        preprocessing=preprocessing,
        candidates=tuple(candidates),
    )


def share(
    artifact: ModelArtifact,
    spec: VerifySpec,
    run: Path,
    progress: Progress = lambda what, done, total: None,
    others: Sequence[ModelArtifact] = (),
) -> int:
    """Compare shards of a verification that another process judges; the number of those compared here.

    Raises:
        As :func:`verify`.
    """
    session, _ = _session(artifact, spec, others, progress)
    return session.help(others, run)


def _session(
    artifact: ModelArtifact, spec: VerifySpec, others: Sequence[ModelArtifact], progress: Progress
) -> tuple[Session, list[Size]]:
    """Everything loaded and checked, and the sizes of the sweep."""
    if not artifact.lineage.weights.trained and not spec.allow_untrained:
        raise ArtifactError(
            f"The weights of {artifact.name} are untrained, so no figure says anything about accuracy; export trained ones, or "
            "use --allow-untrained to check that the files compute the same."
        )
    runners = load_candidates(artifact, spec)
    elsewhere = load_others(others, artifact, spec)
    runners |= elsewhere
    sizes = _sweep(taking("pixel_values", runners), artifact, spec)
    images = choose_images(artifact, spec, others)
    return Session(artifact, spec, runners, images, progress, frozenset(elsewhere)), sizes


def _sweep(runners: dict[str, FileRunner], artifact: ModelArtifact, spec: VerifySpec) -> list[Size]:
    if not runners:
        return []
    for size in spec.sizes:
        reasons = {runner.name: runner.resolutions.refusal(*size) for runner in runners.values()}
        if all(reasons.values()):
            name, reason = next(iter(reasons.items()))
            raise SpecError(f"--sizes names a size that {name} refuses: {reason} Leave it out, or export a wider range.")
    if spec.sizes:
        return list(dict.fromkeys(spec.sizes))
    found = {
        size
        for runner in runners.values()
        for size in sweep_sizes(runner.resolutions, preprocessing_for(artifact.preprocessing, runner.resolutions).size)
    }
    return sorted(found, key=lambda size: (size[0] * size[1], size))


def _notices(runners: dict[str, FileRunner], sizes: list[Size], artifact: ModelArtifact, spec: VerifySpec) -> list[str]:
    notices = []
    largest = next((runner.resolutions.max for runner in runners.values()), None)
    if largest is not None and not spec.sizes and sizes[-1] != largest:
        tried, full = ("x".join(map(str, size)) for size in (sizes[-1], largest))
        notices.append(f"The sweep went up to {tried} px; the files accept up to {full}. Use --sizes to try more.")
    trained = "x".join(map(str, artifact.preprocessing.size))
    others = [preprocessing_for(artifact.preprocessing, runner.resolutions).size for runner in runners.values()]
    for size in sorted(set(others) - {artifact.preprocessing.size}):
        names = ", ".join(name for name, other in zip(runners, others, strict=True) if other == size)
        here = "x".join(map(str, size))
        notices.append(f"{names} does not accept the trained size of {trained} px; images were compared at {here} px.")
    for name in [name for name, runner in runners.items() if runner.emulated]:
        notices.append(
            f"ONNX Runtime has no BF16 kernels on a CPU: {name} was computed in float32 and rounded to BF16 after every operator. "
            "Its drift is judged; its speed is not measured."
        )
    if not artifact.lineage.weights.trained:
        notices.append("The weights are untrained: that the files compute the same is judged, accuracy means nothing.")
    return notices


def _tools() -> dict[str, str]:
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    return {"swinv2-deploy": __version__} | {name: str(version) for name, version in versions.items()}
