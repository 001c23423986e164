"""What a pool shows of itself: stats, holders, repr, the text of a PoolTimeout, the log."""

from __future__ import annotations

import dataclasses
import logging
import math
import pickle
import sys
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import (
    Backoff,
    ConnectionPool,
    Duration,
    PoolFull,
    PoolTimeout,
    Reason,
)
from geventpool._runtime import introspection
from geventpool.testing import FakeClock
from support.objects import Maker
from support.waiting import until

SOON = Backoff(first=0.005, longest=0.005)
GAUGES = ("in_use", "idle", "connecting", "checking", "salvaging", "closing")


def gauges(pool: ConnectionPool[Any]) -> dict[str, int]:
    stats = pool.stats()
    return {name: value for name in GAUGES if (value := getattr(stats, name))}


class PingPool(ConnectionPool[Any]):
    def _keepalive(self, conn: Any) -> None:
        gevent.sleep(30)

    def _close_connection(self, conn: Any) -> None:
        gevent.sleep(0.01)
        conn.close()

    def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
        gevent.sleep(0.002)


# Gauges


def test_stats_say_what_the_pool_is_set_to(maker):
    stats = ConnectionPool(5, connect=maker, min_size=2, max_overflow=3, name="db").stats()

    assert (stats.name, stats.size, stats.min_size, stats.maximum) == ("db", 5, 2, 8)


def test_without_bound_the_maximum_is_infinite(maker):
    assert ConnectionPool(5, connect=maker, max_overflow=None).stats().maximum == math.inf


def test_stats_are_frozen(maker):
    stats = ConnectionPool(5, connect=maker).stats()

    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.idle = 7
    assert pickle.loads(pickle.dumps(stats)) == stats


def test_a_connection_is_in_one_gauge_at_each_moment_of_its_life(maker):
    maker.slow = True
    with FakeClock() as clock:
        pool = PingPool(1, connect=maker, keepalive=100)
        gevent.idle()
        seen = [gauges(pool)]
        maker.let_in()
        seen.append(gauges(pool))
        conn = pool.acquire()
        seen.append(gauges(pool))
        try:
            raise gevent.Timeout
        except gevent.Timeout:
            pool.release(conn)
        seen.append(gauges(pool))
        pool.release(pool.acquire())
        clock.advance(100)
        gevent.idle()
        seen.append(gauges(pool))
        pool.close(timeout=0)
        seen.append(gauges(pool))

    names = ["connecting", "idle", "in_use", "salvaging", "checking"]
    assert seen == [{name: 1} for name in names] + [{}]


def test_a_closing_connection_is_counted_until_it_is_closed(maker):
    pool = PingPool(1, connect=maker)
    pool.discard(pool.acquire())

    assert gauges(pool) == {"closing": 1}
    pool.close()
    assert gauges(pool) == {}


def test_the_gauges_add_up_to_what_the_limit_counts_at_every_moment(maker):
    pool = PingPool(3, connect=maker, max_overflow=1)
    sums, salvaging = [], []

    def caller(number):
        for turn in range(5):
            conn = pool.acquire()
            gevent.sleep(0.001)
            try:
                if turn % 2:
                    raise gevent.Timeout
                (pool.discard if (number + turn) % 3 else pool.release)(conn)
            except gevent.Timeout:
                pool.release(conn)
                salvaging.append(pool.stats().salvaging)
            sums.append((sum(gauges(pool).values()), pool._bucket.own.used))

    gevent.joinall([gevent.spawn(caller, number) for number in range(8)], raise_error=True)

    assert all(total == used <= 4 for total, used in sums)
    assert any(salvaging)
    pool.close()


def test_waiting_counts_the_callers_in_line(maker):
    pool = ConnectionPool(1, connect=maker)
    conn = pool.acquire()
    callers = [gevent.spawn(pool.execute, repr) for _ in range(3)]
    gevent.idle()

    assert pool.stats().waiting == 3
    pool.release(conn)
    gevent.joinall(callers)
    assert pool.stats().waiting == 0


# Counters


def counted(pool: ConnectionPool[Any]) -> dict[str, int]:
    stats = pool.stats()
    names = (
        "acquired",
        "released",
        "timed_out",
        "refused",
        "abandoned",
        "dialed",
        "opened",
        "dial_failed",
        "checked",
    )
    found = {name: value for name in names if (value := getattr(stats, name))}
    found.update({str(reason): count for reason, count in stats.closed.items() if count})
    return found


