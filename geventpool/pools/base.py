"""What every pool has: its settings, its listeners, and the verbs that take a connection.

A pool adds where its connections lead: ``connection_pool.py`` to one place, ``endpoint_pool.py`` to
many.  Who gets which connection is decided in ``_scheduler``, and the greenlets that open, check
and close are in ``_runtime``.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gevent import getcurrent

from geventpool import sockets
from geventpool._runtime.outages import Outages
from geventpool._runtime.runtime import Runtime
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._scheduler.state import CLOSED, IN_USE
from geventpool._util.arguments import check_seconds
from geventpool._util.clock import monotonic
from geventpool._util.errors import mark_of
from geventpool.errors import Verdict
from geventpool.events import Duration, Histogram, PoolListener, PoolStats, Reason, Refusal
from geventpool.pools.extension import PoolExtension
from geventpool.pools.lease import DEFAULT, take_back
from geventpool.pools.leases import SharedConnection
from geventpool.pools.settings import PoolSettings
from geventpool.pools.verdicts import discard, verdict_on_dial
from geventpool.registry import CallablePackage, unnamed

__all__ = ["BasePool", "stats_of"]

sys.modules["geventpool.pools"].__class__ = CallablePackage  # geventpool.pools()

C = TypeVar("C")
_LOGGER = "geventpool.pool"  # and below it those of the pools with a name, lest one be a module's
_EVENTS = tuple(name for name in vars(PoolListener) if not name.startswith("_"))

_ERRORS = 10  # in stats()

_REASONS = {
    sockets.CLOSED: Reason.GONE,
    sockets.REPLACED: Reason.GONE,
    sockets.CUT_SHORT: Reason.CUT_SHORT,
}

#: Those of the settings that are each bucket's own.
_OF_BUCKETS = (
    *("max_connecting", "backoff", "fail_fast", "down_after", "overload"),
    *("idle_timeout", "max_lifetime", "max_uses", "jitter"),
)


class BasePool(PoolExtension[C]):
    """The settings and verbs that all pools have; their meaning is told in ConnectionPool."""

    # The hooks are each pool's own: they get an endpoint first where there are several.
    _new_connection: Callable[..., C]
    _keepalive: Callable[..., object]
    _close_connection: Callable[..., object]
    _is_alive: Callable[..., bool]
    _socket: Callable[..., Any]
    _fileno: Callable[..., int | None]
    _reset_connection: Callable[..., object]
    _salvage_connection: Callable[..., object]

    # What is said by setting it in a subclass.  See ConnectionPool.
    _may_reconnect = False
    _may_poll = False
    #: It is a part of a manager, which is in ``geventpool.pools()``, counts the callers that get no
    #: connection, and has a line in the log for each server that is away.
    _is_managed = False

    def __init__(self, settings: PoolSettings) -> None:
        self._bucket = None
        self._check_hooks(settings)
        name = settings.name
        self.name = unnamed(self._named_after or type(self)) if name is None else name
        self.exc_classes = settings.exc_classes
        self.timeout = settings.timeout
        self.max_waiting = settings.max_waiting
        self.connect_timeout = settings.connect_timeout
        self.keepalive = settings.keepalive
        self.keepalive_timeout = settings.keepalive_timeout
        self.salvage_timeout = settings.salvage_timeout
        self.check_after = settings.check_after
        self.strict = settings.strict
        self.track = settings.track
        self.leak_threshold = settings.leak_threshold
        self.log = logging.getLogger(_LOGGER if name is None else f"{_LOGGER}.{name}")
        self.slots_by_id: dict[int, ConnectionSlot] = {}
        self.maintenance: Any = None
        self.closed = False
        self.warned: set[str] = set()
        self.outages = Outages()
        self.listening = {}
        self.has_is_alive = self._overrides("_is_alive")
        self.checks_on_checkout = self.has_is_alive or self.check_after is not None
        self.has_reset = self._overrides("_reset_connection")
        self.has_salvage = self._overrides("_salvage_connection")
        self.has_socket = self._overrides("_socket")
        self._has_fileno = self._overrides("_fileno") and not self.has_socket
        self.socket_hook = "_fileno" if self._has_fileno else "_socket"
        self._connect: Callable[..., C] | None = settings.connect
        self._leases: weakref.WeakKeyDictionary[Any, dict[Any, SharedConnection[C]]]
        self._leases = weakref.WeakKeyDictionary()
        self._limits = settings.limits
        self._bucket_settings = {each: getattr(settings, each) for each in _OF_BUCKETS}
        self._order = settings.order
        self._reference = weakref.ref(self)
        for listener in settings.listeners:
            self.add_listener(listener)
        self._runtime = Runtime.of_this_thread()
        self._desk = self._runtime.desk

    def _check_hooks(self, settings: PoolSettings) -> None:
        """See to it that what is set is there to be called."""
        overrides = self._overrides("_new_connection")
        if settings.connect is None and not overrides:
            raise TypeError(
                f"{type(self).__name__} cannot open connections: override _new_connection,"
                " or give connect="
            )
        if settings.connect is not None and overrides:
            raise TypeError("connect is given and _new_connection overridden: which is it to be?")
        for name in ("keepalive", "check_after"):
            if getattr(settings, name) is not None and not self._overrides("_keepalive"):
                raise ValueError(f"{name} is set, but _keepalive is not overridden")

    def _new_bucket(self, name: str, **settings: Any) -> PoolBucket:
        """A bucket with the settings of this pool, not yet known to the runtime."""
        bucket = PoolBucket(name, **{**self._bucket_settings, **settings})
        bucket.owner = self._reference
        return bucket

    def _all_buckets(self) -> Sequence[PoolBucket]:
        """Those that the runtime knows."""
        raise NotImplementedError

    def _overrides(self, hook: str) -> bool:
        """Whether *hook* is not the pool class's own."""
        raise NotImplementedError

    # Verbs

    def release(self, conn: C) -> None:
        """Give back a connection that is fit for use.  Does not block, unless a reset does.

        In a ``finally`` or an ``except`` the exception there decides, as one that leaves a ``with``
        does: after one that ``_classify_error`` calls FINE the connection is looked at closely; any
        other, or what is not an ``Exception``, closes it.  An ``except`` that has dealt with its
        exception cannot be told from one that has not: release after it.  An exception that was
        being handled already when ``acquire`` was called is none of the connection's, and does not
        count.

        Raises NotInUse if *conn* was released already, or is none of this pool's.
        """
        hold = self._desk.find(self, conn)
        take_back(self, hold, conn, _raised_in_use(hold[0]))

    def discard(self, conn: C) -> None:
        """Give back a connection that must not be used again; it is closed in the background.

        If an exception is being handled that says WRONG_SERVER, all others are closed, too, as
        after one that leaves a ``with``.  Raises NotInUse as ``release`` does.
        """
        hold = self._desk.find(self, conn)
        if hold[0].state is CLOSED:
            return
        discard(self, hold, conn, _raised_in_use(hold[0]))

    def detach(self, conn: C) -> C:
        """Take *conn*, which you hold, out of the pool for good: closing it is up to you now.

        Raises NotInUse as ``release`` does.
        """
        hold = self._desk.find(self, conn)
        if hold[0].state is not CLOSED:
            self._desk.detach(self, hold)
        return conn

    def close(self, timeout: float | None = None) -> None:
        """Close the pool for good: callers in line get PoolClosed, idle connections are closed.

        Connections in use are closed when they come back; waits for that, those of the calling
        greenlet excepted.  After *timeout* seconds (None: never; 0: at once) those still out are
        closed under their holders.  Closing twice does no harm.
        """
        check_seconds("timeout", timeout, zero=True)
        self._runtime.close(self, self._all_buckets(), timeout)

    def __enter__(self: F) -> F:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def add_listener(self, listener: object) -> None:
        """Have *listener*, which has some of PoolListener's methods, told from now on."""
        found = False
        for name in _EVENTS:
            method = getattr(listener, name, None)
            if not callable(method):
                continue
            found = True
            inherited = getattr(method, "__func__", None) is getattr(PoolListener, name)
            if not inherited:  # nothing to tell one that does not listen
                self.listening[name] = (*self.listening.get(name, ()), method)
        if not found:
            raise TypeError(f"listeners: {listener!r} has none of the methods of PoolListener")

    # A hook that needs no endpoint

    def _classify_error(self, error: Exception) -> Verdict:
        """What *error*, which leaves a ``with`` or was raised by a dial, says of the connection or
        the server.  Must not switch.

        By default BROKEN for one of *exc_classes*, else FINE.
        """
        return Verdict.BROKEN if isinstance(error, self.exc_classes) else Verdict.FINE

    # Inside

    def _acquired(self, slot: ConnectionSlot, conn: C) -> C:
        """What the verb ``acquire`` returns.  An exception that is being handled just now, further
        out perhaps, has nothing to do with it."""
        exc = sys.exc_info()[1]
        slot.raised_before = 0 if exc is None else mark_of(exc, make=True)
        slot.loose_use = slot.uses
        return conn

    def _max_wait(self, timeout: float | None) -> float | None:
        if timeout is DEFAULT:
            return self.timeout
        check_seconds("timeout", timeout, zero=True)
        return timeout

    def _leases_of_this_greenlet(self) -> dict[Any, SharedConnection[C]]:
        return self._leases.setdefault(getcurrent(), {})

    def _verdict_on_dial(self, error: BaseException) -> Verdict:
        return verdict_on_dial(self, error)

    _is_socket = staticmethod(sockets.is_socket)
    _descriptors_in = staticmethod(sockets.descriptors_in)

    def _ask_socket(self, *key_and_conn: Any) -> Any:
        """What carries the bytes of a connection, by the hook of today or by that of old."""
        if not self._has_fileno:
            return self._socket(*key_and_conn)
        descriptor = self._fileno(*key_and_conn)
        found = sockets.carriers(key_and_conn[-1])  # a socket tells more than its number
        return found if sockets.is_socket(found) and found.fileno() == descriptor else descriptor

    def _make_probe(self, conn: Any, ask: Callable[[Any], Any]) -> sockets.Probe | None:
        """What looks at *conn*; by ``ask(conn)`` it asks the hook, and does not keep the pool."""
        asked = ask if self.has_socket or self._has_fileno else sockets.carriers
        return sockets.watch(conn, asked, guarded=not self._may_poll)

    def _seems_alive(self, *key_and_conn: Any) -> bool:
        """Whether a look finds nothing against a connection."""
        conn = key_and_conn[-1]
        slot = self.slots_by_id.get(id(conn))
        try:
            if slot is not None:
                probe = slot.why_unusable
            else:
                probe = sockets.watch(
                    conn, lambda conn: self._ask_socket(*key_and_conn), guarded=False
                )
            return probe is None or not probe(conn)
        except Exception:
            return False

    def _reason_for(self, why: object) -> Reason:
        """For what a probe has found."""
        return _REASONS.get(why, Reason.UNREAD) if isinstance(why, str) else Reason.UNREAD

    def _should_hint(self) -> bool:
        """Whether to say, once, that the pool is blind and which hook would help."""
        knows = self.has_socket or self._has_fileno or self.has_is_alive
        asks = self.keepalive is not None or self.check_after is not None
        if knows or asks or "blind" in self.warned:
            return False
        self.warned.add("blind")
        return True

    def __del__(self) -> None:
        if "_runtime" in self.__dict__ and (buckets := self._all_buckets()):
            if not all(bucket.closed and not bucket.slots for bucket in buckets):
                self._runtime.pool_collected(buckets, self)


