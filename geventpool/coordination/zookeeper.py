"""ZooKeeperSession: a session with ZooKeeper, by a client of kazoo."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import gevent
import gevent.hub
from kazoo.client import KazooClient, KazooState
from kazoo.handlers.gevent import SequentialGeventHandler
from kazoo.protocol.serialization import int_struct, write_string
from kazoo.retry import KazooRetry

from geventpool.pools.extension import Fork, in_child

__all__ = ["ZooKeeperSession"]

_TIMEOUT = 4.0  # seconds for a connect, and for an answer

#: kazoo's own would have it wait for a minute, once the servers were away for one.
_RETRY: dict[str, Any] = {"max_tries": -1, "delay": 0.1, "backoff": 2, "max_delay": 2.0}


class ZooKeeperSession:
    """One session at *hosts*, ``"zk1:2181,zk2:2181/chroot"``, that ends *timeout* seconds after the
    servers have lost sight of this process (None: as *options* says, or kazoo: 10 s).  *options*
    are those of KazooClient, as *auth_data*.

    A child that was forked has a session of its own.  Nothing needs to be patched, but kazoo looks
    up hosts that are names by a call that blocks if it is not.
    """

    def __init__(
        self,
        hosts: str,
        *,
        timeout: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(hosts, str) or not hosts:
            raise TypeError(f'hosts must be a text, as "zk1:2181,zk2:2181", not {hosts!r}')
        self.hosts = hosts
        self._settings = dict(options or {})
        if timeout is not None:
            self._settings["timeout"] = timeout
        # What kazoo says against them is said now, and not to a greenlet.
        self._client, self._handler = self._make()
        self._starting: gevent.Greenlet[..., BaseException | None] | None = None
        _sessions.add(self)

    def _make(self) -> tuple[Any, _Handler]:
        handler = _Handler()
        settings = {"connection_retry": KazooRetry(sleep_func=gevent.sleep, **_RETRY)}
        settings |= self._settings
        return KazooClient(self.hosts, handler=handler, **settings), handler

    def client(self) -> Any:
        """The client, which is connected.

        Blocks for 8 s at most.  Raises ConnectionError if it cannot be connected by then; it goes
        on trying if the session was begun before.
        """
        if self._client.connected:
            return self._client
        starting = self._starting
        if starting is None or starting.ready():
            # Apart: a caller that is killed must not leave a client that is half started.
            starting = self._starting = gevent.spawn(self._connect)
        starting.join(2 * _TIMEOUT)
        if not self._client.connected:
            error = starting.value if starting.ready() else None
            raise ConnectionError(f"no connection to {self} in time") from error
        return self._client

    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What *method*, one of the client's, returns; raises TimeoutError after 4 s."""
        with gevent.Timeout(_TIMEOUT, TimeoutError(f"no answer of {self} within {_TIMEOUT:g} s")):
            return method(*args, **kwargs)

    def is_connected(self) -> bool:
        """Whether what was watched is still watched."""
        return bool(self._client.state == KazooState.CONNECTED)

    def unwatch(self, client: Any, path: str, watch: Any) -> None:
        """Take back what *watch* was left for at *path* with *client*, here and at the servers: it
        would stay until it fires, which may be never.  Does not block.

        kazoo has no method for it, and may not always have what this takes: then it stays.
        """
        if client is not self._client:
            return  # of a session that has ended, or of the parent
        place = client.chroot + path
        with suppress(AttributeError):
            for kind, known in ((1, client._child_watchers), (2, client._data_watchers)):
                if watch in known.get(place, ()):
                    known[place].discard(watch)
                    if not known[place]:
                        del known[place]
                        client._call(_RemoveWatches(place, kind), client.handler.async_result())

    def close(self) -> None:
        """End the session: what was ephemeral in it is gone.  Blocks while it is told so, for 4 s
        at most; raises nothing."""
        gevent.spawn(self._end).join(_TIMEOUT)

    def _end(self) -> None:
        if self._starting is not None:
            self._starting.kill()
        self._stop()

    def _stop(self) -> None:
        if not self._client.connected:
            # It would wait for a server that does not answer, for as long as a session may last.
            gevent.killall(self._handler.greenlets)
        try:
            self._client.stop()
            self._client.close()
        except (Exception, gevent.Timeout):
            pass  # the session ends by itself

    def _connect(self) -> BaseException | None:
        """Connect; what went wrong, if anything."""
        client = self._client
        is_new = client.client_state in ("CLOSED", "AUTH_FAILED")
        try:
            if is_new:
                client.start_async()
            with gevent.Timeout(_TIMEOUT):
                while not client.connected:
                    gevent.sleep(0.02)
        except (Exception, gevent.Timeout) as error:
            if is_new:
                self._stop()
                self._client, self._handler = self._make()
            return error
        return None

    def _forked(self) -> None:
        """In a child: leave the session to the parent.  A copy of a greenlet of kazoo's would read
        what is meant for the parent's, from its socket and from the pair that wakes it."""
        for greenlet in self._handler.greenlets:
            greenlet.kill(block=False)
        atexit.unregister(self._handler.stop)
        if self._starting is not None:
            self._starting.kill(block=False)
        self._client, self._handler = self._make()
        self._starting = None

    def __str__(self) -> str:
        return f"ZooKeeper at {self.hosts}"


class _RemoveWatches(NamedTuple):
    """A request, as kazoo sends them; ZooKeeper knows it since 3.5, and else refuses it."""

    path: str
    kind: int  # 1: of its children, 2: of its data, or of its being there
    type: int = 18

    def serialize(self) -> bytes:
        return bytes(write_string(self.path) + int_struct.pack(self.kind))

    @classmethod
    def deserialize(cls, answer: bytes, offset: int) -> None:
        """There is nothing in it."""


class _Handler(SequentialGeventHandler):  # type: ignore[misc]
    """kazoo's own, which knows its greenlets."""

    def __init__(self) -> None:
        super().__init__()
        self._spawned: list[Any] = []

    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._spawned = [each for each in self._spawned if not each.ready()]
        self._spawned.append(super().spawn(func, *args, **kwargs))
        return self._spawned[-1]

    @property
    def greenlets(self) -> list[Any]:
        return [*self._spawned, *self._workers]


_sessions: weakref.WeakSet[ZooKeeperSession] = weakref.WeakSet()


@in_child
def _in_child(fork: Fork) -> None:
    hub: Any = gevent.hub._get_hub()  # type: ignore[attr-defined]
    for session in list(_sessions):
        if getattr(hub, "loop", None) is not None:
            fork.once(gevent.reinit, hub)
        session._forked()
