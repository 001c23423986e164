"""The greenlets around a scheduler: dial, close, check, wait, keepalive, reaper.

There is one Runtime per hub.  It gives the scheduler the time, carries out what the scheduler asks
for, and calls the hooks of the pools, which it knows by weak references only: a pool that is not
used any more is collected, and its connections closed.

Two rules keep it right.  Whatever may switch (hooks, listeners, log handlers, waits) is called with
the books whole, so that a Timeout or a kill thrown there loses nothing.  And nothing that may
switch is ever called from a hub callback.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from types import FrameType
from typing import Any, NoReturn, Protocol, cast

import gevent
from gevent import GreenletExit, getcurrent, monkey
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub, get_hub

from geventpool import events
from geventpool._runtime.fork import identity_of, leave_to_parent
from geventpool._runtime.hangups import HangupWatcher
from geventpool._runtime.leaks import connection_ref
from geventpool._runtime.timers import Timer
from geventpool._runtime.workers import MaintenanceLoop, WorkerGroup, leave_behind
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot, Waiter
from geventpool._scheduler.scheduler import Scheduler
from geventpool._scheduler.state import CHECKING, CLOSED, CONNECTING, IDLE, IN_USE, NEVER
from geventpool._util.errors import copy_of, forget_frames
from geventpool._util.log import log_safely
from geventpool.errors import (
    ConnectError,
    NotInUse,
    PoolClosed,
    PoolFull,
    PoolTimeout,
    WrongHub,
)
from geventpool.events import Holder, Reason

__all__ = ["PoolHooks", "Runtime", "get_ident"]

#: The id of the OS thread, whether or not the program is monkey-patched.
get_ident: Callable[[], int] = monkey.get_original("_thread", "get_ident")

CLOSE_TIMEOUT = 5.0  # seconds that one _close_connection may take
_BREAK = 0.001  # seconds at least from one run of the keepalive or the reaper to the next
_MOST_CLOSERS = 64
_MOST_CHECKERS = 16
# A program that has set up no logging gets no lines of ours on its stderr.
logging.getLogger("geventpool").addHandler(logging.NullHandler())


class PoolHooks(Protocol):
    """What the runtime needs of a pool: its settings, and the hooks, which get the bucket's key."""

    name: str
    log: logging.Logger
    listening: dict[str, tuple[Callable[[Any], object], ...]]
    connect_timeout: float | None
    keepalive: float | None
    keepalive_timeout: float
    check_after: float | None
    max_waiting: int | None
    track: bool
    slots_by_id: dict[int, Slot]  # id(connection) -> its slot
    maintenance: Any  # the runtime's: its keepalive and its reaper, None at first
    closed: bool  # by close()
    has_is_alive: bool  # whether _is_alive is the user's own
    checks_on_checkout: bool  # whether a hand-out takes more than a probe
    has_reset: bool

    def _all_buckets(self) -> Sequence[Bucket]: ...
    def _new_connection(self, *key: Any) -> Any: ...
    def _keepalive(self, *key_and_conn: Any) -> object: ...
    def _close_connection(self, *key_and_conn: Any) -> object: ...
    def _is_alive(self, *key_and_conn: Any) -> bool: ...
    def _fileno(self, *key_and_conn: Any) -> int | None: ...
    def _reset_connection(self, *key_and_conn: Any) -> object: ...
    def _is_socket(self, conn: Any) -> bool: ...
    def _make_probe(self, conn: Any) -> Callable[[], object] | None: ...
    def _make_descriptor_probe(self, descriptor: int) -> Callable[[], object]: ...


