"""A connection for a while: what ``get`` returns, what ``acquire`` and ``release`` are made of, and
the fast path of every pool.

The two moves between IDLE and IN_USE that are made here, in ``Lease.__enter__`` and
``Lease.__exit__``, are the only ones that the scheduler does not make itself.
"""

from __future__ import annotations

from bisect import bisect_left
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import proxy

from gevent import getcurrent

from geventpool._runtime.introspection import callers_stack
from geventpool._runtime.slots import (
    SHORTEST,
    ConnectionSlot,
    Hold,
    PoolBucket,
    comes_back_clean,
    is_held,
    is_quiet,
)
from geventpool._runtime.threads import get_ident
from geventpool._scheduler.inbox import CUT_SHORT
from geventpool._scheduler.state import IDLE, IN_USE
from geventpool._util.deadlines import active as deadlines
from geventpool._util.forks import forks_seen
from geventpool.errors import Verdict
from geventpool.events import Reason
from geventpool.pools.verdicts import end_use, mark_broken, verdict_on_use
from geventpool.stats import BOUNDS

if TYPE_CHECKING:
    from geventpool.pools.base import BasePool

__all__ = [
    "DEFAULT",
    "ENTERED",
    "Lease",
    "LocalLease",
    "SharedConnection",
    "TrackedLease",
    "TrackedLocalLease",
    "assert_not_entered",
    "lend",
    "take_back",
]

C = TypeVar("C")
DEFAULT: Any = object()  # "the pool's own timeout", as None means "no bound"


class _Entered:
    """Stands for the bucket of a lease that is in a ``with``: nothing is idle in it, so that the
    fast path need not look whether it is."""

    _idle = ()


ENTERED: Any = _Entered()


class Lease(Generic[C]):
    """What ``pool.get()`` returns: in a ``with`` it is a connection, for a while.

    Nothing raised in the ``with``: the connection goes back.  *exc_classes* (or what the hook
    ``_classify_error`` does not call FINE), or anything that is not an ``Exception``
    (gevent.Timeout, GreenletExit, KeyboardInterrupt, ...): it is closed, as a reply to the request
    that was cut short may still come.  Another ``Exception``, or a PoolError: it goes back, unless
    bytes lie unread on it; with ``strict=True`` it is closed.  What is no ``Exception`` only cuts
    its use short: a pool that overrides ``_salvage_connection`` tries that first, in the
    background.

    One lease is for one ``with`` at a time: entered a second time meanwhile, it raises
    RuntimeError.  Left in another thread than the pool's it raises WrongHub, and is not left.
    """

    __slots__ = ("_bucket", "_conn", "_pool", "_slot", "_timeout", "_use")

    # No __init__, which ``get`` spells out: the call would cost as much as the clock.
    _bucket: PoolBucket
    _pool: BasePool[C]
    _slot: ConnectionSlot
    _timeout: float | None  # DEFAULT: the pool's own

    def __enter__(self) -> C:
        # The fast path: something is idle and no waiter could use it (the scheduler keeps
        # *fast_path_open* true to that), so a pop is all it takes.  The price: this and __exit__
        # know how the scheduler moves a slot between IDLE and IN_USE, which is why those two states
        # are counted together.  A slot that needs a second thought goes back, to the slow path.
        bucket = self._bucket
        idle = bucket._idle
        if (
            idle
            and forks_seen
            and bucket.fast_path_open == get_ident()
            and not bucket.scheduler.busy
            and not (deadlines and bucket.is_useless_to(getcurrent()))
        ):
            pop = bucket.pop_idle
            slot: Any = pop()
            conn: C = slot.conn
            try:
                now = monotonic()
                if (
                    now < slot.fast_path_until
                    and (
                        bucket.fast_path_max_idle is None
                        or now - slot.since < bucket.fast_path_max_idle
                    )
                    and (slot.why_unusable is None or is_quiet(slot))
                ):
                    slot.state = IN_USE
                    slot.since = now
                    slot.holder = proxy(getcurrent())
                    slot.uses = self._use = slot.uses + 1
                    self._slot = slot
                    self._bucket = ENTERED
                    self._conn = conn
                    slot.conn = None
                    return conn
            except BaseException:
                # Cut short, by a signal or the end of the stack: as before, and without a Python
                # call, for which there may be no room.
                self._bucket = bucket
                slot.conn = conn
                slot.state = IDLE
                idle.appendleft(slot)
                raise
            bucket.scheduler.put_back(slot)
        if bucket is ENTERED:
            assert_not_entered(self)
        pool = self._pool
        timeout = self._timeout
        if timeout is DEFAULT:
            timeout = pool.timeout
        self._bucket = ENTERED  # also while it waits
        try:
            (self._slot, self._use), self._conn = pool._desk.acquire(pool, bucket, timeout)
        except BaseException:
            self._bucket = bucket
            raise
        return self._conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        slot = self._slot
        bucket = self._bucket = slot.bucket
        if slot.state is not IN_USE or slot.uses != self._use:
            return  # released, discarded or detached in the body; or left behind by a fork
        if exc is None:
            try:
                now = monotonic()
                # Plain: no caller waits, or one does.  (Any thread may leave a ``with``.)
                if (
                    now < slot.fast_path_until
                    and bucket.fast_path_thread == get_ident()
                    and (not slot.looks_on_return or comes_back_clean(self._pool, slot, self._conn))
                ):
                    used = now - slot.since
                    counts = bucket.use_counts
                    if used < SHORTEST:
                        counts[0] += 1
                    else:
                        counts[bisect_left(BOUNDS, used)] += 1
                    bucket.use_sum += used
                    if used > bucket.use_long:
                        bucket.note_long_use(used)
                    slot.conn = self._conn
                    if bucket.fast_path_open and not bucket.scheduler.busy:
                        slot.state = IDLE
                        slot.since = now
                        push = bucket.push_idle
                        push(slot)
                    else:
                        slot.holder = None
                        bucket.scheduler.release(slot, now)
                    return
            except BaseException:
                # Cut short: if it is nobody else's yet, an audit finds it, and closes it.
                if slot.uses == self._use and slot.state is IN_USE:
                    slot.conn = self._conn
                bucket.scheduler.busy = CUT_SHORT
                self._pool._runtime.catch_up_later()
                raise
        self._give_back(exc)

    def _give_back(self, exc: BaseException | None, suspect: bool = False) -> None:
        """End the ``with`` by the verb that fits what has left it."""
        pool = self._pool
        hold: Hold = self._slot, self._use
        if not is_held(hold):
            return
        if get_ident() != pool._runtime.ident:
            self._bucket = ENTERED  # it stays with its holder
        if exc is not None:
            end_use(pool, hold, self._conn, exc)
        else:
            pool._desk.checkin(pool, hold, self._conn, suspect)


