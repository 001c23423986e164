"""DnsResolver and SrvResolver, against a real DNS server, and what they share: the cache.

The resolver of gevent here is the one on c-ares, as it can be told which server to ask.  It has a
cache of its own, but not for records with a time to live of 0.

What must come in time has ten seconds and more, as the machine may be busy with something else;
what must not come at all is waited for as shortly as can be.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import dns.message
import dns.rrset
import gevent
import gevent.os
import gevent.socket
import greenlet
import pytest
from dns.exception import DNSException
from gevent import monkey
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from geventpool.addresses import Address, AddressGroup, UnixAddress
from geventpool.discovery import DnsResolver, SrvResolver, _srv_wire, lookup_cache
from geventpool.errors import ConnectError, NameNotFound
from geventpool.testing import FakeClock
from support import ROOT, TESTS
from support.dns_server import DnsServer, ares_of
from support.waiting import until

raw_fork = monkey.get_original("os", "fork")


class Book:
    """A resolver as gevent's are, that knows hosts by heart; ``hold()`` makes it slow."""

    def __init__(self, **hosts: Any) -> None:
        self.hosts = hosts
        self.asked: list[str] = []
        self.free = Event()
        self.free.set()
        self.someone = Event()

    def getaddrinfo(self, host: str, port: int, family: int, kind: int) -> list[Any]:
        self.asked.append(host)
        self.someone.set()
        self.free.wait()
        found = self.hosts.get(host, socket.gaierror(socket.EAI_NONAME, "no such name"))
        if isinstance(found, BaseException):
            raise found
        return [(socket.AF_INET, kind, 6, "", (ip, port)) for ip in found]


def spawn(function: Callable[..., Any], *args: Any) -> Any:
    """A greenlet that has run up to its first wait."""
    greenlet = gevent.spawn(function, *args)
    gevent.sleep(0)
    return greenlet


def outcome(resolve: Callable[[str], Any], name: str) -> Any:
    """What *resolve* returned, or what it raised."""
    try:
        return resolve(name)
    except BaseException as error:
        return error


def raising(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    def function(*args: object) -> None:
        raise error

    return function


def group(*ips: str) -> frozenset[Address]:
    return frozenset(Address(ip, 80) for ip in ips)


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@contextmanager
def asking(server: DnsServer, timeout: float) -> Iterator[Any]:
    resolver = ares_of(server, timeout=timeout, tries=1)
    yield resolver
    resolver.close()
    gevent.sleep(0)


@pytest.fixture
def ares(server: DnsServer) -> Iterator[Any]:
    with asking(server, timeout=10) as resolver:
        yield resolver


def srv(server: DnsServer, **settings: Any) -> SrvResolver:
    settings = {"attempt_timeout": 10, "timeout": 20, **settings}
    return SrvResolver(nameservers=[server.host], port=server.port, **settings)


@pytest.fixture
def short_first(monkeypatch: pytest.MonkeyPatch) -> Callable[[SrvResolver], None]:
    """Call it with a resolver whose first attempt is to be in vain."""

    def arrange(resolver: SrvResolver) -> None:
        left = [0.05]
        seconds = property(lambda lookup: left.pop() if left else 10)
        monkeypatch.setattr(type(resolver._lookup), "attempt_timeout", seconds, raising=False)

    return arrange


# DnsResolver: A and AAAA


def test_all_a_and_aaaa_records_are_one_tier_of_equal_weights(server: DnsServer, ares: Any) -> None:
    server.set("web.test", "A", "10.0.0.1", "10.0.0.2")
    server.set("web.test", "AAAA", "fd00::1")

    found = DnsResolver(resolver=ares).resolve("web.test:80")

    assert found.addresses == group("10.0.0.1", "10.0.0.2", "fd00::1")
    assert [len(tier) for tier in found.tiers] == [3]
    assert {weight for weight, _ in found.tiers[0]} == {1.0}


def test_a_family_can_be_left_out(server: DnsServer, ares: Any) -> None:
    server.set("web.test", "A", "10.0.0.1")
    server.set("web.test", "AAAA", "fd00::1")
    resolver = DnsResolver(resolver=ares, family=socket.AF_INET6)

    assert resolver.resolve("web.test:80").addresses == group("fd00::1")
    assert server.count("web.test", "A") == 0


def test_a_truncated_answer_is_asked_for_again_by_tcp(server: DnsServer, ares: Any) -> None:
    many = [f"10.0.{n // 250}.{n % 250 + 1}" for n in range(300)]
    server.set("many.test", "A", *many)

    assert DnsResolver(resolver=ares).resolve("many.test:80").addresses == group(*many)
    assert "tcp" in [query.by for query in server.queries]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10.0.0.1:81", Address("10.0.0.1", 81)),
        ("10.0.0.1", Address("10.0.0.1", 80)),
        ("[::1]:81", Address("::1", 81)),
        ("[::1]", Address("::1", 80)),
        ("::1", Address("::1", 80)),
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
    ],
)
def test_a_numeric_address_never_leaves_the_greenlet(name: str, expected: Any) -> None:
    book = Book()
    resolver = DnsResolver(port=80, resolver=book)
    switches: list[Any] = []

    def trace(event: str, args: Any) -> None:
        switches.append(event)

    before = greenlet.settrace(trace)
    gc.disable()  # a greenlet that it collects is switched to
    try:
        found = resolver.resolve(name)
        again = resolver.resolve(name)
    finally:
        gc.enable()
        greenlet.settrace(before)

    assert found == AddressGroup.of(expected)
    assert again is found
    assert switches == []
    assert book.asked == []


@pytest.mark.parametrize(
    "name", ["web", "", ":80", "web:", "web:http", "web:0", "a..b:80", "a b:80"]
)
def test_a_name_that_is_no_host_and_port_is_a_value_error(name: str) -> None:
    book = Book()

    with pytest.raises(ValueError, match="is no host and port"):
        DnsResolver(resolver=book).resolve(name)
    assert book.asked == []


def test_a_host_without_a_port_gets_the_default_one() -> None:
    resolver = DnsResolver(port=5432, resolver=Book(db=["10.0.0.1"]))

    assert resolver.resolve("db") == AddressGroup.of(("10.0.0.1", 5432))
    assert resolver.resolve("db:80") == AddressGroup.of(("10.0.0.1", 80))


