"""TensorRT-RTX: compiles ahead of time for named compute capabilities, without a GPU, and finishes kernels when an engine runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from swinv2_deploy.atomic import replace_file
from swinv2_deploy.errors import SpecError
from swinv2_deploy.runtime.tensorrt.backend import Backend, BackendName

UNPLACED = ("NONE", "CURRENT")
"""Members of its list of compute capabilities that name none."""


class TensorRtRtx(Backend):
    """TensorRT-RTX."""

    name: ClassVar[BackendName] = "tensorrt-rtx"
    flavor: ClassVar[str] = "TensorRT-RTX"
    has_timing_cache: ClassVar[bool] = False

    def network_flags(self) -> int:
        """The flag that asks for strong typing."""
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def set_targets(self, options: Any, names: Sequence[str]) -> None:
        """Compile for these compute capabilities: ``8.6``, ``sm86`` and ``86`` are the same."""
        known = self._known()
        wanted = [re.sub(r"^sm_?", "", name.strip().lower()).replace(".", "") for name in names]
        unknown = [name for name, digits in zip(names, wanted, strict=True) if digits not in known]
        if unknown:
            raise SpecError(
                f"{self.flavor} {self.version} does not compile for {', '.join(unknown)}; expected some of "
                f"{', '.join(_dotted(digits) for digits in known)}. TensorRT itself builds for other GPUs."
            )
        if wanted:
            options.num_compute_capabilities = len(wanted)
            for place, digits in enumerate(wanted):
                options.set_compute_capability(known[digits], place)

    def targets(self, options: Any) -> tuple[str, ...]:
        """The compute capabilities asked for, or every GPU it supports."""
        count = options.num_compute_capabilities
        names = [options.get_compute_capability(place).name for place in range(count)]
        return tuple(_dotted(name.removeprefix("SM")) for name in names) or self.default_targets

    @property
    def default_targets(self) -> tuple[str, ...]:
        return ("every GPU it supports",)

    def set_compatibility(self, options: Any, *, version: bool, hardware: bool) -> None:
        """Refuse both: it has another way for one and none for the other."""
        if version:
            # Its builder takes the flag and fails at the end for want of a library that it does not ship.
            raise SpecError(
                f"Engines of {self.flavor} run on the version that built them alone; leave --version-compatible out."
            )
        if hardware:
            raise SpecError(f"Engines of {self.flavor} run on every GPU of their --target; leave --hardware-compatible out.")

    def validity(self, runtime: Any, plan: bytes) -> str | None:
        """What the runtime says of a plan before it is loaded."""
        verdict, details = runtime.get_engine_validity(plan)
        if verdict == self.trt.EngineValidity.INVALID:
            return f"{self.flavor} says that this machine cannot run it (diagnostics {details:#x})"
        return None

    def create_context(self, engine: Any, cache: Path | None = None) -> Any:
        """A context that compiles its kernels when it first runs, or finds them in ``cache``."""
        config = engine.create_runtime_config()
        kept = config.create_runtime_cache()
        if cache is not None and cache.is_file():
            kept.deserialize(cache.read_bytes())
        config.set_runtime_cache(kept)
        return engine.create_execution_context(config)

    def keep_cache(self, context: Any, cache: Path) -> None:
        """Write the kernels that a context compiled, atomically."""
        content = bytes(context.get_runtime_config().get_runtime_cache().serialize())
        cache.parent.mkdir(parents=True, exist_ok=True)
        replace_file(cache, content)

    def _known(self) -> dict[str, Any]:
        members = self.trt.ComputeCapability.__members__
        return {name.removeprefix("SM"): member for name, member in members.items() if name not in UNPLACED}


def _dotted(digits: str) -> str:
    """``86`` is 8.6, and ``120`` is 12.0."""
    return f"{digits[:-1]}.{digits[-1]}"
