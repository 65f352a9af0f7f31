"""What the parts of one verification share: the reference, the files, the photographs, and what is measured with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reference_model.preprocessing import ImageError, Preprocessing, read_image
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.modeling import load_model
from swinv2_deploy.runtime import FileRunner, Runner, TorchRunner, masks_for
from swinv2_deploy.runtime.graph_parts import GraphParts
from swinv2_deploy.runtime.load import preprocessing_for
from swinv2_deploy.verify.candidates import (
    BASELINE,
    load_candidate,
)
from swinv2_deploy.verify.comparison import Comparer, ComparisonPlan, add_up, by_preprocessing, taking
from swinv2_deploy.verify.engines import compared, identity_of
from swinv2_deploy.verify.from_images import PhotographSession
from swinv2_deploy.verify.gates import tie_margin
from swinv2_deploy.verify.inputs import Skipped, VerifyImages
from swinv2_deploy.verify.latency import interleaved_latency
from swinv2_deploy.verify.layers import LayerDrift, layer_drift
from swinv2_deploy.verify.meter import DriftMeter
from swinv2_deploy.verify.metrics import class_names
from swinv2_deploy.verify.other_pixels import PreprocessingDrift, preprocessing_drift
from swinv2_deploy.verify.probes import Size, probe_images, rounding_noise, size_drift, slot_drift, slot_size
from swinv2_deploy.verify.report import Latency, SizeDrift, SlotDrift
from swinv2_deploy.verify.shard_store import ShardStore
from swinv2_deploy.verify.spec import VerifySpec
from swinv2_deploy.verify.tolerances import OTHER, Tolerances

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""


class Session:
    """One verification, with the parts for files that take pixels."""

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
        self.artifact = artifact
        self.config = artifact.config
        self.spec = spec
        self.runners_of_all = runners
        self.runners = taking("pixel_values", runners)
        self.photograph_runners = taking("images", runners)
        self.groups = by_preprocessing(self.runners, artifact.preprocessing)
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

    def compare(self, others: Sequence[ModelArtifact], run: Path | None) -> tuple[dict[str, DriftMeter], list[Skipped]]:
        """Every candidate on every photograph, and the photographs that could not be decoded."""
        comparer, store = self._comparer(others, run)
        return add_up(comparer.plan, compared(comparer, store, self._teller(comparer)))

    def help(self, others: Sequence[ModelArtifact], run: Path) -> int:
        """Shards that nobody else takes; their number."""
        comparer, store = self._comparer(others, run)
        before = set() if store is None else {index for index in range(comparer.plan.shards) if store.has(index)}
        done = compared(comparer, store, self._teller(comparer), waits=False)
        return len({shard.index for shard in done} - before)

    def _comparer(self, others: Sequence[ModelArtifact], run: Path | None) -> tuple[Comparer, ShardStore | None]:
        whole = self.on_photographs()
        noises = {name: self.noise for name in self.runners}
        noises |= {name: dict(whole.noise_of(runner)) for name, runner in self.photograph_runners.items()}
        plan = ComparisonPlan(
            artifact=self.artifact.path,
            others=tuple(other.path for other in others),
            spec=self.spec,
            images=self.images,
            classes=self.classes,
            margins={name: tie_margin(self.limits(name), noise) for name, noise in noises.items()},
        )
        store = None
        if run is not None:
            identity = identity_of(plan, self.artifact, others, self.runners_of_all)
            store = ShardStore(run, identity, {"noise": self.noise, "margins": dict(plan.margins)})
            self.noise = dict(store.measured["noise"])
            plan = replace(plan, margins=dict(store.measured["margins"]))
        return Comparer(plan, self.reference, self.runners_of_all, self.own_preprocessing), store

    def _teller(self, comparer: Comparer) -> Callable[[int], None]:
        """Turns what was done just now into what is done in all."""
        total, done = comparer.passes * len(self.images), 0
        what = f"Comparing {len(self.images)} images"
        self.progress(what, done, total)

        def told(count: int) -> None:
            nonlocal done
            done += count
            self.progress(what, done, total)

        return told

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
        if self.spec.layer_images == 0 or not self.model.config.running_stages:
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

    def other_pixels(self) -> tuple[PreprocessingDrift, ...]:
        """What other preprocessings do to the reference's answers, on photographs that are evenly taken from the classes."""
        count = min(self.spec.preprocessing_images, len(self.images))
        if count == 0:
            return ()
        self.progress("Trying other preprocessings", 0, 1)
        folder = self.images.folder.select(count, self.spec.seed)
        labels = {name: self.images.labels[name] for name in folder.names if name in self.images.labels}
        photographs = VerifyImages(folder, labels).photographs()
        found = preprocessing_drift(self.reference, self.own_preprocessing, photographs, self.classes, self.spec.batch_size)
        self.progress("Trying other preprocessings", 1, 1)
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


def _first_photo(images: VerifyImages) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    reasons: list[str] = []
    for path in images.folder.paths:
        try:
            return read_image(path)
        except ImageError as error:
            reasons.append(str(error))
    raise images.none_usable(reasons[0])
