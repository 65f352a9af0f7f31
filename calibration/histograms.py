"""What a site saw, as counts of magnitudes; and the file that keeps them beside a calibration table, for pictures and later checks.

The table alone decides the scales. Its histograms are evidence: they may be missing, and a table reads the same without them.

Shape letters: n bins.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError

SCHEMA = 1
"""Version of the file; raised whenever its keys or their meaning change."""

KEPT_BINS = 256
"""Bins of a histogram in the file; bins are joined in pairs, which loses resolution and no count."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of magnitudes; bin i counts those in [i * width, (i + 1) * width).

    Attributes:
        width: Width of a bin, in the units of the activations; 0 when every value was 0.
        counts: Values in each bin, (n,).
    """

    width: float
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        number = isinstance(self.width, int | float) and not isinstance(self.width, bool)
        if not number or not math.isfinite(self.width) or self.width < 0:
            raise CalibrationError(f"The width of a histogram's bins is {self.width!r}; expected a finite number from 0.")
        whole = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in self.counts)
        if not whole or sum(self.counts) < 1:
            raise CalibrationError(
                "A histogram's counts are not whole numbers from 0, at least one of them above; measure again."
            )

    def share_beyond(self, amax: float) -> float:
        """Share of the values that lie beyond ``amax``, 0 to 1, to the width of a bin."""
        if self.width == 0:
            return 0.0
        return sum(self.counts[max(0, math.ceil(amax / self.width)) :]) / sum(self.counts)

    def coarse(self, bins: int = KEPT_BINS) -> Histogram:
        """The same counts in at most ``bins`` bins, a power of two: neighbors are joined in pairs."""
        width, counts = self.width, self.counts
        while len(counts) > bins:
            width, counts = 2 * width, tuple(sum(counts[i : i + 2]) for i in range(0, len(counts), 2))
        return Histogram(width, counts)


def save_histograms(histograms: Mapping[str, Histogram], path: Path, table: Path) -> None:
    """Write the coarse histograms of a table's sites.

    Args:
        histograms: Site name to histogram.
        path: File to write.
        table: The table's file, whose hash ties the two together.

    Raises:
        CalibrationError: When a file cannot be read or written.
    """
    content = {
        "schema": SCHEMA,
        "table_sha256": _sha256(table),
        "sites": {
            name: {"width": coarse.width, "counts": list(coarse.counts)}
            for name, coarse in ((name, histogram.coarse()) for name, histogram in histograms.items())
        },
    }
    try:
        path.write_text(json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CalibrationError(f"The histograms cannot be written to {path} ({error.strerror}).") from error


def load_histograms(path: str | os.PathLike[str], table: str | os.PathLike[str]) -> dict[str, Histogram]:
    """Read what :func:`save_histograms` wrote for ``table``.

    Raises:
        CalibrationError: When the file is missing, damaged, of another schema, or was written for another table.
    """
    source = Path(path)
    try:
        content: Any = json.loads(source.read_bytes())
        schema, sites, digest = content["schema"], content["sites"], content["table_sha256"]
        found = {name: Histogram(site["width"], tuple(site["counts"])) for name, site in sites.items()}
    except OSError as error:
        raise CalibrationError(f"The histograms {source} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CalibrationError(f"{source} holds no histograms ({error!r}); calibrate again.") from error
    if schema != SCHEMA:
        raise CalibrationError(f"{source} has schema {schema!r}; this version reads {SCHEMA}, so calibrate again.")
    if digest != _sha256(Path(table)):
        raise CalibrationError(f"{source} was written for another table than {table}; remove it, or calibrate again.")
    return found


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CalibrationError(f"The calibration table {path} cannot be read ({error.strerror}).") from error
