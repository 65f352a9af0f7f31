"""The first place that diverges."""

from __future__ import annotations

import math

import pytest

from swinv2_deploy.verify.layers import LayerDrift, first_divergent


def rows(*values: tuple[str, float | None]) -> list[LayerDrift]:
    return [
        LayerDrift(name=name, kind="site" if name.count(".") > 3 else "unit", carried_db=value, alone_db=value)
        for name, value in values
    ]


HEALTHY = (
    ("patch_embed", math.inf),
    ("layers.0.blocks.0", 40.0),
    ("layers.0.blocks.0.mlp.fc1", 42.0),
    ("layers.0.blocks.1", 35.0),
)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ""),
        ({"layers.0.blocks.1": 10.0}, "layers.0.blocks.1"),
        ({"layers.0.blocks.0": 10.0, "layers.0.blocks.0.mlp.fc1": 12.0, "layers.0.blocks.1": 3.0}, "layers.0.blocks.0.mlp.fc1"),
        ({"layers.0.blocks.0.mlp.fc1": 12.0}, "layers.0.blocks.0.mlp.fc1"),
        ({"patch_embed": -math.inf, "layers.0.blocks.0": -3.0}, "patch_embed"),
        ({"layers.0.blocks.0": None, "layers.0.blocks.1": 10.0}, "layers.0.blocks.1"),
    ],
)
def test_the_first_in_order(changed: dict[str, float | None], expected: str) -> None:
    """A part before the block that holds it, and none where all give enough."""
    assert first_divergent(rows(*(dict(HEALTHY) | changed).items()), 15.0) == expected


def test_nothing_measured() -> None:
    assert first_divergent([], 15.0) == ""