class Runtime:
    """Everything that runs for the pools of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.loop = hub.loop
        #: The scheduler's way to have a waiter's greenlet run soon, ``wake(switch, waiter)``.
        self.wake = hub.loop.run_callback
        self.ident = get_ident()
        self.scheduler = Scheduler(self)
        self.hangups = HangupWatcher(hub, self._peer_closed)
        self.buckets: weakref.WeakSet[Bucket] = weakref.WeakSet()
        self._lost: deque[Slot] = deque()
        self._when_collected = self._collected  # one bound method for all, not one for each
        self._deadline_timer: Any = None  # the timer of the next deadline of a waiter
        self._deadline_timer_at = NEVER
        self._deadline_timer_is_idle = False
        self._make_worker_groups()
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

    def _make_worker_groups(self) -> None:
        self.dialers = WorkerGroup(self._dial)
        self.closers = WorkerGroup(self._close, _MOST_CLOSERS)
        self.checkers = WorkerGroup(self._check, _MOST_CHECKERS)
        self.notifiers = WorkerGroup(self._notify_later, 1)

    # Pools come and go

    def add(self, bucket: Bucket) -> None:
        """Take in the bucket of a new pool.  Its minimum is opened as soon as the hub runs."""
        self.scheduler.add(bucket, monotonic())
        self.buckets.add(bucket)
        self._schedule_maintenance(bucket)

    def forget_if_empty(self, bucket: Bucket) -> None:
        """One of many leaves no trace once it has neither slots nor callers."""
        if bucket.transient and bucket.empty:
            self._stop_maintenance(bucket)
            self.scheduler.remove(bucket)
            if bucket.on_empty is not None:
                bucket.on_empty(bucket)

    def shut(self, bucket: Bucket) -> None:
        """Close *bucket* for good, without waiting."""
        if not bucket.closed:
            self.scheduler.shut(bucket, PoolClosed(), monotonic())
        self._stop_maintenance(bucket)
        for greenlet, slot in list(self.dialers.active.items()):
            if slot is not None and slot.bucket is bucket and greenlet is not getcurrent():
                self.loop.run_callback(self._stop_dial, greenlet, slot)
        for greenlet, item in list(self.checkers.active.items()):
            if item is not None and item[0].bucket is bucket and greenlet is not getcurrent():
                self.loop.run_callback(self._stop_check, greenlet, item)
        if bucket.retry_timer is not None:
            bucket.retry_timer.stop()
            bucket.retry_timer = None
        self.forget_if_empty(bucket)

    def _stop_check(self, greenlet: Any, item: tuple[Slot, PoolHooks]) -> None:
        """End a check of a closed pool, unless its greenlet is at another by now."""
        if self.checkers.active.get(greenlet) is item and item[0].state is CHECKING:
            greenlet.throw(PoolClosed("the pool was closed"))

    def _stop_dial(self, greenlet: Any, slot: Slot) -> None:
        """End a dial of a closed pool, unless its greenlet dials for another pool by now."""
        if self.dialers.active.get(greenlet) is slot and slot.state is CONNECTING:
            greenlet.throw(GreenletExit)

    def pool_collected(self, buckets: Sequence[Bucket], owner: PoolHooks) -> None:
        """The pool was collected: close what it left.  Safe in a finalizer, from any thread."""
        for bucket in buckets:
            bucket.kept_hooks = owner  # alive until its connections are closed
        if not self._hub_is_dead():
            self.loop.run_callback_threadsafe(self._close_orphans, buckets)

    def _close_orphans(self, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            self.shut(bucket)
            self._changed(bucket)

    def _hub_is_dead(self) -> bool:
        return self.hub.dead or not getattr(self.hub, "loop", None)

    def assert_usable_here(self, pool: Bucket | PoolHooks) -> None:
        """See to it that the caller may use *pool* here: the right thread, and not the hub."""
        hub = self.hub
        if get_ident() != self.ident or hub.dead:
            raise WrongHub(
                f"pool {pool.name!r} belongs to the gevent hub of another thread;"
                " make one pool per thread",
                pool=pool.name,
            )
        if getcurrent() is hub:
            raise BlockingSwitchOutError(f"pool {pool.name!r} was used in a hub callback")

    # What callers do

    def acquire(self, owner: PoolHooks, bucket: Bucket, timeout: float | None) -> tuple[Slot, Any]:
        """A slot in use by the current greenlet, and its connection."""
        me = getcurrent()
        if get_ident() != self.ident or me is self.hub or self.hub.dead:
            self.assert_usable_here(bucket)
        began = now = monotonic()
        listening = owner.listening
        if listening and timeout != 0 and bucket.own.full:
            if not bucket.idle and bucket.connecting <= len(bucket.waiters):
                event: Any = events.PoolAtMax(owner, bucket.own.maximum, endpoint=bucket.endpoint)
                self.notify(owner, "pool_at_max", event)
        deadline = None if timeout is None else began + timeout
        ticket = self.scheduler.next_ticket()
        requeued = False
        while True:
            slot = (
                None
                if bucket.waiters or not bucket._idle
                else self.scheduler.try_checkout(bucket, now)
            )
            if slot is not None:
                slot.uses += 1
                slot.since = now
            else:
                waiter = Waiter(bucket, ticket, deadline, me.switch)
                slot = self._wait(owner, waiter, began, now, timeout, requeued)
            if not owner.checks_on_checkout and slot.since < slot.fast_path_until:
                why_unusable = slot.why_unusable
                if why_unusable is None or (slot.uses > 1 and not why_unusable()):
                    break  # the plain case of what follows
            if self._passes_checks(owner, slot, began, deadline, timeout):
                break
            requeued = True
            now = monotonic()
        conn = slot.conn
        slot.conn = None
        slot.holder = weakref.proxy(me)
        if owner.track:
            slot.where = traceback.StackSummary.extract(
                traceback.walk_stack(sys._getframe(1)), lookup_lines=False
            )
        if listening and "connection_checked_out" in listening:
            event = events.ConnectionCheckedOut(
                owner, conn, monotonic() - began, endpoint=bucket.endpoint
            )
            try:
                self.notify(owner, "connection_checked_out", event)
            except BaseException:
                self.checkin(owner, slot, conn)
                raise
        return slot, conn

    def _wait(
        self,
        owner: PoolHooks,
        waiter: Waiter,
        began: float,
        now: float,
        timeout: float | None,
        requeued: bool,
    ) -> Slot:
        """Stand in line until there is a slot."""
        bucket, deadline = waiter.bucket, waiter.deadline
        if bucket.closed:
            raise PoolClosed(f"pool {bucket.name!r} is closed", pool=bucket.name)
        if deadline is not None and deadline <= now:
            self._time_out(owner, bucket, began, timeout)
        if owner.max_waiting is not None and len(bucket.waiters) >= owner.max_waiting:
            bucket.refused += 1
            raise PoolFull(
                f"pool {bucket.name!r}: {len(bucket.waiters)} callers are waiting already"
                f" ({bucket!r})",
                pool=bucket.name,
                max_waiting=owner.max_waiting,
            )
        self.scheduler.enqueue(waiter, now, requeued)
        if deadline is not None and (
            deadline < self._deadline_timer_at or self._deadline_timer_is_idle
        ):
            self._set_deadline_timer(deadline)
        if bucket.retry_timer is not None:
            bucket.retry_timer.ref = True
        if bucket.checking and waiter.slot is None:
            self._shorten_checks(bucket)
        switch = self.hub.switch
        try:
            # Only ``wake`` passes the waiter; another's switch may come before it.
            while switch() is not waiter:
                pass
        except BaseException:
            # It may have been served in this very loop pass (50 of 50 times, with 5 ms of callbacks
            # queued before its wake-up): look, rather than trust how the wait ended.
            if waiter.wake_handle is not None:
                waiter.wake_handle.stop()
            bucket.abandoned += 1
            self.scheduler.cancel(waiter, monotonic())
            self._relax_deadline_timer()
            raise
        if not self.scheduler.with_waiters:
            self._relax_deadline_timer()
        slot: Slot | None = waiter.slot
        if slot is not None:
            waited = slot.since - began
            bucket.wait_count += 1
            bucket.wait_sum += waited
            if waited > bucket.wait_max:
                bucket.wait_max = waited
            return slot
        if bucket.closed:
            raise PoolClosed(f"pool {bucket.name!r} is closed", pool=bucket.name)
        if waiter.error is not None:
            raise waiter.error
        self._time_out(owner, bucket, began, timeout)

    def _time_out(
        self, owner: PoolHooks, bucket: Bucket, began: float, timeout: float | None
    ) -> NoReturn:
        """Raise the PoolTimeout of a caller that began to wait at *began*."""
        bucket.timed_out += 1
        now = monotonic()
        held_for = sorted((now - s.since for s in bucket.slots if s.state is IN_USE), reverse=True)
        in_use, idle, connecting = bucket.in_use, bucket.idle, bucket.connecting
        text = (
            f"pool {bucket.name!r}: no connection came free in {timeout} s ({in_use} in use,"
            f" {idle} idle, {connecting} connecting, {len(bucket.waiters)} waiting)"
        )
        if held_for:
            text += f"; held for up to {held_for[0]:.3f} s"
        if bucket.last_error is not None:
            text += f"; last dial: {type(bucket.last_error).__name__}: {bucket.last_error}"
        error = PoolTimeout(
            text,
            pool=bucket.name,
            timeout=timeout,
            in_use=in_use,
            idle=idle,
            connecting=connecting,
            waiting=len(bucket.waiters),
            held_for=held_for,
        )
        if "acquire_timed_out" in owner.listening:
            event = events.AcquireTimedOut(owner, now - began, error, endpoint=bucket.endpoint)
            self.notify(owner, "acquire_timed_out", event)
        raise error from bucket.last_error

    def _passes_checks(
        self,
        owner: PoolHooks,
        slot: Slot,
        began: float,
        deadline: float | None,
        timeout: float | None,
    ) -> bool:
        """Whether the slot just given to this caller is fit to be handed out; if not, it is gone.

        The one probe per cycle, in the greenlet of the caller: the hub's state cannot change
        between it and the hand-out.
        """
        if slot.state is not IN_USE:
            return False  # handed over in the very loop pass of a fork: it is the parent's
        reason = self._reason_to_close(owner, slot)
        if reason is not None:
            self._discard(slot, slot.conn, reason)
            return False
        if owner.check_after is None or slot.idled <= owner.check_after:
            return True
        bound = owner.keepalive_timeout
        if deadline is not None:
            bound = min(bound, deadline - monotonic())
        if bound <= 0:
            self.scheduler.return_unused(slot, monotonic())
            self._time_out(owner, slot.bucket, began, timeout)
        return self._answers(owner, slot, bound)

    def _reason_to_close(self, owner: PoolHooks, slot: Slot) -> Reason | None:
        """Why a slot must not be handed out, as far as can be told without asking the server."""
        if slot.close_reason is not None:
            return slot.close_reason
        if owner.has_is_alive:
            conn = slot.conn
            try:
                alive = owner._is_alive(*slot.bucket.key, conn)
            except BaseException as exc:
                self._discard(slot, conn, Reason.DEAD, exc)
                if not isinstance(exc, Exception):
                    raise
                self._log(owner, logging.WARNING, "_is_alive raised %r", exc)
                return Reason.DEAD
            return None if alive else Reason.DEAD
        if slot.uses > 1:
            return self._probe_reason(slot)
        # No caller has used it yet, so what lies unread is a server's greeting.  A hang-up is not,
        # and the hub may not have run since.
        self.hangups.poll()
        return slot.close_reason

    def _probe_reason(self, slot: Slot) -> Reason | None:
        """Why the connection must not be used again, as far as a probe can tell, or None."""
        if slot.why_unusable is None or not slot.why_unusable():
            return None
        self.hangups.poll()  # a hang-up looks like unread bytes; the hub may not have run since
        return slot.close_reason or Reason.UNREAD

    def _answers(self, owner: PoolHooks, slot: Slot, bound: float) -> bool:
        """Whether the server answers within *bound* seconds; if not, the slot is gone."""
        conn = slot.conn
        timer = gevent.Timeout.start_new(bound)
        try:
            owner._keepalive(*slot.bucket.key, conn)
        except BaseException as exc:
            self._discard(slot, conn, Reason.KEEPALIVE, exc)
            if exc is not timer and not isinstance(exc, Exception):
                raise
            self._log(owner, logging.INFO, "the check before hand-out failed: %r", exc)
            return False
        finally:
            timer.close()
        slot.checked_at = monotonic()
        if slot.close_reason is not None:
            self._discard(slot, conn, slot.close_reason)
            return False
        return True

    def checkin(self, owner: PoolHooks, slot: Slot, conn: Any, suspect: bool = False) -> None:
        """Take back a connection that its holder thinks fit for use.

        *suspect*: an exception left the ``with``, so look closer.
        """
        self.assert_usable_here(slot.bucket)
        bucket = slot.bucket
        back_at = now = monotonic()
        if owner.has_reset and slot.close_reason is None and not bucket.closed:
            try:
                owner._reset_connection(*bucket.key, conn)
            except BaseException as exc:
                if slot.state is IN_USE:
                    self._count_lost_use(slot)
                self._discard(slot, conn, Reason.RESET, exc)
                if not isinstance(exc, Exception):
                    raise
                self._log(owner, logging.WARNING, "_reset_connection raised %r", exc)
                return
            if slot.state is not IN_USE:
                return  # closed by force meanwhile
            now = monotonic()
        used = _count_use(slot, back_at)
        if suspect:
            if slot.why_unusable is None and slot.fd is not None:
                # No socket we know, but from now on it must be quiet too.
                slot.why_unusable = owner._make_descriptor_probe(slot.fd)
            reason = self._probe_reason(slot)
            if reason is not None:
                bucket.lost_uses += 1
                self._discard(slot, conn, reason)
                return
        elif slot.unverified:
            self.scheduler.verified(slot)
        slot.conn = conn
        slot.holder = slot.where = None
        self.scheduler.release(slot, now)
        if "connection_checked_in" in owner.listening and slot.state in (IDLE, IN_USE):
            event = events.ConnectionCheckedIn(owner, conn, used, endpoint=bucket.endpoint)
            self.notify(owner, "connection_checked_in", event)

    def discard(
        self,
        owner: PoolHooks,
        slot: Slot,
        conn: Any,
        reason: Reason,
        error: BaseException | None = None,
    ) -> None:
        """Take back a connection that must not be used again."""
        self.assert_usable_here(slot.bucket)
        self._count_lost_use(slot)
        self._discard(slot, conn, reason, error)
        if error is not None and "connection_failed" in owner.listening:
            endpoint = slot.bucket.endpoint
            event = events.ConnectionFailed(owner, error, conn, endpoint=endpoint)
            self.notify(owner, "connection_failed", event)

    def _discard(
        self, slot: Slot, conn: Any, reason: Reason, error: BaseException | None = None
    ) -> None:
        if slot.state is not IN_USE:
            return
        slot.conn = conn
        slot.holder = slot.where = None
        slot.error = error
        self.scheduler.discard(slot, reason, monotonic())

    def _count_lost_use(self, slot: Slot) -> None:
        """Book the end of a use after which the connection is not the pool's any more."""
        slot.bucket.lost_uses += 1
        _count_use(slot, monotonic())

    def detach(self, owner: PoolHooks, slot: Slot) -> None:
        """Let the holder keep the connection: it is not the pool's any more."""
        self.assert_usable_here(slot.bucket)
        conn = slot.ref()
        self._count_lost_use(slot)
        self._forget(owner, slot)
        self.scheduler.detach(slot, Reason.DETACHED, monotonic())
        self._changed(slot.bucket)
        self._notify_disposed(owner, slot.bucket, conn, Reason.DETACHED)

    def find(self, owner: PoolHooks, conn: Any) -> Slot:
        """The slot of *conn*, which the caller has; NotInUse if there is none.

        It is CLOSED if the caller has had it since before a fork: it is the parent's.
        """
        slot = owner.slots_by_id.get(id(conn))
        if slot is not None and _has_out(slot, conn):
            return slot
        self.assert_usable_here(owner)
        # The same object may stand in several slots, if _new_connection returns it twice; and a
        # tuple may have been taken apart and put together again.
        slots = [slot for bucket in owner._all_buckets() for slot in bucket.slots]
        for slot in (*slots, *owner.slots_by_id.values()):
            if _has_out(slot, conn):
                self._forget_id(owner, slot)
                slot.ident = id(conn)
                owner.slots_by_id[slot.ident] = slot
                return slot
        raise NotInUse(
            f"pool {owner.name!r}: {conn!r} is not in use here: released twice, or not ours",
            pool=owner.name,
            connection=conn,
        )

    # Verbs of the whole pool

    def fill(self, owner: PoolHooks, bucket: Bucket, timeout: float | None) -> None:
        """Wait until *bucket* has all its connections open."""
        self.assert_usable_here(bucket)
        began = monotonic()
        deadline = None if timeout is None else began + timeout
        failed = bucket.dial_failed
        bucket.filling += 1
        try:
            self.scheduler.reconcile(bucket, began)
            while bucket.open < max(bucket.size, bucket.min_size):
                if bucket.closed:
                    raise PoolClosed(f"pool {bucket.name!r} is closed", pool=bucket.name)
                if bucket.fail_fast and bucket.dial_failed > failed and bucket.last_error:
                    raise copy_of(bucket.last_error)
                if not self._wait_for_change(bucket, deadline):
                    raise PoolTimeout(
                        f"pool {bucket.name!r}: {bucket.open} of {bucket.size} connections are"
                        f" open after {timeout} s ({bucket!r})",
                        pool=bucket.name,
                        timeout=timeout,
                        in_use=bucket.in_use,
                        idle=bucket.idle,
                        connecting=bucket.connecting,
                        waiting=len(bucket.waiters),
                    ) from bucket.last_error
        finally:
            bucket.filling -= 1

    def resize(
        self, bucket: Bucket, size: int, min_size: int, max_overflow: float | None = None
    ) -> None:
        """Set how many connections to keep, and how many more there may be (None: as before)."""
        self.assert_usable_here(bucket)
        self.scheduler.resize(bucket, size, min_size, monotonic(), max_overflow)

    def drain(self, bucket: Bucket, over: float) -> None:
        """Have every connection opened so far replaced within *over* seconds."""
        self.assert_usable_here(bucket)
        if not bucket.closed:
            self.scheduler.drain(bucket, over, monotonic())
            self._schedule_maintenance(bucket, monotonic())

    def dispose(self, owner: PoolHooks, buckets: Sequence[Bucket]) -> None:
        """Close what lies idle."""
        self.assert_usable_here(owner)
        for bucket in buckets:
            self.scheduler.dispose(bucket, Reason.DISPOSED, monotonic())
        self.notify(owner, "pool_disposed", events.PoolDisposed(owner, closed=False))

    def close(self, owner: PoolHooks, buckets: Sequence[Bucket], timeout: float | None) -> None:
        """Close all the *buckets* of a pool for good and wait for the last connection to go."""
        self.assert_usable_here(owner)
        deadline = None if timeout is None else monotonic() + timeout
        first = not owner.closed
        owner.closed = True
        for bucket in buckets:
            self.shut(bucket)
        if first:
            self.notify(owner, "pool_disposed", events.PoolDisposed(owner, closed=True))
        while (late := self._not_gone(buckets)) is not None:
            if not self._wait_for_change(late, deadline):
                break
        else:
            return
        for slot in [slot for bucket in buckets for slot in bucket.slots]:
            if slot.state is IN_USE and slot.conn is None and (conn := slot.ref()) is not None:
                self._count_lost_use(slot)
                self._discard(slot, conn, Reason.POOL_CLOSED)
        deadline = monotonic() + CLOSE_TIMEOUT
        while (late := self._not_gone(buckets)) is not None:
            if not self._wait_for_change(late, deadline):
                break

    def _not_gone(self, buckets: Sequence[Bucket]) -> Bucket | None:
        """One that has a slot left that does not wait for this very greenlet to go on."""
        me = getcurrent()
        mine = {self.dialers.active.get(me)}
        mine.update(group.active.get(me, (None,))[0] for group in (self.closers, self.checkers))
        for bucket in buckets:
            for slot in bucket.slots:
                if slot not in mine and not (slot.state is IN_USE and _holder_of(slot) is me):
                    return bucket
        return None

    def _wait_for_change(self, bucket: Bucket, deadline: float | None) -> bool:
        """Wait until a slot of *bucket* was opened or closed; False once *deadline* is past."""
        remaining = None if deadline is None else deadline - monotonic()
        if remaining is not None and remaining <= 0:
            return False
        if bucket.changed is None:
            bucket.changed = Event()
        bucket.changed.clear()
        if bucket.retry_timer is not None:
            bucket.retry_timer.ref = True
        bucket.changed.wait(remaining)
        return True

    def _changed(self, bucket: Bucket) -> None:
        if bucket.changed is not None:
            bucket.changed.set()
        if bucket.kept_hooks is not None and not bucket.slots:
            bucket.kept_hooks = None
        if bucket.transient and not bucket.slots:
            self.forget_if_empty(bucket)

    # What the scheduler asks for

    def start_dial(self, slot: Slot) -> None:
        """Have a greenlet dial."""
        self.dialers.put(slot)

    def start_close(self, slot: Slot, reason: Reason) -> None:
        """Have a greenlet close the connection, alive or not."""
        bucket = slot.bucket
        owner = _last_owner(bucket)
        self._forget(owner, slot)
        if reason in _RECYCLED and owner is not None and "connection_recycled" in owner.listening:
            # Told by the dial that replaces it, the next one or the one that has just succeeded;
            # what an elastic pool has beyond its minimum is not replaced.
            if bucket.open <= bucket.effective_min_size > 0:
                bucket.recycled.append(slot.conn)
        self.closers.put((slot, reason, owner))

    def start_check(self, slot: Slot) -> None:
        """Have a greenlet run the keepalive."""
        self.checkers.put((slot, slot.bucket.owner()))

    def reconcile_later(self, bucket: Bucket) -> None:
        """Look at *bucket* again when its back-off is over."""
        if bucket.retry_timer is not None:
            bucket.retry_timer.stop()
        bucket.retry_timer = Timer(
            self.loop,
            bucket.retry_at,
            self._retry_now,
            bucket,
            ref=bool(bucket.waiters or bucket.filling),
        )

    def _retry_now(self, bucket: Bucket) -> None:
        bucket.retry_timer = None
        self.scheduler.reconcile(bucket, monotonic())
        self.forget_if_empty(bucket)

    def reconcile_limit_later(self, limit: Limit) -> None:
        """Reconcile what *limit* touches, soon."""
        self.loop.run_callback_threadsafe(self._reconcile_limit, limit)

    def _reconcile_limit(self, limit: Limit) -> None:
        self.scheduler.reconcile_limit(limit, monotonic())

    # Deadlines of waiters: one timer for all of them

    def _set_deadline_timer(self, deadline: float) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer_is_idle = False
            if deadline >= self._deadline_timer_at:
                self._deadline_timer.ref = True  # it fires early enough, only no waiter had cared
                return
            self._deadline_timer.stop()
        self._deadline_timer = Timer(self.loop, deadline, self._fire)
        self._deadline_timer_at = deadline

    def _fire(self) -> None:
        self._deadline_timer_at = NEVER
        self._deadline_timer = None
        self._deadline_timer_is_idle = False
        self.scheduler.expire(monotonic())
        deadline = self.scheduler.next_deadline()
        if deadline is not None:
            self._set_deadline_timer(deadline)

    def _relax_deadline_timer(self) -> None:
        """Do not let the timer of a wait that is over keep the program alive."""
        if self._deadline_timer is not None and not self.scheduler.with_waiters:
            self._deadline_timer.ref = False
            self._deadline_timer_is_idle = True

    # Dialing

    def _dial(self, slot: Slot) -> None:
        bucket = slot.bucket
        owner = bucket.owner()
        began = monotonic()
        if owner is None:
            self.shut(bucket)  # collected just now: its _close_orphans is on the way
        if owner is None or not self.scheduler.wanted(slot):
            self.scheduler.cancel_dial(slot, began)
            self._changed(bucket)
            return
        slot.since = began
        bucket.dialed += 1
        conn, error = None, None
        timer = gevent.Timeout.start_new(owner.connect_timeout)
        try:
            conn = owner._new_connection(*bucket.key)
            if conn is None:
                raise ConnectError(f"pool {bucket.name!r}: _new_connection returned None")
        except BaseException as exc:
            error = exc
        finally:
            timer.close()
        if error is not None:
            self._dial_failed(owner, slot, error, error is timer)
            return
        now = monotonic()
        if slot.state is not CONNECTING:
            return  # a fork left this dial behind
        seconds = now - began
        bucket.connect_count += 1
        bucket.connect_sum += seconds
        if seconds > bucket.connect_max:
            bucket.connect_max = seconds
        trouble = self._register(owner, slot, conn)
        quiet = "connection_created" not in owner.listening
        if quiet and trouble is None and not bucket.recycled:
            self.dialers.polling = 1  # this greenlet dials the next one itself
        try:
            self.scheduler.opened(slot, now)
        finally:
            self.dialers.polling = 0
        self._changed(bucket)
        if trouble is not None:
            self._log(owner, logging.WARNING, "_fileno raised %r", trouble)
        if not quiet:
            created = events.ConnectionCreated(owner, conn, seconds, endpoint=bucket.endpoint)
            self.notify(owner, "connection_created", created)
        if bucket.recycled:
            old = bucket.recycled.popleft()
            recycled = events.ConnectionRecycled(owner, old, conn, endpoint=bucket.endpoint)
            self.notify(owner, "connection_recycled", recycled)

    def _dial_failed(
        self, owner: PoolHooks, slot: Slot, error: BaseException, timed_out: bool
    ) -> None:
        """Book a failed dial; raises *error* again if it was meant for the greenlet."""
        bucket = slot.bucket
        # A gevent.Timeout that the hook let out is a failed dial like any other; a kill of this
        # greenlet, or an interrupt of the program, is meant.
        meant = not isinstance(error, (Exception, gevent.Timeout))
        trace = error.__traceback__
        if timed_out:
            # SocketFactory leaves word of what the time was spent on.
            cause = error.__cause__
            error = ConnectError(
                f"pool {bucket.name!r}: a dial took longer than connect_timeout"
                f" ({owner.connect_timeout} s)" + (f": {cause}" if cause is not None else "")
            )
            error.__cause__ = cause
        elif isinstance(error, gevent.Timeout):
            cause = error
            error = ConnectError(f"pool {bucket.name!r}: a dial ended in its own Timeout: {cause}")
            error.__cause__ = cause
        forget_frames(error)
        news = slot.state is CONNECTING and not bucket.closed
        first = bucket.last_error is None
        self.scheduler.dial_failed(slot, error, monotonic())
        self._changed(bucket)
        if news:
            # Where no caller waits for the end of a back-off, each is told of the error itself.
            first = first and not bucket.fail_when_down
            level = logging.WARNING if first else logging.DEBUG
            # Of a refused connection all is said; of an error in the hook, the log says where.
            where = not isinstance(error, OSError) and (type(error), error, trace)
            self._log(owner, level, "a dial failed: %r", error, exc_info=where)
            if "connection_failed" in owner.listening:
                event = events.ConnectionFailed(owner, error, endpoint=bucket.endpoint)
                self.notify(owner, "connection_failed", event)
        if meant:
            del trace  # this frame outlives the call, in the traceback of what is raised
            raise error

    def _register(self, owner: PoolHooks, slot: Slot, conn: Any) -> Exception | None:
        """Make *conn* the connection of *slot*, and have it watched.

        Returns what _fileno raised: to log it could switch, and the dial is not booked yet.
        """
        trouble = None
        slot.conn = conn
        slot.ident = id(conn)
        owner.slots_by_id[slot.ident] = slot
        slot.ref = connection_ref(slot, conn, self._when_collected)
        try:
            fd = owner._fileno(*slot.bucket.key, conn)
            if fd is not None and not (isinstance(fd, int) and fd >= 0):
                raise ValueError(f"no file descriptor: {fd!r}")
            slot.fd = fd
            if fd is not None and not owner._is_socket(conn):
                slot.identity = identity_of(fd)
            if not owner.has_is_alive:
                slot.why_unusable = owner._make_probe(conn)
            if fd is not None and not self.hangups.watch(fd, slot):
                if self.hangups.unsupported and slot.why_unusable is None:
                    slot.why_unusable = owner._make_descriptor_probe(fd)  # at each hand-out instead
        except Exception as exc:
            slot.fd = slot.why_unusable = None
            trouble = exc
        return trouble

    def _forget(self, owner: PoolHooks | None, slot: Slot) -> None:
        """Undo ``_register``, before the connection is closed or let go."""
        if slot.fd is not None:
            self.hangups.unwatch(slot.fd, slot)
            slot.fd = None
        slot.why_unusable = None
        if owner is not None:
            self._forget_id(owner, slot)

    def _forget_id(self, owner: PoolHooks, slot: Slot) -> None:
        if owner.slots_by_id.get(slot.ident) is slot:
            del owner.slots_by_id[slot.ident]

    # Closing

    def _close(self, item: tuple[Slot, Reason, PoolHooks | None]) -> None:
        slot, reason, owner = item
        bucket, conn, error = slot.bucket, slot.conn, slot.error
        raised: BaseException | None = None
        if owner is not None:
            timer = gevent.Timeout.start_new(CLOSE_TIMEOUT)
            try:
                owner._close_connection(*bucket.key, conn)
            except BaseException as exc:
                raised = exc
                if not isinstance(exc, (Exception, gevent.Timeout)):
                    raise
            finally:
                timer.close()
                self._closed(owner, slot, reason, conn)
        else:
            self._closed(None, slot, reason, conn)
        if owner is not None:
            self._log(owner, logging.DEBUG, "closed a connection: %s", reason)
            if raised is not None:
                self._log(owner, logging.DEBUG, "_close_connection raised %r", raised)
            self._notify_disposed(owner, bucket, conn, reason, error)

    def _notify_disposed(
        self,
        owner: PoolHooks,
        bucket: Bucket,
        conn: Any,
        reason: Reason,
        error: BaseException | None = None,
    ) -> None:
        if "connection_disposed" in owner.listening:
            event = events.ConnectionDisposed(owner, conn, reason, error, endpoint=bucket.endpoint)
            self.notify(owner, "connection_disposed", event)

    def _closed(self, owner: PoolHooks | None, slot: Slot, reason: Reason, conn: Any) -> None:
        bucket = slot.bucket
        slot.conn = slot.error = None
        self.scheduler.closed(slot, monotonic())
        self._changed(bucket)

    # Checking

    def _check(self, item: tuple[Slot, PoolHooks | None]) -> None:
        slot, owner = item
        bucket = slot.bucket
        if slot.state is not CHECKING:
            return
        # None: collected just now, its _close_orphans is on the way
        if bucket.closed or owner is None:
            self.scheduler.checked(slot, False, monotonic())
            return
        ok = False
        raised: BaseException | None = None
        timer = gevent.Timeout.start_new(owner.keepalive_timeout)
        slot.checked_at = monotonic()
        try:
            owner._keepalive(*bucket.key, slot.conn)
            ok = True
        except BaseException as exc:
            raised = exc
            if exc is not timer and not isinstance(exc, (Exception, gevent.Timeout)):
                raise
        finally:
            timer.close()
            bucket.checked += 1
            slot.error = raised
            self.scheduler.checked(slot, ok, monotonic())
        if raised is not None:
            self._log(owner, logging.INFO, "a keepalive failed: %r", raised)

    def _shorten_checks(self, bucket: Bucket) -> None:
        """A caller waits, and only connections that are being checked are left: give the checks no
        longer than twice what a dial takes, so that it does not wait for a hung peer."""
        if bucket.shorten_timer is not None or bucket.connecting:
            return
        max_wait = 0.05
        if bucket.connect_count:
            max_wait = max(max_wait, 2 * bucket.connect_sum / bucket.connect_count)
        begun = min(s.checked_at for s in bucket.slots if s.state is CHECKING)
        bucket.shorten_timer = Timer(self.loop, begun + max_wait, self._end_checks, bucket)

    def _end_checks(self, bucket: Bucket) -> None:
        bucket.shorten_timer = None
        now = monotonic()
        needed = bucket.unserved
        for greenlet, item in list(self.checkers.active.items()):
            slot = item[0] if item is not None else None
            if needed and slot is not None and slot.bucket is bucket and slot.state is CHECKING:
                needed -= 1
                error = ConnectError(
                    f"pool {bucket.name!r}: a keepalive was still unanswered after"
                    f" {now - slot.checked_at:.3f} s, and a caller was waiting"
                )
                greenlet.throw(error)  # now, as later it might be at the next check

    # Keepalive and reaper greenlets

    def _schedule_maintenance(self, bucket: Bucket, drained_at: float | None = None) -> None:
        """Have the keepalive and the reaper of its pool look after *bucket*, as far as it needs
        them; if it is being drained, the reaper at that time."""
        owner = bucket.owner()
        if bucket.closed or owner is None:
            return
        if owner.maintenance is None:
            owner.maintenance = (
                MaintenanceLoop(self._keep_alive, owner.keepalive or NEVER),
                MaintenanceLoop(self._reap, NEVER),
            )
        bucket.maintenance = owner.maintenance
        keepalive, reaper = owner.maintenance
        spans = [bucket.idle_timeout, bucket.max_lifetime]
        # Nothing opened later is due before that (with full jitter: hardly anything).
        shortest = min((span for span in spans if span is not None), default=NEVER)
        reaper.longest = min(reaper.longest, shortest * max(0.01, 1.0 - bucket.jitter))
        now = monotonic()
        if drained_at is not None:
            reaper.add(bucket, drained_at)
            return
        reaper.add(bucket, now + reaper.longest)
        if bucket.has_keepalive:
            keepalive.add(bucket, now + keepalive.longest)

    def _stop_maintenance(self, bucket: Bucket) -> None:
        """Have nothing look after *bucket* any more, which is closed or empty."""
        for each in bucket.maintenance:
            each.discard(bucket)

    def _keep_alive(self, bucket: Bucket, now: float, longest: float) -> float:
        again = self.scheduler.start_checks(bucket, longest, now)
        return max(again, now + longest / 100, monotonic() + _BREAK)

    def _reap(self, bucket: Bucket, now: float, longest: float) -> float:
        again = self.scheduler.reap(bucket, now)
        return max(min(again, now + longest), monotonic() + _BREAK)

    # News from outside: the hub tells, so nothing here may switch

    def _peer_closed(self, slot: Slot) -> None:
        bucket = slot.bucket
        if slot.close_reason is None and slot.state is not CLOSED:
            owner = bucket.owner()
            in_use = slot.state is IN_USE
            conn = slot.ref()
            if owner is not None and "peer_closed" in owner.listening:
                event = events.PeerClosed(owner, conn, in_use, endpoint=bucket.endpoint)
                self.notifiers.put((owner, "peer_closed", event))
            self.scheduler.peer_closed(slot, monotonic())

    def _collected(self, ref: Any) -> None:
        """A connection was garbage collected.  This may run anywhere: only take a note."""
        slot = ref.slot
        if slot.state is IN_USE and slot.conn is None and not self._hub_is_dead():
            self._lost.append(slot)
            self.loop.run_callback_threadsafe(self._take_back_lost)

    def _take_back_lost(self) -> None:
        while self._lost:
            slot = self._lost.popleft()
            if slot.state is not IN_USE or slot.ref() is not None or slot.conn is not None:
                continue
            bucket = slot.bucket
            owner = bucket.owner()
            now = monotonic()
            used = now - slot.since
            self._forget(owner, slot)
            self.scheduler.detach(slot, Reason.LOST, now)
            self._changed(bucket)
            if owner is not None:
                event = events.ConnectionLost(owner, used, _where(slot), endpoint=bucket.endpoint)
                self.notifiers.put((owner, "connection_lost", event))

    def _notify_later(self, item: tuple[PoolHooks, str, Any]) -> None:
        owner, what, event = item
        if what == "connection_lost":
            self._log(
                owner,
                logging.WARNING,
                "a connection was never released and has been garbage collected, %.3f s after it"
                " was acquired%s",
                event.used,
                f" at\n{event.where}" if event.where else " (track=True tells where)",
            )
        self.notify(owner, what, event)

    # Listeners and the log: whatever they raise, the pool is whole

    def notify(self, owner: PoolHooks, what: str, event: Any) -> None:
        """Notify the listeners of *owner*; what they raise is logged."""
        for listener in owner.listening.get(what, ()):
            try:
                listener(event)
            except Exception:
                self._log(owner, logging.ERROR, "%r failed", listener, exc_info=True)

    def _log(
        self, owner: PoolHooks, level: int, text: str, *args: Any, exc_info: Any = None
    ) -> None:
        if owner.log.isEnabledFor(level):
            log_safely(owner.log, level, "pool %r: " + text, owner.name, *args, exc_info=exc_info)

    # Fork

    def forked(self) -> None:
        """In a child: let go of everything that is the parent's, closing nothing.

        Runs inside fork, so it only drops references and leaves the rest to the child's hub, if it
        ever runs.  Greenlets of the parent that dialed, checked or closed live on here as copies:
        they are killed before they touch the parent's sockets again.  Callers that wait keep their
        place: the child's own connections serve them.
        """
        if self._hub_is_dead():
            return  # that of a thread that has ended: nothing of it runs, and its timers are gone
        self.hangups.abandon()
        for bucket in list(self.buckets):
            _leave_to_parent(bucket)
        groups = (self.dialers, self.closers, self.checkers, self.notifiers)
        strays = [greenlet for group in groups for greenlet in group.active]
        for group in groups:
            group.queue.clear()
        self._make_worker_groups()
        for bucket in list(self.buckets):
            owner = bucket.owner()
            for slot in bucket.slots:
                slot.forked = True
                slot.error = None
                if owner is not None and slot.state is not IN_USE:
                    owner.slots_by_id.pop(slot.ident, None)
            with warnings.catch_warnings():
                # Copies of the parent's sockets, closed here by the collector: as they should be.
                warnings.simplefilter("ignore", ResourceWarning)
                self.scheduler.forget_all(bucket)
            bucket.reset_counters()
            if bucket.retry_timer is not None:
                bucket.retry_timer.stop()
                bucket.retry_timer = None
            bucket.recycled.clear()
            self.forget_if_empty(bucket)
        if get_ident() == self.ident:
            # As gevent's own fork does.  After a raw one the hub would sleep on the parent's epoll,
            # and the first look-up of a name wait for threads that are not here.
            gevent.reinit(self.hub)
        leave_behind(strays)
        self.loop.run_callback(self._revive)

    def _revive(self) -> None:
        for bucket in list(self.buckets):
            self.scheduler.reconcile(bucket, monotonic())

    # Looking

    def holders(self, buckets: Sequence[Bucket]) -> tuple[Holder, ...]:
        """Who has what, the longest first."""
        now = monotonic()
        found = []
        # Copies: other threads may look, too.
        for slot in [slot for bucket in buckets for slot in list(bucket.slots)]:
            if slot.state is not IN_USE or slot.conn is not None:
                continue
            greenlet = _holder_of(slot)
            age = now - slot.since
            where, stack = _where(slot), _stack_of(greenlet)
            endpoint = slot.bucket.endpoint
            found.append(Holder(slot.ref(), greenlet, age, where, stack, endpoint))
        return tuple(sorted(found, key=lambda holder: -holder.age))


