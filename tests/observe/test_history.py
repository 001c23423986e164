"""What a pool was like over the last minute and hour: little, and of the pools that are open."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from geventpool import ConnectionPool, PoolFull
from geventpool.observe import history, snapshot
from geventpool.testing import FakeClock
from support import ROOT
from support.child import FORKS, Child
from support.objects import Maker
from support.waiting import until

pytestmark = pytest.mark.usefixtures("run_folder")


def seen_of(pool: Any) -> dict[str, Any]:
    (shown,) = [each for each in snapshot(history=True)["pools"] if each["name"] == pool.name]
    return dict(shown["history"])


@pytest.fixture
def each_second(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Have a second of a pool pass, by a clock that is set."""
    now = 1000.0

    def pass_a_second(pool: Any) -> None:
        nonlocal now
        now += 1.0
        history.record_of(pool).look(pool)

    monkeypatch.setattr(history, "monotonic", lambda: now)
    return pass_a_second


def test_nothing_is_kept_of_a_pool_that_has_gone_though_nothing_looks_each_second(
    maker: Maker,
) -> None:
    history.stop()
    for _ in range(3):
        pool = ConnectionPool(1, connect=maker, min_size=0)
        assert len(snapshot()["pools"]) == len(history._records) == 1
        pool.close()
        del pool
        until(lambda: gc.collect() >= 0 and not history._records)


def test_a_second_has_who_holds_who_waits_and_for_how_long(
    maker: Maker, each_second: Callable[[Any], None]
) -> None:
    def wait() -> None:
        pool.release(pool.acquire())

    with ConnectionPool(1, connect=maker) as pool:
        each_second(pool)
        conn = pool.acquire()
        waiting = gevent.spawn(wait)
        gevent.sleep(0.02)
        each_second(pool)
        pool.release(conn)
        waiting.get()
        each_second(pool)
        minute = seen_of(pool)["minute"]
    assert minute["in_use"] == [1, 0]
    assert minute["waiting"] == [1, 0]
    assert minute["wait"][1] >= 0.02
    assert minute["served"] == [1.0, 1.0]


def test_the_p99_of_waits_is_that_of_the_last_minute(
    maker: Maker, each_second: Callable[[Any], None]
) -> None:
    def waits(seconds: float) -> None:
        conn = pool.acquire()
        waiting = gevent.spawn(pool.execute, id)
        gevent.idle()
        clock.advance(seconds)
        pool.release(conn)
        waiting.get()

    with FakeClock() as clock, ConnectionPool(1, connect=maker) as pool:
        assert seen_of(pool)["wait_p99"] == 0.0
        waits(9.0)  # before anybody looked
        each_second(pool)
        for _ in range(9):
            waits(0.3)
        each_second(pool)
        quick = seen_of(pool)["wait_p99"]
        waits(4.0)
        each_second(pool)
        slow = seen_of(pool)["wait_p99"]
        for _ in range(60):
            each_second(pool)
        later = seen_of(pool)["wait_p99"]
    assert 0.25 < quick <= 0.5
    assert 2.5 < slow <= 5.0
    assert later == 0.0


def test_no_p99_is_longer_than_the_longest_wait(
    maker: Maker, each_second: Callable[[Any], None]
) -> None:
    with FakeClock() as clock, ConnectionPool(1, connect=maker) as pool:
        each_second(pool)
        conn = pool.acquire()
        waiting = gevent.spawn(pool.execute, id)
        gevent.idle()
        clock.advance(0.26)
        pool.release(conn)
        waiting.get()
        each_second(pool)
        assert 0.26 <= seen_of(pool)["wait_p99"] == pool.stats().wait.max < 0.49


def test_callers_that_were_sent_away_are_counted(
    maker: Maker, each_second: Callable[[Any], None]
) -> None:
    with ConnectionPool(1, connect=maker, max_waiting=0) as pool:
        pool.fill()
        each_second(pool)
        with pool.get():
            for _ in range(3):
                with pytest.raises(PoolFull):
                    pool.acquire()
        each_second(pool)
        each_second(pool)
        assert seen_of(pool)["minute"]["sent_away"] == [3, 0]


def test_what_is_kept_is_bounded_and_of_a_minute_the_worst_is(
    maker: Maker, each_second: Callable[[Any], None]
) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        each_second(pool)
        for _ in range(59):
            each_second(pool)
        with pool.get():
            each_second(pool)
        hour = seen_of(pool)["hour"]
        for _ in range(3600 + 120):
            each_second(pool)
        later = seen_of(pool)
    assert hour["in_use"] == [1]
    assert later["hour"]["in_use"] == [0] * 60
    assert len(later["minute"]["in_use"]) == 60


def test_it_keeps_no_pool_alive_and_forgets_those_that_have_gone(maker: Maker) -> None:
    history.start()
    pool = ConnectionPool(1, connect=maker)
    key = history.record_of(pool).key
    reference = weakref.ref(pool)
    pool.close()
    del pool
    until(lambda: reference() is None)
    until(lambda: key not in {each.key for each in history._records.values()}, seconds=5)


def test_a_pool_has_its_key_for_as_long_as_it_lives(maker: Maker) -> None:
    keys = []
    for _ in range(20):  # the same address again, most likely
        with ConnectionPool(1, connect=maker) as pool:
            keys += {history.record_of(pool).key for _ in range(3)}
    assert len(set(keys)) == 20


def test_a_program_may_end_while_it_looks() -> None:
    code = "import gevent; from geventpool.observe import history; history.start(); gevent.wait()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)


@FORKS
def test_a_child_begins_afresh(maker: Maker, fork: Callable[[], int]) -> None:
    def look() -> tuple[str, bool]:
        before = history._sampler is None
        history.start()
        gevent.sleep(0)
        return history.record_of(pool).key.partition("-")[0], before

    with ConnectionPool(1, connect=maker, min_size=0) as pool:
        history.start()
        gevent.sleep(0)
        own = history.record_of(pool).key
        child = Child(fork, look)
        pid, was_fresh = child.result()
        assert history.record_of(pool).key == own
    assert was_fresh
    assert int(pid) == child.pid
