"""Opens connections, in greenlets of its own: a caller that leaves wastes no handshake."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import gevent
from gevent import GreenletExit, getcurrent

from geventpool import events
from geventpool._runtime.closer import Closer
from geventpool._runtime.connections import Carrier, ConnectionIndex, describe
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.slots import ConnectionSlot, FailingDials, PoolBucket
from geventpool._runtime.workers import WorkerGroup
from geventpool._scheduler.state import CONNECTING
from geventpool._util.errors import forget_frames, text_of
from geventpool.errors import ConnectError, Verdict

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["Dialer"]

# Said once of a pool.
_BLIND = (
    "no socket was found in its connections (%s), so one that is dead, or has an answer unread,"
    " cannot be told from a good one.  Override _socket(conn), to return what carries the bytes"
    " (None: nothing does), or _is_alive(conn)"
)

_BACK = (
    "%sdials succeed again, %.1f s after the first that failed; %d dials failed, and %d callers got"
    " no connection meanwhile"
)

#: A connection, how it is to be watched, and what the hook raised that was asked for that.
Opened: TypeAlias = tuple[Any, Carrier, "Exception | None"]
_UNWATCHED = Carrier()


class Failed(NamedTuple):
    """What a hook raised, and the connection if there was one already."""

    error: BaseException
    timed_out: bool
    conn: Any


class Dialer:
    """Carries out the dials that the scheduler wants."""

    def __init__(
        self, runtime: Runtime, index: ConnectionIndex, closer: Closer, notifier: Notifier
    ) -> None:
        self._runtime = runtime
        self._scheduler = runtime.scheduler
        self._index = index
        self._closer = closer
        self._notifier = notifier
        self.make_workers()

    def make_workers(self) -> None:
        """Begin with none, as in a forked child."""
        self.workers = WorkerGroup(self._dial)

    def stop(self, bucket: PoolBucket) -> None:
        """End the dials of *bucket*, which was closed, a little later."""
        for greenlet, slot in list(self.workers.active.items()):
            if slot is not None and slot.bucket is bucket and greenlet is not getcurrent():
                self._runtime.loop.run_callback(self._stop_one, greenlet, slot)

    def _stop_one(self, greenlet: Any, slot: ConnectionSlot) -> None:
        # It may dial for another pool by now.
        if self.workers.active.get(greenlet) is slot and slot.state is CONNECTING:
            greenlet.throw(GreenletExit)

    def _dial(self, slot: ConnectionSlot) -> Callable[[], object] | None:
        bucket = slot.bucket
        owner = bucket.owner()
        began = monotonic()
        if owner is None:
            self._runtime.shut(bucket)  # collected just now: its _close_orphans is on the way
        if owner is None or not (self._scheduler.wanted(slot) and _may_dial(bucket)):
            self._scheduler.cancel_dial(slot, began)
            self._runtime.changed(bucket)
            return None
        bucket.dialed += 1
        found = self._open(owner, bucket)
        if isinstance(found, Failed):
            return self._failed(owner, slot, found)
        if slot.state is not CONNECTING:
            return None  # a fork left this dial behind
        return self._opened(owner, slot, found, began)

    def _open(self, owner: PoolHooks, bucket: PoolBucket) -> Opened | Failed:
        """Call all the hooks of a dial: whatever they do, it is one of the two."""
        conn = None
        timer = gevent.Timeout.start_new(owner.connect_timeout)
        try:
            conn = owner._new_connection(*bucket.key)
            if conn is None:
                raise ConnectError(f"pool {bucket.name!r}: _new_connection returned None")
            try:
                return conn, describe(owner, bucket, conn), None
            except Exception as trouble:
                return conn, _UNWATCHED, trouble
        except BaseException as exc:
            return Failed(exc, exc is timer, conn)
        finally:
            timer.close()

    def _opened(
        self, owner: PoolHooks, slot: ConnectionSlot, found: Opened, began: float
    ) -> Callable[[], object] | None:
        bucket, now = slot.bucket, monotonic()
        seconds = now - began
        bucket.count_connect(seconds)
        over, bucket.failing_dials = bucket.failing_dials, None
        if over is not None and (bucket.outage.on or bucket.fail_when_down):
            over = None  # of which another line tells
        conn, carrier, trouble = found
        self._index.register(owner, slot, conn, carrier)
        self.workers.polling = 1  # this greenlet dials the next one itself
        try:
            self._scheduler.opened(slot, now)
        finally:
            self.workers.polling = 0
        self._runtime.changed(bucket)
        hint = trouble is None and carrier.probe is None and owner._should_hint()
        if not (trouble or hint or over or owner.listening or bucket.recycled):
            return None
        back = None if over is None else _figures_of(bucket, over, now)
        return partial(self._say_opened, owner, bucket, found, seconds, hint, back)

    def _say_opened(
        self,
        owner: PoolHooks,
        bucket: PoolBucket,
        found: Opened,
        seconds: float,
        hint: bool,
        back: tuple[str, float, int, int] | None,
    ) -> None:
        conn, _, trouble = found
        endpoint = bucket.endpoint
        old = bucket.recycled.popleft() if bucket.recycled else None
        if back is not None:
            self._notifier.log(owner, logging.INFO, _BACK, *back)
        if trouble is not None:
            text = f"{owner.socket_hook} raised %r"
            self._notifier.log(owner, logging.WARNING, text, trouble)
        if hint:
            self._notifier.log(owner, logging.WARNING, _BLIND, type(conn).__name__)
        if "connection_created" in owner.listening:
            created = events.ConnectionCreated(owner, conn, seconds, endpoint=endpoint)
            self._notifier.notify(owner, "connection_created", created)
        if old is not None:
            recycled = events.ConnectionRecycled(owner, old, conn, endpoint=endpoint)
            self._notifier.notify(owner, "connection_recycled", recycled)

    def _failed(
        self, owner: PoolHooks, slot: ConnectionSlot, failed: Failed
    ) -> Callable[[], object] | None:
        """Book a failed dial; raises its error again if it was meant for the greenlet."""
        bucket, now = slot.bucket, monotonic()
        # A gevent.Timeout that the hook let out is a failed dial like any other; a kill of this
        # greenlet, or an interrupt of the program, is meant.
        meant = not isinstance(failed.error, (Exception, gevent.Timeout))
        # Of a refused connection all is said; of an error in the hook, the log says where.
        trace = None if isinstance(failed.error, OSError) else failed.error.__traceback__
        error = self._error_of(owner, bucket, failed)
        forget_frames(error)
        news = slot.state is CONNECTING and not bucket.closed
        # Where no caller waits for the end of a back-off, each is told of the error itself.
        first = bucket.failing_dials is None and not bucket.fail_when_down
        if bucket.failing_dials is None:
            bucket.failing_dials = FailingDials(now, bucket.dial_failed, bucket.turned_away)
        if not meant:
            bucket.note_failure(error)
        verdict = Verdict.BROKEN
        try:
            if failed.conn is not None and slot.state is CONNECTING:
                self._closer.hang_up(owner, bucket, failed.conn)
            verdict = owner._verdict_on_dial(error)
            if verdict is Verdict.SERVER_FULL:
                for limit in bucket.shared:
                    limit.server_full()
        finally:
            self._scheduler.dial_failed(slot, error, monotonic(), verdict)
            self._runtime.changed(bucket)
        first = first and verdict is not Verdict.FATAL  # of which another line tells
        words = partial(self._say_failed, owner, bucket, error, trace, first) if news else None
        if meant:
            if words is not None:
                words()
            del trace, words, failed  # this frame outlives the call, in the traceback of the error
            raise error
        return words

    def _error_of(self, owner: PoolHooks, bucket: PoolBucket, failed: Failed) -> BaseException:
        """What the callers are told of it."""
        error: BaseException = failed.error
        if failed.timed_out:
            # SocketFactory leaves word of what the time was spent on.
            cause = error.__cause__
            text = (
                f"pool {bucket.name!r}: a dial took longer than connect_timeout"
                f" ({owner.connect_timeout} s)"
            )
            error = ConnectError(text + (f": {text_of(cause)}" if cause is not None else ""))
        elif isinstance(error, gevent.Timeout):
            cause = error
            text = f"pool {bucket.name!r}: a dial ended in its own Timeout: {text_of(cause)}"
            error = ConnectError(text)
        else:
            return error
        error.__cause__ = cause
        return error

    def _say_failed(
        self, owner: PoolHooks, bucket: PoolBucket, error: BaseException, trace: Any, first: bool
    ) -> None:
        level = logging.WARNING if first else logging.DEBUG
        where = not isinstance(error, OSError) and (type(error), error, trace)
        self._notifier.log(owner, level, "a dial failed: %r", error, exc_info=where)
        if "connection_failed" in owner.listening:
            event = events.ConnectionFailed(owner, error, endpoint=bucket.endpoint)
            self._notifier.notify(owner, "connection_failed", event)


def _figures_of(bucket: PoolBucket, over: FailingDials, now: float) -> tuple[str, float, int, int]:
    """What is said of dials that have failed and succeed again."""
    where = "" if bucket.endpoint is None else f"{bucket.endpoint}: "
    failed, turned_away = bucket.dial_failed - over.failed, bucket.turned_away - over.turned_away
    return where, now - over.since, failed, turned_away


def _may_dial(bucket: PoolBucket) -> bool:
    return all(limit.may_dial() for limit in bucket.shared)
