"""PymemcachePool: connections of pymemcache to one memcached, with the client's methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import gevent.socket
from pymemcache import exceptions
from pymemcache.client.base import Client

from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import DEFAULT
from geventpool.sockets import SocketFactory

__all__ = ["PymemcachePool"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect", "timeout"}
_NO_KEY: Any = object()


def _borrowing(name: str) -> Callable[..., Any]:
    """The client's method of that *name*, with a client borrowed for the length of the call."""
    method = getattr(Client, name)

    @functools.wraps(method)
    def call(self: PymemcachePool, *args: Any, **kwargs: Any) -> Any:
        with super(PymemcachePool, self).get() as client:
            return method(client, *args, **kwargs)

    return call


class PymemcachePool(ConnectionPool[Client]):
    """A pool of clients of one memcached.

        cache = PymemcachePool(("cache.example.org", 11211), 10)
        cache.set("greeting", "hello", expire=60)
        cache.get("greeting")

        with cache.get() as client:  # one and the same for several calls
            client.set_many({"a": 1, "b": 2})

    The methods are those of ``pymemcache.client.base.Client``, and each borrows a client for one
    call.  So ``get(key)`` asks the server, and ``get()`` is that of ConnectionPool; ``stats()`` and
    ``close()`` are the pool's, and the server's statistics are ``execute("stats")``.

    - *server*: ``(host, port)``, or the path of a Unix socket.
    - *timeout*: how long a call waits for a client, as in ConnectionPool; *socket_timeout*: how
      long a client waits for the server.
    - *arguments*: the settings of ConnectionPool, and the arguments of a client.  *default_noreply*
      is False here: what the server has to say of a command that does not wait for it would be
      taken for the reply to the next one's, who may be somebody else.

    Sockets are opened by SocketFactory, and nothing needs to be patched.  A client that has closed
    its connection, or has silently opened another one, is not used again.
    """

    def __init__(
        self,
        server: tuple[str, int] | str,
        size: int = 10,
        *,
        timeout: float | None = 30.0,
        socket_timeout: float | None = None,
        tls_context: Any = None,
        **arguments: Any,
    ) -> None:
        settings = {name: arguments.pop(name) for name in _SETTINGS & set(arguments)}
        self._arguments = {
            "default_noreply": False,
            **arguments,
            "server": server,
            "timeout": socket_timeout,
            "socket_module": gevent.socket,
            "tls_context": tls_context,
        }
        Client(**self._arguments)  # it connects later: what is wrong with them is said now
        self._connect_socket = SocketFactory(
            server if isinstance(server, tuple) else f"unix:{server.removeprefix('unix:')}",
            tls=tls_context or False,
            connect_timeout=settings.setdefault("connect_timeout", 10.0),
            read_timeout=socket_timeout,
        )
        super().__init__(size, timeout=timeout, **settings)

    def get(  # type: ignore[override]
        self, key: Any = _NO_KEY, default: Any = None, *, timeout: float | None = DEFAULT
    ) -> Any:
        """What is stored under *key*, else *default*.  Without a *key*: a client for the length of
        a ``with``, which waits for it at most *timeout* seconds, see ``ConnectionPool.get``."""
        if key is _NO_KEY:
            return super().get(timeout)
        with super().get(timeout) as client:
            return client.get(key, default)

    add = _borrowing("add")
    append = _borrowing("append")
    cache_memlimit = _borrowing("cache_memlimit")
    cas = _borrowing("cas")
    decr = _borrowing("decr")
    delete = _borrowing("delete")
    delete_many = delete_multi = _borrowing("delete_many")
    flush_all = _borrowing("flush_all")
    get_many = get_multi = _borrowing("get_many")
    gets = _borrowing("gets")
    gets_many = _borrowing("gets_many")
    incr = _borrowing("incr")
    prepend = _borrowing("prepend")
    raw_command = _borrowing("raw_command")
    replace = _borrowing("replace")
    set = _borrowing("set")
    set_many = set_multi = _borrowing("set_many")
    touch = _borrowing("touch")
    version = _borrowing("version")
    __getitem__ = _borrowing("__getitem__")

    # The client's own wait for no reply.

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: Any) -> None:
        self.delete(key)

    def execute(self, f: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``ConnectionPool.execute``: with a client, ``f(client, …)`` or its method *f*."""
        with super().get() as client:
            if callable(f):
                return f(client, *args, **kwargs)
            return getattr(client, f)(*args, **kwargs)

    # Hooks

    def _new_connection(self) -> Client:
        client = Client(**self._arguments)
        client.sock = self._connect_socket()
        try:
            client.version()
        except BaseException:
            client.close()
            raise
        return client

    @staticmethod
    def _socket(conn: Client) -> Any:
        return conn.sock  # None once it was closed

    def _keepalive(self, conn: Client) -> None:
        conn.version()

    def _classify_error(self, error: Exception) -> Verdict:
        broken = (exceptions.MemcacheUnexpectedCloseError, exceptions.MemcacheUnknownError)
        return Verdict.BROKEN if isinstance(error, broken) else super()._classify_error(error)
