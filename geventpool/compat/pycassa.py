"""The API of pycassa.pool 1.11: ``from geventpool.compat.pycassa import ConnectionPool``.

Its names, parameters, events and exceptions over a geventpool ConnectionPool, which the pool is:
``stats()``, ``holders()``, ``drain()`` and ``close()`` are there, too (but connections come from
``get`` and go by ``put`` alone).  The Thrift client comes from a *client_factory* of yours.
What changes for its users, and why, stands in ``docs/moving.md``.
"""

from __future__ import annotations

import copy
import logging
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from time import monotonic, time
from typing import Any

import gevent
from gevent.local import local

from geventpool import events, sockets
from geventpool._runtime.slots import ConnectionSlot as Slot
from geventpool._scheduler.state import CLOSED
from geventpool._util.arguments import check_seconds, check_whole
from geventpool._util.errors import copy_of
from geventpool.addresses import Address, address
from geventpool.backoff import Backoff
from geventpool.errors import ConnectError, NotInUse, PoolError, PoolTimeout
from geventpool.events import Reason
from geventpool.pools import ConnectionPool as SingleServerPool

__all__ = [
    "AllServersUnavailable",
    "ConnectionPool",
    "ConnectionWrapper",
    "InvalidRequestError",
    "MaximumRetryException",
    "NoConnectionAvailable",
    "PoolListener",
    "PoolLogger",
    "QueuePool",
    "StatsLogger",
]

# The modules of pycassa that these names come from, for a line such as ``from
# geventpool.compat.pycassa.pool import ConnectionPool`` (as os.path does it).
pool = sys.modules[__name__]
for _module in ("pool", "logging", "logging.pool_logger", "logging.pool_stats_logger"):
    sys.modules[f"{__name__}.{_module}"] = pool

CONNECT_TIMEOUT = 10.0  # seconds for one server to connect, log in and set the keyspace
OPEN_TIMEOUT = 30.0  # seconds that a caller waits at least, where the pool may open one for it
_BACKOFF = Backoff(first=0.02, longest=0.5)  # between retries, and between rounds of dials


class AllServersUnavailable(PoolError):
    """Each server was dialed twice, in vain; ``__cause__`` is the last failure."""


class NoConnectionAvailable(PoolError):
    """All connections are taken, and none came free in time."""


class MaximumRetryException(Exception):
    """An operation failed more often than *max_retries* allows; ``__cause__`` is the last failure.

    Its wrapper has no connection any more; another operation takes another one.
    """


class InvalidRequestError(NotInUse):
    """The wrapper was given back already, or is none of this pool's."""


@dataclass
class _Session:
    """An open client, and what is known of it."""

    client: Any
    server: str
    starttime: float = field(default_factory=time)
    info: dict[str, Any] = field(default_factory=dict)
    operation_count: int = 0
    closed: bool = False  # by its holder
    suspect: bool = False  # one of its methods has raised
    socket: Any = None  # what has the descriptor

    def __post_init__(self) -> None:
        self.socket = _socket_of(self.client)


