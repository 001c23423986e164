"""How a pool ends: its callers are sent away, its connections closed, within the time given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gevent import getcurrent

from geventpool import events
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.introspection import holder_of
from geventpool._runtime.slots import PoolBucket
from geventpool._scheduler.state import CHECKING, IN_USE, SALVAGING
from geventpool._util.clock import monotonic

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["close"]

_GRACE = 0.1  # seconds at most that closing by force waits for hooks that close


def close(
    runtime: Runtime, owner: PoolHooks, buckets: Sequence[PoolBucket], timeout: float | None
) -> None:
    """Close all the *buckets* of a pool for good and wait for the last connection to go.

    After *timeout* seconds those that are left are closed by force, and their hooks go on in the
    background if they take their time.
    """
    deadline = None if timeout is None else monotonic() + timeout
    first = not owner.closed
    owner.closed = True
    for bucket in buckets:
        runtime.shut(bucket)
    if first:
        event = events.PoolDisposed(owner, closed=True)
        runtime.notifier.notify(owner, "pool_disposed", event)
    if _all_gone(runtime, buckets, deadline):
        return
    for slot in [slot for bucket in buckets for slot in bucket.slots]:
        if slot.state is IN_USE:
            runtime.desk.take_away(slot)
        elif slot.state is CHECKING:
            runtime.scheduler.checked(slot, False, monotonic())
        elif slot.state is SALVAGING:
            runtime.scheduler.salvaged(slot, False, monotonic())
    _all_gone(runtime, buckets, monotonic() + _GRACE)


def _all_gone(runtime: Runtime, buckets: Sequence[PoolBucket], deadline: float | None) -> bool:
    """Wait until they are; False once *deadline* is past."""
    while (late := _not_gone(runtime, buckets)) is not None:
        if not runtime.wait_for_change(late, deadline):
            return False
    return True


def _not_gone(runtime: Runtime, buckets: Sequence[PoolBucket]) -> PoolBucket | None:
    """One that has a slot left that does not wait for this very greenlet to go on."""
    me = getcurrent()
    mine = {runtime.dialer.workers.active.get(me)}
    others = (runtime.closer.workers, runtime.checker.workers, runtime.salvager.workers)
    mine.update(group.active.get(me, (None,))[0] for group in others)
    for bucket in buckets:
        for slot in bucket.slots:
            if slot not in mine and not (slot.state is IN_USE and holder_of(slot) is me):
                return bucket
    return None
