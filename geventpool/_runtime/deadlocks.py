"""Notices callers that wait for each other: they hold connections of a pool, and stand in a line.

A caller that waits in line gives nothing back meanwhile.  If that is so of every holder for whose
connection it waits, and of those for whose they wait in turn, none would ever come free.  This is
looked for not as each caller begins to wait, which would cost each a look at all holders, but a
moment later, for all that have come by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import thread_time
from typing import TYPE_CHECKING, Any

from geventpool._runtime.fields import Alarm
from geventpool._runtime.introspection import holder_of, stack_of
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import ConnectionSlot
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.line import deadline_of
from geventpool._scheduler.model import Bucket
from geventpool._scheduler.state import IN_USE, NEVER
from geventpool._scheduler.waiter import Waiter
from geventpool._util.clock import monotonic
from geventpool.errors import PoolDeadlock

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["DeadlockWatch"]

_SOON = 0.01  # seconds from a caller's coming to the look
_SHARE = 0.01  # of the time, at most, is spent on looking,
_LATEST = 0.5  # but a look comes after so many seconds at the latest
_BRIEF = 0.5  # seconds: a wait that lasts no longer, at most, is over by itself soon enough
_NESTED = "nested"  # in the set of what a pool has warned of

#: What the holders of all places of a limit wait for.
_Holders = list[Waiter]


class DeadlockWatch(Alarm):
    """Looks whether those that hold connections wait for others."""

    def __init__(self, runtime: Runtime, notifier: Notifier) -> None:
        self.at = NEVER
        self.idle = True  # no look is due: the next caller that waits has to ``start`` it
        self._timers = runtime.timers
        self._scheduler = runtime.scheduler
        self._waits = runtime.waits
        self._notifier = notifier
        self._pause = _SOON

    def start(self) -> None:
        """Look soon."""
        self.idle = False
        self._timers.soon(self._pause, self._look)

    def _look(self) -> None:
        """(In the hub: nothing here may switch, nor log.)"""
        self.idle = True
        began = thread_time()
        stuck = self._stuck(list(self._scheduler.with_waiters))
        self._pause = min(max(_SOON, (thread_time() - began) / _SHARE), _LATEST)
        if stuck:
            youngest = max(stuck, key=_by_ticket)
            self._scheduler.refuse(youngest, PoolDeadlock(), monotonic())
            self.start()  # there may be another deadlock

    def _stuck(self, buckets: list[Bucket]) -> _Holders:
        """The callers that hold connections and wait in vain; empty if there is no deadlock."""
        waiters = (w for bucket in buckets for w in bucket.waiters if self._waits(w))
        waiting = {waiter.callback.__self__: waiter for waiter in waiters}
        full = {limit for bucket in buckets for limit in bucket.limits if limit.full}
        holders = {limit: self._all_wait(limit, waiting) for limit in full}
        # For what each waits in vain, if those that hold it do; and then, whether these do.
        found = {b: [holders[limit] for limit in b.limits if holders.get(limit)] for b in buckets}
        while gone := [b for b, ways in found.items() if not any(_within(w, found) for w in ways)]:
            for bucket in gone:
                del found[bucket]
        return [w for ways in found.values() for way in ways if _within(way, found) for w in way]

    def _all_wait(self, limit: Limit, waiting: dict[Any, Waiter]) -> _Holders:
        """Where those wait that hold the connections of *limit*; empty if one of them is not sure
        to wait on, or a connection is on its way."""
        if limit.may_rise or any(b.own is limit and b.ceiling.on for b in limit._buckets):
            return []  # there may be more places in a moment
        found: _Holders = []
        sure, soon = True, monotonic() + _BRIEF
        for slot in _slots_of(limit):
            waiter = None
            if slot.state is IN_USE and slot.conn is None:
                waiter = waiting.get(holder_of(slot))
            if waiter is None or slot.loose_use == slot.uses or deadline_of(waiter) <= soon:
                sure = False  # it comes back, or goes, or another greenlet may give it back
            if waiter is not None:
                found.append(waiter)
                self._warn(slot, waiter)
        return found if sure else []

    def _warn(self, slot: ConnectionSlot, waiter: Any) -> None:
        """Say, once for each pool, that a caller waits while it holds one of its connections."""
        owner = slot.bucket.owner()
        if owner is None or owner is not waiter.bucket.owner() or _NESTED in owner.warned:
            return
        owner.warned.add(_NESTED)
        self._notifier.nested(owner, slot.where, stack_of(waiter.callback.__self__))


def _slots_of(limit: Limit) -> Iterable[ConnectionSlot]:
    # Copies: a finalizer may begin a dial while they are looked at.
    buckets: list[Any] = list(limit._buckets)
    return [slot for bucket in buckets for slot in list(bucket.slots)]


def _within(holders: _Holders, buckets: dict[Bucket, Any]) -> bool:
    return all(waiter.bucket in buckets for waiter in holders)


def _by_ticket(waiter: Waiter) -> int:
    return waiter.ticket