def test_an_address_that_is_listed_twice_counts_once() -> None:
    resolver = DnsResolver(resolver=Book(db=["10.0.0.1", "10.0.0.2", "10.0.0.1"]))

    assert len(resolver.resolve("db:80").tiers[0]) == 2


def test_without_a_resolver_the_one_of_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book(db=["10.0.0.1"])
    monkeypatch.setattr(gevent.get_hub(), "_resolver", book)

    assert DnsResolver().resolve("db:80").addresses == group("10.0.0.1")
    assert book.asked == ["db"]


def test_localhost_is_found_by_the_system() -> None:
    assert Address("127.0.0.1", 80) in DnsResolver().resolve("localhost:80")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["NXDOMAIN", "no data", "SERVFAIL", "no answer"])
def test_a_look_up_that_brings_nothing_says_what_was_tried(server: DnsServer, how: str) -> None:
    if how == "no data":
        server.set("away.test", "TXT", "text")
    elif how == "SERVFAIL":
        server.rcode = "SERVFAIL"
    elif how == "no answer":
        server.silent = True

    with (
        asking(server, timeout=0.1 if how == "no answer" else 10) as ares,
        pytest.raises(NameNotFound) as caught,
    ):
        DnsResolver(resolver=ares).resolve("away.test:80")

    assert isinstance(caught.value, ConnectError)
    assert caught.value.name == "away.test:80"
    assert caught.value.tried == ("A and AAAA of away.test",)
    assert "away.test" in str(caught.value)
    assert isinstance(caught.value.__cause__, socket.gaierror)


# SrvResolver


def test_a_priority_is_a_tier_and_the_weights_are_those_of_the_records(server: DnsServer) -> None:
    server.set(
        "_http._tcp.web.test",
        "SRV",
        "20 1 8080 backup.test.",
        "10 9 80 big.test.",
        "10 1 81 small.test.",
    )

    found = srv(server).resolve("_http._tcp.web.test")

    first, second = found.tiers
    assert set(first) == {(9, Address("big.test", 80)), (1, Address("small.test", 81))}
    assert second == ((1, Address("backup.test", 8080)),)


def test_the_lowest_priority_comes_first(server: DnsServer) -> None:
    server.set("web.test", "SRV", *[f"{p} 1 {p} a.test." for p in (9, 100, 3, 20, 1000, 7, 40)])

    found = srv(server).resolve("web.test").connect_ordering()

    assert [each.port for each in found] == [3, 7, 9, 20, 40, 100, 1000]  # type: ignore[union-attr]


def test_the_addresses_of_a_target_come_from_the_same_answer(server: DnsServer) -> None:
    """Of Consul's targets, only Consul knows them."""
    server.set("web.service.consul", "SRV", "1 4 8080 a.node.consul.", "1 1 8081 b.node.consul.")
    server.set("a.node.consul", "A", "10.0.0.1")
    server.set("a.node.consul", "AAAA", "fd00::1")

    found = srv(server).resolve("web.service.consul")

    assert set(found.tiers[0]) == {
        (2, Address("10.0.0.1", 8080)),  # the weight of a target is that of all its addresses
        (2, Address("fd00::1", 8080)),
        (1, Address("b.node.consul", 8081)),  # for the one who connects to look up
    }
    assert len(server.queries) == 1


def test_records_that_all_have_the_weight_0_are_equal(server: DnsServer) -> None:
    server.set(
        "web.test", "SRV", "1 0 80 a.test.", "1 0 80 b.test.", "2 0 80 c.test.", "2 7 80 d.test."
    )

    first, second = srv(server).resolve("web.test").tiers

    assert {weight for weight, _ in first} == {1.0}
    assert {weight for weight, _ in second} == {0.0, 7.0}


def test_an_alias_is_followed(server: DnsServer) -> None:
    server.set("alias.test", "CNAME", "web.test.")
    server.set("web.test", "SRV", "1 1 80 a.test.")

    assert srv(server).resolve("alias.test") == AddressGroup.of(("a.test", 80))


@pytest.mark.parametrize("how", ["too long", "truncate", "cut"])
def test_a_truncated_srv_answer_is_asked_for_again_by_tcp(server: DnsServer, how: str) -> None:
    server.set("many.test", "SRV", *[f"1 1 {port} a.test." for port in range(1, 200)])
    if how != "too long":
        setattr(server, how, True)

    assert len(srv(server).resolve("many.test")) == 199
    assert [query.by for query in server.queries] == ["udp", "tcp"]


def test_with_tcp_no_datagram_is_sent(server: DnsServer) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.")

    assert srv(server, tcp=True).resolve("web.test")
    assert [query.by for query in server.queries] == ["tcp"]


def test_a_server_that_does_not_know_edns_is_asked_without(server: DnsServer) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.")
    server.knows_edns = False

    assert srv(server).resolve("web.test")
    assert [query.edns for query in server.queries] == [True, False]


@pytest.mark.parametrize(
    "what", ["garbage", "half of the answer", "another id", "another question", "the query itself"]
)
def test_what_comes_before_the_answer_and_is_none_is_not_taken(
    server: DnsServer, what: str
) -> None:
    def other(query: bytes, reply: bytes, send: Callable[[bytes], object]) -> None:
        forged = reply.replace(b"\x00\x50\x01a", b"\x00\x51\x01a")  # another port
        assert forged != reply
        match what:
            case "garbage":
                sent = b"not DNS at all"
            case "half of the answer":
                sent = forged[:20]
            case "another id":  # late for an earlier query, for instance
                sent = bytes([forged[0] ^ 1]) + forged[1:]
            case "another question":
                sent = forged.replace(b"\x03web\x04test", b"\x03wab\x04test")
            case _:
                sent = query
        assert sent != reply
        for _ in range(3):
            send(sent)

    server.set("web.test", "SRV", "1 1 80 a.test.")
    server.first = other

    assert srv(server).resolve("web.test") == AddressGroup.of(("a.test", 80))
    assert len(server.queries) == 1


