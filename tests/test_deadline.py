"""Deadline by itself: a gevent.Timeout in all that it does, and who is under which; and @retry."""

from __future__ import annotations

import gc
import math
import time
import weakref
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import Backoff, Deadline, PoolTimeout, retry
from geventpool._util import deadlines
from geventpool.testing import no_retry_delays


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Any:
    yield
    assert deadlines.active == {}


def left() -> float:
    return deadlines.ends_at(gevent.getcurrent()) - time.monotonic()


def test_it_strikes_as_a_timeout_does() -> None:
    with pytest.raises(gevent.Timeout) as caught, Deadline(0.01) as deadline:
        gevent.sleep(10)

    assert caught.value is deadline
    assert isinstance(deadline, gevent.Timeout)
    assert not isinstance(deadline, Exception)
    assert str(deadline) == "0.01 seconds"


def test_it_raises_what_it_was_given() -> None:
    with pytest.raises(LookupError, match="late"), Deadline(0.01, LookupError("late")):
        gevent.sleep(10)


def test_with_false_its_with_ends_silently() -> None:
    with Deadline(0.01, False):
        gevent.sleep(10)
        pytest.fail("it did not strike")


def test_it_is_started_by_start_new_and_ended_by_close() -> None:
    deadline = Deadline.start_new(10)
    assert type(deadline) is Deadline
    assert 9 < left() < 10
    deadline.close()
    assert left() == math.inf


def test_start_new_starts_one_that_was_made() -> None:
    deadline = Deadline(10)
    assert left() == math.inf
    assert Deadline.start_new(deadline) is deadline
    assert left() < 10
    with deadline:  # runs already
        assert len(deadlines.active[gevent.getcurrent()]) == 1
    assert left() == math.inf


def test_it_may_be_cancelled_and_started_again() -> None:
    deadline = Deadline(10)
    deadline.start()
    deadline.cancel()
    assert left() == math.inf
    deadline.start()
    assert left() < 10
    with pytest.raises(AssertionError, match="already started"):
        deadline.start()
    deadline.close()


@pytest.mark.parametrize("seconds", [None, math.inf])
def test_without_an_end_it_bounds_nothing(seconds: float | None) -> None:
    with Deadline(seconds):
        assert left() == math.inf
        gevent.sleep(0)


def test_less_than_no_time_is_none() -> None:
    with pytest.raises(Deadline), Deadline(-1):
        assert left() <= 0
        gevent.sleep(1)


@pytest.mark.parametrize("seconds", ["1", True, math.nan, [1]])
def test_seconds_must_be_a_number(seconds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seconds must be a number or None"):
        Deadline(seconds)


def test_nested_the_one_that_strikes_first_counts() -> None:
    with Deadline(10):
        with Deadline(5):
            assert 4 < left() < 5
            with Deadline(20):
                assert 4 < left() < 5
        assert 9 < left() < 10
    assert left() == math.inf


def test_it_is_of_the_greenlet_that_has_started_it() -> None:
    entered, leave = Event(), Event()

    def other() -> None:
        with Deadline(10):
            entered.set()
            leave.wait()

    greenlet = gevent.spawn(other)
    entered.wait()
    assert left() == math.inf
    with Deadline(5):
        assert gevent.spawn(left).get() == math.inf  # nor is it inherited
    leave.set()
    greenlet.get()


def test_another_greenlet_may_close_it() -> None:
    deadline = Deadline.start_new(10)
    gevent.spawn(deadline.close).get()
    assert left() == math.inf


@pytest.mark.parametrize("end", ["kill", "strike", "error"])
def test_however_its_with_is_left_it_is_over(end: str) -> None:
    def body() -> None:
        with pytest.raises((gevent.GreenletExit, gevent.Timeout, ValueError)):
            with Deadline(0.01 if end == "strike" else 10):
                if end == "error":
                    raise ValueError
                gevent.sleep(10)
        assert left() == math.inf

    greenlet: Any = gevent.Greenlet(body)
    greenlet.start()
    gevent.sleep(0)
    if end == "kill":
        greenlet.kill(block=False)
    greenlet.get()

    assert deadlines.active == {}


def test_one_that_has_struck_is_past_until_it_is_left() -> None:
    with Deadline(0.01):
        with pytest.raises(Deadline):
            gevent.sleep(10)
        assert left() < 0
    assert left() == math.inf


def test_one_that_nobody_has_closed_is_forgotten_with_its_greenlet() -> None:
    def careless() -> None:
        Deadline.start_new(0.01)

    greenlet: Any = gevent.Greenlet(careless)
    gone = weakref.ref(greenlet)
    greenlet.start()
    greenlet.join()
    del greenlet
    gevent.sleep(0.02)
    gc.collect()

    assert deadlines.active == {}
    assert gone() is None


def test_what_is_bound_gives_up_a_moment_before() -> None:
    me = gevent.getcurrent()
    for length, moment in ((0.01, 0.001), (0.1, 0.002), (0.3, 0.003), (10, 0.005)):
        with Deadline(length):
            strikes_at = deadlines.active[me][0].at
            assert strikes_at - deadlines.ends_at(me) == pytest.approx(moment)


def test_half_of_its_length_is_enough_whatever_is_needed() -> None:
    me = gevent.getcurrent()
    with Deadline(10):
        strikes_at = deadlines.active[me][0].at
        assert deadlines.useless_after(me, 3.0) == pytest.approx(strikes_at - 3)
        assert deadlines.useless_after(me, 8.0) == pytest.approx(strikes_at - 5)


# @retry


def failing(error: Exception) -> Any:
    def fail() -> None:
        fail.calls += 1  # type: ignore[attr-defined]
        raise error

    fail.calls = 0  # type: ignore[attr-defined]
    return fail


def test_retry_waits_for_no_attempt_that_would_begin_after_a_deadline() -> None:
    fail = failing(OSError("broken"))
    began = time.monotonic()
    with Deadline(0.2), pytest.raises(OSError, match="broken"):
        retry(fail, interval=0.15)()

    assert fail.calls == 2
    assert time.monotonic() - began < 0.19


def test_retry_takes_the_nearer_of_its_own_deadline_and_the_callers() -> None:
    for own, callers in ((25, 3600), (3600, 25)):
        fail = failing(OSError("broken"))
        with no_retry_delays(), Deadline(callers), pytest.raises(OSError, match="broken"):
            retry(fail, backoff=Backoff(first=10, longest=10, jitter=0), deadline=own)()
        assert fail.calls == 3


def test_retry_of_what_never_waits_ends_with_the_deadline() -> None:
    fail = failing(OSError("broken"))
    with Deadline(0.02), pytest.raises(OSError, match="broken"):
        retry(fail)()


def test_retry_gives_no_time_to_a_pool_that_said_that_it_is_too_late() -> None:
    fail = failing(PoolTimeout("too late"))
    with Deadline(10), pytest.raises(PoolTimeout):
        retry(fail)()
    assert fail.calls == 1
