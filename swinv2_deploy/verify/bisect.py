"""Which block makes a candidate fail, and which part of it.

Blocks are given back to the reference, one half of what is suspected at a time: a stretch of the network is computed by the
reference model between two stretches of the candidate. What makes the candidate pass when it is given back is to blame. The part
of that block is the one that differs most when everything that enters it is the reference's.

Shape letters: B batch, H W map in tokens, C channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from reference_model.model import SwinV2
from reference_model.windows import stage_maps
from swinv2_deploy.errors import UnsupportedModelError
from swinv2_deploy.runtime.graph_parts import GraphParts, Unit
from swinv2_deploy.runtime.reference_values import run_units
from swinv2_deploy.runtime.runner import Array
from swinv2_deploy.verify.layers import EMBEDDING, LayerDrift, layer_drift

HEAD = "head"
"""What comes behind the last block: the final norm, the mean and the classifier, or a decoder."""

OUTLIER_DB = 10.0
"""A part this far below its likes is suspected before any search."""

ROUNDING_DB = 90.0
"""A part above this differs by the rounding of float32 at most, and is never suspected."""

Outputs = dict[str, Array]

Passes = Callable[[list[Outputs]], bool]
"""Whether the outputs of all batches, by name, are within tolerance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bisection:
    """What a bisection found.

    Attributes:
        culprit: Name of the unit: a block, a patch merging, ``patch_embed`` or ``head``. Where several are to
            blame, the one that differs most alone.
        site: Part of it that differs most alone, such as ``layers.0.blocks.1.mlp.fc2``; empty where parts cannot be told.
        suspects: Units that together make it pass when they are given back, in order; one where there is a culprit.
        tried: What was given back, and whether the candidate then passed.
        layers: Drift of every place.
        reason: A sentence.
    """

    culprit: str
    site: str
    suspects: tuple[str, ...]
    tried: tuple[tuple[str, bool], ...]
    layers: tuple[LayerDrift, ...]
    reason: str

    @property
    def sites(self) -> tuple[str, ...]:
        """Parts to leave in float, the loudest first: those of the culprit that differ more than the rest of it by 3 dB."""
        rows = [row for row in self.layers if row.kind == "site" and row.name.startswith(f"{self.culprit}.")]
        rows = sorted((row for row in rows if row.alone_db is not None), key=lambda row: row.alone_db or -math.inf)
        return tuple(row.name for row in rows if (row.alone_db or 0.0) <= (rows[0].alone_db or 0.0) + 3)


def bisect(parts: GraphParts, model: SwinV2, batches: Sequence[Array], passes: Passes) -> Bisection:
    """Find what makes a candidate fail.

    Args:
        parts: The candidate's graph.
        model: Reference model, in evaluation mode.
        batches: Images (B, 3, H, W) on which it fails.
        passes: The gate.

    Raises:
        RunnerError: When ONNX Runtime fails.
        UnsupportedModelError: When the graph's parts cannot be told, or nothing of it fails on these images.
    """
    units = parts.units
    tried: list[tuple[str, bool]] = []

    def given_back(start: int, stop: int) -> bool:
        found = passes([_hybrid(parts, model, images, start, stop) for images in batches])
        names = f"{units[start].name} to {units[stop - 1].name}" if stop - start > 1 else units[start].name
        tried.append((names, found))
        return found

    layers = layer_drift(parts, model, batches)
    if passes([parts.run(images) for images in batches]):
        return _by_itself(parts, layers)
    alone = {row.name: row.alone_db for row in layers}
    outlier = _outlier(layers)
    place = next((index for index, unit in enumerate(units) if outlier.startswith(f"{unit.name}.")), None)
    if place is not None and given_back(place, place + 1):
        name = units[place].name
        reason = f"It passes when {name} alone is computed by the reference, and {outlier} differs far more than its likes."
        return Bisection(culprit=name, site=outlier, suspects=(name,), tried=tuple(tried), layers=layers, reason=reason)
    start, stop = 0, len(units)
    if not given_back(start, stop):
        # Before or behind the blocks: whichever is further from the reference.
        embedding = alone.get(EMBEDDING)
        outside = HEAD if embedding is None or embedding > 60 else EMBEDDING
        reason = f"It fails even with every block computed by the reference, so {outside} is to blame."
        return Bisection(culprit=outside, site="", suspects=(outside,), tried=tuple(tried), layers=layers, reason=reason)
    while stop - start > 1:
        middle = (start + stop) // 2
        if given_back(start, middle):
            stop = middle
        elif given_back(middle, stop):
            start = middle
        else:
            break
    suspects = tuple(unit.name for unit in units[start:stop])
    if len(suspects) == 1:
        culprit = suspects[0]
        reason = f"It passes when {culprit} alone is computed by the reference."
    else:
        # Every half of these fails on its own: they add up. The one that differs most is named first.
        culprit = min(suspects, key=lambda name: _level(alone.get(name)))
        reason = (
            f"No half of {suspects[0]} to {suspects[-1]} is enough to give back, so several are to blame; of these {culprit} "
            "differs most where everything that enters it is the reference's."
        )
    rows = [row for row in layers if row.kind == "site" and culprit and row.name.startswith(f"{culprit}.")]
    site = min(rows, key=lambda row: _level(row.alone_db)).name if rows else ""
    return Bisection(culprit=culprit, site=site, suspects=suspects, tried=tuple(tried), layers=layers, reason=reason)


def _by_itself(parts: GraphParts, layers: tuple[LayerDrift, ...]) -> Bisection:
    """A part that is broken by itself, while the outputs hardly move on these images."""
    site = _outlier(layers)
    unit = next((unit.name for unit in parts.units if site.startswith(f"{unit.name}.")), "")
    if not unit:
        raise UnsupportedModelError(f"{parts.path.name} is within tolerance on these images; there is nothing to find.")
    reason = f"The outputs are within tolerance here; {site} differs far more than its likes on the reference's own inputs."
    return Bisection(culprit=unit, site=site, suspects=(unit,), tried=(), layers=layers, reason=reason)


def _outlier(layers: Sequence[LayerDrift]) -> str:
    """The part that lies furthest below the median of its likes in other blocks, if by :data:`OUTLIER_DB`; empty otherwise."""
    rows = [row for row in layers if row.kind == "site" and row.alone_db is not None]
    likes: dict[str, list[float]] = {}
    for row in rows:
        likes.setdefault(_kind(row.name), []).append(row.alone_db or 0.0)
    below = {row.name: median(likes[_kind(row.name)]) - (row.alone_db or 0.0) for row in rows}
    alone = {row.name: row.alone_db or 0.0 for row in rows}
    worst = max((name for name in below if alone[name] < ROUNDING_DB), key=lambda name: below[name], default="")
    return worst if worst and below[worst] >= OUTLIER_DB else ""


def _kind(name: str) -> str:
    """``layers.0.blocks.1.mlp.fc2`` as ``mlp.fc2``."""
    return re.sub(r"^layers\.\d+\.(blocks\.\d+\.)?", "", name)


def _level(db: float | None) -> float:
    return math.inf if db is None else db


def _hybrid(parts: GraphParts, model: SwinV2, images: Array, start: int, stop: int) -> Outputs:
    """Outputs where the reference computes the units from ``start`` to before ``stop``."""
    units: tuple[Unit, ...] = parts.units[start:stop]
    entering = parts.run(images, [units[0].before])[units[0].before]
    maps = stage_maps(images.shape[2], images.shape[3], model.config.patch_size, model.config.num_stages)
    rows = run_units(model, units, entering, maps[units[0].stage], len(images))
    return parts.run(images, given={units[-1].after: rows})