class ConnectionWrapper:
    """A connection of a ConnectionPool: it has the client's methods, and retries them.

    Only ``ConnectionPool.get()`` makes these.  A method that raises one of the pool's *retry_on*
    loses its connection; after a pause it is called again, on one to another server where there is
    one.  With ``allow_retries=False`` it is not.

    A method raises MaximumRetryException after more than *max_retries* failures since the last
    success (-1: never), InvalidRequestError if the wrapper was given back, what ``get()`` raises
    if it needs another connection and there is none, and what the client raises otherwise.
    """

    server = property(attrgetter("_session.server"), doc="The server it is connected to.")
    starttime = property(attrgetter("_session.starttime"), doc="When it was opened, wall clock.")
    info = property(attrgetter("_session.info"), doc="``info['request']`` is the last call.")
    operation_count = property(attrgetter("_session.operation_count"), doc="Calls so far.")

    def __init__(self, pool: ConnectionPool, max_retries: int, server: str, client: Any) -> None:
        self.max_retries = max_retries
        self.keyspace = pool.keyspace
        self._home = weakref.ref(pool)
        self._pool: ConnectionPool | None = None  # while it is checked out
        self._own = self._session = _Session(client, server)
        self._stand_in: ConnectionWrapper | None = None  # after a retry: whose session it has
        self._opening = True  # listeners may set it up; no caller has it yet
        self._lost = False  # checked out, but what it had has broken
        self._uses = self._retries = 0
        self._tried: set[str] = set()  # the servers that have failed since the last success

    def return_to_pool(self) -> None:
        """Return this to the pool, as ``ConnectionPool.put()`` does."""
        if (home := self._home()) is not None:  # it lives as long as this is checked out
            home.put(self)

    def close(self) -> None:
        """Close the client.  Its place is free once this is put back."""
        if self._pool is not None:
            self._session.closed = True
            _close(self._session.client)

    def get_keyspace_description(
        self, keyspace: str | None = None, use_dict_for_col_metadata: bool = False
    ) -> dict[str, Any]:
        """Return ``{column family name: CfDef}``; their column metadata as a dict, if wanted."""
        found = self.describe_keyspace(self.keyspace if keyspace is None else keyspace).cf_defs
        for each in found if use_dict_for_col_metadata else ():
            each.column_metadata = {datum.name: datum for datum in each.column_metadata}
        return {each.name: each for each in found}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._session.client, name)
        return partial(self._call, name) if callable(value) else value

    def __str__(self) -> str:
        return f"<ConnectionWrapper {self.keyspace}@{self.server}>"

    def _call(self, method: str, /, *args: Any, allow_retries: bool = True, **kwargs: Any) -> Any:
        while True:
            pool = self._pool
            if pool is None and not self._opening:
                raise InvalidRequestError(f"{self} is back in the pool: too late for {method}()")
            if pool is not None and self._lost:
                pool._replace(self)
            session = self._session
            session.operation_count += 1
            session.info["request"] = {"method": method, "args": args, "kwargs": kwargs}
            try:
                result = getattr(session.client, method)(*args, **kwargs)
                self._retries = 0
                self._tried.clear()
                return result
            except BaseException as error:
                session.suspect = True
                if pool is None or not pool._breaks(error):
                    raise
                pool._lose(self, error)
                if not pool._may_retry(error):
                    raise
                self._retries += 1
                self._tried.add(session.server)
                if not allow_retries or -1 < self.max_retries < self._retries:
                    raise MaximumRetryException(
                        f"Retried {self._retries} times. Last failure was"
                        f" {type(error).__name__}: {error}"
                    ) from error
            gevent.sleep(_BACKOFF.delay(self._retries))


