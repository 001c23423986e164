"""Notices callers that wait for each other: they hold connections of a pool, and stand in its line.

A caller that waits in line gives nothing back meanwhile.  If that is so of every connection of a
pool, none would ever come free.  This is looked for not as each caller begins to wait, which would
cost each a look at all holders, but a moment later, for all that have come by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from geventpool._runtime.introspection import holder_of, stack_of
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Waiter
from geventpool._scheduler.state import IN_USE
from geventpool.errors import PoolDeadlock

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["DeadlockWatch"]

_SOON = 0.01  # seconds from a caller's coming to the look
_SHARE = 0.01  # of the time, at most, is spent on looking
_NESTED = "nested"  # in the set of what a pool has warned of


class DeadlockWatch:
    """Looks whether those that hold connections wait for others of the same pool."""

    def __init__(self, runtime: Runtime, notifier: Notifier) -> None:
        self.idle = True  # no look is due: the next caller that waits has to ``start`` it
        self._timers = runtime.timers
        self._scheduler = runtime.scheduler
        self._notifier = notifier
        self._pause = _SOON

    def start(self) -> None:
        """Look soon."""
        self.idle = False
        self._timers.soon(self._pause, self._look)

    def _look(self) -> None:
        """(In the hub: nothing here may switch, nor be logged.)"""
        self.idle = True
        began = perf_counter()
        seen: set[Limit] = set()
        for bucket in list(self._scheduler.with_waiters):
            full = next((limit for limit in bucket.limits if limit.full), None)
            if full is not None and full not in seen:
                seen.add(full)
                buckets: Any = (bucket,) if full is bucket.own else tuple(full._buckets)
                self._look_at(buckets)
        self._pause = max(_SOON, (perf_counter() - began) / _SHARE)

    def _look_at(self, buckets: Sequence[PoolBucket]) -> None:
        """The *buckets* have all the places of a limit: whoever waits in their lines gets nothing
        but what one of their holders gives back."""
        waiting = {w.callback.__self__: w for bucket in buckets for w in bucket.waiters}
        nested: list[Waiter] = []
        stuck = True
        for slot in _slots_of(buckets):
            waiter = None
            if slot.state is IN_USE and slot.conn is None:
                waiter = waiting.get(holder_of(slot))
            if waiter is not None:
                nested.append(waiter)
                self._warn(slot, waiter)
            if waiter is None or slot.loose_use == slot.uses:
                stuck = False  # it comes back, or goes, or another greenlet may give it back
        if stuck and nested:
            youngest = max(nested, key=_by_ticket)
            error = _deadlock(youngest.bucket, len(nested))
            self._scheduler.refuse(youngest, error, monotonic())

    def _warn(self, slot: ConnectionSlot, waiter: Waiter) -> None:
        """Say, once for each pool, that a caller waits while it holds a connection, and where."""
        owner = slot.bucket.owner()
        if owner is None or _NESTED in owner.warned:
            return
        owner.warned.add(_NESTED)
        self._notifier.nested(owner, slot.where, stack_of(waiter.callback.__self__))


def _slots_of(buckets: Iterable[PoolBucket]) -> Iterable[ConnectionSlot]:
    return (slot for bucket in buckets for slot in bucket.slots)


def _by_ticket(waiter: Waiter) -> int:
    return waiter.ticket


def _deadlock(bucket: Any, held: int) -> PoolDeadlock:
    return PoolDeadlock(
        f"pool {bucket.name!r}: every connection ({held}) is held by a greenlet that waits in line"
        " for another one, so none would ever come free; of these greenlets this one came last."
        "  Take what a greenlet needs at a time from different pools, or set greenlet_local=True",
        pool=bucket.name,
    )
