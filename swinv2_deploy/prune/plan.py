"""Which heads and hidden units stay: one ranking over the whole model, down to a budget, and the file it is kept in.

The file names what is kept, block by block, as ranges that can be read and edited. Counts and costs in it are for the reader: what
decides is ``keep``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reference_model.config import SwinV2Config
from swinv2_deploy.errors import SpecError
from swinv2_deploy.prune.cost import Costs
from swinv2_deploy.prune.spec import PruneSpec
from swinv2_deploy.prune.units import KINDS, Block, Kind, as_ranges, blocks_of, from_ranges, units_of

SCHEMA = 1
TOLERANCE = 0.01
"""What goes shall be within this share of what was asked for."""

ROOM = 0.01
"""In a model whose single units are larger than that, within this share of the whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunePlan:
    """What stays of a model.

    Attributes:
        heads: Indices of the heads that stay, rising, by block.
        hidden: Indices of the hidden units that stay, rising, by block.
        weights_sha256: Hash of the weights file it was made for; empty fits every model of the architecture.
        facts: What the reader of a file should know: budget, costs before and after.
    """

    heads: Mapping[Block, tuple[int, ...]]
    hidden: Mapping[Block, tuple[int, ...]]
    weights_sha256: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def check(self, config: SwinV2Config) -> None:
        """Refuse an architecture that the plan is not for.

        Raises:
            SpecError: When blocks or units differ, or a block would be left without any.
        """
        expected = set(blocks_of(config))
        for kind in KINDS:
            kept = self.kept(kind)
            if set(kept) != expected:
                raise SpecError(
                    f"The plan speaks of {len(kept)} blocks and the model has {len(expected)}; expected a plan for this model."
                )
            for at, indices in kept.items():
                count = units_of(config, kind, at)
                if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= count:
                    raise SpecError(
                        f"The plan keeps the {kind} {as_ranges(indices) or '(none)'} of stage {at[0]}, block {at[1]}, which has "
                        f"{count}; expected at least one, of those. The plan is for another model, or was edited wrongly."
                    )

    def kept(self, kind: Kind) -> Mapping[Block, tuple[int, ...]]:
        """Indices of what stays of a kind, by block."""
        return self.heads if kind == "heads" else self.hidden

    def removed(self, config: SwinV2Config, kind: Kind, at: Block) -> int:
        """How many units of a block go."""
        return units_of(config, kind, at) - len(self.kept(kind)[at])

    def after(self, first: PrunePlan) -> PrunePlan:
        """Both plans as one, this one being for what ``first`` leaves."""
        heads, hidden = (
            {at: tuple(first.kept(kind)[at][index] for index in indices) for at, indices in self.kept(kind).items()}
            for kind in KINDS
        )
        return replace(self, heads=heads, hidden=hidden)

    def cost_removed(self, config: SwinV2Config, costs: Costs) -> float:
        """What goes, in the costs' unit."""
        return sum(costs.units[kind][at] * self.removed(config, kind, at) for kind in KINDS for at in blocks_of(config))

    def save(self, path: Path, config: SwinV2Config) -> None:
        """Write the plan as JSON.

        Raises:
            OSError: When the file cannot be written.
        """
        path.write_text(json.dumps(self.to_dict(config), indent=2) + "\n", encoding="utf-8")

    def to_dict(self, config: SwinV2Config) -> dict[str, Any]:
        """Plain JSON types; ``config`` tells what there was."""
        blocks = [
            {
                "stage": at[0],
                "block": at[1],
                "keep_heads": as_ranges(self.heads[at]),
                "of_heads": units_of(config, "heads", at),
                "keep_hidden": as_ranges(self.hidden[at]),
                "of_hidden": units_of(config, "hidden", at),
            }
            for at in blocks_of(config)
        ]
        return {"schema": SCHEMA, "weights_sha256": self.weights_sha256, **self.facts, "keep": blocks}


