"""What a manager makes of its resolver: one of a program's own may do anything, and a name is asked
anew when none of its addresses is of use."""

from __future__ import annotations

import logging
import time
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import CachingResolver, DnsResolver, SrvResolver
from geventpool.addresses import AddressGroup
from geventpool.errors import ConnectError, MultiConnectFailure, NameNotFound
from geventpool.manager import AddressGroupMap, ConnectionManager
from support.dns_server import DnsServer, ares_of
from support.managers import Hosts, group


class Catalog:
    """A resolver of a program's own; *answers* has what it says of a name, or raises."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def resolve(self, name: str, /) -> Any:
        self.asked.append(name)
        answer = self.answers[name]
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer

    def __repr__(self) -> str:
        return "<the catalog>"


class Mute(Exception):
    """One that cannot say what it is about."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


class MuteLookupError(Mute, LookupError):
    pass


def echo(manager: ConnectionManager, name: Any) -> None:
    with manager.connection(name) as sock:
        sock.sendall(b"ping")
        assert sock.recv(4) == b"ping"


def until(condition: Any, seconds: float = 20.0) -> None:
    with gevent.Timeout(seconds):
        while not condition():
            gevent.sleep(0.01)


def times_out() -> Any:
    with gevent.Timeout(0.01):
        gevent.sleep(10)


# Resolvers of a program's own


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "'pay': <the catalog> returned None, no AddressGroup"),
        (["10.0.0.1:80"], "'pay': <the catalog> returned ['10.0.0.1:80'], no AddressGroup"),
        (ValueError("no JSON"), "'pay': <the catalog> raised ValueError: no JSON"),
        (RuntimeError("broken"), "'pay': <the catalog> raised RuntimeError: broken"),
        (OSError("no route"), "'pay': <the catalog> raised OSError: no route"),
        (Mute("x"), "'pay': <the catalog> raised Mute: <Mute without a text>"),
        (times_out, "'pay': <the catalog> raised a Timeout of its own: 0.01 seconds"),
    ],
)
def test_what_an_own_resolver_does_wrong_is_an_error_that_names_it(
    manage: Any, answer: Any, said: str
) -> None:
    manager = manage(Catalog(pay=answer))
    with pytest.raises(ConnectError) as caught:
        manager.get_connection("pay")
    assert str(caught.value) == said
    if isinstance(answer, BaseException):
        assert caught.value.__cause__ is answer
    with pytest.raises(NameNotFound, match="'other'"):
        manager.get_connection("other")


def test_a_resolver_may_raise_what_has_no_text(manage: Any) -> None:
    manager = manage(Catalog(pay=MuteLookupError("x")))
    with pytest.raises(NameNotFound, match="'pay' was not found: <MuteLookupError>"):
        manager.get_connection("pay")


def test_what_is_missing_from_a_map_may_fail_in_any_way_too(manage: Any) -> None:
    catalog = Catalog(pay=times_out)
    manager = manage(AddressGroupMap({}, catalog.resolve))
    with pytest.raises(ConnectError, match="a Timeout of its own"):
        manager.get_connection("pay")


def test_the_timeout_of_a_caller_is_its_own_whatever_its_resolver_does(manage: Any) -> None:
    never = Event()
    manager = manage(Catalog(pay=never.wait))
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.02) as mine:
        manager.get_connection("pay")
    assert caught.value is mine