class ConnectionPool(SingleServerPool[ConnectionWrapper]):
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

    client_factory: Callable[..., Any] | None = None
    socket_factory: Callable[..., Any] | None = None
    transport_factory: Callable[..., Any] | None = None
    retry_on: tuple[type[BaseException], ...] = (OSError, EOFError)
    discard_on: tuple[type[BaseException], ...] = ()
    pool_timeout: float = 30
    recycle: int = 10000
    max_retries: int = 5
    logging_name: Any = None

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
        for name, given in zip(_FACTORIES, (socket_factory, transport_factory), strict=True):
            if given is not None:
                settings[name] = given
        if unknown := settings.keys() - _SETTINGS:
            raise TypeError(f"ConnectionPool has no parameter {', '.join(sorted(unknown))}")
        check_whole("pool_size", pool_size, 1)
        check_whole("max_overflow", max_overflow, -1)
        name = settings.get("logging_name") or self.logging_name
        super().__init__(
            pool_size,
            min_size=0,
            max_overflow=None if max_overflow == -1 else max_overflow,
            order="fifo",
            backoff=_BACKOFF,
            fail_fast=True,
            name=str(name) if name else None,
        )
        self.log = _logger()
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
        super().add_listener(_EventTranslator())
        for listener in (PoolLogger(), *listeners):
            self.add_listener(listener)
        self.set_server_list(server_list)
        if prefill:
            try:
                self.fill()
            except BaseException:
                self.close(0)
                raise

    def __setattr__(self, name: str, value: object) -> None:
        if name in _CHECKS:
            _CHECKS[name](name, value)
        super().__setattr__(name, value)

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
            if not self._is_closed(held._session, self._slot_of(held._stand_in or held)):
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
            if self._local is None and id(conn) in self.slots_by_id:
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
        slot = self._slot_of(real)  # none if it is lost
        if slot is not None:
            reason = self._reason_to_close(session, slot)
            if reason is None:
                suspect, session.suspect = session.suspect, False
                self._runtime.checkin(self, slot, real, suspect)
            else:
                self._runtime.discard(self, slot, real, reason)
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
        bucket, kept = self._bucket, self._bucket.min_size
        self.resize(bucket.size, bucket.size)
        try:
            super().fill(timeout=None)
        except BaseException:
            self.resize(bucket.size, kept)
            raise

    def dispose(self) -> None:
        """Close the connections that are not in use.  The pool stays usable: it opens on demand."""
        self.resize(self._bucket.size, 0)
        super().dispose()

    def set_server_list(self, server_list: Iterable[str] | Callable[[], Iterable[str]]) -> None:
        """Connect to these servers from now on, ``"host:port"`` or ``"host"``, in random order.

        A function is called once and returns them.  Connections to others are closed: those that
        are idle now, those in use when they are put back.
        """
        servers = server_list() if callable(server_list) else server_list
        if isinstance(servers, (str, bytes)):
            raise TypeError(f"server_list must be a list of servers, not {servers!r}")
        shuffled = list(servers)
        for server in shuffled:
            _host_and_port(server)
        random.shuffle(shuffled)
        self.server_list = shuffled
        self._position = 0
        self.connect_timeout = 2 * CONNECT_TIMEOUT * (len(shuffled) + 1)
        for slot in list(self._bucket.idle_slots()):
            if slot.conn.server not in shuffled:
                self._runtime.scheduler.dismiss(slot, Reason.DRAINED, monotonic())
        self._tell("server_list_obtained", "debug", server_list=list(shuffled))

    def add_listener(self, listener: Any) -> None:
        """Have *listener* told, which has some of PoolListener's methods, or is a dict of them."""
        given = listener if isinstance(listener, Mapping) else None
        found: dict[str, Any] = {}
        for what in _EVENTS if given is None else given:
            method = getattr(listener, what, None) if given is None else given[what]
            if what not in _EVENTS or (given is not None and not callable(method)):
                raise TypeError(f"listeners: {what!r} is no event of PoolListener, or not callable")
            if callable(method):
                found[what] = method
        if not found:
            raise TypeError(f"listeners: {listener!r} has none of the methods of PoolListener")
        self.listeners.append(listener)
        if found.get(_SPELLINGS[0]) == found.get(_SPELLINGS[1]):
            found.pop(_SPELLINGS[1], None)
        for what, method in found.items():
            if getattr(method, "__func__", None) is not getattr(PoolListener, what):
                self._callbacks.setdefault(_EVENTS[what], []).append(method)

    # Looking

    @property
    def max_overflow(self) -> int:
        """How many more than *pool_size* may be open; -1 for any number.  May be set."""
        overflow = self._bucket.max_overflow
        return -1 if overflow == float("inf") else int(overflow)

    @max_overflow.setter
    def max_overflow(self, max_overflow: int) -> None:
        check_whole("max_overflow", max_overflow, -1)
        size, min_size = self._bucket.size, self._bucket.min_size
        self.resize(size, min_size, max_overflow=None if max_overflow == -1 else max_overflow)

    def size(self) -> int:  # type: ignore[override]
        """How many connections the pool keeps at most."""
        return self._bucket.size

    def overflow(self) -> int:
        """How many connections more than that are open."""
        return max(self._bucket.open - self._bucket.size, 0)

    def checkedin(self) -> int:
        """How many connections are idle."""
        return self._bucket.idle

    def checkedout(self) -> int:
        """How many connections are in use."""
        return self._bucket.in_use

    # Inside: dialing, in a greenlet of the pool

    def _new_connection(self) -> ConnectionWrapper:
        try:
            conn = self._dial()
        except Exception:
            # All that wait are told, and not one after the other
            self._bucket.refuse_while_down(True)
            raise
        self._bucket.refuse_while_down(False)
        return conn

    def _dial(self) -> ConnectionWrapper:
        servers, first = list(self.server_list), self._position
        if not servers:
            raise AllServersUnavailable("Cannot connect to any servers as server list is empty!")
        for number in range(first, first + 2 * len(servers)):
            if number == first + len(servers):
                gevent.sleep(_BACKOFF.delay(1))
            self._position = (number + 1) % len(servers)
            server = servers[number % len(servers)]
            try:
                return self._open(server)
            except Exception as exc:
                if not self._may_retry(exc):
                    raise
                error = exc
            self._tell("connection_failed", "info", error=error, server=server, connection=None)
        raise AllServersUnavailable(
            "An attempt was made to connect to each of the servers twice, but none of the attempts"
            f" succeeded. The last failure was {type(error).__name__}: {error}"
        ) from error

    def _open(self, server: str) -> ConnectionWrapper:
        host, port = _host_and_port(server)
        extra = {name: given for name in _FACTORIES if (given := getattr(self, name)) is not None}
        late = ConnectError(f"{server} took longer than {CONNECT_TIMEOUT} s to connect and log in")
        assert self.client_factory is not None
        with gevent.Timeout(CONNECT_TIMEOUT, late):
            client = self.client_factory(host, port, self.timeout, **extra)
            try:
                self._prepare(client)
                conn = ConnectionWrapper(self, self.max_retries, server, client)
                self._tell("connection_created", "debug", connection=conn)
                conn._opening = False
                if conn._session.suspect:
                    raise ConnectError(
                        f"{server}: a listener to connection_created failed in a call"
                    )
            except BaseException:
                with suppress(Exception):  # why it could not be opened matters more
                    _close(client)
                raise
        return conn

    def _prepare(self, client: Any) -> None:
        """Log in and set the keyspace, as far as there are any."""
        if self.credentials is not None:
            client.login(self.credentials)
        if self.keyspace is not None:
            client.set_keyspace(self.keyspace)

    def _close_connection(self, conn: ConnectionWrapper) -> None:
        _close(conn._own.client)

    def _fileno(self, conn: ConnectionWrapper) -> int | None:
        return sockets.fileno(conn._own.socket)

    def _make_probe(self, conn: ConnectionWrapper) -> Callable[[], object] | None:
        return sockets.make_probe(conn._own.socket)

    # Inside: callers

    def _held(self) -> ConnectionWrapper | None:
        """What this greenlet has checked out and still has, with *use_threadlocal*."""
        conn, use = getattr(self._local, "current", (None, 0))
        if conn is None or conn._pool is None or conn._lost or conn._uses != use:
            return None
        return conn  # type: ignore[no-any-return]

    def _acquire(self) -> ConnectionWrapper:
        bucket, wait = self._bucket, None if self.pool_timeout == -1 else self.pool_timeout
        if wait is not None and bucket.in_use + len(bucket.waiters) < bucket.own.maximum:
            wait = max(wait, OPEN_TIMEOUT)  # there is room: what it waits for is a dial
        try:
            return self.acquire(wait)
        except PoolTimeout as error:
            if error.__cause__ is not None:
                raise copy_of(error.__cause__) from error.__cause__.__cause__
            if not wait:
                self._tell("pool_at_max", "info", pool_max=bucket.own.maximum)
            overflow = f" overflow {self.max_overflow}" if self.max_overflow else ""
            raise NoConnectionAvailable(
                f"ConnectionPool limit of size {bucket.size}{overflow} reached, unable to obtain"
                f" connection after {self.pool_timeout} seconds",
                pool=self.name,
            ) from error
        except Exception as error:
            if error is not bucket.last_error:
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
            others = any(slot.conn.server not in tried for slot in self._bucket.idle_slots())
            (self.release if others else self.discard)(conn)
        wrapper._lost = False
        wrapper._session = conn._own
        wrapper._stand_in = None if conn is wrapper else conn
        self._tell("connection_checked_out", "debug", connection=conn)

    def _lose(self, wrapper: ConnectionWrapper, error: BaseException) -> None:
        """*error* has left an operation of *wrapper*: what it is connected to is no good."""
        real = wrapper._stand_in or wrapper
        wrapper._lost, wrapper._stand_in = True, None
        slot = self._slot_of(real)
        if slot is not None:
            self._runtime.discard(self, slot, real, Reason.ERROR, error)
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

    def _may_retry(self, error: BaseException) -> bool:
        return isinstance(error, Exception) and isinstance(error, self.retry_on)

    def _slot_of(self, conn: ConnectionWrapper) -> Slot | None:
        """The slot it is in use in; None if it was closed under its holder, or by a fork."""
        try:
            slot = self._runtime.find(self, conn)
        except NotInUse:
            return None
        return None if slot.state is CLOSED else slot

    def _reason_to_close(self, session: _Session, slot: Slot) -> Reason | None:
        """Why what is put back must be closed, or None."""
        if self._is_closed(session, slot):
            return Reason.DISCARDED
        if -1 < self.recycle <= session.operation_count:
            return Reason.WORN_OUT
        return None if session.server in self.server_list else Reason.DRAINED

    def _is_closed(self, session: _Session, slot: Slot | None) -> bool:
        if slot is None or session.closed:
            return True
        return slot.fd is not None and slot.fd != sockets.fileno(session.socket)

    def _tell(self, what: str, level: str, **fields: Any) -> None:
        """Tell the listeners; what they raise is logged."""
        for listener in self._callbacks.get(what, ()):
            try:
                listener({"pool_id": self.logging_name, "level": level, **fields})
            except Exception:
                self._runtime._log(self, logging.ERROR, "%r failed", listener, exc_info=True)


