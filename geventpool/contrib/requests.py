"""GeventAdapter for requests, and GeventPoolManager for urllib3: their pools on this engine."""

from __future__ import annotations

import functools
import inspect
import queue
import ssl
import weakref
from typing import Any

import requests.adapters
import urllib3
from gevent import monkey
from urllib3 import connection, connectionpool, exceptions

from geventpool.errors import NotInUse, PoolClosed, PoolUnavailable
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import DEFAULT, check_whole
from geventpool.sockets import SocketFactory

__all__ = ["GeventAdapter", "GeventPoolManager"]

_IDLE = "Idle"  # of http.client: no request was begun whose answer has not come
_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}


class GeventAdapter(requests.adapters.HTTPAdapter):  # type: ignore[misc]
    """What a ``requests.Session`` mounts to have its connections in pools of this package.

        session = requests.Session()
        session.mount("https://", GeventAdapter(size=10))

    There is a pool of *size* connections for each scheme, host and port, with the *settings* of
    ConnectionPool.  It is made at the first request; *min_size* is 0 and *fail_fast* is set, so
    that a server that is away is an error at once.  A request waits for a connection as ``acquire``
    does, in the order of arrival; if none comes free, ``urllib3.exceptions.EmptyPoolError`` is
    raised.  Redirects, retries (*max_retries*), cookies and streams are those of requests; a
    connection is back once the body was read, or closed; with a body read by half it is closed.

    It is for the sessions of one thread, as every pool.  By way of a proxy, pools are urllib3's.
    Raises RuntimeError if gevent has not patched the program, as requests would block.
    """

    def __init__(
        self, size: int = 10, *, max_retries: Any = 0, pools: int = 50, **settings: Any
    ) -> None:
        self._size = size
        self._settings = settings
        super().__init__(pools, size, max_retries)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        self.poolmanager = GeventPoolManager(
            self._size, pools=connections, settings=self._settings, **pool_kwargs
        )


class GeventPoolManager(urllib3.PoolManager):  # type: ignore[misc]
    """A ``urllib3.PoolManager`` whose pools are on this engine: for ``http.request("GET", url)``.

    *size*, *settings*: of each pool, as in GeventAdapter; *pools*: for so many hosts, the one that
    was not used for longest is closed; *arguments*: those of ``urllib3.PoolManager``.
    """

    def __init__(
        self,
        size: int = 10,
        *,
        pools: int = 50,
        settings: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if not monkey.is_module_patched("socket") or not monkey.is_module_patched("ssl"):
            raise RuntimeError(
                "urllib3 would stop all greenlets: call gevent.monkey.patch_all() first, before"
                " anything else is imported"
            )
        check_whole("size", size, least=1)
        settings = {"min_size": 0, "fail_fast": True, **(settings or {})}
        if unknown := set(settings) - _SETTINGS:
            raise TypeError(f"a pool has no argument {', '.join(sorted(unknown))}")
        super().__init__(pools, **arguments)
        self.pool_classes_by_scheme = {
            scheme: functools.partial(kind, size=size, settings=settings)
            for scheme, kind in (("http", _HTTPPool), ("https", _HTTPSPool))
        }


class _Engine(ConnectionPool[Any]):
    """The connections of a urllib3 pool."""

    def __init__(self, face: Any, size: int, settings: dict[str, Any]) -> None:
        self._face = weakref.ref(face)
        self._factory: SocketFactory | None = None
        super().__init__(size, **settings)

    def _new_connection(self) -> Any:
        face = self._face()
        if face is None:
            raise PoolClosed("the urllib3 pool is gone", pool=self.name)
        conn = face._new_conn()
        del face
        if self._factory is None:
            self._factory = SocketFactory(
                (conn._dns_host, conn.port),
                connect_timeout=conn.timeout,
                source_address=conn.source_address,
                options=conn.socket_options or (),
            )
        conn.engine, conn.connect_socket = weakref.ref(self), self._factory
        try:
            conn.connect()
        except BaseException:
            conn.close()
            raise
        return conn

    def _socket(self, conn: Any) -> Any:
        # Both are private to http.client, which has no other way to say it.
        response, state = conn._HTTPConnection__response, conn._HTTPConnection__state
        read = response is None or response.isclosed()
        return conn.sock if read and state == _IDLE else None


class _Queue:
    """What a urllib3 pool has for a queue: *get* acquires a connection, *put* releases it."""

    def __init__(self, face: Any, size: int, settings: dict[str, Any], maxsize: int) -> None:
        self._face = weakref.ref(face)
        self._engine: _Engine | None = _Engine(face, size, settings)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not block or self._engine is None:
            # Only once the urllib3 pool is closed, or gone, does it ask like that, to close what is
            # idle.  That closes itself; what is in use is closed when its user is done.
            self._engine = None
            raise queue.Empty
        try:
            return self._engine.acquire(DEFAULT if timeout is None else timeout)
        except PoolUnavailable as error:
            raise exceptions.EmptyPoolError(self._face(), str(error)) from error
        except ssl.SSLError:
            raise  # urllib3 has an error of its own for it
        except OSError as error:  # of a dial
            text = f"Failed to establish a new connection: {error}"
            raise exceptions.NewConnectionError(self._face(), text) from error

    def put(self, conn: Any, block: bool = True) -> None:
        if conn is None:  # an empty place: at the start, and after a connection was closed
            return
        try:
            if self._engine is not None:
                self._engine.release(conn)
                return
        except NotInUse:  # it was closed meanwhile
            pass
        conn.close()

    def qsize(self) -> int:
        return 0 if self._engine is None else self._engine.stats().idle


class _Connection:
    """What is different in a connection."""

    engine: Any = None
    connect_socket: Any

    def _new_conn(self) -> Any:
        return self.connect_socket()

    @property
    def is_connected(self: Any) -> bool:
        # The pool has looked; urllib3's look takes the session tickets of TLS for an end.
        return self.sock is not None

    def close(self) -> None:
        super().close()  # type: ignore[misc]
        engine = self.engine and self.engine()
        if engine is not None:
            try:
                engine.discard(self)
            except NotInUse:
                pass  # it is the pool that closes it


class _HTTPConnection(_Connection, connection.HTTPConnection):  # type: ignore[misc]
    pass


class _HTTPSConnection(_Connection, connection.HTTPSConnection):  # type: ignore[misc]
    pass


class _Pool:
    """What is different in a urllib3 pool: its queue."""

    def __init__(
        self: Any, host: str, port: int, *, size: int, settings: dict[str, Any], **arguments: Any
    ) -> None:
        name = f"{host}:{port}"
        given = settings.get("name")
        settings = {**settings, "name": name if given is None else f"{given} {name}"}
        self.QueueCls = functools.partial(_Queue, self, size, settings)
        try:
            arguments |= {"maxsize": 1, "block": True}
            super().__init__(host, port, **arguments)  # type: ignore[call-arg]
        finally:
            del self.QueueCls


class _HTTPPool(_Pool, connectionpool.HTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _HTTPConnection


class _HTTPSPool(_Pool, connectionpool.HTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _HTTPSConnection