def test_what_another_address_sends_is_not_taken(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_from: list[Any] = []

    class Socket(gevent.socket.socket):
        def send(self, *args: Any) -> Any:
            asked_from.append(self.getsockname())
            return super().send(*args)

    def forge(query: bytes, reply: bytes, send: Callable[[bytes], object]) -> None:
        forged = reply.replace(b"\x00\x50\x01a", b"\x00\x51\x01a")  # another port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
            elsewhere.bind((server.host, 0))  # the same host, but not the same port
            elsewhere.sendto(forged, asked_from[0])
        assert forged != reply

    monkeypatch.setattr(gevent.socket, "socket", Socket)
    server.set("web.test", "SRV", "1 1 80 a.test.")
    server.first = forge

    assert srv(server).resolve("web.test") == AddressGroup.of(("a.test", 80))
    assert len(asked_from) == 1


def test_an_answer_after_its_attempt_is_over_does_no_harm(
    server: DnsServer, short_first: Any
) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.")
    server.hold()
    resolver = srv(server)
    short_first(resolver)
    found = gevent.spawn(resolver.resolve, "web.test")
    server.wait_queries(2)
    server.release()  # both answers come now

    assert found.get(timeout=10) == AddressGroup.of(("a.test", 80))


def test_a_flood_of_garbage_neither_holds_up_the_others_nor_outlasts_the_attempt(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = 0

    class Flooded(gevent.socket.socket):
        def recv(self, *args: Any) -> bytes:
            """There is always more, so it never switches."""
            nonlocal received
            received += 1
            assert received < 100_000
            return b"not DNS at all"

    monkeypatch.setattr(gevent.socket, "socket", Flooded)
    found = gevent.spawn(outcome, srv(server, attempt_timeout=0.05).resolve, "web.test")
    turns = 0
    while not found.ready():
        gevent.sleep(0)
        turns += 1

    assert "timed out" in str(found.value)
    assert turns > 100


@pytest.mark.parametrize("what", ["garbage", "half of the answer", "another id", "nothing"])
def test_what_is_no_answer_by_tcp_is_a_failure(server: DnsServer, what: str) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.")
    server.instead = {
        "garbage": lambda wire: b"not DNS at all",
        "half of the answer": lambda wire: wire[:20],
        "another id": lambda wire: bytes([wire[0] ^ 1]) + wire[1:],
        "nothing": lambda wire: b"",
    }[what]

    failure = outcome(srv(server, tcp=True).resolve, "web.test")

    assert isinstance(failure, NameNotFound)
    assert isinstance(failure.__cause__, (EOFError, DNSException))
    assert len(server.queries) == 2  # it may do better the next time


@given(st.lists(st.tuples(st.integers(2), st.sampled_from([0, 1, 12, 0x2E, 0xC0, 255]))))
def test_whatever_a_server_sends_there_is_an_answer_or_the_next_one_is_asked(
    changes: list[tuple[int, int]],
) -> None:
    """Some bytes of a good answer are others; its id is not."""
    asked: list[bytes] = []

    class Link:
        def __init__(self, family: int, kind: int) -> None: ...
        def close(self) -> None: ...
        def connect(self, server: Any) -> None: ...

        def send(self, query: bytes) -> None:
            asked.append(query)

        def recv(self, size: int) -> bytes:
            if not asked[-1]:
                raise TimeoutError("timed out")
            reply = dns.message.make_response(dns.message.from_wire(asked[-1]))
            records = "1 1 80 a.test.", "2 0 81 b.test."
            reply.answer.append(dns.rrset.from_text("web.test.", 30, "IN", "SRV", *records))
            for kind, address in ("A", "10.0.0.1"), ("AAAA", "fd00::1"):
                reply.additional.append(dns.rrset.from_text("a.test.", 30, "IN", kind, address))
            wire = bytearray(reply.to_wire())
            for place, byte in changes:
                wire[2 + place % (len(wire) - 2)] = byte
            asked.append(b"")
            return bytes(wire)

    lookup = _srv_wire.SrvLookup([("127.0.0.1", 1), ("127.0.0.2", 1)], False, 1.0, 10.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gevent.socket, "socket", Link)
        patch.setattr(_srv_wire, "_by_tcp", raising(EOFError("none by TCP")))
        result = outcome(lookup.lookup, "web.test")

    if isinstance(result, lookup_cache.Failed):
        assert len(result.tried) == 2
    else:
        assert isinstance(result, (lookup_cache.Answer, lookup_cache.Absent))


def test_a_chain_of_aliases_is_followed_and_a_loop_of_them_is_a_failure(server: DnsServer) -> None:
    for number in range(5):
        server.set(f"c{number}.test", "CNAME", f"c{number + 1}.test.")
    server.set("c5.test", "SRV", "1 1 80 a.test.")
    server.set("x.test", "CNAME", "y.test.")
    server.set("y.test", "CNAME", "x.test.")
    resolver = srv(server)

    assert resolver.resolve("c0.test") == AddressGroup.of(("a.test", 80))
    with pytest.raises(NameNotFound, match="chain is too long") as caught:
        resolver.resolve("x.test")
    assert isinstance(caught.value.__cause__, DNSException)


def test_the_least_time_to_live_of_a_chain_counts(server: DnsServer, clock: FakeClock) -> None:
    server.set("alias.test", "CNAME", "web.test.", ttl=5)
    server.set("web.test", "SRV", "1 1 80 a.test.", ttl=500)
    resolver = srv(server, clock=clock)
    resolver.resolve("alias.test")
    clock.advance(5.1)
    resolver.resolve("alias.test")
    until(lambda: not resolver._lookups.running)

    assert len(server.queries) == 2


def test_a_target_that_is_the_root_means_that_there_is_no_such_service(server: DnsServer) -> None:
    server.set("web.test", "SRV", "0 0 0 .")

    with pytest.raises(NameNotFound, match="decidedly not available") as caught:
        srv(server).resolve("web.test")
    assert caught.value.tried == (f"SRV of web.test at {server.host}:{server.port}",)


def test_a_record_that_cannot_be_connected_to_does_not_spoil_the_others(
    server: DnsServer,
) -> None:
    spoilt = "0 1 0 a.test.", "1 1 80 no\\032host.", "0 0 0 ."
    server.set("web.test", "SRV", *spoilt, "2 1 80 b.test.")

    assert srv(server).resolve("web.test") == AddressGroup.of(("b.test", 80))


@pytest.mark.parametrize("record", ["0 1 80 no\\032host.", "0 1 0 a.test."])
def test_what_cannot_be_connected_to_is_a_failure_and_not_the_absence_of_a_service(
    server: DnsServer, clock: FakeClock, record: str
) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.", ttl=10)
    resolver = srv(server, clock=clock)
    resolver.resolve("web.test")
    server.set("web.test", "SRV", record)
    clock.advance(30)

    assert resolver.resolve("web.test") == AddressGroup.of(("a.test", 80))  # as it was
    with pytest.raises(NameNotFound, match="no target of its SRV records can be connected to"):
        srv(server).resolve("web.test")


def test_records_of_another_class_do_not_spoil_the_others(server: DnsServer) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.")
    server.set("a.test", "A", "10.0.0.1")
    place = b"\x00\x01\x00\x01"  # type A, class IN: the last one is that of the additional record
    server.instead = lambda wire: (b"\x00\x01\x00\xfe").join(wire.rsplit(place, 1))

    assert srv(server).resolve("web.test") == AddressGroup.of(("a.test", 80))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("NXDOMAIN", "no such name"),
        ("no data", "it has no SRV records"),
        ("SERVFAIL", "SERVFAIL"),
        ("REFUSED", "REFUSED"),
        ("nothing listens", "Connection refused"),
        ("no answer", "timed out"),
        ("a TCP answer cut short", "hung up after 0 of"),
    ],
)
def test_an_srv_look_up_that_brings_nothing_says_what_was_tried(
    server: DnsServer, how: str, why: str
) -> None:
    attempt_timeout = 0.05 if how == "no answer" else 10
    resolver = srv(server, attempt_timeout=attempt_timeout, tcp=how.startswith("a TCP"))
    if how == "no data":
        server.set("away.test", "TXT", "text")
    elif how in ("SERVFAIL", "REFUSED"):
        server.rcode = how
    elif how == "nothing listens":
        server.stop()
    elif how == "no answer":
        server.silent = True
    elif how == "a TCP answer cut short":
        server.hang_up = True

    with pytest.raises(NameNotFound, match=why) as caught:
        resolver.resolve("away.test")

    assert caught.value.name == "away.test"
    assert len(caught.value.tried) == 1
    assert caught.value.tried[0].startswith(f"SRV of away.test at {server.host}:{server.port}")


