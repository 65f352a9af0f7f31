"""Where in the network drift comes from: carried along from the input, and made by each part alone.

``carried`` compares a value inside the candidate with the reference's on the same image: everything before it has drifted too.
``alone`` gives every part the reference's own inputs, all in one pass: what is different then, that part made.

Shape letters: B batch, H W height and width of the images in px.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from reference_model.model import SwinV2
from swinv2_deploy.runtime import masks_for
from swinv2_deploy.runtime.graph_parts import GraphParts, Unit
from swinv2_deploy.runtime.reference_values import reference_values
from swinv2_deploy.runtime.runner import Array

EMBEDDING = "patch_embed"

SITES: tuple[tuple[str, str, str], ...] = (
    ("attn", "", "attn.joined"),
    ("attn.proj", "attn.joined", "attn.proj"),
    ("norm1", "attn.proj", "norm1"),
    ("mlp.fc1", "residual1", "mlp.fc1"),
    ("mlp.fc2", "mlp.act", "mlp.fc2"),
    ("norm2", "mlp.fc2", "norm2"),
)
"""Parts of a block: what they are called, the value that enters each, and the one that leaves it. ``attn`` is everything up to the
heads put side by side: joint projection, both products and softmax."""

MERGING: tuple[tuple[str, str, str], ...] = (("reduction", "", "reduction"), ("norm", "reduction", "norm"))


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerDrift:
    """Drift at one place.

    Attributes:
        name: Module, such as ``layers.0.blocks.1`` or ``layers.0.blocks.1.mlp.fc2``.
        kind: ``unit`` for a block, a patch merging or the embedding; ``site`` for a part of one.
        carried_db: Signal to noise of the value that leaves it, in dB; infinite where equal, None where the graph lacks it.
        alone_db: The same where everything that entered it was the reference's.
    """

    name: str
    kind: str
    carried_db: float | None
    alone_db: float | None


def first_divergent(rows: Sequence[LayerDrift], limit_db: float) -> str:
    """The first place, in the order in which values pass, that leaves less signal over noise than ``limit_db``; empty if none does.

    It is a part of a block where one of them is below, else the block.
    """

    def below(row: LayerDrift) -> bool:
        return row.carried_db is not None and row.carried_db < limit_db

    for unit in (row for row in rows if row.kind == "unit"):
        parts = [row for row in rows if row.kind == "site" and row.name.startswith(f"{unit.name}.") and below(row)]
        if parts or below(unit):
            return parts[0].name if parts else unit.name
    return ""


@dataclass(slots=True)
class _Powers:
    """Power of reference and of differences, by place."""

    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, expected: Array, found: Array) -> None:
        if expected.shape != found.shape:
            self.noise[name] = math.inf
            return
        reference = expected.astype(np.float64)
        noise = float(np.square(reference - found.astype(np.float64)).sum())
        self.signal[name] = self.signal.get(name, 0.0) + float(np.square(reference).sum())
        self.noise[name] = self.noise.get(name, 0.0) + (noise if math.isfinite(noise) else math.inf)

    def db(self, name: str) -> float | None:
        if name not in self.noise:
            return None
        signal, noise = self.signal.get(name, 0.0), self.noise[name]
        if noise == 0:
            return math.inf
        return -math.inf if signal == 0 or not math.isfinite(noise) else 10 * math.log10(signal / noise)


def layer_drift(parts: GraphParts, model: SwinV2, batches: Iterable[Array], *, sites: bool = True) -> tuple[LayerDrift, ...]:
    """Drift of every unit and, with ``sites``, of every part of it, over images (B, 3, H, W) in batches, in the order they run.

    Raises:
        RunnerError: When ONNX Runtime fails.
        UnsupportedModelError: When the graph's parts cannot be told.
    """
    carried, by_unit, by_site = _Powers(), _Powers(), _Powers()
    units = parts.units
    masks = masks_for(model.config)
    for images in batches:
        reference = reference_values(model, images, masks)
        entering = _boundaries(units, reference)
        inner = {name: value for name, value in reference.items() if name in parts.values}
        wanted = [*inner, *(unit.after for unit in units)]
        found = parts.run(images, [*wanted, units[0].before])
        carried.add(EMBEDDING, reference[EMBEDDING], found[units[0].before])
        for unit in units:
            carried.add(unit.name, reference[unit.name], found[unit.after])
        for name, expected in inner.items():
            carried.add(name, expected, found[name])
        alone = parts.run(images, [unit.after for unit in units], entering)
        by_unit.add(EMBEDDING, reference[EMBEDDING], found[units[0].before])
        for unit in units:
            by_unit.add(unit.name, reference[unit.name], alone[unit.after])
        if sites:
            given = entering | {name: value for name, value in inner.items() if _feeds(name)}
            single = parts.run(images, list(inner), given)
            for name, expected in inner.items():
                by_site.add(name, expected, single[name])
    rows = [LayerDrift(name=EMBEDDING, kind="unit", carried_db=carried.db(EMBEDDING), alone_db=by_unit.db(EMBEDDING))]
    for unit in units:
        rows.append(LayerDrift(name=unit.name, kind="unit", carried_db=carried.db(unit.name), alone_db=by_unit.db(unit.name)))
        for part, _, after in (SITES if unit.block is not None else MERGING) if sites else ():
            value = f"{unit.name}.{after}"
            if value in by_site.noise:
                place = f"{unit.name}.{part}"
                rows.append(LayerDrift(name=place, kind="site", carried_db=carried.db(value), alone_db=by_site.db(value)))
    return tuple(rows)


def _boundaries(units: tuple[Unit, ...], reference: Mapping[str, Array]) -> dict[str, Array]:
    """What the reference has where every unit begins."""
    entering = {units[0].before: reference[EMBEDDING]}
    for before, after in pairwise(units):
        entering[after.before] = reference[before.name]
    return entering


def _feeds(name: str) -> bool:
    """Whether a value is what a part of a unit begins with."""
    return any(name.endswith(f".{before}") for _, before, _ in (*SITES, *MERGING) if before)
