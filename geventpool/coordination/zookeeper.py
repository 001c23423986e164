"""ZooKeeperSession: a session with ZooKeeper, by a client of kazoo."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from typing import Any

import gevent
from kazoo.client import KazooClient, KazooState
from kazoo.handlers.gevent import SequentialGeventHandler
from kazoo.retry import KazooRetry

__all__ = ["ZooKeeperSession"]

_TIMEOUT = 4.0  # seconds for a connect, and for an answer

#: kazoo's own would have it wait for a minute, once the servers were away for one.
_RETRY: dict[str, Any] = {"max_tries": -1, "delay": 0.1, "backoff": 2, "max_delay": 2.0}


class ZooKeeperSession:
    """One session at *hosts*, ``"zk1:2181,zk2:2181/chroot"``, that ends *timeout* seconds after the
    servers have lost sight of this process.  *options* are those of KazooClient, as *auth_data*.

    A child that was forked has a session of its own.
    """

    def __init__(
        self, hosts: str, *, timeout: float = 10.0, options: Mapping[str, Any] | None = None
    ) -> None:
        if not isinstance(hosts, str) or not hosts:
            raise TypeError(f'hosts must be a text, as "zk1:2181,zk2:2181", not {hosts!r}')
        self.hosts = hosts
        self._settings = {"timeout": timeout, **(options or {})}
        # What kazoo says against them is said now, and not to a greenlet.
        self._client, self._handler = self._make()
        self._starting: gevent.Greenlet[..., BaseException | None] | None = None

    def _make(self) -> tuple[Any, _Handler]:
        handler = _Handler()
        settings = {"connection_retry": KazooRetry(sleep_func=gevent.sleep, **_RETRY)}
        settings |= self._settings
        return KazooClient(self.hosts, handler=handler, **settings), handler

    def client(self) -> Any:
        """The client, which is connected.

        Blocks for 4 s at most.  Raises ConnectionError if it cannot be connected by then; it goes
        on trying if the session was begun before.
        """
        if self._client.connected:
            return self._client
        starting = self._starting
        if starting is None or starting.ready():
            # Apart: a caller that is killed must not leave a client that is half started.
            starting = self._starting = gevent.spawn(_start, self._client)
        starting.join(2 * _TIMEOUT)
        if not self._client.connected:
            error = starting.value if starting.ready() else None
            raise ConnectionError(f"no connection to {self} within {_TIMEOUT:g} s") from error
        return self._client

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What *method*, one of the client's, returns; raises TimeoutError after 4 s."""
        with gevent.Timeout(_TIMEOUT, TimeoutError(f"no answer of {self} within {_TIMEOUT:g} s")):
            return method(*args, **kwargs)

    def is_connected(self) -> bool:
        """Whether what was watched is still watched."""
        return bool(self._client.state == KazooState.CONNECTED)

    def close(self) -> None:
        """End the session: what was ephemeral in it is gone.  Blocks while it is told so, for 4 s
        at most; raises nothing."""
        gevent.spawn(_stop, self._client).join(_TIMEOUT)

    def forked(self) -> None:
        """In a child, within the fork: leave the session to the parent."""
        self._handler.leave()
        if self._starting is not None:
            self._starting.kill(block=False)
        self._client, self._handler = self._make()
        self._starting = None

    def __str__(self) -> str:
        return f"ZooKeeper at {self.hosts}"


class _Handler(SequentialGeventHandler):  # type: ignore[misc]
    """kazoo's own, which knows its greenlets."""

    def __init__(self) -> None:
        super().__init__()
        self._spawned: list[Any] = []

    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._spawned = [each for each in self._spawned if not each.ready()]
        self._spawned.append(super().spawn(func, *args, **kwargs))
        return self._spawned[-1]

    def leave(self) -> None:
        """End the copies of them, in a child.  Does not switch."""
        for greenlet in [*self._spawned, *self._workers]:
            greenlet.kill(block=False)
        atexit.unregister(self.stop)


def _start(client: Any) -> BaseException | None:
    """Connect; what went wrong, if anything."""
    try:
        if client.client_state in ("CLOSED", "AUTH_FAILED"):
            client.start(timeout=_TIMEOUT)
        with gevent.Timeout(_TIMEOUT):
            while not client.connected:  # it was, and is at it
                gevent.sleep(0.02)
    except (Exception, gevent.Timeout) as error:  # kazoo's time-out is one
        return error
    return None


def _stop(client: Any) -> None:
    try:
        client.stop()
        client.close()
    except (Exception, gevent.Timeout):
        pass  # the session ends by itself
