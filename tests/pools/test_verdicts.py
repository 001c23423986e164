"""The hook _classify_error: what an error says, of a connection and of the server."""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from geventpool import Backoff, ConnectionPool, EndpointPool, PoolTimeout, Verdict
from geventpool.errors import ConnectError, PoolError
from geventpool.events import Reason
from support.kinds import OneEndpoint
from support.waiting import until

SOON = Backoff(first=0.01, longest=0.02)
group = getattr(builtins, "ExceptionGroup", None)
needs_groups = pytest.mark.skipif(group is None, reason="no exception groups in Python 3.10")


class Says(Exception):
    """An error that says which verdict it is."""

    def __init__(self, verdict: object) -> None:
        super().__init__(str(verdict))
        self.verdict = verdict


def classify(pool: Any, error: Exception) -> Any:
    if isinstance(error, Says):
        if isinstance(error.verdict, BaseException):
            raise error.verdict
        return error.verdict
    return Verdict.BROKEN if isinstance(error, OSError) else Verdict.FINE


class One(ConnectionPool[Any]):
    _classify_error = classify


class Many(EndpointPool[str, Any]):
    _classify_error = classify


class ManyAtOne(OneEndpoint):
    def __init__(self, size: int, *, connect: Callable[[], Any], **settings: Any) -> None:
        super().__init__(size, connect=connect, **settings)
        self.pool.close()
        self.pool = Many(
            max_size=size, total_max_size=size, connect=lambda endpoint: connect(), **settings
        )
        self.release, self.discard = self.pool.release, self.pool.discard
        self.close = self.pool.close


def make_one(size: int, **settings: Any) -> Any:
    return One(size, **settings)


