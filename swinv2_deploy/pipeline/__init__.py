"""Stages that need each other. The only room that composes them; a stage never imports another."""

from swinv2_deploy.pipeline.compiled import PlannedEngine, compile_artifact, planned_engine
from swinv2_deploy.pipeline.exported import export_like
from swinv2_deploy.pipeline.judged import Verdict, judge, judge_methods
from swinv2_deploy.pipeline.pruned import PruneResult, prune_artifact
from swinv2_deploy.pipeline.pruning_plan import PlannedPruning, plan_from_file, plan_pruning
from swinv2_deploy.pipeline.quantized import quantize_aware
from swinv2_deploy.pipeline.recovered import Accuracy, Recovery
from swinv2_deploy.pipeline.timed import latency_table

__all__ = [
    "Accuracy",
    "PlannedEngine",
    "PlannedPruning",
    "PruneResult",
    "Recovery",
    "Verdict",
    "compile_artifact",
    "export_like",
    "judge",
    "judge_methods",
    "latency_table",
    "plan_from_file",
    "plan_pruning",
    "planned_engine",
    "prune_artifact",
    "quantize_aware",
]
