"""One process at one moment, in plain values that JSON can hold: the source of all that is shown.

Here is what every key means; ``docs/observability.md`` says it for people::

    {"pid": 4711, "time": 1.7e9, "pools": [
        {"key": "4711-1", "name": "db", "kind": "ConnectionPool",
         "stats": {...}, "closed": {"drained": 3}, "refusals": {"timeout": 2},
         "holders": [{"greenlet": "<Greenlet ...>", "age": 1.5, "endpoint": None,
                      "where": None, "stack": "  File ..."}],
         "endpoints": [{"endpoint": "('10.0.0.1', 443)", "stats": {...}, "closed": {...},
                        "refusals": {...}}],
         "addresses": [{"address": "10.0.0.1:443", "state": "up", "down_for": None,
                        "connections": 7, "outstanding": 2, "latency": 0.003, "dials": 12,
                        "failed": 31.5, "reason": "ConnectionRefusedError: ..."}]}]}

*endpoints* is of an EndpointPool, *addresses* of a ConnectionManager.  *stats* has the fields of
PoolStats: numbers as they are, times in seconds, ``errors`` a list of [when, text], and a Duration
as an object of its numbers::

    {"count": 3, "sum": 0.5, "max": 0.4, "histogram": {"bounds": [0.0001, ...], "counts": [0, ...]}}

*fleets* are the caps that this process shares with others, with the fields of FleetStats.
What has no bound is None, as JSON has no infinity.  *key* is the pool's for as long as it lives,
and no other's.  *holders* is empty where they were not asked for.  If it is asked for, there is
*history*: see ``history.py``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from geventpool.events import PoolStats
from geventpool.observe.history import record_of
from geventpool.observe.secrets import as_shown
from geventpool.registry import pools

__all__ = ["snapshot"]

_LONGEST = 4000  # characters of an error that are shown


def snapshot(
    *,
    holders: bool | Collection[str] = True,
    history: bool = False,
    pause: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """What every open pool and manager of this process looks like just now.

    *holders*: whether they are wanted, or the keys of the pools of which they are: to see where a
    greenlet is takes 50 µs or more.  *history*: what was seen of each pool, too.
    *pause* is called after each pool; ``gevent.sleep`` lets others run meanwhile.

    Does not block, unless *pause* does.  No secret is in it, as far as one can be told: see
    ``secrets.py``.
    """
    shown = []
    for pool in pools():
        record = record_of(pool)
        wanted = holders if isinstance(holders, bool) else record.key in holders
        shown.append({"key": record.key, **_pool(pool, wanted)})
        if history:
            shown[-1]["history"] = record.shown()
        if pause is not None:
            pause()
    return {"pid": os.getpid(), "time": time.time(), "pools": shown, "fleets": _fleets()}


def _fleets() -> list[dict[str, Any]]:
    module: Any = sys.modules.get("geventpool.fleet.limit")  # if there is any, it is imported
    found = [] if module is None else [_plain(each.stats()) for each in module.fleets()]
    return [{**each, "name": as_shown(each["name"])} for each in found]


def _pool(pool: Any, with_holders: bool) -> dict[str, Any]:
    figures = _figures(pool.stats())
    figures["stats"].pop("name")
    endpoints = pool.endpoints() if hasattr(pool, "endpoints") else ()
    return {
        "name": as_shown(pool.name),
        "kind": type(pool).__name__,
        **figures,
        "holders": [_holder(each) for each in pool.holders()] if with_holders else [],
        "endpoints": [
            {"endpoint": as_shown(each), **_figures(pool.stats(each))}
            for each in endpoints
            if each is not None  # which would be all of them
        ],
        "addresses": [_server(server) for server in list(getattr(pool, "servers", {}).values())],
    }


def _figures(stats: PoolStats) -> dict[str, Any]:
    figures = _plain(stats)
    closed = figures.pop("closed")
    return {
        "stats": figures,
        "closed": {why: count for why, count in closed.items() if count},
        "refusals": {why: count for why, count in stats.refusals.items() if count},
    }


def _holder(holder: Any) -> dict[str, Any]:
    return {
        "greenlet": None if holder.greenlet is None else as_shown(holder.greenlet),
        "age": holder.age,
        "endpoint": None if holder.endpoint is None else as_shown(holder.endpoint),
        "where": None if holder.where is None else as_shown(holder.where),
        "stack": None if holder.stack is None else as_shown(holder.stack),
    }


def _server(server: Any) -> dict[str, Any]:
    now = time.monotonic()
    until, failed = server.down_until, server.last_error
    return {
        "address": as_shown(server.address),
        "state": server.state(now),
        "down_for": None if until is None or math.isinf(until) else max(0.0, until - now),
        "connections": len(server.active_connections),
        "outstanding": server.outstanding,
        "latency": server.latency(now),
        "dials": server.dials,
        "failed": None if failed is None else now - failed,
        "reason": None if server.reason is None else _of_error(server.reason),
    }


def _plain(value: Any) -> Any:
    """*value* as JSON can hold it."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, BaseException):
        return _of_error(f"{type(value).__name__}: {value}")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return as_shown(value)


def _of_error(text: str) -> str:
    """It may be a server's own, and as long as that likes."""
    return as_shown(text[: 2 * _LONGEST])[:_LONGEST]  # no secret at its end is cut in two
