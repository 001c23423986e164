"""Health: which servers are up, who finds out when one is back, and which one to try next."""

from __future__ import annotations

import gc
import heapq
import math
import random
import re
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from geventpool.addresses import Address, AddressGroup, AnyAddress, UnixAddress
from geventpool.backoff import Backoff
from geventpool.errors import MarkedDownError
from geventpool.manager import (
    Attempt,
    Balance,
    HealthPolicy,
    PeakEwma,
    ServerModel,
    ServerModelDirectory,
)

A, B, C, D = (Address(f"10.0.0.{n}", 80) for n in range(1, 5))

BALANCES: list[Balance] = ["weighted", "p2c"]


def strict(**arguments: Any) -> HealthPolicy:
    """One failure marks down for exactly 1, 2, 4, 8 seconds; no slow start."""
    arguments.setdefault("failures", 1)
    arguments.setdefault("backoff", Backoff(first=1.0, factor=2.0, longest=8.0, jitter=0))
    arguments.setdefault("slow_start", 0.0)
    return HealthPolicy(**arguments)


def server(**arguments: Any) -> ServerModel:
    return ServerModel(A, strict(**arguments))


def directory(
    balance: Balance = "weighted", seed: int = 17, **arguments: Any
) -> ServerModelDirectory:
    draw = random.Random(seed).expovariate
    return ServerModelDirectory(strict(**arguments), balance=balance, draw=draw)


def begin(model: ServerModel, now: float) -> Attempt:
    attempt = model.admit(now)
    assert attempt is not None
    return attempt


def firsts(
    servers: ServerModelDirectory, group: AddressGroup, now: float, draws: int = 10_000
) -> Counter[AnyAddress]:
    """How often each server is the first to try."""
    return Counter(servers.order(group, now)[0] for _ in range(draws))


class Socket:
    """Something that is open."""


# What is known of a server


def test_a_model_shows_when_its_server_failed_last_and_what_is_open_to_it() -> None:
    model = ServerModel(A)
    assert model.last_error is None
    assert repr(model) == "<ServerModel 10.0.0.1:80 last_error=None active_connections=0>"

    sock = Socket()
    model.sock_in_use(sock, 3.0)
    model.failed(5.0, ConnectionRefusedError("no"))

    assert model.last_error == 5.0
    assert model.reason == "ConnectionRefusedError: no"
    assert dict(model.active_connections) == {sock: 3.0}
    assert repr(model) == "<ServerModel 10.0.0.1:80 last_error=5.0 active_connections=1>"


def test_a_model_keeps_no_socket_alive() -> None:
    model, sock = ServerModel(A), Socket()
    model.sock_in_use(sock)
    assert len(model.active_connections) == 1

    del sock
    gc.collect()

    assert len(model.active_connections) == 0


def test_a_socket_that_is_used_again_is_still_as_old_as_it_is() -> None:
    model, sock = ServerModel(A), Socket()
    model.sock_in_use(sock, 1.0)
    model.sock_in_use(sock, 2.0)

    assert model.active_connections[sock] == 1.0


def test_a_model_does_not_keep_an_error_alive() -> None:
    class Refused(OSError):
        """Unlike an OSError itself, it can be weakly referenced."""

    model, error = server(), Refused("no")
    reference = weakref.ref(error)
    begin(model, 0.0).failed(0.0, error)
    del error
    gc.collect()

    assert reference() is None


# Markdown


def test_failures_in_a_row_mark_down() -> None:
    model = server(failures=3)
    model.failed(0.0)
    model.failed(0.0)
    assert model.state(0.0) == "up"

    model.failed(0.0)

    assert model.state(0.0) == "down"
    assert model.down_until == 1.0
    assert model.admit(0.9) is None


def test_a_success_in_between_starts_the_count_again() -> None:
    model = server(failures=2)
    for now in range(10):
        model.failed(now)
        assert model.state(now) == "up"
        model.succeeded(now)


def test_failures_of_connects_and_of_requests_count_together() -> None:
    model = server(failures=2)
    begin(model, 0.0).failed(0.0)
    request = begin(model, 0.0)
    request.connected(0.0, reused=True)
    request.failed(0.0)

    assert model.state(0.0) == "down"


def test_without_a_number_of_failures_nothing_is_marked_down() -> None:
    model = server(failures=None)
    for _ in range(1_000):
        model.failed(0.0)

    assert model.state(0.0) == "up"


def test_each_markdown_in_a_row_lasts_longer() -> None:
    model, now, lasted = server(), 0.0, []
    for _ in range(6):
        begin(model, now).failed(now)
        assert model.down_until is not None
        lasted.append(model.down_until - now)
        now = model.down_until

    assert lasted == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_the_time_down_is_jittered() -> None:
    until = set()
    for _ in range(100):
        model = ServerModel(A, HealthPolicy(failures=1))
        model.failed(0.0)
        until.add(model.down_until)

    assert len(until) == 100
    assert all(each is not None and 0.5 <= each <= 1.0 for each in until)


def flap(model: ServerModel, now: float) -> float:
    """Fail at *now*, come back as soon as may be; return when that was, and how long it took."""
    model.failed(now)
    assert model.down_until is not None
    back = model.down_until
    begin(model, back).succeeded(back, 0.01)
    return back


def test_a_server_that_goes_down_soon_after_it_came_back_stays_down_longer() -> None:
    model = server(forget_after=30.0)
    back = flap(model, 0.0)

    assert flap(model, back + 29.0) - (back + 29.0) == 2.0


