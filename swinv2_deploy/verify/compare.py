"""The verify stage: the FP32 reference in torch against every ONNX file of an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
import torch

from reference_model.preprocessing import ImageError, Preprocessing, read_image
from swinv2_deploy import __version__
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import Array, FileRunner, Runner, TorchRunner
from swinv2_deploy.verify.candidates import BASELINE, back_end_notices, back_end_versions, load_candidate, load_candidates
from swinv2_deploy.verify.from_images import PhotographSession
from swinv2_deploy.verify.gates import judge, tie_margin
from swinv2_deploy.verify.inputs import VerifyImages, choose_images
from swinv2_deploy.verify.latency import interleaved_latency
from swinv2_deploy.verify.metrics import DriftMeter
from swinv2_deploy.verify.probes import Size, probe_images, rounding_noise, size_drift, slot_drift, slot_size, sweep_sizes
from swinv2_deploy.verify.report import CandidateReport, DriftReport, Latency, SizeDrift, SlotDrift
from swinv2_deploy.verify.spec import VerifySpec

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""


def verify(artifact: ModelArtifact, spec: VerifySpec, progress: Progress = lambda what, done, total: None) -> DriftReport:
    """Measure how far the artifact's ONNX files drift from its weights, and judge it.

    Args:
        artifact: Artifact with ONNX files.
        spec: Images, limits, and what to run.
        progress: Told about every step.

    Raises:
        ArtifactError: When the weights are untrained and that was not allowed, the artifact is damaged or of several models, it
            has seen the images, or no image can be used.
        SpecError: When a candidate or size does not exist.
        RunnerError: When a file does not load or run.
        BackendMissing: When the provider is not usable here.
    """
    started = time.perf_counter()
    if not artifact.lineage.weights.trained and not spec.allow_untrained:
        raise ArtifactError(
            f"The weights of {artifact.name} are untrained, so no figure says anything about accuracy; export trained ones, or "
            "use --allow-untrained to check that the files compute the same."
        )
    runners = load_candidates(artifact, spec)
    pixels = {name: runner for name, runner in runners.items() if runner.facts.takes == "pixel_values"}
    preprocessing = _preprocessing(pixels, artifact)
    sizes = _sweep(pixels, preprocessing.size, spec)
    images = choose_images(artifact, spec)
    session = _Session(artifact, spec, pixels, images, preprocessing, progress)
    whole = session.on_photographs({name: runner for name, runner in runners.items() if name not in pixels})
    meters = session.compare() | whole.compare(session.classes)
    sweep = session.sweep(sizes) | whole.sweep()
    slots = session.slots() | whole.slots()
    latencies = session.latencies(whole.timed())
    trained = artifact.lineage.weights.trained
    candidates = []
    for name, runner in runners.items():
        outputs, classes = meters[name].outputs(), meters[name].class_drift()
        nonfinite = tuple(meters[name].nonfinite)
        checks = judge(
            spec.tolerances[runner.precision],
            outputs=outputs,
            classes=classes,
            nonfinite=nonfinite,
            sweep=sweep[name],
            slots=slots[name],
            noise=whole.noise_of(runner) if name in whole.runners else session.noise,
            trained=trained,
        )
        file = runner.path.relative_to(artifact.path).as_posix()
        size = runner.facts.size_bytes
        candidates.append(
            CandidateReport(
                name=runner.name,
                takes=runner.facts.takes,
                back_end=runner.back_end,
                file=file,
                sha256=artifact.lineage.files[file],
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
        skipped=tuple(images.skipped),
        excluded=images.excluded,
        noise=session.noise,
        notices=tuple(
            images.notices
            + _notices(pixels, sizes, artifact, spec)
            + whole.notices()
            + back_end_notices(runners, artifact, spec)
        ),
        spec=spec.to_dict(),
        tolerances={precision: asdict(limits) for precision, limits in spec.tolerances.items()},
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=time.perf_counter() - started,
        tools=_tools() | back_end_versions(spec),
        candidates=tuple(candidates),
    )


class _Session:
    """What the parts of one verification share."""

    def __init__(
        self,
        artifact: ModelArtifact,
        spec: VerifySpec,
        runners: dict[str, FileRunner],
        images: VerifyImages,
        preprocessing: Preprocessing,
        progress: Progress,
    ) -> None:
        self.preprocessing = preprocessing
        self.config = artifact.config
        self.spec = spec
        self.runners = runners
        self.images = images
        self.progress = progress
        self.photo = _first_photo(images)
        progress("Loading the reference", 0, 1)
        model = load_model(artifact)
        self.reference: Runner = TorchRunner(model, threads=spec.threads)
        probe = probe_images(self.photo, self.preprocessing, self.preprocessing.size, spec.seed)
        self.noise = rounding_noise(self.reference, TorchRunner(model, threads=spec.threads, double=True), probe)
        if not all(np.isfinite(value) for value in self.noise.values()):
            raise ArtifactError(
                f"The weights of {artifact.path} give NaN or infinity in the reference itself; train or export again."
            )
        self.baseline = runners.get(BASELINE)
        if self.baseline is None and BASELINE in artifact.onnx_files:
            self.baseline = load_candidate(artifact, BASELINE, spec.back_ends[0], spec)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of a classifier's classes."""
        return _class_names(self.config.labels, self.config.num_classes) if self.config.task == "classification" else ()

    def on_photographs(self, runners: dict[str, FileRunner]) -> PhotographSession:
        """The same for candidates that take photographs."""
        return PhotographSession(
            runners=runners,
            reference=self.reference,
            preprocessing=self.preprocessing,
            images=self.images,
            photo=self.photo,
            noise=self.noise,
            spec=self.spec,
            progress=self.progress,
        )

    def compare(self) -> dict[str, DriftMeter]:
        """Every candidate on every photograph, at the native size."""
        if not self.runners:
            return {}
        meters = {
            name: DriftMeter(self.classes, tie_margin(self.spec.tolerances[runner.precision], self.noise))
            for name, runner in self.runners.items()
        }
        done, total = 0, len(self.images)
        what = f"Comparing {total} images"
        self.progress(what, done, total)
        for batch in self.images.batches(self.preprocessing, self.spec.batch_size):
            expected = self.reference.run(batch.images)
            for name, runner in self.runners.items():
                meters[name].add(batch.names, batch.labels, expected, runner.run(batch.images))
            done += len(batch.names)
            self.progress(what, done + len(self.images.skipped), total)
        return meters

    def sweep(self, sizes: list[Size]) -> dict[str, list[SizeDrift]]:
        """Every candidate at every size its range holds."""
        found: dict[str, list[SizeDrift]] = {name: [] for name in self.runners}
        native = self.preprocessing.size
        for done, size in enumerate(sizes):
            self.progress("Sweeping sizes", done, len(sizes))
            images = probe_images(self.photo, self.preprocessing, size, self.spec.seed)
            if size[0] * size[1] > native[0] * native[1]:
                images = images[:1]  # the photograph alone, for the largest sizes take most of the time
            expected = self.reference.run(images)
            for name, runner in self.runners.items():
                if runner.resolutions.refusal(*size) is None:
                    found[name].append(size_drift(size, expected, runner.run(images)))
        self.progress("Sweeping sizes", len(sizes), len(sizes))
        return found

    def slots(self) -> dict[str, SlotDrift]:
        """Every candidate in batches of several sizes."""
        found = {}
        for done, (name, runner) in enumerate(self.runners.items()):
            self.progress("Checking every row of batches", done, len(self.runners))
            size = slot_size(runner.resolutions, self.preprocessing.size)
            first = probe_images(self.photo, self.preprocessing, size, self.spec.seed)
            other = probe_images(self.photo[:, ::-1], self.preprocessing, size, self.spec.seed + 1)
            found[name] = slot_drift(runner, np.concatenate([first, other[1:]]), self.spec.batch_sizes)
        self.progress("Checking every row of batches", len(self.runners), len(self.runners))
        return found

    def latencies(self, others: dict[str, Runner]) -> dict[str, tuple[Latency, ...]]:
        """Every candidate against the baseline, one image and a batch; empty when there is no baseline or no time for it."""
        if self.baseline is None or self.spec.latency_seconds == 0:
            return {}
        image: Array = self.preprocessing(self.photo)[None]
        timed: dict[str, Runner] = {BASELINE: self.baseline, **self.runners, **others}
        batches = sorted({1, self.spec.batch_size})
        rounds = []
        for done, batch in enumerate(batches):
            self.progress("Timing", done, len(batches))
            images = np.repeat(image, batch, axis=0)
            rounds.append(interleaved_latency(timed, BASELINE, images, self.spec.latency_seconds / len(batches)))
        self.progress("Timing", len(batches), len(batches))
        return {name: tuple(found[name] for found in rounds) for name in timed}


