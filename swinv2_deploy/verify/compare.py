"""The verify stage: the FP32 reference in torch against every ONNX file of an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
import torch

from reference_model.preprocessing import ImageError, Preprocessing, read_image
from swinv2_deploy import __version__
from swinv2_deploy.artifacts import ModelArtifact, file_sha256
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import FileRunner, Runner, TorchRunner, masks_for
from swinv2_deploy.runtime.graph_parts import GraphParts
from swinv2_deploy.runtime.load import preprocessing_for
from swinv2_deploy.runtime.runner import Takes
from swinv2_deploy.verify.candidates import (
    BASELINE,
    back_end_notices,
    back_end_versions,
    load_candidate,
    load_candidates,
    load_others,
)
from swinv2_deploy.verify.from_images import PhotographSession
from swinv2_deploy.verify.gates import judge, tie_margin
from swinv2_deploy.verify.inputs import VerifyImages, choose_images
from swinv2_deploy.verify.latency import interleaved_latency
from swinv2_deploy.verify.layers import LayerDrift, layer_drift
from swinv2_deploy.verify.metrics import DriftMeter, class_names
from swinv2_deploy.verify.probes import Size, probe_images, rounding_noise, size_drift, slot_drift, slot_size, sweep_sizes
from swinv2_deploy.verify.report import CandidateReport, DriftReport, Latency, SizeDrift, SlotDrift
from swinv2_deploy.verify.spec import VerifySpec
from swinv2_deploy.verify.tolerances import OTHER, Tolerances

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""


def verify(
    artifact: ModelArtifact,
    spec: VerifySpec,
    progress: Progress = lambda what, done, total: None,
    others: Sequence[ModelArtifact] = (),
) -> DriftReport:
    """Measure how far the artifact's ONNX files drift from its weights, and judge it.

    Args:
        artifact: Artifact with ONNX files.
        spec: Images, limits, and what to run.
        progress: Told about every step.
        others: Artifacts of the same classes, such as pruned ones, whose files are compared with the same reference.

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
    elsewhere = load_others(others, artifact, spec)
    runners |= elsewhere
    pixels = _taking("pixel_values", runners)
    sizes = _sweep(pixels, artifact, spec)
    images = choose_images(artifact, spec, others)
    session = _Session(artifact, spec, runners, images, progress, frozenset(elsewhere))
    whole = session.on_photographs()
    meters = session.compare() | whole.compare(session.classes)
    sweep = session.sweep(sizes) | whole.sweep()
    slots = session.slots() | whole.slots()
    layers = session.layers()
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
        owner = name.rpartition(": ")[0] if name in elsewhere else ""
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
    """What the parts of one verification share, and the parts for files that take pixels."""

    def __init__(
        self,
        artifact: ModelArtifact,
        spec: VerifySpec,
        runners: dict[str, FileRunner],
        images: VerifyImages,
        progress: Progress,
        elsewhere: frozenset[str] = frozenset(),
    ) -> None:
        self.elsewhere = elsewhere
        self.own_preprocessing = artifact.preprocessing
        recipes = {name: preprocessing_for(artifact.preprocessing, runner.resolutions) for name, runner in runners.items()}
        self.preprocessing = next(iter(recipes.values()))
        self.config = artifact.config
        self.spec = spec
        self.runners = _taking("pixel_values", runners)
        self.photograph_runners = _taking("images", runners)
        # Files of one size each are given the photographs at that size.
        self.groups: dict[Preprocessing, dict[str, FileRunner]] = {}
        for name, runner in self.runners.items():
            self.groups.setdefault(recipes[name], {})[name] = runner
        self.images = images
        self.progress = progress
        self.photo = _first_photo(images)
        progress("Loading the reference", 0, 1)
        self.model = model = load_model(artifact)
        masks = masks_for(model.config)
        self.reference: Runner = TorchRunner(model, threads=spec.threads, masks=masks)
        exact = TorchRunner(model, threads=spec.threads, double=True, masks=masks)
        different = dict.fromkeys(recipes.values())
        probes = [probe_images(self.photo, recipe, recipe.size, spec.seed) for recipe in different]
        noises = [rounding_noise(self.reference, exact, probe) for probe in probes]
        self.noise = {name: max(noise[name] for noise in noises) for name in noises[0]}
        if not all(np.isfinite(value) for value in self.noise.values()):
            raise ArtifactError(
                f"The weights of {artifact.path} give NaN or infinity in the reference itself; train or export again."
            )
        self.baseline = runners.get(BASELINE)
        if self.baseline is None and BASELINE in artifact.onnx_files:
            self.baseline = load_candidate(artifact, BASELINE, spec.back_ends[0], spec)

    def limits(self, name: str) -> Tolerances:
        """Tolerances of a file."""
        if name in self.elsewhere:
            return OTHER
        runner = self.runners.get(name) or self.photograph_runners[name]
        return self.spec.tolerances[runner.precision]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of a classifier's classes."""
        return class_names(self.config)

    def on_photographs(self) -> PhotographSession:
        """The same for candidates that take photographs."""
        return PhotographSession(
            runners=self.photograph_runners,
            reference=self.reference,
            preprocessing=self.own_preprocessing,
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
        meters = {name: DriftMeter(self.classes, tie_margin(self.limits(name), self.noise)) for name in self.runners}
        done, total = 0, len(self.images) * len(self.groups)
        what = f"Comparing {len(self.images)} images"
        self.progress(what, done, total)
        for preprocessing, group in self.groups.items():
            for batch in self.images.batches(preprocessing, self.spec.batch_size):
                expected = self.reference.run(batch.images)
                for name, runner in group.items():
                    meters[name].add(batch.names, batch.labels, expected, runner.run(batch.images))
                done += len(batch.names)
                self.progress(what, min(done + len(self.images.skipped), total), total)
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

    def layers(self) -> dict[str, tuple[LayerDrift, ...]]:
        """Drift inside every candidate whose graph can be taken apart, on a few photographs."""
        found: dict[str, tuple[LayerDrift, ...]] = {}
        if self.spec.layer_images == 0:
            return found
        chosen = {
            name: recipe
            for recipe, group in self.groups.items()
            for name, runner in group.items()
            if runner.back_end == "onnxruntime" and name not in self.elsewhere
        }
        for done, (name, recipe) in enumerate(chosen.items()):
            self.progress("Looking inside the network", done, len(chosen))
            batches = []
            for batch in self.images.batches(recipe, min(self.spec.layer_images, self.spec.batch_size)):
                batches.append(batch.images)
                if sum(map(len, batches)) >= self.spec.layer_images:
                    break
            parts = GraphParts(self.runners[name].path, threads=self.spec.threads)
            found[name] = layer_drift(parts, self.model, batches)
        self.progress("Looking inside the network", len(chosen), len(chosen))
        return found

    def latencies(self, others: dict[str, Runner]) -> dict[str, tuple[Latency, ...]]:
        """Every candidate, and others, against the baseline, one image and a batch; empty without a baseline or time for it."""
        if self.baseline is None or self.spec.latency_seconds == 0:
            return {}
        found: dict[str, list[Latency]] = {}
        together: dict[Preprocessing, dict[str, Runner]] = {
            # An emulation tells nothing about speed.
            preprocessing: {name: runner for name, runner in group.items() if not runner.emulated}
            for preprocessing, group in self.groups.items()
        }
        together.setdefault(self.own_preprocessing, {}).update(others)
        groups = [item for item in together.items() if item[1] and self.baseline.resolutions.refusal(*item[0].size) is None]
        batches = sorted({1, self.spec.batch_size})
        turns = [(preprocessing, group, batch) for preprocessing, group in groups for batch in batches]
        for done, (preprocessing, group, batch) in enumerate(turns):
            self.progress("Timing", done, len(turns))
            images = np.repeat(preprocessing(self.photo)[None], batch, axis=0)
            timed: dict[str, Runner] = {BASELINE: self.baseline, **group}
            times = interleaved_latency(timed, BASELINE, images, self.spec.latency_seconds / len(turns))
            for name in group:
                found.setdefault(name, []).append(times[name])
        self.progress("Timing", len(turns), len(turns))
        return {name: tuple(times) for name, times in found.items()}


def _taking(takes: Takes, runners: dict[str, FileRunner]) -> dict[str, FileRunner]:
    """Those whose files have that input."""
    return {name: runner for name, runner in runners.items() if runner.facts.takes == takes}


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


def _first_photo(images: VerifyImages) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    for path in images.folder.paths:
        try:
            return read_image(path)
        except ImageError:
            continue
    raise ArtifactError(
        f"None of the {len(images)} images of {images.folder.root} can be decoded; give a folder with intact images."
    )
