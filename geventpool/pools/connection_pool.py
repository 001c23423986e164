"""ConnectionPool: a fixed or elastic number of connections to one place, fairly shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from geventpool import sockets
from geventpool._runtime.introspection import holders
from geventpool._runtime.slots import PoolBucket
from geventpool._scheduler.limit import Limit
from geventpool._util.arguments import check_seconds, check_whole
from geventpool.backoff import Backoff
from geventpool.events import Holder, PoolStats
from geventpool.overload import CoDel
from geventpool.pools import lease
from geventpool.pools.base import BasePool, stats_of
from geventpool.pools.lease import DEFAULT, lend
from geventpool.pools.leases import Lease, LocalLease, TrackedLease, TrackedLocalLease
from geventpool.pools.settings import PoolSettings
from geventpool.registry import register

__all__ = ["ConnectionPool", "Lease"]

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

#: By whether a nested lease shares its connection, and whether it is tracked.
_LEASES: dict[tuple[bool, bool], type[Lease[Any]]] = {
    (False, False): Lease,
    (False, True): TrackedLease,
    (True, False): LocalLease,
    (True, True): TrackedLocalLease,
}


class ConnectionPool(BasePool[C]):
    """A pool of connections to one server; each is whatever ``_new_connection`` returns.

    Override ``_new_connection`` or give *connect*, a callable.  ``ConnectionPool(20)`` keeps 20
    connections open at all times; the constructor returns at once and never fails because of the
    server: greenlets of the pool dial, one at first, more as dials succeed, with a back-off when
    they fail.  Callers are served in the order they come.

    A program that makes a pool and then forks its workers, as ``gunicorn --preload`` does, has one
    pool in each worker, filled when the worker's hub runs first; its own, if it forks before its
    hub has ever run, opens nothing until it is used.

    All durations are seconds; None means no bound.

    - *size*: connections to keep at most; *min_size*: at least (None: *size*, a fixed pool);
      *max_overflow*: more than *size* while all are taken, closed on return (None: no bound).
    - *exc_classes*: exceptions which, leaving a ``with``, mean that the connection is broken.
    - *keepalive*: run ``_keepalive`` on connections idle for that long, each run bounded by
      *keepalive_timeout*; *check_after*: run it also before a connection idle for longer than that
      is handed out, within the caller's *timeout*.
    - *salvage_timeout*: how long ``_salvage_connection`` may take, where it is overridden.
    - *timeout*: how long acquire waits, checks included; *max_waiting*: more callers in line than
      this are sent away with PoolFull; *overload*: a CoDel keeps the line short under more load
      than can be served, and sends away those that waited too long with PoolOverloaded (None: they
      wait).
    - *connect_timeout* bounds a dial; *max_connecting*: dials at a time; *backoff*: the pause
      after failed ones; *fail_fast*: raise a dial's error to the caller that has waited longest;
      *down_after*: once nothing was open and every dial has failed for that long, who waits and
      who comes gets PoolDown at once, until a dial of the pool's own succeeds (None: never).
    - *idle_timeout* closes what was not used for that long, above *min_size*, and replaces it in a
      fixed pool; *max_lifetime* replaces what is older, up to the share *jitter* of it earlier, so
      that not all go at once; *max_uses*: hand-outs of one connection.
    - *order*: which idle connection is handed out, "fifo" (the longest idle: even use) or "lifo"
      (the last used: the others can idle out); None: "fifo" for a fixed pool, else "lifo".
    - *strict*: any exception that leaves a ``with`` discards the connection.
    - *greenlet_local*: a nested ``get()`` in the same greenlet yields the connection it has.
    - *limits*: Limit objects, caps that are shared with other pools of this thread.
    - *listeners*: told what happens, see PoolListener; *track*: remember where each connection
      was acquired, for ``holders()``; *leak_threshold*: a connection that is held for longer is
      told of, once for each use, in the log and to listeners; *name*: for messages, metrics, and
      the log, whose logger is ``geventpool.pool.NAME`` (without a name ``geventpool.pool``).

    Hooks to override: what the pool calls, and callers have no use for.  Whatever they raise, the
    pool is whole; what is not an ``Exception`` (a kill, a Timeout from outside) also goes on its
    way.

    - ``_new_connection()``: opens a connection, for each dial.  Called in a greenlet of the pool;
      may switch; bounded by *connect_timeout*.  What it raises, or None: a failed dial, with a
      back-off after it; the cause of PoolTimeouts, or, with *fail_fast*, a caller's own error.
    - ``_keepalive(conn)``: asks the server for a sign of life, see *keepalive* and *check_after*.
      Called in a greenlet of the pool, and before a hand-out in the caller's; may switch; bounded
      by *keepalive_timeout*, by the caller's *timeout*, and sooner where a caller waits in line.
      What it raises: *conn* is closed, and a caller gets another one.
    - ``_is_alive(conn)``: whether *conn* may be handed out, before each time; overridden, it takes
      the place of the pool's own look for unread bytes and a hang-up.  Called in the caller's
      greenlet; must not switch; bounded by nothing.  What it raises is logged: *conn* is closed, as
      for False.
    - ``_reset_connection(conn)``: makes *conn* as good as new, on each return that does not close
      it (nor comes in a hub callback, where it is closed).  Called in the greenlet that gives it
      back; may switch; bounded by *keepalive_timeout*.  What it raises is logged, and *conn* is
      closed.
    - ``_salvage_connection(conn, error)``: brings *conn* back into step, whose use was cut short,
      by a Timeout or a kill that left its ``with``, say: cancels at the server, reads what still
      comes, rolls back, and returns when no reply can come any more.  *error* is what left the
      ``with``, None if a wait that was cut short was found on return.  Not overridden: *conn* is
      closed.  Called in a greenlet of the pool, for half of *size* at a time (at least one; others
      are closed); may switch; bounded by *salvage_timeout*.  Meanwhile no caller has *conn*;
      after it *conn* is looked at as on return, ``_reset_connection`` is called, and the caller
      that has waited longest gets it.  What it raises is logged, and *conn* is closed.
    - ``_close_connection(conn)``: closes *conn*, which left the pool; by default ``conn.close()``.
      Called in a greenlet of the pool; may switch; bounded by 5 s.  What it raises is logged, and
      *conn* counts as closed.
    - ``_socket(conn)``: what carries the bytes of *conn*: a socket, a descriptor, several of them,
      or None for nothing; by default what is found in *conn*.  It is watched for a hang-up, and
      looked at, on return and before a hand-out: *conn* is closed if bytes lie unread on it, if
      it is another one now, or closed, or if a wait on a socket of gevent's was cut short, which
      is not seen of a mere descriptor.
      Called in a greenlet of the pool after each dial, bounded by *connect_timeout* with it, and
      then in the caller's greenlet; must not switch; bounded by nothing there.  What it raises
      after a dial is logged, and *conn* is not watched; later *conn* is closed, as for None.
    - ``_classify_error(error)``: the Verdict on an error that leaves a ``with``, or that a dial has
      raised; by default BROKEN for *exc_classes*, else FINE.  After a use: FINE keeps the
      connection, BROKEN closes it, WRONG_SERVER closes it and every other that was dialed before
      now, those in use on return.  After a dial, that is a failed one like any other; SERVER_FULL
      asks the server for no more connections than are open, and for one more after each second
      in which it has not said so again, while callers wait for what comes back; FATAL is raised to
      all who wait, and who come, until a dial succeeds, and the next one comes after the longest
      pause.  Of a group it is asked for each part, and the worst counts.  Not asked about what is
      no ``Exception``, nor after a use about a PoolError.  Called in the greenlet that gives back,
      or dials; must not switch; bounded by nothing.  What it raises is logged, as is what it
      returns that is no Verdict: BROKEN.
    - ``_fileno(conn)``: the old name of ``_socket``, asked in its place where only this one is
      overridden: the descriptor, or None.  Called in the same greenlets; must not switch; bounded
      by the same.  What it raises counts as there.

    Two things are said by setting them in a subclass.  ``_may_reconnect = True``: the client may
    connect anew by itself; then another socket is watched from then on, and *conn* stays.
    ``_may_poll = True``: a wait for the server that is ended by a time-out is nothing to worry
    about, as with a client that waits for messages; then cut-short waits are not looked for.
    """

    _bucket: PoolBucket

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
        overload: CoDel | None = None,
        connect_timeout: float | None = 10.0,
        max_connecting: int = 16,
        backoff: Backoff | None = None,
        keepalive_timeout: float = 5.0,
        salvage_timeout: float = 1.0,
        idle_timeout: float | None = None,
        max_lifetime: float | None = None,
        max_uses: int | None = None,
        jitter: float = 0.1,
        check_after: float | None = None,
        order: str | None = None,
        strict: bool = False,
        fail_fast: bool = False,
        down_after: float | None = None,
        greenlet_local: bool = False,
        limits: Iterable[Limit] = (),
        listeners: Iterable[object] = (),
        track: bool = False,
        leak_threshold: float | None = None,
        name: str | None = None,
    ) -> None:
        settings = PoolSettings.of(locals())
        check_whole("size", size, least=1)
        min_size = _check_min_size(size, min_size)
        overflow = _overflow(max_overflow)
        super().__init__(settings)
        self._lease = _LEASES[bool(greenlet_local), bool(track)]
        bucket = self._new_bucket(
            self.name,
            size=size,
            min_size=min_size,
            max_overflow=overflow,
            limits=self._limits,
            lifo=order == "lifo" or (order is None and min_size < size),
        )
        resets = self.has_reset and not self._can_tell_what_needs_reset()
        plain = not (self.has_is_alive or resets or max_uses is not None)
        bucket.allow_fast_path(
            self._runtime.ident if plain and not self.listening else 0,
            min((each for each in (idle_timeout, check_after) if each is not None), default=None),
        )
        self._runtime.add(bucket)
        self._bucket = bucket
        register(self)

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

        By default: what carries its bytes is what it was, nothing lies unread on it, no wait on it
        was cut short, and its peer has not hung up.
        """
        return self._seems_alive(conn)

    def _socket(self, conn: C) -> Any:
        """What carries the bytes of *conn*.  Must not switch.

        By default *conn* if it is a socket; else what its ``fileno()`` says; else its attribute
        ``sock`` or ``_sock`` if that is a socket; of a tuple, those of its parts.
        """
        return sockets.carriers(conn)

    def _fileno(self, conn: C) -> int | None:
        """The file descriptor of *conn*: the old name of ``_socket``, which says more."""
        return sockets.fileno(conn)

    def _reset_connection(self, conn: C) -> object:
        """Called on return, to make *conn* as good as new.  Any exception discards it."""

    def _salvage_connection(self, conn: C, error: BaseException | None) -> object:
        """Bring *conn*, whose use *error* cut short, back into step.  Any exception closes it."""

    # Verbs

    if TYPE_CHECKING:

        def get(self, timeout: float | None = DEFAULT) -> Lease[C]: ...

    else:
        get = lease.get

    def acquire(self, timeout: float | None = DEFAULT) -> C:
        """Return an open connection, waiting for one if need be.  ``release`` it afterwards.

        Callers are served in the order they came.  Blocks for at most *timeout* seconds (None: as
        long as it takes; 0: only if no waiting is needed; not given: the pool's own).

        Raises PoolTimeout if none came free in time, or too little is left of a Deadline that the
        caller is under (see Deadline); its ``__cause__`` is the last dial error, if the pool could
        not open what it wanted.  Raises PoolDeadlock if all holders wait for each other, PoolFull
        if *max_waiting* callers wait already, PoolOverloaded if *overload* sends it away, PoolDown
        or a FATAL error of a dial at once while no dial succeeds (*down_after*,
        ``_classify_error``), PoolClosed once ``close()`` was called, WrongHub in a foreign thread.
        Whatever is raised, the caller holds nothing and the pool has lost nothing.
        """
        if timeout is not DEFAULT:
            check_seconds("timeout", timeout, zero=True)
        return self._acquired(*lend(self, self._bucket, timeout))

    @overload
    def execute(
        self, f: Callable[Concatenate[C, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @overload
    def execute(self, f: str, *args: Any, **kwargs: Any) -> Any: ...

    def execute(self, f: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Any:
        """Return ``f(conn, *args, **kwargs)``, or that of the connection's method named *f*."""
        with self.get() as conn:
            if callable(f):
                return f(conn, *args, **kwargs)
            return getattr(conn, f)(*args, **kwargs)

    def fill(self, timeout: float | None = DEFAULT) -> None:
        """Wait until *size* connections are open, in an elastic pool too.

        Raises PoolTimeout, with the last dial error as its cause, if that takes longer than
        *timeout* seconds, and with *fail_fast* the error of a dial as soon as one fails; PoolDown
        and FATAL errors as ``acquire``.  What is open by then stays open.
        """
        self._runtime.fill(self, self._bucket, self._max_wait(timeout))

    def resize(
        self, size: int, min_size: int | None = None, *, max_overflow: int | None = DEFAULT
    ) -> None:
        """Keep *size* connections from now on, and at least *min_size*.

        Without *min_size* a fixed pool stays fixed, and an elastic one keeps its minimum as far as
        *size* allows; *max_overflow* stays as it is if it is not given.  What is too many is
        closed: idle ones now, the others on return.
        """
        check_whole("size", size, least=1)
        bucket = self._bucket
        if min_size is None and bucket.min_size < bucket.size:
            min_size = min(bucket.min_size, size)
        min_size = _check_min_size(size, min_size)
        overflow = bucket.max_overflow if max_overflow is DEFAULT else _overflow(max_overflow)
        self._runtime.resize(bucket, size, min_size, overflow)

    def drain(self, over: float = 0.0) -> None:
        """Replace every connection opened so far, each at a random moment of *over* seconds.

        Returns at once.  Connections in use are closed on return.  A replacement is open before
        the old one closes where the limits allow; where they do not, one is replaced at a time,
        and none while dials fail.
        """
        check_seconds("over", over, zero=True, none=False)
        self._runtime.drain(self._bucket, over)

    def dispose(self) -> None:
        """Close the idle connections.  The pool stays usable and refills to its minimum."""
        self._runtime.dispose(self, (self._bucket,))

    def add_listener(self, listener: object) -> None:
        """Have *listener*, which has some of PoolListener's methods, told from now on."""
        super().add_listener(listener)
        if self.listening and self._bucket is not None:
            self._bucket.allow_fast_path(0)

    # Looking

    @property
    def size(self) -> int:
        """How many connections the pool keeps at most."""
        return self._bucket.size

    def stats(self) -> PoolStats:
        """How the pool stands, and what it has counted since it was made."""
        bucket = self._bucket
        return stats_of(
            self,
            (bucket,),
            name=self.name,
            size=bucket.size,
            min_size=bucket.min_size,
            maximum=bucket.maximum,
        )

    def holders(self) -> tuple[Holder, ...]:
        """For each connection in use: who has it, for how long, and where it is just now."""
        return holders((self._bucket,))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._bucket!r}>"

    # Inside

    def _all_buckets(self) -> tuple[PoolBucket, ...]:
        return () if self._bucket is None else (self._bucket,)

    def _bucket_of(self, *key: Any) -> PoolBucket:
        return self._bucket

    def _overrides(self, hook: str) -> bool:
        own = getattr(self, hook)
        return getattr(own, "__func__", own) is not getattr(ConnectionPool, hook)


def _check_min_size(size: int, min_size: int | None) -> int:
    if min_size is None:
        return size
    check_whole("min_size", min_size)
    if min_size > size:
        raise ValueError(f"min_size ({min_size}) is more than size ({size})")
    return min_size


def _overflow(max_overflow: int | None) -> float:
    if max_overflow is None:
        return math.inf
    check_whole("max_overflow", max_overflow)
    return max_overflow
