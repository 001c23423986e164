"""Notices a pool that serves its callers too late, and says once what cures that."""

from __future__ import annotations

import math
from collections import deque

import gevent

from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import PoolBucket
from geventpool._util.clock import monotonic
from geventpool.events import Reason

__all__ = ["TimeoutLosses"]

_PERIOD = 10.0  # seconds
_SHARE = 0.2  # of the connections that a bucket may have


class TimeoutLosses:
    """Counts the connections that are closed because a Timeout cut their use short while callers
    waited.  Each was given to a caller that had hardly any time left, and its place is spent on a
    dial.

    More than a fifth of what a bucket may have open, and two at least, within 10 s: then its pool
    logs a warning, once in its life.  A bucket with *overload* sees to it that there are none.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def note(self, owner: PoolHooks, bucket: PoolBucket, reason: Reason, error: object) -> None:
        """A connection was closed for *reason*, as *error* broke it.  Does not switch: the warning
        is logged a little later."""
        if not bucket.waiters or bucket.delay_control is not None or "overload" in owner.warned:
            return
        if reason is not Reason.CUT_SHORT and not isinstance(error, gevent.Timeout):
            return
        if bucket.cut_short is None or bucket.cut_short.maxlen != _enough(bucket):
            bucket.cut_short = deque(bucket.cut_short or (), maxlen=_enough(bucket))
        times, now = bucket.cut_short, monotonic()
        times.append(now)
        if len(times) == times.maxlen and now - times[0] <= _PERIOD:
            owner.warned.add("overload")
            self._notifier.overloaded(owner, len(times), len(bucket.waiters))


def _enough(bucket: PoolBucket) -> int:
    """How many are more than a fifth."""
    maximum = bucket.own.maximum
    places = len(bucket.slots) if math.isinf(maximum) else maximum
    return max(2, int(places * _SHARE) + 1)