@pytest.mark.parametrize(("quiet", "lasts"), [(29, 8), (30, 4), (60, 2), (90, 1), (900, 1)])
def test_time_spent_up_takes_markdowns_back_one_by_one(quiet: float, lasts: float) -> None:
    model = server(forget_after=30.0)
    back = flap(model, flap(model, flap(model, 0.0)))  # three markdowns in a row

    assert flap(model, back + quiet) - (back + quiet) == lasts


def test_what_was_under_way_when_a_server_went_down_does_not_mark_it_down_again() -> None:
    model = server(failures=3)
    attempts = [begin(model, 0.0) for _ in range(50)]
    for attempt in attempts:
        attempt.failed(1.0)

    assert model.down_until == 2.0
    assert model.outstanding == 0


def test_what_began_before_a_server_came_back_tells_nothing_of_it() -> None:
    model = server()
    late, lucky = begin(model, 0.0), begin(model, 0.0)
    model.failed(0.0)
    lucky.succeeded(0.5, 0.5)
    assert model.state(0.5) == "down"

    begin(model, 1.0).succeeded(1.0, 0.01)
    late.failed(30.0)

    assert model.state(30.0) == "up"
    assert not late.pending
    assert model.latency(1.0) == 0.01


# Probe


def down(model: ServerModel, now: float = 0.0) -> float:
    """Mark it down as failures do; return when it is to be probed."""
    model.failed(now)
    assert model.down_until is not None
    return model.down_until


def test_one_caller_probes_while_all_others_are_refused() -> None:
    model = server()
    due = down(model)
    assert model.admit(due - 0.001) is None

    probe = begin(model, due)

    assert probe.probe
    assert model.state(due) == "probing"
    assert [model.admit(due) for _ in range(100)] == [None] * 100


def test_a_probe_that_succeeds_lets_everybody_through() -> None:
    model = server()
    due = down(model)
    begin(model, due).succeeded(due + 0.1)

    assert model.state(due) == "up"
    assert model.down_until is None
    assert not any(begin(model, due + 0.1).probe for _ in range(100))


def test_a_probe_that_fails_marks_down_for_longer() -> None:
    model = server(failures=3)
    model.failed(0.0)
    model.failed(0.0)
    due = down(model)
    begin(model, due).failed(due)

    assert model.state(due) == "down"
    assert model.down_until == due + 2.0


def test_a_probe_that_is_cancelled_gives_the_right_back() -> None:
    model = server()
    due = down(model)
    probe = begin(model, due)
    probe.cancelled(due + 5.0)

    assert model.state(due + 5.0) == "down"
    assert model.down_until == due  # not marked down again
    assert begin(model, due + 5.0).probe


def test_a_probe_that_is_lost_gives_the_right_back() -> None:
    model = server()
    due = down(model)
    probe = begin(model, due)
    assert model.admit(due) is None

    del probe
    gc.collect()

    assert begin(model, due).probe
    assert model.outstanding == 0


def test_a_probe_that_never_ends_keeps_the_next_one_out_for_a_while_only() -> None:
    model = server(probe_timeout=30.0)
    due = down(model)
    first = begin(model, due)
    assert model.admit(due + 29.9) is None
    second = begin(model, due + 30.0)
    assert second.probe

    first.cancelled(due + 31.0)

    assert model.admit(due + 31.0) is None  # the right is the second one's


def test_a_probe_that_others_made_needless_keeps_no_caller_out_later() -> None:
    model = server()
    due = down(model)
    probe = begin(model, due)
    model.succeeded(due)
    due = down(model, due)

    assert begin(model, due).probe
    probe.succeeded(due)
    assert model.state(due) != "up"


def test_connecting_proves_a_server_well_that_refused_to_be_connected_to() -> None:
    model = server()
    begin(model, 0.0).failed(0.0)
    probe = begin(model, 1.0)
    probe.connected(1.1)

    assert model.state(1.1) == "up"
    assert probe.pending
    assert model.outstanding == 1


def test_connecting_proves_nothing_of_a_server_whose_requests_failed() -> None:
    model = server(failures=2)
    for _ in range(2):
        attempt = begin(model, 0.0)
        attempt.connected(0.0)
        attempt.failed(0.0)
    assert model.state(0.0) == "down"

    probe = begin(model, 1.0)
    probe.connected(1.1)
    assert model.state(1.1) == "probing"
    assert model.admit(1.1) is None
    probe.succeeded(1.2)

    assert model.state(1.2) == "up"


def test_an_idle_connection_proves_nothing() -> None:
    model = server()
    begin(model, 0.0).failed(0.0)
    begin(model, 1.0).connected(1.0, reused=True)
    probe = begin(model, 1.0)
    probe.connected(1.0, reused=True)

    assert model.state(1.0) == "probing"


def test_after_a_probe_that_connected_the_request_counts_as_any_other() -> None:
    model = server()
    begin(model, 0.0).failed(0.0)
    probe = begin(model, 1.0)
    probe.connected(1.1)
    probe.failed(1.2)

    assert model.state(1.2) == "down"


def test_an_attempt_ends_once() -> None:
    model = server(failures=2)
    attempt = begin(model, 0.0)
    attempt.failed(0.0)
    attempt.failed(0.0)
    attempt.cancelled(0.0)
    attempt.connected(0.0)
    attempt.succeeded(0.0)
    model.failed(0.0)

    assert model.state(0.0) == "down"
    assert model.outstanding == 0


def test_a_health_check_from_elsewhere_brings_a_server_back() -> None:
    model = server()
    down(model)
    model.succeeded(0.5)

    assert model.state(0.5) == "up"