def test_a_lost_datagram_is_sent_again(server: DnsServer, short_first: Any) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.")
    server.lost = 1
    resolver = srv(server)
    short_first(resolver)

    assert resolver.resolve("web.test") == AddressGroup.of(("a.test", 80))
    assert len(server.queries) == 2


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("how", ["SERVFAIL", "no answer", "nothing listens", "nonsense", "garbage"])
def test_the_next_nameserver_is_asked_if_one_fails(how: str, tcp: bool, short_first: Any) -> None:
    with DnsServer() as second, DnsServer() as first:
        resolver = srv(second, tcp=tcp)
        resolver._lookup.servers.insert(0, (first.host, first.port))  # type: ignore[attr-defined]
        second.set("web.test", "SRV", "1 1 80 a.test.")
        if how == "SERVFAIL":
            first.rcode = how
        elif how == "nothing listens":
            first.stop()
        elif how == "nonsense":
            first.set("web.test", "SRV", "1 1 80 no\\032host.")
        else:
            short_first(resolver)
            first.silent = how == "no answer"
            first.instead = lambda wire: b"not DNS at all"

        assert resolver.resolve("web.test") == AddressGroup.of(("a.test", 80))


@pytest.mark.parametrize("tcp", [False, True])
def test_other_greenlets_run_on_while_a_query_waits(server: DnsServer, tcp: bool) -> None:
    """And the hub with them: the server is in it."""
    server.set("web.test", "SRV", "1 1 80 a.test.")
    server.hold()
    found = gevent.spawn(srv(server, tcp=tcp).resolve, "web.test")
    server.wait_queries(1)
    for _ in range(100):
        gevent.sleep(0)
        assert not found.ready()
    server.release()

    assert found.get(timeout=10) == AddressGroup.of(("a.test", 80))


def test_a_look_up_is_over_in_time(server: DnsServer) -> None:
    server.silent = True
    resolver = srv(server, attempt_timeout=60, timeout=0.05)

    began = time.monotonic()
    with pytest.raises(NameNotFound, match=r"no answer in 0\.05 s"):
        resolver.resolve("web.test")
    assert time.monotonic() - began < 10


def test_the_system_has_nameservers(monkeypatch: pytest.MonkeyPatch, server: DnsServer) -> None:
    import dns.resolver

    system = dns.resolver.Resolver(configure=False)
    system.nameservers = [server.host]
    monkeypatch.setattr(dns.resolver, "default_resolver", system)
    server.set("web.test", "SRV", "1 1 80 a.test.")

    resolver = SrvResolver(port=server.port, attempt_timeout=10, timeout=20)

    assert resolver.resolve("web.test") == AddressGroup.of(("a.test", 80))


def test_without_dnspython_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "dns"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "geventpool.discovery._srv_wire")
    monkeypatch.setitem(sys.modules, "dns", None)

    with pytest.raises(ImportError, match=r"pip install geventpool\[dns\]"):
        SrvResolver(nameservers=["127.0.0.1"])


@pytest.mark.parametrize("name", ["a..b", "x" * 64])
def test_what_cannot_be_a_dns_name_is_a_value_error(server: DnsServer, name: str) -> None:
    with pytest.raises(ValueError, match="is no DNS name"):
        srv(server).resolve(name)


# Time to live


def test_an_answer_is_fresh_for_its_own_time_to_live(server: DnsServer, clock: FakeClock) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.", ttl=20)
    server.set("a.test", "A", "10.0.0.1", ttl=7)
    resolver = srv(server, clock=clock)
    found = resolver.resolve("web.test")
    clock.advance(6.9)

    assert resolver.resolve("web.test") is found
    gevent.idle()
    assert len(server.queries) == 1  # the address in it is good for 7 s
    clock.advance(0.2)
    resolver.resolve("web.test")
    until(lambda: not resolver._lookups.running)
    assert len(server.queries) == 2