def lend(pool: BasePool[C], bucket: PoolBucket, timeout: float | None) -> tuple[ConnectionSlot, C]:
    """Enter a lease that no ``with`` will leave: what a caller gets that gives back by hand."""
    hub = pool._runtime.hub
    if hub.dead or getcurrent() is hub:  # a thread may have the id of one that has ended
        pool._runtime.assert_usable_here(bucket)
    make: type[Lease[C]] = TrackedLease if pool.track else Lease
    lease = make()
    lease._pool = pool
    lease._bucket = bucket
    lease._timeout = timeout
    conn = lease.__enter__()
    return lease._slot, conn


def take_back(pool: BasePool[C], hold: Hold, conn: C, exc: BaseException | None = None) -> None:
    """Leave a lease for a caller that gives back by hand, as *exc* would leave a ``with``.

    But for a wait that was cut short it is looked at here and now, as such callers often catch the
    Timeout themselves: the next caller need not find it out.
    """
    if pool._runtime.hub.dead:  # as in ``lend``
        pool._runtime.assert_own_thread(pool)
    lease: Lease[C] = Lease()
    lease._pool = pool
    lease._slot, lease._use = hold
    lease._conn = conn
    slot, _ = hold
    probe = slot.why_unusable
    if exc is None and probe is not None and not slot.looks_on_return and probe.cut_short:
        lease._give_back(None)
    else:
        lease.__exit__(None, exc, None)


def assert_not_entered(lease: Lease[Any]) -> None:
    """Raise RuntimeError if *lease* is in a ``with``."""
    if getattr(lease, "_bucket", None) is ENTERED:
        raise RuntimeError(
            f"pool {lease._pool.name!r}: this lease is in a with already; call get() for each with"
        )


class TrackedLease(Lease[C]):
    """The lease of a pool that remembers where its connections were acquired, by the fast path,
    too."""

    __slots__ = ()

    def __enter__(self) -> C:
        conn = super().__enter__()
        self._slot.where = callers_stack()
        return conn


class SharedConnection(Generic[C]):
    """A connection that a greenlet has, and how many leases of it there are."""

    __slots__ = ("cut_by", "lease", "leases", "suspect")

    def __init__(self, lease: LocalLease[C]) -> None:
        self.lease = lease  # by which the connection was acquired
        self.leases = 1
        self.suspect = False  # an exception has left one of them
        self.cut_by: BaseException | None = None  # what has left one and cut its use short


class LocalLease(Lease[C]):
    """The lease of a ``greenlet_local`` pool: nested, it shares what the greenlet already has.

    The connection goes back when the last of those that share it is left, in whatever order.
    """

    __slots__ = ("_leases", "_shared")

    _shared: SharedConnection[C]

    def __enter__(self) -> C:
        assert_not_entered(self)
        key, leases = self._bucket.key, self._pool._leases_of_this_greenlet()
        shared = leases.get(key)
        if shared is not None and forks_seen and is_held((shared.lease._slot, shared.lease._use)):
            shared.leases += 1
            self._shared, self._bucket = shared, ENTERED
            return shared.lease._conn
        conn = super().__enter__()
        self._shared = leases[key] = SharedConnection(self)
        self._leases = leases  # those of the greenlet that entered it, in whichever it is left
        return conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shared = self._shared
        lease, slot = shared.lease, shared.lease._slot
        self._bucket = slot.bucket
        shared.leases -= 1
        if not shared.leases:
            if lease._leases.get(slot.bucket.key) is shared:
                del lease._leases[slot.bucket.key]
            if shared.suspect or exc is not None:
                cut_by, shared.cut_by = shared.cut_by, None
                try:
                    if cut_by is not None and (
                        exc is None or verdict_on_use(self._pool, exc) is Verdict.FINE
                    ):
                        exc = cut_by
                finally:  # a handler of the log may have been killed
                    lease._give_back(exc, suspect=True)
            else:
                Lease.__exit__(lease, None, None, None)
        elif exc is not None:
            shared.suspect = True
            # Another with may yet swallow it, but what it says is true all the same.
            if mark_broken(self._pool, (slot, lease._use), exc) is Reason.CUT_SHORT:
                shared.cut_by = exc


class TrackedLocalLease(LocalLease[C], TrackedLease[C]):
    """The same for a ``greenlet_local`` pool that tracks."""

    __slots__ = ()