def test_an_attempt_says_what_it_is() -> None:
    model = server()
    attempt = begin(model, 0.0)
    assert repr(attempt) == "<Attempt 10.0.0.1:80>"
    attempt.failed(0.0)
    panic = model.admit(0.0, panic=True)

    assert repr(attempt) == "<Attempt 10.0.0.1:80 ended>"
    assert repr(panic) == "<Attempt 10.0.0.1:80 panic>"
    assert repr(begin(model, 1.0)) == "<Attempt 10.0.0.1:80 probe>"


# By hand


def test_marked_down_by_hand_stays_down_until_marked_up() -> None:
    model = server()
    model.mark_down(0.0)
    model.succeeded(1.0)
    model.failed(1.0)

    assert model.state(1e9) == "down"
    assert model.down_until == math.inf
    assert model.admit(1e9) is None
    assert model.admit(1e9, panic=True) is None

    model.mark_up(1e9)

    assert model.state(1e9) == "up"
    assert not begin(model, 1e9).probe


def test_marked_down_by_hand_for_a_time_is_probed_after_it() -> None:
    model = server()
    model.mark_down(0.0, 60.0)
    assert model.admit(59.9, panic=True) is None

    begin(model, 60.0).failed(60.0)

    assert model.down_until == 61.0
    assert model.admit(60.5, panic=True) is not None  # no hand holds it down any more


def test_once_its_time_by_hand_is_over_a_probe_keeps_no_panic_out() -> None:
    model = server()
    model.mark_down(0.0, 60.0)
    probe = begin(model, 60.0)
    panic = model.admit(60.0, panic=True)

    assert probe.probe
    assert panic is not None
    assert panic.panic


def test_marked_up_by_hand_has_never_failed() -> None:
    model = server()
    for now in (0.0, 0.1, 0.2):
        down(model, now)
    model.mark_up(1.0)

    assert down(model, 1.0) == 2.0


def test_marking_up_what_is_up_changes_nothing_but_the_count_of_failures() -> None:
    model = server(failures=2, slow_start=10.0)
    assert model.share(0.0) == 0.1
    request = begin(model, 50.0)
    model.failed(50.0)
    model.mark_up(50.0)
    model.failed(50.0)

    assert model.state(50.0) == "up"
    assert model.share(50.0) == 1.0
    assert request.pending


@pytest.mark.parametrize("seconds", [-1, math.nan, "1", True])
def test_a_time_to_be_down_that_is_none_is_refused(seconds: Any) -> None:
    model = server()
    with pytest.raises((TypeError, ValueError), match="seconds must be"):
        model.mark_down(0.0, seconds)

    assert model.state(0.0) == "up"


@pytest.mark.parametrize(
    ("prepare", "message", "until"),
    [
        (
            lambda model: model.failed(0.0, OSError("no")),
            "10.0.0.1:80 is marked down after OSError: no for 0.5 s more",
            1.0,
        ),
        (
            lambda model: model.mark_down(0.0),
            "10.0.0.1:80 is marked down by hand",
            math.inf,
        ),
        (
            lambda model: model.mark_down(0.0, 2.0),
            "10.0.0.1:80 is marked down by hand for 1.5 s more",
            2.0,
        ),
    ],
)
def test_the_error_says_which_server_is_down_why_and_for_how_long(
    prepare: Callable[[ServerModel], object], message: str, until: float
) -> None:
    model = server()
    prepare(model)
    error = model.marked_down_error(0.5)

    assert isinstance(error, MarkedDownError)
    assert str(error) == message
    assert error.address == A
    assert error.until == until


def test_the_error_says_that_a_caller_probes() -> None:
    model = server()
    probe = begin(model, down(model))

    assert "a caller is" in str(model.marked_down_error(1.0))
    probe.cancelled(1.0)
    assert "a caller is" not in str(model.marked_down_error(1.0))


# Latency and load


def test_the_average_jumps_up_to_a_peak_and_comes_down_slowly() -> None:
    average = PeakEwma(10.0)
    assert average.value(0.0) is None
    average.observe(0.01, 0.0)
    average.observe(1.0, 0.0)
    assert average.value(0.0) == 1.0

    average.observe(0.01, 10.0)

    e = math.exp(-1)
    assert average.value(10.0) == pytest.approx(1.0 * e + 0.01 * (1 - e))
    assert average.value(20.0) == pytest.approx((e + 0.01 * (1 - e)) * e)  # towards 0 if unused


def test_a_lower_bound_never_makes_the_average_more_than_it_is() -> None:
    average = PeakEwma(10.0)
    average.observe(1.0, 0.0)
    average.at_least(0.1, 10.0)
    assert average.value(10.0) == pytest.approx(math.exp(-1))

    average.at_least(0.5, 10.0)
    assert average.value(10.0) == 0.5


def test_a_clock_that_stands_still_or_goes_back_does_no_harm() -> None:
    average = PeakEwma(10.0)
    average.observe(1.0, 5.0)
    average.observe(0.5, 4.0)

    assert average.value(3.0) == 1.0


def answered(model: ServerModel, now: float, latency: float) -> None:
    begin(model, now - latency).succeeded(now)


def test_latency_is_counted_from_the_connection_to_the_end() -> None:
    model = server()
    attempt = begin(model, 0.0)
    attempt.connected(5.0)
    attempt.succeeded(5.25)

    assert model.latency(5.25) == 0.25


def test_latency_that_was_measured_elsewhere_is_taken_as_it_is() -> None:
    model = server()
    begin(model, 0.0).succeeded(100.0, latency=0.25)

    assert model.latency(100.0) == 0.25


