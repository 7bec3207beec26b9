"""A few numbers that say how repeated measurements lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements, in the unit of these."""

    low: float
    """A quarter of the measurements lies below."""
    median: float
    high: float
    """A quarter of the measurements lies above."""

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Median and quartiles of at least one measurement."""
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return Spread(low, median, high)

    def text(self, digits: int) -> str:
        """The numbers as "median (low-high)"."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds the true one with 95 % confidence."""

    low: float
    mean: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Interval:
        """Student's t interval; of at least two independent measurements."""
        mean = float(np.mean(values))
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
        return Interval(mean - half, mean, mean + half)


@dataclass(frozen=True)
class MedianInterval:
    """A median and the interval that holds the true one with 95 % confidence, whatever the distribution."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> MedianInterval:
        """Order statistics of independent measurements; infinitely wide with fewer than six of them.

        Conover, "Practical Nonparametric Statistics", 1999, section 3.2.
        """
        left_out = int(stats.binom.ppf(0.025, len(values), 0.5))
        ordered = [-math.inf, *sorted(values), math.inf]
        return MedianInterval(ordered[left_out], float(np.median(values)), ordered[-1 - left_out])

    @staticmethod
    def exactly(value: float) -> MedianInterval:
        """A number that is known, or was measured once."""
        return MedianInterval(value, value, value)

    def over(self, other: MedianInterval) -> MedianInterval:
        """The ratio of two independent medians; its interval is wider than it would have to be."""
        return MedianInterval(self.low / other.high, self.median / other.median, self.high / other.low)
