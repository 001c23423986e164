"""What every hand-out reads, in both builds."""

from __future__ import annotations

import math
import sys
import time
from bisect import bisect_left

import gevent
import pytest

from geventpool import ConnectionPool, PoolTimeout, Reason
from geventpool._runtime import clock
from geventpool.stats import BOUNDS
from geventpool.testing import FakeClock
from support.objects import Maker

NEAR = [near for bound in BOUNDS for near in (math.nextafter(bound, 0), math.nextafter(bound, 99))]


@pytest.mark.parametrize("seconds", [*BOUNDS, *NEAR, -1.0, 0, 3, 11.0, math.inf])
def test_a_duration_has_its_place_before_the_first_bound_that_is_no_shorter(
    seconds: float,
) -> None:
    assert clock.place_of(seconds) == bisect_left(BOUNDS, seconds)


def test_pools_go_on_where_a_test_has_frozen_the_time(maker: Maker) -> None:
    real = {"monotonic": time.monotonic, "perf_counter": time.perf_counter}
    settings = {"max_lifetime": 3600, "idle_timeout": 60}
    with (
        pytest.MonkeyPatch.context() as frozen,
        ConnectionPool(1, connect=maker, **settings) as pool,
    ):
        pool.fill()
        # As freezegun does: in every module that has it.
        for name, module in list(sys.modules.items()):
            for attribute, value in list(vars(module).items()):
                if any(value is each for each in real.values()):
                    if name == "time" or name.startswith("geventpool"):
                        frozen.setattr(module, attribute, lambda: 1.3e9)
        assert time.monotonic() == 1.3e9
        conn = pool.acquire()
        with gevent.Timeout(20), pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.05)
        pool.release(conn)
        assert pool.execute(lambda conn: conn.number) == 1  # and not a new one
        assert 0.05 <= pool.stats().use.max < 20

        with FakeClock() as test:
            test.advance(3600)
            gevent.idle()
            assert pool.stats().closed[Reason.EXPIRED] == 1
            pool.close()