def test_load_is_latency_times_requests_outstanding_and_one() -> None:
    model = server(decay=1e9)
    answered(model, 1.0, 0.5)
    assert model.load(1.0) == 0.5

    held = [begin(model, 1.0) for _ in range(3)]

    assert model.load(1.0) == pytest.approx(2.0)
    assert model.load(1.0, share=3.0) == pytest.approx(1.0)
    held.pop().cancelled(1.0)
    assert model.load(1.0) == pytest.approx(1.5)


def test_a_request_that_has_no_answer_yet_counts_by_its_age() -> None:
    model = server()
    answered(model, 1.0, 0.01)
    oldest, _ = begin(model, 1.0), begin(model, 2.0)
    assert model.latency(3.0) == 2.0

    oldest.cancelled(3.0)

    assert model.latency(3.0) == 2.0  # nor is it forgotten with who waited for it


def test_a_failed_request_counts_as_a_slow_answer_however_fast_it_was() -> None:
    model = server(failures=None, failure_latency=1.0)
    answered(model, 1.0, 0.01)
    request = begin(model, 1.0)
    request.connected(1.0)
    request.failed(1.0)
    assert model.latency(1.0) == 1.0

    late = begin(model, 1.0)
    late.connected(1.0)
    late.failed(6.0)  # a time-out

    assert model.latency(6.0) == 5.0


def test_a_refused_connect_does_not_starve_a_server_and_one_that_hung_is_avoided() -> None:
    model = server(failures=None, failure_latency=1.0)
    begin(model, 0.0).failed(0.001)
    assert model.latency(0.001) is None  # which is no answer
    answered(model, 1.0, 0.01)

    begin(model, 1.0).failed(1.001)
    assert model.latency(1.001) == pytest.approx(0.01, rel=0.01)

    begin(model, 1.001).failed(4.001)
    assert model.latency(4.001) == pytest.approx(3.0)


def test_a_caller_that_left_before_the_first_answer_is_no_answer() -> None:
    model = server()
    begin(model, 0.0).cancelled(0.001)

    assert model.latency(0.001) is None


def test_what_was_measured_when_it_failed_is_forgotten_when_it_is_back() -> None:
    model = server()
    due = down(model)
    answered(model, due + 0.02, 0.02)

    assert model.latency(due + 0.02) == pytest.approx(0.02)


def test_requests_that_hang_since_before_it_went_down_are_no_load_when_it_is_back() -> None:
    model = server()
    hanging = [begin(model, 0.0) for _ in range(50)]
    answered(model, down(model) + 0.02, 0.02)

    assert model.load(1.02) == pytest.approx(0.02)
    assert not any(attempt.pending for attempt in hanging)


def test_a_lost_attempt_is_no_load() -> None:
    model = server()
    attempt = begin(model, 0.0)
    assert model.outstanding == 1

    del attempt
    gc.collect()

    assert model.outstanding == 0


# Which to try next


@pytest.mark.parametrize("balance", BALANCES)
def test_the_order_has_every_address_once(balance: Balance) -> None:
    servers = directory(balance)
    group = AddressGroup([[(1, A), (0, B)], [(5, C), (5, C), (1, A)], [(1, D)]])
    servers[D].mark_down(0.0)
    servers[C].failed(0.0)

    assert sorted(servers.order(group, 0.0)) == [A, B, C, D]


@pytest.mark.parametrize("balance", BALANCES)
def test_one_tier_comes_after_the_other(balance: Balance) -> None:
    servers = directory(balance)
    group = AddressGroup([[(0.001, A), (0, B)], [(1000, C)], [(1, D)]])
    # However busy it is.
    held = [begin(servers[A], 0.0) for _ in range(10)]

    assert {tuple(servers.order(group, 1.0)) for _ in range(100)} == {(A, B, C, D)}
    assert len(held) == 10


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("latencies", [(), (0.01, 0.01), (0.012, 0.01)])
def test_the_first_to_try_is_drawn_by_weight(
    balance: Balance, latencies: tuple[float, ...]
) -> None:
    servers, group = directory(balance), AddressGroup([[(9, A), (1, B)]])
    for each, latency in zip((A, B), latencies, strict=False):
        answered(servers[each], 0.0, latency)

    assert abs(firsts(servers, group, 0.0)[A] / 10_000 - 0.9) <= 0.01


def test_weighted_draws_what_the_group_itself_draws() -> None:
    group = AddressGroup([[(3, A), (2, B), (0, C)], [(1, D)]])
    servers, draw = directory(seed=3), random.Random(3).expovariate

    for _ in range(100):
        assert servers.order(group, 0.0) == group.connect_ordering(draw)


@pytest.mark.parametrize("balance", BALANCES)
def test_what_is_down_comes_after_the_last_tier(balance: Balance) -> None:
    servers = directory(balance)
    group = AddressGroup([[(1, A), (1, B)], [(1, C)], [(1, D)]])
    servers[A].failed(0.0)
    servers[C].failed(-0.5)

    assert servers.order(group, 0.25) == [B, D, C, A]
    assert [each.address for each in servers.down(group, 0.25)] == [A, C]


@pytest.mark.parametrize("balance", BALANCES)
def test_with_all_down_the_one_that_failed_longest_ago_is_tried(balance: Balance) -> None:
    long = Backoff(first=8.0, longest=8.0, jitter=0)  # not those that are to be probed first
    servers, group = directory(balance, backoff=long), AddressGroup([[(1, A), (9, B)], [(1, C)]])
    for now, each in enumerate((B, C, A)):
        servers[each].failed(now / 10)

    attempt = servers.attempt(group, 1.0)

    assert servers.order(group, 1.0) == [B, C, A]
    assert attempt is not None
    assert attempt.address == B
    assert attempt.panic
    assert servers.attempt(group, 1.0, panic=False) is None


