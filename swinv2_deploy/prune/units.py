"""What pruning can remove: attention heads and MLP hidden units, block by block. No torch import."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal

from reference_model.config import SwinV2Config
from swinv2_deploy.errors import SpecError

Block = tuple[int, int]
"""Stage and block within it, both counted from 0."""

Kind = Literal["heads", "hidden"]

KINDS: tuple[Kind, ...] = ("heads", "hidden")

LAYER: dict[Kind, str] = {"heads": "attn.proj", "hidden": "mlp.fc2"}
"""The linear layer that reads the units of a kind: its input is where they can be watched and silenced."""


def blocks_of(config: SwinV2Config) -> Iterator[Block]:
    """Every block, in the order they run; none that no output depends on, since nothing tells how much it matters."""
    for stage, depth in enumerate(config.running_depths):
        for block in range(depth):
            yield stage, block


def module_of(at: Block) -> str:
    """Name of a block's module."""
    return f"layers.{at[0]}.blocks.{at[1]}"


def units_of(config: SwinV2Config, kind: Kind, at: Block) -> int:
    """How many units of a kind a block has."""
    counts = config.num_heads if kind == "heads" else config.mlp_hidden
    return counts[at[0]][at[1]]


def channels_of(config: SwinV2Config, kind: Kind, at: Block) -> int:
    """Channels of one unit at the layer that reads it."""
    return config.head_dims[at[0]] if kind == "heads" else 1


def as_ranges(indices: Iterable[int]) -> str:
    """``[0, 1, 2, 5]`` as ``"0-2,5"``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def from_ranges(text: str, count: int, what: str) -> tuple[int, ...]:
    """Inverse of :func:`as_ranges`, for units counted from 0 to ``count - 1``.

    Args:
        text: Numbers and ranges in rising order.
        count: How many units there are.
        what: Whose units, for the message.

    Raises:
        SpecError: When the text is of another form, names a unit that is not there, or one twice.
    """
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last if dash else first) + 1)
    except ValueError as error:
        raise SpecError(f"{what} are {text!r}; expected numbers and ranges such as 0-3,6.") from error
    if not found or any(after <= before for before, after in pairwise(found)):
        raise SpecError(f"{what} are {text!r}; expected at least one, each once, in rising order.")
    if found[-1] >= count:
        raise SpecError(f"{what} are {text!r}, and the model has {count}, counted from 0; the plan is for another model.")
    return tuple(found)
