"""What every hand-out reads, in both builds."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest

from geventpool._runtime import clock
from geventpool.stats import BOUNDS

NEAR = [near for bound in BOUNDS for near in (math.nextafter(bound, 0), math.nextafter(bound, 99))]


@pytest.mark.parametrize("seconds", [*BOUNDS, *NEAR, -1.0, 0, 3, 11.0, math.inf])
def test_a_duration_has_its_place_before_the_first_bound_that_is_no_shorter(
    seconds: float,
) -> None:
    assert clock.place_of(seconds) == bisect_left(BOUNDS, seconds)