def test_a_panic_that_succeeds_brings_the_server_back() -> None:
    servers, group = directory(), AddressGroup.of(A)
    down(servers[A])
    attempt = servers.attempt(group, 0.1)
    assert attempt is not None
    assert attempt.panic
    attempt.succeeded(0.2)

    assert servers[A].state(0.2) == "up"


def test_a_panic_that_fails_has_the_server_down_no_longer() -> None:
    servers, group = directory(), AddressGroup.of(A)
    down(servers[A])
    for tick in range(1, 10):
        for attempt in [servers.attempt(group, tick / 10) for _ in range(5)]:
            assert attempt is not None
            assert attempt.panic
            attempt.failed(tick / 10)

    assert servers[A].down_until == 1.0
    assert servers[A].last_error == 0.9


def test_who_is_let_through_as_too_many_are_down_has_it_down_no_longer() -> None:
    servers, group = directory(max_down=0.5), AddressGroup.of(A, B, C)
    down(servers[A], 0.0)
    down(servers[B], 0.1)
    for tick in range(200, 900):
        attempt = servers.attempt(group, tick / 1000, tried=[C], panic=False)
        assert attempt is not None
        attempt.failed(tick / 1000)

    assert (servers[A].down_until, servers[B].down_until) == (1.0, 1.1)


def test_what_failed_since_before_the_probe_has_it_down_no_longer() -> None:
    model = server()
    due = down(model)
    late = model.admit(due - 0.5, panic=True)
    assert late is not None
    late.failed(due + 0.5)

    assert model.down_until == due


def test_an_outage_of_seconds_is_over_seconds_later() -> None:
    # The smallest one that a hundred calls a second made to last for a minute.
    servers, group = directory(), AddressGroup.of(A, B)
    for tick in range(300):
        tried: list[AnyAddress] = []
        while (attempt := servers.attempt(group, tick / 100, tried)) is not None:
            tried.append(attempt.address)
            attempt.failed(tick / 100)

    for each in (A, B):
        due = servers[each].down_until
        assert due is not None
        assert due <= 3.0 + 4.0  # two probes have failed: at 1 and at 3


def test_the_journal_tells_once_that_a_server_went_and_once_that_it_is_back() -> None:
    servers = directory()
    model = servers[A]
    model.failed(10.0, ConnectionRefusedError("refused"))
    model.refused += 1
    for now in (11.0, 13.0):
        model.dials += 1
        begin(model, now).failed(now)
    model.dials += 1
    begin(model, 17.0).succeeded(17.25)
    model.mark_down(20.0)
    model.mark_up(20.5)

    assert [str(each) for each in servers.journal.transitions] == [
        "10.0.0.1:80 is marked down for 1.0 s after ConnectionRefusedError: refused",
        "10.0.0.1:80 is back after 7.2 s and 3 dials; 1 caller got no connection meanwhile",
        "10.0.0.1:80 is marked down by hand",
        "10.0.0.1:80 is back after 0.5 s and 0 dials; 0 callers got no connection meanwhile",
    ]


def test_no_panic_uses_what_was_marked_down_by_hand() -> None:
    servers, group = directory(), AddressGroup.of(A, B)
    servers[A].mark_down(0.0)
    down(servers[B])

    assert [walk.address for walk in walk_through(servers, group, 0.0)] == [B]


def walk_through(servers: ServerModelDirectory, group: AddressGroup, now: float) -> list[Attempt]:
    """Try one server after the other, in vain."""
    attempts: list[Attempt] = []
    tried: list[AnyAddress] = []
    while (attempt := servers.attempt(group, now, tried)) is not None:
        assert attempt.address not in tried
        tried.append(attempt.address)
        attempts.append(attempt)
        attempt.failed(now)
    return attempts


@pytest.mark.parametrize("balance", BALANCES)
def test_who_fails_everywhere_has_tried_every_server_once(balance: Balance) -> None:
    servers = directory(balance)
    group = AddressGroup([[(1, A), (1, B)], [(1, C), (0, D)]])
    down(servers[A])
    attempts = walk_through(servers, group, 0.5)

    assert sorted(attempt.address for attempt in attempts) == [A, B, C, D]
    assert attempts[-1].address == A
    assert [attempt.panic for attempt in attempts] == [False, False, False, True]
    assert all(servers[each].outstanding == 0 for each in group.addresses)


@pytest.mark.parametrize("balance", BALANCES)
def test_a_server_to_avoid_is_used_if_there_is_no_other(balance: Balance) -> None:
    servers, group = directory(balance), AddressGroup.of(A, B, C)
    down(servers[B])

    assert servers.order(group, 0.0, avoid=[A]) == [C, A, B]
    attempt = servers.attempt(group, 0.0, [C], avoid=[A], panic=False)
    assert attempt is not None
    assert attempt.address == A
    assert servers.attempt(group, 0.0, [A, C], avoid=[A], panic=False) is None


def test_a_server_to_avoid_comes_before_those_that_are_down_though_it_failed_later() -> None:
    servers, group = directory(), AddressGroup.of(A, B)
    down(servers[B])
    servers[A].failed(0.1)
    servers[A].succeeded(0.2)

    assert servers.order(group, 0.3, avoid=[A]) == [A, B]


@pytest.mark.parametrize("balance", BALANCES)
def test_of_many_callers_one_probes_and_the_others_go_elsewhere(balance: Balance) -> None:
    servers, group = directory(balance), AddressGroup.of(A, B)
    answered(servers[B], 0.0, 0.01)
    due = down(servers[A])
    attempts = [servers.attempt(group, due) for _ in range(100)]

    assert Counter(a.address for a in attempts if a is not None) == {A: 1, B: 99}


