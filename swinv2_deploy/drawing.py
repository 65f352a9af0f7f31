"""What every picture shares: its look, and whether it can be drawn. matplotlib comes with the extra ``report``."""

from __future__ import annotations

import importlib.util
from typing import Any

INK, LINE, LOST = "#374151", "#1d4ed8", "#dc2626"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "swinv2-deploy",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 7,
}
INSTALL = "pip install 'swinv2-deploy[report]'"
"""What to type where a picture cannot be drawn."""


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None
