"""ZooKeeperResolver: services whose servers are nodes of ZooKeeper, which watches tell of."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import gevent
from gevent.event import Event
from kazoo.exceptions import NoAuthError, NodeExistsError, NoNodeError

from geventpool.coordination.zookeeper import ZooKeeperSession
from geventpool.directory.member import check_name, read_member
from geventpool.directory.registration import EntryLost, Registering
from geventpool.directory.source import Members
from geventpool.directory.watching import WatchingResolver

__all__ = ["ZooKeeperResolver"]


class ZooKeeperResolver(Registering, WatchingResolver):
    """The servers of a service are the nodes below ``PATH/NAME`` of ZooKeeper::

        resolver = ZooKeeperResolver("zk1:2181,zk2:2181", path="/services")
        manager = ConnectionManager(resolver)
        with manager.connection("web") as sock:  # one of /services/web/10.0.0.1:443, ...
            ...

    - *hosts*: where ZooKeeper is, as kazoo takes it.  *options*: more for its KazooClient, as
      ``{"auth_data": [("digest", "user:password")]}``.
    - *path* is the node that has a node for each service.  What the nodes below that hold: see
      ``register``, and ``member.py`` for what else is read.
    - *settings* are those of WatchingResolver, which says what happens when ZooKeeper is away.

    There is one session for all names, and one for each ``register``, whose *lease* is the timeout
    of that; the servers allow 2 to 20 of their ticks, of 2 s mostly.  It needs kazoo (the extra
    ``zookeeper``).  Nothing needs to be patched; but hosts that are names, and not IP addresses,
    kazoo looks up by a call that blocks if it is not.
    """

    def __init__(
        self,
        hosts: str,
        *,
        path: str = "/services",
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError(f'path must be a text that begins with "/", not {path!r}')
        self.path = path.rstrip("/")
        self._connect = partial(ZooKeeperSession, hosts, options=options)
        super().__init__(_Source(self._connect(), self.path), **settings)

    def _entry(self, name: str, entry: str, held: bytes, lease: float) -> _Entry:
        return _Entry(self._connect(timeout=lease), f"{self.path}/{name}", entry, held)


class _Source:
    """The nodes below a path."""

    def __init__(self, session: ZooKeeperSession, path: str) -> None:
        self._session = session
        self._path = path
        # One for each name, however often it is watched anew: kazoo holds it for as long as one of
        # its watches has not fired, or was taken back.
        self._folders: WeakValueDictionary[str, _Folder] = WeakValueDictionary()

    def check(self, name: str) -> None:
        check_name(name)

    def watch(self, name: str) -> Generator[Members, None, None]:
        folder = self._folders.get(name)
        if folder is None:
            folder = self._folders[name] = _Folder(self._session, f"{self._path}/{name}")
        try:
            folder.begin()
            while True:
                yield folder.read()
                folder.changed.wait()
        except (GeneratorExit, gevent.GreenletExit):  # else it is watched anew
            folder.leave()
            raise

    def close(self) -> None:
        self._session.close()

    def __str__(self) -> str:
        return str(self._session)


class _Folder:
    """The nodes below one node; *changed* once it, or one of them, is not what was read."""

    def __init__(self, session: ZooKeeperSession, path: str) -> None:
        self.changed = Event()
        self._session = session
        self._path = path
        self._client: Any = None
        self._held: dict[str, bytes] = {}  # by the names of the nodes
        self._stale: set[str] = set()

    def begin(self) -> None:
        """Whatever was known before, all is to be read.  Raises ConnectionError."""
        self._held.clear()
        self._stale.clear()
        self._client = self._session.client()

    def read(self) -> Members:
        """The servers.  Only what has changed is read again, and watched again.

        Raises ConnectionError if the connection was lost: so are all watches then.
        """
        self.changed.clear()
        if not self._session.is_connected():
            raise ConnectionError(f"the connection to {self._session} was lost")
        entries = self._entries()
        self._held = {each: held for each, held in self._held.items() if each in entries}
        self._stale &= entries
        self._read(entries - self._held.keys() | self._stale)
        found = (read_member(entry, held) for entry, held in sorted(self._held.items()))
        return dict(each for each in found if each is not None)

    def _entries(self) -> set[str]:
        call, client, path = self._session.call, self._client, self._path
        watch = _Watch(self, None)
        while True:
            try:
                return set(call(client.get_children, path, watch=watch))
            except NoNodeError:
                if call(client.exists, path, watch=watch) is None:
                    return set()

    def _read(self, entries: set[str]) -> None:
        """All of them are asked for before the first answer is awaited."""
        self._stale -= entries
        asked = [
            (each, self._client.get_async(f"{self._path}/{each}", _Watch(self, each)))
            for each in sorted(entries)
        ]
        for entry, answer in asked:
            try:
                self._held[entry], _ = self._session.call(answer.get)
            except (NoNodeError, NoAuthError):
                self._held.pop(entry, None)  # it is gone, or not to be read by this process

    def leave(self) -> None:
        """Watch it no longer."""
        for entry in (None, *self._held):
            path = self._path if entry is None else f"{self._path}/{entry}"
            self._session.unwatch(self._client, path, _Watch(self, entry))

    def note(self, entry: str | None) -> None:
        """This one is not what was read, or there are others by now (None)."""
        if entry is not None:
            self._stale.add(entry)
        self.changed.set()


class _Watch(NamedTuple):
    """What kazoo is given.  It keeps a set of them, so that of two that are equal it has one."""

    folder: _Folder
    entry: str | None

    def __call__(self, event: object) -> None:
        """Called by kazoo, in a greenlet of its own."""
        self.folder.note(self.entry)


class _Entry:
    """An ephemeral node, in a session of its own."""

    def __init__(self, session: ZooKeeperSession, folder: str, entry: str, held: bytes) -> None:
        self._session = session
        self._folder = folder
        self._path = f"{folder}/{entry}"
        self._held = held

    def announce(self) -> None:
        client, call = self._session.client(), self._session.call
        call(client.ensure_path, self._folder)
        try:
            call(client.create, self._path, self._held, ephemeral=True)
        except NodeExistsError:
            self.keep()  # made before, and the answer was lost

    def keep(self) -> None:
        client = self._session.client()
        stat = self._session.call(client.exists, self._path)
        if stat is None or stat.ephemeralOwner != client.client_id[0]:
            raise EntryLost("its session has ended")

    def withdraw(self) -> None:
        self._session.close()

    def __str__(self) -> str:
        return str(self._session)