def test_in_p2c_a_server_that_is_to_be_probed_is_not_passed_over_for_its_failures() -> None:
    servers, group = directory("p2c"), AddressGroup.of(A, B)
    answered(servers[B], 0.0, 0.01)
    servers[A].failed(0.0, latency=1000.0)
    assert servers.order(group, 1.0)[0] == A

    servers[A].mark_up(1.0)
    answered(servers[A], 1.0, 1.0)
    assert servers.order(group, 1.0)[0] == B


# How many may be down


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize(
    ("max_down", "left_out"), [(0.0, 1), (0.25, 1), (0.5, 2), (0.74, 2), (0.75, 3), (1.0, 3)]
)
def test_no_more_than_a_share_of_a_tier_is_left_out(
    balance: Balance, max_down: float, left_out: int
) -> None:
    servers = directory(balance, max_down=max_down, failure_latency=0.0)
    group = AddressGroup.of(A, B, C, D)
    for now, each in enumerate((A, B, C)):
        servers[each].failed(now / 10)

    used = {servers.order(group, 0.9)[0] for _ in range(1_000)}

    # Those that failed last are left out.
    assert used == {A, B, C, D} - {*(C, B, A)[:left_out]}


def test_who_is_let_through_as_too_many_are_down_needs_no_panic() -> None:
    servers, group = directory(max_down=0.5), AddressGroup.of(A, B, C)
    down(servers[A], 0.0)
    down(servers[B], 0.1)
    used = Counter(
        attempt.address
        for _ in range(1_000)
        if (attempt := servers.attempt(group, 0.2, panic=False)) is not None
    )

    assert set(used) == {A, C}
    assert abs(used[A] / 1_000 - 0.5) <= 0.1


def test_of_two_servers_one_may_be_down() -> None:
    servers, group = directory(max_down=0.1), AddressGroup.of(A, B)
    down(servers[A])

    assert {tuple(servers.order(group, 0.0)) for _ in range(100)} == {(B, A)}


def test_a_tier_that_is_down_as_a_whole_is_left_for_the_next() -> None:
    servers = directory(max_down=0.1)
    group = AddressGroup([[(1, A), (1, B), (1, C)], [(1, D)]])
    for each in (A, B, C):
        down(servers[each])

    assert {servers.order(group, 0.0)[0] for _ in range(100)} == {D}


def test_what_was_marked_down_by_hand_is_left_out_beyond_any_share() -> None:
    servers, group = directory(max_down=0.1), AddressGroup.of(A, B, C, D)
    for each in (A, B, C):
        servers[each].mark_down(0.0)

    assert {servers.order(group, 0.0)[0] for _ in range(100)} == {D}


# Slow start


def test_a_server_that_is_back_gets_its_share_little_by_little() -> None:
    servers = directory(slow_start=10.0)
    group = AddressGroup.of(A, B)
    servers.order(group, -100.0)
    servers[A].mark_down(-50.0)
    servers[A].mark_up(0.0)

    shares = [firsts(servers, group, now)[A] / 10_000 for now in (0.0, 1.0, 5.0, 10.0, 99.0)]

    expected = [0.1 / 1.1, 0.1 / 1.1, 0.5 / 1.5, 0.5, 0.5]
    assert shares == pytest.approx(expected, abs=0.02)


def test_a_new_server_gets_its_share_little_by_little() -> None:
    servers = directory(slow_start=10.0)
    servers.order(AddressGroup.of(A, B, C), 0.0)
    group = AddressGroup.of(A, B, C, D)

    assert firsts(servers, group, 100.0)[D] / 10_000 == pytest.approx(0.1 / 3.1, abs=0.01)
    assert firsts(servers, group, 110.0)[D] / 10_000 == pytest.approx(0.25, abs=0.02)


def test_with_all_servers_new_none_is_held_back() -> None:
    servers, group = directory(slow_start=10.0), AddressGroup([[(9, A), (1, B)]])

    assert abs(firsts(servers, group, 0.0)[A] / 10_000 - 0.9) <= 0.01


def test_in_p2c_a_new_server_has_one_request_until_it_has_answered() -> None:
    servers, group = directory("p2c", slow_start=10.0), AddressGroup.of(A, B, C, D)
    for each in (A, B, C):
        answered(servers[each], 0.0, 1.0)
    attempts = [servers.attempt(group, 0.1) for _ in range(300)]

    assert Counter(a.address for a in attempts if a is not None)[D] == 1


def test_in_p2c_a_new_server_that_answers_fast_is_not_flooded() -> None:
    servers, group = directory("p2c", slow_start=10.0), AddressGroup.of(A, B, C, D)
    servers.order(AddressGroup.of(A, B, C), -100.0)
    for each in (A, B, C, D):
        answered(servers[each], 0.0, 0.01)
    attempts = [servers.attempt(group, 0.0) for _ in range(400)]
    given = Counter(a.address for a in attempts if a is not None)

    assert given[D] < 30  # of a fair share of 100
    assert all(given[each] > 80 for each in (A, B, C))


# p2c against what else there is


def test_p2c_takes_the_less_busy_of_two() -> None:
    servers, group = directory("p2c"), AddressGroup.of(A, B)
    for each in (A, B):
        answered(servers[each], 0.0, 0.01)
    held = begin(servers[A], 0.0)

    assert firsts(servers, group, 0.0, 100) == {B: 100}
    held.cancelled(0.0)
    assert set(firsts(servers, group, 0.0, 100)) == {A, B}


