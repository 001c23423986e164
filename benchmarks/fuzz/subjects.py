"""The two pools and the manager, each by the same verbs, with hooks that fail and give way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any

from benchmarks.fuzz.chaos import Chaos
from geventpool import (
    Backoff,
    CoDel,
    ConnectionManager,
    ConnectionPool,
    EndpointPool,
    HealthPolicy,
    Limit,
    PoolListener,
    Verdict,
)

__all__ = ["Endpoints", "Managed", "Plain", "Subject"]

_BACKOFF = Backoff(first=0.0005, longest=0.005)
_HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
_NAME = "servers"


def _hooks(chaos: Chaos) -> dict[str, Callable[..., Any]]:
    """All hooks that a pool may have, for a pool of either kind; an endpoint comes first."""

    def _keepalive(self: Any, *key_and_conn: Any) -> None:
        chaos.ask(key_and_conn[-1])
        chaos.trouble()

    def _is_alive(self: Any, *key_and_conn: Any) -> bool:
        chaos.trouble(0.02)
        return bool(self._seems_alive(*key_and_conn))

    def _reset_connection(self: Any, *key_and_conn: Any) -> None:
        chaos.wander()
        chaos.trouble()
        chaos.ask(key_and_conn[-1])

    def _salvage_connection(self: Any, *key_conn_error: Any) -> None:
        chaos.wander()
        chaos.trouble(0.2)
        chaos.salvage(key_conn_error[-2])

    def _close_connection(self: Any, *key_and_conn: Any) -> None:
        try:
            chaos.wander()
            chaos.trouble()
        finally:
            key_and_conn[-1].close()

    def _socket(self: Any, *key_and_conn: Any) -> Any:
        try:
            chaos.trouble(0.02)
        except BaseException:
            chaos.unwatched.add(key_and_conn[-1])
            raise
        return key_and_conn[-1]

    def _classify_error(self: Any, error: Exception) -> Verdict:
        chaos.trouble(0.05)
        fine = not isinstance(error, OSError)
        others = [Verdict.WRONG_SERVER, Verdict.FATAL, Verdict.BROKEN]
        if not chaos.calm and chaos.dice.random() < 0.05:
            return chaos.dice.choice(others)
        return Verdict.FINE if fine else Verdict.BROKEN

    return {name: each for name, each in locals().items() if name.startswith("_")}


def _listener(chaos: Chaos) -> PoolListener:
    """Is told everything, gives way, and raises."""

    def told(self: Any, event: Any) -> None:
        chaos.wander()
        chaos.trouble(0.02)

    names = [name for name in vars(PoolListener) if not name.startswith("_")]
    listener: PoolListener = type("Listener", (PoolListener,), dict.fromkeys(names, told))()
    return listener


def _settings(chaos: Chaos, limits: list[Limit]) -> dict[str, Any]:
    """Settings by the dice that both pools know."""
    dice = chaos.dice
    possible: dict[str, Any] = {
        "max_waiting": dice.choice([3, 10]),
        "overload": CoDel(target=0.002, interval=0.01),
        "keepalive_timeout": 0.05,
        "salvage_timeout": 0.05,
        "idle_timeout": 0.005,
        "max_lifetime": 0.05,
        "max_uses": 5,
        "jitter": 0.5,
        "order": dice.choice(["fifo", "lifo"]),
        "strict": True,
        "fail_fast": True,
        "down_after": 0.01,
        "greenlet_local": True,
        "track": True,
        "leak_threshold": 0.005,
        "max_connecting": 1,
        "listeners": [_listener(chaos)],
    }
    drawn = {name: each for name, each in possible.items() if dice.random() < 0.2}
    timeout = dice.choice([0.01, 0.1, 5.0])
    return {**drawn, "timeout": timeout, "backoff": _BACKOFF, "limits": limits}


def _class(chaos: Chaos, base: Any, settings: dict[str, Any]) -> Any:
    """A pool class that overrides some of the hooks, and so has the fast path or not."""
    hooks = {name: each for name, each in _hooks(chaos).items() if chaos.dice.random() < 0.25}
    if "_keepalive" in hooks:
        settings["keepalive"] = chaos.dice.choice([None, 0.005])
        settings["check_after"] = chaos.dice.choice([None, 0.0, 0.01])
    return type(f"Fuzzed{base.__name__}", (base,), hooks)


class Subject:
    """One of them.  *most*: connections that it may have open."""

    pool: Any
    most: int
    chaos: Chaos

    def get(self, **timeout: Any) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def acquire(self, **timeout: Any) -> Any:
        raise NotImplementedError

    def release(self, conn: Any) -> None:
        self.pool.release(conn)

    def discard(self, conn: Any) -> None:
        self.pool.discard(conn)

    def detach(self, conn: Any) -> None:
        """Out of the pool for good.  Closed first: its place is another's from then on."""
        conn.close()
        self.pool.detach(conn)

    def others(self) -> list[Callable[[], object]]:
        """The verbs that lend no connection."""
        raise NotImplementedError

    def close(self, timeout: float | None) -> None:
        self.pool.close(timeout)

    def recover(self) -> None:
        """Have it as it was made, for the last look at it."""

    @property
    def engine(self) -> Any:
        """The pool that has the connections."""
        return self.pool

    def audit(self) -> None:
        """Have its books looked at, as is done once a minute."""
        for bucket in self.engine._all_buckets():
            self.engine._runtime.scheduler.audit(bucket, monotonic())

    def look(self) -> None:
        """Its own count is never more than it may be."""
        buckets = self.engine._all_buckets()
        counted = sum(each.open + each.connecting + each.closing for each in buckets)
        if counted > self.most:
            self.chaos.fault(AssertionError(f"{counted} are counted, of {self.most}: {self.pool}"))

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way."""
        stats = self.pool.stats()
        busy = stats.in_use + stats.connecting + stats.checking + stats.closing + stats.salvaging
        return not (busy or stats.waiting)


class Plain(Subject):
    """A ConnectionPool."""

    def __init__(self, chaos: Chaos, limits: list[Limit], size: int = 3, overflow: int = 2) -> None:
        self.chaos = chaos
        settings = _settings(chaos, limits)
        least = 0 if limits else chaos.dice.choice([0, 1, size])
        extra = chaos.dice.choice([0, overflow])
        kind = _class(chaos, ConnectionPool, settings)
        self._sizes = size, least, extra
        self.most = size + overflow
        self.pool = kind(
            size, connect=chaos.open, min_size=least, max_overflow=extra, name="plain", **settings
        )

    def get(self, **timeout: Any) -> AbstractContextManager[Any]:
        lease: AbstractContextManager[Any] = self.pool.get(**timeout)
        return lease

    def acquire(self, **timeout: Any) -> Any:
        return self.pool.acquire(**timeout)

    def others(self) -> list[Callable[[], object]]:
        pool, dice, size = self.pool, self.chaos.dice, self._sizes[0]
        return [
            lambda: pool.execute(self.chaos.ask),
            lambda: pool.execute("getsockname"),
            lambda: pool.fill(timeout=dice.random() * 0.02),
            lambda: pool.resize(dice.randint(1, size)),
            lambda: pool.resize(size, dice.randint(0, size), max_overflow=dice.choice([0, 1, 2])),
            lambda: pool.drain(dice.choice([0.0, 0.01])),
            pool.dispose,
            pool.stats,
            pool.holders,
            lambda: (repr(pool), pool.size),
        ]

    def recover(self) -> None:
        size, least, extra = self._sizes
        self.pool.resize(size, least, max_overflow=extra)
        self.most = size + extra


class Endpoints(Subject):
    """An EndpointPool with three endpoints, which are one server."""

    def __init__(self, chaos: Chaos, limits: list[Limit], size: int = 3, total: int = 5) -> None:
        self.chaos = chaos
        settings = _settings(chaos, limits)
        kind = _class(chaos, EndpointPool, settings)
        self._sizes = size, total
        self.most = total
        self.pool = kind(
            connect=lambda endpoint: chaos.open(),
            max_size=size,
            total_max_size=total,
            min_idle=chaos.dice.choice([0, 1]),
            name="endpoints",
            **settings,
        )

    def _endpoint(self) -> Any:
        return self.chaos.dice.choice(["a", ("b", 1), None]) if not self.chaos.calm else "a"

    def get(self, **timeout: Any) -> AbstractContextManager[Any]:
        lease: AbstractContextManager[Any] = self.pool.get(self._endpoint(), **timeout)
        return lease

    def acquire(self, **timeout: Any) -> Any:
        return self.pool.acquire(self._endpoint(), **timeout)

    def others(self) -> list[Callable[[], object]]:
        pool, dice = self.pool, self.chaos.dice
        size, total = self._sizes
        return [
            lambda: pool.execute(self._endpoint(), self.chaos.ask),
            lambda: pool.execute(self._endpoint(), "getsockname"),
            lambda: pool.fill(self._endpoint(), timeout=dice.random() * 0.02),
            lambda: pool.resize(dice.randint(1, size)),
            lambda: pool.resize(size, total_max_size=dice.randint(size, total)),
            lambda: pool.drain(self._endpoint(), over=dice.choice([0.0, 0.01])),
            lambda: pool.dispose(self._endpoint()),
            lambda: pool.stats(self._endpoint()),
            lambda: pool.holders(self._endpoint()),
            lambda: (repr(pool), pool.size, pool.max_size, pool.total_max_size, pool.endpoints()),
        ]

    def recover(self) -> None:
        self.pool.resize(*self._sizes)
        self.most = self._sizes[0]  # at one endpoint


class Managed(Subject):
    """A ConnectionManager of three addresses, all of them one server."""

    def __init__(self, chaos: Chaos, limits: list[Limit], port: int, most: int = 6) -> None:
        self.chaos = chaos
        self.most = most
        dice = chaos.dice
        self._addresses = [(host, port) for host in _HOSTS]
        possible: dict[str, Any] = {
            "max_per_address": 2,
            "overload": CoDel(target=0.002, interval=0.01),
            "idle_timeout": 0.005,
            "max_lifetime": 0.05,
            "track": True,
            "leak_threshold": 0.005,
            "listeners": [_listener(chaos)],
            "balance": "p2c",
        }
        self.pool = ConnectionManager(
            {_NAME: [[(1, each) for each in self._addresses]]},
            timeout=dice.choice([0.1, 5.0]),
            max_sockets=most,
            health=HealthPolicy(backoff=Backoff(first=0.002, longest=0.01), slow_start=0.0),
            limits=limits,
            name="managed",
            **{name: each for name, each in possible.items() if dice.random() < 0.2},
        )

    @property
    def engine(self) -> Any:
        return self.pool._pool

    def _target(self) -> Any:
        return self.chaos.dice.choice([_NAME, _NAME, *self._addresses])

    def get(self, **timeout: Any) -> AbstractContextManager[Any]:
        lease: AbstractContextManager[Any] = self.pool.connection(
            self._target(), sock_type=self.chaos.track, **timeout
        )
        return lease

    def acquire(self, **timeout: Any) -> Any:
        return self.pool.get_connection(self._target(), sock_type=self.chaos.track, **timeout)

    def release(self, conn: Any) -> None:
        if self.chaos.dice.random() < 0.2:
            self.pool.report(conn, ok=self.chaos.dice.random() < 0.5)
        self.pool.release_connection(conn)

    def discard(self, conn: Any) -> None:
        self.pool.discard_connection(conn)

    def detach(self, conn: Any) -> None:
        conn.close()
        self.pool.release_connection(conn)

    def others(self) -> list[Callable[[], object]]:
        manager, dice = self.pool, self.chaos.dice
        address = dice.choice(self._addresses)
        return [
            lambda: manager.get_all_addrs(_NAME),
            lambda: manager.get_addr(_NAME),
            lambda: manager.refresh(_NAME),
            lambda: manager.mark_down(address, dice.choice([None, 0.005])),
            lambda: manager.mark_up(address),
            lambda: manager.traffic(address),
            manager.stats,
            manager.holders,
            lambda: (repr(manager), manager.name, manager.closed),
        ]

    def recover(self) -> None:
        for each in self._addresses:
            self.pool.mark_up(each)
