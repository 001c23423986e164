"""The Deadlines that greenlets are under, for whatever must have done before the nearest of them.

What a Deadline is stands in ``deadline.py``.  Here is only who is under which: pools, sockets and
``retry`` have to know that, and may not know each other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

__all__ = ["Bound", "active", "begin", "end", "ends_at", "nearest", "useless_after"]

#: Seconds before a Deadline strikes, at most, at which what is bound by it gives up, so that the
#: caller gets an error that says more than the Deadline does.
_MOMENT = 0.005
_TICK = 0.002  # but as many at least, if a tenth of it is as much: some loops count milliseconds


class Bound(NamedTuple):
    """A Deadline that runs: it strikes *at* that time of the clock, *length* seconds after it has
    begun."""

    at: float
    length: float


#: By greenlet.  Empty as long as no Deadline runs: that is what is looked at first, as it costs
#: next to nothing.
active: dict[Any, list[Bound]] = {}


def begin(greenlet: Any, bound: Bound) -> None:
    """*greenlet* is under *bound* from now on."""
    active.setdefault(greenlet, []).append(bound)


def end(greenlet: Any, bound: Bound) -> None:
    """It is not any more; no harm if it was not."""
    bounds = active.get(greenlet, [])
    if bound in bounds:
        bounds.remove(bound)
        if not bounds:
            del active[greenlet]


def nearest(greenlet: Any) -> Bound | None:
    """The one that strikes first of those that *greenlet* is under, or None."""
    bounds = active.get(greenlet)
    if not bounds:
        return None
    return bounds[0] if len(bounds) == 1 else min(bounds)


def useless_after(greenlet: Any, needed: float) -> float:
    """From when on it is too late for *greenlet* to begin what takes so many seconds: too little is
    left of its nearest Deadline.  math.inf without one.

    What needs more than half of the Deadline's whole length may begin until half of that is left:
    else a caller with little time would never get anything.
    """
    bound = nearest(greenlet)
    if bound is None:
        return math.inf
    at, length = bound
    if needed < _MOMENT:
        moment = max(length / 100, min(_TICK, length / 10))
        needed = max(needed, min(_MOMENT, moment))
    return at - min(needed, length / 2)


def ends_at(greenlet: Any) -> float:
    """Until when *greenlet* must have done: a moment before its nearest Deadline strikes."""
    return useless_after(greenlet, 0.0)