def read_plan(path: Path, config: SwinV2Config, weights_sha256: str) -> PrunePlan:
    """A plan for a model from its file.

    Raises:
        SpecError: When the file cannot be read, or the plan is for another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema, found, blocks = content["schema"], content["weights_sha256"], content["keep"]
        rows = [
            (
                (int(row["stage"]), int(row["block"])),
                row["keep_heads"],
                int(row["of_heads"]),
                row["keep_hidden"],
                int(row["of_hidden"]),
            )
            for row in blocks
        ]
    except OSError as error:
        raise SpecError(
            f"{path} cannot be read ({error.strerror}); give a plan that 'prune --dry-run --out' or 'prune' wrote."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path} is no plan ({type(error).__name__}: {error}); expected one that 'prune' wrote.") from error
    if schema != SCHEMA:
        raise SpecError(f"{path} has schema {schema!r}; this version reads {SCHEMA}.")
    expected = list(blocks_of(config))
    if [at for at, *_ in rows] != expected:
        raise SpecError(
            f"{path} speaks of {len(rows)} blocks and the model has {len(expected)}; the plan is for another model."
        )
    heads: dict[Block, tuple[int, ...]] = {}
    hidden: dict[Block, tuple[int, ...]] = {}
    for at, keep_heads, of_heads, keep_hidden, of_hidden in rows:
        there = (units_of(config, "heads", at), units_of(config, "hidden", at))
        if (of_heads, of_hidden) != there:
            raise SpecError(
                f"{path} is for a model with {of_heads} heads and {of_hidden} hidden units in stage {at[0]}, block {at[1]}; this "
                f"one has {there[0]} and {there[1]}."
            )
        place = f"in {path}, stage {at[0]}, block {at[1]}"
        heads[at] = from_ranges(str(keep_heads), of_heads, f"keep_heads {place}")
        hidden[at] = from_ranges(str(keep_hidden), of_hidden, f"keep_hidden {place}")
    if found and found != weights_sha256:
        raise SpecError(
            f"{path} was made for weights {str(found)[:12]}, and the model has {weights_sha256[:12]}: its heads mean something "
            "else. Make a plan for this model; or, for the same heads after more training, empty weights_sha256 in the file."
        )
    facts = {key: value for key, value in content.items() if key not in ("schema", "weights_sha256", "keep")}
    return PrunePlan(heads=heads, hidden=hidden, weights_sha256=str(found), facts=facts)


def whole(config: SwinV2Config) -> PrunePlan:
    """The plan that keeps everything."""
    return PrunePlan(
        heads={at: tuple(range(units_of(config, "heads", at))) for at in blocks_of(config)},
        hidden={at: tuple(range(units_of(config, "hidden", at))) for at in blocks_of(config)},
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """Units of a block that go together: one head, or hidden units up to a multiple."""

    ratio: float
    order: tuple[int, int, str, int]  # for equal ratios: stage, block, kind, place
    kind: Kind
    at: Block
    indices: tuple[int, ...]
    cost: float


def make_plan(
    config: SwinV2Config, scores: Mapping[Kind, Mapping[Block, Sequence[float]]], costs: Costs, spec: PruneSpec
) -> PrunePlan:
    """Remove the units with the least score for their cost, from the whole model at once, until the budget is met.

    A unit that would go past the budget is passed over for a cheaper one further up, so that what goes comes within one percent of
    what was asked for; in a model too small for that, within one percent of the model.

    Args:
        config: Architecture.
        scores: What each unit is worth, by kind and block; only their order within the model matters.
        costs: What each unit costs.
        spec: Share to remove, and what every block keeps.

    Raises:
        SpecError: When so much cannot go, or not so exactly.
    """
    target = spec.share * costs.total
    if costs.measure == "heads":
        target = float(round(target))
    groups = sorted(_groups(config, scores, costs, spec), key=lambda group: (group.ratio, group.order))
    possible = sum(group.cost for group in groups)
    if target > possible * (1 + 1e-9):
        raise SpecError(
            f"{spec.share:.1%} of the {costs.measure} cannot go: with at least {spec.min_heads} heads and {spec.min_hidden} hidden "
            f"units left in every block, and all else untouched, {possible / costs.total:.1%} can. Ask for less, or lower the "
            "floors."
        )
    gone, removed = _filled(groups, target)
    if abs(removed - target) > ROOM * costs.total + 1e-6:
        raise SpecError(
            f"{spec.share:.1%} of the {costs.measure} are {target:,.0f} {costs.unit}, and the nearest that whole heads and "
            f"multiples of {spec.multiple} hidden units come to is {removed:,.0f}; ask for {removed / costs.total:.4f}, or use a "
            "smaller --multiple."
        )
    base = whole(config)
    heads, hidden = dict(base.heads), dict(base.hidden)
    for group in gone:
        kept = heads if group.kind == "heads" else hidden
        kept[group.at] = tuple(index for index in kept[group.at] if index not in set(group.indices))
    return PrunePlan(heads=heads, hidden=hidden)


def _filled(groups: Sequence[_Group], target: float) -> tuple[list[_Group], float]:
    """Groups that go, in their order up to the target, and what they come to."""
    gone: dict[tuple[Kind, Block], list[_Group]] = {}
    left: dict[tuple[Kind, Block], list[_Group]] = {}
    removed = 0.0
    for group in groups:
        key = (group.kind, group.at)
        # Units go from the least of a block upwards, so behind one that would go too far the rest of its block stays as well.
        if left.get(key) or removed + group.cost > target * (1 + TOLERANCE / 2) + 1e-6:
            left.setdefault(key, []).append(group)
        else:
            gone.setdefault(key, []).append(group)
            removed += group.cost
    # Large units leave a gap: put the last of one block back, or take the next of another, while that comes nearer.
    while abs(removed - target) > TOLERANCE * target + 1e-6:
        moves = [
            (abs(removed - (back[-1].cost if back else 0.0) + (more[0].cost if more else 0.0) - target), back, more)
            for back in ([], *filter(None, gone.values()))
            for more in ([], *filter(None, left.values()))
        ]
        gap, back, more = min(moves, key=lambda move: move[0])
        if gap >= abs(removed - target) - 1e-9:
            break
        taken, given = more[0] if more else None, back[-1] if back else None
        if given is not None:
            back.pop()
            left.setdefault((given.kind, given.at), []).insert(0, given)
            removed -= given.cost
        if taken is not None:
            left[taken.kind, taken.at].remove(taken)
            gone.setdefault((taken.kind, taken.at), []).append(taken)
            removed += taken.cost
    return [group for taken_of in gone.values() for group in taken_of], removed


def _groups(
    config: SwinV2Config, scores: Mapping[Kind, Mapping[Block, Sequence[float]]], costs: Costs, spec: PruneSpec
) -> list[_Group]:
    found = []
    kinds = ("heads",) if costs.measure == "heads" else KINDS
    for kind in kinds:
        for at in blocks_of(config):
            values, cost = scores[kind][at], costs.units[kind][at]
            wrong = [value for value in values if not math.isfinite(value)]
            if wrong or len(values) != units_of(config, kind, at):
                raise SpecError(f"The scores of {kind} in stage {at[0]}, block {at[1]} are no finite numbers, one a unit.")
            order = sorted(range(len(values)), key=lambda index: (values[index], index))
            if kind == "heads":
                sizes = [1] * max(0, len(order) - spec.min_heads)
            else:
                first = len(order) % spec.multiple or spec.multiple
                room = len(order) - max(spec.min_hidden, spec.multiple)
                sizes = [first, *[spec.multiple] * ((room - first) // spec.multiple)] if room >= first else []
            if cost <= 0:
                continue  # removing it would bring nothing
            start = 0
            for place, size in enumerate(sizes):
                indices = tuple(order[start : start + size])
                start += size
                price = cost * size
                worth = sum(values[index] for index in indices)
                found.append(_Group(worth / price, (*at, kind, place), kind, at, indices, price))
    return found