@pytest.fixture(params=[make_one, ManyAtOne], ids=["ConnectionPool", "EndpointPool"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param  # type: ignore[no-any-return]


def leave_with(pool: Any, error: BaseException) -> Any:
    with pytest.raises(type(error)):
        with pool.get() as conn:
            raise error
    return conn


# What leaves a ``with``


@pytest.mark.parametrize(
    ("verdict", "kept"),
    [
        (Verdict.FINE, True),
        (Verdict.BROKEN, False),
        (Verdict.WRONG_SERVER, False),
        (Verdict.SERVER_FULL, False),
        (Verdict.FATAL, False),
    ],
)
def test_the_verdict_decides_whether_a_connection_is_kept(make, maker, verdict, kept):
    with make(1, connect=maker) as pool:
        conn = leave_with(pool, Says(verdict))
        with pool.get() as again:
            assert (again is conn) is kept


def test_a_wrong_server_has_all_opened_before_replaced_but_none_dialed_after(make, maker):
    with make(4, connect=maker) as pool:
        pool.fill()
        old = set(maker.open)
        held = pool.acquire()
        leave_with(pool, Says(Verdict.WRONG_SERVER))
        maker.wait_until(lambda: maker.open & old == {held.number})
        with pool.get() as fresh:
            assert fresh.number not in old
        pool.release(held)
        maker.wait_until(lambda: not maker.open & old)

        closed = pool.stats().closed
        assert closed[Reason.ERROR] == 1
        assert closed[Reason.DRAINED] == 3
        opened = maker.opened
        with pool.get() as conn:
            assert conn.number in maker.open
        assert maker.opened <= opened + 1


def test_many_holders_that_learn_it_together_have_it_replaced_once(make, maker, caplog):
    with make(5, connect=maker) as pool:
        pool.fill()
        held = [pool.acquire() for _ in range(5)]
        for conn in held:
            try:
                raise Says(Verdict.WRONG_SERVER)
            except Says:
                pool.release(conn)
            maker.wait_until(lambda conn=conn: conn.closed)
        pool.fill()

        assert maker.opened == 10
    assert [r.levelname for r in caplog.records if "wrong one" in r.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("verb", ["release", "discard"])
def test_given_back_in_an_except_a_wrong_server_drains_as_well(make, maker, verb):
    with make(3, connect=maker) as pool:
        pool.fill()
        old = set(maker.open)
        conn = pool.acquire()
        with pytest.raises(Says):
            try:
                raise Says(Verdict.WRONG_SERVER)
            finally:
                getattr(pool, verb)(conn)
        maker.wait_until(lambda: not maker.open & old)


def test_a_shared_lease_drains_although_the_outer_with_swallows_it(make, maker):
    with make(3, connect=maker, greenlet_local=True) as pool:
        pool.fill()
        old = set(maker.open)
        with pool.get():
            leave_with(pool, Says(Verdict.WRONG_SERVER))
            maker.wait_until(lambda: len(maker.open & old) == 1)
        maker.wait_until(lambda: not maker.open & old)


def test_strict_closes_after_any_exception_and_asks_for_the_wrong_server_all_the_same(make, maker):
    with make(4, connect=maker, strict=True) as pool:
        pool.fill()
        old = set(maker.open)
        conn = leave_with(pool, Says(Verdict.FINE))
        maker.wait_until(lambda: conn.closed)
        assert maker.open & old
        leave_with(pool, Says(Verdict.WRONG_SERVER))
        maker.wait_until(lambda: not maker.open & old)


def test_the_hook_is_not_asked_about_a_kill_or_an_error_of_a_pool(maker):
    asked: list[BaseException] = []

    class Asks(ConnectionPool[Any]):
        def _classify_error(self, error: Exception) -> Verdict:
            asked.append(error)
            return Verdict.FINE

    with Asks(1, connect=maker) as pool:
        killed = leave_with(pool, gevent.Timeout())
        maker.wait_until(lambda: killed.closed)
        kept = leave_with(pool, PoolTimeout("of another"))
        with pool.get() as conn:
            assert conn is kept
        assert asked == []
        assert leave_with(pool, OSError("asked")) is conn
        assert len(asked) == 1


@needs_groups
def test_of_a_group_the_worst_counts(make, maker):
    with make(2, connect=maker) as pool:
        pool.fill()
        old = set(maker.open)
        fine = leave_with(pool, group("g", [Says(Verdict.FINE), PoolError("fine")]))
        assert not fine.closed
        broken = leave_with(pool, group("g", [Says(Verdict.FINE), Says(Verdict.FATAL)]))
        maker.wait_until(lambda: broken.closed)
        leave_with(pool, group("g", [OSError(), group("h", [Says(Verdict.WRONG_SERVER)])]))
        maker.wait_until(lambda: not maker.open & old)
        old = set(maker.open)
        both = builtins.BaseExceptionGroup("g", [SystemExit(), Says(Verdict.WRONG_SERVER)])
        leave_with(pool, both)
        maker.wait_until(lambda: not maker.open & old)


@pytest.mark.parametrize("answer", [None, True, "fine", ZeroDivisionError("of the hook")])
def test_a_hook_that_fails_or_returns_no_verdict_is_logged_and_the_connection_closed(
    make, maker, caplog, answer
):
    with make(1, connect=maker) as pool:
        conn = leave_with(pool, Says(answer))
        maker.wait_until(lambda: conn.closed)
        pool.fill()
    assert any(
        record.levelno == logging.ERROR and "_classify_error" in record.getMessage()
        for record in caplog.records
    )


def test_a_hook_that_is_left_by_a_kill_costs_the_connection_and_nothing_else(make, maker):
    with make(1, connect=maker) as pool:
        with pytest.raises(KeyboardInterrupt):
            with pool.get() as conn:
                raise Says(KeyboardInterrupt())
        maker.wait_until(lambda: conn.closed)
        with pool.get():
            pass


# What a dial raises


def test_a_fatal_error_is_told_at_once_to_who_waits_and_who_comes(make, maker, caplog):
    maker.error = Says(Verdict.FATAL)
    with make(2, connect=maker, backoff=Backoff(first=0.01, longest=0.3, jitter=0)) as pool:
        began = time.monotonic()

        def error() -> Exception:
            with pytest.raises(Says) as raised:
                pool.acquire()
            return raised.value

        waiting = [gevent.spawn(error) for _ in range(5)]
        errors = [greenlet.get(timeout=10) for greenlet in waiting]
        with pytest.raises(Says):
            pool.acquire()
        with pytest.raises(Says):
            pool.fill()
        assert time.monotonic() - began < 5
        assert len({id(error) for error in errors}) == 5, "a copy for each"
        assert pool.stats().refused_down >= 6
        maker.error = None
        maker.wait_until(lambda: maker.opened > 0)
        with pool.get(timeout=5.0):
            pass
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([each for each in warnings if "no socket was found" not in each]) == 1, warnings


def test_a_fatal_error_has_the_server_dialed_after_the_longest_pause(maker):
    maker.error = Says(Verdict.FATAL)
    with One(1, connect=maker, backoff=Backoff(first=0.001, longest=60.0, jitter=0)) as pool:
        with pytest.raises(Says):
            pool.acquire()
        assert pool._standing().retry_in > 50
        assert maker.dials == 1


def test_a_full_server_is_no_outage_and_waiters_get_what_comes_back(make, maker, caplog):
    with make(3, connect=maker, timeout=10.0, down_after=0.01) as pool:
        first = pool.acquire()
        maker.error = Says(Verdict.SERVER_FULL)
        waiter = gevent.spawn(pool.acquire)
        until(lambda: pool.stats().dial_failed > 0)
        dials = maker.dials
        with pytest.raises(PoolTimeout) as late:
            pool.acquire(timeout=0.05)
        assert isinstance(late.value.__cause__, Says)
        pool.release(first)
        assert waiter.get(timeout=5) is first
        assert maker.dials == dials, "none within a second"
        pool.release(first)
        assert pool.stats().refused_down == 0


def test_a_dial_begun_before_the_server_was_full_does_not_hide_that_it_is(maker):
    maker.slow = True
    with One(3, connect=maker, min_size=0) as pool:
        callers = [gevent.spawn(pool.acquire) for _ in range(3)]
        until(lambda: len(maker.waiting) == 1)
        maker.let_in()
        until(lambda: len(maker.waiting) == 2)
        other = maker.waiting.pop()
        maker.error = Says(Verdict.SERVER_FULL)
        maker.let_in()
        until(lambda: pool.stats().dial_failed == 1)
        maker.waiting.append(other)
        maker.error = None
        maker.let_in()
        until(lambda: pool.stats().in_use == 2)

        with pytest.raises(PoolTimeout) as late:
            pool.acquire(timeout=0.02)

        assert isinstance(late.value.__cause__, Says)
        for caller in callers:
            if caller.ready():
                pool.release(caller.value)
        until(lambda: all(caller.ready() for caller in callers))
        pool.release(callers[2].value)


@pytest.mark.slow
def test_a_full_server_is_asked_for_one_more_after_a_second(maker):
    with One(3, connect=maker, min_size=0) as pool:
        first = pool.acquire()
        maker.error = Says(Verdict.SERVER_FULL)
        waiter = gevent.spawn(pool.acquire)
        until(lambda: pool.stats().dial_failed > 0)
        began, maker.error = time.monotonic(), None
        second = waiter.get(timeout=10)
        assert 0.8 < time.monotonic() - began < 5
        assert second is not first
        pool.release(first)
        pool.release(second)


@pytest.mark.parametrize("answer", [None, ZeroDivisionError("of the hook"), Verdict.FINE])
def test_a_hook_that_fails_after_a_dial_makes_it_a_failed_one_like_any_other(
    make, maker, caplog, answer
):
    maker.error = Says(answer)
    with make(1, connect=maker, backoff=SOON) as pool:
        with pytest.raises(PoolTimeout) as late:
            pool.acquire(timeout=0.1)
        assert isinstance(late.value.__cause__, Says)
        caller = gevent.spawn(pool.acquire)
        until(lambda: pool.stats().dial_failed > 1)
        maker.error = None
        pool.release(caller.get(timeout=5))
    logged = any("_classify_error" in record.getMessage() for record in caplog.records)
    assert logged is (answer is not Verdict.FINE)


@needs_groups
def test_of_a_group_from_a_dial_the_worst_counts_too(maker):
    maker.error = group("g", [OSError(), Says(Verdict.FATAL), Says(Verdict.SERVER_FULL)])
    with One(1, connect=maker) as pool, pytest.raises(group):
        pool.acquire(timeout=5)


def test_a_dial_that_took_too_long_is_asked_about_as_what_callers_get():
    asked: list[Exception] = []

    class Asks(ConnectionPool[Any]):
        def _new_connection(self) -> Any:
            gevent.sleep(10)

        def _classify_error(self, error: Exception) -> Verdict:
            asked.append(error)
            return Verdict.FATAL

    with Asks(1, connect_timeout=0.02) as pool:
        with pytest.raises(ConnectError, match="connect_timeout"):
            pool.acquire(timeout=5)
    assert isinstance(asked[0], ConnectError)
