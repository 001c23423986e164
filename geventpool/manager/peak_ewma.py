"""A moving average of latencies."""

from __future__ import annotations

import math

__all__ = ["PeakEwma"]


class PeakEwma:
    """A moving average of latencies that follows a peak at once and fades in *decay* seconds.

    After ``PeakEwma.Metric`` of Finagle: it rises to a higher latency at once, and otherwise moves
    towards what is measured by 1 - exp(-dt / decay).  Where nothing is measured it fades towards 0,
    so that a server no caller dares to use is tried again.
    """

    __slots__ = ("_at", "_decay", "_value")

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._value: float | None = None
        self._at = 0.0

    def value(self, now: float) -> float | None:
        """The average in seconds; None if nothing was measured yet."""
        return None if self._value is None else self._value * self._kept(now)

    def observe(self, latency: float, now: float) -> None:
        """Take in that something took *latency* seconds."""
        kept = self._kept(now)
        old = latency if self._value is None else self._value
        self._value = max(latency, old * kept + latency * (1 - kept))
        self._at = now

    def at_least(self, latency: float, now: float) -> None:
        """Observe that the latency is *latency* or more: this never makes the average less."""
        self._value = max(latency, self.value(now) or 0.0)
        self._at = now

    def forget(self) -> None:
        """Begin again with nothing measured."""
        self._value = None

    def _kept(self, now: float) -> float:
        return math.exp(-max(now - self._at, 0.0) / self._decay)
