"""ConnectionPool: connections to several servers, taken by ``get`` and given back by ``put``.

Its names are those of the original's module, whichever file of the package they are from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gevent.local import local

from geventpool import sockets
from geventpool.compat.pycassa._dialing import FACTORIES, SETTINGS, DialingPool
from geventpool.compat.pycassa._errors import (
    AllServersUnavailable,
    InvalidRequestError,
    MaximumRetryException,
    NoConnectionAvailable,
)
from geventpool.compat.pycassa._listeners import PoolListener
from geventpool.compat.pycassa._wrapper import ConnectionWrapper, Session
from geventpool.compat.pycassa.logging.pool_logger import PoolLogger, pool_log
from geventpool.errors import NotInUse, PoolTimeout
from geventpool.events import Reason
from geventpool.pools.extension import Hold, check_whole, copy_of

__all__ = [
    "AllServersUnavailable",
    "ConnectionPool",
    "ConnectionWrapper",
    "InvalidRequestError",
    "MaximumRetryException",
    "NoConnectionAvailable",
    "PoolListener",
    "QueuePool",
]

OPEN_TIMEOUT = 30.0  # seconds that a caller waits at least, where the pool may open one for it


class ConnectionPool(DialingPool):
    """A pool of connections to several servers, all opened to *keyspace*.

    The parameters are those of pycassa, and mean the same.  These are new:

    - *client_factory*: ``client_factory(host, port, timeout)`` returns an open client; *timeout*
      is the pool's, in seconds (None: no bound).  *socket_factory* and *transport_factory* are
      handed on to it, as keywords, if they are given.  A class attribute or a method does as well.
    - *retry_on*: what an operation raises if it should be tried on another server, and a dial if
      the next server should: pass the TimedOutException, UnavailableException and
      TTransportException that your Thrift client raises.
    - *discard_on*: what it raises if the connection is no good, but the operation must not be
      tried again: TApplicationException.

    As pycassa did, it calls ``client.login(credentials)`` if there are credentials, and
    ``client.set_keyspace(keyspace)`` unless that is None; override ``_prepare`` to do otherwise.

    With *prefill*, and after ``fill()``, it keeps *pool_size* connections open, until
    ``dispose()``; else it opens them on demand.  The constructor raises what ``fill()`` does.
    """

    def __init__(
        self,
        keyspace: str | None,
        server_list: Iterable[str] | Callable[[], Iterable[str]] = ("localhost:9160",),
        credentials: Mapping[str, str] | None = None,
        timeout: float | None = 0.5,
        use_threadlocal: bool = True,
        pool_size: int = 5,
        prefill: bool = True,
        socket_factory: Callable[..., Any] | None = None,
        transport_factory: Callable[..., Any] | None = None,
        *,
        max_overflow: int = 0,
        listeners: Iterable[Any] = (),
        **settings: Any,
    ) -> None:
        for name, given in zip(FACTORIES, (socket_factory, transport_factory), strict=True):
            if given is not None:
                settings[name] = given
        if unknown := settings.keys() - SETTINGS:
            raise TypeError(f"ConnectionPool has no parameter {', '.join(sorted(unknown))}")
        check_whole("pool_size", pool_size, 1)
        check_whole("max_overflow", max_overflow, -1)
        name = settings.get("logging_name") or self.logging_name
        super().__init__(
            pool_size,
            min_size=0,
            max_overflow=None if max_overflow == -1 else max_overflow,
            order="fifo",
            backoff=self._pauses,
            fail_fast=True,
            name=str(name) if name else None,
        )
        self.log = pool_log()
        self.keyspace = keyspace
        self.credentials = credentials
        self.timeout = timeout
        for setting, value in settings.items():
            setattr(self, setting, value)
        self.logging_name = self.logging_name or id(self)
        if not callable(self.client_factory):
            raise TypeError("client_factory must be given: (host, port, timeout) -> open client")
        self._local = local() if use_threadlocal else None
        self.listeners: list[Any] = []
        self._callbacks: dict[str, list[Callable[[dict[str, Any]], object]]] = {}
        self._translate_events()
        for listener in (PoolLogger(), *listeners):
            self.add_listener(listener)
        self.set_server_list(server_list)
        if prefill:
            try:
                self.fill()
            except BaseException:
                self.close(0)
                raise

    # Verbs

    def get(self) -> ConnectionWrapper:  # type: ignore[override]
        """Return a connection; ``put`` it back afterwards.

        With *use_threadlocal*, the one that this greenlet has, if it has one.  Callers are served
        in the order they came; if all are taken, each waits *pool_timeout* seconds (-1: as long as
        it takes), and else as long as it takes to open one, at most OPEN_TIMEOUT if that is more.

        Raises NoConnectionAvailable if none came free, AllServersUnavailable if one might have been
        opened and no server could be reached, and what else a dial raised (a wrong password, say).
        """
        held = self._held()
        if held is not None:
            real = held._stand_in or held
            if self._hold_on(real) is not None and not self._is_closed(held._session, real):
                return held
            self.put(held)
        conn = self._acquire()
        conn._pool = self
        conn.max_retries = self.max_retries
        conn._uses += 1
        if self._local is not None:
            self._local.current = conn, conn._uses
        try:
            self._tell("connection_checked_out", "debug", connection=conn)
        except BaseException:
            self.put(conn)
            raise
        return conn

    def put(self, conn: ConnectionWrapper) -> None:
        """Give *conn* back.  Does not wait.

        It is closed instead if it was closed or has broken, has *recycle* operations behind it, is
        to a server that is no longer listed, or unread bytes lie on it.  Raises InvalidRequestError
        if it was given back already (with *use_threadlocal* that is ignored) or is another pool's.
        """
        if not isinstance(conn, ConnectionWrapper) or conn._home() is not self:
            raise InvalidRequestError(f"pool {self.name!r}: {conn!r} is none of its connections")
        if conn._pool is None:
            if self._local is None and self._facts_of(conn) is not None:
                raise InvalidRequestError(
                    f"pool {self.name!r}: {conn} was returned twice",
                    pool=self.name,
                    connection=conn,
                )
            return
        real, lost, session = conn._stand_in or conn, conn._lost, conn._session
        conn._pool = conn._stand_in = None
        conn._lost = False
        conn._retries = 0
        conn._tried.clear()
        hold = self._hold_on(real)  # none if it is lost
        if hold is not None:
            reason = self._reason_to_close(session, real)
            if reason is None:
                suspect, session.suspect = session.suspect, False
                self._checkin(hold, real, suspect)
            else:
                self._discard(hold, real, reason)
        if not lost:
            self._tell("connection_checked_in", "debug", connection=real)

    return_conn = put

    def execute(self, f: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Any:
        """Return what the method *f* of a connection returns.

        With *use_threadlocal*, that is the connection this greenlet has, which stays its own.
        """
        held = self._held()
        conn = held or self.get()
        try:
            return f(conn, *args, **kwargs) if callable(f) else getattr(conn, f)(*args, **kwargs)
        finally:
            if held is None:
                conn.return_to_pool()

    def fill(self) -> None:  # type: ignore[override]
        """Wait until *pool_size* connections are open, in use or not, and keep as many from now on.

        Others are served meanwhile.  Raises AllServersUnavailable, or what else a dial raised, as
        soon as one fails; what is open by then stays open.
        """
        kept = self._standing().min_size
        self.resize(self.size(), self.size())
        try:
            super().fill(timeout=None)
        except BaseException:
            self.resize(self.size(), kept)
            raise

    def dispose(self) -> None:
        """Close the connections that are not in use.  The pool stays usable: it opens on demand."""
        self.resize(self.size(), 0)
        super().dispose()

    # Looking

    @property
    def max_overflow(self) -> int:
        """How many more than *pool_size* may be open; -1 for any number.  May be set."""
        overflow = self._standing().max_overflow
        return -1 if overflow == float("inf") else int(overflow)

    @max_overflow.setter
    def max_overflow(self, max_overflow: int) -> None:
        check_whole("max_overflow", max_overflow, -1)
        now, overflow = self._standing(), None if max_overflow == -1 else max_overflow
        self.resize(now.size, now.min_size, max_overflow=overflow)

    def size(self) -> int:  # type: ignore[override]
        """How many connections the pool keeps at most."""
        return self._standing().size

    def overflow(self) -> int:
        """How many connections more than that are open."""
        now = self._standing()
        return max(now.open - now.size, 0)

    def checkedin(self) -> int:
        """How many connections are idle."""
        return self._standing().idle

    def checkedout(self) -> int:
        """How many connections are in use."""
        return self._standing().in_use

    # Inside: callers

    def _held(self) -> ConnectionWrapper | None:
        """What this greenlet has checked out and still has, with *use_threadlocal*."""
        conn, use = getattr(self._local, "current", (None, 0))
        if conn is None or conn._pool is None or conn._lost or conn._uses != use:
            return None
        return conn  # type: ignore[no-any-return]

    def _acquire(self) -> ConnectionWrapper:
        now, wait = self._standing(), None if self.pool_timeout == -1 else self.pool_timeout
        if wait is not None and now.in_use + now.waiting < now.maximum:
            wait = max(wait, OPEN_TIMEOUT)  # there is room: what it waits for is a dial
        try:
            return self.acquire(wait)
        except PoolTimeout as error:
            if error.__cause__ is not None:
                raise copy_of(error.__cause__) from error.__cause__.__cause__
            if not wait:
                self._tell("pool_at_max", "info", pool_max=now.maximum)
            overflow = f" overflow {self.max_overflow}" if self.max_overflow else ""
            raise NoConnectionAvailable(
                f"ConnectionPool limit of size {now.size}{overflow} reached, unable to obtain"
                f" connection after {self.pool_timeout} seconds",
                pool=self.name,
            ) from error
        except Exception as error:
            if error is not self._standing().last_error:
                raise
            raise copy_of(error) from error.__cause__  # the pool keeps this one

    def _replace(self, wrapper: ConnectionWrapper) -> None:
        """Give *wrapper*, which has lost its connection, another: to a server that has not failed.

        Idle connections to those that have are passed over if there is another, and else closed,
        to make place for one.
        """
        tried = wrapper._tried
        if tried.issuperset(self.server_list):
            tried.clear()
        while True:
            conn = self._acquire()
            if conn.server not in tried:
                break
            others = any(each.server not in tried for each in self._idle_connections())
            (self.release if others else self.discard)(conn)
        wrapper._lost = False
        wrapper._session = conn._own
        wrapper._stand_in = None if conn is wrapper else conn
        self._tell("connection_checked_out", "debug", connection=conn)

    def _lose(self, wrapper: ConnectionWrapper, error: BaseException) -> None:
        """*error* has left an operation of *wrapper*: what it is connected to is no good."""
        real = wrapper._stand_in or wrapper
        wrapper._lost, wrapper._stand_in = True, None
        hold = self._hold_on(real)
        if hold is not None:
            self._discard(hold, real, Reason.ERROR, error)
        self._tell(
            "connection_failed",
            "info",
            error=error,
            server=real.server,
            connection=real,
            in_use=True,
        )

    def _breaks(self, error: BaseException) -> bool:
        return not isinstance(error, Exception) or isinstance(
            error, (*self.retry_on, *self.discard_on)
        )

    def _hold_on(self, conn: ConnectionWrapper) -> Hold | None:
        """The hold on it; None if it was closed under its holder, or by a fork."""
        try:
            hold = self._hold_of(conn)
        except NotInUse:
            return None
        return hold if self._is_held(hold) else None

    def _reason_to_close(self, session: Session, real: ConnectionWrapper) -> Reason | None:
        """Why what is put back must be closed, or None."""
        if self._is_closed(session, real):
            return Reason.DISCARDED
        if -1 < self.recycle <= session.operation_count:
            return Reason.WORN_OUT
        return None if session.server in self.server_list else Reason.DRAINED

    def _is_closed(self, session: Session, real: ConnectionWrapper) -> bool:
        facts = self._facts_of(real)
        if facts is None or session.closed:
            return True
        return facts.fd is not None and facts.fd != sockets.fileno(session.socket)


QueuePool = ConnectionPool
