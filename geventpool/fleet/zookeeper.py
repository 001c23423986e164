"""ZooKeeperStore: the records of a fleet in ZooKeeper, by compare and swap (kazoo)."""

from __future__ import annotations

import itertools
from typing import Any
from urllib.parse import quote

import gevent
from kazoo.exceptions import BadVersionError, NodeExistsError, NoNodeError
from kazoo.handlers.gevent import SequentialGeventHandler

from geventpool.coordination.zookeeper import ZooKeeperSession
from geventpool.fleet.document import AGAIN, PER_SECOND, Document
from geventpool.fleet.share import Grant, Report

__all__ = ["ZooKeeperStore"]


class ZooKeeperStore:
    """The records of each cap in one node of ZooKeeper; its clock is that of the leader.

    *client* says where it is, as ``"zk1:2181,zk2:2181"``, or is a client of kazoo, with its
    SequentialGeventHandler, that is started and stopped by you.  *prefix* is the path of the node
    below which each cap has its own, in ``caps``, and its clock, in ``clocks``.

    Made with a text it is another session in a forked child.  A client of yours does not survive a
    fork: make it after that.

    A renewal is three round trips, and more while others are at it: for some dozen processes.
    """

    per_second = PER_SECOND

    def __init__(self, client: Any, *, prefix: str = "/geventpool/fleet") -> None:
        if not isinstance(prefix, str) or not prefix.startswith("/"):
            raise ValueError(f'prefix must be a path that begins with "/", not {prefix!r}')
        self._session = ZooKeeperSession(client) if isinstance(client, str) else None
        handler = getattr(client, "handler", None)
        if self._session is None and not isinstance(handler, SequentialGeventHandler):
            raise TypeError(
                "client must be a text of hosts, or a client of kazoo with its"
                f" SequentialGeventHandler, not a {type(client).__name__}"
            )
        self._given = client
        self.prefix = prefix.rstrip("/")

    def renew(self, report: Report) -> Grant:
        """See Store.  Raises what kazoo raises, or ConnectionError."""
        path = self._path("caps", report.name)
        now = self._now(report.name)
        tries = itertools.count(1)
        while True:
            found, version = self._read(path)
            document = found or Document(now + report.lease)
            answer, changed = document.renewed(report, now)
            if self._write(path, changed, version, next(tries)):
                return answer

    def release(self, name: str, id: str) -> None:
        """See Store.  Raises as ``renew``."""
        path = self._path("caps", name)
        tries = itertools.count(1)
        while True:
            found, version = self._read(path)
            if found is None or id not in found.records:
                return
            if self._write(path, found.without(id), version, next(tries)):
                return

    def close(self) -> None:
        """End the session, if it was begun here."""
        if self._session is not None:
            self._session.close()

    @property
    def client(self) -> Any:
        """The client of kazoo, connected; blocks and raises as ``renew`` if it is not."""
        return self._given if self._session is None else self._session.client()

    def _path(self, folder: str, name: str) -> str:
        # ZooKeeper takes no node of the name "." or "..".
        return f"{self.prefix}/{folder}/{quote(name, safe='').replace('.', '%2E')}"

    def _now(self, name: str) -> float:
        """The store's time, a little ago: that of a write to a node of its own."""
        clock = self._path("clocks", name)
        try:
            stat = self.client.set(clock, b"")
        except NoNodeError:
            self.client.ensure_path(clock)
            stat = self.client.set(clock, b"")
        return float(stat.mtime) / 1000

    def _read(self, path: str) -> tuple[Document | None, int]:
        try:
            text, stat = self.client.get(path)
        except NoNodeError:
            return None, -1
        return Document.load(text), stat.version

    def _write(self, path: str, document: Document, version: int, tries: int) -> bool:
        """Whether nothing was changed since *version* was read; if it was, waits, the longer the
        more *tries* there were."""
        try:
            if version < 0:
                self.client.create(path, document.dump(), makepath=True)
            else:
                self.client.set(path, document.dump(), version=version)
        except (BadVersionError, NodeExistsError, NoNodeError):
            gevent.sleep(AGAIN.delay(tries))
            return False
        return True
