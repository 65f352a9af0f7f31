"""TensorRT 10, from 10.13 on: strong typing is asked for, and engines are built for the GPU at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from swinv2_deploy.errors import SpecError
from swinv2_deploy.runtime.tensorrt.backend import Backend, BackendName
from swinv2_deploy.runtime.tensorrt.gpu import Gpu


class TensorRt10(Backend):
    """TensorRT 10.

    Args:
        trt: The imported module.
        gpu: The GPU to build for.
    """

    name: ClassVar[BackendName] = "tensorrt"
    flavor: ClassVar[str] = "TensorRT"

    def __init__(self, trt: Any, gpu: Gpu) -> None:
        super().__init__(trt)
        self.gpu = gpu

    def network_flags(self) -> int:
        """The flag that asks for strong typing."""
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def set_targets(self, options: Any, names: Sequence[str]) -> None:
        """Refuse any: the GPU at hand is built for."""
        if names:
            raise SpecError(
                f"{self.flavor} builds for the GPU at hand, {self.gpu}, not for {', '.join(names)}; leave --target out, or use "
                "--hardware-compatible, or --backend tensorrt-rtx."
            )

    def targets(self, options: Any) -> tuple[str, ...]:
        """The GPU at hand."""
        return self.default_targets

    @property
    def default_targets(self) -> tuple[str, ...]:
        return (str(self.gpu),)
