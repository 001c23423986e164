"""What a pool over several servers has: their list, the way to one of them, and who hears of it.

Here is the side of the servers, in greenlets of the pool; that of the callers is in ``pool.py``.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import gevent

from geventpool import events, sockets
from geventpool.backoff import Backoff
from geventpool.compat.pycassa._client import close, host_and_port
from geventpool.compat.pycassa._errors import AllServersUnavailable
from geventpool.compat.pycassa._listeners import (
    EVENTS,
    SPELLINGS,
    EventTranslator,
    PoolListener,
)
from geventpool.compat.pycassa._wrapper import ConnectionWrapper
from geventpool.errors import ConnectError
from geventpool.events import Reason
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import check_seconds, check_whole

if TYPE_CHECKING:
    from geventpool.compat.pycassa.pool import QueuePool

__all__ = ["FACTORIES", "SETTINGS", "DialingPool"]

CONNECT_TIMEOUT = 10.0  # seconds for one server to connect, log in and set the keyspace

FACTORIES = ("socket_factory", "transport_factory")
SETTINGS = {"client_factory", "retry_on", "discard_on", "pool_timeout", "recycle", "max_retries"}
SETTINGS.update(FACTORIES, ["logging_name"])


def _check_classes(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(
        isinstance(each, type) and issubclass(each, BaseException) for each in value
    ):
        raise TypeError(f"{name} must be a tuple of exception classes, not {value!r}")


def _check_patience(name: str, value: Any) -> None:
    if value != -1:
        check_seconds(name, value, zero=True, none=False)


CHECKS: dict[str, Callable[[str, Any], object]] = {
    "timeout": check_seconds,
    "pool_timeout": _check_patience,
    "recycle": partial(check_whole, least=-1),
    "max_retries": partial(check_whole, least=-1),
    "retry_on": _check_classes,
    "discard_on": _check_classes,
}


class DialingPool(ConnectionPool[ConnectionWrapper]):
    """A pool of connections to the servers of a list, each time to the next one that answers."""

    client_factory: Callable[..., Any] | None = None
    socket_factory: Callable[..., Any] | None = None
    transport_factory: Callable[..., Any] | None = None
    retry_on: tuple[type[BaseException], ...] = (OSError, EOFError)
    discard_on: tuple[type[BaseException], ...] = ()
    pool_timeout: float = 30
    recycle: int = 10000
    max_retries: int = 5
    logging_name: Any = None
    #: Between retries, between rounds of dials, and after failed ones.
    _pauses = Backoff(first=0.02, longest=0.5)

    # Set by the pool.
    keyspace: str | None
    credentials: Mapping[str, str] | None
    listeners: list[Any]
    _callbacks: dict[str, list[Callable[[dict[str, Any]], object]]]

    def __setattr__(self, name: str, value: object) -> None:
        if name in CHECKS:
            CHECKS[name](name, value)
        super().__setattr__(name, value)

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
            host_and_port(server)
        random.shuffle(shuffled)
        self.server_list = shuffled
        self._position = 0
        self.connect_timeout = 2 * CONNECT_TIMEOUT * (len(shuffled) + 1)
        self._evict_idle(lambda conn: conn.server not in shuffled, Reason.DRAINED)
        self._notify(events.ServerListObtained(self, tuple(shuffled)))

    def _translate_events(self) -> None:
        """Have the listeners, which are pycassa's, told of what the pool tells its own."""
        super().add_listener(EventTranslator())

    def add_listener(self, listener: Any) -> None:
        """Have *listener* told, which has some of PoolListener's methods, or is a dict of them."""
        given = listener if isinstance(listener, Mapping) else None
        found: dict[str, Any] = {}
        for what in EVENTS if given is None else given:
            method = getattr(listener, what, None) if given is None else given[what]
            if what not in EVENTS or (given is not None and not callable(method)):
                raise TypeError(f"listeners: {what!r} is no event of PoolListener, or not callable")
            if callable(method):
                found[what] = method
        if not found:
            raise TypeError(f"listeners: {listener!r} has none of the methods of PoolListener")
        self.listeners.append(listener)
        if found.get(SPELLINGS[0]) == found.get(SPELLINGS[1]):
            found.pop(SPELLINGS[1], None)
        for what, method in found.items():
            if getattr(method, "__func__", None) is not getattr(PoolListener, what):
                self._callbacks.setdefault(EVENTS[what], []).append(method)

    # Inside: dialing, in a greenlet of the pool

    def _new_connection(self) -> ConnectionWrapper:
        try:
            conn = self._dial()
        except Exception:
            # All that wait are told, and not one after the other
            self._fail_when_down(True)
            raise
        self._fail_when_down(False)
        return conn

    def _dial(self) -> ConnectionWrapper:
        servers, first = list(self.server_list), self._position
        if not servers:
            raise AllServersUnavailable("Cannot connect to any servers as server list is empty!")
        for number in range(first, first + 2 * len(servers)):
            if number == first + len(servers):
                gevent.sleep(self._pauses.delay(1))
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
        host, port = host_and_port(server)
        extra = {name: given for name in FACTORIES if (given := getattr(self, name)) is not None}
        late = ConnectError(f"{server} took longer than {CONNECT_TIMEOUT} s to connect and log in")
        assert self.client_factory is not None
        with gevent.Timeout(CONNECT_TIMEOUT, late):
            client = self.client_factory(host, port, self.timeout, **extra)
            try:
                self._prepare(client)
                conn = ConnectionWrapper(cast("QueuePool", self), self.max_retries, server, client)
                self._tell("connection_created", "debug", connection=conn)
                conn._opening = False
                if conn._session.suspect:
                    raise ConnectError(
                        f"{server}: a listener to connection_created failed in a call"
                    )
            except BaseException:
                with suppress(Exception):  # why it could not be opened matters more
                    close(client)
                raise
        return conn

    def _prepare(self, client: Any) -> None:
        """Log in and set the keyspace, as far as there are any."""
        if self.credentials is not None:
            client.login(self.credentials)
        if self.keyspace is not None:
            client.set_keyspace(self.keyspace)

    def _close_connection(self, conn: ConnectionWrapper) -> None:
        close(conn._own.client)

    def _socket(self, conn: ConnectionWrapper) -> Any:
        return sockets.carriers(conn._own.socket)

    def _may_retry(self, error: BaseException) -> bool:
        return isinstance(error, Exception) and isinstance(error, self.retry_on)

    def _tell(self, what: str, level: str, **fields: Any) -> None:
        """Tell the listeners; what they raise is logged."""
        for listener in self._callbacks.get(what, ()):
            try:
                listener({"pool_id": self.logging_name, "level": level, **fields})
            except Exception:
                self._log(logging.ERROR, "%r failed", listener, exc_info=True)
