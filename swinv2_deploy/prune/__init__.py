"""Removing attention heads and MLP hidden units: what they are worth, which ones go, and the smaller model that is left."""

from swinv2_deploy.prune.cut import cut, masked
from swinv2_deploy.prune.importance import Importance, measure
from swinv2_deploy.prune.plan import PrunePlan, make_plan, read_plan
from swinv2_deploy.prune.spec import PruneSpec, RecoverSpec

__all__ = ["Importance", "PrunePlan", "PruneSpec", "RecoverSpec", "cut", "make_plan", "masked", "measure", "read_plan"]
