"""What ``stats()`` counts beyond how a pool stands: histograms, the most, errors, the hub's lag."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import gevent
import pytest

from geventpool import Backoff, ConnectionPool, EndpointPool, PoolTimeout
from geventpool.stats import BOUNDS, Duration, Histogram
from geventpool.testing import FakeClock
from support.child import FORKS, Child
from support.objects import Maker
from support.waiting import block, until

SOON = Backoff(first=0.01, longest=0.01)


def counted(histogram: Histogram) -> dict[float, int]:
    """How many there are up to which bound."""
    bounds = [*histogram.bounds, float("inf")]
    return {b: n for b, n in zip(bounds, histogram.counts, strict=True) if n}


def test_each_use_is_counted_by_how_long_it_was_on_either_path(maker: Maker) -> None:
    with FakeClock() as clock, ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        for seconds in (0.06, 0.3, 100.0):
            with pool.get():
                clock.advance(seconds)
            conn = pool.acquire()
            clock.advance(seconds)
            pool.release(conn)
        use = pool.stats().use
    # What is advanced is added to what really passes.
    assert counted(use.histogram) == {0.1: 2, 0.5: 2, float("inf"): 2}
    assert use.count == use.histogram.count == 6


def test_a_use_that_is_over_at_once_is_in_the_first_bucket(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        for _ in range(1000):
            with pool.get():
                pass
        use = pool.stats().use
    assert use.count == 1000
    assert use.histogram.counts[0] > 900


def test_waits_and_dials_have_histograms_too(maker: Maker) -> None:
    with FakeClock() as clock, ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        with pool.get():
            waiters = [gevent.spawn(pool.execute, id) for _ in range(3)]
            gevent.idle()
            clock.advance(20)
        gevent.joinall(waiters)
        stats = pool.stats()
    assert counted(stats.wait.histogram) == {float("inf"): 3}
    assert stats.connect.histogram.count == 1


def test_the_figures_of_an_endpoint_that_has_left_are_kept(maker: Maker) -> None:
    with EndpointPool(connect=lambda endpoint: maker()) as pool:
        for endpoint in ("a", "b"):
            with pool.get(endpoint):
                pass
        assert pool.stats("a").use.histogram.count == 1
        pool.dispose()
        until(lambda: not pool.endpoints())
        stats = pool.stats()
    assert stats.use.histogram.count == stats.use.count == 2
    assert stats.connect.histogram.count == 2


def test_the_most_that_ever_waited_is_remembered(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        assert pool.stats().waiting_max == 0
        with pool.get():
            waiters = [gevent.spawn(pool.execute, id) for _ in range(5)]
            gevent.idle()
            assert pool.stats().waiting == 5
        gevent.joinall(waiters)
        assert (pool.stats().waiting, pool.stats().waiting_max) == (0, 5)


def test_a_bound_belongs_to_its_bucket_and_quantiles_are_told(maker: Maker) -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
    histogram = Histogram((1.0, 2.0, 4.0), (0, 10, 10, 0))
    assert histogram.quantile(0.5) == 2.0
    assert histogram.quantile(0.75) == 3.0
    assert Histogram((1.0,), (0, 3)).quantile(0.5) == 1.0
    assert Duration().histogram.quantile(0.99) == 0.0


def test_the_last_errors_are_kept_with_their_time(maker: Maker) -> None:
    began = time.time()
    with ConnectionPool(1, connect=maker, backoff=SOON) as pool:
        pool.fill()
        with pytest.raises(ConnectionResetError), pool.get():
            raise ConnectionResetError("in use")
        pool.fill()
        maker.error = ConnectionRefusedError("refused")
        pool.dispose()
        until(lambda: pool.stats().dial_failed >= 15)
        errors = pool.stats().errors
    assert len(errors) == 10
    assert errors[-1][1] == "ConnectionRefusedError: refused"
    assert [at for at, _ in errors] == sorted(at for at, _ in errors)
    assert began <= errors[0][0] <= time.time()


def test_a_connection_that_breaks_in_use_is_among_the_last_errors(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        with pytest.raises(ConnectionResetError), pool.get():
            raise ConnectionResetError("in use")
        assert [text for _, text in pool.stats().errors] == ["ConnectionResetError: in use"]


def test_refusals_are_told_by_kind(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker, max_waiting=0) as pool:
        pool.fill()
        with pool.get():
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=0)
            with pytest.raises(Exception, match="waiting already"):
                pool.acquire(timeout=1)
        refusals = {kind: count for kind, count in pool.stats().refusals.items() if count}
        assert refusals == {"timeout": 1, "full": 1}


@pytest.mark.slow
def test_a_greenlet_that_computes_shows_as_lag_of_the_hub(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        pool._runtime.hub_lag.forget()  # what other tests have done
        until(lambda: pool.stats().hub_lag > 0.0)  # it looks twice a second
        block(1.0)
        gevent.sleep(0.01)
        assert 0.4 <= pool.stats().hub_lag < 5.0


@pytest.mark.slow
def test_a_hub_that_does_not_run_at_all_shows_too(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        pool._runtime.hub_lag.forget()  # what other tests have done
        block(1.0)
        assert pool.stats().hub_lag >= 0.4


@pytest.mark.slow
@FORKS
def test_a_child_begins_without_the_lag_and_the_outage_of_its_parent(
    maker: Maker, caplog: pytest.LogCaptureFixture, fork: Callable[[], int]
) -> None:
    def fill() -> list[object]:
        maker.error = None
        caplog.clear()
        lag = pool.stats().hub_lag
        pool.fill()
        gevent.sleep(0.05)
        return [lag, "succeed again" in caplog.text]

    maker.error = ConnectionRefusedError("refused")
    with caplog.at_level(logging.INFO, "geventpool"):
        with ConnectionPool(1, connect=maker, backoff=SOON) as pool:
            until(lambda: pool.stats().dial_failed)
            block(1.0)
            lag, said = Child(fork, fill).result()
    assert lag < 0.4
    assert not said


def test_a_clock_that_jumps_is_no_lag(maker: Maker) -> None:
    with FakeClock() as clock, ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        lag = pool.stats().hub_lag
        clock.advance(3600)
        gevent.sleep(0.01)
        assert pool.stats().hub_lag < lag + 60


def test_a_pool_is_down_while_nothing_is_open_and_dials_fail(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker, backoff=SOON) as pool:
        pool.fill()
        assert not pool.stats().down
        maker.error = ConnectionRefusedError("refused")
        pool.dispose()
        until(lambda: pool.stats().down)
        maker.error = None
        until(lambda: not pool.stats().down)


def test_a_pool_of_endpoints_is_down_only_if_none_is_well(maker: Maker) -> None:
    def connect(endpoint: str) -> object:
        if endpoint == "away":
            raise ConnectionRefusedError("refused")
        return maker()

    with EndpointPool(connect=connect, backoff=SOON) as pool:
        with pytest.raises(PoolTimeout):
            pool.acquire("away", timeout=0.05)
        assert pool.stats().down
        with pool.get("here"):
            assert not pool.stats().down
            assert pool.stats("away").down or "away" not in pool.endpoints()


def test_an_outage_is_a_line_at_its_start_and_one_at_its_end(
    maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    maker.error = ConnectionRefusedError("refused")
    with caplog.at_level(logging.DEBUG, "geventpool"):
        with ConnectionPool(2, connect=maker, backoff=SOON, name="db") as pool:
            until(lambda: maker.dials >= 5)
            for _ in range(3):
                with pytest.raises(PoolTimeout):
                    pool.acquire(timeout=0)
            maker.error = None
            pool.fill()
            until(lambda: "succeed again" in caplog.text)
            stats = pool.stats()
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    lines = [line for line in lines if "no socket was found" not in line[1]]
    lines = [line for line in lines if "closed a connection" not in line[1]]
    assert [level for level, _ in lines] == ["WARNING", "INFO"], lines
    assert "a dial failed" in lines[0][1]
    text = f"{stats.dial_failed} dials failed, and 3 callers got no connection meanwhile"
    assert text in lines[1][1]