F = TypeVar("F", bound=BasePool[Any])


def _raised_in_use(slot: ConnectionSlot) -> BaseException | None:
    """The exception that is being handled, unless it was when the connection was acquired."""
    exc = sys.exc_info()[1]
    if exc is not None and slot.raised_before and mark_of(exc) == slot.raised_before:
        return None
    return exc


def stats_of(
    pool: BasePool[Any],
    buckets: Sequence[PoolBucket],
    *,
    name: str,
    size: int,
    min_size: int,
    maximum: float,
) -> PoolStats:
    """How the *buckets* of *pool* stand together, and what they have counted."""

    def total(what: str) -> Any:
        return sum(getattr(bucket, what) for bucket in buckets)

    def duration(what: str) -> Duration:
        longest = max((getattr(bucket, f"{what}_max") for bucket in buckets), default=0.0)
        histogram = Histogram.sum_of(getattr(bucket, f"{what}_counts") for bucket in buckets)
        return Duration(histogram.count, total(f"{what}_sum"), longest, histogram)

    now = monotonic()
    held = [
        now - slot.since
        for bucket in buckets
        for slot in list(bucket.slots)
        if slot.state is IN_USE and slot.conn is None
    ]
    refusals = Counter[Refusal]()
    for bucket in buckets:
        refusals.update(bucket.refusals)
    errors = sorted(error for bucket in buckets for error in list(bucket.errors))
    closed = {reason: sum(b.reasons.get(reason, 0) for b in buckets) for reason in Reason}
    return PoolStats(
        name=name,
        size=size,
        min_size=min_size,
        maximum=maximum,
        in_use=total("in_use"),
        idle=total("idle"),
        connecting=total("connecting"),
        checking=total("checking"),
        salvaging=total("salvaging"),
        closing=total("closing"),
        waiting=sum(len(bucket.waiters) for bucket in buckets),
        acquired=total("use_count") + closed[Reason.LOST] + len(held),
        released=total("use_count") - total("lost_uses"),
        timed_out=refusals["timeout"],
        refused=refusals["full"],
        refused_down=refusals["down"],
        shed=refusals["shed"],
        abandoned=total("abandoned"),
        dialed=total("dialed"),
        opened=total("connect_count"),
        dial_failed=total("dial_failed"),
        checked=total("checked"),
        salvaged=total("salvaged"),
        salvage_failed=total("salvage_failed"),
        closed=closed,
        wait=duration("wait"),
        use=duration("use"),
        connect=duration("connect"),
        last_error=next((b.last_error for b in buckets if b.last_error is not None), None),
        waiting_max=max((bucket.waiting_max for bucket in buckets), default=0),
        longest_held=max(held, default=0.0),
        down=any(b.down for b in buckets) and not any(b.open and not b.down for b in buckets),
        hub_lag=pool._runtime.hub_lag.seconds,
        held_long=total("held_long"),
        refused_dial=refusals["dial"],
        refused_limit=refusals["limit"],
        errors=tuple(errors[-_ERRORS:]),
    )
