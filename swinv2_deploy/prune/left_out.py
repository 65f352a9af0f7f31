"""Does the ranking hold? Heads are left out one at a time, and what that does is compared with their scores.

Shape letters: B images of a batch, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference_model.model import SwinV2
from swinv2_deploy.prune.importance import Batch, Progress, Scores, tensors_of
from swinv2_deploy.prune.units import LAYER, blocks_of, channels_of, module_of, units_of


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """What leaving heads out one at a time did.

    Attributes:
        heads: (stage, block, head) of each.
        change: Mean change of the outputs of each, see :func:`leave_one_out`.
        rank_correlation: Spearman's, between these and the scores.
    """

    heads: tuple[tuple[int, int, int], ...]
    change: tuple[float, ...]
    rank_correlation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "heads": [list(head) for head in self.heads],
            "change": list(self.change),
            "rank_correlation": self.rank_correlation,
        }


@torch.no_grad()
def leave_one_out(
    model: SwinV2,
    batches: Callable[[], Iterable[Batch]],
    scores: Scores,
    heads: Sequence[tuple[int, int, int]],
    progress: Progress = lambda done, total: None,
) -> LeftOut:
    """Close one head at a time and see how far the outputs move.

    The change is the Kullback-Leibler divergence of a classifier's probabilities from what they were, in nats; for other models the
    squared change of the outputs over their square. Both are means over images.

    Args:
        model: Reference model, in evaluation mode.
        batches: Function that starts over the images.
        scores: What the changes are compared with.
        heads: (stage, block, head) of each to leave out.
        progress: Called with heads done and in all.
    """
    outputs = [_flat(model(*inputs)) for inputs, _ in batches()]
    classifies = model.config.task == "classification"
    changes = []
    for done, (stage, block, head) in enumerate(heads, 1):
        at = (stage, block)
        d = channels_of(model.config, "heads", at)
        layer = model.get_submodule(f"{module_of(at)}.{LAYER['heads']}")

        def close(
            _: nn.Module, arguments: tuple[Tensor, ...], first: int = head * d, last: int = head * d + d
        ) -> tuple[Tensor]:
            x = arguments[0].clone()
            x[..., first:last] = 0
            return (x,)

        handle = layer.register_forward_pre_hook(close)
        try:
            moved = [
                _change(before, _flat(model(*inputs)), classifies=classifies)
                for before, (inputs, _) in zip(outputs, batches(), strict=True)
            ]
        finally:
            handle.remove()
        changes.append(float(torch.cat(moved).mean()))
        progress(done, len(heads))
    expected = [scores["heads"][stage, block][head] for stage, block, head in heads]
    return LeftOut(heads=tuple(heads), change=tuple(changes), rank_correlation=spearman(expected, changes))


def _change(expected: Tensor, found: Tensor, *, classifies: bool) -> Tensor:
    """How far the outputs of each image moved, (B,)."""
    if classifies:
        return F.kl_div(F.log_softmax(found, dim=-1), F.log_softmax(expected, dim=-1), reduction="none", log_target=True).sum(
            dim=-1
        )
    return (found - expected).square().sum(dim=1) / expected.square().sum(dim=1).clamp(min=1e-300)


def _flat(outputs: object) -> Tensor:
    return torch.cat([output.double().flatten(1) for output in tensors_of(outputs)], dim=1)


def sample_heads(model: SwinV2, count: int, seed: int) -> list[tuple[int, int, int]]:
    """Some heads of the model, or all where there are not more, in order."""
    heads = [(*at, head) for at in blocks_of(model.config) for head in range(units_of(model.config, "heads", at))]
    chosen = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed))[:count]
    return [heads[index] for index in sorted(chosen.tolist())]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation of two lists, in [-1, 1]; equal values share their mean rank. 0 where one of them is constant."""
    ranks = [_ranks(torch.tensor(values, dtype=torch.float64)) for values in (first, second)]
    centered = [rank - rank.mean() for rank in ranks]
    norms = float(centered[0].norm() * centered[1].norm())
    return float(centered[0] @ centered[1]) / norms if norms > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    below = (values[None, :] < values[:, None]).sum(dim=1)
    equal = (values[None, :] == values[:, None]).sum(dim=1)
    return below.double() + (equal.double() - 1) / 2
