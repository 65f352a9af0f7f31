"""Who compares the shards: this process, the processes of a launcher, or the workers of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swinv2_deploy import __version__
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import SpecError
from swinv2_deploy.runtime import FileRunner
from swinv2_deploy.verify.comparison import Comparer, ComparisonPlan, Shard
from swinv2_deploy.verify.shard_store import ShardStore
from swinv2_deploy.verify.spec import VerifySpec

Told = Callable[[int], None]
"""Called with the number of photographs that were compared just now."""

FIGURES = (
    "batch_size",
    "shard_size",
    "labels",
    "threads",
    "back_ends",
    "provider",
    "openvino_precision",
    "integer_products",
)
"""Fields of the spec that a shard depends on."""


def identity_of(
    plan: ComparisonPlan, artifact: ModelArtifact, others: Iterable[ModelArtifact], runners: Mapping[str, FileRunner]
) -> dict[str, Any]:
    """What the shards of a verification depend on, by name."""
    spec = plan.spec.to_dict()
    return {
        "artifact": artifact.sha256,
        "artifacts beside it": [other.sha256 for other in others],
        "files": sorted(runners),
        "images": plan.images.folder.manifest().sha256,
        "tolerances": {precision: asdict(limits) for precision, limits in plan.spec.tolerances.items()},
        "versions": {"swinv2-deploy": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
    } | {name: spec[name] for name in FIGURES}


def check_sharing(spec: VerifySpec, run: Path | None) -> int:
    """This process among those of a launcher such as ``torchrun``, counted from 0; it is 0 without a launcher.

    Raises:
        SpecError: When several processes have no folder to share shards through, or Ray is to be started by each of them.
    """
    processes, rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    if not (processes.isdigit() and rank.isdigit()) or int(processes) < 2:
        return 0
    if run is None:
        raise SpecError(
            f"A launcher started {processes} processes, which share the work through a folder that all of them can write; "
            "give it with --run DIR."
        )
    if spec.engine == "ray":
        raise SpecError("--engine ray starts its own workers; run it in one process, without a launcher.")
    return int(rank)


def compared(comparer: Comparer, store: ShardStore | None, told: Told, *, waits: bool = True) -> list[Shard]:
    """Every shard; those that a store has are read, those that other processes hold are waited for.

    Args:
        comparer: Compares here.
        store: Where shards are kept, if they are.
        told: About progress.
        waits: Whether to wait for other processes; without it only the shards that exist are given.
    """
    plan = comparer.plan

    def whole(images: int) -> None:
        told(comparer.passes * images)

    if store is None:
        away = _elsewhere(plan, range(plan.shards), whole)
        return list(away or (comparer.shard(index, told) for index in range(plan.shards)))
    found = [index for index in range(plan.shards) if store.has(index)]
    whole(sum(len(plan.part(index)) for index in found))
    if plan.spec.engine == "ray":
        for shard in _elsewhere(plan, sorted(set(range(plan.shards)) - set(found)), whole) or ():
            store.save(shard)
    store.compare(range(plan.shards), lambda index: comparer.shard(index, told), waits=waits)
    return [store.load(index) for index in range(plan.shards) if store.has(index)]


def _elsewhere(plan: ComparisonPlan, indices: Iterable[int], told: Told) -> Iterator[Shard] | None:
    """Shards of another engine as they come; None where this process is the engine."""
    if plan.spec.engine == "local":
        return None
    from swinv2_deploy.verify.ray_engine import compare_with_ray

    return compare_with_ray(plan, list(indices), told)
