"""RedisStore: the records of a fleet in Redis, changed by one Lua script.  Extra ``redis``."""

from __future__ import annotations

import json
import uuid
from importlib.resources import files
from typing import Any

import redis
from redis import RedisError

from geventpool.fleet.share import Grant, Record, Report

__all__ = ["RedisError", "RedisStore"]

#: Answers its time, and the id and the numbers of each record, as JSON.
_LOOK = """
local found, fields = {}, redis.call('HGETALL', KEYS[1])
for place = 1, #fields, 2 do
    if string.sub(fields[place], 1, 2) == 'p:' then
        found[#found + 1] = string.sub(fields[place], 3)
        found[#found + 1] = cjson.encode({cmsgpack.unpack(fields[place + 1])})
    end
end
return {redis.call('TIME'), found}
"""
_SCRIPT = files(__package__).joinpath("renew.lua").read_text(encoding="utf-8")


class RedisStore:
    """The records of each cap in one hash of Redis; its clock is that of Redis.

    *client* is a URL, or a client of redis-py: ``redis.Redis``, one made by Sentinel, or a
    RedisCluster.  Two connections are enough for it: give it none that callers of yours wait for.
    redis-py blocks the hub in a program that is not patched (``gevent.monkey.patch_all()``).
    *prefix* begins the key of each hash.  With a replica that is promoted before it has all, the
    last renewals are lost; a lease later all is known again.
    """

    def __init__(self, client: Any, *, prefix: str = "geventpool:fleet:") -> None:
        if isinstance(client, str):
            client = redis.Redis.from_url(client, socket_timeout=5.0, socket_connect_timeout=5.0)
        if not callable(getattr(client, "register_script", None)):
            # Without its repr, which may show a password.
            kind = type(client).__name__
            raise TypeError(f"client must be a URL or a client of redis-py, not a {kind}")
        self.client = client
        self.prefix = prefix
        self._renew = client.register_script(_SCRIPT)
        self._look = client.register_script(_LOOK)

    def renew(self, report: Report) -> Grant:
        """See Store: one round trip.  Raises what redis-py raises."""
        share, members, epoch, place = self._renew(
            keys=[self.prefix + report.name],
            args=[
                report.id,
                report.cap,
                report.used,
                report.has,
                report.needs,
                report.wants,
                report.weight,
                report.floor,
                report.lease,
                report.generation,
                report.number,
                uuid.uuid4().hex,
                "" if report.place is None else report.place,
            ],
        )
        return Grant(int(share), int(members), _text(epoch), int(place))

    def records(self, name: str) -> tuple[float, dict[str, Record]]:
        """The store's time and what it knows of each process, by its id: to look at.

        One round trip.  Raises what redis-py raises.
        """
        (seconds, microseconds), found = self._look(keys=[self.prefix + name])
        pairs = zip(found[::2], found[1::2], strict=True)
        records = {_text(id): Record(*json.loads(numbers)) for id, numbers in pairs}
        return int(seconds) + int(microseconds) / 1e6, records

    def release(self, name: str, id: str) -> None:
        """See Store: one round trip.  Raises what redis-py raises."""
        self.client.hdel(self.prefix + name, f"p:{id}")


def _text(answer: bytes | str) -> str:
    return answer.decode() if isinstance(answer, bytes) else answer
