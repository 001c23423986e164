"""Promise 12: under more load than can be served, the pool serves as much as it can, and is back as
soon as the load is.

In virtual time: the whole pool and gevent's own greenlets and Timeouts, on a clock that jumps to
whatever is due next.  ``python -m benchmarks overload`` is the long form, on real sockets, too.

For 1.5 to 5 times what can be served (500 requests a second, of callers that have 1 s each), and
from a server that is three times slower for a while.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.overload.pools import ALL_CURES, CODEL, OURS, PLAIN, SALVAGE
from benchmarks.overload.scenario import NORMAL, Outcome, Scenario, in_virtual_time

SHORT = Scenario(1.5, 5.0, before=0.5, after=3.5)


def play(cure: str, scenario: Scenario = SHORT) -> Outcome:
    return in_virtual_time(OURS[cure], scenario)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cure", "scenario"),
    [
        pytest.param(CODEL, SHORT, id="CoDel"),
        pytest.param(CODEL, replace(SHORT, retries=2), id="CoDel, callers retry twice"),
        pytest.param(CODEL, replace(SHORT, load=5.0, seconds=3.0), id="CoDel, 5 times the load"),
        pytest.param(CODEL, replace(SHORT, load=NORMAL, slowness=3.0), id="CoDel, a slow server"),
        pytest.param(SALVAGE, SHORT, id="salvage"),
        pytest.param(ALL_CURES, SHORT, id="all three"),
    ],
)
def test_under_more_load_than_can_be_served_the_pool_serves_as_much_as_it_can_and_is_back_with_it(
    cure: str, scenario: Scenario
) -> None:
    outcome = play(cure, scenario)

    assert outcome.goodput >= 0.95
    assert outcome.normal_after <= 2.0
    assert outcome.redials <= 1.0
    assert outcome.record.in_order
    assert outcome.refused >= 0.2, "it was no overload"


@pytest.mark.slow
def test_without_a_cure_next_to_nobody_is_served_even_after_the_load_is_gone() -> None:
    outcome = play(PLAIN)

    assert outcome.answered_after <= 0.2  # else the test above would prove nothing
    assert outcome.redials >= 50


@pytest.mark.slow
def test_a_load_that_can_be_served_is_not_refused() -> None:
    calm = Scenario(NORMAL, 10.0, after=3.0)
    outcome = play(CODEL, calm)
    in_bursts = play(CODEL, replace(calm, burst=25))

    assert outcome.refused <= 0.0001
    assert in_bursts.refused <= 0.01
    assert {*outcome.record.failures, *in_bursts.record.failures} <= {"PoolOverloaded"}
