"""What a pruning will remove: importance on photographs, costs, and the plan they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from calibration.dataset import ImageFolder
from reference_model.config import SwinV2Config
from reference_model.model import SwinV2
from swinv2_deploy.artifacts import ModelArtifact
from swinv2_deploy.errors import SpecError, UnsupportedModelError
from swinv2_deploy.modeling.io import WEIGHTS, load_model
from swinv2_deploy.modeling.trained import TRAINED_WEIGHTS
from swinv2_deploy.pipeline.timed import latency_table
from swinv2_deploy.prune.cost import Costs, Figures, figures_of, head_counts, mac_costs, parameter_costs
from swinv2_deploy.prune.cut import cut_config
from swinv2_deploy.prune.images import ImportanceImages
from swinv2_deploy.prune.importance import Importance, measure
from swinv2_deploy.prune.latency import LatencyTable
from swinv2_deploy.prune.left_out import LeftOut, leave_one_out, sample_heads
from swinv2_deploy.prune.plan import PrunePlan, make_plan
from swinv2_deploy.prune.spec import PruneSpec

Progress = Callable[[str, int, int], object]
"""Called with what is being done, how many steps are done, and how many there are."""


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedPruning:
    """What a pruning will remove, before anything is removed.

    Attributes:
        plan: What stays.
        before: Size of the model as it is.
        after: Size of what stays.
        size: (height, width) in px that MACs are counted at.
        importance: What the plan was made of; None for a plan from a file.
        left_out: Check of the ranking, where one was asked for.
        table: Times of blocks, for a budget in latency.
        images: Photographs that were looked at.
        removed: Share that goes, in the budget's own measure; None for a plan from a file.
    """

    plan: PrunePlan
    before: Figures
    after: Figures
    size: tuple[int, int]
    importance: Importance | None = None
    left_out: LeftOut | None = None
    table: LatencyTable | None = None
    images: ImageFolder | None = None
    removed: float | None = None


def plan_pruning(
    artifact: ModelArtifact, spec: PruneSpec, images: ImageFolder | None, progress: Progress = silent
) -> PlannedPruning:
    """Measure importance and choose what goes.

    Args:
        artifact: Artifact to prune.
        spec: Budget and criterion.
        images: Photographs that the model knows; None for criteria that look at none.
        progress: Told about every step.

    Raises:
        SpecError: When the budget cannot be met, photographs are needed and missing, or no block runs.
        ArtifactError: When the weights cannot be read.
    """
    refuse_quantized(artifact)
    if not artifact.config.running_stages:
        raise SpecError(f"{artifact.name} returns the stem alone, behind no block, so there is nothing to prune.")
    model = load_model(artifact)
    size = spec.size or artifact.preprocessing.size
    table = None
    if spec.measure == "latency":
        table = latency_table(model.config, size, spec.multiple, lambda done, total: progress("Timing blocks", done, total))
    found = plan_for(artifact, model, spec, images, costs_of(model.config, spec, size, table), spec.share, progress)
    return replace(found, table=table)


def plan_from_file(artifact: ModelArtifact, plan: PrunePlan, size: tuple[int, int] | None = None) -> PlannedPruning:
    """A plan that was made before, with what it removes."""
    refuse_quantized(artifact)
    size = size or artifact.preprocessing.size
    after = figures_of(cut_config(artifact.config, plan), size)
    return PlannedPruning(plan=plan, before=figures_of(artifact.config, size), after=after, size=size)


def refuse_quantized(artifact: ModelArtifact) -> None:
    """Refuse weights that are no longer those of the FP32 model.

    Raises:
        UnsupportedModelError: When the artifact was trained with its rounding.
    """
    if TRAINED_WEIGHTS in artifact.lineage.files:
        raise UnsupportedModelError(
            f"{artifact.name} was trained with its rounding, which pruning would undo; prune the model it came from "
            f"({artifact.lineage.parent.get('name', 'its parent')}) and quantize that."
        )


def plan_for(
    artifact: ModelArtifact,
    model: SwinV2,
    spec: PruneSpec,
    images: ImageFolder | None,
    costs: Costs,
    share: float,
    progress: Progress,
) -> PlannedPruning:
    """A plan that removes ``share`` of ``costs`` from a model, which may be smaller than the artifact's.

    Raises:
        SpecError: When the budget cannot be met, or photographs are needed and missing.
    """
    config, size = model.config, spec.size or artifact.preprocessing.size
    chosen: ImageFolder | None = None
    if spec.criterion in ("taylor", "activation") or spec.check_heads:
        if images is None:
            raise SpecError(f"The criterion {spec.criterion} looks at photographs; give a folder of them with --data.")
        chosen = images.select(min(spec.images, len(images)), spec.seed)
    seen = None
    if chosen is not None:
        seen = ImportanceImages(chosen, config, artifact.preprocessing, spec.batch_for(artifact.preprocessing.size))

    importance = measure(
        model,
        seen.batches if seen else lambda: (),
        spec.criterion,
        count=len(seen) if seen else 0,
        seed=spec.seed,
        progress=lambda done, total: progress("Measuring importance", done, total),
    )
    left_out = None
    if spec.check_heads and seen is not None:
        heads = sample_heads(model, spec.check_heads, spec.seed)
        left_out = leave_one_out(
            model, seen.batches, importance.scores, heads, lambda done, total: progress("Leaving heads out", done, total)
        )
    plan = make_plan(config, importance.scores, costs, replace(spec, share=share))
    removed = plan.cost_removed(config, costs) / costs.total
    before, after = figures_of(config, size), figures_of(cut_config(config, plan), size)
    facts = {
        "model": artifact.name,
        "budget": {"measure": spec.measure, "share": spec.share, "removed": removed},
        "criterion": spec.criterion,
        "size": list(size),
        "before": asdict(before),
        "after": asdict(after),
    }
    return PlannedPruning(
        plan=replace(plan, weights_sha256=artifact.lineage.files[WEIGHTS], facts=facts),
        before=before,
        after=after,
        size=size,
        importance=importance,
        left_out=left_out,
        images=chosen,
        removed=removed,
    )


def costs_of(config: SwinV2Config, spec: PruneSpec, size: tuple[int, int], table: LatencyTable | None) -> Costs:
    """What units cost in the measure of a budget."""
    if spec.measure == "params":
        return parameter_costs(config)
    if spec.measure == "macs":
        return mac_costs(config, size)
    if spec.measure == "heads":
        return head_counts(config)
    if table is None:
        raise SpecError("A budget in latency needs times of blocks.")
    return table.costs(config)
