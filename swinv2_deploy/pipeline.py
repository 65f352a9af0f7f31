"""Stages that need each other. The only module that composes them; a stage never imports another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.dataset import ImageFolder
from calibration.table import CalibrationTable
from reference_model.model import SwinV2
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.engine.build import Progress as BuildProgress
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
from swinv2_deploy.errors import ArtifactError, QuantizeError
from swinv2_deploy.export import ExportSpec, export
from swinv2_deploy.export.rest import half_rest
from swinv2_deploy.modeling.io import load_model
from swinv2_deploy.modeling.source import Source
from swinv2_deploy.modeling.trained import TrainedForm
from swinv2_deploy.quantize.calibrate import Progress
from swinv2_deploy.quantize.ptq import QuantizeResult, quantize
from swinv2_deploy.quantize.qat import Report, Retrained, seen_images, train_quantized
from swinv2_deploy.quantize.spec import CALIBRATORS, QatSpec, QuantizeSpec
from swinv2_deploy.runtime.onnx_file import OnnxFacts, read_facts
from swinv2_deploy.runtime.runner import Rest
from swinv2_deploy.runtime.tensorrt.backend import Backend, choose_backend
from swinv2_deploy.training.start import seen_by
from swinv2_deploy.verify import VerifySpec, verify


def quantize_aware(
    artifact: ModelArtifact,
    spec: QuantizeSpec,
    qat: QatSpec,
    images: ImageFolder,
    path: Path,
    *,
    run: Path,
    table: CalibrationTable | None = None,
    force: bool = False,
    progress: Progress | None = None,
    searched: Progress = lambda done, total: None,
    report: Report | None = None,
    stop: Callable[[], int] | None = None,
) -> QuantizeResult:
    """Calibrate, train with the rounding, export what the model became, and write it in INT8 beside the FP32 model it came from.

    Args:
        artifact: Artifact of a classifier with ``onnx/model.onnx``.
        spec: How to calibrate, and which sites.
        qat: How to train.
        images: Labeled photographs to calibrate and train on; never those that accuracy is judged on.
        path: Artifact folder to make.
        run: Folder of the training's checkpoint; a run found there goes on.
        table: Ranges measured before, instead of measuring them.
        force: Whether an artifact that is already there is replaced.
        progress: Called with images calibrated and in all.
        searched: Called with measurements of a sweep done and in all.
        report: Called after every step and epoch of the training.
        stop: Asked after every step; the number of a signal ends the run with a checkpoint.

    Raises:
        QuantizeError: When the model is no classifier.
        SpecError: When the images do not fit the model.
        TrainingError: When training fails.
        TrainingStopped: When ``stop`` asked for it.
        ArtifactError: When the artifact cannot be read or the folder not be written.
    """
    if artifact.config.task != "classification":
        raise QuantizeError(
            f"{artifact.path} is a model for {artifact.config.task}; quantization-aware training needs a classifier and labeled "
            "images. Use --method ptq."
        )

    @contextmanager
    def train(model: SwinV2, ranges: CalibrationTable) -> Iterator[Retrained]:
        result = train_quantized(model, ranges, qat, images, artifact.preprocessing, run, report=report, stop=stop)
        with tempfile.TemporaryDirectory() as folder:
            exported = export_like(artifact, result.form, Path(folder) / "trained")
            yield Retrained(
                form=result.form,
                onnx=exported.path / "onnx",
                history=result.history,
                seen=seen_images(images, seen_by(artifact)),
                gain=result.gain,
            )

    recipe = {"qat": qat.to_dict()}
    return quantize(
        artifact,
        spec,
        images,
        path,
        table=table,
        force=force,
        progress=progress,
        searched=searched,
        train=train,
        recipe=recipe,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a form of a classifier makes of held-out photographs.

    Attributes:
        form: ``fp32``, or the method and calibrator of an INT8 form.
        images: Photographs with a label that the model knows.
        top1: Share of them named rightly, in [0, 1].
        lost: Points lost to the FP32 model in PyTorch.
        interval: Paired 95 % interval of them.
        flips: Photographs that are named differently.
        sqnr_db: Signal to noise of the logits in dB.
    """

    form: str
    images: int
    top1: float
    lost: float
    interval: tuple[float, float]
    flips: int
    sqnr_db: float


