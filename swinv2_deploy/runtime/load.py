"""A file of an artifact as a runner: only after everything it says about itself was compared with the artifact."""

from __future__ import annotations

import json
from dataclasses import asdict

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ModelArtifact, ResolutionRange
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.modeling.io import WEIGHTS
from swinv2_deploy.runtime.masks import masks_for
from swinv2_deploy.runtime.onnx_runner import OnnxRunner
from swinv2_deploy.runtime.openvino_runner import OpenVinoRunner
from swinv2_deploy.runtime.pinned import Pinned
from swinv2_deploy.runtime.runner import BackEnd, FileRunner, FloatPrecision, ProductMode, Provider


def load_runner(
    artifact: ModelArtifact,
    name: str,
    *,
    back_end: BackEnd = "onnxruntime",
    threads: int | None = None,
    provider: Provider = "cpu",
    float_precision: FloatPrecision = "f32",
    products: ProductMode = "exact",
    frugal: bool = False,
    pinned: Pinned | None = None,
) -> FileRunner:
    """The runner of ``onnx/<name>.onnx``, after its hash and its statements about the model were checked.

    In TensorRT it is that of ``engines/<name>.plan``, after its sidecar was compared with the artifact and this machine.

    Args:
        artifact: Artifact with that file.
        name: Name of the file, or of the engine, without suffix.
        back_end: Library that runs it.
        threads: CPU threads; None leaves the library's choice.
        provider: Execution provider, for ONNX Runtime.
        float_precision: What is computed with where no integers are, for OpenVINO.
        products: How integers are multiplied.
        frugal: Whether working memory is given back after every run, in ONNX Runtime.
        pinned: The one batch, height and width it will run; None means any.

    Raises:
        ArtifactError: When the file is missing, was changed, or was made for another model.
        RunnerError: When the library refuses it, or it is not right at the pinned size.
        BackendMissing: When the library, the provider or the precision is not usable on this machine.
        SpecError: When an engine is to be pinned.
    """
    if back_end == "tensorrt":
        if pinned is not None:
            raise SpecError("An engine has its sizes from its profile; compile one for this size instead of pinning it.")
        from swinv2_deploy.runtime.tensorrt.runner import TensorRtRunner

        return TensorRtRunner(artifact, name)
    path = artifact.file(f"onnx/{name}.onnx")
    for extra in artifact.lineage.files:
        if extra.startswith(f"onnx/{name}.onnx"):
            artifact.file(extra)
    masks = masks_for(artifact.config)
    runner: FileRunner
    if back_end == "openvino":
        runner = OpenVinoRunner(path, threads=threads, precision=float_precision, products=products, masks=masks, pinned=pinned)
    else:
        runner = OnnxRunner(
            path, threads=threads, provider=provider, products=products, masks=masks, frugal=frugal, pinned=pinned
        )
    for extra in runner.facts.external:
        if not extra.startswith(f"{name}.onnx"):
            artifact.file(f"onnx/{extra}")
    expected = {
        "model_sha256": artifact.lineage.files.get(WEIGHTS),
        "config": artifact.config.to_dict(),
        "labels": list(artifact.config.labels),
        "preprocessing": asdict(preprocessing_for(artifact.preprocessing, runner.facts.resolutions)),
    }
    for key, value in expected.items():
        # A config is compared as it was understood: an older file leaves out what this version added.
        stated = runner.facts.config.to_dict() if key == "config" else runner.facts.values.get(key)
        if stated is not None and stated != json.loads(json.dumps(value)):
            raise ArtifactError(
                f"{path} was made for another model: its {key} is not that of {artifact.name}. Export or quantize again."
            )
    return runner


def preprocessing_for(own: Preprocessing, resolutions: ResolutionRange) -> Preprocessing:
    """An artifact's own, at the size a file is meant for where its range does not hold that of the artifact."""
    return own if resolutions.refusal(*own.size) is None else own.resized_to(*resolutions.opt)
