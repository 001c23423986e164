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