def test_a_name_that_hangs_is_given_up_on_in_time_and_the_others_are_watched_still(
    hosts: Hosts, manage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, other = hosts.servers(3)
    never = Event()
    catalog = Catalog(pay=group(old), hung=group(other))
    manager = manage(catalog, timeout=0.5, watch_interval=0.01, watch_hold=0.05)
    for name in ("hung", "pay"):
        echo(manager, name)
    catalog.answers["hung"] = never.wait
    until(lambda: catalog.asked[-1] == "hung")

    said = r"'hung': not resolved after 0\.(499|5\d\d) s by <the cat"  # libuv may be early by 1 ms
    with pytest.raises(ConnectError, match=said):
        manager.get_connection("hung")
    catalog.answers["pay"] = group(new)
    until(lambda: manager.stats().closed and not old.open)  # found out by the watcher
    (line,) = (r.getMessage() for r in caplog.records if "not answered" in r.getMessage())
    assert line.startswith("'hung' is watched, and <the catalog> has not answered for 1.0 s")
    never.set()


# Asked anew


def test_a_name_whose_addresses_all_fail_is_asked_anew_in_the_same_call(
    hosts: Hosts, manage: Any
) -> None:
    old, new = hosts.servers(2)
    catalog = Catalog(pay=group(old))
    resolver = CachingResolver(catalog, ttl=3600.0)
    manager = manage(resolver, {"alias": "pay"})
    echo(manager, "alias")
    old.stop()
    catalog.answers["pay"] = group(new)
    resolver._entries["pay"].stored_at -= 1.0  # it is a second old

    echo(manager, "alias")
    assert new.opened == 1
    assert catalog.asked == ["pay", "pay"]


def test_it_is_asked_anew_once_a_second_however_many_fail(hosts: Hosts, manage: Any) -> None:
    catalog = Catalog(pay=group(hosts.address(), hosts.address()))
    manager = manage(CachingResolver(catalog, ttl=3600.0))
    began, calls = time.monotonic(), 0
    while time.monotonic() - began < 2.5:
        with pytest.raises(MultiConnectFailure):
            manager.get_connection("pay")
        calls += 1
        gevent.sleep(0.005)
    assert calls > 50
    assert len(catalog.asked) <= 4


def test_a_resolver_that_does_not_answer_delays_one_caller_for_a_second(
    hosts: Hosts, manage: Any
) -> None:
    never = Event()
    catalog = Catalog(pay=group(hosts.address()))
    resolver = CachingResolver(catalog, ttl=3600.0)
    manager = manage(resolver)
    manager.get_all_addrs("pay")
    resolver._entries["pay"].stored_at -= 1.0
    catalog.answers["pay"] = never.wait

    def seconds() -> float:
        began = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            manager.get_connection("pay")
        return time.monotonic() - began

    first = gevent.spawn(seconds)
    until(lambda: len(catalog.asked) == 2)
    assert all(seconds() < 0.5 for _ in range(10))
    assert 0.9 < first.get(timeout=10) < 3.0
    never.set()


@pytest.mark.parametrize("kind", ["DnsResolver", "SrvResolver"])
def test_a_service_that_has_moved_is_served_at_once_though_its_answer_is_fresh(
    hosts: Hosts, manage: Any, kind: str
) -> None:
    old, new = hosts.servers(2)
    with DnsServer() as server:
        resolver: Any
        if kind == "DnsResolver":
            asked = ares_of(server)
            resolver, name = DnsResolver(resolver=asked, ttl=3600.0), f"web.test:{old.address[1]}"
        else:
            resolver = SrvResolver(nameservers=[server.host], port=server.port, min_ttl=3600.0)
            name = "_web._tcp.test"
        port = old.address[1]
        new.stop()
        new.address = (new.address[0], port)
        new.start()

        def lead_to(host: str) -> None:
            server.set("web.test", "A", host, ttl=0)  # ares keeps answers, too
            server.set("_web._tcp.test", "SRV", f"0 1 {port} web.test.", ttl=0)

        lead_to(old.address[0])
        manager = manage(resolver)
        echo(manager, name)
        lead_to(new.address[0])
        old.stop()
        with gevent.Timeout(3.0):
            while True:
                try:
                    echo(manager, name)
                    break
                except OSError:
                    gevent.sleep(0.01)
        if kind == "DnsResolver":
            asked.close()


def test_a_refresh_by_hand_gives_the_new_addresses(hosts: Hosts, manage: Any) -> None:
    catalog = Catalog(pay=AddressGroup.of("10.0.0.1:80"))
    resolver = CachingResolver(catalog, ttl=3600.0)
    manager = manage(resolver)
    assert list(map(str, manager.refresh("pay"))) == ["10.0.0.1:80"]
    catalog.answers["pay"] = AddressGroup.of("10.0.0.2:80")
    assert list(map(str, manager.get_all_addrs("pay"))) == ["10.0.0.1:80"]
    resolver._entries["pay"].stored_at -= 1.0
    assert list(map(str, manager.refresh("pay"))) == ["10.0.0.2:80"]
    assert list(map(str, manager.get_all_addrs("pay"))) == ["10.0.0.2:80"]
    with pytest.raises(NameNotFound):
        manager.refresh("other")


def test_what_a_program_has_said_itself_is_not_asked_anew(hosts: Hosts, manage: Any) -> None:
    manager = manage({"pay": group(hosts.address())})
    for target in ("pay", group(hosts.address()), hosts.address()):
        with pytest.raises(ConnectionRefusedError):
            manager.get_connection(target)
    assert len(manager.refresh("pay")) == 1


def test_no_log_line_of_a_watcher_names_a_healthy_resolver(
    hosts: Hosts, manage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventpool")
    server = hosts.server()
    manager = manage(Catalog(pay=group(server)), watch_interval=0.01)
    echo(manager, "pay")
    gevent.sleep(0.1)
    assert caplog.records == []