QueuePool = ConnectionPool


class _EventTranslator(events.PoolListener):
    """Makes pycassa's events of the runtime's own."""

    def connection_disposed(self, event: events.ConnectionDisposed) -> None:
        if event.reason is not Reason.ERROR:  # that it has failed is told already
            message = {
                Reason.SURPLUS: "pool is already full",
                Reason.WORN_OUT: "recyling connection",
                Reason.DISPOSED: f"Pool {id(event.pool)} is being disposed",
            }.get(event.reason, str(event.reason))
            _tell(event, "connection_disposed", connection=event.connection, message=message)

    def connection_recycled(self, event: events.ConnectionRecycled) -> None:
        old, new = event.old_connection, event.new_connection
        _tell(event, "connection_recycled", old_conn=old, new_conn=new)

    def connection_lost(self, event: events.ConnectionLost) -> None:
        error = ConnectError("a connection was garbage collected without having been put back")
        fields = {"error": error, "server": None, "connection": None, "in_use": True}
        _tell(event, "connection_failed", "info", **fields)

    def pool_disposed(self, event: events.PoolDisposed) -> None:
        _tell(event, "pool_disposed", "info")

    def pool_at_max(self, event: events.PoolAtMax) -> None:
        _tell(event, "pool_at_max", "info", pool_max=event.maximum)


