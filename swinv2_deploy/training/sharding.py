"""Fully sharded data parallelism: each process holds a part of every parameter, of its gradient, average and optimizer state.

A block's parameters are brought together when the block runs and let go afterwards, so that a process needs room for one block
beside its part. What is learned is what plain data parallelism learns. Single numbers cannot be parted; each process has them.

Source: PyTorch FSDP2, torch.distributed.fsdp.fully_shard (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from reference_model.model import Block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator

Module = TypeVar("Module", bound=nn.Module)


def shard(model: Module, accelerator: Accelerator) -> Module:
    """Part the parameters of a model among the processes, in place: block by block, then what is outside of blocks.

    Its parameters are other objects afterwards, of their full shapes; each holds this process's rows.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    single = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for module in [module for module in model.modules() if isinstance(module, Block)]:
        fully_shard(module, mesh=mesh, ignored_params=single)
    fully_shard(model, mesh=mesh, ignored_params=single)
    return model


def is_part(value: Tensor) -> bool:
    """Whether a tensor is parted among the processes."""
    return hasattr(value, "full_tensor")


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` parted this model."""
    return any(is_part(parameter) for parameter in model.parameters())


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor: its rows, or all of one that is not parted."""
    found: Tensor = value.to_local() if is_part(value) else value  # type: ignore[attr-defined]  # a DTensor
    return found


def whole(value: Tensor) -> Tensor:
    """The tensor put together from all processes, which must all ask for it."""
    found: Tensor = value.full_tensor() if is_part(value) else value  # type: ignore[attr-defined]  # a DTensor
    return found


def part_like(own: Tensor, like: Tensor) -> Tensor:
    """A tensor parted as ``like`` is, from what this process holds of it."""
    if not is_part(like):
        return own
    from torch.distributed.tensor import DTensor

    given: Any = like
    return DTensor.from_local(
        own.to(like.device), given.device_mesh, given.placements, shape=like.shape, stride=like.stride(), run_check=False
    )


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A tensor parted as ``like`` is, from one that every process holds whole, or that is; no process asks another."""
    if is_part(value) or not is_part(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    given: Any = like
    return distribute_tensor(value.to(like.device), given.device_mesh, given.placements, src_data_rank=None)


@contextmanager
def unshared(model: Any) -> Iterator[None]:
    """Do not share the gradients of a sharded model between processes in this block."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def share_whole(model: nn.Module, reduce: Callable[[Tensor], Tensor]) -> None:
    """Give single numbers the gradient that ``reduce`` makes of those of all processes; sharded ones have it already."""
    for parameter in model.parameters():
        if parameter.grad is not None and not is_part(parameter):
            parameter.grad.copy_(reduce(parameter.grad))


def saved_buffers(model: nn.Module) -> tuple[str, ...]:
    """Names of the buffers that a checkpoint keeps; the others never change."""
    saved = model.state_dict()
    return tuple(name for name, _ in model.named_buffers() if name in saved)


def same_buffers(model: nn.Module, names: Iterable[str]) -> None:
    """Give every process the first one's buffers of these names, as plain data parallelism does."""
    for name in names:
        torch.distributed.broadcast(model.get_buffer(name), 0)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scale all gradients so that their norm is ``largest`` at most; returns the norm before, over all processes."""
    found = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [[one for one in found if is_part(one) == parted] for parted in (False, True)]
    norms = [whole(torch.nn.utils.get_total_norm([one.grad for one in kind if one.grad is not None])) for kind in kinds if kind]
    total = norms[0] if len(norms) == 1 else torch.stack([norm.to(norms[0].device) for norm in norms]).norm()
    for kind in filter(None, kinds):
        torch.nn.utils.clip_grads_with_norm_(kind, largest, total)
    return total.item()