def test_an_answer_that_may_not_be_kept_is_kept_for_min_ttl(
    server: DnsServer, clock: FakeClock
) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.", ttl=0)
    resolver = srv(server, clock=clock, min_ttl=2.0)
    resolver.resolve("web.test")
    clock.advance(1.9)
    resolver.resolve("web.test")
    gevent.idle()

    assert len(server.queries) == 1
    clock.advance(0.2)
    resolver.resolve("web.test")
    until(lambda: not resolver._lookups.running)
    assert len(server.queries) == 2


def test_the_ttl_of_a_dns_resolver_may_be_set_later(clock: FakeClock) -> None:
    book = Book(web=["10.0.0.1"])
    resolver = DnsResolver(resolver=book, ttl=30, clock=clock)
    resolver.ttl = 5
    resolver.resolve("web:80")
    clock.advance(5.1)
    resolver.resolve("web:80")
    until(lambda: not resolver._lookups.running)

    assert len(book.asked) == 2
    assert resolver.ttl == 5
    with pytest.raises(ValueError, match="ttl"):
        resolver.ttl = -1


def test_with_a_time_to_live_of_0_only_those_who_ask_at_once_share_an_answer() -> None:
    book = Book(web=["10.0.0.1"])
    resolver = DnsResolver(resolver=book, ttl=0)
    for round in 1, 2, 3:
        callers = [gevent.spawn(resolver.resolve, "web:80") for _ in range(10)]
        assert {c.get(timeout=10).addresses for c in callers} == {group("10.0.0.1")}
        assert len(book.asked) == round
    book.hosts["web"] = OSError("away")

    assert resolver.resolve("web:80").addresses == group("10.0.0.1")


# What every caller has in common


def test_many_callers_at_once_cause_one_look_up(server: DnsServer, ares: Any) -> None:
    server.set("web.test", "A", "10.0.0.1", ttl=0)
    resolver = DnsResolver(resolver=ares, family=socket.AF_INET)
    callers = [gevent.spawn(resolver.resolve, "web.test:80") for _ in range(100)]

    found = {caller.get(timeout=10) for caller in callers}

    assert {each.addresses for each in found} == {group("10.0.0.1")}
    assert server.count("web.test") == 1


def test_many_callers_at_once_share_a_failure() -> None:
    book = Book(web=socket.gaierror(socket.EAI_AGAIN, "try again"))
    resolver = DnsResolver(resolver=book)
    callers = [gevent.spawn(outcome, resolver.resolve, "web:80") for _ in range(100)]

    errors = [caller.get(timeout=10) for caller in callers]

    assert book.asked == ["web"]
    assert {type(error) for error in errors} == {NameNotFound}
    assert len({id(error) for error in errors}) == 100  # each has a traceback of its own


@pytest.mark.parametrize("how", ["kill", "Timeout", "Timeout with an OSError"])
def test_a_caller_that_gives_up_takes_the_look_up_from_no_other(how: str) -> None:
    book = Book(web=["10.0.0.1"])
    book.free.clear()
    resolver = DnsResolver(resolver=book)

    def give_up() -> Any:
        error = OSError("mine") if how.endswith("OSError") else None
        try:
            with gevent.Timeout(0.001 if how != "kill" else None, error):
                return resolver.resolve("web:80")
        except (OSError, gevent.Timeout) as raised:
            return raised

    first = spawn(give_up)  # the one who causes the look-up
    second = spawn(resolver.resolve, "web:80")
    book.someone.wait(10)
    if how == "kill":
        first.kill()
    given_up = first.get(timeout=10)
    book.free.set()

    expected = {"kill": gevent.GreenletExit, "Timeout": gevent.Timeout}.get(how, OSError)
    assert type(given_up) is expected
    assert second.get(timeout=10).addresses == group("10.0.0.1")
    assert resolver.resolve("web:80") is second.value
    assert book.asked == ["web"]


def test_what_the_only_caller_gave_up_on_is_known_to_the_next() -> None:
    book = Book(web=["10.0.0.1"])
    book.free.clear()
    resolver = DnsResolver(resolver=book)
    only = spawn(resolver.resolve, "web:80")
    book.someone.wait(10)
    only.kill()
    book.free.set()

    assert resolver.resolve("web:80").addresses == group("10.0.0.1")
    assert book.asked == ["web"]


def test_a_killed_look_up_is_begun_again_by_those_who_wait() -> None:
    book = Book(web=["10.0.0.1"])
    book.free.clear()
    resolver = DnsResolver(resolver=book)
    callers = [spawn(resolver.resolve, "web:80") for _ in range(3)]
    book.someone.wait(10)
    (look_up,) = resolver._lookups.running.values()
    look_up.kill()
    gevent.sleep(0)
    assert resolver._lookups.running
    book.free.set()

    assert [c.get(timeout=10).addresses for c in callers] == [group("10.0.0.1")] * 3
    assert book.asked == ["web"]  # what the system was asked goes on, in its thread


class Strike:
    """In its ``with``, *fall* is called when a greenlet of *victims* is about to switch to the hub
    for the n-th time."""

    def __init__(self, fall: Callable[[], object], nth: int) -> None:
        self.fall = fall
        self.nth = nth
        self.switches = 0
        self.victims: Callable[[], Container[Any]] = tuple

    def __enter__(self) -> Strike:
        hub_class: Any = type(gevent.get_hub())
        original = hub_class.switch

        def switch(hub: Any) -> Any:
            if gevent.getcurrent() in self.victims():
                self.switches += 1
                if self.switches == self.nth:
                    self.fall()
            return original(hub)

        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(hub_class, "switch", switch)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._patch.undo()


def kill_soon() -> None:
    gevent.getcurrent().kill(block=False)  # type: ignore[attr-defined]


FALLS = {
    "GreenletExit": raising(gevent.GreenletExit),
    "kill": kill_soon,
    "Timeout": raising(gevent.Timeout),
    "KeyboardInterrupt": raising(KeyboardInterrupt),
}