def _last_owner(bucket: Bucket) -> Any:
    """The pool, even if it has been collected and its connections wait to be closed; or None."""
    owner = bucket.owner()
    return bucket.kept_hooks if owner is None else owner


def _leave_to_parent(bucket: Bucket) -> None:
    """In a child: keep its copies of the parent's connections from ever saying anything.

    Sockets may be dropped: that closes the child's descriptor, and no more.  One that is being
    checked is not: the copy of that check is about to be ended, and may have last words.
    """
    owner = _last_owner(bucket)
    for slot in bucket.slots:
        conn = slot.conn
        if conn is None and slot.ref is not None:
            conn = slot.ref()  # a caller has it
        if conn is None:
            continue
        if slot.state is CHECKING and slot.identity is None and slot.fd is not None:
            slot.identity = identity_of(slot.fd)
        if slot.identity is not None or owner is None or not owner._is_socket(conn):
            leave_to_parent(conn, slot.fd, slot.identity)


def _has_out(slot: Slot, conn: Any) -> bool:
    """Whether a caller has *conn* of *slot*; perhaps since before a fork, as a copy."""
    if slot.state is IN_USE:
        return slot.conn is None and slot.ref.is_for(conn)
    return slot.state is CLOSED and slot.forked and slot.ref.is_for(conn)


