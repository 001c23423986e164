"""down_after: an outage is told at once, and holds no greenlet."""

from __future__ import annotations

import logging
import time

import gevent
import pytest

from geventpool import (
    Backoff,
    ConnectionPool,
    EndpointPool,
    PoolDown,
    PoolError,
    PoolListener,
    PoolTimeout,
    PoolUnavailable,
    SocketFactory,
    events,
)
from geventpool._scheduler import outage
from geventpool.testing import EchoServer
from support.kinds import MakePool
from support.objects import Maker
from support.servers import closed_port
from support.waiting import until

SOON = Backoff(first=0.01, longest=0.02)
REFUSED = ConnectionRefusedError("refused")


class Ups(PoolListener):
    def __init__(self) -> None:
        self.told: list[events.PoolEvent] = []

    def pool_went_down(self, event: events.PoolWentDown) -> None:
        self.told.append(event)

    def pool_is_back(self, event: events.PoolIsBack) -> None:
        self.told.append(event)


def told(pool: object, timeout: float | None = 30.0) -> tuple[BaseException, float]:
    """What a caller gets, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(PoolUnavailable) as error:
        with pool.get(timeout=timeout):  # type: ignore[attr-defined]
            pass
    return error.value, time.monotonic() - began


def test_an_outage_is_told_to_all_in_line_and_to_who_comes(make_pool: MakePool, maker: Maker):
    maker.error = REFUSED
    with make_pool(3, connect=maker, down_after=0.1, backoff=SOON) as pool:
        waiting = [gevent.spawn(told, pool) for _ in range(20)]
        for greenlet in waiting:
            error, _ = greenlet.get(timeout=10)
            assert isinstance(error, PoolDown)
            assert str(error.__cause__) == "refused"
            assert error.down_for >= 0.1
            assert 0 < error.retry_after <= 0.02

        error, seconds = told(pool)

        assert isinstance(error, PoolDown)
        assert "refused" in str(error)
        assert seconds < 0.1
        assert pool.stats().refused_down == 21
        assert pool.stats().refused == 0


def test_who_does_not_wait_is_told_that_too(make_pool: MakePool, maker: Maker):
    maker.error = REFUSED
    # (In the instant at which the next dial is due, a caller is the one that it is for.)
    slow = Backoff(first=30.0, longest=30.0)
    with make_pool(3, connect=maker, down_after=0.05, backoff=slow) as pool:
        told(pool)
        assert isinstance(told(pool, timeout=0)[0], PoolDown)


def test_the_pool_goes_on_dialing_alone_and_the_first_success_ends_it(
    make_pool: MakePool, maker: Maker
):
    maker.error = REFUSED
    with make_pool(3, connect=maker, down_after=0.05, backoff=SOON) as pool:
        told(pool)
        dials = maker.dials

        maker.wait_until(lambda: maker.dials >= dials + 5)
        maker.error = None
        maker.wait_until(lambda: maker.opened > 0)

        with pool.get(timeout=1.0):
            assert maker.opened <= 3


def test_an_elastic_pool_without_callers_learns_that_the_server_is_back(maker: Maker):
    maker.error = REFUSED
    pool = ConnectionPool(3, connect=maker, min_size=0, down_after=0.05, backoff=SOON)
    with pool:
        told(pool)
        maker.error = None
        until(lambda: pool.stats().idle == 1)
        assert pool.stats().opened == 1


def test_a_back_off_longer_than_down_after_and_a_hanging_dial_hold_up_nobody(maker: Maker):
    slow = Backoff(first=30.0, longest=30.0)
    maker.error = REFUSED
    with ConnectionPool(1, connect=maker, down_after=0.1, backoff=slow) as pool:
        error, seconds = told(pool)
        assert isinstance(error, PoolDown)
        assert 10 < error.retry_after <= 30
        assert seconds < 5


def test_fill_is_told_as_well(make_pool: MakePool, maker: Maker):
    maker.error = REFUSED
    with make_pool(3, connect=maker, down_after=0.1, backoff=SOON) as pool:
        with pytest.raises(PoolDown):
            pool.fill()
        with pytest.raises(PoolDown):
            pool.fill()


def test_fill_is_told_though_no_dial_ends_meanwhile(make_pool: MakePool, maker: Maker):
    maker.error = REFUSED
    slow = Backoff(first=30.0, longest=30.0)
    with make_pool(3, connect=maker, down_after=0.1, backoff=slow) as pool:
        with gevent.Timeout(10), pytest.raises(PoolDown):
            pool.fill()


def test_without_down_after_callers_wait_for_their_own_time(make_pool: MakePool, maker: Maker):
    maker.error = REFUSED
    with make_pool(1, connect=maker, backoff=SOON) as pool:
        error, seconds = told(pool, timeout=0.3)
        assert isinstance(error, PoolTimeout)
        assert seconds >= 0.3


def test_listeners_and_the_log_are_told_once_at_each_end(
    make_pool: MakePool, maker: Maker, caplog: pytest.LogCaptureFixture
):
    maker.error = REFUSED
    ups = Ups()
    with caplog.at_level(logging.DEBUG, "geventpool"):
        with make_pool(3, connect=maker, down_after=0.1, backoff=SOON, listeners=[ups]) as pool:
            for _ in range(3):
                told(pool)
            dials = maker.dials
            maker.wait_until(lambda: maker.dials >= dials + 3)
            maker.error = None
            until(lambda: len(ups.told) == 2)

    down, back = ups.told
    assert isinstance(down, events.PoolWentDown)
    assert isinstance(back, events.PoolIsBack)
    assert str(down.error) == "refused"
    assert back.seconds >= 0.1
    assert back.dials >= dials
    assert back.refused == 3
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    lines = [line for line in lines if "no socket was found" not in line[1]]
    lines = [line for line in lines if "closed a connection" not in line[1]]
    assert [level for level, _ in lines] == ["WARNING", "INFO"], lines
    assert "a dial failed" in lines[0][1]
    assert f"{back.dials} dials failed, and 3 callers got no connection meanwhile" in lines[1][1]


def test_what_a_listener_raises_leaves_the_pool_whole(maker: Maker):
    class Raises:
        def pool_went_down(self, event: object) -> None:
            raise ZeroDivisionError

        pool_is_back = pool_went_down

    maker.error = REFUSED
    with ConnectionPool(
        1, connect=maker, down_after=0.05, backoff=SOON, listeners=[Raises()]
    ) as pool:
        told(pool)
        maker.error = None
        until(lambda: pool.stats().idle == 1)
        with pool.get(timeout=1.0):
            pass


def test_each_endpoint_is_down_for_itself(maker: Maker):
    def connect(endpoint: str) -> object:
        if endpoint == "away":
            raise REFUSED.with_traceback(None)
        return maker()

    with EndpointPool(connect=connect, down_after=0.05, backoff=SOON) as pool:
        with pytest.raises(PoolDown, match="away"):
            pool.acquire("away")
        with pool.get("here"):
            pass
        assert pool.stats("away").refused_down == 1
        assert pool.stats("here").refused_down == 0
        assert pool.stats().refused_down == 1


def test_a_socket_server_that_went_away_and_comes_back():
    with EchoServer() as server:
        connect = SocketFactory(server.address)
        with ConnectionPool(2, connect=connect, down_after=0.1, backoff=SOON) as pool:
            pool.fill()
            server.stop()
            until(lambda: pool.stats().idle == 0)
            error, _ = told(pool)
            assert isinstance(error, PoolDown)
            assert isinstance(error.__cause__, OSError)
            server.start()
            until(lambda: pool.stats().idle > 0)
            with pool.get(timeout=1.0) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"


def test_a_refused_port_takes_no_callers_time():
    with closed_port() as address:
        pool = ConnectionPool(2, connect=SocketFactory(address), down_after=0.1, backoff=SOON)
        with pool:
            told(pool)
            assert sum(told(pool)[1] for _ in range(50)) < 1.0


@pytest.mark.parametrize("wrong", [0, -1, "3", True, float("nan")])
def test_what_down_after_may_be_is_checked(wrong: object):
    for make in (lambda: ConnectionPool(1, connect=object, down_after=wrong),):
        with pytest.raises((TypeError, ValueError), match="down_after"):
            make()
    with pytest.raises((TypeError, ValueError), match="down_after"):
        EndpointPool(connect=lambda endpoint: object(), down_after=wrong)


@pytest.mark.parametrize("name", ["pool_went_down", "pool_is_back"])
def test_a_listener_of_either_may_close_the_pool(maker: Maker, name: str):
    class Closing:
        pass

    def close(self: object, event: events.PoolEvent) -> None:
        event.pool.close(timeout=5)

    setattr(Closing, name, close)
    maker.error = REFUSED
    pool = ConnectionPool(1, connect=maker, down_after=0.05, backoff=SOON, listeners=[Closing()])
    with pytest.raises(PoolError):
        pool.acquire()
    maker.error = None

    until(lambda: pool.closed)
    until(lambda: not maker.open)


def test_an_endpoint_that_is_down_and_asked_for_no_more_is_forgotten(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outage, "_PROBED_FOR", 0.1)
    maker.error = REFUSED
    with EndpointPool(connect=lambda endpoint: maker(), down_after=0.05, backoff=SOON) as pool:
        with pytest.raises(PoolDown):
            pool.acquire("gone")
        assert pool.endpoints() == ["gone"]
        until(lambda: pool.endpoints() == [])
        assert pool.stats().refused_down == 1