def test_p2c_takes_the_faster_of_two() -> None:
    servers, group = directory("p2c"), AddressGroup.of(A, B)
    answered(servers[A], 0.0, 0.01)
    answered(servers[B], 0.0, 0.02)

    assert firsts(servers, group, 0.0, 100) == {A: 100}


def test_p2c_spreads_what_is_outstanding_by_weight() -> None:
    servers, group = directory("p2c"), AddressGroup([[(1, A), (2, B), (3, C), (4, D)]])
    for each in group.addresses:
        answered(servers[each], 0.0, 0.01)
    attempts = [servers.attempt(group, 0.0) for _ in range(1_000)]
    given = Counter(a.address for a in attempts if a is not None)

    assert [given[each] / 1_000 for each in (A, B, C, D)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4], abs=0.05
    )


@pytest.mark.parametrize("balance", BALANCES)
def test_weights_may_be_as_far_apart_as_numbers_are(balance: Balance) -> None:
    servers = directory(balance, slow_start=10.0)
    group = AddressGroup([[(1e308, A), (1e308, B), (1e308, C), (5e-324, D)]])
    held = [begin(servers[each], 0.0) for each in (A, B, C, D)]

    for now in (0.0, 100.0):  # 5e-324 times the share of a new server is 0
        assert {servers.order(group, now)[-1] for _ in range(100)} == {D}
    assert len(held) == 4


class Simulation:
    """Requests that come at random to servers that need about 5 ms, of which the first turns slow.

    1,000 requests per second; time-outs at 1 s.  After 10 s the first server needs 2 s for each.
    *success* is the share of the requests of the next 30 s that were answered.
    """

    def __init__(self, servers: ServerModelDirectory, seed: int = 5) -> None:
        self.random = random.Random(seed)
        self.servers = servers
        self.addresses = [Address(f"10.0.1.{n}", 80) for n in range(1, 12)]
        self.group = AddressGroup.of(*self.addresses)
        self.outcomes: Counter[bool] = Counter()
        self._under_way: list[tuple[float, int, Attempt, bool]] = []

    def run(self) -> Simulation:
        now, number = 0.0, 0
        while now < 40.0:
            now += self.random.expovariate(1_000)
            self._end_until(now)
            number += 1
            attempt = self.servers.attempt(self.group, now)
            assert attempt is not None
            attempt.connected(now, reused=True)
            needs = self._needs(attempt.address, now)
            ends, answers = now + min(needs, 1.0), needs <= 1.0
            heapq.heappush(self._under_way, (ends, number, attempt, answers))
            if now >= 10.0:
                self.outcomes[answers] += 1
        return self

    @property
    def success(self) -> float:
        return self.outcomes[True] / self.outcomes.total()

    def _needs(self, address: AnyAddress, now: float) -> float:
        if address == self.addresses[0] and now >= 10.0:
            return 2.0
        return self.random.lognormvariate(math.log(0.005), 0.5)

    def _end_until(self, now: float) -> None:
        while self._under_way and self._under_way[0][0] <= now:
            ends, _, attempt, answers = heapq.heappop(self._under_way)
            if answers:
                attempt.succeeded(ends)
            else:
                attempt.failed(ends)


@pytest.mark.slow
@pytest.mark.parametrize("failures", [3, None])
def test_p2c_answers_999_of_1000_while_one_of_11_servers_is_slow(failures: int | None) -> None:
    # Nothing is left to chance.
    backoff = Backoff(first=1.0, longest=60.0, rng=random.Random(23))
    policy = HealthPolicy(failures=failures, backoff=backoff)
    draw = random.Random(17).expovariate
    run = Simulation(ServerModelDirectory(policy, balance="p2c", draw=draw)).run()

    assert run.outcomes.total() > 29_000
    assert run.success >= 0.999
    # More than that: hardly anybody waits for the first time-out to learn of it.
    assert run.outcomes[False] <= 12


@pytest.mark.slow
@pytest.mark.parametrize(("failures", "at_most"), [(3, 0.998), (None, 0.93)])
def test_drawing_by_weight_alone_answers_clearly_less(failures: int | None, at_most: float) -> None:
    # Nothing is left to chance.
    backoff = Backoff(first=1.0, longest=60.0, rng=random.Random(23))
    policy = HealthPolicy(failures=failures, backoff=backoff)
    draw = random.Random(17).expovariate
    run = Simulation(ServerModelDirectory(policy, draw=draw)).run()

    assert 0.85 < run.success < at_most


# The directory


def test_a_model_is_made_for_any_spelling_of_an_address_once() -> None:
    servers = ServerModelDirectory()
    model = servers["10.0.0.1:80"]  # type: ignore[index]

    assert model.address == A
    assert servers[A] is servers["10.0.0.1", 80] is servers["10.0.0.1:80"] is model  # type: ignore[index]
    assert list(servers) == [A]
    assert servers[UnixAddress("/x")].address == UnixAddress("/x")


@pytest.mark.parametrize("key", ["host", None, ("host", 0)])
def test_a_model_of_nothing_is_not_made(key: Any) -> None:
    servers = ServerModelDirectory()
    with pytest.raises((TypeError, ValueError), match="target must be"):
        servers[key]

    assert not servers


def test_a_directory_does_not_grow_without_bound() -> None:
    servers, largest = directory(), 0
    for number in range(2_000):
        each = Address(f"10.1.{number >> 8}.{number & 255}", 80)
        attempt = servers.attempt(AddressGroup.of(each), float(number))
        assert attempt is not None
        if number % 2:
            attempt.failed(float(number))
        else:
            attempt.succeeded(float(number))
        del attempt
        largest = max(largest, len(servers))

    assert largest <= 1_300  # those of the last 600 s, and as many again
    servers.forget(1e6)
    assert not servers


