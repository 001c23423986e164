"""Opens connections, in greenlets of its own: a caller that leaves wastes no handshake."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import gevent
from gevent import GreenletExit, getcurrent

from geventpool import events
from geventpool._runtime.closer import Closer
from geventpool._runtime.connections import Carrier, ConnectionIndex, describe
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.notifier import Notifier
from geventpool._runtime.outages import FailingDials
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._runtime.workers import WorkerGroup
from geventpool._scheduler.state import CONNECTING
from geventpool._util.clock import monotonic
from geventpool._util.errors import forget_frames, text_of, to_ms
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

# The two lines on an outage.
_BEGINS = "%sa dial failed: %r (the next line on this comes when one succeeds)"
_FATAL = "%sa dial failed, and callers are sent away until one succeeds: %r"
_ENDS = (
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
        conn, carrier, trouble = found
        self._index.register(owner, slot, conn, carrier)
        self.workers.polling = 1  # this greenlet dials the next one itself
        try:
            self._scheduler.opened(slot, now)
        finally:
            self.workers.polling = 0
        self._runtime.changed(bucket)
        over = owner.outages.ended(bucket.key)
        if owner._is_managed:
            over = None  # its manager tells of its servers
        hint = trouble is None and carrier.probe is None and owner._should_hint()
        if not (trouble or hint or over or owner.listening or bucket.recycled):
            return None
        return partial(self._say_opened, owner, bucket, found, began, now, hint, over)

    def _say_opened(
        self,
        owner: PoolHooks,
        bucket: PoolBucket,
        found: Opened,
        began: float,
        now: float,
        hint: bool,
        over: FailingDials | None,
    ) -> None:
        conn, _, trouble = found
        endpoint = bucket.endpoint
        old = bucket.recycled.popleft() if bucket.recycled else None
        if over is not None:
            figures = now - over.since, over.failed, over.turned_away
            self._notifier.log(owner, logging.INFO, _ENDS, _where(bucket), *figures)
        if trouble is not None:
            text = f"{owner.socket_hook} raised %r"
            self._notifier.log(owner, logging.WARNING, text, trouble)
        if hint:
            self._notifier.log(owner, logging.WARNING, _BLIND, type(conn).__name__)
        if "connection_created" in owner.listening:
            created = events.ConnectionCreated(owner, conn, now - began, endpoint=endpoint)
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
        first = news and owner.outages.dial_failed(bucket.key, now)
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
        words = None
        if first and not owner._is_managed:
            text = _FATAL if verdict is Verdict.FATAL else _BEGINS
            words = partial(self._say_failed, owner, bucket, error, text, trace)
        elif news and "connection_failed" in owner.listening:
            words = partial(self._notify_failed, owner, bucket, error)
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
                f" ({to_ms(owner.connect_timeout)} s)"
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
        self, owner: PoolHooks, bucket: PoolBucket, error: BaseException, text: str, trace: Any
    ) -> None:
        where = not isinstance(error, OSError) and (type(error), error, trace)
        self._notifier.log(owner, logging.WARNING, text, _where(bucket), error, exc_info=where)
        self._notify_failed(owner, bucket, error)

    def _notify_failed(self, owner: PoolHooks, bucket: PoolBucket, error: BaseException) -> None:
        if "connection_failed" in owner.listening:
            event = events.ConnectionFailed(owner, error, endpoint=bucket.endpoint)
            self._notifier.notify(owner, "connection_failed", event)


def _where(bucket: PoolBucket) -> str:
    return "" if bucket.endpoint is None else f"{bucket.endpoint}: "


def _may_dial(bucket: PoolBucket) -> bool:
    return all(limit.may_dial() for limit in bucket.shared)