def _tell(event: events.PoolEvent, what: str, level: str = "debug", **fields: Any) -> None:
    event.pool._tell(what, level, **fields)


class PoolListener:
    """Told, with one dict each, what happens in a pool.  Any of its methods will do.

    ``connection_created`` (before anybody gets it: it may be set up), ``connection_checked_out``,
    ``connection_checked_in``, ``connection_disposed`` (closed, unless it has failed),
    ``connection_failed`` (a server could not be connected to, or a connection broke),
    ``connection_recycled`` (replaced after *recycle* operations), ``pool_at_max`` (a caller found
    all taken), ``pool_disposed`` (or closed), and ``server_list_obtained`` or, as the code of
    pycassa spelled it, ``obtained_server_list``.

    Each dict has *pool_id*, *level* and what pycassa documents for the event.  In that of a
    ``connection_failed`` there is also *in_use*, true if it was checked out.
    """


_Told = Callable[[Any, dict[str, Any]], None]
_SPELLINGS = ("server_list_obtained", "obtained_server_list")
_EVENTS = {
    f"connection_{what}": f"connection_{what}"
    for what in ("created", "checked_out", "checked_in", "disposed", "failed", "recycled")
}
_EVENTS.update(pool_at_max="pool_at_max", pool_disposed="pool_disposed")
_EVENTS.update(dict.fromkeys(_SPELLINGS, _SPELLINGS[0]))
for _name in _EVENTS:
    setattr(PoolListener, _name, lambda self, dic: None)


def _logs(text: str) -> _Told:
    def log(self: PoolLogger, dic: dict[str, Any]) -> None:
        if self.logger.isEnabledFor(level := _level(dic)):
            names = {
                f"{key}_name": _named(dic, key) for key in ("connection", "old_conn", "new_conn")
            }
            self.logger.log(level, "%s", text.format_map({**dic, **names}))

    return log


class PoolLogger(PoolListener):
    """Logs what happens to the logger ``pycassa.pool``, as every pool has it do."""

    def __init__(self) -> None:
        self.logger = _logger()

    connection_created = _logs("Connection {connection_name} opened for pool {pool_id}")
    connection_checked_out = _logs(
        "Connection {connection_name} was checked out from pool {pool_id}"
    )
    connection_checked_in = _logs("Connection {connection_name} was checked in to pool {pool_id}")
    connection_disposed = _logs(
        "Connection {connection_name} was closed; pool {pool_id}, reason: {message}"
    )
    connection_recycled = _logs(
        "Connection {old_conn_name} is being recycled in pool {pool_id} after"
        " {old_conn.operation_count} operations; it is replaced by connection {new_conn_name}"
    )
    connection_failed = _logs("Connection {connection_name} in pool {pool_id} failed: {error}")
    server_list_obtained = obtained_server_list = _logs(
        "Server list obtained for pool {pool_id}: {server_list}"
    )
    pool_disposed = _logs("Pool {pool_id} was disposed")
    pool_at_max = _logs(
        "Pool {pool_id} had a checkout request but was already at its max size ({pool_max})"
    )


