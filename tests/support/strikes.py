"""Connections that count themselves, and greenlets struck at their n-th switch to the hub.

``Server`` opens plain objects, yields while it does, and knows at every instant how many are open.
``Stage`` plays a scenario and throws into one greenlet of it, the caller's or one of the pool's
own, at the n-th moment at which that greenlet gives way to others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.hub
import pytest
from gevent import GreenletExit

from geventpool import Backoff, ConnectionPool, PoolListener
from geventpool._runtime.workers import Worker

__all__ = [
    "PATIENCE",
    "STRIKES",
    "Connection",
    "Server",
    "Stage",
    "YieldingListener",
    "YieldingPool",
    "assert_whole",
    "assert_whole_together",
    "come_to_rest",
    "end_wear",
    "look_whole",
    "play_for_each_point",
    "strike_everywhere",
]

#: Seconds after which a test fails that waits for what needs none: only a bug waits that long.
PATIENCE = 20.0


class Connection:
    """What a Server opens."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.number = server.opened = server.opened + 1
        self.held = False  # for a test that looks whether two callers have it at once
        server.open.add(self)
        server.peak = max(server.peak, len(server.open))

    def __repr__(self) -> str:
        return f"<Connection {self.number}>"

    def close(self) -> None:
        self.server.open.discard(self)


class Server:
    """Knows which connections are open (*open*), and the most that were at any instant (*peak*)."""

    def __init__(self) -> None:
        self.open: set[Connection] = set()
        self.opened = 0
        self.peak = 0


class YieldingListener(PoolListener):
    """Gives way to others whenever it is told anything."""


def _give_way(self: Any, event: Any) -> None:
    gevent.sleep(0)


for _name in list(vars(PoolListener)):
    if not _name.startswith("_"):
        setattr(YieldingListener, _name, _give_way)


class YieldingPool(ConnectionPool[Connection]):
    """A pool whose every hook gives way to others; closing is finished even when it is struck."""

    def __init__(self, server: Server, size: int, *args: Any, **settings: Any) -> None:
        self.server = server
        self.failing_checks = 0  # so many more keepalives fail
        settings.setdefault("backoff", Backoff(first=0.001, longest=0.002))
        super().__init__(size, *args, **settings)

    def _new_connection(self) -> Connection:
        gevent.sleep(0)
        gevent.sleep(0)
        return Connection(self.server)

    def _keepalive(self, conn: Connection) -> None:
        gevent.sleep(0)
        if self.failing_checks:
            self.failing_checks -= 1
            raise OSError("no sign of life")

    def _close_connection(self, conn: Connection) -> None:
        try:
            gevent.sleep(0)
        finally:
            conn.close()