def test_what_is_in_use_is_not_forgotten() -> None:
    servers, sock = directory(), Socket()
    servers[A].sock_in_use(sock)
    attempt = begin(servers[B], 0.0)
    servers[C].mark_down(0.0)
    servers.order(AddressGroup.of(D), 1e6)
    servers.forget(1e6)
    assert set(servers) == {A, B, C, D}

    attempt.cancelled(1e6)
    servers[C].mark_up(1e6)
    del sock
    gc.collect()
    servers.forget(1e6 + 599.0)

    assert set(servers) == {D}


def test_a_model_that_something_holds_is_the_one_that_is_used_again() -> None:
    servers = directory()
    model = servers[A]
    servers.forget(0.0)
    assert A not in servers

    assert servers[A] is model


def test_a_model_that_nothing_holds_is_gone() -> None:
    servers = directory()
    reference = weakref.ref(servers[A])
    servers.forget(0.0)
    gc.collect()

    assert reference() is None


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"failures": 0}, "failures must be at least 1, not 0"),
        ({"failures": True}, "failures must be a whole number, not True"),
        ({"failures": 1.5}, "failures must be a whole number, not 1.5"),
        ({"backoff": 1.0}, "backoff must be a Backoff, not 1.0"),
        ({"forget_after": 0}, "forget_after must be more than 0 (seconds), not 0"),
        ({"probe_timeout": 0.0}, "probe_timeout must be more than 0 (seconds), not 0.0"),
        ({"decay": 0.0}, "decay must be more than 0 (seconds), not 0.0"),
        ({"max_down": 1.1}, "max_down must be a share between 0 and 1, not 1.1"),
        ({"max_down": -0.1}, "max_down must be a share between 0 and 1, not -0.1"),
        ({"slow_start": math.inf}, "slow_start must be 0 or more (seconds), not inf"),
        ({"slow_start": "1"}, "slow_start must be a number of seconds, not '1'"),
        ({"failure_latency": math.nan}, "failure_latency must be 0 or more (seconds), not nan"),
        ({"decay": None}, "decay must be a number of seconds, not None"),
        ({"max_down": True}, "max_down must be a number, not True"),
        ({"max_down": math.nan}, "max_down must be a share between 0 and 1, not nan"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_name(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)):
        HealthPolicy(**arguments)


def test_a_directory_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match='balance must be "weighted" or "p2c", not \'best\''):
        ServerModelDirectory(balance="best")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="policy must be a HealthPolicy or None, not 3"):
        ServerModelDirectory(3)  # type: ignore[arg-type]


# Whatever happens


class Whatever(RuleBasedStateMachine):
    """Attempts begin and end in any order, servers are marked down and up, and time goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.servers = directory("p2c", failures=2, probe_timeout=5.0)
        self.group = AddressGroup([[(1, A), (2, B), (0, C)], [(1, D)]])
        self.under_way: list[Attempt] = []

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 10.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    @rule(tried=st.sets(st.sampled_from([A, B, C, D])), panic=st.booleans())
    def begin(self, tried: set[AnyAddress], panic: bool) -> None:
        probed = {
            each for each in self.group.addresses if self.servers[each].state(self.now) == "probing"
        }
        attempt = self.servers.attempt(self.group, self.now, tried, panic=panic)
        left = [self.servers[each] for each in self.group.addresses - tried]
        if attempt is None:
            assert not any(each.state(self.now) == "up" for each in left)
            return
        assert attempt.address not in tried
        assert not (attempt.probe and attempt.address in probed)
        self.under_way.append(attempt)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "failed", "cancelled", "lost"]))
    def end(self, data: st.DataObject, how: str) -> None:
        attempt = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        if how != "lost":
            getattr(attempt, how)(self.now)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), reused=st.booleans())
    def connected(self, data: st.DataObject, reused: bool) -> None:
        # By its number, as what is drawn itself is kept alive.
        number = data.draw(st.integers(0, len(self.under_way) - 1))
        self.under_way[number].connected(self.now, reused=reused)

    @rule(each=st.sampled_from([A, B, C, D]), seconds=st.sampled_from([None, 0.0, 1.0]))
    def by_hand(self, each: Address, seconds: float | None) -> None:
        if seconds:
            self.servers[each].mark_down(self.now, seconds)
        else:
            self.servers[each].mark_up(self.now)

    @invariant()
    def what_is_outstanding_is_under_way(self) -> None:
        for each, model in self.servers.items():
            pending = [a for a in self.under_way if a.address == each and a.pending]
            assert model.outstanding == len(pending)
            assert model.load(self.now) >= 0.0

    @invariant()
    def whoever_is_up_lets_everybody_through(self) -> None:
        for model in self.servers.values():
            assert (model.state(self.now) == "up") == (model.down_until is None)
            assert model.down_until is not None or model.admits(self.now)

    @invariant()
    def the_order_has_every_address(self) -> None:
        assert sorted(self.servers.order(self.group, self.now)) == [A, B, C, D]

    def teardown(self) -> None:
        """When all have left and time has gone by, every server can be used or probed."""
        self.under_way.clear()
        gc.collect()
        for model in self.servers.values():
            assert model.outstanding == 0
            if model.down_until != math.inf:
                assert model.admits(self.now + 100.0)


TestWhatever = Whatever.TestCase
TestWhatever.settings = settings(
    max_examples=50,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],  # on a machine that is busy with other things
)
