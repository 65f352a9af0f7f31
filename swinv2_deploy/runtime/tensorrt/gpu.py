"""The NVIDIA GPU of this machine, or the reason why there is none to use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that CUDA can use.

    Attributes:
        name: As the driver calls it.
        capability: Compute capability, such as ``9.0``.
        memory_bytes: All of its memory.
    """

    name: str
    capability: str
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name} ({self.capability})"


def find_gpu() -> Gpu | str:
    """The first GPU, or the reason why there is none: PyTorch has no CUDA, or CUDA finds no device or driver."""
    import torch

    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    try:
        facts = torch.cuda.get_device_properties(0)
    except (RuntimeError, AssertionError) as error:
        return f"CUDA is not usable: {str(error).splitlines()[0]}"
    return Gpu(facts.name, f"{facts.major}.{facts.minor}", facts.total_memory)
