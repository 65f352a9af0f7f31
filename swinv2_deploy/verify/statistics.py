"""How sure a number from a few images is: intervals and tests for proportions, two-sided, 95 %."""

from __future__ import annotations

import math
from dataclasses import dataclass

from calibration.statistics import wilson_interval


@dataclass(frozen=True, slots=True)
class Paired:
    """Two classifiers on the same labeled images.

    Attributes:
        both: Images both name right.
        reference_only: Images only the reference names right.
        candidate_only: Images only the candidate names right.
        neither: Images neither names right.
    """

    both: int
    reference_only: int
    candidate_only: int
    neither: int

    @property
    def count(self) -> int:
        return self.both + self.reference_only + self.candidate_only + self.neither

    @property
    def drop(self) -> float:
        """Share of right answers lost by the candidate, -1 to 1."""
        return (self.reference_only - self.candidate_only) / self.count

    @property
    def drop_interval(self) -> tuple[float, float]:
        """Interval of :attr:`drop`.

        Source: Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
        Statistics in Medicine 17 (1998), method 10.
        """
        first, second = self.both + self.reference_only, self.both + self.candidate_only
        low1, high1 = wilson_interval(first, self.count)
        low2, high2 = wilson_interval(second, self.count)
        p1, p2, phi = first / self.count, second / self.count, self._phi()

        def distance(a: float, b: float) -> float:
            return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

        return (self.drop - distance(p1 - low1, high2 - p2), self.drop + distance(high1 - p1, p2 - low2))

    @property
    def detectable_drop(self) -> float:
        """Smallest share lost that so many images would tell from none in four cases of five, at 5 %, two-sided.

        From the share of images on which the two differ now, at least one.

        Source: Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43 (1987).
        """
        apart = max(1, self.reference_only + self.candidate_only) / self.count
        return min(1.0, (1.96 + 0.8416) * math.sqrt(apart / self.count))

    @property
    def p_value(self) -> float:
        """Exact McNemar test: how probable so uneven a loss is if the two are equally good."""
        changed = self.reference_only + self.candidate_only
        fewer = min(self.reference_only, self.candidate_only)
        tail = sum(math.comb(changed, k) for k in range(fewer + 1))
        return min(1.0, float(2 * tail / 2**changed))

    def _phi(self) -> float:
        a, b, c, d = self.both, self.reference_only, self.candidate_only, self.neither
        margins = (a + b) * (c + d) * (a + c) * (b + d)
        if margins == 0:
            return 0.0
        product = a * d - b * c
        corrected = max(product - self.count / 2, 0.0) if product > 0 else float(product)
        return corrected / math.sqrt(margins)
