"""EtcdResolver: services whose servers are keys of etcd, watched over its v3 JSON gateway."""

from __future__ import annotations

import math
import random
from base64 import b64decode
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any

from geventpool.coordination.etcd import EtcdGateway, text64
from geventpool.coordination.json_api import ApiError
from geventpool.directory.member import check_name, read_member
from geventpool.directory.registration import EntryLost, Registering
from geventpool.directory.source import Members
from geventpool.directory.watching import WatchingResolver

__all__ = ["EtcdResolver"]

#: Seconds after which all is read anew, if a watch has told nothing: etcd may be gone, or another
#: one by now, and the network may not have said so.
_SILENCE = 30.0


#: Those of keys, both as the gateway has them; None: the key is gone.
Values = dict[str, str | None]


class EtcdResolver(Registering, WatchingResolver):
    """The servers of a service are the keys below ``PREFIX NAME /`` of etcd 3.4 or later::

        resolver = EtcdResolver(("etcd.internal", 2379), prefix="services/")
        manager = ConnectionManager(resolver)
        with manager.connection("web") as sock:  # one of services/web/10.0.0.1:443, ...
            ...

    - *target*: where etcd is, an address or several, as for SocketFactory; *tls*: as there.
      *headers*: sent with each request, as an Authorization.
    - *prefix* begins each key.  What a key holds: see ``register``, and ``member.py`` for what else
      is read.
    - *settings* are those of WatchingResolver, which says what happens when etcd is away.

    Each name is watched over a connection of its own.
    """

    def __init__(
        self,
        target: object,
        *,
        prefix: str = "services/",
        tls: Any = False,
        headers: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string, not {prefix!r}")
        self.prefix = prefix

        def connect(use: str) -> EtcdGateway:
            return EtcdGateway(target, tls=tls, headers=headers, use=use)

        self._connect = connect
        super().__init__(_Source(connect(prefix), prefix), **settings)

    def _entry(self, name: str, entry: str, held: bytes, lease: float) -> _Entry:
        key = f"{self.prefix}{name}/{entry}"
        use = key.rpartition("-")[0]  # without what is drawn for each: it names a pool
        return _Entry(self._connect(use), key, held, lease)


class _Source:
    """The keys below a prefix."""

    def __init__(self, etcd: EtcdGateway, prefix: str) -> None:
        self._etcd = etcd
        self._prefix = prefix

    def check(self, name: str) -> None:
        check_name(name)

    def watch(self, name: str) -> Generator[Members, None, None]:
        folder = f"{self._prefix}{name}/"
        while True:
            answer, _ = self._etcd.ask("/v3/kv/range", _below(folder))
            values: Values = {each["key"]: each.get("value", "") for each in answer.get("kvs", ())}
            yield _members(folder, values)
            with closing(self._changes(folder, _revision(answer))) as changes:
                for changed in changes:
                    values.update(changed)
                    values = {key: value for key, value in values.items() if value is not None}
                    yield _members(folder, values)

    def _changes(self, folder: str, revision: int) -> Generator[Values, None, None]:
        """The keys that have changed after *revision*, again and again.  Ends when all are to be
        read anew: what was in between is forgotten, or nothing has come for long."""
        question = {"create_request": {**_below(folder), "start_revision": str(revision + 1)}}
        silence = random.uniform(_SILENCE, 1.2 * _SILENCE)  # not all of them together
        is_watched = False
        try:
            with closing(self._etcd.stream("/v3/watch", question, silence)) as answers:
                for answer in answers:
                    if answer.get("canceled"):
                        if "compact_revision" in answer:
                            return
                        raise ApiError(200, str(answer.get("cancel_reason", "canceled")))
                    is_watched = True
                    if events := answer.get("events"):
                        yield {event["kv"]["key"]: _value_of(event) for event in events}
            raise ApiError(200, "the watch has ended")
        except TimeoutError:
            if not is_watched:
                raise

    def close(self) -> None:
        self._etcd.close()

    def __str__(self) -> str:
        return str(self._etcd)


class _Entry:
    """A key with a lease."""

    def __init__(self, etcd: EtcdGateway, key: str, value: bytes, lease: float) -> None:
        self._etcd = etcd
        self._key = text64(key)
        self._value = text64(value)
        self._ttl = str(math.ceil(lease))
        self._lease: str | None = None

    def announce(self) -> None:
        answer, _ = self._etcd.ask("/v3/lease/grant", {"TTL": self._ttl})
        self._lease = answer["ID"]
        self._etcd.ask("/v3/kv/put", self._put)

    def keep(self) -> None:
        answer, _ = self._etcd.ask("/v3/lease/keepalive", {"ID": self._lease})
        if not int(answer.get("TTL", 0)):
            raise EntryLost("its lease has ended")
        # The key may have been deleted for all that.
        ours = {"key": self._key, "target": "LEASE", "result": "EQUAL", "lease": self._lease}
        again = {"compare": [ours], "failure": [{"request_put": self._put}]}
        self._etcd.ask("/v3/kv/txn", again)

    def withdraw(self) -> None:
        try:
            if self._lease is not None:
                self._etcd.ask("/v3/lease/revoke", {"ID": self._lease})
        except ApiError as error:
            if error.status != 404:  # it has ended by itself
                raise
        finally:
            self._etcd.close()

    @property
    def _put(self) -> Mapping[str, Any]:
        return {"key": self._key, "value": self._value, "lease": self._lease}

    def __str__(self) -> str:
        return str(self._etcd)


def _below(folder: str) -> dict[str, str]:
    """The keys that begin with *folder*, whose last character is a slash."""
    return {"key": text64(folder), "range_end": text64(folder[:-1] + "0")}


def _revision(answer: Mapping[str, Any]) -> int:
    return int(answer["header"]["revision"])


def _value_of(event: Mapping[str, Any]) -> str | None:
    return None if event.get("type") == "DELETE" else event["kv"].get("value", "")


def _members(folder: str, values: Values) -> Members:
    """The servers, by what etcd says of their keys."""
    entries = (
        (b64decode(key).decode(errors="replace").removeprefix(folder), b64decode(value or ""))
        for key, value in sorted(values.items())
    )
    # What has a slash in it belongs to another service, whose name begins with this one's.
    found = (read_member(entry, held) for entry, held in entries if "/" not in entry)
    return dict(each for each in found if each is not None)
