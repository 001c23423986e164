"""The API of generic-connection-pool 0.8.1, over an EndpointPool, which its ConnectionPool is.

All its names are here: those of ``threading``, ``common``, ``exceptions`` and ``contrib``, and the
cooperative twins of those of ``asyncio``: a gevent program needs no event loop, so the classes are
the same ones, and their methods have no ``async``.  Streams are pairs of buffered files.  What
changes for its users, and why, stands in ``docs/moving.md``.
"""

from __future__ import annotations

import abc
import inspect
import io
import logging
import pathlib
import ssl as tls
import sys
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Generic, TypeVar

from gevent import Timeout
from gevent.socket import SHUT_RDWR, getdefaulttimeout
from gevent.socket import socket as Socket
from gevent.ssl import SSLSocket, create_default_context

from geventpool import sockets
from geventpool._runtime.runtime import CLOSE_TIMEOUT
from geventpool._runtime.slots import ConnectionSlot as Slot
from geventpool._scheduler.state import CLOSED, IN_USE
from geventpool.backoff import Backoff
from geventpool.errors import MultiConnectFailure, NotInUse, PoolClosed, PoolError
from geventpool.events import ConnectionDisposed, PoolListener, Reason
from geventpool.pools import EndpointPool, Lease
from geventpool.pools.endpoint_pool import _EndpointLease
from geventpool.pools.lease import DEFAULT

__all__ = [
    "BaseConnectionManager",
    "BaseConnectionPool",
    "BaseError",
    "CheckSocketAlivenessMixin",
    "ConnectionNotAcquired",
    "ConnectionPool",
    "ConnectionPoolClosedError",
    "ConnectionPoolIsFull",
    "ConnectionPoolNotFound",
    "ConnectionT",
    "EndpointT",
    "Hostname",
    "IpAddress",
    "Port",
    "SocketAlivenessCheckingMixin",
    "SslEndpoint",
    "SslSocketAlivenessCheckingMixin",
    "SslSocketConnectionManager",
    "Stream",
    "StreamAlivenessCheckingMixin",
    "StreamReader",
    "StreamWriter",
    "TcpEndpoint",
    "TcpSocketConnectionManager",
    "TcpStreamConnectionManager",
    "TcpStreamEndpoint",
    "UnixSocketConnectionManager",
    "UnixSocketEndpoint",
    "UnixSocketStreamConnectionManager",
]

# The modules that generic-connection-pool is made of: all their names are here, and a line such as
# ``from geventpool.compat.generic_connection_pool.contrib.socket import …`` finds them (as os.path
# does it).
threading = asyncio = common = exceptions = contrib = pool = sys.modules[__name__]
socket = unix = socket_async = unix_async = contrib
for _module in (
    *("threading", "threading.pool", "asyncio", "asyncio.pool", "common", "exceptions", "contrib"),
    *("contrib.socket", "contrib.unix", "contrib.socket_async", "contrib.unix_async"),
):
    sys.modules[f"{__name__}.{_module}"] = contrib

logger = logging.getLogger("generic_connection_pool.threading")

EndpointT = TypeVar("EndpointT", bound=Hashable)
ConnectionT = TypeVar("ConnectionT")

IpAddress = IPv4Address | IPv6Address
Hostname = str
Port = int
TcpEndpoint = tuple[IpAddress, Port]
SslEndpoint = tuple[Hostname, Port]
TcpStreamEndpoint = tuple[Hostname, Port]
UnixSocketEndpoint = pathlib.Path


class BaseError(Exception):
    """What generic-connection-pool's own errors have in common."""


class ConnectionPoolClosedError(BaseError, PoolClosed):
    """``close()`` was called: the pool gives out no connection any more."""


class ConnectionPoolIsFull(BaseError, PoolError):
    """Not raised, as it never was: a caller that finds a pool full waits in line."""


class ConnectionNotAcquired(NotInUse, RuntimeError, AssertionError):
    """The connection given back is not in use here: released twice, or never this pool's."""


