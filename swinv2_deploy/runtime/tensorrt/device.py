"""The few things a runner asks of a GPU, so that what asks for them can be tested without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Device(Protocol):
    """Memory, streams and recorded work."""

    @property
    def name(self) -> str:
        """What it is called in reports."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory on the device."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device copies from and to by itself."""

    def stream(self) -> Any:
        """A queue of work; work of two queues may run at once."""

    def handle(self, stream: Any) -> int:
        """The number that CUDA knows a stream by."""

    def copy(self, target: Tensor, source: Tensor, stream: Any) -> None:
        """Copy between host and device, behind what the stream already holds."""

    def wait_for_caller(self, stream: Any) -> None:
        """Let a stream begin only when the caller's own work on the device so far is done."""

    def let_caller_wait(self, stream: Any) -> None:
        """Let the caller's later work on the device begin only when what the stream holds is done."""

    def synchronize(self, stream: Any) -> None:
        """Wait until a stream is empty."""

    def record(self, work: Callable[[], None], stream: Any) -> Callable[[], None]:
        """Record work on a stream once, to be launched as a whole: a CUDA graph."""


class CudaDevice:
    """The first GPU, through PyTorch.

    Args:
        name: What it is called in reports.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._device = torch.device("cuda", 0)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of the GPU."""
        return torch.empty(shape, dtype=dtype, device=self._device)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Page-locked memory of the host."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def stream(self) -> Any:
        """A stream of its own."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def handle(self, stream: Any) -> int:
        """The address of the stream."""
        return int(stream.cuda_stream)

    def copy(self, target: Tensor, source: Tensor, stream: Any) -> None:
        """Queue a copy."""
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def wait_for_caller(self, stream: Any) -> None:
        """Begin behind the current stream of PyTorch."""
        stream.wait_stream(torch.cuda.current_stream(self._device))

    def let_caller_wait(self, stream: Any) -> None:
        """Let the current stream of PyTorch wait."""
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until the stream is empty."""
        stream.synchronize()

    def record(self, work: Callable[[], None], stream: Any) -> Callable[[], None]:
        """Capture a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()

        def replay() -> None:
            with torch.cuda.stream(stream):
                graph.replay()

        return replay
