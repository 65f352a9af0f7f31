"""What makes a calibration worthless, each with a name: a finding says what was seen, what was expected, and what to do.

A *certain* finding is wrong whatever the images are. The others are statistics: they hold for photographs, and their limits, with
what was measured to set them, are in ``docs/methods/calibration-lints.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from calibration.errors import CalibrationError

CERTAIN = ("dead-head", "dead-site", "nan-activations", "nan-scale", "stale-table")
"""Names of findings that always stop a quantization."""

STATISTICAL = (
    "few-classes",
    "flat-images",
    "low-accuracy",
    "odd-pixel-statistics",
    "out-of-range",
    "scrambled-images",
    "swapped-channels",
    "too-much-clipping",
    "wrong-normalization",
)
"""Names of findings that warn, and stop a quantization only when it is strict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong, or looks wrong.

    Attributes:
        code: Its name, one of :data:`CERTAIN` and :data:`STATISTICAL`.
        text: What happened with the value; what was expected; what to do.
        value: The statistic, or None where there is none.
        limit: What the statistic was compared with, or None.
    """

    code: str
    text: str
    value: float | None = None
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.code not in CERTAIN + STATISTICAL:
            raise CalibrationError(f"There is no lint {self.code!r}; expected one of {', '.join(CERTAIN + STATISTICAL)}.")

    @property
    def certain(self) -> bool:
        """Whether it is wrong whatever the images are."""
        return self.code in CERTAIN

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"certain": self.certain}


class LintError(CalibrationError):
    """Findings that stop a calibration.

    Attributes:
        findings: All of them, at least one.
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(map(str, self.findings)))


def require(findings: Iterable[Finding], *, strict: bool = False) -> tuple[Finding, ...]:
    """The findings, if they may be lived with.

    Args:
        findings: What was found.
        strict: Whether a statistical finding stops as well.

    Raises:
        LintError: When one of them is certain, or any with ``strict``; it lists all that stop.
    """
    kept = tuple(findings)
    stopping = [finding for finding in kept if strict or finding.certain]
    if stopping:
        raise LintError(stopping)
    return kept


CLIPPED = 0.02
"""Share of a site's values that a calibrator clips at most; one of entropy and MSE clips the most."""


def table_findings(clipped: Mapping[str, float], *, others: bool = False) -> tuple[Finding, ...]:
    """Sites of which too much lies beyond the range.

    Args:
        clipped: Site name to the share of its values beyond its amax, 0 to 1.
        others: Whether these are other images than those the ranges were measured on.
    """
    many = {site: share for site, share in clipped.items() if share > CLIPPED}
    if not many:
        return ()
    site, share = max(many.items(), key=lambda item: item[1])
    text = f"{len(many)} of {len(clipped)} sites clip more than {CLIPPED:.0%} of their values, {site} the most, {share:.2%}; "
    advice = (
        "a table that fits clips less on such images. Calibrate again, on images like these."
        if others
        else "calibrators clip less on photographs. Use more images, or --calibrator max."
    )
    return (Finding(code="out-of-range" if others else "too-much-clipping", text=text + advice, value=share, limit=CLIPPED),)