def _count_use(slot: Slot, now: float) -> float:
    """Book the end of a use; returns how long it was."""
    bucket = slot.bucket
    used = now - slot.since
    bucket.use_count += 1
    bucket.use_sum += used
    if used > bucket.use_max:
        bucket.use_max = used
    return used


def _holder_of(slot: Slot) -> Any:
    """The greenlet that holds it; None if that has been collected, or none does."""
    try:
        # The way from a proxy, which costs a third of a weakref.ref to make, to what it stands for.
        return None if slot.holder is None else slot.holder.switch.__self__
    except ReferenceError:
        return None


def _where(slot: Slot) -> str | None:
    """The stack that acquired it, outermost first; None if the pool does not track."""
    return None if slot.where is None else "".join(reversed(slot.where.format()))


def _stack_of(greenlet: Any) -> str | None:
    """Where *greenlet* is now; None if it has ended."""
    frame: FrameType | None
    if greenlet is getcurrent():
        frame = sys._getframe(2)
    else:
        frame = getattr(greenlet, "gr_frame", None)
    return None if frame is None else "".join(traceback.format_stack(frame))


_RECYCLED = frozenset({Reason.EXPIRED, Reason.WORN_OUT, Reason.DRAINED})
_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for runtime in list(_runtimes):
        runtime.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