def _then(function: Callable[..., Any], after: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: after(function(*args, **kwargs))


# What is thrown, and how.  Each is called in the greenlet to be struck, in the place of a switch.


class Strike:
    """Throws *exc_class* into a greenlet that is about to switch to the hub."""

    def __init__(self, exc_class: type[BaseException], how: str) -> None:
        self.exc_class = exc_class
        self.how = how

    def __repr__(self) -> str:
        return f"{self.exc_class.__name__} {self.how}"

    def fall(self, stage: Stage, greenlet: Any) -> None:
        if self.how == "at once":  # before anything that is queued has run
            stage.thrown = self.exc_class()
            raise stage.thrown
        if self.how == "by a timer":
            stage.timeout = gevent.Timeout.start_new(0)
        elif self.how == "by kill":
            greenlet.kill(self.exc_class, block=False)
        else:  # behind all that is queued, its own wake-up perhaps
            gevent.get_hub().loop.run_callback(self._throw, stage, greenlet)

    def _throw(self, stage: Stage, greenlet: Any) -> None:
        if not greenlet.dead:
            stage.thrown = self.exc_class()
            greenlet.throw(stage.thrown)


STRIKES = [
    Strike(gevent.Timeout, "at once"),
    Strike(GreenletExit, "at once"),
    Strike(KeyboardInterrupt, "at once"),
    Strike(gevent.Timeout, "by a timer"),
    Strike(GreenletExit, "by kill"),
    Strike(KeyboardInterrupt, "by kill"),
    Strike(gevent.Timeout, "in line"),
    Strike(GreenletExit, "in line"),
]


class Stage:
    """One run of a scenario, in which one greenlet is struck.

    *victim* is ``"caller"`` (what the scenario gives to ``act``) or ``"pool"`` (any greenlet that
    the pools started); it is struck at its *nth* switch to the hub.  With *nth_spawn* the n-th
    greenlet that the pools start is killed before it has begun.
    """

    def __init__(
        self,
        victim: str = "caller",
        strike: Strike | None = None,
        nth: int = 0,
        nth_spawn: int = 0,
    ) -> None:
        self.victim = victim
        self.strike = strike
        self.nth = nth
        self.nth_spawn = nth_spawn
        self.switches = 0
        self.spawns = 0
        self.thrown: BaseException | None = None
        self.timeout: gevent.Timeout | None = None
        self.server = Server()
        self.pools: list[Any] = []
        self._armed = False
        self._theirs: set[Any] = set()
        self._actor: Any = None
        self._outcome: BaseException | None = None
        self._acted = False
        self._neighbours: list[Any] = []

    # For the scenario

    def pool(self, size: int, *args: Any, filled: bool = True, **settings: Any) -> Any:
        """A pool that opens its connections before anything is struck, unless not *filled*."""
        cls = settings.pop("cls", YieldingPool)
        self._armed = not filled
        pool = cls(self.server, size, *args, timeout=PATIENCE, **settings)
        self.pools.append(pool)
        if filled:
            pool.fill()
            come_to_rest(pool)
        self._armed = True
        return pool

    def act(self, action: Callable[[], object]) -> Any:
        """Start *action* in the greenlet whose cancellation is looked at."""
        self._actor = self._spawn(self._perform, action)
        return self._actor

    def neighbour(self, action: Callable[[], object]) -> Any:
        """Start *action* in a greenlet that is left alone: nothing may reach it."""
        greenlet = self._spawn(self._neighbourly, action)
        self._neighbours.append(greenlet)
        return greenlet

    # Machinery

    def play(self, scenario: Callable[[Stage], object]) -> None:
        """Play *scenario* and see that the strike went through to the caller, and to no other.

        What the main greenlet gets is collected: that is where a KeyboardInterrupt goes that hits
        a greenlet of the pool.
        """
        __tracebackhide__ = True
        hub_class: Any = type(gevent.get_hub())
        original = hub_class.switch
        interrupts: list[BaseException] = []

        def switch(hub: Any) -> Any:
            me = gevent.getcurrent()
            watched = me is self._actor if self.victim == "caller" else me in self._theirs
            if watched and self._armed:
                self.switches += 1
                if self.switches == self.nth and self.strike is not None:
                    self.strike.fall(self, me)
            return original(hub)

        def noted(greenlet: Any) -> Any:
            self._theirs.add(greenlet)
            if self._armed:
                self.spawns += 1
                if self.spawns == self.nth_spawn:
                    greenlet.kill(block=False)
            return greenlet

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hub_class, "switch", switch)
            for module, name in ((gevent, "spawn"), (Worker, "spawn")):
                patch.setattr(module, name, _then(getattr(module, name), noted))
            director = self._spawn(self._direct, scenario)
            while not director.ready():
                try:
                    director.join(PATIENCE)
                    assert director.ready(), f"hangs: {self.pools}"
                except KeyboardInterrupt as interrupt:
                    interrupts.append(interrupt)
        director.get()
        if self._actor is not None:
            self._judge()
        if self.victim == "pool" and isinstance(self.thrown, KeyboardInterrupt):
            assert interrupts == [self.thrown]

    def _judge(self) -> None:
        assert self._actor.ready(), f"the caller hangs: {self.pools}"
        outcome = self._outcome
        if self.victim != "caller" or self.strike is None or self.switches < self.nth:
            assert outcome is None, f"the caller got {outcome!r}"
        elif self.thrown is not None:
            assert outcome is self.thrown, f"the cancellation became {outcome!r}"
        elif outcome is None:
            assert self._acted, "the cancellation was swallowed"
        else:
            assert type(outcome) is self.strike.exc_class

    def _direct(self, scenario: Callable[[Stage], object]) -> None:
        scenario(self)
        everybody = [g for g in [self._actor, *self._neighbours] if g is not None]
        gevent.joinall(everybody, timeout=PATIENCE)
        for neighbour in self._neighbours:
            assert neighbour.ready(), f"a neighbour hangs: {self.pools}"
            neighbour.get()
        end_wear(*self.pools)
        come_to_rest(*self.pools)  # what the pool has yet to do is part of the scenario

    def _spawn(self, function: Callable[..., object], *args: Any) -> Any:
        greenlet: Any = gevent.Greenlet(function, *args)
        greenlet.start()
        return greenlet

    def _perform(self, action: Callable[[], object]) -> None:
        try:
            action()
            self._acted = True
        except BaseException as exc:
            self._outcome = exc
        finally:
            if self.timeout is not None:
                if not self.timeout.pending:
                    self.thrown = self.timeout
                self.timeout.close()

    def _neighbourly(self, action: Callable[[], object]) -> None:
        action()


