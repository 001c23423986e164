"""The pools of this process for OpenTelemetry (extra ``otel``), by its semantic conventions.

::

    from geventpool.observe.otel import instrument

    instrument()  # gauges and counters of every pool and manager, also of those made later
    instrument(pool)  # and for this one the three histograms

Gauges and counters are read when they are collected, and cost a pool nothing.  Histograms have no
such form in OpenTelemetry: each duration has to be recorded as it is seen, by a listener, and a
pool with a listener does not take the fast path.  So they are for the pools that are named.

Source: semantic conventions for database client metrics, 1.44, "development" still:
https://opentelemetry.io/docs/specs/semconv/database/database-metrics/
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from opentelemetry.metrics import (
    CallbackOptions,
    Meter,
    MeterProvider,
    Observation,
    get_meter_provider,
)

from geventpool.events import (
    ConnectionCheckedIn,
    ConnectionCheckedOut,
    ConnectionCreated,
    PoolEvent,
    PoolStats,
)
from geventpool.observe.secrets import as_shown
from geventpool.registry import pools
from geventpool.stats import BOUNDS

__all__ = ["durations", "instrument"]

_POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
_Value = tuple[float, dict[str, str]]
_name = lru_cache(1024)(as_shown)  # of a pool: it is asked for at each checkout


def instrument(*named: Any, meter_provider: MeterProvider | None = None) -> None:
    """Have *meter_provider* (None: the global one) collect from all pools of this process, and
    record create, wait and use time of those *named*.

    May be called again, for more pools: nothing is recorded twice.  Does not block.  Raises
    TypeError for a ConnectionManager among *named*: see ``durations``.
    """
    instruments = _instruments_of(meter_provider)
    for pool in named:
        instruments.time(pool)


def durations(meter_provider: MeterProvider | None = None) -> object:
    """A listener that records create, wait and use time, as ``instrument(pool)`` adds one: for what
    takes listeners only as it is made, ``ConnectionManager(listeners=[durations()])``."""
    return _instruments_of(meter_provider).listener


def _instruments_of(meter_provider: MeterProvider | None) -> _Instruments:
    provider = get_meter_provider() if meter_provider is None else meter_provider
    found = _instruments.get(provider)
    if found is None:
        found = _instruments[provider] = _Instruments(provider.get_meter("geventpool"))
    return found


class _Instruments:
    def __init__(self, meter: Meter) -> None:
        self._timed: weakref.WeakSet[Any] = weakref.WeakSet()
        for name, unit, text, values in _UP_DOWN_COUNTERS:
            meter.create_observable_up_down_counter(name, [_callback(values)], unit, text)
        for name, unit, text, values in _COUNTERS:
            meter.create_observable_counter(name, [_callback(values)], unit, text)
        for name, unit, text, values in _GAUGES:
            meter.create_observable_gauge(name, [_callback(values, max)], unit, text)
        self.listener = _Listener(meter)

    def time(self, pool: Any) -> None:
        if not hasattr(pool, "add_listener"):
            raise TypeError(
                f"named: {pool!r} takes no listener any more: give it one as it is made"
            )
        if pool not in self._timed:
            self._timed.add(pool)
            pool.add_listener(self.listener)


class _Listener:
    """Records durations as they are told."""

    def __init__(self, meter: Meter) -> None:
        def histogram(name: str, text: str) -> Any:
            return meter.create_histogram(
                f"db.client.connection.{name}",
                "s",
                text,
                explicit_bucket_boundaries_advisory=BOUNDS,
            )

        self._create = histogram("create_time", "The time it took to create a new connection.")
        self._wait = histogram(
            "wait_time", "The time it took to obtain an open connection from the pool."
        )
        self._use = histogram(
            "use_time", "The time between borrowing a connection and returning it to the pool."
        )

    def connection_created(self, event: ConnectionCreated) -> None:
        self._create.record(event.seconds, _of(event))

    def connection_checked_out(self, event: ConnectionCheckedOut) -> None:
        self._wait.record(event.waited, _of(event))

    def connection_checked_in(self, event: ConnectionCheckedIn) -> None:
        self._use.record(event.used, _of(event))


def _of(event: PoolEvent) -> dict[str, str]:
    return {_POOL: _name(event.pool.name)}


# What there is to observe of one pool


def _callback(
    values: Callable[[PoolStats, Any], Iterable[_Value]],
    combine: Callable[[float, float], float] = operator.add,
) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observe(options: CallbackOptions) -> Iterator[Observation]:
        found: dict[tuple[tuple[str, str], ...], float] = {}
        for pool in pools():
            for value, attributes in values(pool.stats(), pool):
                key = (_POOL, _name(pool.name)), *attributes.items()
                found[key] = combine(found[key], value) if key in found else value
        for key, value in found.items():  # pools of one name are one
            yield Observation(value, dict(key))

    return observe


def _figure(name: str) -> Callable[[PoolStats, Any], Iterable[_Value]]:
    return lambda stats, pool: [(+getattr(stats, name), {})]


def _states(stats: PoolStats, pool: Any) -> Iterable[_Value]:
    return [(stats.idle, {_STATE: "idle"}), (stats.in_use, {_STATE: "used"})]


def _other_states(stats: PoolStats, pool: Any) -> Iterable[_Value]:
    names = "connecting", "checking", "salvaging", "closing"
    return [(getattr(stats, name), {"geventpool.state": name}) for name in names]


def _maximum(stats: PoolStats, pool: Any) -> Iterable[_Value]:
    return [(stats.maximum, {})] if math.isfinite(stats.maximum) else []


def _idle_maximum(stats: PoolStats, pool: Any) -> Iterable[_Value]:
    """What overflows *size* is closed on return; with endpoints, *size* is that of each."""
    return _maximum(stats, pool) if hasattr(pool, "endpoints") else [(stats.size, {})]


def _refusals(stats: PoolStats, pool: Any) -> Iterable[_Value]:
    return [(n, {"geventpool.reason": why}) for why, n in stats.refusals.items()]


def _closed(stats: PoolStats, pool: Any) -> Iterable[_Value]:
    return [(n, {"geventpool.reason": str(why)}) for why, n in stats.closed.items() if n]


_UP_DOWN_COUNTERS = (
    (
        "db.client.connection.count",
        "{connection}",
        "The number of connections that are currently in the state described by the attribute.",
        _states,
    ),
    (
        "db.client.connection.idle.max",
        "{connection}",
        "The maximum number of idle open connections allowed.",
        _idle_maximum,
    ),
    (
        "db.client.connection.idle.min",
        "{connection}",
        "The minimum number of idle open connections allowed.",
        _figure("min_size"),
    ),
    (
        "db.client.connection.max",
        "{connection}",
        "The maximum number of open connections allowed.",
        _maximum,
    ),
    (
        "db.client.connection.pending_requests",
        "{request}",
        "The number of current pending requests for an open connection.",
        _figure("waiting"),
    ),
    (
        "geventpool.connection.count",
        "{connection}",
        "Connections that the pool itself is at work on.",
        _other_states,
    ),
)
_COUNTERS = (
    (
        "db.client.connection.timeouts",
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection.",
        _figure("timed_out"),
    ),
    ("geventpool.refusals", "{caller}", "Callers that got no connection, by why.", _refusals),
    ("geventpool.connection.closed", "{connection}", "Connections that left, by why.", _closed),
    ("geventpool.dials", "{dial}", "Dials begun.", _figure("dialed")),
    ("geventpool.dials.failed", "{dial}", "Dials that failed.", _figure("dial_failed")),
    ("geventpool.keepalives", "{check}", "Keepalives of the pool's own.", _figure("checked")),
    ("geventpool.salvaged", "{connection}", "Brought back into step.", _figure("salvaged")),
    ("geventpool.held_long", "{use}", "Uses longer than leak_threshold.", _figure("held_long")),
)
_GAUGES = (
    ("geventpool.waiting.max", "{caller}", "The most ever in line.", _figure("waiting_max")),
    ("geventpool.longest_held", "s", "How long one is held by now.", _figure("longest_held")),
    ("geventpool.hub.lag", "s", "How late a timer was lately.", _figure("hub_lag")),
    ("geventpool.down", "1", "1: no connection can be opened.", _figure("down")),
)

_instruments: weakref.WeakKeyDictionary[Any, _Instruments] = weakref.WeakKeyDictionary()
