"""One process or several: who takes part, which rows of a batch each takes, and how figures are shared.

Every process takes its rows of the same batch, so that a step means the same whatever their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env

from swinv2_deploy.errors import SpecError, TrainingError
from swinv2_deploy.training.spec import TrainSpec

_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


_NOT_WITH_FSDP = {
    "FSDP_ACTIVATION_CHECKPOINTING": "use --checkpoint-blocks",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "use --checkpoint-blocks",
    "FSDP_OFFLOAD_PARAMS": "parts stay on the device; use more processes, --checkpoint-blocks or --window-chunk",
}


def join_processes(spec: TrainSpec) -> Accelerator:
    """Meet the other processes that a launcher started, if one did, on this machine's accelerator or else its processor.

    Raises:
        TrainingError: When fewer processes meet than the launcher was asked for, or it asks for something this loop does not do.
    """
    _refuse_what_is_not_done(os.environ, spec)
    cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    try:
        # Precision is the recipe's, see step.py, and parting the model is done in sharding.py.
        with _hidden("ACCELERATE_USE_FSDP"):
            accelerator = Accelerator(cpu=cpu, mixed_precision="no")
    except ValueError as error:
        raise TrainingError(
            f"accelerate cannot start ({error}); expected a process that has not set it up otherwise."
        ) from error
    asked = asked_processes(os.environ)
    if accelerator.num_processes < asked:
        raise TrainingError(
            f"The launcher was asked for {asked} or more processes, and {accelerator.num_processes} runs; expected all of them. "
            "Start them with 'torchrun --nproc-per-node N': 'accelerate launch --cpu' leaves that to mpirun, without a word."
        )
    return accelerator


def asked_processes(environment: Mapping[str, str]) -> int:
    """How many processes a launcher's environment speaks of, at least.

    ``accelerate launch --cpu --num_processes 2`` names no number to the one process that it starts. What it does then, and for
    several processes only, is to set an address to meet at.
    """
    sizes = [int(environment[name]) for name in _WORLD_SIZES if environment.get(name, "").isdigit()]
    launched = "ACCELERATE_MIXED_PRECISION" in environment and not any(name in environment for name in _RANKS)
    return max([*sizes, 2 if launched and "MASTER_ADDR" in environment else 1])


def rank_of(environment: Mapping[str, str]) -> int:
    """This process among those of a launcher, counted from 0, before anything was started."""
    return max([int(environment[name]) for name in _RANKS if environment.get(name, "").isdigit()], default=0)


def rows_of(accelerator: Accelerator, spec: TrainSpec) -> range:
    """Rows of every batch that this process takes.

    Raises:
        SpecError: When the batch cannot be shared evenly.
    """
    parts = accelerator.num_processes * spec.accumulate
    if spec.batch_size % parts:
        raise SpecError(
            f"A batch of {spec.batch_size} images cannot be cut into {accelerator.num_processes} processes times {spec.accumulate} "
            f"parts; use a batch size that is a multiple of {parts}."
        )
    share = spec.batch_size // accelerator.num_processes
    return range(accelerator.process_index * share, (accelerator.process_index + 1) * share)


def mean_over(accelerator: Accelerator, *values: float) -> list[float]:
    """Mean of each number over all processes, the same in all of them."""
    if accelerator.num_processes == 1:
        return list(values)
    shared: list[float] = accelerator.reduce(
        torch.tensor(values, dtype=torch.float64, device=accelerator.device), "mean"
    ).tolist()
    return shared


def largest_over(accelerator: Accelerator, value: int) -> int:
    """Largest of a number over all processes, the same in all of them."""
    if accelerator.num_processes == 1:
        return value
    return int(accelerator.gather(torch.tensor([value], device=accelerator.device)).max())


def asked_to_shard() -> bool:
    """Whether the launcher asks for FSDP: that each process holds a part of the model instead of all of it."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Without a variable of the environment in this block."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _refuse_what_is_not_done(environment: Mapping[str, str], spec: TrainSpec) -> None:
    for name in ("DEEPSPEED", "MEGATRON_LM", "TP"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise TrainingError(
                f"The launcher asks for {name}; expected data parallelism, plain or FSDP. Launch without it; --checkpoint-blocks, "
                "--window-chunk and --accumulate save memory."
            )
    for name, instead in _NOT_WITH_FSDP.items():
        if asked_to_shard() and parse_flag_from_env(name):
            raise TrainingError(f"The launcher asks FSDP for {name}; expected it off: {instead}.")
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", spec.precision):
        raise TrainingError(
            f"The launcher asks for mixed precision {precision} and the recipe {spec.precision}; use --precision."
        )
    compiler = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no":
        raise TrainingError(f"The launcher asks for the compiler {compiler}; expected none: launch with --dynamo_backend no.")
