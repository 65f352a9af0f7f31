"""Every exception this package raises on purpose, and the exit code each one ends the command line with.

    SwinDeployError               1   a stage failed
    ├── SpecError                 2   the request contradicts itself or names something that does not exist
    ├── ArtifactError             1   an artifact is missing, damaged or of another schema
    │   └── ArtifactLocked       75   another run is writing the same artifact
    ├── UnsupportedModelError     1   the model is valid, but this stage cannot handle it
    ├── TrainingError             1   fine-tuning diverged or cannot resume
    │   └── TrainingStopped     130   a signal asked the run to stop; its checkpoint was written (143 for SIGTERM)
    ├── QuantizeError             1   scales are missing, degenerate or do not fit the model
    ├── ExportError               1   the ONNX file could not be written or is wrong
    ├── EngineBuildError          1   TensorRT refused the model or fell short of a stated floor
    ├── RunnerError               1   a back end failed while it loaded or ran a model
    ├── BackendMissing            4   a back end that was asked for is not usable on this machine
    └── ToleranceExceeded         3   everything ran, and the drift is beyond the tolerance

The leaves know nothing of this tree and raise their own ``ValueError`` subclasses. An exception of a foreign library is caught
where that library is called and chained. Every message says what happened, with the value; what was expected; and what to do.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ArtifactError",
    "ArtifactLocked",
    "BackendMissing",
    "EngineBuildError",
    "ExportError",
    "QuantizeError",
    "RunnerError",
    "SpecError",
    "SwinDeployError",
    "ToleranceExceeded",
    "TrainingError",
    "TrainingStopped",
    "UnsupportedModelError",
]


class SwinDeployError(Exception):
    """Root of the tree; catch it to catch everything raised on purpose.

    Attributes:
        exit_code: Exit status of the command line when the exception ends it.
    """

    exit_code: ClassVar[int] = 1


class SpecError(SwinDeployError):
    """The request contradicts itself or names something that does not exist."""

    exit_code = 2


class ArtifactError(SwinDeployError):
    """An artifact is missing, damaged or of another schema."""


class ArtifactLocked(ArtifactError):
    """Another run is writing the same artifact."""

    exit_code = 75


class UnsupportedModelError(SwinDeployError):
    """The model is valid, but this stage cannot handle it."""


class TrainingError(SwinDeployError):
    """Fine-tuning diverged or cannot resume."""


class TrainingStopped(TrainingError):
    """A signal asked the run to stop, and its checkpoint was written.

    Attributes:
        exit_code: 128 and the number of the signal, as shells have it.
    """

    exit_code = 130

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal  # type: ignore[misc]  # only known now


class QuantizeError(SwinDeployError):
    """Scales are missing, degenerate or do not fit the model."""


class ExportError(SwinDeployError):
    """The ONNX file could not be written or is wrong."""


class EngineBuildError(SwinDeployError):
    """TensorRT refused the model or fell short of a stated floor."""


class RunnerError(SwinDeployError):
    """A back end failed while it loaded or ran a model."""


class BackendMissing(SwinDeployError):
    """A back end that was asked for is not usable on this machine."""

    exit_code = 4


class ToleranceExceeded(SwinDeployError):
    """Everything ran, and the drift is beyond the tolerance."""

    exit_code = 3