def _counts(what: str, opened: int = 0) -> _Told:
    def count(self: StatsLogger, dic: dict[str, Any]) -> None:
        outcome = "success" if _level(dic) <= logging.INFO else "failure"
        self._count(what, outcome, opened)

    return count


class StatsLogger(PoolListener):
    """Counts what happens, in ``stats``; its *opened* is how many are checked out."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start again from zero."""
        with self.lock:
            self._stats: dict[str, Any] = {
                what: {"success": 0, "failure": 0} for what in ("created", "disposed")
            }
            self._stats["opened"] = {"current": 0, "max": 0}
            for what in ("checked_out", "checked_in", "recycled", "failed", "list", "at_max"):
                self._stats[what] = 0

    @property
    def stats(self) -> dict[str, Any]:
        """The counters as they are now; a copy."""
        with self.lock:
            return copy.deepcopy(self._stats)

    connection_created = _counts("created")
    connection_checked_out = _counts("checked_out", opened=1)
    connection_checked_in = _counts("checked_in", opened=-1)
    connection_disposed = _counts("disposed")
    connection_recycled = _counts("recycled")
    server_list_obtained = obtained_server_list = _counts("list")
    pool_at_max = _counts("at_max")

    def connection_failed(self, dic: dict[str, Any]) -> None:
        self._count("failed", opened=-1 if dic.get("in_use") else 0)
        if dic.get("server") is not None and dic.get("connection") is None:
            self._count("created", "failure")

    def _count(self, what: str, outcome: str = "success", opened: int = 0) -> None:
        with self.lock:
            if what in ("created", "disposed"):
                self._stats[what][outcome] += 1
            else:
                self._stats[what] += 1
            now = self._stats["opened"]
            now["current"] += opened
            now["max"] = max(now["max"], now["current"])


def _level(dic: dict[str, Any]) -> int:
    level: int = getattr(logging, dic.get("level", "info").upper())  # WARN is one
    return level


def _named(dic: dict[str, Any], key: str) -> str:
    conn = dic.get(key)
    return f"{id(conn)} ({conn.server})" if conn is not None else f"to {dic.get('server')}"


def _logger() -> logging.Logger:
    """The logger of pycassa's pools: silent unless the program gives it a handler."""
    root = logging.getLogger("pycassa")
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    if root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
    return root.getChild("pool")


_FACTORIES = ("socket_factory", "transport_factory")
_SETTINGS = {"client_factory", "retry_on", "discard_on", "pool_timeout", "recycle", "max_retries"}
_SETTINGS.update(_FACTORIES, ["logging_name"])


def _check_classes(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(
        isinstance(each, type) and issubclass(each, BaseException) for each in value
    ):
        raise TypeError(f"{name} must be a tuple of exception classes, not {value!r}")


def _check_patience(name: str, value: Any) -> None:
    if value != -1:
        check_seconds(name, value, zero=True, none=False)


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "timeout": check_seconds,
    "pool_timeout": _check_patience,
    "recycle": partial(check_whole, least=-1),
    "max_retries": partial(check_whole, least=-1),
    "retry_on": _check_classes,
    "discard_on": _check_classes,
}


def _host_and_port(server: object) -> tuple[str, int]:
    found = address(server, 9160) if isinstance(server, str) else None
    if not isinstance(found, Address):
        raise TypeError(f"server_list must hold texts like 'host:port', not {server!r}")
    return found.ip, found.port


def _socket_of(client: Any) -> Any:
    """The socket below *client* and its layers, as Thrift has them; *client* if none is found."""
    layer = client
    for _ in range(8):
        if hasattr(layer, "recv") and hasattr(layer, "fileno"):
            return layer
        below = (getattr(layer, name, None) for name in _BELOW)
        layer = next((each for each in below if each is not None), None)
    return client


# In thriftpy2, Apache Thrift, and what people write.
_BELOW = ("_iprot", "trans", "_trans", "_TFramedTransport__trans", "handle", "sock", "_sock")


def _close(client: Any) -> None:
    """Close *client*; if it has no method for that, its transport or its socket."""
    if not hasattr(client, "close"):
        client = getattr(getattr(client, "_iprot", None), "trans", None) or _socket_of(client)
    sockets.close(client)
