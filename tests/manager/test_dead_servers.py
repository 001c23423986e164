"""A server that is away is dialed once per back-off, told of once, and keeps nobody waiting."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.server
import pytest

from geventpool.addresses import AddressGroup
from geventpool.backoff import Backoff
from geventpool.discovery import DnsResolver
from geventpool.errors import MultiConnectFailure
from geventpool.manager import ConnectInfo, ConnectionManager, HealthPolicy
from support.managers import Hosts, group
from support.servers import Pulse
from support.waiting import until


def accepts_and_closes(sock: Any, peer: Any) -> None:
    sock.close()


def says_that_it_is_busy(sock: Any, peer: Any) -> None:
    sock.sendall(b"busy\n")
    sock.close()


def dials_by_then(manager: ConnectionManager, calls: Callable[[int], Any], seconds: float) -> int:
    """Have a call fail every 5 ms, for so long; how many dials there were in the last second."""
    began, number = time.monotonic(), 0
    before_last = 0
    while (now := time.monotonic()) - began < seconds:
        if now - began < seconds - 1.0:
            before_last = manager.stats().dialed
        try:
            with calls(number) as sock:
                sock.sendall(b"x")
                assert sock.recv(100) == b"x"
        except (OSError, AssertionError):
            pass
        number += 1
        gevent.sleep(0.005)
    return manager.stats().dialed - before_last


@pytest.mark.slow
@pytest.mark.parametrize("serve", [None, accepts_and_closes, says_that_it_is_busy])
def test_the_only_server_of_a_name_is_dialed_once_per_back_off_while_it_is_away(
    hosts: Hosts, manage: Any, serve: Any
) -> None:
    address = hosts.address()
    if serve is not None:
        address = hosts.serve(serve)
    manager = manage({"pay": group(address)})

    dials = dials_by_then(manager, lambda _: manager.connection("pay"), 3.5)

    assert dials <= 4  # the longest pause is 0.5 to 1 s


@pytest.mark.slow
def test_all_who_dial_one_address_have_one_back_off(hosts: Hosts, manage: Any) -> None:
    address = hosts.address()
    manager = manage()
    kinds = kinds_of_sock_type(10)

    dials = dials_by_then(
        manager, lambda n: manager.connection(address, sock_type=kinds[n % 10]), 3.5
    )

    assert dials <= 4


def kinds_of_sock_type(count: int) -> list[Any]:
    return [lambda sock, kind=kind: (kind, sock) for kind in range(count)]


def until_the_back_off_is_over(manager: ConnectionManager, address: Any) -> None:
    """After dials that failed, until the next may begin."""
    failed_dials = manager._pool.failed_dials(manager.servers[address])
    while failed_dials.retry_at < time.monotonic():
        with pytest.raises(OSError):
            manager.get_connection(address)
        gevent.sleep(0)
    until(lambda: failed_dials.retry_at < time.monotonic())


def test_all_who_dial_one_address_as_its_back_off_ends_make_one_dial(
    hosts: Hosts, manage: Any
) -> None:
    address = hosts.address()
    manager = manage()
    until_the_back_off_is_over(manager, address)
    dials = manager.stats().dialed

    def call(kind: Any) -> Any:
        try:
            return manager.get_connection(address, sock_type=kind)
        except OSError as error:
            return error

    calls = [gevent.spawn(call, kind) for kind in kinds_of_sock_type(10)]
    gevent.joinall(calls, timeout=10, raise_error=True)

    assert all(isinstance(each.value, OSError) for each in calls)
    assert "refused" in str(calls[-1].value)
    assert manager.stats().dialed - dials == 1


def test_once_a_dial_has_succeeded_all_may_dial_that_address_at_once(
    hosts: Hosts, manage: Any
) -> None:
    """Before it is known that the connection is of use."""
    server = hosts.server()
    server.stop()
    manager = manage()
    until_the_back_off_is_over(manager, server.address)
    server.start()

    first = manager.get_connection(server.address)
    calls = [
        gevent.spawn(manager.get_connection, server.address, sock_type=kind)
        for kind in kinds_of_sock_type(10)
    ]
    gevent.joinall(calls, timeout=10, raise_error=True)

    for _, sock in (each.value for each in calls):
        sock.close()
    first.close()


def test_a_caller_that_gives_up_its_dial_as_the_back_off_ends_keeps_no_other_away(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server()
    server.stop()
    manager = manage()
    until_the_back_off_is_over(manager, server.address)
    server.start()
    kind, other = kinds_of_sock_type(2)

    caller = gevent.spawn(manager.get_connection, server.address, sock_type=kind)
    gevent.sleep(0)
    caller.kill()
    until(lambda: not manager.stats().connecting)

    _, sock = manager.get_connection(server.address, sock_type=other)
    sock.close()


@pytest.mark.slow
def test_a_server_that_serves_again_has_no_back_off_left(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    server.stop()
    manager = manage({"pay": group(server)})
    dials_by_then(manager, lambda _: manager.connection("pay"), 2.0)
    server.start()
    began = time.monotonic()
    while True:
        try:
            with manager.connection("pay") as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            break
        except OSError:
            gevent.sleep(0.01)
    assert time.monotonic() - began < 1.5  # the longest pause
    failed_dials = manager._pool.failed_dials(manager.servers[server.address])
    assert not failed_dials
    assert failed_dials.retry_at < time.monotonic()


@pytest.mark.slow
def test_the_log_says_once_that_a_server_went_and_once_that_it_is_back(
    hosts: Hosts, manage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventpool")
    server = hosts.server()
    server.stop()
    manager = manage({"pay": group(server)})
    dials_by_then(manager, lambda _: manager.connection("pay"), 2.5)
    model = manager.servers[server.address]

    (gone,) = caplog.records
    host, port = server.address
    assert gone.levelno == logging.WARNING
    assert f"{host}:{port} is marked down for " in gone.getMessage()
    assert "refused" in gone.getMessage()

    server.start()
    while not server.opened:
        dials_by_then(manager, lambda _: manager.connection("pay"), 0.05)
    (_, back) = caplog.records
    assert back.levelno == logging.INFO
    dials = manager.stats().dialed - 3
    assert f"{host}:{port} is back after " in back.getMessage()
    before = 2  # callers of the first failures, which marked it down with the third
    text = f" s and {dials} dials; {model.refused - before} callers got no connection meanwhile"
    assert back.getMessage().endswith(text)
    assert manager.stats().refusals["dial"] + manager.stats().refusals["down"] == model.refused


def test_a_dial_that_no_caller_waits_for_any_more_counts_if_it_fails(
    hosts: Hosts, manage: Any
) -> None:
    silent = hosts.silent()
    policy = HealthPolicy(failures=1, backoff=Backoff(first=600.0, longest=600.0, jitter=0))
    manager = manage(connect_timeout=0.3, health=policy)
    with pytest.raises(OSError, match="no connection came free"):
        manager.get_connection(silent, timeout=0.05)  # too short to learn anything
    model = manager.servers[silent]
    assert model.down_until is None

    while manager.stats().connecting:
        gevent.sleep(0.01)
    assert model.down_until is not None
    assert "not open after" in str(model.reason)


def test_a_listener_may_report_of_the_connection_that_is_checked_out(
    hosts: Hosts, manage: Any
) -> None:
    raised: list[BaseException] = []

    class Reports:
        def connection_checked_out(self, event: Any) -> None:
            try:
                manager.report(event.connection, ok=False, error=OSError("I do not like it"))
            except BaseException as error:
                raised.append(error)

    server = hosts.server()
    manager = manage(listeners=[Reports()], health=HealthPolicy(failures=4))
    for number in range(1, 4):  # a new one, and one that was used before
        with manager.connection(server.address) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert raised == []
        model = manager.servers[server.address]
        assert model.reason == "OSError: I do not like it"
        assert model._failures == number
    assert server.opened == 1


# Some addresses of several


def seconds_of(manager: ConnectionManager, name: str) -> float:
    began = time.monotonic()
    with manager.connection(name) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    return time.monotonic() - began


def test_with_two_of_three_in_a_black_hole_few_requests_take_over_a_second_once_that_is_known(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server()
    manager = manage({"pay": group(hosts.silent(), hosts.silent(), server)}, idle_timeout=0.01)
    until_known = time.monotonic() + 30
    while sum(each.down_until is not None for each in manager.servers.values()) < 2:
        seconds_of(manager, "pay")
        assert time.monotonic() < until_known

    took: list[float] = []

    def ask_for(seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            took.append(seconds_of(manager, "pay"))
            gevent.sleep(0.05)

    with Pulse() as pulse:
        gevent.joinall([gevent.spawn(ask_for, 10) for _ in range(5)], raise_error=True)
    slow = sum(each > 1.0 + pulse.missed for each in took)
    assert slow / len(took) < 0.05, sorted(took)[-20:]
    assert len(took) > 100


class Knows:
    """A resolver with one answer."""

    def __init__(self, found: AddressGroup) -> None:
        self.found = found

    def resolve(self, name: str, /) -> AddressGroup:
        return self.found


def raced(*servers: Any) -> Knows:
    found = [getattr(each, "address", each) for each in servers]
    return Knows(AddressGroup.of(*found, raced=True))


def test_the_addresses_of_one_host_are_raced(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    resolver = raced(hosts.silent(), hosts.silent(), server)
    with Pulse() as pulse:
        for _ in range(8):  # in any order
            assert seconds_of(manage(resolver), "web") < 0.8 + pulse.missed


def test_what_a_dns_resolver_finds_is_raced() -> None:
    assert DnsResolver().resolve("localhost:80").raced
    assert not AddressGroup.of("10.0.0.1:80").raced


def test_the_one_that_loses_a_race_for_good_is_marked_down(hosts: Hosts, manage: Any) -> None:
    silent, server = hosts.silent(), hosts.server()
    policy = HealthPolicy(failures=1, backoff=Backoff(first=600.0, longest=600.0, jitter=0))
    manager = manage(raced(silent, server), health=policy, connect_timeout=0.4, idle_timeout=0.01)
    with gevent.Timeout(20):
        while manager.servers[silent].down_until is None:
            seconds_of(manager, "web")
            gevent.sleep(0.02)
    assert manager.servers[server.address].down_until is None
    assert all(seconds_of(manager, "web") < 0.25 for _ in range(10))


def test_one_that_is_slow_to_connect_wins_the_race_if_no_other_does(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server()

    def slow(sock: Any) -> Any:
        gevent.sleep(0.6)
        return sock

    manager = manage(raced(hosts.silent(), server))
    with manager.connection("web", sock_type=slow) as sock:
        assert sock.address == server.address
    assert manager.stats().dialed == 2
    assert manager.servers[server.address].last_error is None


def test_a_race_that_nobody_wins_tells_of_each(hosts: Hosts, manage: Any) -> None:
    silent, refused = hosts.silent(), hosts.address()
    infos = {"web": ConnectInfo(connect_timeout_ms=600)}
    manager = manage(raced(silent, refused), connect_infos=infos)
    with pytest.raises(MultiConnectFailure) as caught:
        manager.get_connection("web")
    assert {each for each, _ in caught.value.errors} == {silent, refused}
    assert "no connection came free in 0." in str(caught.value)


def test_a_caller_killed_in_a_race_leaves_nothing_outstanding(hosts: Hosts, manage: Any) -> None:
    silents = [hosts.silent() for _ in range(3)]
    manager = manage(raced(*silents), connect_timeout=1.0)
    caller = gevent.spawn(manager.get_connection, "web")
    while manager.stats().connecting < 3:
        gevent.sleep(0.01)
    caller.kill()
    while manager.stats().connecting:
        gevent.sleep(0.01)
    assert [manager.servers[each].outstanding for each in silents] == [0, 0, 0]


def test_a_server_that_connects_slowly_comes_back_though_no_caller_waits_so_long(
    hosts: Hosts, manage: Any
) -> None:
    slow_one, server = hosts.servers(2)

    def login(sock: Any) -> Any:
        if sock.address == slow_one.address:
            gevent.sleep(0.6)
        return sock

    policy = HealthPolicy(backoff=Backoff(first=0.1, longest=0.1, jitter=0), slow_start=0)
    tiers = [[(1, slow_one.address)], [(1, server.address)]]
    manager = manage({"pay": tiers}, health=policy)
    model = manager.servers[slow_one.address]
    for _ in range(3):
        model.failed(time.monotonic(), OSError("it was away"), connecting=True)
    with gevent.Timeout(10):
        while model.down_until is not None:
            with manager.connection("pay", sock_type=login):
                pass
            gevent.sleep(0.02)
    with manager.connection("pay", sock_type=login) as sock:
        assert sock.address == slow_one.address
