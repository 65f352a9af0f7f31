"""A file of an artifact as a runner: only after everything it says about itself was compared with the artifact."""

from __future__ import annotations

import json
from dataclasses import asdict

from reference_model.preprocessing import Preprocessing
from swinv2_deploy.artifacts import ModelArtifact, ResolutionRange
from swinv2_deploy.errors import ArtifactError
from swinv2_deploy.modeling.io import WEIGHTS
from swinv2_deploy.runtime.onnx_runner import OnnxRunner
from swinv2_deploy.runtime.runner import Provider


def load_runner(
    artifact: ModelArtifact,
    name: str,
    *,
    threads: int | None = None,
    provider: Provider = "cpu",
    frugal: bool = False,
) -> OnnxRunner:
    """The runner of ``onnx/<name>.onnx``, after its hash and its statements about the model were checked.

    Args:
        artifact: Artifact with that file.
        name: Name of the file without suffix.
        threads: CPU threads; None leaves ONNX Runtime's choice.
        provider: Execution provider to run on.
        frugal: Whether working memory is given back after every run.

    Raises:
        ArtifactError: When the file is missing, was changed, or was made for another model.
        RunnerError: When ONNX Runtime refuses it.
        BackendMissing: When the provider is not usable on this machine.
    """
    path = artifact.file(f"onnx/{name}.onnx")
    for extra in artifact.lineage.files:
        if extra.startswith(f"onnx/{name}.onnx"):
            artifact.file(extra)
    runner = OnnxRunner(path, threads=threads, provider=provider, frugal=frugal)
    for extra in runner.facts.external:
        if not extra.startswith(f"{name}.onnx"):
            artifact.file(f"onnx/{extra}")
    expected = {
        "model_sha256": artifact.lineage.files.get(WEIGHTS),
        "config": artifact.config.to_dict(),
        "labels": list(artifact.config.labels),
        "preprocessing": asdict(preprocessing_for(artifact, runner.resolutions)),
    }
    for key, value in expected.items():
        stated = runner.facts.values.get(key)
        if stated is not None and stated != json.loads(json.dumps(value)):
            raise ArtifactError(
                f"{path} was made for another model: its {key} is not that of {artifact.name}. Export or quantize again."
            )
    return runner


def preprocessing_for(artifact: ModelArtifact, resolutions: ResolutionRange) -> Preprocessing:
    """The artifact's, at the size a file is meant for where its range does not hold the artifact's own."""
    own = artifact.preprocessing
    return own if resolutions.refusal(*own.size) is None else own.resized_to(*resolutions.opt)