class ConnectionPoolNotFound(BaseError, NotInUse):
    """The connection given back is one of another endpoint.  Its holder still has it."""


class BaseConnectionManager(Generic[EndpointT, ConnectionT], abc.ABC):
    """Opens and closes the connections of a pool, and is told what becomes of them.

    Each *timeout*, in seconds, may be left out of a method that has no use for it: the pool ends
    what takes longer.  Nothing raised here harms the pool.
    """

    @abc.abstractmethod
    def create(self, endpoint: EndpointT, timeout: float | None = None) -> ConnectionT:
        """Return a new connection to *endpoint*.  What it raises is raised to a caller."""

    @abc.abstractmethod
    def dispose(self, endpoint: EndpointT, conn: ConnectionT, timeout: float | None = None) -> None:
        """Close *conn*; what it raises is logged."""

    def check_aliveness(
        self, endpoint: EndpointT, conn: ConnectionT, timeout: float | None = None
    ) -> bool:
        """Whether *conn*, which has been used before, may be handed out.

        It is disposed of if not, or if this raises.
        """
        return True

    def on_acquire(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called just before a caller gets *conn*.  What it raises is raised to that caller, and
        *conn* is disposed of."""

    def on_release(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called once after each ``on_acquire``, before anybody else gets *conn*.  What it raises
        is logged, and *conn* is disposed of.

        If *conn* cannot be used again anyway, it is called in the background before ``dispose``.
        """

    def on_connection_dead(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called when *conn* was found dead: by ``check_aliveness``, or by the pool itself, which
        may have disposed of it already."""


class BaseConnectionPool(EndpointPool[EndpointT, ConnectionT], Generic[EndpointT, ConnectionT]):
    """The limits of a pool: see ConnectionPool."""

    def __init__(
        self,
        *,
        idle_timeout: float = 60.0,
        max_lifetime: float = 3600.0,
        min_idle: int = 1,
        max_size: int = 10,
        total_max_size: int = 100,
        **settings: Any,
    ) -> None:
        assert min_idle <= max_size, "min_idle can't be greater than max_size"
        assert max_size <= total_max_size, "max_size can't be greater than total_max_size"
        assert idle_timeout <= max_lifetime, "idle_timeout can't be greater than max_lifetime"
        self._idle_timeout = idle_timeout
        self._max_lifetime = max_lifetime
        super().__init__(
            idle_timeout=_span(idle_timeout),
            max_lifetime=_span(max_lifetime),
            min_idle=min_idle,
            max_size=max_size,
            total_max_size=total_max_size,
            **settings,
        )

    @property
    def idle_timeout(self) -> float:
        """Seconds after which an unused connection is closed, *min_idle* per endpoint excepted."""
        return self._idle_timeout

    @property
    def max_lifetime(self) -> float:
        """Seconds after which any connection is closed."""
        return self._max_lifetime

    @property
    def min_idle(self) -> int:
        """How many connections of each endpoint *idle_timeout* spares."""
        return self._min_idle

    @property
    def is_full(self) -> bool:
        """Whether there are *total_max_size* connections."""
        return self._total.full

    def get_size(self) -> int:
        """How many connections there are, those being opened or closed too."""
        return self.size


class ConnectionPool(BaseConnectionPool[EndpointT, ConnectionT], Generic[EndpointT, ConnectionT]):
    """A pool of what *connection_manager* creates, at most *max_size* to each endpoint and
    *total_max_size* in all.

    *acquire_timeout* is how long callers wait (seconds; None: as long as it takes).  Each
    ``dispose`` may take *dispose_timeout*, and 5 s at most.  *background_collector* and
    *dispose_batch_size* are of no effect: what is due is always disposed of in the background.
    *settings* are those of an EndpointPool, such as *name* or *listeners*; *connect_timeout*, how
    long a ``create`` may take, is by default 10 s, or *acquire_timeout* if that is more.
    """

    def __init__(
        self,
        connection_manager: BaseConnectionManager[EndpointT, ConnectionT],
        *,
        acquire_timeout: float | None = None,
        background_collector: bool = False,
        dispose_batch_size: int = 0,
        dispose_timeout: float | None = None,
        min_idle: int = 1,
        max_size: int = 10,
        **settings: Any,
    ) -> None:
        manager = connection_manager
        if settings.pop("greenlet_local", False):
            raise TypeError("greenlet_local is not for this pool: use an EndpointPool")
        self._connection_manager = manager
        self._dispose_timeout = dispose_timeout
        self._create = _timed(manager.create, "an endpoint")
        self._dispose = _timed(manager.dispose, "an endpoint", "a connection")
        self._check = _timed(manager.check_aliveness, "an endpoint", "a connection")
        settings.setdefault("connect_timeout", max(10.0, acquire_timeout or 0.0))
        # As with a fixed `create`, each caller is told of a failure of its own, and soon.
        settings.setdefault("backoff", Backoff(first=0.01, longest=0.1))
        settings.setdefault("fail_fast", True)
        checks = _is_own(manager.check_aliveness)
        super().__init__(
            timeout=acquire_timeout,
            check_after=0.0 if checks else None,
            min_idle=min_idle,
            max_size=max_size,
            **settings,
        )
        if checks:
            self.check_after = -1.0  # what goes from hand to hand without lying idle, too
        self._lease = _ManagedLease
        self.has_reset = _is_own(manager.on_release)
        self._unreleased: set[Any] = set()  # what on_acquire was called with, on_release not
        if _is_own(manager.on_connection_dead):
            self.add_listener(_DeadConnectionNotifier(manager))

    def connection(self, endpoint: EndpointT, timeout: float | None = None) -> Lease[ConnectionT]:
        """A connection to *endpoint* for the length of a ``with``; see ``acquire``.

        It goes back or is disposed of by what leaves the ``with``: see Lease.
        """
        return self.get(endpoint, DEFAULT if timeout is None else max(timeout, 0.0))

    def acquire(self, endpoint: EndpointT, timeout: float | None = None) -> ConnectionT:
        """Return a connection to *endpoint*; ``release`` it afterwards.

        Waits for at most *timeout* seconds (None: *acquire_timeout*; 0: takes one that lies idle).
        Raises TimeoutError if none came free or open in time, ConnectionPoolClosedError once
        ``close()`` was called, and what ``create`` or ``on_acquire`` raises.
        """
        return self.connection(endpoint, timeout).__enter__()

    def release(self, conn: ConnectionT, endpoint: EndpointT = DEFAULT) -> None:
        """Give back a connection.

        In a ``finally`` or an ``except`` it is disposed of if the exception there makes it unfit
        for use, as if it had left a ``with``.  Raises ConnectionNotAcquired if *conn* is not in use
        here, and ConnectionPoolNotFound, leaving it in use, if it is none of *endpoint*'s.
        """
        slot = self._slot_of(conn)
        if slot is None or slot.state is CLOSED:
            return
        if endpoint is not DEFAULT and slot.bucket.endpoint != endpoint:
            raise ConnectionPoolNotFound(
                f"pool {self.name!r}: {conn!r} is a connection to {slot.bucket.endpoint!r},"
                f" not to {endpoint!r}",
                pool=self.name,
                connection=conn,
            )
        exc = sys.exc_info()[1]
        if exc is not None and self._breaks_connection(exc):
            self._runtime.discard(self, slot, conn, Reason.ERROR, exc)
        else:
            self._runtime.checkin(self, slot, conn, suspect=exc is not None)

    def close(self, timeout: float | None = None) -> None:
        """Close the pool for good: see EndpointPool.  After *timeout* seconds (None: never) what
        is still in use is disposed of, too."""
        super().close(None if timeout is None else max(timeout, 0.0))

    def get_endpoint_pool_size(self, endpoint: EndpointT, acquired: bool | None = None) -> int:
        """How many connections to *endpoint* there are; *acquired*: in use (True), idle (False)."""
        bucket = self._buckets.get(endpoint)
        if bucket is None:
            return 0
        if acquired is None:
            return len(bucket.slots)
        return bucket.in_use if acquired else bucket.idle

    # Inside

    def _slot_of(self, conn: ConnectionT) -> Slot | None:
        """The slot in which the caller has *conn*; None if the pool is closed, and *conn* too."""
        try:
            return self._runtime.find(self, conn)
        except NotInUse as error:
            if self.closed:
                return None
            raise ConnectionNotAcquired(str(error), pool=self.name, connection=conn) from None

    def _new_connection(self, endpoint: EndpointT) -> ConnectionT:
        seconds = self.connect_timeout
        try:
            conn: ConnectionT = self._create(endpoint, timeout=seconds)
        except Timeout as expired:
            raise TimeoutError(
                f"pool {self.name!r}: no connection to {endpoint} within {seconds} s"
            ) from expired.__cause__
        self._unreleased.discard(_ident(conn))  # that of one that was garbage collected
        return conn

    def _keepalive(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        slot = self.slots_by_id.get(id(conn))
        if slot is not None and slot.uses == 1 and not slot.idled:
            return  # just created
        if not self._check(endpoint, conn, timeout=self.keepalive_timeout):
            self._connection_manager.on_connection_dead(endpoint, conn)
            raise ConnectionError("check_aliveness says that it is dead")

    def _reset_connection(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        if (ident := _ident(conn)) in self._unreleased:
            self._unreleased.discard(ident)
            self._connection_manager.on_release(endpoint, conn)

    def _close_connection(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        try:
            with Timeout(CLOSE_TIMEOUT / 2):
                self._reset_connection(endpoint, conn)
        except (Exception, Timeout) as error:
            logger.debug("on_release failed for a connection that is disposed of: %r", error)
        timer = Timeout.start_new(self._dispose_timeout)
        try:
            self._dispose(endpoint, conn, timeout=self._dispose_timeout)
        except (Exception, Timeout) as error:
            logger.error("connection disposal failed: %r", error)
            with suppress(Exception):
                sockets.close(conn)
        finally:
            timer.close()

    def _fileno(self, endpoint: EndpointT, conn: ConnectionT) -> int | None:
        return sockets.fileno(_socket_of(conn))

    def _make_probe(self, conn: Any) -> Callable[[], object] | None:
        return _make_probe(conn)


class _ManagedLease(_EndpointLease):
    """A lease that tells the manager, and raises the errors that have an old name by that name."""

    __slots__ = ()

    def __enter__(self) -> Any:
        try:
            conn = super().__enter__()
        except PoolClosed as error:
            raise ConnectionPoolClosedError(str(error), pool=error.pool) from None
        pool: Any = self._pool
        try:
            pool._connection_manager.on_acquire(self._slot.bucket.endpoint, conn)
        except BaseException as exc:
            if self._slot.state is IN_USE and self._slot.uses == self._use:
                pool._runtime.discard(pool, self._slot, conn, Reason.ERROR, exc)
            raise
        if pool.has_reset:
            pool._unreleased.add(_ident(conn))
        return conn


class _DeadConnectionNotifier(PoolListener):
    """Tells the manager of connections that the pool itself has found dead."""

    def __init__(self, manager: BaseConnectionManager[Any, Any]) -> None:
        self._manager = manager

    def connection_disposed(self, event: ConnectionDisposed) -> None:
        if event.reason in (Reason.PEER_CLOSED, Reason.UNREAD, Reason.DEAD):
            self._manager.on_connection_dead(event.endpoint, event.connection)


# Sockets


class _LookingMixin(Generic[EndpointT]):
    def check_aliveness(self, endpoint: EndpointT, conn: Any, timeout: float | None = None) -> bool:
        """Whether *conn* is open and has no unread bytes.  Does not block.

        A pool looks by itself, and does not call this unless it is overridden.
        """
        why_unusable = _make_probe(conn)
        return why_unusable is None or not why_unusable()


class SocketAlivenessCheckingMixin(_LookingMixin[EndpointT], Generic[EndpointT]):
    """For managers of sockets."""


class SslSocketAlivenessCheckingMixin(_LookingMixin[EndpointT], Generic[EndpointT]):
    """For managers of TLS sockets."""


class CheckSocketAlivenessMixin(_LookingMixin[EndpointT], Generic[EndpointT]):
    """For managers of Unix sockets."""


class StreamAlivenessCheckingMixin(_LookingMixin[EndpointT], Generic[EndpointT]):
    """For managers of streams."""


class _SocketManager(BaseConnectionManager[EndpointT, ConnectionT]):
    def dispose(self, endpoint: EndpointT, conn: Any, timeout: float | None = None) -> None:
        """Close the socket.  Does not block."""
        with suppress(OSError):
            conn.shutdown(SHUT_RDWR)
        conn.close()


class TcpSocketConnectionManager(
    SocketAlivenessCheckingMixin[TcpEndpoint], _SocketManager[TcpEndpoint, Socket]
):
    """Opens TCP sockets to ``(IPv4Address or IPv6Address, port)``."""

    def create(self, endpoint: TcpEndpoint, timeout: float | None = None) -> Socket:
        """Return a connected socket; TimeoutError after *timeout* seconds."""
        sock: Socket = _open(endpoint, timeout)
        return sock


class SslSocketConnectionManager(
    SslSocketAlivenessCheckingMixin[SslEndpoint], _SocketManager[SslEndpoint, SSLSocket]
):
    """Opens TLS sockets to ``(host name, port)``; *ssl* is the context."""

    def __init__(self, ssl: tls.SSLContext) -> None:
        self._ssl = ssl

    def create(self, endpoint: SslEndpoint, timeout: float | None = None) -> SSLSocket:
        """Return a socket after the handshake; TimeoutError after *timeout* seconds."""
        sock: SSLSocket = _open(endpoint, timeout, self._ssl)
        return sock


class UnixSocketConnectionManager(
    CheckSocketAlivenessMixin[UnixSocketEndpoint], _SocketManager[UnixSocketEndpoint, Socket]
):
    """Opens Unix sockets; the endpoint is a ``pathlib.Path``."""

    def create(self, endpoint: UnixSocketEndpoint, timeout: float | None = None) -> Socket:
        """Return a connected socket; TimeoutError after *timeout* seconds."""
        sock: Socket = _open(pathlib.Path(endpoint), timeout)
        return sock


# Streams


class StreamReader(io.BufferedReader):
    """A buffered file that reads from *sock*: ``readline()``, ``read(n)`` (n bytes, fewer only at
    the end), ``read1(n)`` (what has come, n bytes at most)."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock.makefile("rb", buffering=0))
        self.sock = sock

    def _has_unread(self) -> bool:
        timeout = self.sock.gettimeout()
        self.sock.settimeout(0.0)  # so that peek, with an empty buffer, does not wait
        try:
            return bool(self.peek(1))
        except tls.SSLWantReadError:
            return False
        finally:
            self.sock.settimeout(timeout)


class StreamWriter(io.BufferedWriter):
    """A buffered file that sends to *sock*.  As with asyncio, what is written is on its way, and
    nothing is left for the next user to send; unlike there, ``write`` waits for the peer."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock.makefile("wb", buffering=0))
        self.sock = sock

    def write(self, data: Any) -> int:
        count = super().write(data)
        self.flush()
        return count


Stream = tuple[StreamReader, StreamWriter]


class _StreamManager(BaseConnectionManager[EndpointT, Stream]):
    def dispose(self, endpoint: EndpointT, conn: Stream, timeout: float | None = None) -> None:
        """Close both files and the socket.  Does not block."""
        # One of them may be gone: a pool that is closed by force has what is left of a stream.
        files: list[Any] = [file for file in reversed(conn) if file is not None]
        sock = files[0].sock
        with suppress(OSError):
            sock.shutdown(SHUT_RDWR)  # what a write that was cut short has left is not sent now
        for each in (*files, sock):
            with suppress(OSError):
                each.close()


class TcpStreamConnectionManager(
    StreamAlivenessCheckingMixin[TcpStreamEndpoint], _StreamManager[TcpStreamEndpoint]
):
    """Opens ``(reader, writer)`` pairs to ``(host name, port)``: see StreamReader, StreamWriter.

    *ssl* is None or False, True (TLS, verified against the system's roots), or an SSLContext.
    """

    def __init__(self, ssl: bool | tls.SSLContext | None = None) -> None:
        self._ssl = create_default_context() if ssl is True else ssl or False

    def create(self, endpoint: TcpStreamEndpoint, timeout: float | None = None) -> Stream:
        """Return a reader and a writer; TimeoutError after *timeout* seconds."""
        return _streams(_open(endpoint, timeout, self._ssl))


class UnixSocketStreamConnectionManager(
    StreamAlivenessCheckingMixin[UnixSocketEndpoint], _StreamManager[UnixSocketEndpoint]
):
    """Opens ``(reader, writer)`` pairs on Unix sockets; the endpoint is a ``pathlib.Path``."""

    def create(self, endpoint: UnixSocketEndpoint, timeout: float | None = None) -> Stream:
        """Return a reader and a writer; TimeoutError after *timeout* seconds."""
        return _streams(_open(pathlib.Path(endpoint), timeout))


def _open(target: object, timeout: float | None, context: Any = False) -> Any:
    """A socket to *target* within *timeout* seconds; raises what a plain connect would."""
    factory = sockets.SocketFactory(
        target, tls=context, connect_timeout=None, read_timeout=getdefaulttimeout()
    )
    timer = Timeout.start_new(timeout)
    try:
        return factory()
    except Timeout as expired:
        if expired is not timer:
            raise
        raise TimeoutError(f"timed out after {timeout} s: {expired.__cause__}") from None
    except MultiConnectFailure as failure:
        raise failure.errors[-1][1] from failure
    finally:
        timer.close()


def _streams(sock: Any) -> Stream:
    return StreamReader(sock), StreamWriter(sock)


def _ident(conn: Any) -> object:
    """What is the same for a tuple that was taken apart and put together again."""
    return tuple(map(id, conn)) if isinstance(conn, tuple) else id(conn)


def _socket_of(conn: Any) -> Any:
    """What has the descriptor: *conn* itself, unless it is a stream."""
    if isinstance(conn, tuple) and conn and isinstance(conn[0], StreamReader):
        return conn[0].sock
    return conn


def _make_probe(conn: Any) -> Callable[[], object] | None:
    """As ``sockets.make_probe``, for streams, too."""
    sock = _socket_of(conn)
    probe = sockets.make_probe(sock)
    if sock is conn or probe is None:
        return probe
    reference = weakref.ref(conn[0])

    def stream_probe() -> object:
        reader = reference()
        try:
            if reader is None or reader._has_unread():
                return "unread bytes"
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return probe()

    return stream_probe


# What a manager's methods take


_OURS = {
    BaseConnectionManager.check_aliveness,
    BaseConnectionManager.on_release,
    BaseConnectionManager.on_connection_dead,
    _LookingMixin.check_aliveness,
}


def _is_own(method: Any) -> bool:
    """Whether *method* of a manager is its author's, and not one of this module's."""
    return getattr(method, "__func__", method) not in _OURS


def _timed(method: Any, *arguments: str) -> Callable[..., Any]:
    """*method*, made to take a timeout if it does not."""
    if inspect.iscoroutinefunction(method):
        raise TypeError(
            f"{method!r} is async: a gevent program needs no event loop, so make it def"
        )
    try:
        signature = inspect.signature(method)
    except ValueError:  # of a callable in C that does not tell
        return method  # type: ignore[no-any-return]
    with suppress(TypeError):
        signature.bind(*arguments, timeout=None)
        return method  # type: ignore[no-any-return]
    with suppress(TypeError):
        signature.bind(*arguments, None)  # by another name
        return lambda *args, timeout: method(*args, timeout)
    return lambda *args, timeout: method(*args)


def _span(seconds: float) -> float | None:
    """What an EndpointPool takes for it: None for no bound, and not 0."""
    return None if seconds > 1e9 else seconds or 0.01
