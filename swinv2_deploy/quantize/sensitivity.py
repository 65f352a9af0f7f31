"""Which sites cost accuracy in INT8, and the cheapest choice of sites that keeps within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from swinv2_deploy.errors import QuantizeError
from swinv2_deploy.quantize.calibrate import Progress
from swinv2_deploy.quantize.drift import DriftProbe, SiteDrift


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteSensitivity:
    """One site.

    Attributes:
        site: Name of the linear layer or batched product.
        macs: Its share of the work of all sites.
        alone: Drift with this site in INT8 and no other.
        without: Drift with every other site in INT8.
    """

    site: str
    macs: float
    alone: SiteDrift
    without: SiteDrift


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """A sweep over all sites.

    Attributes:
        sites: Every site, in the order of the model.
        together: Drift with all of them in INT8.
        images: Images it was measured on.
    """

    sites: tuple[SiteSensitivity, ...]
    together: SiteDrift
    images: int

    def worst(self) -> tuple[SiteSensitivity, ...]:
        """Sites by the noise they add alone, the loudest first."""
        return tuple(sorted(self.sites, key=lambda found: found.alone.sqnr_db))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; an infinite SQNR becomes None."""
        return {
            "images": self.images,
            "together": _plain(self.together),
            "sites": [
                {"site": found.site, "macs": found.macs, "alone": _plain(found.alone), "without": _plain(found.without)}
                for found in self.sites
            ],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much drift is allowed.

    Attributes:
        drop: Top-1 accuracy that may be lost, in points; None does not ask.
        sqnr_db: Least signal to noise of the first output, in dB; None does not ask.
    """

    drop: float | None = None
    sqnr_db: float | None = None

    @property
    def asks(self) -> bool:
        """Whether it asks for anything."""
        return self.drop is not None or self.sqnr_db is not None

    def holds(self, drift: SiteDrift) -> bool:
        """Whether a drift keeps within it.

        Raises:
            QuantizeError: When accuracy is asked for and the images have no labels that the model knows.
        """
        if self.drop is not None:
            if drift.drop is None:
                raise QuantizeError(
                    "A budget of accuracy needs images in folders named as the model's classes; give such a --data, or use "
                    "--budget-sqnr."
                )
            if drift.drop > self.drop:
                return False
        return self.sqnr_db is None or drift.sqnr_db >= self.sqnr_db


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The sites that are worth quantizing.

    Attributes:
        sites: Those in INT8, in the order of the model.
        left: Those left in float.
        share: Part of the work of all sites that is done in INT8.
        drift: What it costs.
        tried: How many choices were measured.
    """

    sites: tuple[str, ...]
    left: tuple[str, ...]
    share: float
    drift: SiteDrift
    tried: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"drift": _plain(self.drift)}


def sweep(probe: DriftProbe, progress: Progress = lambda done, total: None) -> Sensitivity:
    """Measure every site alone, and all others without it.

    Args:
        probe: Model and images.
        progress: Called with measurements done and in all.
    """
    names = tuple(probe.macs)
    total, done = 2 * len(names) + 1, 0

    def measured(sites: Sequence[str]) -> SiteDrift:
        nonlocal done
        drift = probe(sites)
        done += 1
        progress(done, total)
        return drift

    sites = tuple(
        SiteSensitivity(
            site=name,
            macs=probe.macs[name],
            alone=measured([name]),
            without=measured([other for other in names if other != name]),
        )
        for name in names
    )
    return Sensitivity(sites=sites, together=measured(names), images=probe.count)


def cheapest(probe: DriftProbe, found: Sensitivity, budget: Budget) -> Choice:
    """The choice with the most work in INT8 that keeps within the budget, as far as a greedy search finds it.

    Sites are left in float by the noise they add for the work they save, the worst first, until the budget holds; the number is
    found by halving. Then each site left out is tried again, the one with the most work first, and kept where the budget still
    holds: noises do not simply add up.

    Raises:
        QuantizeError: When the budget does not even hold with one site in INT8.
    """
    order = sorted(found.sites, key=_noise_for_work, reverse=True)
    names, tried = [site.site for site in order], 0

    def measured(left: Sequence[str]) -> SiteDrift:
        nonlocal tried
        tried += 1
        return probe(name for name in names if name not in left)

    low, high = 0, len(names)
    best = measured(names[:low])
    if not budget.holds(best):
        # Fewer than ``low`` left out never holds, ``high`` does: all in float is the model itself.
        while high - low > 1:
            middle = (low + high) // 2
            drift = measured(names[:middle])
            low, high = (low, middle) if budget.holds(drift) else (middle, high)
        left = names[:high]
        for name in sorted(left, key=lambda site: -probe.macs[site]):
            fewer = [other for other in left if other != name]
            if budget.holds(measured(fewer)):
                left = fewer
        best = measured(left)
    else:
        left = []
    kept = tuple(name for name in probe.macs if name not in left)
    if not kept:
        least = max(site.alone.sqnr_db for site in found.sites)
        raise QuantizeError(
            f"No site can be quantized within {budget}; the quietest one alone has an SQNR of {least:.1f} dB. Allow more drift, or "
            "train with --method qat."
        )
    return Choice(
        sites=kept,
        left=tuple(name for name in probe.macs if name in left),
        share=probe.share(kept),
        drift=best,
        tried=tried,
    )


def _noise_for_work(site: SiteSensitivity) -> float:
    """Noise power that a site adds alone, in units of the signal, for each share of the work."""
    return math.pow(10, -site.alone.sqnr_db / 10) / max(site.macs, 1e-12)


def _plain(drift: SiteDrift) -> dict[str, float | None]:
    return asdict(drift) | {"sqnr_db": drift.sqnr_db if math.isfinite(drift.sqnr_db) else None}
