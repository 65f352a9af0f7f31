"""The candidates of a verification: every file in every back end, and what a reader must know about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import ArtifactError, SpecError
from swinv2_deploy.runtime import BackEnd, FileRunner, load_runner
from swinv2_deploy.verify.report import BACK_ENDS
from swinv2_deploy.verify.spec import VerifySpec

BASELINE = "model"
"""The ONNX file that sizes and latencies are compared with, in the first back end."""

ONNX_RUNTIME_ONLY = "model_uint8"
"""The form that no other back end has fast kernels for."""


def load_candidates(artifact: ModelArtifact, spec: VerifySpec) -> dict[str, FileRunner]:
    """Runners by the file's name, in the second back end with the back end's name behind it.

    Raises:
        ArtifactError: When the artifact has no ONNX file, or one is not its own.
        SpecError: When a candidate does not exist.
        RunnerError: When a back end refuses a file.
        BackendMissing: When a back end is not usable here.
    """
    runners = {}
    for back_end in spec.back_ends:
        known = _known(artifact, back_end)
        unknown = [name for name in spec.candidates if name not in known]
        if unknown:
            kind = "engine" if back_end == "tensorrt" else "ONNX file"
            raise SpecError(f"{artifact.name} has no {kind} named {unknown}; it has {known}.")
        for name in dict.fromkeys(spec.candidates) or known:
            if back_end == "openvino" and name == ONNX_RUNTIME_ONLY and not spec.candidates:
                continue
            label = name if back_end == spec.back_ends[0] else f"{name} in {BACK_ENDS[back_end]}"
            runners[label] = load_candidate(artifact, name, back_end, spec)
    return runners


def load_others(others: Sequence[ModelArtifact], artifact: ModelArtifact, spec: VerifySpec) -> dict[str, FileRunner]:
    """Runners of other artifacts' files that take pixels, in the first back end, by the artifact's name and the file's.

    Raises:
        ArtifactError: When another artifact has no ONNX file, names other classes, or makes other pixels of an image.
        RunnerError: When a file does not load.
    """
    runners: dict[str, FileRunner] = {}
    for other in others:
        same = (other.config.task, other.config.labels, other.preprocessing)
        if same != (artifact.config.task, artifact.config.labels, artifact.preprocessing):
            raise ArtifactError(
                f"{other.name} has another task, other labels or another preprocessing than {artifact.name}, so the two cannot be "
                "compared on the same images; verify it by itself."
            )
        for name in _known(other, "onnxruntime"):
            runner = load_candidate(other, name, "onnxruntime", spec)
            if runner.facts.takes == "pixel_values":
                runners[f"{other.name}: {name}"] = runner
    return runners


def _known(artifact: ModelArtifact, back_end: BackEnd) -> list[str]:
    """Names of the files that a back end can run, or of the engines."""
    if back_end == "tensorrt":
        known = sorted(path.stem for path in (artifact.path / "engines").glob("*.plan"))
        missing = "engine; make one with 'swinv2-deploy compile'"
    else:
        known, missing = list(artifact.onnx_files), "ONNX file; make one with 'swinv2-deploy export'"
    if not known:
        raise ArtifactError(f"{artifact.path} has no {missing}.")
    return known


def load_candidate(artifact: ModelArtifact, name: str, back_end: BackEnd, spec: VerifySpec) -> FileRunner:
    """One file in one back end.

    Raises:
        ArtifactError: When it is not the artifact's own.
        RunnerError: When the back end refuses it.
        BackendMissing: When the back end is not usable here.
    """
    return load_runner(
        artifact,
        name,
        back_end=back_end,
        threads=spec.threads,
        provider=spec.provider,
        float_precision=spec.openvino_precision,
        products=spec.integer_products,
    )


def back_end_notices(runners: Mapping[str, FileRunner], artifact: ModelArtifact, spec: VerifySpec) -> list[str]:
    """What the chosen back ends mean for the figures, and for whoever runs the files in a session of their own."""
    notices = []
    if "openvino" in spec.back_ends and not spec.candidates and ONNX_RUNTIME_ONLY in artifact.onnx_files:
        notices.append(f"{ONNX_RUNTIME_ONLY}.onnx was left out of OpenVINO: it is the form for ONNX Runtime.")
    found = {runner.back_end: runner.integer_products for runner in runners.values() if runner.integer_products != "none"}
    bad = [BACK_ENDS[back_end] for back_end, products in found.items() if products == "may saturate"]
    told = [BACK_ENDS[back_end] for back_end, products in found.items() if products == "exact" and saturates(back_end)]
    if bad:
        notices.append(f"Products of integers saturate in {' and '.join(bad)} on this CPU (no VNNI); the figures include that.")
    if told:
        notices.append(
            f"Left alone, {' and '.join(told)} would saturate products of integers on this CPU (no VNNI). Here that was turned "
            "off; do so in your own session (docs/how-to/verify.md). --integer-products fast shows the difference."
        )
    return notices


def saturates(back_end: BackEnd) -> bool:
    """Whether a back end, left alone, saturates products of integers on this CPU."""
    if back_end == "tensorrt":
        return False  # it does not use the CPU
    if back_end == "openvino":
        from swinv2_deploy.runtime import openvino_runner

        return openvino_runner.saturates()
    from swinv2_deploy.runtime import onnx_runner

    return onnx_runner.saturates()


def back_end_versions(spec: VerifySpec) -> dict[str, str]:
    """Version of every back end that ran."""
    versions = {}
    # Read from the modules: onnxruntime is a module of several distributions.
    if "onnxruntime" in spec.back_ends:
        import onnxruntime

        versions["onnxruntime"] = str(onnxruntime.__version__)
    if "openvino" in spec.back_ends:
        import openvino

        versions["openvino"] = str(openvino.__version__)
    if "tensorrt" in spec.back_ends:
        from swinv2_deploy.runtime.tensorrt import choose_backend

        backend = choose_backend()
        versions[backend.name] = backend.version
    return versions