# Conservation


def end_wear(*pools: Any) -> None:
    """Let what *pools* open from now on live for ever: where opening one takes longer than the few
    milliseconds that they live, as on a slow machine, they would never come to rest."""
    for pool in pools:
        pool._bucket.max_lifetime = None


def come_to_rest(*pools: Any) -> None:
    """Wait until nothing is under way in *pools*, and each has all that it should have open."""
    __tracebackhide__ = True
    deadline = time.monotonic() + PATIENCE
    while not all(_at_rest(pool) for pool in pools):
        gevent.sleep(0.0002)  # and not idle(): in a torture test nothing ever is
        stats = [pool.stats() for pool in pools]
        assert time.monotonic() < deadline, f"no rest: {stats}"


def _at_rest(pool: Any) -> bool:
    stats = pool.stats()
    busy = stats.in_use + stats.connecting + stats.checking + stats.closing + stats.waiting
    busy += stats.salvaging
    if busy or stats.idle > stats.size:
        return False
    # A minimum is not refilled at the cost of what lies idle in another pool of the same limit.
    barred = any(limit.full for limit in pool._bucket.shared)
    return stats.idle >= stats.min_size or pool._bucket.closed or barred


def assert_whole(pool: Any, server: Any, close: bool = True) -> None:
    """Fail unless *pool* has all its capacity, and *server* knows of no connection more."""
    assert_whole_together([pool], server, pool.stats().maximum, close)


def assert_whole_together(
    pools: list[Any], server: Any, maximum: float, close: bool = True
) -> None:
    """The same for *pools* that share a limit of *maximum*, each in turn."""
    __tracebackhide__ = True
    end_wear(*pools)
    come_to_rest(*pools)
    assert len(server.open) == sum(pool.stats().idle for pool in pools)
    for pool in pools:
        held = [pool.acquire(PATIENCE) for _ in range(int(maximum))]
        assert len(set(map(id, held))) == maximum
        assert set(held) == server.open
        for conn in held:
            pool.release(conn)
        come_to_rest(*pools)
    assert len(server.open) == sum(pool.stats().idle for pool in pools)
    assert server.peak <= maximum
    if close:
        for pool in pools:
            pool.close(timeout=PATIENCE)
        assert not server.open


def play_for_each_point(
    play: Callable[[Stage], None], victim: str, strike: Strike, hub_errors: list[BaseException]
) -> int:
    """Strike at the first moment, the second ... until the scenario runs through untouched."""
    for nth in range(1, 1000):
        stage = Stage(victim, strike, nth)
        stage.play(play)
        look_whole(stage)
        ours = [e for e in hub_errors if e is stage.thrown or isinstance(e, strike.exc_class)]
        assert hub_errors == ours
        if victim == "caller":
            assert ours == []
        hub_errors.clear()
        if stage.switches < nth:
            return nth - 1
    raise AssertionError("there is no end to it")


def look_whole(stage: Stage) -> None:
    if all(pool._bucket.closed for pool in stage.pools):
        for pool in stage.pools:
            pool.close(timeout=PATIENCE)
        assert not stage.server.open
    elif len(stage.pools) > 1:
        assert_whole_together(stage.pools, stage.server, 2)
    else:
        assert_whole(stage.pools[0], stage.server)


def strike_everywhere(
    strike: Strike, dial: Callable[[], Any], count_open: Callable[[], int]
) -> int:
    """Have *strike* fall at each switch of *dial*, one after the other, and return how many it has.

    Fails unless the socket that *dial* returns, if it does, is all that is open afterwards.
    """
    for nth in range(1, 100):
        stage = Stage("caller", strike, nth)
        left_open: list[int] = []

        def act(left_open: list[int] = left_open) -> None:
            with contextlib.ExitStack() as opened:
                try:
                    opened.callback(dial().close)
                    left_open.append(count_open() - 1)
                except BaseException:
                    left_open.append(count_open())
                    raise

        def scenario(stage: Stage, act: Callable[[], None] = act) -> None:
            stage._armed = True
            stage.act(act)

        stage.play(scenario)

        assert left_open == [0]
        if stage.switches < nth:
            return nth - 1
    raise AssertionError("it has no end")
