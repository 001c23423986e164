"""A factory with several servers remembers what failed last, and asks a resolver anew."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import gevent
import pytest

from geventpool import CachingResolver, DnsResolver
from geventpool.addresses import AddressGroup
from geventpool.errors import ConnectError, MultiConnectFailure
from geventpool.sockets import SocketFactory
from support.managers import Hosts, group
from support.servers import Pulse


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(stack)


class Catalog:
    """A resolver of a program's own."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    def resolve(self, name: str, /) -> Any:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def __repr__(self) -> str:
        return "<the catalog>"


def host_of(factory: SocketFactory) -> str:
    with closing(factory()) as sock:
        return str(sock.getpeername()[0])


@pytest.mark.parametrize("kind", ["a list", "an AddressGroup", "a resolver"])
def test_a_server_that_failed_costs_no_time_at_the_next_calls(hosts: Hosts, kind: str) -> None:
    server, silent = hosts.server(), hosts.silent()
    found = AddressGroup([[(1, silent)], [(1, server.address)]])
    factory = {
        "a list": lambda: SocketFactory([silent, server.address], connect_timeout=4.0),
        "an AddressGroup": lambda: SocketFactory(found, connect_timeout=4.0),
        "a resolver": lambda: SocketFactory("pay", resolver=Catalog(found), connect_timeout=4.0),
    }[kind]()
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        host_of(factory)  # of a list, the first may be either
    with Pulse() as pulse:
        began = time.monotonic()
        assert [host_of(factory) for _ in range(4)] == [server.address[0]] * 4
        assert time.monotonic() - began < 0.3 + pulse.missed


def test_a_server_that_is_back_gets_its_share_again(hosts: Hosts) -> None:
    servers = hosts.servers(2)
    factory = SocketFactory([each.address for each in servers])
    servers[0].stop()
    assert {host_of(factory) for _ in range(4)} == {servers[1].address[0]}
    servers[0].start()
    with gevent.Timeout(10):  # after a second it is looked at
        while host_of(factory) == servers[1].address[0]:
            gevent.sleep(0.02)
    found = Counter(host_of(factory) for _ in range(10))
    assert found == {each.address[0]: 5 for each in servers}


def test_the_log_says_once_that_a_server_was_passed_over_and_once_that_it_is_back(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventpool")
    servers = hosts.servers(2)
    factory = SocketFactory([each.address for each in servers])
    servers[0].stop()
    began = time.monotonic()
    while time.monotonic() - began < 2.5:
        host_of(factory)
        gevent.sleep(0.01)
    (line,) = caplog.records
    host, port = servers[0].address
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith("a server was passed over: [Errno 111] Connection refused")
    assert f"{host}:{port}" in line.getMessage()
    servers[0].start()
    with gevent.Timeout(10):
        while host_of(factory) != host:
            gevent.sleep(0.02)
    (_, back) = caplog.records
    assert back.levelno == logging.INFO
    assert back.getMessage().startswith(f"{host}:{port} is back after ")


def test_with_all_of_them_away_each_is_tried_and_nothing_was_passed_over(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventpool")
    factory = SocketFactory([hosts.address(), hosts.address()])
    for _ in range(3):
        with pytest.raises(MultiConnectFailure) as caught:
            factory()
        assert len(caught.value.errors) == 2
    assert caplog.records == []


def test_a_name_whose_servers_all_fail_is_asked_anew_in_the_same_call(hosts: Hosts) -> None:
    old, new = hosts.servers(2)
    catalog = Catalog(group(old))
    resolver = CachingResolver(catalog, ttl=3600.0)
    factory = SocketFactory("pay", resolver=resolver)
    assert host_of(factory) == old.address[0]
    old.stop()
    catalog.answer = group(new)
    resolver._entries["pay"].stored_at -= 1.0  # it is a second old
    assert host_of(factory) == new.address[0]
    assert catalog.asked == 2


def test_a_name_whose_servers_do_not_answer_is_asked_anew_for_the_next_call(hosts: Hosts) -> None:
    server = hosts.server()
    catalog = Catalog(AddressGroup.of(hosts.silent()))
    resolver = CachingResolver(catalog, ttl=3600.0)
    factory = SocketFactory("pay", resolver=resolver, connect_timeout=1.2)
    resolver.resolve("pay")
    catalog.answer = group(server)
    with pytest.raises(ConnectError, match="not open after"):
        factory()
    with gevent.Timeout(10):
        while catalog.asked < 2:
            gevent.sleep(0.01)
    assert host_of(factory) == server.address[0]


def test_it_is_asked_anew_once_a_second_however_many_fail(hosts: Hosts) -> None:
    catalog = Catalog(AddressGroup.of(hosts.address()))
    factory = SocketFactory("pay", resolver=CachingResolver(catalog, ttl=3600.0))
    began, calls = time.monotonic(), 0
    while time.monotonic() - began < 2.5:
        with pytest.raises(ConnectionRefusedError):
            factory()
        calls += 1
        gevent.sleep(0.002)
    assert calls > 50
    assert catalog.asked <= 4


def test_the_addresses_of_one_host_are_raced_through_a_resolver(hosts: Hosts) -> None:
    server = hosts.server()
    found = AddressGroup.of(hosts.silent(), hosts.silent(), server.address, raced=True)
    factory = SocketFactory("web", resolver=Catalog(found))
    with Pulse() as pulse:
        for _ in range(8):  # in any order
            began = time.monotonic()
            assert host_of(factory) == server.address[0]
            assert time.monotonic() - began < 0.7 + pulse.missed


def test_localhost_by_a_dns_resolver_is_one_race(hosts: Hosts) -> None:
    server = hosts.server()
    server.stop()
    server.address = ("127.0.0.1", server.address[1])
    server.start()
    factory = SocketFactory(f"localhost:{server.address[1]}", resolver=DnsResolver())
    assert host_of(factory) == "127.0.0.1"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "'pay': <the catalog> returned None, no AddressGroup"),
        (RuntimeError("broken"), "'pay': <the catalog> raised RuntimeError: broken"),
    ],
)
def test_what_an_own_resolver_does_wrong_is_an_error_that_names_it(answer: Any, said: str) -> None:
    factory = SocketFactory("pay", resolver=Catalog(answer))
    with pytest.raises(ConnectError) as caught:
        factory()
    assert str(caught.value) == said