@pytest.mark.parametrize("fall", FALLS.values(), ids=FALLS)
@pytest.mark.parametrize("is_stale", [False, True])
def test_a_caller_struck_at_any_switch_takes_the_answer_from_no_other(
    server: DnsServer, clock: FakeClock, fall: Any, is_stale: bool
) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.")
    nth = 0
    while True:
        nth += 1
        resolver = srv(server, clock=clock)
        if is_stale:
            resolver.resolve("web.test")
            clock.advance(100)
        with Strike(fall, nth) as strike:
            first = gevent.spawn(outcome, resolver.resolve, "web.test")
            strike.victims = partial(tuple, [first])
            others = [gevent.spawn(resolver.resolve, "web.test") for _ in range(3)]
            struck = first.get(timeout=10)
            found = [each.get(timeout=10) for each in others]
        assert found == [AddressGroup.of(("a.test", 80))] * 3
        assert resolver.resolve("web.test") is found[0]
        assert not resolver._lookups.running
        if strike.switches < nth:
            break
        assert type(struck) in (gevent.GreenletExit, gevent.Timeout, KeyboardInterrupt)

    assert nth > 1


@pytest.mark.parametrize("fall", [FALLS["GreenletExit"], kill_soon], ids=["GreenletExit", "kill"])
@pytest.mark.parametrize("is_stale", [False, True])
def test_a_look_up_killed_at_any_switch_is_begun_again(
    server: DnsServer, clock: FakeClock, fall: Any, is_stale: bool
) -> None:
    old, new = AddressGroup.of(("old.test", 80)), AddressGroup.of(("a.test", 80))
    server.truncate = True  # so that it goes both ways
    nth = 0
    while True:
        nth += 1
        resolver = srv(server, clock=clock)
        if is_stale:
            server.set("web.test", "SRV", "1 1 80 old.test.", ttl=30)
            resolver.resolve("web.test")
            clock.advance(31)
        server.set("web.test", "SRV", "1 1 80 a.test.", ttl=30)
        with Strike(fall, nth) as strike:
            strike.victims = lambda resolver=resolver: resolver._lookups.running.values()
            callers = [gevent.spawn(resolver.resolve, "web.test") for _ in range(3)]
            found = [each.get(timeout=10) for each in callers]
            gevent.joinall(list(resolver._lookups.running.values()), timeout=10)
        assert found == [old if is_stale else new] * 3
        resolver.resolve("web.test")
        gevent.joinall(list(resolver._lookups.running.values()), timeout=10)
        assert resolver.resolve("web.test") == new
        if strike.switches < nth:
            break

    assert nth > 3  # by UDP, by TCP


def test_a_timeout_that_the_resolver_itself_raises_is_a_failed_look_up() -> None:
    resolver = DnsResolver(resolver=Book(web=gevent.Timeout()))

    with pytest.raises(NameNotFound):
        resolver.resolve("web:80")


def test_a_resolver_that_is_not_well_is_a_failed_look_up() -> None:
    resolver = DnsResolver(resolver=Book(web=RuntimeError("broken")))

    with pytest.raises(NameNotFound, match="broken") as caught:
        resolver.resolve("web:80")
    assert isinstance(caught.value.__cause__, RuntimeError)


# Stale answers


def stale(clock: FakeClock, book: Book, **settings: Any) -> DnsResolver:
    """A resolver that has known "web" for 35 of 30 seconds."""
    resolver = DnsResolver(resolver=book, ttl=30, clock=clock, **settings)
    resolver.resolve("web:80")
    clock.advance(35)
    book.asked.clear()
    book.someone.clear()
    return resolver


def test_a_stale_answer_serves_while_one_look_up_goes_on(clock: FakeClock) -> None:
    book = Book(web=["10.0.0.1"])
    resolver = stale(clock, book)
    book.hosts["web"] = ["10.0.0.2"]
    book.free.clear()

    with gevent.Timeout(5):
        during = [resolver.resolve("web:80").addresses for _ in range(50)]
        book.someone.wait()
        during += [resolver.resolve("web:80").addresses for _ in range(50)]
    book.free.set()
    until(lambda: not resolver._lookups.running)

    assert set(during) == {group("10.0.0.1")}
    assert book.asked == ["web"]
    assert resolver.resolve("web:80").addresses == group("10.0.0.2")


def test_an_answer_twice_its_time_old_is_not_given_out_before_it_was_asked_for(
    clock: FakeClock,
) -> None:
    """Who asks every ten minutes would get the answer of ten minutes ago, every time."""
    book = Book(web=["10.0.0.1"])
    resolver = stale(clock, book)
    book.hosts["web"] = ["10.0.0.2"]
    clock.advance(30)

    assert resolver.resolve("web:80").addresses == group("10.0.0.2")


def test_a_stale_answer_serves_if_the_look_up_takes_too_long(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup_cache, "_MAX_WAIT", 0.01)
    book = Book(web=["10.0.0.1"])
    resolver = stale(clock, book, timeout=None)
    clock.advance(30)
    book.free.clear()

    with gevent.Timeout(5):
        assert resolver.resolve("web:80").addresses == group("10.0.0.1")
    monkeypatch.setattr(lookup_cache, "_MAX_WAIT", 60)
    with gevent.Timeout(5):  # the next one does not wait at all
        assert resolver.resolve("web:80").addresses == group("10.0.0.1")
    book.free.set()
    until(lambda: not resolver._lookups.running)
    assert book.asked == ["web"]


