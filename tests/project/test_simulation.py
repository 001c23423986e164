"""The promises of docs/benchmarks.md about many servers, kept in a short run of each benchmark.

What is bounded is a number of requests, and generously: on a machine that is busy with other
things a server is late now and then, and no promise is broken by that.
"""

from __future__ import annotations

import pytest

from benchmarks.simulation import Managed, RoundRobin, one_turns_slow, rolling_restart
from geventpool.errors import ConnectError

RATE = 300.0
NOT_CONNECTED = (ConnectError, ConnectionRefusedError)
FAIR = 1 / 11  # the share of one server


@pytest.mark.slow
def test_p2c_keeps_requests_away_from_a_server_that_has_turned_slow() -> None:
    outcomes = one_turns_slow(Managed, RATE, seconds=2.0, warm_up=1.0)

    assert outcomes.total > 100
    # Most often it is one or two of 600, before there is anything to notice.
    assert outcomes.failed <= FAIR / 4


@pytest.mark.slow
def test_a_server_that_has_turned_slow_fails_its_share_of_requests_unnoticed() -> None:
    outcomes = one_turns_slow(RoundRobin, RATE, seconds=1.0, warm_up=0.5)

    assert outcomes.total > 50
    assert outcomes.failed >= FAIR / 2  # else the test above would prove nothing


@pytest.mark.slow
def test_a_rolling_restart_of_all_servers_fails_no_request_that_is_retried_twice() -> None:
    outcomes, retries = rolling_restart(Managed, RATE, away=0.1, back=0.1, warm_up=0.5, needs=0.1)

    assert outcomes.errors == []
    assert outcomes.total > 100
    assert retries, "no restart has cut a request short"
    # That a server cannot be connected to is no reason to retry: there are others.
    assert not [each.error for each in retries if isinstance(each.error, NOT_CONNECTED)]
