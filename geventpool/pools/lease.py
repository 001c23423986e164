"""A connection for a while: what ``get`` returns, and the fast path of every pool.

The two moves between IDLE and IN_USE that are made here, in ``Lease.__enter__`` and
``Lease.__exit__``, are the only ones that the scheduler does not make itself.
"""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import proxy

from gevent import getcurrent

from geventpool._runtime.slots import ConnectionSlot, Hold, PoolBucket
from geventpool._runtime.threads import get_ident
from geventpool._scheduler.state import IDLE, IN_USE, NEVER
from geventpool.events import Reason

if TYPE_CHECKING:
    from geventpool.pools.base import BasePool

__all__ = ["DEFAULT", "Lease", "LocalLease"]

C = TypeVar("C")
DEFAULT: Any = object()  # "the pool's own timeout", as None means "no bound"


class Lease(Generic[C]):
    """What ``pool.get()`` returns: in a ``with`` it is a connection, for a while.

    Nothing raised in the ``with``: the connection goes back.  *exc_classes*, or anything that is
    not an ``Exception`` (gevent.Timeout, GreenletExit, KeyboardInterrupt, ...): it is closed, as
    a reply to the request that was cut short may still come.  Another ``Exception``, or a
    PoolError: it goes back, unless bytes lie unread on it; with ``strict=True`` it is closed.
    """

    __slots__ = ("_bucket", "_conn", "_pool", "_slot", "_timeout", "_use")

    # No __init__, which ``get`` spells out: the call would cost as much as the clock.
    _bucket: PoolBucket
    _pool: BasePool[C]
    _slot: ConnectionSlot
    _timeout: float | None

    def __enter__(self) -> C:
        # The fast path: something is idle and no waiter could use it (the scheduler keeps
        # *fast_path_open* true to that), so a pop is all it takes.  The price: this and __exit__
        # know how the scheduler moves a slot between IDLE and IN_USE, which is why those two states
        # are counted together.  A slot that needs a second thought goes back, to the slow path.
        bucket = self._bucket
        idle = bucket._idle
        if idle and bucket.fast_path_open == get_ident():
            slot = idle.pop() if bucket.lifo else idle.popleft()
            now = monotonic()
            if (
                now < slot.fast_path_until
                and (
                    bucket.fast_path_max_idle is NEVER
                    or now - slot.since < bucket.fast_path_max_idle
                )
                and (slot.why_unusable is None or not slot.why_unusable())
            ):
                slot.state = IN_USE
                slot.since = now
                slot.holder = proxy(getcurrent())
                slot.uses = self._use = slot.uses + 1
                self._slot = slot
                conn: C = slot.conn
                self._conn = conn
                slot.conn = None
                return conn
            self._pool._runtime.scheduler.put_back(slot)
        pool, timeout = self._pool, self._timeout
        if timeout is DEFAULT:
            timeout = pool.timeout
        (self._slot, self._use), self._conn = pool._desk.acquire(pool, bucket, timeout)
        return self._conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        slot = self._slot
        if slot.state is not IN_USE or slot.uses != self._use:
            return  # released, discarded or detached in the body; or left behind by a fork
        if exc is None:
            bucket = slot.bucket
            now = monotonic()
            # Plain: no caller waits (then it is left in the thread in which it was entered: no need
            # to look again), or one does.
            if now < slot.fast_path_until and (
                bucket.fast_path_open or bucket.fast_path_thread == get_ident()
            ):
                used = now - slot.since
                bucket.use_count += 1
                bucket.use_sum += used
                if used > bucket.use_max:
                    bucket.use_max = used
                slot.conn = self._conn
                if bucket.fast_path_open:
                    slot.state = IDLE
                    slot.since = now
                    bucket._idle.append(slot)
                else:
                    slot.holder = None
                    self._pool._runtime.scheduler.release(slot, now)
                return
        pool = self._pool
        hold: Hold = slot, self._use
        if exc is None:
            pool._desk.checkin(pool, hold, self._conn)
        elif pool._breaks_connection(exc):
            pool._desk.discard(pool, hold, self._conn, Reason.ERROR, exc)
        else:
            pool._desk.checkin(pool, hold, self._conn, suspect=True)


class LocalLease(Lease[C]):
    """The lease of a ``greenlet_local`` pool: nested, it shares what the greenlet already has."""

    __slots__ = ("_outer",)

    def __enter__(self) -> C:
        leases = self._pool._leases_of_this_greenlet()
        outer = self._outer = leases.get(self._bucket.key)
        if outer is not None and outer._slot.state is IN_USE and outer._slot.uses == outer._use:
            return outer._conn
        self._outer = None
        conn = super().__enter__()
        leases[self._bucket.key] = self
        return conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outer is None:
            self._pool._leases_of_this_greenlet().pop(self._bucket.key, None)
            super().__exit__(exc_type, exc, traceback)
        elif exc is not None and self._pool._breaks_connection(exc):
            # The outer with may yet swallow it, but the connection is broken all the same.
            self._pool._runtime.scheduler.mark_for_closing(self._outer._slot, Reason.ERROR)