@pytest.fixture
def pool(maker: Maker) -> ConnectionPool[Any]:
    pool = ConnectionPool(1, connect=maker, min_size=0, max_waiting=1, backoff=SOON)
    pool.fill(timeout=10)
    return pool


OPENED = {"dialed": 1, "opened": 1}


def test_acquired_ticks_at_the_hand_out_and_released_at_the_return(pool):
    with pool.get():
        assert counted(pool) == OPENED | {"acquired": 1}
    assert counted(pool) == OPENED | {"acquired": 1, "released": 1}


def test_acquired_ticks_off_the_fast_path_too(pool):
    conn = pool.acquire()
    assert counted(pool) == OPENED | {"acquired": 1}
    pool.release(conn)
    assert counted(pool) == OPENED | {"acquired": 1, "released": 1}


def test_what_is_discarded_or_detached_was_acquired_and_not_released(pool):
    with pytest.raises(OSError):
        with pool.get():
            raise OSError
    pool.discard(pool.acquire())
    pool.detach(pool.acquire())

    assert counted(pool) == {
        "acquired": 3,
        "dialed": 3,
        "opened": 3,
        str(Reason.ERROR): 1,
        str(Reason.DISCARDED): 1,
        str(Reason.DETACHED): 1,
    }
    assert pool.stats().use.count == 3


def test_what_was_lost_was_acquired(pool):
    pool.acquire()
    gevent.idle()

    assert counted(pool) == OPENED | {"acquired": 1, str(Reason.LOST): 1}


def test_counters_do_not_go_back_while_a_reset_runs(maker):
    seen = []

    class Resetting(ConnectionPool):
        def _reset_connection(self, conn):
            seen.append(counted(self))

    pool = Resetting(1, connect=maker)
    with pool.get():
        pass

    assert seen == [OPENED | {"acquired": 1}]
    assert counted(pool) == OPENED | {"acquired": 1, "released": 1}


def test_timed_out_refused_and_abandoned_tell_who_was_not_served(pool):
    with pool.get():
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.01)
        with gevent.Timeout(0.01, False):
            pool.acquire()
        waiter = gevent.spawn(pool.acquire)
        gevent.idle()
        with pytest.raises(PoolFull):
            pool.acquire()
        waiter.kill()

    assert counted(pool) == OPENED | {
        "acquired": 1,
        "released": 1,
        "timed_out": 2,
        "refused": 1,
        "abandoned": 2,
    }


def test_dialed_is_opened_and_dial_failed(maker):
    maker.error = ConnectionRefusedError()
    pool = ConnectionPool(1, connect=maker, backoff=SOON)
    maker.wait_until(lambda: maker.dials >= 3)
    maker.error = None
    pool.fill(timeout=10)
    stats = pool.stats()

    assert stats.dialed == maker.dials
    assert stats.opened == 1
    assert stats.dial_failed == maker.dials - 1


def test_last_error_is_that_of_the_last_dial_and_none_after_a_success(maker):
    maker.error = ConnectionRefusedError()
    pool = ConnectionPool(1, connect=maker, backoff=SOON)
    assert pool.stats().last_error is None
    maker.wait_until(lambda: maker.dials >= 2)
    assert pool.stats().last_error is maker.error
    maker.error = None
    pool.fill(timeout=10)

    assert pool.stats().last_error is None


def test_closed_has_every_reason(pool):
    assert set(pool.stats().closed) == set(Reason)


def test_durations_have_count_sum_and_max_in_seconds(maker):
    def connect():
        clock.advance(200)
        return maker()

    with FakeClock() as clock, ConnectionPool(1, connect=connect) as pool:
        pool.fill()
        for seconds in (100, 300):
            with pool.get():
                clock.advance(seconds)
        use, connecting = pool.stats().use, pool.stats().connect

        assert use.count == 2
        assert 400 <= use.sum < 450
        assert 300 <= use.max < 350
        assert use.mean == use.sum / 2
        assert connecting.count == 1
        assert 200 <= connecting.max == connecting.sum < 250
        assert pool.stats().wait == Duration(0, 0.0, 0.0)


def test_wait_counts_those_who_waited_and_were_served(maker):
    def request():
        with pool.get(timeout=None):
            return pool.stats().wait

    with FakeClock() as clock, ConnectionPool(1, connect=maker) as pool:
        with pool.get():
            before = pool.stats().wait
            waiter = gevent.spawn(request)
            gevent.idle()
            clock.advance(100)
        wait = waiter.get(timeout=10)

    assert wait.count == before.count + 1
    assert 100 <= wait.max < 150


