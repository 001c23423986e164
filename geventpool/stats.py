"""How long things take: what a pool counts of waits, uses and dials, by fixed bounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["BOUNDS", "Duration", "Histogram"]

#: Seconds, of every histogram here: three for each power of ten, from 0.1 ms to 10 s.
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


@dataclass(frozen=True)
class Histogram:
    """How many were how long: ``counts[i]`` took at most ``bounds[i]`` seconds and longer than the
    bound before; the last count, for which there is no bound, took longer than all of them."""

    bounds: tuple[float, ...] = BOUNDS
    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """What that *share* of them (0.99, say) took no longer than, in seconds: an estimate, as if
        those between two bounds were spread evenly (as Prometheus's ``histogram_quantile``).

        0.0 if there are none; the last bound if it lies above that.
        """
        wanted = share * self.count
        seen, least = 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and seen + count >= wanted:
                return least + (bound - least) * max(wanted - seen, 0.0) / count
            seen, least = seen + count, bound
        return self.bounds[-1] if self.count else 0.0

    @classmethod
    def sum_of(cls, counts: Iterable[Iterable[int]]) -> Histogram:
        """That of several lists of counts by ``BOUNDS`` together."""
        return cls(counts=tuple(map(sum, zip((0,) * (len(BOUNDS) + 1), *counts, strict=True))))


@dataclass(frozen=True)
class Duration:
    """How long something took: how often it was measured, the *sum* and the longest, in seconds,
    and how many took how long.  (A MonitoredSocket keeps no histogram: there it is empty.)"""

    count: int = 0
    sum: float = 0.0
    max: float = 0.0
    histogram: Histogram = Histogram()

    @property
    def mean(self) -> float:
        """Seconds on average; 0.0 if it was never measured."""
        return self.sum / self.count if self.count else 0.0
