"""EtcdStore: the records of a fleet in etcd, by compare and swap over its JSON gateway."""

from __future__ import annotations

import itertools
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gevent

from geventpool.coordination.etcd import EtcdGateway, text64
from geventpool.fleet.document import AGAIN, PER_SECOND, Document
from geventpool.fleet.share import Grant, Report

__all__ = ["EtcdStore"]

#: The clock is the ``Date`` of an answer, in whole seconds.
_GRAIN = 1.0


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
        self.prefix = prefix
        self._etcd = EtcdGateway(target, tls=tls, headers=headers, use=prefix)

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
        self._etcd.close()

    def _key(self, name: str) -> str:
        return text64(self.prefix + name)

    def _read(self, name: str) -> tuple[Document | None, str, float]:
        answer, now = self._etcd.ask("/v3/kv/range", {"key": self._key(name)})
        kvs = answer.get("kvs")
        if not kvs:
            return None, "0", now
        return Document.load(b64decode(kvs[0]["value"])), kvs[0]["mod_revision"], now

    def _write(self, name: str, document: Document, revision: str, tries: int) -> bool:
        """Whether nothing was changed since *revision* was read; if it was, waits, the longer the
        more *tries* there were."""
        key = self._key(name)
        compare = {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision}
        put = {"request_put": {"key": key, "value": text64(document.dump())}}
        answer, _ = self._etcd.ask("/v3/kv/txn", {"compare": [compare], "success": [put]})
        if answer.get("succeeded"):
            return True
        gevent.sleep(AGAIN.delay(tries))
        return False
