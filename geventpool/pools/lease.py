"""A connection for a while: what ``get`` returns, what ``acquire`` and ``release`` are made of, and
the fast path of every pool.

The two moves between IDLE and IN_USE that are made here, in ``Lease.__enter__`` and
``Lease.__exit__``, are the only ones that the scheduler does not make itself.
"""

from __future__ import annotations

from types import GenericAlias, TracebackType
from typing import TYPE_CHECKING, Any

from geventpool._runtime import clock
from geventpool._runtime.introspection import remember_caller
from geventpool._runtime.slots import SHORTEST, ConnectionSlot, Hold, PoolBucket, is_held
from geventpool._scheduler.inbox import CUT_SHORT
from geventpool._scheduler.state import IDLE, IN_USE
from geventpool._util.arguments import check_seconds
from geventpool._util.deadlines import active as deadlines
from geventpool._util.forks import forks_seen
from geventpool.pools.verdicts import end_use

if TYPE_CHECKING:
    from geventpool.pools.base import BasePool

__all__ = ["DEFAULT", "ENTERED", "Lease", "assert_not_entered", "get", "lend", "take_back"]

DEFAULT: Any = object()  # "the pool's own timeout", as None means "no bound"

#: Stands for the bucket of a lease that is in a ``with``: nothing is idle in it, so that the fast
#: path need not look whether it is.
ENTERED = PoolBucket("entered", size=0, min_size=0)


class Lease:
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

    __class_getitem__: Any = classmethod(GenericAlias)

    # No __init__, which ``get`` spells out: the call would cost as much as the clock.
    _bucket: PoolBucket
    _pool: BasePool[Any]
    _slot: ConnectionSlot
    _timeout: float | None  # DEFAULT: the pool's own

    def __enter__(self) -> Any:
        # The fast path: something is idle and no waiter could use it (the scheduler keeps
        # *fast_path_open* true to that), so a pop is all it takes.  The price: this and __exit__
        # know how the scheduler moves a slot between IDLE and IN_USE, which is why those two states
        # are counted together.  A slot that needs a second thought goes back, to the slow path.
        bucket = self._bucket
        idle = bucket._idle
        scheduler = bucket.scheduler
        if (
            idle
            and forks_seen
            and bucket.fast_path_open == clock.get_ident()
            and not scheduler.busy
            and not (deadlines and bucket.is_useless_to(clock.getcurrent()))
        ):
            pop = bucket.pop_idle
            slot: ConnectionSlot = pop()
            conn = slot.conn
            try:
                now = clock.monotonic()
                if (
                    now < slot.fast_path_until
                    and (
                        bucket.fast_path_max_idle is None
                        or now - slot.since < bucket.fast_path_max_idle
                    )
                    and (slot.why_unusable is None or slot.is_quiet())
                ):
                    slot.state = IN_USE
                    slot.since = now
                    slot.holder = clock.proxy(clock.getcurrent())
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
            scheduler.put_back(slot)
        if bucket is ENTERED:
            assert_not_entered(self)
        pool = self._pool
        timeout = self._timeout
        if timeout is DEFAULT:
            timeout = pool.timeout
        self._bucket = ENTERED  # also while it waits
        try:
            desk = pool._desk
            self._slot, self._conn = desk.acquire(pool, bucket, timeout)
        except BaseException:
            self._bucket = bucket
            raise
        self._use = self._slot.uses
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
                now = clock.monotonic()
                # Plain: no caller waits, or one does.  (Any thread may leave a ``with``.)
                if (
                    now < slot.fast_path_until
                    and bucket.fast_path_thread == clock.get_ident()
                    and (not slot.looks_on_return or slot.comes_back_clean(self._pool, self._conn))
                ):
                    used = now - slot.since
                    if used < SHORTEST:
                        bucket.use_counts[0] += 1
                    else:
                        bucket.use_counts[clock.place_of(used)] += 1
                    bucket.use_sum += used
                    if used > bucket.use_long:
                        bucket.note_long_use(used)
                    slot.conn = self._conn
                    scheduler = bucket.scheduler
                    if bucket.fast_path_open and not scheduler.busy:
                        slot.state = IDLE
                        slot.since = now
                        push = bucket.push_idle
                        push(slot)
                    else:
                        slot.holder = None
                        scheduler.release(slot, now)
                    return
            except BaseException:
                # Cut short: if it is nobody else's yet, an audit finds it, and closes it.
                if slot.uses == self._use and slot.state is IN_USE:
                    slot.conn = self._conn
                bucket.scheduler.busy = CUT_SHORT
                self._pool._runtime.catch_up_later()
                raise
        self._give_back(exc)

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} cannot be copied: call get() for each with")

    def _give_back(self, exc: BaseException | None, suspect: bool = False) -> None:
        """End the ``with`` by the verb that fits what has left it."""
        pool = self._pool
        hold: Hold = self._slot, self._use
        if not is_held(hold):
            return
        if clock.get_ident() != pool._runtime.ident:
            self._bucket = ENTERED  # it stays with its holder
        if exc is not None:
            end_use(pool, hold, self._conn, exc)
        else:
            pool._desk.checkin(pool, hold, self._conn, suspect)


def lend(
    pool: BasePool[Any], bucket: PoolBucket, timeout: float | None
) -> tuple[ConnectionSlot, Any]:
    """Enter a lease that no ``with`` will leave: what a caller gets that gives back by hand."""
    hub = pool._runtime.hub
    if hub.dead or clock.getcurrent() is hub:  # a thread may have the id of one that has ended
        pool._runtime.assert_usable_here(bucket)
    lease = Lease()
    lease._pool = pool
    lease._bucket = bucket
    lease._timeout = timeout
    conn = lease.__enter__()
    if pool.track:
        remember_caller(lease._slot)
    return lease._slot, conn


def take_back(pool: BasePool[Any], hold: Hold, conn: Any, exc: BaseException | None = None) -> None:
    """Leave a lease for a caller that gives back by hand, as *exc* would leave a ``with``.

    But for a wait that was cut short it is looked at here and now, as such callers often catch the
    Timeout themselves: the next caller need not find it out.
    """
    if pool._runtime.hub.dead:  # as in ``lend``
        pool._runtime.assert_own_thread(pool)
    lease = Lease()
    lease._pool = pool
    lease._slot, lease._use = hold
    lease._conn = conn
    slot, _ = hold
    probe = slot.why_unusable
    if exc is None and probe is not None and not slot.looks_on_return and probe.cut_short:
        lease._give_back(None)
    else:
        lease.__exit__(None, exc, None)


def assert_not_entered(lease: Lease) -> None:
    """Raise RuntimeError if *lease* is in a ``with``."""
    if getattr(lease, "_bucket", None) is ENTERED:
        raise RuntimeError(
            f"pool {lease._pool.name!r}: this lease is in a with already; call get() for each with"
        )


def get(self: Any, timeout: float | None = DEFAULT) -> Lease:
    """A connection for the length of a ``with``; waits on entering it, see ``acquire``."""
    # The method of ConnectionPool: it is compiled with what it makes.
    make = self._lease
    lease: Lease = make()
    lease._pool = self
    lease._bucket = self._bucket
    if timeout is not DEFAULT:
        check_seconds("timeout", timeout, zero=True)
    lease._timeout = timeout
    return lease
