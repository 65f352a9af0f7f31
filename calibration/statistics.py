"""How sure a share from a few images is."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Bounds of a share with 95 % confidence, two-sided, in [0, 1].

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference" (JASA 22, 1927).
    """
    share, z2 = hits / count, Z95 * Z95
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return (max(0.0, middle - half), min(1.0, middle + half))