def judge(artifact: ModelArtifact, held: ImageFolder, form: str, name: str = "model_int8") -> Verdict:
    """Judge one ONNX file of an artifact on photographs that no stage has seen, against its FP32 model in PyTorch.

    Raises:
        ArtifactError: When there is no such file, or the photographs have no labels that the model knows.
    """
    spec = VerifySpec(
        data=held.root, candidates=(name,), latency_seconds=0, sizes=(artifact.preprocessing.size,), batch_sizes=(1,)
    )
    [report] = verify(artifact, spec).candidates
    classes = report.classes
    if classes is None or classes.top1 is None or classes.drop is None or classes.drop_interval is None:
        raise ArtifactError(
            f"The photographs in {held.root} have no labels that {artifact.path} knows; name folders as its classes."
        )
    return Verdict(
        form=form,
        images=classes.labeled,
        top1=classes.top1[1],
        lost=classes.drop,
        interval=classes.drop_interval,
        flips=len(classes.flips),
        sqnr_db=report.outputs["logits"].sqnr_db,
    )


def judge_methods(
    artifact: ModelArtifact, trained: ModelArtifact | None, spec: QuantizeSpec, images: ImageFolder, held: ImageFolder
) -> list[Verdict]:
    """FP32, post-training quantization with every calibrator, and the trained form, on the same held-out photographs.

    Args:
        artifact: FP32 artifact.
        trained: The same after quantization-aware training, or None.
        spec: How to calibrate, whatever its calibrator.
        images: Photographs to calibrate on.
        held: Photographs to judge on.

    Raises:
        ArtifactError: When the photographs have no labels that the model knows.
    """
    verdicts = [judge(artifact, held, "fp32", "model")]
    with tempfile.TemporaryDirectory() as folder:
        for calibrator in CALIBRATORS:
            plain = replace(
                spec, calibrator=calibrator, unsigned="never", sensitivity=False, budget_drop=None, budget_sqnr=None
            )
            made = quantize(artifact, plain, images, Path(folder) / calibrator).artifact
            verdicts.append(judge(made, held, f"ptq, {calibrator}"))
    if trained is not None:
        verdicts.append(judge(trained, held, "qat"))
    return verdicts


def export_like(artifact: ModelArtifact, form: TrainedForm, path: Path) -> ModelArtifact:
    """Export trained weights as every FP32 graph of an artifact: the same sizes, under the same names.

    Raises:
        ArtifactError: When the artifact's graphs cannot be made again.
        ExportError: When a graph is wrong.
    """
    found = {name: read_facts(file) for name, file in artifact.onnx_files.items()}
    graphs = {name: facts for name, facts in found.items() if facts.precision == "fp32"}
    source = Source(
        model=form.model,
        preprocessing=artifact.preprocessing,
        origin=artifact.lineage.weights,
        name=artifact.name,
        parent={"name": artifact.name, "sha256": artifact.sha256},
        seed=artifact.lineage.seed,
    )
    exported = export(source, _spec_of(graphs), path)
    missing = sorted(graphs.keys() - exported.onnx_files.keys())
    if missing:
        raise ArtifactError(
            f"{artifact.path} holds the graphs {missing}, which this version does not know how to make of trained weights; export "
            "again without them."
        )
    return exported


def _spec_of(graphs: Mapping[str, OnnxFacts]) -> ExportSpec:
    """What export is to be asked for, to make graphs of these sizes and names."""
    whole = graphs["model"].resolutions
    fixed = whole.min == whole.max
    pixels = {name: facts.resolutions for name, facts in graphs.items() if facts.takes == "pixel_values" and name != "model"}
    return ExportSpec(
        resolution=whole.opt,
        static=fixed,
        smallest=None if fixed else whole.min,
        largest=None if fixed else whole.max,
        sizes=tuple(found.opt for found in pixels.values() if found.min == found.max),
        bake_preprocessing=any(facts.takes == "images" for facts in graphs.values()),
    )


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
    progress: BuildProgress = lambda what, done, total: None,
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
