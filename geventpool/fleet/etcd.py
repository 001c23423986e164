"""EtcdStore: the records of a fleet in etcd, by compare and swap over its JSON gateway."""

from __future__ import annotations

import http.client
import itertools
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import gevent

from geventpool.fleet.document import AGAIN, PER_SECOND, Document
from geventpool.fleet.share import Grant, Report
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory

__all__ = ["EtcdStore"]

#: The clock is the ``Date`` of an answer, in whole seconds.
_GRAIN = 1.0


class EtcdError(OSError):
    """etcd answered, but not with what was asked for; *status* is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"etcd answered with status {status}: {text[:200]}")
        self.status = status


class EtcdStore:
    """The records of each cap in one key of etcd 3.4 or later, by its v3 JSON gateway.

    *target* is where it is, as for SocketFactory: an address, or several, of which one that
    answers is used.  *tls*: as there.  *headers*: sent with each request, as an Authorization.
    *prefix* begins each key.  Its clock is that of the member that answers, in seconds: those of
    all members must agree to within the margin of a lease, a tenth of it.

    A renewal is two round trips, and more while others are at it: for some dozen processes.
    """

    per_second = PER_SECOND

    def __init__(
        self,
        target: object,
        *,
        tls: Any = False,
        headers: Mapping[str, str] | None = None,
        prefix: str = "geventpool/fleet/",
    ) -> None:
        factory = SocketFactory(target, tls=tls, connect_timeout=5.0, read_timeout=5.0)
        self.prefix = prefix
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        # One is enough for it; the second is for an answer that was given up and is still due.
        self._pool = ConnectionPool(
            2,
            min_size=0,
            connect=lambda: _Connection(factory),
            name="etcd",
            timeout=5.0,
            exc_classes=(OSError, http.client.HTTPException),
        )

    def renew(self, report: Report) -> Grant:
        """See Store.  Raises OSError, http.client.HTTPException or PoolError."""
        tries = itertools.count(1)
        while True:
            found, revision, now = self._read(report.name)
            # By now it may be a second later than its clock said.
            lasting = replace(report, lease=report.lease + _GRAIN)
            document = found or Document(now + lasting.lease)
            answer, changed = document.renewed(lasting, now)
            if self._write(report.name, changed, revision, next(tries)):
                return answer

    def release(self, name: str, id: str) -> None:
        """See Store.  Raises as ``renew``."""
        tries = itertools.count(1)
        while True:
            found, revision, _ = self._read(name)
            if found is None or id not in found.records:
                return
            if self._write(name, found.without(id), revision, next(tries)):
                return

    def close(self) -> None:
        """Close its connections."""
        self._pool.close(0)

    def _key(self, name: str) -> str:
        return b64encode((self.prefix + name).encode()).decode()

    def _read(self, name: str) -> tuple[Document | None, str, float]:
        answer, now = self._ask("/v3/kv/range", {"key": self._key(name)})
        kvs = answer.get("kvs")
        if not kvs:
            return None, "0", now
        return Document.load(b64decode(kvs[0]["value"])), kvs[0]["mod_revision"], now

    def _write(self, name: str, document: Document, revision: str, tries: int) -> bool:
        """Whether nothing was changed since *revision* was read; if it was, waits, the longer the
        more *tries* there were."""
        key = self._key(name)
        compare = {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision}
        put = {"request_put": {"key": key, "value": b64encode(document.dump()).decode()}}
        answer, _ = self._ask("/v3/kv/txn", {"compare": [compare], "success": [put]})
        if answer.get("succeeded"):
            return True
        gevent.sleep(AGAIN.delay(tries))
        return False

    def _ask(self, path: str, question: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """The answer, and the time that it bears."""
        with self._pool.get() as conn:
            conn.request("POST", path, json.dumps(question), self._headers)
            answer = conn.getresponse()
            text = answer.read()
            if answer.will_close:
                self._pool.discard(conn)
        if answer.status != 200:
            raise EtcdError(answer.status, text.decode(errors="replace"))
        found: dict[str, Any] = json.loads(text)
        return found, parsedate_to_datetime(answer.headers["Date"]).timestamp()


class _Connection(http.client.HTTPConnection):
    """One over a socket of gevent's, whether or not the program is patched."""

    def __init__(self, factory: SocketFactory) -> None:
        super().__init__("etcd")
        self.auto_open = 0
        self.sock = factory()

    def fileno(self) -> int:
        return int(self.sock.fileno())
