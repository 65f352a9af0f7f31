"""What a compilation is told. No TensorRT import."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

from swinv2_deploy.engine.profiles import BatchSize
from swinv2_deploy.errors import SpecError
from swinv2_deploy.runtime.runner import Rest

HIGHEST_LEVEL = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """How an engine is built.

    Attributes:
        onnx: Name of the ONNX file, without suffix; None takes ``model_int8``, else ``model_fp16``, else ``model``.
        rest: For an INT8 file, the format of everything else; others say theirs themselves.
        batches: Smallest, preferred and largest batch.
        sizes: (height, width) in px, a profile for each; none for one profile over the file's range.
        bounds: Smallest, preferred and largest (batch, height, width) instead of those of the range; None leaves one.
        backend: ``tensorrt`` or ``tensorrt-rtx``; None takes what is installed.
        targets: Compute capabilities to build for, where the back end builds for others than the GPU at hand.
        level: Builder optimization level, 0 to 5; None leaves the back end's.
        workspace_mib: Largest scratch memory of a kernel in MiB; None leaves the back end's.
        version_compatible: Whether later versions of the back end shall run the engine.
        hardware_compatible: Whether GPUs of other generations shall run it.
        weight_streaming: Whether weights may stay in host memory and be streamed.
        timing_cache: File of kernel timings, shared by builds; None takes one for each machine and version, ``""`` none.
        require_int8_gemms: Smallest share of the linear layers that must become INT8 products.
        require_fused_attention: Smallest share of blocks whose attention must become one kernel.
    """

    onnx: str | None = None
    rest: Rest = "fp16"
    batches: BatchSize = (1, 1, 8)
    sizes: tuple[tuple[int, int], ...] = ()
    bounds: tuple[BatchSize | None, BatchSize | None, BatchSize | None] = (None, None, None)
    backend: str | None = None
    targets: tuple[str, ...] = ()
    level: int | None = None
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    weight_streaming: bool = False
    timing_cache: str | None = None
    require_int8_gemms: float | None = None
    require_fused_attention: float | None = None

    def __post_init__(self) -> None:
        if self.rest not in get_args(Rest):
            raise SpecError(f"The rest is to be {self.rest!r}; expected one of {', '.join(get_args(Rest))}.")
        if self.level is not None and not 0 <= self.level <= HIGHEST_LEVEL:
            raise SpecError(
                f"The builder level is {self.level}; expected 0 (fastest build) to {HIGHEST_LEVEL} (fastest engine)."
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise SpecError(f"The workspace is {self.workspace_mib} MiB; expected at least 1.")
        for name in ("require_int8_gemms", "require_fused_attention"):
            floor = getattr(self, name)
            if floor is not None and not 0 <= floor <= 1:
                raise SpecError(f"{name} is {floor}; expected a share from 0 to 1.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def as_rest(text: str) -> Rest:
    """The option's text; :class:`EngineSpec` checks it."""
    return cast("Rest", text)