def _preprocessing(runners: dict[str, FileRunner], artifact: ModelArtifact) -> Preprocessing:
    """The artifact's, at the size the files are meant for where they refuse the trained one."""
    native = artifact.preprocessing.size
    refusing = [runner for runner in runners.values() if runner.resolutions.refusal(*native) is not None]
    return artifact.preprocessing.resized_to(*refusing[0].resolutions.opt) if refusing else artifact.preprocessing


def _sweep(runners: dict[str, FileRunner], native: Size, spec: VerifySpec) -> list[Size]:
    for size in spec.sizes:
        for runner in runners.values():
            reason = runner.resolutions.refusal(*size)
            if reason is not None:
                raise SpecError(
                    f"--sizes names a size that {runner.name} refuses: {reason} Leave it out, or export a wider range."
                )
    if spec.sizes:
        return list(dict.fromkeys(spec.sizes))
    found = {size for runner in runners.values() for size in sweep_sizes(runner.resolutions, native)}
    return sorted(found, key=lambda size: (size[0] * size[1], size))


def _notices(runners: dict[str, FileRunner], sizes: list[Size], artifact: ModelArtifact, spec: VerifySpec) -> list[str]:
    notices = []
    largest = next((runner.resolutions.max for runner in runners.values()), None)
    if largest is not None and not spec.sizes and sizes[-1] != largest:
        tried, full = ("x".join(map(str, size)) for size in (sizes[-1], largest))
        notices.append(f"The sweep went up to {tried} px; the files accept up to {full}. Use --sizes to try more.")
    native = _preprocessing(runners, artifact).size
    if native != artifact.preprocessing.size:
        here, trained = ("x".join(map(str, size)) for size in (native, artifact.preprocessing.size))
        notices.append(f"The files do not accept the trained size of {trained} px; images were compared at {here} px.")
    if not artifact.lineage.weights.trained:
        notices.append("The weights are untrained: that the files compute the same is judged, accuracy means nothing.")
    return notices


def _tools() -> dict[str, str]:
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    return {"swinv2-deploy": __version__} | {name: str(version) for name, version in versions.items()}


def _first_photo(images: VerifyImages) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    for path in images.folder.paths:
        try:
            return read_image(path)
        except ImageError:
            continue
    raise ArtifactError(
        f"None of the {len(images)} images of {images.folder.root} can be decoded; give a folder with intact images."
    )


def _class_names(labels: tuple[str, ...], count: int) -> tuple[str, ...]:
    return labels or tuple(f"class {index}" for index in range(count))