def test_a_stale_answer_outlives_a_failure_of_dns_up_to_max_stale(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    book = Book(web=["10.0.0.1"])
    resolver = stale(clock, book, max_stale=100, negative_ttl=1)
    book.hosts["web"] = socket.gaierror(socket.EAI_AGAIN, "try again")
    clock.advance(30)  # 65 s old: it has to wait for the look-up

    assert resolver.resolve("web:80").addresses == group("10.0.0.1")
    for _ in range(50):
        resolver.resolve("web:80")
    gevent.idle()
    assert book.asked == ["web"]  # and not again before negative_ttl is over

    clock.advance(1.1)
    book.free.clear()
    with gevent.Timeout(5):  # now no caller waits for that
        assert resolver.resolve("web:80").addresses == group("10.0.0.1")
    book.free.set()
    until(lambda: not resolver._lookups.running)
    assert book.asked == ["web", "web"]
    assert [r.levelname for r in caplog.records if r.name == "geventpool.resolver"] == ["WARNING"]

    clock.advance(64)  # 130.1 s: its time, and max_stale
    with pytest.raises(NameNotFound, match="try again"):
        resolver.resolve("web:80")


def test_that_there_is_no_such_name_any_more_is_believed_at_once(clock: FakeClock) -> None:
    book = Book(web=["10.0.0.1"])
    resolver = stale(clock, book)
    del book.hosts["web"]
    resolver.resolve("web:80")
    until(lambda: not resolver._lookups.running)

    with pytest.raises(NameNotFound, match="no such name"):
        resolver.resolve("web:80")


def test_after_an_outage_the_new_answer_is_fresh(clock: FakeClock) -> None:
    book = Book(web=["10.0.0.1"])
    resolver = stale(clock, book)
    book.hosts["web"] = OSError("away")
    resolver.resolve("web:80")
    until(lambda: not resolver._lookups.running)
    clock.advance(2)
    book.hosts["web"] = ["10.0.0.2"]
    resolver.resolve("web:80")
    until(lambda: not resolver._lookups.running)
    clock.advance(29)

    assert resolver.resolve("web:80").addresses == group("10.0.0.2")
    assert not resolver._lookups.running


def test_the_outage_of_a_real_server_goes_unnoticed(server: DnsServer, clock: FakeClock) -> None:
    server.set("web.test", "SRV", "1 1 80 a.test.", ttl=10)
    resolver = srv(server, clock=clock)
    resolver.resolve("web.test")
    server.stop()
    clock.advance(1000)

    assert resolver.resolve("web.test") == AddressGroup.of(("a.test", 80))
    server.start()
    server.set("web.test", "SRV", "1 1 80 b.test.", ttl=10)
    clock.advance(2)
    resolver.resolve("web.test")
    until(lambda: not resolver._lookups.running)
    assert resolver.resolve("web.test") == AddressGroup.of(("b.test", 80))


# Negative answers


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_that_nothing_was_found_is_known_for_negative_ttl(clock: FakeClock, code: int) -> None:
    book = Book(web=socket.gaierror(code, "not found"))
    resolver = DnsResolver(resolver=book, negative_ttl=3, clock=clock)
    for _ in range(10):
        with pytest.raises(NameNotFound) as caught:
            resolver.resolve("web:80")
    assert caught.value.tried == ("A and AAAA of web",)
    clock.advance(2.9)
    with pytest.raises(NameNotFound):
        resolver.resolve("web:80")
    assert book.asked == ["web"]
    clock.advance(0.2)
    book.hosts["web"] = ["10.0.0.1"]

    assert resolver.resolve("web:80").addresses == group("10.0.0.1")


def test_a_zone_may_shorten_the_negative_ttl(server: DnsServer, clock: FakeClock) -> None:
    server.negative_ttl = 2
    resolver = srv(server, clock=clock, negative_ttl=60)
    assert isinstance(outcome(resolver.resolve, "web.test"), NameNotFound)
    clock.advance(1.9)
    assert isinstance(outcome(resolver.resolve, "web.test"), NameNotFound)
    assert len(server.queries) == 1
    clock.advance(0.2)
    server.set("web.test", "SRV", "1 1 80 a.test.")

    assert resolver.resolve("web.test") == AddressGroup.of(("a.test", 80))


# Bounds


def test_no_more_names_are_kept_than_max_names() -> None:
    hosts = {f"h{n}": ["10.0.0.1"] for n in range(30)}
    book = Book(**hosts)
    resolver = DnsResolver(resolver=book, max_names=10)
    for host in hosts:
        resolver.resolve(f"{host}:80")
    for n in range(50):
        resolver.resolve(f"10.0.0.{n}:80")  # numeric ones count, too
        outcome(resolver.resolve, f"no{n}:80")

    assert len(resolver._entries) == 10
    assert not resolver._lookups.running


def test_the_name_asked_for_longest_ago_is_forgotten_first(clock: FakeClock) -> None:
    book = Book(**{f"h{n}": ["10.0.0.1"] for n in range(4)})
    resolver = DnsResolver(resolver=book, max_names=3, ttl=10, clock=clock)
    for n in range(3):
        resolver.resolve(f"h{n}:80")
    clock.advance(21)
    resolver.resolve("h0:80")
    book.asked.clear()
    resolver.resolve("h3:80")
    resolver.resolve("h0:80")

    assert book.asked == ["h3"]
    assert list(resolver._entries) == ["h2:80", "h0:80", "h3:80"]


# The end of a resolver, other threads, forks


def test_a_dropped_resolver_is_collected_while_a_look_up_goes_on() -> None:
    book = Book(web=["10.0.0.1"])
    book.free.clear()
    resolver = DnsResolver(resolver=book)
    caller = spawn(resolver.resolve, "web:80")
    book.someone.wait(10)
    (look_up,) = resolver._lookups.running.values()
    caller.kill()
    del caller
    gevent.sleep(0)  # the hub lets go of the killed one
    reference = weakref.ref(resolver)
    del resolver
    gc.collect()

    assert reference() is None
    book.free.set()
    look_up.join(10)
    assert look_up.ready()


def test_a_kept_error_keeps_no_frame_alive() -> None:
    class Thing:
        pass

    class Careless(Book):
        def getaddrinfo(self, *args: Any) -> list[Any]:
            thing = Thing()
            things.append(weakref.ref(thing))
            raise OSError("careless")

    things: list[Any] = []
    resolver = DnsResolver(resolver=Careless())
    assert isinstance(outcome(resolver.resolve, "web:80"), NameNotFound)
    gc.collect()

    assert [each() for each in things] == [None]


def test_threads_share_what_is_known_and_do_not_wait_for_each_others_greenlets() -> None:
    book = Book(web=["10.0.0.1"], db=["10.0.0.2"])
    resolver = DnsResolver(resolver=book)
    resolver.resolve("web:80")
    slow = Book(db=["10.0.0.2"])
    slow.free.clear()
    resolver._lookup.resolver = slow  # type: ignore[attr-defined]
    waiting = spawn(resolver.resolve, "db:80")
    slow.someone.wait(10)
    resolver._lookup.resolver = Book(db=["10.0.0.2"])  # type: ignore[attr-defined]
    found: list[Any] = []

    def in_thread() -> None:
        try:
            found.append(resolver.resolve("web:80"))
            found.append(resolver.resolve("db:80"))
            gevent.get_hub().destroy(destroy_loop=True)
        finally:
            found.append(None)

    monkey.get_original("_thread", "start_new_thread")(in_thread, ())
    until(lambda: None in found)

    assert [each.addresses for each in found[:-1]] == [group("10.0.0.1"), group("10.0.0.2")]
    assert not waiting.ready()
    slow.free.set()
    assert waiting.get(timeout=10).addresses == group("10.0.0.2")


class Child:
    """A forked child that runs *function*; ``result()`` is what that returned."""

    def __init__(self, fork: Callable[[], int], function: Callable[[], Any]) -> None:
        self._read, write = os.pipe()
        self.pid = fork()
        if not self.pid:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(30)
                try:
                    text = json.dumps(function())
                except BaseException as error:
                    text = json.dumps(repr(error))
                os.write(write, text.encode())
            finally:
                os._exit(0)
        monkey.get_original("os", "close")(write)

    def result(self) -> Any:
        text = b""
        os.set_blocking(self._read, False)
        with gevent.Timeout(40):
            while data := gevent.os.nb_read(self._read, 65536):
                text += data
        monkey.get_original("os", "close")(self._read)
        try:
            monkey.get_original("os", "waitpid")(self.pid, 0)
        except ChildProcessError:
            pass
        return json.loads(text)


class ServerProcess:
    """The DNS server in a process of its own: of one in this process, a child would have a copy."""

    def __init__(self, *records: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "support" / "dns_server.py"), *records],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.host, port = self._line().split()
        self.port = int(port)

    def tell(self, order: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(order.encode() + b"\n")
        self._process.stdin.flush()
        return self._line()

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.terminate()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()


def test_a_look_up_that_a_fork_left_behind_teaches_the_child_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have had its answer already when the fork took it for the parent's."""
    book = Book(web=["10.0.0.1"])
    book.free.clear()
    resolver = DnsResolver(resolver=book)
    caller = spawn(resolver.resolve, "web:80")
    book.someone.wait(10)
    (copy,) = resolver._lookups.running.values()
    # As in a child, where the kill has not come yet.
    monkeypatch.setattr("geventpool.discovery.dns.os.getpid", lambda: 2**30)
    resolver._forked(hub=None)
    book.hosts["web"] = ["10.0.0.2"]
    book.free.set()
    copy.join(10)

    assert copy.value is None
    assert caller.get(timeout=10).addresses == group("10.0.0.2")
    assert book.asked == ["web", "web"]


FORKS = pytest.mark.parametrize(
    "fork",
    [raw_fork, gevent.os.fork_gevent, os.fork],
    ids=["raw os.fork", "gevent.fork", "os.fork as it is in this run"],
)


@FORKS
def test_a_look_up_of_the_parent_hangs_no_child_and_is_answered_in_the_parent(
    fork: Callable[[], int],
) -> None:
    server = ServerProcess("web.test SRV 1 1 80 a.test.", "held.test SRV 1 1 80 h.test.")
    try:
        resolver = SrvResolver(
            nameservers=[server.host], port=server.port, attempt_timeout=20, timeout=30
        )
        server.tell("hold")
        waiting = spawn(resolver.resolve, "held.test")
        gevent.sleep(0)
        assert server.tell("wait") == "asked"

        def in_child() -> list[Any]:
            with gevent.Timeout(15):
                server.tell("release")
                found = [list(resolver.resolve(n)) for n in ("held.test", "web.test")]
                return [*found, list(waiting.get())]

        in_child_found = Child(fork, in_child).result()

        assert in_child_found == [[["h.test", 80]], [["a.test", 80]], [["h.test", 80]]]
        assert waiting.get(timeout=15) == AddressGroup.of(("h.test", 80))
    finally:
        server.stop()


@FORKS
def test_a_child_can_look_up_names_with_threads_that_the_parent_had(
    fork: Callable[[], int],
) -> None:
    resolver = DnsResolver(ttl=0)
    resolver.resolve("localhost:80")  # in a thread, which a child does not have

    def in_child() -> Any:
        with gevent.Timeout(15):
            return list(resolver.resolve("localhost:81"))

    assert ["127.0.0.1", 81] in Child(fork, in_child).result()


# Arguments


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"port": 0}, ValueError, "port"),
        ({"port": "80"}, TypeError, "port"),
        ({"ttl": -1}, ValueError, "ttl"),
        ({"ttl": None}, TypeError, "ttl"),
        ({"negative_ttl": float("nan")}, ValueError, "negative_ttl"),
        ({"max_stale": "1"}, TypeError, "max_stale"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"max_names": 0}, ValueError, "max_names"),
        ({"max_names": 1.5}, TypeError, "max_names"),
        ({"family": 99}, ValueError, "family"),
        ({"resolver": "127.0.0.1"}, TypeError, "resolver"),
    ],
)
def test_a_bad_argument_of_a_dns_resolver_is_named(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=f"^{named} must be"):
        DnsResolver(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"nameservers": "127.0.0.1"}, TypeError, "nameservers"),
        ({"nameservers": []}, ValueError, "nameservers"),
        ({"nameservers": ["localhost"]}, ValueError, "nameservers"),
        ({"nameservers": [53]}, TypeError, "nameservers"),
        ({"port": 70000}, ValueError, "port"),
        ({"min_ttl": -1}, ValueError, "min_ttl"),
        ({"attempt_timeout": 0}, ValueError, "attempt_timeout"),
    ],
)
def test_a_bad_argument_of_an_srv_resolver_is_named(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=f"^{named} must be"):
        SrvResolver(**{"nameservers": ["127.0.0.1"], **settings})


@pytest.mark.parametrize("name", [None, 80, ("web", 80), ["web"], b"web:80"])
def test_a_name_that_is_no_string_is_a_type_error(server: DnsServer, name: Any) -> None:
    for resolver in DnsResolver(resolver=Book()), srv(server):
        with pytest.raises(TypeError, match="^name must be a string"):
            resolver.resolve(name)


def test_a_resolver_says_what_it_is(server: DnsServer) -> None:
    resolver = DnsResolver(resolver=Book(web=["10.0.0.1"]))
    resolver.resolve("web:80")

    assert repr(resolver) == "<DnsResolver A and AAAA, 1 names known>"
    assert repr(srv(server)) == f"<SrvResolver SRV at {server.host}:{server.port}, 0 names known>"
