"""The clock of the overload tests jumps, and nothing else about gevent and the pools is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.exceptions import LoopExit

from benchmarks.virtual_time import VirtualLoop, virtual_time
from geventpool import ConnectionPool, PoolTimeout
from support.objects import Conn, Maker


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    with virtual_time() as loop:
        yield loop


def test_an_hour_is_over_at_once_and_what_is_due_runs_in_order(loop: VirtualLoop) -> None:
    def note(seconds: float) -> None:
        gevent.sleep(seconds)
        order.append(seconds)

    order: list[float] = []
    began = loop.now()
    greenlets = [gevent.spawn(note, seconds) for seconds in (3600.0, 0.0, 60.0, 0.001)]
    with gevent.Timeout(1800, False):
        gevent.joinall(greenlets)

    assert order == [0.0, 0.001, 60.0]
    assert loop.now() == began + 1800
    gevent.joinall(greenlets)
    assert loop.now() == began + 3600


def test_a_wait_that_nothing_can_end_is_told(loop: VirtualLoop) -> None:
    with pytest.raises(LoopExit):
        Event().wait()


def test_one_that_never_waits_does_not_hold_up_what_is_due(loop: VirtualLoop) -> None:
    def compute() -> None:
        while not done.is_set():
            gevent.sleep(0)

    done = Event()
    noise = gevent.spawn(compute)
    gevent.spawn_later(0.0, done.set)
    noise.get()


def test_a_pool_waits_and_times_out_by_its_clock(loop: VirtualLoop) -> None:
    class Pool(ConnectionPool[Any]):
        def _socket(self, conn: Any) -> None: ...

        def _new_connection(self) -> Conn:
            gevent.sleep(5.0)
            return Conn(maker, 0)

    def hold() -> None:
        with pool.get():
            gevent.sleep(100.0)

    maker = Maker()
    began = loop.now()
    with Pool(1, max_lifetime=3600, jitter=0.0) as pool:
        holder = gevent.spawn(hold)
        gevent.sleep(10.0)
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=30.0)
        assert loop.now() == pytest.approx(began + 40.0, abs=0.001)
        holder.get()
        assert loop.now() == pytest.approx(began + 105.0, abs=0.001)
        gevent.sleep(3600)
        assert pool.stats().opened == 2


def test_after_it_the_usual_hub_is_back() -> None:
    usual = gevent.get_hub()
    with virtual_time():
        assert gevent.get_hub() is not usual
        gevent.sleep(1000)

    assert gevent.get_hub() is usual
    gevent.sleep(0.001)
