"""ConnectionPool: a fixed or elastic number of connections to one server, fairly shared.

What is here is the face: settings and their checks, the hooks to override, the verbs, and the
lease with its fast path.  Who gets which connection is decided in ``_core.py``, and the greenlets
that open, check and close are in ``_engine.py``.
"""

from __future__ import annotations

import itertools
import logging
import math
import weakref
from collections.abc import Callable, Iterable
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar
from weakref import proxy

from gevent import getcurrent

from geventpool import sockets
from geventpool._core import CLOSED, IDLE, IN_USE, NEVER, Bucket, Limit, Slot
from geventpool._engine import Engine, get_ident
from geventpool.backoff import Backoff
from geventpool.errors import PoolError
from geventpool.events import Duration, Holder, PoolListener, PoolStats, Reason

__all__ = ["ConnectionPool", "Lease"]

C = TypeVar("C")
R = TypeVar("R")
_DEFAULT: Any = object()  # "the pool's own timeout", as None means "no bound"
_LONGEST = 1e9  # seconds: 30 years; timers and sums of times stay well within their ranges
_numbers = itertools.count(1)
_EVENTS = tuple(name for name in vars(PoolListener) if not name.startswith("_"))


class Lease(Generic[C]):
    """What ``pool.get()`` returns: in a ``with`` it is a connection, for a while.

    Nothing raised in the ``with``: the connection goes back.  *exc_classes*, or anything that is
    not an ``Exception`` (gevent.Timeout, GreenletExit, KeyboardInterrupt, ...): it is closed, as
    a reply to the request that was cut short may still come.  Another ``Exception``, or a
    PoolError: it goes back, unless bytes lie unread on it; with ``strict=True`` it is closed.
    """

    __slots__ = ("_conn", "_pool", "_slot", "_timeout", "_use")

    # No __init__, which ``get`` spells out: the call would cost as much as the clock.
    _pool: ConnectionPool[C]
    _timeout: float | None

    def __enter__(self) -> C:
        # The fast path: something is idle and nobody waits who could use it (the core keeps
        # *fast_for* true to that), so a pop is all it takes.  The price: this and __exit__ know
        # how the core moves a slot between IDLE and IN_USE, which is why those two states are
        # counted together.  A slot that needs a second thought goes back, to the slow path.
        bucket = self._pool._bucket
        idle = bucket._idle
        if idle and bucket.fast_for == get_ident():
            slot = idle.pop() if bucket.lifo else idle.popleft()
            now = monotonic()
            if (
                now < slot.fresh_until
                and (bucket.freshness is NEVER or now - slot.since < bucket.freshness)
                and (slot.look is None or not slot.look())
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
            self._pool._engine.core.put_back(slot)
        pool, timeout = self._pool, self._timeout
        if timeout is _DEFAULT:
            timeout = pool.timeout
        slot, conn = pool._engine.acquire(pool, bucket, timeout)
        self._slot, self._conn, self._use = slot, conn, slot.uses
        return conn

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
            # It is left in the thread in which it was entered: no need to look again.
            if bucket.fast_for and now < slot.fresh_until:
                used = now - slot.since
                bucket.use_count += 1
                bucket.use_sum += used
                if used > bucket.use_max:
                    bucket.use_max = used
                slot.conn = self._conn
                slot.state = IDLE
                slot.since = now
                bucket._idle.append(slot)
                return
            if now < slot.fresh_until and bucket.door == get_ident():
                # Plain as well, but somebody waits.
                self._pool._engine.pass_on(slot, self._conn, now)
                return
        pool = self._pool
        if exc is None:
            pool._engine.give_back(pool, slot, self._conn)
        elif pool._spoils(exc):
            pool._engine.give_up(pool, slot, self._conn, Reason.ERROR, exc)
        else:
            pool._engine.give_back(pool, slot, self._conn, suspect=True)


class _LocalLease(Lease[C]):
    """The lease of a ``greenlet_local`` pool: nested, it shares what the greenlet already has."""

    __slots__ = ("_outer",)

    def __enter__(self) -> C:
        outer = self._outer = self._pool._leases.get(getcurrent())
        if outer is not None and outer._slot.state is IN_USE and outer._slot.uses == outer._use:
            return outer._conn
        self._outer = None
        conn = super().__enter__()
        self._pool._leases[getcurrent()] = self
        return conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outer is None:
            self._pool._leases.pop(getcurrent(), None)
            super().__exit__(exc_type, exc, traceback)
        elif exc is not None and self._pool._spoils(exc):
            # The outer with may yet swallow it, but the connection is broken all the same.
            self._pool._engine.core.doom(self._outer._slot, Reason.ERROR)


class ConnectionPool(Generic[C]):
    """A pool of connections to one server; each is whatever ``_new_connection`` returns.

    Override ``_new_connection`` or give *connect*, a callable.  ``ConnectionPool(20)`` keeps 20
    connections open at all times; the constructor returns at once and never fails because of the
    server: greenlets of the pool dial, one at first, more as dials succeed, with a back-off when
    they fail.  Callers are served in the order they come.

    All durations are seconds; None means no bound.

    - *size*: connections to keep at most; *min_size*: at least (None: *size*, a fixed pool);
      *max_overflow*: more than *size* while all are taken, closed on return (None: no bound).
    - *exc_classes*: exceptions which, leaving a ``with``, mean that the connection is broken.
    - *keepalive*: run ``_keepalive`` on connections idle for that long, each run bounded by
      *keepalive_timeout*; *check_after*: run it also before a connection idle for longer than that
      is handed out, within the caller's *timeout*.
    - *timeout*: how long acquire waits, checks included; *max_waiting*: more callers in line than
      this are sent away with PoolFull.
    - *connect_timeout* bounds a dial; *max_connecting*: dials at a time; *backoff*: the pause
      after failed ones; *fail_fast*: raise a dial's error to the caller who has waited longest.
    - *idle_timeout* closes what nobody used for that long, above *min_size*; *max_lifetime*
      replaces what is older, up to the share *jitter* of it earlier, so that not all go at once;
      *max_uses*: hand-outs of one connection.
    - *order*: which idle connection is handed out, "fifo" (the longest idle: even use) or "lifo"
      (the last used: the others can idle out); None: "fifo" for a fixed pool, else "lifo".
    - *strict*: any exception that leaves a ``with`` discards the connection.
    - *greenlet_local*: a nested ``get()`` in the same greenlet yields the connection it has.
    - *limits*: Limit objects, caps that are shared with other pools of this thread.
    - *listeners*: told what happens, see PoolListener; *track*: remember where each connection
      was acquired, for ``holders()``; *name*: for messages, the log and metrics.
    """

    def __init__(
        self,
        size: int,
        exc_classes: type[BaseException] | Iterable[type[BaseException]] = (OSError,),
        keepalive: float | None = None,
        *,
        connect: Callable[[], C] | None = None,
        min_size: int | None = None,
        max_overflow: int | None = 0,
        timeout: float | None = 30.0,
        max_waiting: int | None = None,
        connect_timeout: float | None = 10.0,
        max_connecting: int = 16,
        backoff: Backoff | None = None,
        keepalive_timeout: float = 5.0,
        idle_timeout: float | None = None,
        max_lifetime: float | None = None,
        max_uses: int | None = None,
        jitter: float = 0.1,
        check_after: float | None = None,
        order: str | None = None,
        strict: bool = False,
        fail_fast: bool = False,
        greenlet_local: bool = False,
        limits: Iterable[Limit] = (),
        listeners: Iterable[object] = (),
        track: bool = False,
        name: str | None = None,
    ) -> None:
        _check_whole("size", size, least=1)
        min_size = _check_min_size(size, min_size)
        if max_overflow is not None:
            _check_whole("max_overflow", max_overflow)
        if max_waiting is not None:
            _check_whole("max_waiting", max_waiting)
        if max_uses is not None:
            _check_whole("max_uses", max_uses, least=1)
        _check_whole("max_connecting", max_connecting, least=1)
        _check_seconds("timeout", timeout, zero=True)
        _check_seconds("keepalive_timeout", keepalive_timeout, none=False)
        for label, seconds in (
            ("keepalive", keepalive),
            ("connect_timeout", connect_timeout),
            ("idle_timeout", idle_timeout),
            ("max_lifetime", max_lifetime),
        ):
            _check_seconds(label, seconds)
        _check_seconds("check_after", check_after, zero=True)
        if isinstance(jitter, bool) or not isinstance(jitter, (int, float)):
            raise TypeError(f"jitter must be a number, not {jitter!r}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be a number from 0 to 1, not {jitter!r}")
        if order not in (None, "fifo", "lifo"):
            raise ValueError(f'order must be "fifo", "lifo" or None, not {order!r}')
        if backoff is not None and not isinstance(backoff, Backoff):
            raise TypeError(f"backoff must be a Backoff, not {backoff!r}")
        limits = _several("limits", limits)
        for limit in limits:
            if not isinstance(limit, Limit):
                raise TypeError(f"limits must hold Limit objects, not {limit!r}")
        if len(set(limits)) < len(limits):
            raise ValueError("limits holds the same Limit twice")
        if connect is not None and not callable(connect):
            raise TypeError(f"connect must be callable, not {connect!r}")
        if connect is None and not self._overrides("_new_connection"):
            raise TypeError(
                f"{type(self).__name__} cannot open connections: override _new_connection,"
                " or give connect="
            )
        if connect is not None and self._overrides("_new_connection"):
            raise TypeError("connect is given and _new_connection overridden: which is it to be?")
        for label, seconds in (("keepalive", keepalive), ("check_after", check_after)):
            if seconds is not None and not self._overrides("_keepalive"):
                raise ValueError(f"{label} is set, but _keepalive is not overridden")

        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r}")
        self.name = name if name is not None else f"pool-{next(_numbers)}"
        self.exc_classes = _exception_classes(exc_classes)
        self.timeout = timeout
        self.max_waiting = max_waiting
        self.connect_timeout = connect_timeout
        self.keepalive = keepalive
        self.keepalive_timeout = keepalive_timeout
        self.check_after = check_after
        self.strict = strict
        self.track = track
        self.log = logging.getLogger("geventpool" if name is None else f"geventpool.{name}")
        self.index: dict[int, Slot] = {}
        self.listening: dict[str, tuple[Callable[[Any], object], ...]] = {}
        self.has_is_alive = self._overrides("_is_alive")
        self.is_picky = self.has_is_alive or check_after is not None
        self.has_reset = self._overrides("_reset_connection")
        self._connect = connect
        self._leases: weakref.WeakKeyDictionary[Any, _LocalLease[C]] = weakref.WeakKeyDictionary()
        self._lease: type[Lease[C]] = _LocalLease if greenlet_local else Lease
        bucket = Bucket(
            self.name,
            size=size,
            min_size=min_size,
            max_overflow=math.inf if max_overflow is None else max_overflow,
            limits=limits,
            max_connecting=max_connecting,
            backoff=backoff,
            lifo=order == "lifo" or (order is None and min_size < size),
            fail_fast=fail_fast,
            idle_timeout=idle_timeout,
            max_lifetime=max_lifetime,
            max_uses=max_uses,
            jitter=jitter,
        )
        bucket.owner = weakref.ref(self)
        bucket.freshness = min(
            NEVER if idle_timeout is None else idle_timeout,
            NEVER if check_after is None else check_after,
        )
        engine = Engine.of_this_thread()
        if not (track or self.has_is_alive or self.has_reset or max_uses is not None):
            bucket.door = engine.ident
        self._bucket = bucket
        for listener in _several("listeners", listeners):
            self.add_listener(listener)
        engine.add(bucket)
        self._engine = engine

    # Hooks to override

    def _new_connection(self) -> C:
        """Open one connection, log in and all, and return it.  Any exception: a failed dial."""
        assert self._connect is not None
        return self._connect()

    def _keepalive(self, conn: C) -> object:
        """Ask the server for a sign of life over *conn*.  Any exception discards it."""
        raise NotImplementedError

    def _close_connection(self, conn: C) -> object:
        """Close *conn*; ``conn.close()`` where there is one.  What it raises is only logged."""
        sockets.close(conn)
        return None

    def _is_alive(self, conn: C) -> bool:
        """Whether *conn* may be handed out.  Must not switch.

        By default: a socket on which nothing lies unread and whose peer has not hung up; of what
        is no socket, only the hang-up is known.
        """
        look = sockets.look(conn)
        return look is None or not look()

    def _fileno(self, conn: C) -> int | None:
        """The file descriptor whose hang-up is to be noticed; None: not watched."""
        return sockets.fileno(conn)

    def _reset_connection(self, conn: C) -> object:
        """Called on return, to make *conn* as good as new.  Any exception discards it."""

    # Verbs

    def get(self, timeout: float | None = _DEFAULT) -> Lease[C]:
        """A connection for the length of a ``with``; waits on entering it, see ``acquire``."""
        if timeout is not _DEFAULT:
            _check_seconds("timeout", timeout, zero=True)
        make = self._lease
        lease = make()
        lease._pool = self
        lease._timeout = timeout
        return lease

    def acquire(self, timeout: float | None = _DEFAULT) -> C:
        """Return an open connection, waiting for one if need be.  ``release`` it afterwards.

        Callers are served in the order they came.  Blocks for at most *timeout* seconds (None: as
        long as it takes; 0: only if no waiting is needed; not given: the pool's own).

        Raises PoolTimeout if none came free in time; its ``__cause__`` is the last dial error, if
        the pool could not open what it wanted.  Raises PoolFull if *max_waiting* callers wait
        already, PoolClosed once ``close()`` was called, WrongHub in a foreign thread.  Whatever
        is raised, the caller holds nothing and the pool has lost nothing.
        """
        conn: C = self._engine.acquire(self, self._bucket, self._patience(timeout))[1]
        return conn

    def release(self, conn: C) -> None:
        """Give back a connection that is fit for use.  Does not block, unless a reset does.

        Raises NotInUse if *conn* was released already, or is none of this pool's.
        """
        slot = self._engine.find(self, conn)
        if slot.state is not CLOSED:
            self._engine.give_back(self, slot, conn)

    def discard(self, conn: C) -> None:
        """Give back a connection that must not be used again; it is closed in the background.

        Raises NotInUse as ``release`` does.
        """
        slot = self._engine.find(self, conn)
        if slot.state is not CLOSED:
            self._engine.give_up(self, slot, conn, Reason.DISCARDED)

    def detach(self, conn: C) -> C:
        """Take *conn*, which you hold, out of the pool for good: closing it is up to you now.

        Raises NotInUse as ``release`` does.
        """
        slot = self._engine.find(self, conn)
        if slot.state is not CLOSED:
            self._engine.detach(self, slot)
        return conn

    def execute(self, f: Callable[..., R] | str, *args: Any, **kwargs: Any) -> Any:
        """Return ``f(conn, *args, **kwargs)``, or that of the connection's method named *f*."""
        with self.get() as conn:
            if callable(f):
                return f(conn, *args, **kwargs)
            return getattr(conn, f)(*args, **kwargs)

    def fill(self, timeout: float | None = _DEFAULT) -> None:
        """Wait until *size* connections are open, in an elastic pool too.

        Raises PoolTimeout, with the last dial error as its cause, if that takes longer than
        *timeout* seconds; what is open by then stays open.
        """
        self._engine.fill(self, self._bucket, self._patience(timeout))

    def resize(self, size: int, min_size: int | None = None) -> None:
        """Keep *size* connections from now on, and at least *min_size*.

        Without *min_size* a fixed pool stays fixed, and an elastic one keeps its minimum as far as
        *size* allows.  What is too many is closed: idle ones now, the others on return.
        """
        _check_whole("size", size, least=1)
        bucket = self._bucket
        if min_size is None and bucket.min_size < bucket.size:
            min_size = min(bucket.min_size, size)
        self._engine.resize(bucket, size, _check_min_size(size, min_size))

    def drain(self, over: float = 0.0) -> None:
        """Replace every connection opened so far, each at a random moment of *over* seconds.

        Returns at once.  Connections in use are closed on return.  A replacement is open before
        the old one closes where the limits allow; where they do not, one is replaced at a time,
        and none while dials fail.
        """
        _check_seconds("over", over, zero=True, none=False)
        self._engine.drain(self._bucket, over)

    def dispose(self) -> None:
        """Close the idle connections.  The pool stays usable and refills to its minimum."""
        self._engine.dispose(self, self._bucket)

    def close(self, timeout: float | None = None) -> None:
        """Close the pool for good: callers in line get PoolClosed, idle connections are closed.

        Connections in use are closed when they come back; waits for that, those of the calling
        greenlet excepted.  After *timeout* seconds (None: never; 0: at once) those still out are
        closed under their holders.  Closing twice does no harm.
        """
        _check_seconds("timeout", timeout, zero=True)
        self._engine.close(self, self._bucket, timeout)

    def __enter__(self: P) -> P:
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
            if not inherited:  # nothing to tell one who does not listen
                self.listening[name] = (*self.listening.get(name, ()), method)
        if not found:
            raise TypeError(f"listeners: {listener!r} has none of the methods of PoolListener")
        if self.listening:
            self._bucket.door = self._bucket.fast_for = 0

    # Looking

    @property
    def size(self) -> int:
        """How many connections the pool keeps at most."""
        return self._bucket.size

    def stats(self) -> PoolStats:
        """How the pool stands, and what it has counted since it was made."""
        b = self._bucket
        held = sum(slot.state is IN_USE and slot.conn is None for slot in list(b.slots))
        return PoolStats(
            name=self.name,
            size=b.size,
            min_size=b.min_size,
            maximum=b.own.maximum,
            in_use=b.in_use,
            idle=b.idle,
            connecting=b.connecting,
            checking=b.checking,
            closing=b.closing,
            waiting=len(b.line),
            acquired=b.use_count + b.reasons.get(Reason.LOST, 0) + held,
            released=b.use_count - b.spoiled,
            timed_out=b.timed_out,
            refused=b.refused,
            abandoned=b.abandoned,
            dialed=b.dialed,
            opened=b.connect_count,
            dial_failed=b.dial_failed,
            checked=b.checked,
            closed={reason: b.reasons.get(reason, 0) for reason in Reason},
            wait=Duration(b.wait_count, b.wait_sum, b.wait_max),
            use=Duration(b.use_count, b.use_sum, b.use_max),
            connect=Duration(b.connect_count, b.connect_sum, b.connect_max),
            last_error=b.last_error,
        )

    def holders(self) -> tuple[Holder, ...]:
        """For each connection in use: who has it, for how long, and where he is just now."""
        return self._engine.holders(self._bucket)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._bucket!r}>"

    # Inside

    def _patience(self, timeout: float | None) -> float | None:
        if timeout is _DEFAULT:
            return self.timeout
        _check_seconds("timeout", timeout, zero=True)
        return timeout

    def _spoils(self, exc: BaseException) -> bool:
        """Whether *exc*, leaving a ``with``, makes its connection unfit for use."""
        if self.strict or not isinstance(exc, Exception):
            return True
        return isinstance(exc, self.exc_classes) and not isinstance(exc, PoolError)

    def _look(self, conn: Any) -> Callable[[], object] | None:
        return sockets.look(conn)

    def _look_at_descriptor(self, descriptor: int) -> Callable[[], object]:
        return sockets.look_at_descriptor(descriptor)

    def _overrides(self, hook: str) -> bool:
        own = getattr(self, hook)
        return getattr(own, "__func__", own) is not getattr(ConnectionPool, hook)

    def __del__(self) -> None:
        if "_engine" in self.__dict__ and not (self._bucket.closed and not self._bucket.slots):
            self._engine.orphan(self._bucket, self)


P = TypeVar("P", bound=ConnectionPool[Any])


def _check_whole(name: str, value: object, least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")


def _check_min_size(size: int, min_size: int | None) -> int:
    if min_size is None:
        return size
    _check_whole("min_size", min_size)
    if min_size > size:
        raise ValueError(f"min_size ({min_size}) is more than size ({size})")
    return min_size


def _check_seconds(name: str, value: object, zero: bool = False, none: bool = True) -> None:
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not (0 <= value <= _LONGEST) or (value == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        no_bound = "; None means no bound" if none else ""
        raise ValueError(f"{name} must be {least} (seconds{no_bound}), not {value!r}")


def _several(name: str, values: Iterable[R]) -> tuple[R, ...]:
    try:
        found = iter(values)
    except TypeError:
        raise TypeError(f"{name} must be a list or the like, not {values!r}") from None
    return tuple(found)


def _exception_classes(
    classes: type[BaseException] | Iterable[type[BaseException]],
) -> tuple[type[BaseException], ...]:
    found = (classes,) if isinstance(classes, type) else _several("exc_classes", classes)
    for each in found:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"exc_classes must be exception classes, not {each!r}")
    return found
