"""How long to wait before attempt number n."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from geventpool._util.arguments import check_number, check_share

__all__ = ["Backoff"]


@dataclass(frozen=True)
class Backoff:
    """Waits that grow by a factor up to a longest one, each shortened at random.

    ``delay(n)`` is the wait in seconds after the n-th failure in a row (n from 1): *first* times
    *factor* to the power n - 1, at most *longest*, less a random share of at most *jitter* of it.
    So *longest* is a promise: no wait is ever longer.  ``jitter=1`` is the "full jitter", and
    ``jitter=0.5`` the "equal jitter" of M. Brooker, "Exponential Backoff And Jitter" (AWS
    Architecture Blog, 2015); ``jitter=0`` is a plain exponential.

    Give *rng* (anything with ``random()``) to make the waits repeatable.  By default they are drawn
    as the ``random`` module does, which starts anew in each forked process: workers must not wait
    in step.
    """

    first: float = 0.05
    factor: float = 2.0
    longest: float = 1.0
    jitter: float = 0.5
    rng: random.Random | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("first", "factor", "longest", "jitter"):
            check_number(name, getattr(self, name))
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, or waits would shrink: {self.factor!r}")
        if self.longest < self.first:
            raise ValueError(
                f"longest ({self.longest!r} s) is shorter than first ({self.first!r} s)"
            )
        check_share("jitter", self.jitter)

    def delay(self, failures: int) -> float:
        """The wait in seconds after *failures* failures in a row; 0.0 before the first."""
        if failures < 1:
            return 0.0
        try:
            # float: whole numbers would grow without end during an endless outage.
            delay = min(self.longest, self.first * float(self.factor) ** (failures - 1))
        except OverflowError:
            delay = self.longest if self.first else 0.0
        return delay * (1.0 - self.jitter * self._draw())

    def _draw(self) -> float:
        """A number from 0 to 1; of an *rng* that fails or answers something else, 0."""
        if self.rng is None:
            return random.random()
        try:
            drawn = float(self.rng.random())
        except Exception:
            return 0.0
        return drawn if 0.0 <= drawn <= 1.0 else 0.0
