"""A program's own resolver, kept by a CachingResolver: whatever it does, callers get an answer."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import dns.message
import dns.rrset
import gevent
import pytest
from gevent import subprocess
from gevent.event import Event

from geventpool import CachingResolver
from geventpool.addresses import AddressGroup, resolve_by
from geventpool.discovery import DnsResolver, FileResolver, SrvResolver
from geventpool.discovery._srv_wire import SrvLookup
from geventpool.errors import ConnectError, NameNotFound
from geventpool.testing import FakeClock
from support import ROOT
from support.dns_server import DnsServer

GROUP = AddressGroup.of("10.0.0.1:80", "10.0.0.2:80")
OTHER = AddressGroup.of("10.0.0.3:80")


class Catalog:
    """A service that knows names; *answer* is what it says, or raises."""

    def __init__(self, answer: Any = GROUP) -> None:
        self.answer = answer
        self.asked = 0

    def resolve(self, name: str, /) -> Any:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def __repr__(self) -> str:
        return "<the catalog>"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


def until(condition: Callable[[], object]) -> None:
    with gevent.Timeout(10):
        while not condition():
            gevent.sleep(0.002)


@pytest.mark.parametrize("kind", ["an object", "a function"])
def test_it_is_asked_once_for_as_long_as_its_answer_is_good_for(clock: Any, kind: str) -> None:
    catalog = Catalog()
    asked = catalog if kind == "an object" else catalog.resolve
    resolver = CachingResolver(asked, ttl=5.0, max_stale=0.0, clock=clock)

    callers = [gevent.spawn(resolver.resolve, "pay") for _ in range(10)]
    assert [each.get(timeout=10) for each in callers] == [GROUP] * 10
    clock.advance(4.9)
    assert resolver.resolve("pay") is GROUP
    assert catalog.asked == 1
    clock.advance(0.2)
    catalog.answer = [[(1, "10.0.0.3:80")]]  # the tiers of a group do as well
    assert resolver.resolve("pay") == OTHER
    assert catalog.asked == 2


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "<the catalog> returned None, no AddressGroup"),
        ("10.0.0.1:80", "<the catalog> returned '10.0.0.1:80', no AddressGroup"),
        ([1, 2], "<the catalog> raised TypeError"),
        (ValueError("no JSON"), "<the catalog> raised ValueError: no JSON"),
        (ConnectionRefusedError("refused"), "<the catalog> raised ConnectionRefusedError: refused"),
        (gevent.Timeout(3), "a Timeout of its own: 3 seconds"),
    ],
)
def test_whatever_it_does_is_a_failed_look_up_that_names_it(answer: Any, why: str) -> None:
    catalog = Catalog(answer)
    resolver = CachingResolver(catalog)
    with pytest.raises(NameNotFound) as caught:
        resolver.resolve("pay")
    assert why in str(caught.value)
    assert "<the catalog>" in str(caught.value)
    assert "'pay'" in str(caught.value)


@pytest.mark.parametrize("answer", [None, ValueError("no JSON"), gevent.Timeout(3)])
def test_the_last_answer_outlives_a_service_that_is_not_well(clock: Any, answer: Any) -> None:
    catalog = Catalog()
    resolver = CachingResolver(catalog, ttl=1.0, max_stale=60.0, clock=clock)
    resolver.resolve("pay")
    catalog.answer = answer
    clock.advance(50)
    assert resolver.resolve("pay") is GROUP
    clock.advance(12)
    with pytest.raises(NameNotFound):
        resolver.resolve("pay")


def test_a_service_that_hangs_is_given_up_on_and_the_error_says_so() -> None:
    never = Event()
    resolver = CachingResolver(lambda name: never.wait(), timeout=0.05)
    with pytest.raises(NameNotFound, match=r"no answer in 0\.05 s"):
        resolver.resolve("pay")


@pytest.mark.parametrize("answer", [NameNotFound("gone"), KeyError("gone")])
@pytest.mark.parametrize("stale_if_absent", [False, True])
def test_a_name_that_is_gone_is_gone_unless_it_is_asked_to_serve_on(
    clock: Any, stale_if_absent: bool, answer: Exception
) -> None:
    catalog = Catalog()
    resolver = CachingResolver(
        catalog, ttl=1.0, max_stale=60.0, stale_if_absent=stale_if_absent, clock=clock
    )
    resolver.resolve("pay")
    catalog.answer = answer
    clock.advance(50)
    if stale_if_absent:
        assert resolver.resolve("pay") is GROUP
        clock.advance(11.1)
    with pytest.raises(NameNotFound, match="gone"):
        resolver.resolve("pay")


def test_an_nxdomain_of_a_moment_keeps_the_last_addresses_if_asked_to(clock: Any) -> None:
    with DnsServer() as server:
        server.set("web.test", "SRV", "1 1 80 a.test.", ttl=1)
        resolver = SrvResolver(
            nameservers=[server.host], port=server.port, stale_if_absent=True, clock=clock
        )
        found = resolver.resolve("web.test")
        server.remove("web.test")
        clock.advance(10)
        assert resolver.resolve("web.test") == found
        server.set("web.test", "SRV", "1 1 80 b.test.", ttl=1)
        clock.advance(10)
        assert resolver.refresh("web.test") == AddressGroup.of(("b.test", 80))
    assert DnsResolver(stale_if_absent=True).stale_if_absent


def test_a_refresh_asks_anew_but_not_within_a_second_of_the_last_answer(clock: Any) -> None:
    catalog = Catalog()
    resolver = CachingResolver(catalog, ttl=600.0, clock=clock)
    resolver.resolve("pay")
    catalog.answer = OTHER
    for _ in range(10):
        assert resolver.refresh("pay") is GROUP
    assert catalog.asked == 1
    clock.advance(1.0)
    for _ in range(10):
        assert resolver.refresh("pay") is OTHER
    assert resolver.resolve("pay") is OTHER
    assert catalog.asked == 2
    clock.advance(1.0)
    callers = [gevent.spawn(resolver.refresh, "pay") for _ in range(10)]
    assert [each.get(timeout=10) for each in callers] == [OTHER] * 10
    assert catalog.asked == 3
    catalog.answer = OSError("down")
    clock.advance(1.0)
    assert resolver.refresh("pay") is OTHER  # which is not known to be wrong


def test_a_file_may_be_read_again_at_once(tmp_path: Any, clock: Any) -> None:
    path = tmp_path / "names.json"
    path.write_text('{"pay": ["10.0.0.1:80"]}')
    resolver = FileResolver(path, interval=3600, clock=clock)
    path.write_text('{"pay": ["10.0.0.3:80", "10.0.0.3:81"]}')
    assert len(resolver.resolve("pay")) == 1
    assert len(resolver.refresh("pay")) == 2
    assert len(resolver.resolve("pay")) == 2


class BadRepr(Catalog):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_a_resolver_without_a_repr_is_named_by_its_class() -> None:
    with pytest.raises(ConnectError, match="'pay': <BadRepr> returned None"):
        resolve_by(BadRepr(None), "pay")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resolve": 3}, TypeError, "resolve must be callable"),
        ({"ttl": -1}, ValueError, "ttl must be"),
        ({"max_stale": None}, TypeError, "max_stale must be"),
    ],
)
def test_a_bad_argument_is_named(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        CachingResolver(**{"resolve": print, **arguments})
    resolver = CachingResolver(print)
    resolver.ttl = 3.0
    assert resolver.ttl == 3.0
    with pytest.raises(ValueError, match="ttl must be"):
        resolver.ttl = -1


# Dead names


class DeadNames:
    """A resolver of gevent for which each host with "dead" in its name takes for ever."""

    def __init__(self) -> None:
        self.running = self.most = self.asked = 0
        self.never = Event()

    def getaddrinfo(self, host: str, port: int, family: int, kind: int) -> list[Any]:
        self.asked += 1
        if "dead" in host:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                self.never.wait()
            finally:
                self.running -= 1
        return [(2, kind, 6, "", ("10.0.0.1", port))]


def test_one_dead_name_takes_one_thread_however_often_it_is_given_up_on() -> None:
    book = DeadNames()
    resolver = DnsResolver(resolver=book, timeout=0.01, negative_ttl=0.0)
    for _ in range(20):
        with pytest.raises(NameNotFound, match=r"no answer in 0\.01 s"):
            resolver.resolve("dead.test:80")
    assert (book.asked, book.running) == (1, 1)
    assert resolver.resolve("web.test:80") == AddressGroup.of("10.0.0.1:80")
    book.never.set()
    until(lambda: not book.running)
    assert resolver.resolve("dead.test:80") == AddressGroup.of("10.0.0.1:80")


class SilentOfTheDead(DnsServer):
    """Has no answer for a name with "dead" in it."""

    def _reply(self, query: dns.message.Message) -> dns.message.Message | None:
        return None if "dead" in str(query.question[0].name) else super()._reply(query)


WITH_ARES = """
import gevent
from geventpool import DnsResolver
resolver = DnsResolver(timeout=60.0)
dead = [gevent.spawn(resolver.resolve, f"dead{n}.test:80") for n in range(50)]
gevent.sleep(0.1)
hub = gevent.get_hub()
print(type(hub.resolver).__module__, *resolver.resolve("web.test:80"), hub.threadpool.size)
print(sum(each.ready() for each in dead))
gevent.killall(dead)
"""


def test_with_the_resolver_ares_fifty_dead_names_hold_up_no_other() -> None:
    with SilentOfTheDead() as server:
        server.set("web.test", "A", "10.0.0.1")
        settings = {
            "GEVENT_RESOLVER": "ares",
            "GEVENTARES_SERVERS": server.host,
            "GEVENTARES_UDP_PORT": str(server.port),
            "GEVENTARES_TIMEOUT": "60",
        }
        child = subprocess.Popen(
            [sys.executable, "-c", WITH_ARES],
            env={**os.environ, **settings},
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        with gevent.Timeout(30):
            said, _ = child.communicate()
    assert said.decode().split() == ["gevent.resolver.ares", "10.0.0.1:80", "0", "0"]


# Answers of a thousand records


def srv_reply(count: int) -> Any:
    reply = dns.message.make_response(dns.message.make_query("all.test", "SRV"))
    records = [f"1 1 7000 h{n}.test." for n in range(count)]
    reply.answer = [dns.rrset.from_text("all.test.", 1, "IN", "SRV", *records)]
    reply.additional = [
        dns.rrset.from_text(f"h{n}.test.", 1, "IN", "A", f"127.1.{n // 250}.{n % 250 + 1}")
        for n in range(count)
    ]
    return dns.message.from_wire(reply.to_wire(max_size=65535))


def test_an_srv_answer_takes_time_in_proportion_to_its_records() -> None:
    lookup: Any = SrvLookup([], False, 1.0, 1.0)

    def seconds(count: int) -> float:
        reply, best = srv_reply(count), math.inf
        for _ in range(3):
            began = time.process_time()
            assert len(lookup._read(reply, "all.test").group) == count
            best = min(best, time.process_time() - began)
        return best

    assert seconds(1000) <= 8 * seconds(250)  # 4 if it is so, 16 if each looks at all
