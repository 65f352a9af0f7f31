"""Shards on the workers of a Ray cluster, with Ray Data. Needs the extra ``ray``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from swinv2_deploy.errors import BackendMissing, RunnerError, SpecError
from swinv2_deploy.verify.comparison import Comparer, ComparisonPlan, Shard


class _Worker:
    """An actor: loads the models once, then compares the shards it is given."""

    def __init__(self, plan: Any) -> None:
        import ray

        self._comparer = Comparer.load(ray.get(plan))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"shard": [json.dumps(self._comparer.shard(int(index)).to_dict()) for index in batch["index"]]}


def compare_with_ray(plan: ComparisonPlan, indices: Sequence[int], told: Callable[[int], None]) -> Iterator[Shard]:
    """Compare shards on the cluster that ``RAY_ADDRESS`` names, else on one that is started on this machine.

    Every worker takes as many CPUs as it has threads, and one CPU stays free for the reader, which would wait for ever otherwise.

    Args:
        plan: What to compare; its folders must be seen by every worker.
        indices: Shards.
        told: Told how many photographs were compared just now.

    Raises:
        BackendMissing: When Ray is not installed.
        SpecError: When the cluster has too few CPUs or GPUs.
        RunnerError: When a worker fails.
    """
    if not indices:
        return
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendMissing(f"Ray is not usable here ({error}); install it with pip install 'swinv2-deploy[ray]'.") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    try:
        workers, gpus = _share(plan, ray.cluster_resources(), len(indices))  # type: ignore[no-untyped-call]
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([{"index": index} for index in indices], override_num_blocks=len(indices))
        shards = rows.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(plan),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=plan.spec.threads or 1,
            num_gpus=gpus,
        )
        for row in shards.iter_rows():
            shard = Shard.from_dict(json.loads(row["shard"]))
            told(len(plan.part(shard.index)))
            yield shard
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise RunnerError(f"A Ray worker failed: {cause}") from error
    finally:
        if own:
            ray.shutdown()


def _share(plan: ComparisonPlan, cluster: dict[str, float], shards: int) -> tuple[int, int]:
    """How many workers there can be, and how many GPUs each of them takes."""
    threads = plan.spec.threads or 1
    cpus, gpus = int(cluster.get("CPU", 0)), int(cluster.get("GPU", 0))
    if cpus < threads + 1:
        raise SpecError(
            f"Ray has {cpus} CPUs, and a worker of {threads} threads must leave one for the reader; use fewer --threads, a larger "
            "cluster, or --engine local."
        )
    workers = (cpus - 1) // threads
    needs_gpu = plan.spec.provider != "cpu" or "tensorrt" in plan.spec.back_ends
    if needs_gpu:
        if gpus < 1:
            raise SpecError("Ray has no GPU, and the back end or provider asked for needs one; use another cluster.")
        workers = min(workers, gpus)
    return max(1, min(workers, shards)), int(needs_gpu)
