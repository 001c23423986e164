"""Everything that runs for the pools of one hub, put together: one Runtime per hub.

It gives the scheduler the time, carries out what that asks for by its parts (``desk.py`` is where
callers come, ``dialer.py``, ``checker.py`` and ``closer.py`` have the greenlets), and calls the
hooks of the pools, which it knows by weak references only: a pool that is not used any more is
collected, and its connections closed.

Two rules keep it right.  Books first, words after: whatever may switch (hooks, listeners, log
handlers, waits) is called with the books whole, so that a Timeout or a kill thrown there loses
nothing.  And nothing that may switch is ever called from a hub callback.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from gevent import getcurrent
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub, get_hub

from geventpool import events
from geventpool._runtime import fork, refusals, shutdown
from geventpool._runtime.auditor import Auditor
from geventpool._runtime.checker import Checker
from geventpool._runtime.clock import get_ident
from geventpool._runtime.closer import CLOSE_TIMEOUT, Closer
from geventpool._runtime.connections import ConnectionIndex
from geventpool._runtime.deadlocks import DeadlockWatch
from geventpool._runtime.desk import Desk
from geventpool._runtime.dialer import Dialer
from geventpool._runtime.hangups import HangupWatcher, peer_of
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.leaks import Leaks
from geventpool._runtime.maintenance import Maintenance
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.salvager import Salvager
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._runtime.timers import DeadlineTimer, HubLag, Timers
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.scheduler import Scheduler
from geventpool._scheduler.state import CLOSED, IN_USE
from geventpool._util.clock import monotonic
from geventpool._util.errors import copy_of
from geventpool._util.forks import Fork, catch_up, forks_seen, in_child, in_parent
from geventpool.errors import PoolClosed, WrongHub
from geventpool.events import Reason

__all__ = ["CLOSE_TIMEOUT", "PoolHooks", "Runtime", "get_ident"]


class Runtime:
    """Everything that runs for the pools of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        loop: Any = hub.loop
        self.loop = loop
        #: The scheduler's way to have a waiter's greenlet run soon, ``wake(switch, waiter)``.
        self.wake = hub.loop.run_callback
        self.ident = get_ident()
        #: Without a Python call: there may be no room on the stack for one.
        self.catch_up_later = partial(hub.loop.run_callback, self._catch_up)
        self.scheduler = Scheduler(self)
        self.buckets: weakref.WeakSet[PoolBucket] = weakref.WeakSet()
        self.auditor = Auditor(hub.loop, self.scheduler, self.buckets)
        self.timers = Timers(hub.loop)
        self.hub_lag = HubLag(hub.loop, self.buckets)
        self.deadlines = DeadlineTimer(hub.loop, self.scheduler)
        self.notifier = Notifier(hub)
        self.deadlocks = DeadlockWatch(self, self.notifier)
        leaks = Leaks(self)
        self.index = ConnectionIndex(
            HangupWatcher(hub, self._peer_closed), leaks.collected, self.scheduler.forget_hangup
        )
        self.closer = Closer(self, self.index, self.notifier)
        self.dialer = Dialer(self, self.index, self.closer, self.notifier)
        self.checker = Checker(self, self.notifier)
        self.salvager = Salvager(self, self.index, self.notifier)
        self._parts = (self.dialer, self.closer, self.checker, self.salvager, self.notifier)
        self.maintenance = Maintenance(self.scheduler, self.notifier)
        self.desk = Desk(self, self.index, self.checker, self.notifier)
        # After a fork that Python has not seen, the child's hub is the first to know: as soon as it
        # has waited for something, and before it tells anybody of what has come.
        self._watcher = loop.check(ref=False, priority=loop.MAXPRI)
        self._watcher.start(_look_for_a_fork)
        _runtimes.add(self)

    @classmethod
    def of_this_thread(cls) -> Runtime:
        """The runtime of the current thread's hub, made at first use."""
        hub = get_hub()
        runtime = cast("Runtime | None", getattr(hub, "_geventpool_runtime", None))
        if runtime is None:
            runtime = cls(hub)
            hub._geventpool_runtime = runtime  # type: ignore[attr-defined]
        return runtime

    # Pools come and go

    def add(self, bucket: PoolBucket) -> None:
        """Take in the bucket of a new pool.  Its minimum is opened as soon as the hub runs."""
        for limit in bucket.shared:
            runtime = limit.effects
            if runtime is not None and runtime.dead:
                limit.abandon()  # it outlives the hub that used it
        self.scheduler.add(bucket, monotonic())
        self.buckets.add(bucket)
        self.auditor.start()
        self.hub_lag.start()
        self.maintenance.schedule(bucket)

    def forget_if_empty(self, bucket: PoolBucket) -> None:
        """One of many leaves no trace once it has neither slots nor callers."""
        if bucket.transient and bucket.empty:
            self.maintenance.stop(bucket)
            self.scheduler.remove(bucket)
            if bucket.on_empty is not None:
                bucket.on_empty(bucket)

    def shut(self, bucket: PoolBucket) -> None:
        """Close *bucket* for good, without waiting."""
        if not bucket.closed:
            self.scheduler.shut(bucket, PoolClosed(), monotonic())
        self.maintenance.stop(bucket)
        self.dialer.stop(bucket)
        self.checker.stop(bucket)
        self.salvager.stop(bucket)
        self.desk.inspector.stop(bucket)
        self.timers.stop(bucket)
        self.forget_if_empty(bucket)

    def pool_collected(self, buckets: Sequence[PoolBucket], owner: PoolHooks) -> None:
        """The pool was collected: close what it left.  Safe in a finalizer, from any thread."""
        for bucket in buckets:
            bucket.kept_hooks = owner  # alive until its connections are closed
        if not self.dead:
            self.loop.run_callback_threadsafe(self._close_orphans, buckets)

    def _close_orphans(self, buckets: Sequence[PoolBucket]) -> None:
        for bucket in buckets:
            self.shut(bucket)
            self.changed(bucket)

    @property
    def dead(self) -> bool:
        """Whether its hub runs no more."""
        return self.hub.dead or not getattr(self.hub, "loop", None)

    def assert_usable_here(self, pool: PoolBucket | PoolHooks) -> None:
        """See to it that the caller may use *pool* here: the right thread, and not the hub."""
        self.assert_own_thread(pool)
        if getcurrent() is self.hub:
            raise BlockingSwitchOutError(f"pool {pool.name!r} was used in a hub callback")

    def assert_own_thread(self, pool: PoolBucket | PoolHooks) -> None:
        """See to it that this is the thread of *pool*: what gives back may be in the hub.  In a
        child of which nothing was known yet, what the caller has is the parent's from here on."""
        if not forks_seen:
            catch_up()
        if get_ident() != self.ident or self.hub.dead:
            raise WrongHub(
                f"pool {pool.name!r} belongs to the gevent hub of another thread;"
                " make one pool per thread",
                pool=pool.name,
            )

    # Verbs of the whole pool

    def fill(self, owner: PoolHooks, bucket: PoolBucket, timeout: float | None) -> None:
        """Wait until *bucket* has all its connections open."""
        self.assert_usable_here(bucket)
        began = monotonic()
        deadline = None if timeout is None else began + timeout
        failed = bucket.dial_failed
        bucket.postpone(False)
        bucket.count_filling(1)
        try:
            self.scheduler.reconcile(bucket, began)
            while bucket.open < max(bucket.size, bucket.min_size):
                if bucket.closed:
                    raise refusals.pool_closed(bucket)
                if (error := self.scheduler.refusal(bucket, monotonic())) is not None:
                    raise copy_of(error)
                if bucket.fail_fast and bucket.dial_failed > failed and bucket.last_error:
                    raise copy_of(bucket.last_error)
                if not self.wait_for_change(bucket, deadline):
                    raise refusals.not_full(bucket, timeout) from bucket.last_error
        finally:
            bucket.count_filling(-1)

    def resize(
        self, bucket: PoolBucket, size: int, min_size: int, max_overflow: float | None = None
    ) -> None:
        """Set how many connections to keep, and how many more there may be (None: as before)."""
        self.assert_usable_here(bucket)
        self.scheduler.resize(bucket, size, min_size, monotonic(), max_overflow)

    def drain(self, bucket: PoolBucket, over: float) -> None:
        """Have every connection opened so far replaced within *over* seconds."""
        self.assert_usable_here(bucket)
        if not bucket.closed:
            self.scheduler.drain(bucket, over, monotonic())
            self.maintenance.schedule(bucket, monotonic())

    def dispose(self, owner: PoolHooks, buckets: Sequence[PoolBucket]) -> None:
        """Close what lies idle."""
        self.assert_usable_here(owner)
        for bucket in buckets:
            self.scheduler.dispose(bucket, Reason.DISPOSED, monotonic())
        self.notifier.notify(owner, "pool_disposed", events.PoolDisposed(owner, closed=False))

    def close(self, owner: PoolHooks, buckets: Sequence[PoolBucket], timeout: float | None) -> None:
        """Close all the *buckets* of a pool for good and wait for the last connection to go."""
        self.assert_usable_here(owner)
        shutdown.close(self, owner, buckets, timeout)

    def wait_for_change(self, bucket: PoolBucket, deadline: float | None) -> bool:
        """Wait until a slot of *bucket* was opened or closed; False once *deadline* is past."""
        remaining = None if deadline is None else deadline - monotonic()
        if remaining is not None and remaining <= 0:
            return False
        if bucket.changed is None:
            bucket.changed = Event()
        bucket.changed.clear()
        self.timers.keep_alive(bucket)
        bucket.changed.wait(remaining)
        return True

    def changed(self, bucket: PoolBucket) -> None:
        """A slot of *bucket* was opened or closed."""
        if bucket.changed is not None:
            bucket.changed.set()
        if bucket.kept_hooks is not None and not bucket.slots:
            bucket.kept_hooks = None
        if bucket.transient and not bucket.slots:
            self.forget_if_empty(bucket)

    # What the scheduler asks for

    def start_dial(self, slot: ConnectionSlot) -> None:
        """Have a greenlet dial."""
        self.dialer.workers.put(slot)

    def start_close(self, slot: ConnectionSlot, reason: Reason) -> None:
        """Have a greenlet close the connection, alive or not."""
        self.closer.start(slot, reason)

    def start_check(self, slot: ConnectionSlot) -> None:
        """Have a greenlet run the keepalive."""
        self.checker.start(slot)

    def start_salvage(self, slot: ConnectionSlot) -> None:
        """Have a greenlet try to bring the connection back into step."""
        self.salvager.start(slot)

    def reconcile_later(self, bucket: PoolBucket) -> None:
        """Look at *bucket* again when its back-off is over, or before."""
        self.timers.retry(bucket, self._retry_now)

    def _retry_now(self, bucket: PoolBucket) -> None:
        self.scheduler.reconcile(bucket, monotonic())
        if bucket.transient and bucket.failing:
            # It stays a while: gone, it would forget its failures, and who asks for it now and
            # then would have the dead server dialed each time.
            self.timers.remember(bucket, self.forget_if_empty)
        self.forget_if_empty(bucket)

    def went_down(self, bucket: PoolBucket) -> None:
        """Say, a little later, that callers are sent away; those of ``fill`` look now."""
        if bucket.changed is not None:
            bucket.changed.set()
        if (owner := bucket.owner()) is not None:
            event = events.PoolWentDown(owner, bucket.last_error, endpoint=bucket.endpoint)
            self.notifier.workers.put((owner, "pool_went_down", event))

    def came_back(self, bucket: PoolBucket) -> None:
        """Say, a little later, that this is over."""
        if (owner := bucket.owner()) is not None:
            now = monotonic()
            past = owner.outages.so_far(bucket.key, now)
            figures = now - past.since, past.failed, past.turned_away
            event = events.PoolIsBack(owner, *figures, endpoint=bucket.endpoint)
            self.notifier.workers.put((owner, "pool_is_back", event))

    def look_later(self, bucket: PoolBucket, at: float) -> None:
        """Look at its line at that time."""
        self.timers.look(bucket, at, self.look_at_line)

    def look_at_line(self, bucket: PoolBucket) -> None:
        """Send away those that wait too long in a slow line."""
        self.scheduler.look_at_line(bucket, monotonic())

    def reconcile_limit_later(self, limit: Limit) -> None:
        """Reconcile what *limit* touches, soon."""
        if self.dead:
            return  # nothing of what it touched lives
        self.loop.run_callback_threadsafe(self._reconcile_limit, limit)

    def _reconcile_limit(self, limit: Limit) -> None:
        self.scheduler.reconcile_limit(limit, monotonic())

    def _catch_up(self) -> None:
        self.scheduler.catch_up(monotonic())

    def at_work_on(self) -> set[ConnectionSlot]:
        """The slots that a greenlet dials, closes, checks, salvages or looks at, or is about to."""
        for part in self._parts:
            part.workers.go_on()  # what was put in the queue may not have been seen to
        slots = {*self.dialer.workers.things(), *self.desk.inspector.looked_at.values()}
        for part in (self.closer, self.checker, self.salvager):
            slots.update(thing[0] for thing in part.workers.things())
        return slots

    def has_out(self, slot: ConnectionSlot) -> bool:
        """Whether a caller has the connection; that it lost it is noticed when it is collected."""
        return slot.conn is None

    def waits(self, waiter: Any) -> bool:
        """Whether the greenlet of *waiter* still waits for what it gets."""
        return not (waiter.gone or waiter.callback.__self__.dead)

    def mended(self, bucket: PoolBucket, what: str) -> None:
        """Log that the books were wrong, a little later: it may be the hub that calls."""
        if (owner := bucket.last_owner) is not None:
            self.notifier.mended(owner, what)

    # News from outside: the hub tells, so nothing here may switch

    def _peer_closed(self, slot: ConnectionSlot) -> None:
        bucket = slot.bucket
        if slot.close_reason is None and slot.state is not CLOSED:
            owner = bucket.owner()
            in_use = slot.state is IN_USE
            conn = slot.ref()
            if slot.uses <= 1 and owner is not None and owner._is_socket(conn):
                bucket.last_peer = peer_of(conn)
            if owner is not None and "peer_closed" in owner.listening:
                event = events.PeerClosed(owner, conn, in_use, endpoint=bucket.endpoint)
                self.notifier.workers.put((owner, "peer_closed", event))
            self.scheduler.peer_closed(slot, monotonic())

    # Fork

    def postpone(self) -> None:
        """The program has forked before its hub has run: it makes workers, and may never use the
        pools that it has made for them.  They open nothing until it does."""
        for bucket in list(self.buckets):
            bucket.postpone(not (bucket.waiters or bucket.filling))

    def dismiss_workers(self) -> list[Any]:
        """In a child: begin with new greenlets; returns the copies of the parent's."""
        strays = []
        for part in self._parts:
            strays += part.workers.dismiss()
            part.make_workers()
        return strays

    def revive(self) -> None:
        """In a child, once its hub runs: open what is wanted."""
        for bucket in list(self.buckets):
            self.scheduler.reconcile(bucket, monotonic())


def _look_for_a_fork() -> None:
    if not forks_seen:
        catch_up()


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


@in_child
def _in_child(forked: Fork) -> None:
    for runtime in list(_runtimes):
        # That of a thread which is gone may fail: no reason to leave the others.
        forked.attempt(fork.let_go, runtime, forked)


@in_parent
def _in_parent() -> None:
    for runtime in list(_runtimes):
        if not runtime.hub and not runtime.dead and get_ident() == runtime.ident:
            runtime.postpone()
