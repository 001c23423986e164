"""Callers that hold connections of a pool and wait for others of it: a deadlock is said."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import (
    ConnectionPool,
    EndpointPool,
    Limit,
    PoolDeadlock,
    PoolError,
    PoolListener,
    PoolTimeout,
    Reason,
    Verdict,
)
from support.objects import Maker
from support.waiting import until

PATIENCE = 20.0
WARNING = "waits in line for another one of the same pool"


def filled(size: int, **settings: Any) -> ConnectionPool[Any]:
    pool: ConnectionPool[Any] = ConnectionPool(size, connect=Maker(), **settings)
    pool.fill()
    return pool


class Nested:
    """A greenlet that holds one connection and, when it is told to, waits for a second one."""

    def __init__(self, pool: Any, *keys: Any, by_with: bool = True, **options: Any) -> None:
        self.go_on, self.holds = Event(), Event()
        self.outcome: Any = None
        self.greenlet = gevent.spawn(self._run, pool, keys, by_with, options)
        self.holds.wait()

    def _run(self, pool: Any, keys: Any, by_with: bool, options: Any) -> None:
        first, second = (keys[:1], keys[1:]) if keys else ((), ())
        try:
            if by_with:
                with pool.get(*first):
                    self._second(pool, second, options)
            else:
                conn = pool.acquire(*first)
                try:
                    self._second(pool, second, options)
                finally:
                    pool.release(conn)
        except PoolError as error:
            self.outcome = error

    def _second(self, pool: Any, second: Any, options: Any) -> None:
        self.holds.set()
        self.go_on.wait()
        with pool.get(*second, **options):
            self.outcome = "served"

    def wait(self) -> None:
        self.go_on.set()
        gevent.sleep(0)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if WARNING in r.getMessage()]


def test_if_every_holder_waits_the_one_that_came_last_is_told_at_once() -> None:
    pool = filled(3)
    callers = [Nested(pool) for _ in range(3)]
    began = time.monotonic()
    for caller in callers:
        caller.wait()
    gevent.joinall([caller.greenlet for caller in callers])

    assert time.monotonic() - began < 1
    assert [caller.outcome for caller in callers[:2]] == ["served", "served"]
    error = callers[2].outcome
    assert type(error) is PoolDeadlock
    assert error.pool == pool.name
    assert error.in_use == 3
    assert "every connection is held by a greenlet that waits in line" in str(error)
    assert pool.stats().timed_out == 1


def test_it_is_a_pool_timeout_for_who_does_not_know_it_and_can_be_pickled() -> None:
    error = PoolDeadlock("no way", pool="db", timeout=3.0, in_use=2)
    assert isinstance(error, PoolTimeout)
    assert isinstance(error, TimeoutError)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is PoolDeadlock
    assert str(copy) == "no way"


def test_a_single_greenlet_that_holds_all_is_told() -> None:
    pool = filled(2)
    with pool.get(), pool.get():
        with pytest.raises(PoolDeadlock):
            pool.acquire()
        with pytest.raises(PoolDeadlock):
            pool.acquire(timeout=None)  # for ever, and there is nothing else to wait for
    assert pool.stats().idle == 2


def test_it_does_not_close_the_connection_that_its_caller_holds() -> None:
    pool = filled(1)
    with pytest.raises(PoolDeadlock), pool.get(), pool.get():
        pytest.fail("served")
    stats = pool.stats()
    assert (stats.idle, stats.dialed, sum(stats.closed.values())) == (1, 1, 0)


def test_the_youngest_of_those_that_hold_is_told_and_no_other() -> None:
    pool = filled(2)
    first, second = Nested(pool), Nested(pool)
    served = []

    def plain() -> None:
        with pool.get():
            served.append(1)

    first.wait()
    second.wait()
    others = [gevent.spawn(plain) for _ in range(3)]
    gevent.joinall([first.greenlet, second.greenlet, *others])

    assert first.outcome == "served"
    assert type(second.outcome) is PoolDeadlock
    assert len(served) == 3


def test_it_is_noticed_whoever_of_them_began_to_wait_last() -> None:
    pool = filled(2)
    first, second = Nested(pool), Nested(pool)
    second.wait()
    gevent.sleep(0.05)  # the look is over, and found one that does not wait
    first.wait()
    gevent.joinall([first.greenlet, second.greenlet])
    assert second.outcome == "served"
    assert type(first.outcome) is PoolDeadlock


def test_of_two_deadlocks_each_is_said() -> None:
    pools = [filled(1), filled(1)]
    callers = [Nested(pool) for pool in pools]
    for caller in callers:
        caller.wait()
    gevent.joinall([caller.greenlet for caller in callers])
    assert [type(caller.outcome) for caller in callers] == [PoolDeadlock, PoolDeadlock]


def test_while_one_holder_does_not_wait_there_is_none() -> None:
    pool = filled(2)
    first, second = Nested(pool), Nested(pool)
    first.wait()
    gevent.sleep(0.05)
    assert first.outcome is None
    second.greenlet.kill()
    first.greenlet.join()
    assert first.outcome == "served"


def test_a_connection_that_no_with_holds_may_be_given_back_by_another_greenlet() -> None:
    pool = filled(1)
    conn = pool.acquire()
    gevent.spawn_later(0.05, pool.release, conn)
    pool.release(pool.acquire(timeout=5))


def test_such_a_one_is_warned_of_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    pool = filled(1)
    held: list[Any] = []

    def take_two() -> None:
        held.append(pool.acquire())
        pool.release(pool.acquire(timeout=PATIENCE))

    caller = gevent.spawn(take_two)
    until(lambda: warnings_of(caplog), "a warning")
    pool.release(held.pop())
    caller.get()
    assert len(warnings_of(caplog)) == 1


def test_a_dial_under_way_may_yet_serve_them() -> None:
    maker = Maker()
    pool = ConnectionPool(2, min_size=0, connect=maker)
    with pool.get():
        maker.slow = True
        gevent.spawn_later(0.05, maker.let_in)
        with pool.get():
            pass
    pool.close()


def test_a_place_that_is_yet_to_be_used_is_no_deadlock() -> None:
    maker = Maker()
    pool = ConnectionPool(1, max_overflow=1, connect=maker)
    pool.fill()
    maker.error = OSError("away")
    with pool.get():
        gevent.spawn_later(0.05, setattr, maker, "error", None)
        with pool.get():
            pass
    pool.close()


def test_a_wait_that_is_soon_over_by_itself_ends_as_ever() -> None:
    pool = filled(1)
    began = time.monotonic()
    with pool.get(), pytest.raises(PoolTimeout) as caught:
        pool.acquire(timeout=0.05)
    assert type(caught.value) is PoolTimeout
    assert time.monotonic() - began >= 0.05


def test_a_holder_that_has_ended_waits_for_nothing() -> None:
    pool = filled(2)
    kept: list[Any] = []
    gevent.spawn(lambda: kept.append(pool.acquire())).join()
    with pool.get():
        gevent.spawn_later(0.05, lambda: pool.discard(kept.pop()))
        with pool.get(timeout=5):
            pass
    pool.close()


def test_a_pool_whose_greenlets_share_what_they_have_has_none() -> None:
    pool = filled(1, greenlet_local=True)
    with pool.get() as conn, pool.get() as same:
        assert conn is same


def test_a_pool_that_is_closed_says_that() -> None:
    pool = filled(1)
    caller = Nested(pool)
    caller.wait()
    gevent.spawn(pool.close, 0)
    caller.greenlet.join()
    assert type(caller.outcome).__name__ == "PoolClosed"


@pytest.mark.parametrize(("max_size", "total"), [(2, 2), (1, 2), (1, None)])
def test_holders_of_one_endpoint_that_wait_for_another_wait_for_each_other(
    max_size: int, total: int | None
) -> None:
    pool = EndpointPool(max_size=max_size, total_max_size=total, connect=lambda endpoint: Maker()())
    first, second = Nested(pool, "a", "b"), Nested(pool, "b", "a")
    first.wait()
    second.wait()
    gevent.joinall([first.greenlet, second.greenlet])
    assert first.outcome == "served"
    assert type(second.outcome) is PoolDeadlock
    pool.close()


@pytest.mark.parametrize("limits", [[], [Limit(2)]])
def test_so_do_those_of_several_pools(
    limits: list[Limit], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = (
        ConnectionPool(2 if limits else 1, min_size=0, connect=Maker(), limits=limits, name=name)
        for name in "ab"
    )

    def cross(hold: Any, wait: Any, outcomes: list[Any]) -> None:
        try:
            with hold.get():
                gevent.sleep(0.02)
                with wait.get():
                    outcomes.append("served")
        except PoolDeadlock as error:
            outcomes.append(error)

    outcomes: list[Any] = []
    gevent.joinall(
        [gevent.spawn(cross, one, other, outcomes), gevent.spawn(cross, other, one, outcomes)]
    )
    assert sorted(type(each).__name__ for each in outcomes) == ["PoolDeadlock", "str"]
    assert warnings_of(caplog) == []  # it is not one pool of which both want two
    one.close()
    other.close()


def test_a_pool_that_has_its_own_places_left_waits_for_the_others_holders() -> None:
    limit = Limit(2)
    one, other = (
        ConnectionPool(2, min_size=0, connect=Maker(), limits=[limit], name=name) for name in "ab"
    )
    with one.get():
        elsewhere = other.acquire()
        gevent.spawn_later(0.05, other.discard, elsewhere)
        with one.get(timeout=5):
            pass
    one.close()
    other.close()


@pytest.mark.parametrize("strike", [gevent.GreenletExit, gevent.Timeout])
def test_one_that_is_struck_as_it_is_told_leaves_the_pool_whole(
    strike: type[BaseException],
) -> None:
    pool = filled(2)
    callers = [Nested(pool), Nested(pool)]
    refuse: Callable[..., object] = pool._runtime.scheduler.refuse

    def refuse_and_strike(waiter: Any, error: Any, now: float) -> None:
        refuse(waiter, error, now)
        victim = waiter.callback.__self__
        gevent.get_hub().loop.run_callback(victim.throw, strike())

    pool._runtime.deadlocks._scheduler = Striking(pool._runtime.scheduler, refuse_and_strike)
    try:
        for caller in callers:
            caller.wait()
        gevent.joinall([caller.greenlet for caller in callers])
    finally:
        pool._runtime.deadlocks._scheduler = pool._runtime.scheduler
    pool.fill()
    stats = pool.stats()
    assert (stats.idle, stats.in_use, stats.waiting) == (2, 0, 0)
    assert callers[0].outcome == "served"


class Striking:
    """A scheduler whose ``refuse`` is another."""

    def __init__(self, scheduler: Any, refuse: Callable[..., object]) -> None:
        self.with_waiters = scheduler.with_waiters
        self.refuse = refuse


# The warning


def test_a_caller_that_waits_while_it_holds_one_is_warned_of_once_with_both_stacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = filled(2, track=True)

    def gets_the_first(with_second: Callable[[], object]) -> None:
        with pool.get():
            with_second()

    def waits_for_the_second() -> None:
        with pool.get():
            pass

    for _ in range(2):
        with pool.get():
            caller = gevent.spawn(gets_the_first, waits_for_the_second)
            until(lambda: warnings_of(caplog), "a warning")
            gevent.sleep(0.03)
        caller.join()
    gevent.idle()

    (warning,) = warnings_of(caplog)
    got_at, waits_at = warning.split("It waits at")
    assert pool.name in warning
    assert "in gets_the_first" in got_at
    assert "in waits_for_the_second" in waits_at
    assert "geventpool/pools" not in warning
    levels = {r.levelno for r in caplog.records if WARNING in r.getMessage()}
    assert levels == {logging.WARNING}


def test_without_track_the_warning_says_how_to_know_more(caplog: pytest.LogCaptureFixture) -> None:
    pool = filled(1)
    with pool.get(), pytest.raises(PoolDeadlock):
        pool.acquire()
    until(lambda: warnings_of(caplog), "a warning")
    (warning,) = warnings_of(caplog)
    assert "track=True tells where" in warning


def test_callers_that_hold_nothing_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    pool = filled(2)

    def work() -> None:
        for _ in range(10):
            with pool.get():
                gevent.sleep(0.002)

    gevent.joinall([gevent.spawn(work) for _ in range(20)])
    assert warnings_of(caplog) == []


def test_a_listener_is_told_as_of_any_caller_that_waited_in_vain() -> None:
    told: list[Any] = []

    class Listener(PoolListener):
        def acquire_timed_out(self, event: Any) -> None:
            told.append(event.error)

    pool = filled(1, listeners=[Listener()])
    with pool.get(), pytest.raises(PoolDeadlock) as caught:
        pool.acquire()
    assert told == [caught.value]
    assert pool.stats().closed[Reason.ERROR] == 0


def test_a_server_that_is_full_for_a_moment_makes_no_deadlock() -> None:
    class Full(OSError):
        pass

    class Pool(ConnectionPool[Any]):
        room = 2

        def _new_connection(self) -> Any:
            if self.room <= 0:
                raise Full("too many clients")
            self.room -= 1
            return Maker()()

        def _classify_error(self, error: Exception) -> Verdict:
            return Verdict.SERVER_FULL if isinstance(error, Full) else Verdict.BROKEN

    def takes_two() -> None:
        with pool.get():
            started.append(1)
            until(lambda: len(started) == 2)
            with pool.get():
                pass

    started: list[int] = []
    with Pool(10, min_size=0, timeout=PATIENCE) as pool:
        both = [gevent.spawn(takes_two) for _ in range(2)]
        until(lambda: pool.stats().waiting == 2)
        gevent.sleep(0.1)  # a look at the holders comes after 10 ms
        pool.room = 5
        gevent.joinall(both, raise_error=True)


def test_a_limit_that_may_rise_by_itself_makes_no_deadlock() -> None:
    class Lease(Limit):
        may_rise = True

    limit = Lease(1)

    def takes_two() -> None:
        with pool.get(), pool.get():
            pass

    with ConnectionPool(5, min_size=0, connect=Maker(), limits=[limit], timeout=PATIENCE) as pool:
        caller = gevent.spawn(takes_two)
        until(lambda: pool.stats().waiting == 1)
        gevent.sleep(0.1)
        limit.maximum = 2
        caller.get(timeout=PATIENCE)
