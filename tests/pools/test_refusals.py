"""A caller that gets no connection is counted once, by the error that it got; and what the log says
of an outage."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import pytest

from geventpool import (
    Backoff,
    CoDel,
    ConnectionPool,
    EndpointPool,
    Limit,
    OutOfSockets,
    PoolDown,
    PoolFull,
    PoolOverloaded,
    PoolTimeout,
    Verdict,
)
from geventpool._runtime import outages
from support.kinds import MakePool
from support.objects import Maker
from support.waiting import until

SOON = Backoff(first=0.01, longest=0.01)
SLOW = Backoff(first=30.0, longest=30.0)
REFUSED = ConnectionRefusedError("refused")


def counted(pool: Any) -> dict[str, int]:
    return {kind: count for kind, count in pool.stats().refusals.items() if count}


def test_the_error_of_a_dial_itself_is_a_kind_of_its_own(make_pool: MakePool, maker: Maker) -> None:
    maker.error = REFUSED
    with make_pool(1, connect=maker, backoff=SOON, fail_fast=True) as pool:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                pool.acquire()
        assert counted(pool) == {"dial": 3}
        assert pool.stats().refused_dial == 3


def test_the_error_that_a_caller_got_decides_and_not_what_else_was_wrong(
    make_pool: MakePool, maker: Maker
) -> None:
    maker.error = REFUSED
    with make_pool(1, connect=maker, backoff=SLOW, fail_fast=True, down_after=0.05) as pool:
        with pytest.raises(ConnectionRefusedError):
            pool.acquire()
        for _ in range(2):
            with pytest.raises(PoolDown):
                pool.acquire()
        assert counted(pool) == {"dial": 1, "down": 2}


def test_a_fatal_error_counts_as_down(maker: Maker) -> None:
    class Locked(ConnectionPool[Any]):
        def _classify_error(self, error: Exception) -> Verdict:
            return Verdict.FATAL

    maker.error = REFUSED
    with Locked(1, connect=maker, backoff=SLOW) as pool:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                pool.acquire()
        assert counted(pool) == {"down": 3}


def test_a_limit_at_which_no_caller_waits_is_a_kind_of_its_own(maker: Maker) -> None:
    class Impatient(EndpointPool[str, Any]):
        def _settings_of(self, endpoint: str | None) -> dict[str, Any]:
            return {"fail_when_full": True}

    with Impatient(connect=lambda endpoint: maker(), limits=[Limit(1)]) as pool:
        with pool.get("a"):
            for _ in range(2):
                with pytest.raises(OutOfSockets):
                    pool.acquire("b")
        assert counted(pool) == {"limit": 2}
        until(lambda: "b" not in pool.endpoints())
        assert pool.stats().refused_limit == 2


def test_callers_in_line_that_are_sent_away_are_each_counted_once(maker: Maker) -> None:
    def outcome() -> object:
        with pytest.raises(PoolFull) as raised:
            pool.acquire(30.0)
        return type(raised.value)

    slow = CoDel(target=0.01, interval=0.02)
    with ConnectionPool(1, connect=maker, overload=slow, max_waiting=5) as pool:
        with pool.get():
            callers = [gevent.spawn(outcome) for _ in range(6)]
            kinds = [caller.get(timeout=10) for caller in callers]
        assert (kinds.count(PoolFull), kinds.count(PoolOverloaded)) == (1, 5)
        assert counted(pool) == {"full": 1, "shed": 5}


def test_a_killed_caller_is_no_refusal(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        with pool.get():
            caller = gevent.spawn(pool.acquire)
            until(lambda: pool.stats().waiting)
            caller.kill()
        assert counted(pool) == {}
        assert pool.stats().abandoned == 1


# The log


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What it says of dials."""
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    return [line for line in lines if "dial" in line[1]]


def test_an_outage_is_one_though_the_endpoint_is_forgotten_between_its_callers(
    maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    maker.error = REFUSED
    with (
        caplog.at_level(logging.DEBUG, "geventpool"),
        EndpointPool(connect=lambda endpoint: maker(), backoff=SOON) as pool,
    ):
        for _ in range(3):
            with pytest.raises(PoolTimeout):
                pool.acquire("here", timeout=0.02)
            until(lambda: not pool.endpoints())
        maker.error = None
        with pool.get("here"):
            until(lambda: "succeed again" in caplog.text)
        failed = pool.stats().dial_failed

    begins, ends = told(caplog)
    assert begins[0] == "WARNING"
    assert "here: a dial failed: ConnectionRefusedError('refused')" in begins[1]
    assert ends[0] == "INFO"
    assert "here: dials succeed again" in ends[1]
    assert f"{failed} dials failed, and 3 callers got no connection meanwhile" in ends[1]


def test_a_fatal_error_after_others_is_no_second_outage(
    maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    class Locked(ConnectionPool[Any]):
        def _classify_error(self, error: Exception) -> Verdict:
            return Verdict.FATAL if isinstance(error, PermissionError) else Verdict.BROKEN

    maker.error = REFUSED
    with (
        caplog.at_level(logging.DEBUG, "geventpool"),
        Locked(1, connect=maker, backoff=Backoff(first=0.01, longest=0.1)) as pool,
    ):
        until(lambda: maker.dials >= 2)
        maker.error = PermissionError("wrong password")
        with pytest.raises(PermissionError):
            pool.acquire()
        maker.error = None
        until(lambda: pool.stats().idle)
        until(lambda: "succeed again" in caplog.text)
    assert [level for level, _ in told(caplog)] == ["WARNING", "INFO"]


def test_of_a_fatal_error_the_line_says_that_callers_are_sent_away(
    maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    class Locked(ConnectionPool[Any]):
        def _classify_error(self, error: Exception) -> Verdict:
            return Verdict.FATAL

    maker.error = PermissionError("wrong password")
    with Locked(1, connect=maker, backoff=SLOW) as pool:
        with pytest.raises(PermissionError):
            pool.acquire()
    ((level, line),) = told(caplog)
    assert level == "WARNING"
    assert "callers are sent away until one succeeds: PermissionError('wrong password')" in line


def test_of_a_hook_that_raises_the_log_has_the_traceback(
    maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    maker.error = ZeroDivisionError("in the hook")
    with ConnectionPool(1, connect=maker, backoff=SLOW):
        until(lambda: "a dial failed" in caplog.text)
    assert "in __call__" in caplog.text


def test_of_more_than_a_thousand_outages_each_begins_once_or_is_not_told() -> None:
    lasting = outages.Outages()
    begun = [sum(lasting.dial_failed((each,), now) for each in range(1001)) for now in range(3)]

    assert begun == [1000, 0, 0]
    assert lasting.ended((0,)) == outages.FailingDials(since=0, last=2, failed=3)
    assert lasting.ended((1000,)) is None


def test_endpoints_that_are_dialed_no_more_make_room_for_others() -> None:
    lasting = outages.Outages()
    for now in (0.0, 0.0, 300.0):
        for each in range(int(now), 1000):
            lasting.dial_failed((each,), now)
    assert not lasting.dial_failed(("new",), 599.0)

    begun = [lasting.dial_failed(("new", each), 700.0) for each in range(301)]
    assert begun == [True] * 300 + [False]
    assert lasting.ended((299,)) is None
    assert lasting.ended((300,)) is not None
