"""A timer may be late, never early: also in a program that computes between two waits.

The loop's own time stands still while a greenlet computes, and a raw loop timer counts from it.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import Backoff, ConnectionPool, PoolTimeout
from geventpool._runtime.timers import Timer
from support import LIBUV
from support.objects import Maker

BUSY = 0.3  # longer than any of the times below


def compute() -> None:
    """Keep the hub from running for a while; the loop's time stands still."""
    end = monotonic() + BUSY
    while monotonic() < end:
        pass


def woken_by_a_timer() -> None:
    """Go on as the callback of a timer: then nothing brings the loop's time up to date."""
    gevent.sleep(0.001)


@pytest.mark.slow
def test_a_timer_set_after_computing_is_not_early() -> None:
    rang = Event()
    woken_by_a_timer()
    compute()
    at = monotonic() + 0.2

    Timer(gevent.get_hub().loop, at, rang.set)

    assert rang.wait(5)
    assert monotonic() >= at


def test_a_timer_that_the_loop_rings_early_is_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rang: list[float] = []
    loop = gevent.get_hub().loop
    timer = Timer(loop, monotonic() + 0.05, lambda: rang.append(monotonic()), ref=False)
    timer.at += 0.05  # as if the loop's clock were ahead of ours

    with gevent.Timeout(5):
        while not rang:
            gevent.sleep(0.005)

    assert rang[0] >= timer.at


def test_a_stopped_timer_does_not_ring() -> None:
    rang: list[None] = []
    timer = Timer(gevent.get_hub().loop, monotonic(), lambda: rang.append(None))
    timer.stop()

    for _ in range(3):
        gevent.sleep(0.001)

    assert rang == []


@pytest.mark.slow
def test_a_caller_that_has_computed_before_has_its_whole_timeout() -> None:
    with ConnectionPool(1, connect=Maker()) as pool, pool.get():
        woken_by_a_timer()
        compute()
        began = monotonic()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.2)

        assert monotonic() - began >= 0.2


@pytest.mark.slow
def test_the_pause_after_a_dial_that_computed_and_failed_is_not_shortened() -> None:
    begun: list[float] = []
    ended: list[float] = []

    def connect() -> Any:
        begun.append(monotonic())
        woken_by_a_timer()
        if len(begun) < 3:
            compute()
        ended.append(monotonic())
        raise OSError("down")

    with ConnectionPool(1, connect=connect, backoff=Backoff(first=0.1, factor=1, jitter=0)):
        with gevent.Timeout(10):
            while len(begun) < 3:
                gevent.sleep(0.01)

    for end, next_begin in zip(ended, begun[1:], strict=False):
        assert next_begin - end >= 0.1


class Pinged(ConnectionPool[Any]):
    """Notes when it asks its server, and computes in between."""

    def __init__(self, **options: Any) -> None:
        self.asked: list[float] = []
        super().__init__(1, connect=Maker(), **options)

    def _keepalive(self, conn: Any) -> None:
        self.asked.append(monotonic())
        woken_by_a_timer()
        compute()


def test_the_keepalive_of_a_program_that_computes_is_not_early() -> None:
    with Pinged(keepalive=0.2) as pool, gevent.Timeout(10):
        pool.fill()
        while len(pool.asked) < 3:
            gevent.sleep(0.01)

    for asked, next_asked in zip(pool.asked, pool.asked[1:], strict=False):
        assert next_asked - asked >= BUSY + 0.2


@pytest.mark.parametrize("setting", ["max_lifetime", "idle_timeout"])
def test_the_reaper_of_a_program_that_computes_is_not_early(setting: str) -> None:
    closed: list[float] = []

    class Pool(ConnectionPool[Any]):
        def _close_connection(self, conn: Any) -> None:
            closed.append(monotonic())

    options: dict[str, Any] = {setting: 0.4, "jitter": 0.0, "min_size": 0}
    with Pool(1, connect=Maker(), **options) as pool:
        woken_by_a_timer()
        compute()
        began = monotonic()
        with pool.get():
            pass
        with gevent.Timeout(10):
            while not closed:
                woken_by_a_timer()

        assert closed[0] - began >= 0.4


def test_a_dial_a_check_and_a_close_of_a_program_that_computes_have_their_whole_time() -> None:
    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> Any:
            self.hang()
            return Maker()()

        def _keepalive(self, conn: Any) -> None:
            self.hang()

        _reset_connection = _keepalive

        def hang(self) -> None:
            began = monotonic()
            try:
                gevent.sleep(60)
            except gevent.Timeout:
                took.append(monotonic() - began)

    took: list[float] = []
    with Pool(1, connect_timeout=0.2, keepalive_timeout=0.2, check_after=0) as pool:
        pool.fill(timeout=10)
        for verb in (pool.acquire, lambda: pool.release(pool.holders()[0].connection)):
            woken_by_a_timer()
            compute()
            verb()

    assert len(took) == 3
    assert min(took) >= (0.199 if LIBUV else 0.2)  # gevent's own Timeout: in whole milliseconds