def test_the_mean_of_what_was_never_measured_is_0():
    assert Duration().mean == 0.0


# holders


def test_holders_tell_connection_greenlet_age_and_current_stack(maker):
    end = Event()

    def slow_request():
        with pool.get():
            end.wait()

    with FakeClock() as clock, ConnectionPool(2, connect=maker) as pool:
        greenlet = gevent.spawn(slow_request)
        gevent.idle()
        clock.advance(100)
        conn = pool.acquire()
        first, second = pool.holders()

        assert first.greenlet is greenlet
        assert 100 <= first.age < 150
        assert "in slow_request" in first.stack
        assert "end.wait()" in first.stack
        assert first.where is None
        assert second.connection is conn
        assert second.greenlet is gevent.getcurrent()
        assert second.age < 50
        assert "test_holders_tell" in second.stack
        end.set()
        greenlet.join()
        assert [holder.connection for holder in pool.holders()] == [conn]
        pool.release(conn)


def test_with_track_holders_tell_where_a_connection_was_acquired(maker):
    pool = ConnectionPool(2, connect=maker, track=True)

    def get_one():
        return pool.acquire()

    conn = get_one()
    with pool.get():
        by_acquire, by_get = pool.holders()

    assert "in get_one" in by_acquire.where
    assert "return pool.acquire()" in by_acquire.where
    assert "with pool.get():" in by_get.where
    assert by_acquire.where.index("test_with_track") < by_acquire.where.index("in get_one")
    pool.release(conn)


@pytest.mark.parametrize("greenlet_local", [False, True])
def test_with_track_the_fast_path_remembers_it_too(maker, greenlet_local):
    def use():
        with pool.get():
            assert pool._bucket.fast_path_open == pool._runtime.ident
            return pool.holders()[0].where

    with ConnectionPool(1, connect=maker, track=True, greenlet_local=greenlet_local) as pool:
        pool.fill()
        assert "in use" in use()
        where = use()  # and it is that of this use
        assert where.index("where = use()") < where.index("in use")


@pytest.mark.parametrize("by_hand", [False, True])
def test_with_track_a_stack_is_taken_once_for_each_use(maker, monkeypatch, by_hand):
    taken, take = [], introspection._taken

    def counted(*arguments):
        taken.append(arguments)
        return take(*arguments)

    def use():
        if by_hand:
            pool.release(pool.acquire())
        else:
            with pool.get():
                pass

    with ConnectionPool(1, connect=maker, track=True) as pool:
        with pool.get():
            monkeypatch.setattr(introspection, "_taken", counted)
            waiter = gevent.spawn(use)
            until(lambda: pool.stats().waiting)
        waiter.get(timeout=10)  # by the hand of the one before it
        assert len(taken) == 1
        use()  # by the fast path
        assert len(taken) == 2


def test_a_holder_whose_greenlet_has_ended_has_no_stack(maker):
    pool = ConnectionPool(1, connect=maker)
    conn = gevent.spawn(pool.acquire).get(timeout=10)

    (holder,) = pool.holders()

    assert holder.connection is conn
    assert holder.stack is None


# repr


def test_the_repr_tells_class_name_and_how_it_stands(maker):
    class MyPool(ConnectionPool):
        pass

    maker.slow = True
    pool = MyPool(3, connect=maker, name="db", min_size=2)
    gevent.idle()
    assert repr(pool) == "<MyPool 'db' 0 in use, 0 idle, 1 connecting | 0 waiting>"
    maker.slow = False
    maker.let_in()
    assert repr(pool) == "<MyPool 'db' 0 in use, 2 idle, 0 connecting | 0 waiting>"
    with pool.get():
        assert repr(pool) == "<MyPool 'db' 1 in use, 1 idle, 0 connecting | 0 waiting>"


def test_pools_without_a_name_have_different_ones(maker):
    assert ConnectionPool(1, connect=maker).name != ConnectionPool(1, connect=maker).name


# PoolTimeout


def test_a_pool_timeout_tells_which_pool_what_and_how_much(maker):
    def wait():
        with pytest.raises(PoolTimeout) as raised:
            pool.acquire(timeout=200)
        return raised.value

    with FakeClock() as clock, ConnectionPool(2, connect=maker, name="db") as pool:
        held = [pool.acquire()]
        clock.advance(100)
        held.append(pool.acquire())
        waiter = gevent.spawn(wait)
        other = gevent.spawn(pool.acquire, timeout=None)
        gevent.idle()
        clock.advance(200)
        error, line = waiter.get(timeout=10), sys._getframe().f_lineno
        other.kill()
        for conn in held:
            pool.release(conn)

    here = f"{__file__}:{line} in test_a_pool_timeout_tells_which_pool_what_and_how_much"
    assert str(error) == (
        "pool 'db': no connection came free in 200 s"
        " (2 in use, 0 idle, 0 connecting, 1 waiting);"
        f" held for up to {error.held_for[0]:.3f} s; held longest by"
        f" the main greenlet for {error.held_for[0]:.3f} s at {here},"
        f" the main greenlet for {error.held_for[1]:.3f} s at {here}"
    )
    assert (error.pool, error.timeout) == ("db", 200)
    assert (error.in_use, error.idle, error.connecting, error.waiting) == (2, 0, 0, 1)
    assert len(error.held_for) == 2
    assert 300 <= error.held_for[0] < 350
    assert 200 <= error.held_for[1] < 250
    assert error.__cause__ is None
    assert isinstance(error, TimeoutError)


def test_a_pool_timeout_has_the_last_dial_error_as_cause_and_in_its_text(maker):
    maker.error = ConnectionRefusedError("nothing there")
    pool = ConnectionPool(2, connect=maker, name="db")

    with pytest.raises(
        PoolTimeout, match="last dial: ConnectionRefusedError: nothing th"
    ) as raised:
        pool.acquire(timeout=0.03)

    assert raised.value.__cause__ is maker.error
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (copy.pool, copy.timeout, str(copy)) == ("db", 0.03, str(raised.value))


# The log


def test_the_log_is_named_after_the_pool(maker, caplog):
    maker.error = ConnectionRefusedError("nothing there")
    ConnectionPool(1, connect=maker, name="db", backoff=SOON)
    with caplog.at_level(logging.DEBUG, "geventpool"):
        pool = ConnectionPool(1, connect=maker, name="db", backoff=SOON)
        maker.wait_until(lambda: maker.dials >= 4)
    pool.close()

    dials = [r for r in caplog.records if "a dial failed" in r.getMessage()]
    assert {r.name for r in dials} == {"geventpool.pool.db"}
    assert "pool 'db'" in dials[0].getMessage()
    assert "nothing there" in dials[0].getMessage()


def test_of_an_outage_only_the_first_failed_dial_is_told_at_any_level(maker, caplog):
    maker.error = ConnectionRefusedError("nothing there")
    with caplog.at_level(logging.DEBUG, "geventpool"):
        pool = ConnectionPool(1, connect=maker, backoff=SOON)
        maker.wait_until(lambda: maker.dials >= 5)
        pool.close()

    assert [r.levelno for r in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("name", ["retry", "resolver", None])
def test_no_pool_logs_to_the_logger_of_a_module_whatever_its_name(maker, name):
    with ConnectionPool(1, connect=maker, name=name) as pool:
        below = "" if name is None else f".{name}"
        assert pool.log is logging.getLogger(f"geventpool.pool{below}")


def test_a_log_handler_that_raises_cannot_break_the_pool(maker, capsys):
    class Raising(logging.Handler):
        def handle(self, record):
            raise ZeroDivisionError("no log today")

    log = logging.getLogger("geventpool.pool.unlogged")
    handler = Raising()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        maker.error = ConnectionRefusedError()
        pool = ConnectionPool(1, connect=maker, name="unlogged", backoff=SOON)
        maker.wait_until(lambda: maker.dials >= 3)
        maker.error = None
        pool.discard(pool.acquire(timeout=10))
        with pool.get(timeout=10):
            pass
        pool.close(timeout=5)
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)

    assert "no log today" in capsys.readouterr().err
    assert maker.open == set()


def test_a_log_handler_that_switches_cannot_break_the_pool(maker):
    class Switching(logging.Handler):
        def handle(self, record):
            gevent.sleep(0.001)
            return True

    log = logging.getLogger("geventpool.pool.slowly")
    handler = Switching()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        maker.error = ConnectionRefusedError()
        pool = ConnectionPool(2, connect=maker, name="slowly", backoff=SOON)
        maker.wait_until(lambda: maker.dials >= 3)
        maker.error = None
        for _ in range(5):
            pool.discard(pool.acquire(timeout=10))
        pool.acquire(timeout=10)  # lost at once
        with pool.get(timeout=10):
            pass
        pool.close(timeout=5)
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)

    assert maker.open <= {6}
