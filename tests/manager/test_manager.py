"""A ConnectionManager promptly gives an open connection to a server that is well, or an OSError.

The hosts are loopback addresses: all of 127.0.0.0/8 is this machine.  Tests whose name ends in a
comment "was: ..." keep a fault of the manager that this one descends from out.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import resource
import signal
import ssl
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gevent
import gevent.event
import gevent.os
import gevent.socket
import gevent.ssl
import pytest
from gevent.monkey import get_original

from geventpool._scheduler.limit import Limit
from geventpool.addresses import Address, AddressGroup
from geventpool.backoff import Backoff
from geventpool.discovery import StaticResolver
from geventpool.errors import (
    ConnectError,
    MarkedDownError,
    MultiConnectFailure,
    NameNotFound,
    NotInUse,
    OutOfSockets,
    PoolClosed,
    PoolTimeout,
    Verdict,
    WrongHub,
)
from geventpool.events import PoolListener
from geventpool.manager import (
    AddressGroupMap,
    ConnectInfo,
    ConnectionManager,
    HealthPolicy,
    ServerModelDirectory,
)
from geventpool.manager.address_walk import _FRESH as FRESH
from geventpool.pools import EndpointPool
from geventpool.sockets import MonitoredSocket, SocketFactory
from support import named
from support.certificates import make_certificates
from support.managers import Hosts, group
from support.servers import EchoServer, IdServer, ask
from support.strikes import STRIKES, Stage
from support.waiting import until

#: Marked down, nothing comes back within a test.
LONG = HealthPolicy(failures=3, backoff=Backoff(first=600.0, longest=600.0, jitter=0))
#: Marked down at the first failure, for a moment.
SHORT = HealthPolicy(failures=1, backoff=Backoff(first=0.05, longest=0.05), slow_start=0)


_close = get_original("os", "close")  # at once, where the patched one waits for the hub


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Those of a server named localhost, and of a client that trusts it."""
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    server = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(str(made.certificate), str(made.key))
    return server, gevent.ssl.create_default_context(cafile=str(made.authority))


@pytest.fixture
def rankings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When servers were ranked, by the time of the caller: a busy machine records it late."""
    found = []
    original = ServerModelDirectory.ranked

    def ranked(self: Any, group: Any, now: float, *others: Any) -> Any:
        found.append(now)
        return original(self, group, now, *others)

    monkeypatch.setattr(ServerModelDirectory, "ranked", ranked)
    return found


def fail(manager: ConnectionManager, target: Any, times: int = 3) -> None:
    for _ in range(times):
        with pytest.raises(OSError):
            manager.get_connection(target)


def is_down(manager: ConnectionManager, target: Any) -> bool:
    return manager.servers[getattr(target, "address", target)].state(time.monotonic()) == "down"


def echo(sock: Any, message: bytes = b"ping") -> None:
    sock.sendall(message)
    assert sock.recv(len(message)) == message


def what_is_raised(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None


def at_rest(manager: ConnectionManager) -> bool:
    stats = manager.stats()
    under_way = stats.connecting + stats.closing + stats.checking + stats.salvaging
    return not (stats.in_use + under_way + stats.waiting)


# From a name to a connection


def test_a_name_leads_to_an_open_connection(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage({"pay": [[(1, server.address)]]}, {"alias": "pay", "direct": server.address})

    for name in ("pay", "alias", "direct", server.address, "{}:{}".format(*server.address)):
        with manager.connection(name) as sock:
            echo(sock)
        sock = manager.get_connection(name)
        echo(sock)
        manager.release_connection(sock)
    with manager.connection(group(server)) as sock:
        echo(sock)
    assert server.opened == 1  # all of that is one bucket


def test_a_name_tells_its_addresses(manage: Any) -> None:
    tiers = [[(1, "10.0.0.1:80"), (0, "10.0.0.2:80")], [(5, "10.0.0.3:80")]]
    manager = manage({"pay": tiers}, {"alias": "pay"})

    expected = [Address(f"10.0.0.{n}", 80) for n in (1, 2, 3)]
    assert manager.get_all_addrs("pay") == manager.get_all_addrs("alias") == expected
    assert manager.get_addr("pay") == expected[0]


@pytest.mark.parametrize("groups", [None, {}, AddressGroupMap(), StaticResolver({})])
def test_an_unknown_name_is_not_found(manage: Any, groups: Any) -> None:  # was: AttributeError
    manager = manage(groups)
    for call in (manager.get_connection, manager.get_all_addrs, manager.get_addr):
        with pytest.raises(NameNotFound, match="'pay'") as caught:
            call("pay")
        assert caught.value.name == "pay"


def test_a_connection_is_used_again_and_says_whether_it_is_new(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage()
    for expected in (True, False, False):
        sock = manager.get_connection(server.address)
        assert isinstance(sock, MonitoredSocket)
        assert sock.new_sock is expected
        manager.release_connection(sock)
    assert server.opened == 1


def test_a_map_asks_for_what_is_missing_and_keeps_the_answer(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    asked = []

    def missing(name: str) -> Any:
        asked.append(name)
        if name == "pay":
            return [[(1, server.address)]]
        raise NameNotFound(f"no {name}", name=name)

    groups = AddressGroupMap({"other": [[(1, "10.0.0.1:80")]]}, missing)
    manager = manage(groups)
    for _ in range(2):
        with manager.connection("pay") as sock:
            echo(sock)
    assert asked == ["pay"]
    assert set(groups) == {"other", "pay"}
    with pytest.raises(NameNotFound, match="no such"):
        manager.get_connection("such")
    with pytest.raises(KeyError):
        AddressGroupMap()["such"]


def test_a_name_that_changes_leads_elsewhere(hosts: Hosts, manage: Any) -> None:
    first, second = hosts.servers(2)
    groups = AddressGroupMap({"pay": group(first)})
    manager = manage(groups, {"alias": "pay"})
    with manager.connection("alias") as sock:
        assert sock.address == first.address
    groups["pay"] = group(second)
    with manager.connection("alias") as sock:
        assert sock.address == second.address


def test_a_text_that_no_resolver_knows_may_be_an_address_but_not_of_a_host(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server()
    manager = manage(AddressGroupMap({"pay": group(hosts.address())}), {"alias": "pay"})
    with manager.connection("{}:{}".format(*server.address)) as sock:
        echo(sock)
    # To ask the system about a host that the resolver does not know would be to overrule it.
    with pytest.raises(NameNotFound):
        manager.get_connection(f"localhost:{server.address[1]}")


@pytest.mark.parametrize("groups", [dict, AddressGroupMap, StaticResolver])
def test_an_alias_leads_to_a_name_or_an_address_whatever_knows_the_names(
    hosts: Hosts, manage: Any, groups: Any
) -> None:
    server = hosts.server()
    aliases = {
        "one": "pay",
        "two": "one",
        "address": server.address,
        "text": "{}:{}".format(*server.address),
    }
    manager = manage(groups({"pay": group(server)}), aliases)
    for name in ("pay", *aliases):
        with manager.connection(name) as sock:
            assert sock.address == server.address
        assert manager.get_addr(name) == server.address


def test_an_alias_is_connected_to_as_the_name_it_leads_to(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    aliases = {"alias": "pay", "of it": "alias", "own": "pay", "away": server.address}
    infos = {
        "pay": ConnectInfo(response_timeout_ms=1500, markdown=True),
        "own": ConnectInfo(response_timeout_ms=2500),
    }
    manager = manage({"pay": group(server)}, aliases, connect_infos=infos)
    for name in ("pay", "alias", "of it"):
        with pytest.raises(MarkedDownError, match=f"{name} is marked down"):
            manager.get_connection(name)
    for name, timeout in (("own", 2.5), ("away", 30.0)):
        with manager.connection(name) as sock:
            assert sock.gettimeout() == timeout


def test_aliases_of_a_resolver_may_not_go_round() -> None:
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        ConnectionManager(AddressGroupMap(), {"a": "b", "b": "a"})


# The order, and what is tried


def test_addresses_get_connections_in_proportion_to_their_weights(  # was: light ones first
    hosts: Hosts, manage: Any
) -> None:
    heavy, light, never = hosts.servers(3)
    tier = [(9, heavy.address), (1, light.address), (0, never.address)]
    manager = manage({"pay": [tier]}, health=HealthPolicy(slow_start=0))
    count: Counter[Any] = Counter()
    for _ in range(4000):
        with manager.connection("pay") as sock:
            count[sock.address] += 1

    assert abs(count[heavy.address] - 3600) < 130  # 6.8 times the standard deviation
    assert count[light.address] == 4000 - count[heavy.address]
    assert never.opened == 0


def test_a_tier_is_for_when_all_of_the_one_before_is_of_no_use(hosts: Hosts, manage: Any) -> None:
    first, second, fallback = hosts.servers(3)
    tiers = [[(1, first.address), (1, second.address)], [(1, fallback.address)]]
    manager = manage({"pay": tiers}, health=LONG)
    for stopped in (first, second):
        for _ in range(20):
            with manager.connection("pay") as sock:
                assert sock.address != fallback.address
        stopped.stop()
    with manager.connection("pay") as sock:
        assert sock.address == fallback.address


def test_what_goes_down_while_another_is_tried_is_passed_over(hosts: Hosts, manage: Any) -> None:
    first, second, third = hosts.servers(3)
    tier = [(1e12, first.address), (1, second.address), (0, third.address)]  # in this order
    manager = manage({"pay": [tier]}, health=LONG)

    def sock_type(sock: MonitoredSocket) -> MonitoredSocket:
        if sock.address == first.address:
            for _ in range(3):
                manager.servers[second.address].failed(time.monotonic())
            raise OSError("no login")
        return sock

    with manager.connection("pay", sock_type=sock_type) as sock:
        assert sock.address == third.address
    assert second.opened == 0


def test_a_name_in_a_fallback_that_is_not_known_does_no_harm(  # was: all were resolved first
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server()
    manager = manage({"pay": [[(1, server.address)], [(1, "no.such.host.invalid:80")]]})
    with manager.connection("pay") as sock:
        echo(sock)


def test_the_one_address_has_its_own_error(hosts: Hosts, manage: Any) -> None:
    manager = manage()
    with pytest.raises(ConnectionRefusedError):
        manager.get_connection(hosts.address())


def test_several_addresses_have_an_error_that_has_all(hosts: Hosts, manage: Any) -> None:
    dead = [hosts.address() for _ in range(3)]
    manager = manage({"pay": group(*dead)})
    with pytest.raises(MultiConnectFailure, match="pay: no connection to any of 3") as caught:
        manager.get_connection("pay")

    errors = caught.value.errors
    assert sorted(where for where, _ in errors) == sorted(dead)
    assert all(isinstance(error, ConnectionRefusedError) for _, error in errors)
    for host, _ in dead:
        assert host in str(caught.value)


def test_each_caller_has_an_error_of_its_own(hosts: Hosts, manage: Any) -> None:
    manager, dead, caught = manage(), hosts.address(), []

    def call() -> None:
        try:
            manager.get_connection(dead)
        except OSError as error:
            caught.append(error)

    gevent.joinall([gevent.spawn(call) for _ in range(10)], raise_error=True)
    assert len(set(map(id, caught))) == 10
    assert {type(error) for error in caught} == {ConnectionRefusedError}


def test_all_are_tried_again_if_the_name_says_so(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    server.stop()
    manager = manage(
        {"pay": group(server)}, connect_infos={"pay": ConnectInfo(max_connect_retry=20)}
    )
    caller = gevent.spawn(manager.get_connection, "pay")
    until(lambda: manager.stats().dial_failed >= 2)
    server.start()
    sock = caller.get(timeout=10)
    echo(sock)
    manager.release_connection(sock)


# Time


def test_a_call_takes_no_longer_than_its_time_whatever_hangs(hosts: Hosts, manage: Any) -> None:
    silent = [hosts.silent() for _ in range(3)]
    manager = manage({"pay": group(*silent)})
    began = time.monotonic()
    with pytest.raises(MultiConnectFailure) as caught:
        manager.get_connection("pay", timeout=0.3)

    assert 0.25 < time.monotonic() - began < 5
    assert len(caught.value.errors) == 3


def test_a_resolver_that_hangs_takes_no_longer_than_the_time_of_the_call(manage: Any) -> None:
    class Hanging:
        def resolve(self, name: str) -> AddressGroup:
            gevent.sleep(60)
            raise AssertionError

    manager = manage(Hanging(), timeout=0.1)
    for call in (manager.get_connection, manager.get_addr):
        with pytest.raises(ConnectError, match=r"'pay': not resolved after \d\.\d{3} s"):
            call("pay")


def test_an_address_that_hangs_leaves_time_for_the_next(hosts: Hosts, manage: Any) -> None:
    silent, server = hosts.silent(), hosts.server()
    tiers = [[(1, silent)], [(1, server.address)]]
    infos = {"pay": ConnectInfo(connect_timeout_ms=100)}

    class Waits:
        in_vain = 0

        def acquire_timed_out(self, event: object) -> None:
            self.in_vain += 1

    waits = Waits()
    manager = manage({"pay": tiers}, connect_infos=infos, health=LONG, listeners=[waits])
    for waited_for in (1, 2, 3):
        began = time.monotonic()
        with manager.connection("pay") as sock:
            echo(sock)
        assert 0.08 < time.monotonic() - began < 5
        assert waits.in_vain == waited_for

    assert is_down(manager, silent)
    with manager.connection("pay") as sock:
        echo(sock)
    assert waits.in_vain == 3  # no caller waits for it any more
    assert manager.stats().timed_out == 0, "each caller was served"


@pytest.mark.slow
def test_an_address_that_hangs_does_not_take_all_the_time_there_is(
    hosts: Hosts, manage: Any
) -> None:
    silent, server = hosts.silent(), hosts.server()
    manager = manage({"pay": [[(1, silent)], [(1, server.address)]]})
    with manager.connection("pay", timeout=2.5) as sock:  # of which the first one has the half
        echo(sock)


def test_without_time_a_thousand_addresses_are_not_asked_one_by_one(
    hosts: Hosts, manage: Any, rankings: list[float]
) -> None:
    server = hosts.server()
    addresses = hosts.addresses(1000)
    down = addresses[0]
    manager = manage({"pay": group(server, *addresses)}, health=LONG)
    manager.mark_down(down)
    with pytest.raises(MultiConnectFailure) as caught:
        manager.get_connection("pay", timeout=0)
    errors = dict(caught.value.errors)
    assert len(errors) == 1001
    assert isinstance(errors.pop(Address(*down)), MarkedDownError)
    assert {type(error) for error in errors.values()} == {PoolTimeout}

    with manager.connection(server.address):
        pass
    rankings.clear()
    with manager.connection("pay", timeout=0) as sock:
        assert sock.address == server.address
    assert len(rankings) == 1
    assert manager.stats().dialed == 1


def test_of_a_thousand_dead_addresses_not_all_are_looked_at_at_each_step(
    hosts: Hosts, manage: Any, rankings: list[float]
) -> None:
    manager = manage({"pay": group(*hosts.addresses(1000))}, timeout=60)
    with pytest.raises(MultiConnectFailure) as caught:
        manager.get_connection("pay")

    assert len(caught.value.errors) == 1000
    between = [later - earlier for earlier, later in itertools.pairwise(rankings)]
    assert all(seconds >= FRESH for seconds in between)


def test_who_does_not_wait_gets_what_lies_idle_anywhere(hosts: Hosts, manage: Any) -> None:
    silent, server = hosts.silent(), hosts.server()
    manager = manage({"pay": [[(1, silent)], [(1, server.address)]]}, health=LONG)
    with pytest.raises(MultiConnectFailure):
        manager.get_connection("pay", timeout=0)
    with manager.connection(server.address) as sock:
        echo(sock)
    for _ in range(5):
        with manager.connection("pay", timeout=0) as sock:
            echo(sock)
    for patience in (0, 0.01, 0.02, 0.05):
        with pytest.raises(PoolTimeout):
            manager.get_connection(silent, timeout=patience)
    assert manager.servers[silent].last_error is None  # who hardly waits has learnt nothing


@pytest.mark.parametrize("exception", [None, OSError("mine"), TimeoutError("mine")])
def test_a_timeout_of_the_caller_is_the_callers(  # was: an outer Timeout was swallowed
    hosts: Hosts, manage: Any, exception: Exception | None
) -> None:
    silent, server = hosts.silent(), hosts.server()
    manager = manage({"pay": [[(1, silent)], [(1, server.address)]]})
    timeout = gevent.Timeout(0.05, exception)
    expected = timeout if exception is None else exception
    began = time.monotonic()
    with pytest.raises(type(expected)) as caught, timeout:
        manager.get_connection("pay")

    assert caught.value is expected
    assert time.monotonic() - began < 2.9  # what the one address would have had
    assert server.opened == 0
    assert manager.servers[silent].last_error is None  # and no server is to blame


def test_a_timeout_of_the_caller_in_the_resolver_is_the_callers(manage: Any) -> None:
    class Hanging:
        def resolve(self, name: str) -> AddressGroup:
            gevent.sleep(60)
            raise AssertionError

    manager = manage(Hanging())
    mine = gevent.Timeout(0.02)
    with pytest.raises(gevent.Timeout) as caught, mine:
        manager.get_connection("pay")
    assert caught.value is mine


def test_a_socket_has_the_timeout_asked_for_or_that_of_its_name(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    infos = {
        "quick": ConnectInfo(response_timeout_ms=1500),
        "patient": ConnectInfo(response_timeout_ms=None),
    }
    names = dict.fromkeys(["plain", *infos], group(server))
    manager = manage(names, connect_infos=infos)

    for name, expected in [("plain", 30.0), ("quick", 1.5), ("patient", None), ("plain", 30.0)]:
        with manager.connection(name) as sock:  # the same socket each time
            assert sock.gettimeout() == expected
        with manager.connection(name, read_timeout=0.25) as sock:
            assert sock.gettimeout() == 0.25
    assert server.opened == 1


# TLS


def test_ssl_true_is_verified_by_the_context_of_the_manager(  # was: UnboundLocalError
    hosts: Hosts, manage: Any, contexts: Any
) -> None:
    server = hosts.server(ssl_context=contexts[0])
    manager = manage(ssl_context=contexts[1])
    with manager.connection(server.address, ssl=True, server_hostname="localhost") as sock:
        echo(sock)
        assert sock.protected
        assert sock.version().startswith("TLS")
    with pytest.raises(ssl.SSLCertVerificationError):
        manager.get_connection(server.address, ssl=True)  # the certificate names no IP address


def test_ssl_may_be_a_context(  # was: AttributeError
    hosts: Hosts, manage: Any, contexts: Any
) -> None:
    server = hosts.server(ssl_context=contexts[0])
    manager = manage()
    for _ in range(2):
        with manager.connection(
            server.address, ssl=contexts[1], server_hostname="localhost"
        ) as sock:
            echo(sock)
    assert server.opened == 1


def test_nothing_is_silently_unverified(hosts: Hosts, manage: Any, contexts: Any) -> None:
    server = hosts.server(ssl_context=contexts[0])
    manager = manage()
    with pytest.raises(ssl.SSLCertVerificationError):
        manager.get_connection(server.address, ssl=True, server_hostname="localhost")
    with manager.connection(server.address, ssl="unverified") as sock:
        echo(sock)
    with pytest.raises(ssl.SSLCertVerificationError):
        # What lies idle was opened on other terms.
        manager.get_connection(server.address, ssl=True, server_hostname="localhost")


@pytest.mark.parametrize("tls", [None, 1, "yes", "", b"unverified"])
def test_anything_else_is_no_ssl(manage: Any, tls: Any) -> None:
    with pytest.raises(TypeError, match='ssl must be False, True, "unverified" or an SSLContext'):
        manage().get_connection("10.0.0.1:443", ssl=tls)


def test_of_what_a_resolver_found_the_host_in_the_name_must_have_the_certificate(
    hosts: Hosts, manage: Any, contexts: Any
) -> None:
    server = hosts.server(ssl_context=contexts[0])
    names = {"localhost:443": group(server), "other": group(server), "a b": group(server)}
    manager = manage(AddressGroupMap(names), ssl_context=contexts[1])
    with manager.connection("localhost:443", ssl=True) as sock:
        echo(sock)
    with pytest.raises(ssl.SSLCertVerificationError):
        manager.get_connection("other", ssl=True)
    with pytest.raises(ValueError, match="ssl needs server_hostname: 'a b'"):
        manager.get_connection("a b", ssl=True)


def test_an_alias_has_the_certificate_of_the_host_that_it_leads_to(
    hosts: Hosts, manage: Any, contexts: Any
) -> None:
    server = hosts.server(ssl_context=contexts[0])
    aliases = {"pay": "localhost:443", "wrong": "other:443", "address": server.address}
    names = {"localhost:443": group(server), "other:443": group(server)}
    manager = manage(AddressGroupMap(names), aliases, contexts[1])
    with manager.connection("pay", ssl=True) as sock:
        echo(sock)
    for name in ("wrong", "address"):  # no IP address has one
        with pytest.raises(ssl.SSLCertVerificationError):
            manager.get_connection(name, ssl=True)


def test_a_tls_1_3_connection_is_used_again_though_tickets_lie_on_it(  # was: was discarded
    hosts: Hosts, manage: Any, contexts: Any
) -> None:
    server = hosts.server(ssl_context=contexts[0])
    manager = manage(ssl_context=contexts[1])
    for use in range(3):
        with manager.connection(server.address, ssl=True, server_hostname="localhost") as sock:
            assert sock.version() == "TLSv1.3"
            if not use:
                gevent.socket.wait_read(sock.fileno(), timeout=30)  # nothing reads them
    assert server.opened == 1


# What is pooled


class Line:
    """A protocol on a socket, with a greeting and a sign of life of its own."""

    idle_timeout = 0.05
    pinged = 0

    def __init__(self, sock: MonitoredSocket) -> None:
        self.sock = sock
        assert ask(sock, "hello") == "hello"

    def __len__(self) -> int:
        return 0  # what is pooled need not be true

    def close(self) -> None:
        self.sock.close()


class Pinged(Line):
    idle_timeout = 60.0  # type: ignore[assignment]

    def keepalive(self) -> None:
        type(self).pinged += 1
        assert ask(self.sock, "ping") == "ping"


def test_what_sock_type_makes_of_a_socket_is_what_is_pooled(hosts: Hosts, manage: Any) -> None:
    server = hosts.server(IdServer)
    manager = manage()
    with manager.connection(server.address, sock_type=Pinged) as line:
        assert type(line) is Pinged
        assert ask(line.sock, "question") == "question"
        assert line.sock.gettimeout() == 30.0
    with manager.connection(server.address, sock_type=Pinged) as again:
        assert again is line
        assert not again.sock.new_sock
    with manager.connection(server.address) as sock:
        assert type(sock) is MonitoredSocket
    assert server.opened == 2


def test_a_sock_type_has_its_own_idle_timeout(hosts: Hosts, manage: Any) -> None:
    server = hosts.server(IdServer)
    manager = manage(idle_timeout=60)
    with manager.connection(server.address):
        pass
    with manager.connection(server.address, sock_type=Line):
        server.wait_open(2)
    server.wait_open(1)


def test_a_sock_type_has_its_own_sign_of_life(hosts: Hosts, manage: Any) -> None:
    server = hosts.server(IdServer)
    manager = manage(keepalive=0.02)
    Pinged.pinged = 0
    with manager.connection(server.address):
        pass
    with manager.connection(server.address, sock_type=Pinged):
        pass
    until(lambda: Pinged.pinged >= 2)
    assert server.open == 2  # the plain one has none, and is left alone


def test_a_sock_type_that_fails_is_a_server_that_fails_and_leaves_no_socket_open(
    hosts: Hosts, manage: Any
) -> None:
    def refuse(sock: Any) -> Any:
        raise error

    server = hosts.server()
    manager = manage(health=LONG)
    error: Exception = OSError("no login")
    with pytest.raises(OSError, match="no login"):
        manager.get_connection(server.address, sock_type=refuse)
    error = ValueError("not our protocol")
    with pytest.raises(ConnectError, match="not our protocol") as caught:
        manager.get_connection(server.address, sock_type=refuse)
    assert caught.value.__cause__ is error
    with pytest.raises(ConnectError, match="returned None"):
        manager.get_connection(server.address, sock_type=lambda sock: None)

    server.wait_open(0)
    assert is_down(manager, server)


class LogIn:
    """A sock_type whose server has no room for the moment."""

    def __init__(self) -> None:
        self.full = True
        self.dials = 0

    def __call__(self, sock: Any) -> Any:
        self.dials += 1
        if self.full:
            raise ValueError("too many clients")
        return sock

    def classify_error(self, error: Exception) -> Verdict:
        return Verdict.SERVER_FULL if "too many" in str(error) else Verdict.BROKEN


def test_a_server_that_is_full_is_not_marked_down_and_asked_once_a_second(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server()
    manager = manage(health=HealthPolicy(failures=1))
    log_in = LogIn()
    for _ in range(20):
        with pytest.raises(ConnectError, match="too many clients"):
            manager.get_connection(server.address, sock_type=log_in)
    assert not is_down(manager, server)
    assert log_in.dials == 1
    log_in.full = False
    until(lambda: _can_connect(manager, server.address, log_in))


def _can_connect(manager: Any, address: Any, sock_type: Any) -> bool:
    try:
        with manager.connection(address, sock_type=sock_type):
            return True
    except ConnectError:
        return False


def test_of_two_servers_the_one_that_is_not_full_is_used(hosts: Hosts, manage: Any) -> None:
    full, roomy = hosts.server(), hosts.server()
    manager = manage({"pay": group(full.address, roomy.address)}, health=LONG)

    class Picky(LogIn):
        def __call__(self, sock: Any) -> Any:
            self.full = sock.getpeername() == tuple(full.address)
            return super().__call__(sock)

    picky = Picky()
    for _ in range(10):
        with manager.connection("pay", sock_type=picky) as sock:
            assert sock.getpeername() == tuple(roomy.address)
    assert not is_down(manager, full)


def test_a_sock_type_that_hangs_is_a_dial_that_takes_too_long(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage(connect_timeout=0.05)
    with pytest.raises(ConnectError, match=r"not open after \d\.\d{3} s"):
        manager.get_connection(server.address, sock_type=lambda sock: sock.recv(1))
    server.wait_open(0)


def test_a_file_may_be_what_is_pooled(hosts: Hosts, manage: Any) -> None:
    def as_file(sock: MonitoredSocket) -> Any:
        return sock.makefile("rwb")

    server = hosts.server()
    with ConnectionManager() as manager:
        for _ in range(2):
            with manager.connection(server.address, sock_type=as_file) as file:
                file.write(b"a line\n")
                file.flush()
                assert file.readline() == b"a line\n"
        assert server.opened == 1
    server.wait_open(0)


def a_pair(sock: MonitoredSocket) -> tuple[Any, Any]:
    return sock.makefile("rb"), sock.makefile("wb")


def ask_pair(reader: Any, writer: Any) -> None:
    writer.write(b"a line\n")
    writer.flush()
    assert reader.readline() == b"a line\n"


def test_a_reader_and_a_writer_may_be_what_is_pooled(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage(health=LONG)
    for _ in range(3):
        reader, writer = manager.get_connection(server.address, sock_type=a_pair, read_timeout=7)
        assert manager._pool.socket_of((reader, writer)).gettimeout() == 7
        ask_pair(reader, writer)
        manager.release_connection((reader, writer))  # put together again, it is another tuple
        assert manager.servers[server.address].outstanding == 0
        assert manager.servers[server.address].latency(time.monotonic()) is not None
    assert server.opened == 1

    pairs = [manager.get_connection(server.address, sock_type=a_pair) for _ in range(2)]
    for reader, writer in pairs:
        manager.report((reader, writer), ok=False)
        manager.discard_connection((reader, writer))
    server.wait_open(0)  # though reader and writer are still there
    assert not manager.servers[server.address].active_connections
    pairs = [manager.get_connection(server.address, sock_type=a_pair)]
    manager.report(pairs[0], ok=False)
    assert is_down(manager, server)  # all of that was told of the right server
    manager.discard_connection(pairs[0])


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_pair_that_is_forgotten_gives_its_place_back(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage(max_sockets=1)
    for sock_type in (a_pair, lambda sock: (sock, "codec"), lambda sock: (sock, Own(sock))):
        pair = manager.get_connection(server.address, sock_type=sock_type)
        pair = None  # noqa: F841
        gc.collect()
        until(lambda: at_rest(manager))
        server.wait_open(0)


def test_what_several_tuples_share_belongs_to_none_of_them(hosts: Hosts, manage: Any) -> None:
    class Codec:
        """One for all."""

    codec = Codec()
    server = hosts.server()
    manager = manage()

    def with_codec(sock: MonitoredSocket) -> tuple[Codec, MonitoredSocket]:
        return codec, sock

    held = [manager.get_connection(server.address, sock_type=with_codec) for _ in range(3)]
    for pair in held:
        assert manager._pool.socket_of(pair) is pair[1]
    manager.discard_connection(held[0])
    server.wait_open(2)
    for pair in held[1:]:
        assert manager._pool.socket_of(pair) is pair[1]
        echo(pair[1])
        manager.release_connection(pair)


class Bare:
    """Cannot be weakly referenced."""

    __slots__ = ("sock",)

    def __init__(self, sock: MonitoredSocket) -> None:
        self.sock = sock

    def close(self) -> None:
        self.sock.close()


class Own:
    """Has a descriptor of its own, and no use for the socket any more."""

    def __init__(self, sock: MonitoredSocket) -> None:
        self.sock = sock.dup()

    def close(self) -> None:
        self.sock.close()


class AllTheSame(Own):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize("sock_type", [Bare, Own, AllTheSame, Line, Pinged])
def test_whatever_is_pooled_its_socket_and_its_server_are_known(
    hosts: Hosts, manage: Any, sock_type: Any
) -> None:
    server = hosts.server(IdServer)
    manager = manage(health=HealthPolicy(failures=2))
    held = [manager.get_connection(server.address, sock_type=sock_type) for _ in range(3)]
    sockets = [manager._pool.socket_of(each) for each in held]
    assert len(set(map(id, sockets))) == 3
    for each in held:
        assert ask(each.sock, "question") == "question"
        manager.release_connection(each)
    again = manager.get_connection(server.address, sock_type=sock_type)
    assert any(again is each for each in held)
    manager.report(again, ok=False)
    assert not is_down(manager, server)
    manager.report(again, ok=False)
    assert is_down(manager, server)
    manager.release_connection(again)
    server.wait_open(0)


def test_the_same_thing_cannot_be_pooled_twice(hosts: Hosts, manage: Any) -> None:
    same = Line.__new__(Line)
    server = hosts.server()
    manager = manage()

    def sock_type(sock: MonitoredSocket) -> Line:
        same.sock = sock
        return same

    with manager.connection(server.address, sock_type=sock_type) as line:
        first = line.sock
        with pytest.raises(ConnectError, match="pooled already"):
            manager.get_connection(server.address, sock_type=sock_type)
        server.wait_open(1)
        same.sock = first
        manager.discard_connection(line)
    server.wait_open(0)
    with manager.connection(server.address, sock_type=sock_type) as line:
        assert line is same  # but again it can


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A server that speaks TLS once it was asked to, and a sock_type that asks."""
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    serving = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(str(made.certificate), str(made.key))
    asking = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.load_verify_locations(str(made.authority))

    class Upgrading(EchoServer):
        def serve(self, sock: Any) -> None:
            assert sock.recv(8) == b"STARTTLS"
            sock.sendall(b"OK")
            with closing(serving.wrap_socket(sock, server_side=True)) as secured:
                while (data := secured.recv(100)) not in (b"", b"QUIT"):
                    secured.sendall(data)

    def start_tls(sock: MonitoredSocket) -> Any:
        sock.sendall(b"STARTTLS")
        assert sock.recv(2) == b"OK"
        return asking.wrap_socket(sock, server_hostname="localhost")

    return Upgrading, start_tls


def test_a_sock_type_may_wrap_the_socket_in_tls(hosts: Hosts, manage: Any, upgrade: Any) -> None:
    make, start_tls = upgrade
    server = hosts.server(make)
    manager = manage(health=LONG)
    for _ in range(3):
        with manager.connection(server.address, sock_type=start_tls, read_timeout=7) as sock:
            echo(sock)
            assert sock.gettimeout() == 7
    assert server.opened == 1
    assert manager.servers[server.address].outstanding == 0
    for _ in range(3):
        with pytest.raises(ConnectionError):
            with manager.connection(server.address, sock_type=start_tls):
                raise ConnectionError
    assert is_down(manager, server)  # it is known whose it was
    manager.mark_up(server.address)
    server.wait_open(0)
    with manager.connection(server.address, sock_type=start_tls) as sock:
        sock.sendall(b"QUIT")
    until(lambda: manager.stats().idle == 0)  # that it has hung up is seen


# Limits


@pytest.mark.parametrize("setting", ["max_per_address", "max_sockets"])
def test_of_40_callers_at_once_never_a_sixth_has_a_socket(  # was: 40 sockets, no error
    hosts: Hosts, manage: Any, setting: str
) -> None:
    server = hosts.server()
    manager = manage(**{setting: 5})
    socks, errors = [], []

    def call() -> None:
        try:
            socks.append(manager.get_connection(server.address))
        except OutOfSockets as error:
            errors.append(error)

    gevent.joinall([gevent.spawn(call) for _ in range(40)], raise_error=True)
    assert (len(socks), len(errors)) == (5, 35)
    for error in errors:
        assert error.limit is not None
        assert error.limit.startswith(f"{setting} of {manager.name}")
        assert error.limit in str(error)
        assert (error.used, error.maximum) == (5, 5)
    for sock in socks:
        manager.release_connection(sock)
    with manager.connection(server.address) as sock:
        assert sock in socks
    assert server.peak == server.opened == 5
    assert manager.servers[server.address].last_error is None  # it is not the server's fault


def test_the_longest_idle_makes_room(hosts: Hosts, manage: Any) -> None:  # was: the newest went
    servers = hosts.servers(4)
    manager = manage(max_sockets=3)
    socks = [manager.get_connection(server.address) for server in servers[:3]]
    for at in (1, 0, 2):
        manager.release_connection(socks[at])
    with manager.connection(servers[3].address):
        servers[1].wait_open(0)
        assert [server.open for server in servers] == [1, 0, 1, 1]
    with manager.connection(servers[1].address):
        servers[0].wait_open(0)
        assert [server.open for server in servers] == [0, 1, 1, 1]


def test_at_the_limit_what_lies_idle_is_used_and_not_closed(  # was: it was closed first
    hosts: Hosts, manage: Any
) -> None:
    first, second = hosts.servers(2)
    manager = manage(max_sockets=2)
    for server in (first, second):
        with manager.connection(server.address):
            pass
    for _ in range(10):
        for server in (first, second):
            with manager.connection(server.address) as sock:
                echo(sock)
    assert first.opened == second.opened == 1


def test_plain_and_tls_and_all_types_share_the_limit_of_an_address(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server(IdServer)
    manager = manage(max_per_address=2)
    first = manager.get_connection(server.address)
    second = manager.get_connection(server.address, sock_type=Line)
    with pytest.raises(OutOfSockets, match="max_per_address"):
        manager.get_connection(server.address, sock_type=Pinged)
    manager.release_connection(first)
    third = manager.get_connection(server.address, sock_type=Pinged)
    assert server.peak == 2
    manager.release_connection(second)
    manager.release_connection(third)


def test_an_address_that_is_full_is_passed_over(hosts: Hosts, manage: Any) -> None:
    servers = hosts.servers(2)
    manager = manage({"pay": group(*servers)}, max_per_address=2)
    socks = [manager.get_connection("pay") for _ in range(4)]
    assert [server.open for server in servers] == [2, 2]
    with pytest.raises(OutOfSockets, match="max_per_address"):
        manager.get_connection("pay")
    for sock in socks:
        manager.release_connection(sock)


def test_the_limit_of_an_address_does_not_lift_that_of_all(hosts: Hosts, manage: Any) -> None:
    first, second = hosts.servers(2)
    manager = manage({"pay": group(first, second)}, max_per_address=2, max_sockets=3)
    socks = [manager.get_connection("pay") for _ in range(3)]
    with pytest.raises(OutOfSockets, match="max_sockets"):
        manager.get_connection("pay")
    for sock in socks:
        manager.release_connection(sock)


def test_a_limit_may_be_shared_with_other_pools(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    limit = Limit(1, "of everybody")
    manager = manage(limits=[limit])
    other: EndpointPool[Any, Any] = EndpointPool(
        connect=gevent.socket.create_connection, limits=[limit]
    )
    with other:
        with other.get(server.address):
            with pytest.raises(OutOfSockets, match="of everybody"):
                manager.get_connection(server.address)
        with manager.connection(server.address):
            pass
        assert server.peak == 1


def test_by_default_a_fifth_of_the_files_is_left_to_others(manage: Any) -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert manage().stats().maximum == int(0.8 * files)


def test_a_descriptor_above_1023_is_one_like_any_other(  # was: neither pooled nor closed
    hosts: Hosts, manage: Any
) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1100:
        pytest.skip("this process may not open so many files")
    server = hosts.server()
    manager = manage()
    fillers: list[int] = []
    try:
        while not fillers or fillers[-1] < 1030:
            fillers.append(os.dup(0))
        with manager.connection(server.address) as sock:
            assert sock.fileno() > 1023
            echo(sock)
        with manager.connection(server.address) as again:
            assert again is sock
    finally:
        for filler in fillers:
            _close(filler)


def test_that_this_machine_has_no_room_is_no_failure_of_a_server(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage(health=HealthPolicy(failures=1))
    with manager.connection(server.address):
        pass  # from now on it is nothing but the socket that takes a descriptor
    manager._pool.dispose()
    server.wait_open(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1000), hard))
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                manager.get_connection(server.address)
    finally:
        for filler in fillers:
            _close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert fillers
    assert manager.stats().dial_failed > 0
    assert manager.servers[server.address].last_error is None
    assert manager.servers[server.address].outstanding == 0
    until(lambda: not manager._pool.endpoints())  # its back-off is over
    with manager.connection(server.address) as sock:
        echo(sock)


# Giving back


def test_given_back_twice_is_an_error_and_breaks_nothing(  # was: KeyError, culler dead
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server()
    manager = manage()
    sock = manager.get_connection(server.address)
    manager.release_connection(sock)
    for give_back in (manager.release_connection, manager.discard_connection, manager.report):
        with pytest.raises(NotInUse):
            give_back(sock)
        with pytest.raises(NotInUse):
            give_back(object())
    with manager.connection(server.address) as again:
        echo(again)
    assert server.opened == 1


@pytest.mark.parametrize("how", ["reset", "closed by its holder"])
def test_a_broken_connection_may_be_given_back_and_is_never_used_again(  # was: ENOTCONN
    hosts: Hosts, manage: Any, how: str
) -> None:
    server = hosts.server()
    manager = manage()
    sock = manager.get_connection(server.address)
    if how == "reset":
        server.rst_all()
    else:
        sock.close()
    manager.release_connection(sock)
    until(lambda: at_rest(manager) and manager.stats().idle == 0)
    with manager.connection(server.address) as another:
        echo(another)
    assert another is not sock
    assert (server.opened, server.open) == (2, 1)


def test_an_idle_connection_that_the_server_closes_is_closed_at_once(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server(IdServer)
    manager = manage()
    for sock_type in (None, Pinged):
        with manager.connection(server.address, sock_type=sock_type):
            pass
    assert server.fin_all() == 2
    until(lambda: manager.stats().idle == 0)


def test_a_connection_may_be_given_back_within_its_with(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage()
    with manager.connection(server.address) as sock:
        manager.release_connection(sock)
    with manager.connection(server.address) as sock:
        manager.discard_connection(sock)
    server.wait_open(0)
    assert manager.stats().in_use == 0


def test_a_lease_that_is_in_a_with_is_not_entered_a_second_time(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage()
    lease = manager.connection(server.address)
    for _ in range(2):  # but once it was left
        with lease as sock:
            with pytest.raises(RuntimeError, match="in a with already"), lease:
                pass
            echo(sock)
        assert manager.stats().in_use == 0
    assert server.opened == 1

    server.stop()
    for _ in range(2):  # nor does a failure leave it entered
        with pytest.raises(OSError), lease:
            pass


def test_unread_bytes_are_no_ones_reply(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage()
    with pytest.raises(ValueError), manager.connection(server.address) as sock:
        sock.sendall(b"request")
        gevent.socket.wait_read(sock.fileno())
        raise ValueError("lost interest")
    with manager.connection(server.address) as another:
        echo(another)
    assert another is not sock


def test_an_answer_that_no_caller_waited_for_is_no_callers_reply(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage()
    sock = manager.get_connection(server.address)
    sock.sendall(b"request")
    manager.release_connection(sock)
    gevent.socket.wait_read(sock.fileno(), timeout=30)
    with manager.connection(server.address) as another:
        echo(another)
    assert another is not sock


@pytest.mark.parametrize(
    ("error", "kept", "blamed"),
    [
        (ValueError("mine"), True, False),
        (ConnectionResetError("broken"), False, True),
        (TimeoutError("late"), False, True),
        (ssl.SSLError("broken"), False, True),
        (OSError("something"), False, True),
        (gevent.Timeout(), False, True),
        (FileNotFoundError("a file"), False, False),
        (ConnectError("of another one"), False, False),
        (PoolTimeout("of another pool"), True, False),
        (OutOfSockets("of another manager"), True, False),
        (gevent.GreenletExit(), False, False),
        (KeyboardInterrupt(), False, False),
    ],
    ids=named,
)
def test_what_leaves_a_with_says_whether_to_keep_it_and_whom_to_blame(
    hosts: Hosts, manage: Any, error: BaseException, kept: bool, blamed: bool
) -> None:
    server = hosts.server()
    manager = manage()
    with pytest.raises(type(error)), manager.connection(server.address):
        raise error

    until(lambda: at_rest(manager))
    assert manager.stats().idle == kept
    assert (manager.servers[server.address].last_error is not None) == blamed
    assert manager.servers[server.address].outstanding == 0


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_connection_that_is_forgotten_gives_its_place_back(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage(max_sockets=1)
    for sock_type in (None, Pinged):
        sock = manager.get_connection(server.address, sock_type=sock_type)
        sock = None  # noqa: F841
        gc.collect()
        until(lambda: at_rest(manager))
        server.wait_open(0)
    assert manager.servers[server.address].outstanding == 0


# Health


def test_failed_connects_in_a_row_mark_an_address_down(  # was: markdown could never be on
    hosts: Hosts, manage: Any
) -> None:
    dead, server = hosts.address(), hosts.server()
    manager = manage({"pay": [[(1, dead)], [(1, server.address)]]}, health=LONG)
    for down in (False, False, True):
        with manager.connection("pay") as sock:
            assert sock.address == server.address
        assert is_down(manager, dead) == down
    failed = manager.stats().dial_failed
    for _ in range(10):
        with manager.connection("pay"):
            pass
    assert manager.stats().dial_failed == failed == 3
    error = manager.servers[dead].marked_down_error(time.monotonic())
    assert error.address == dead  # was: it carried none


def test_a_crowd_that_waits_for_one_dial_has_seen_one_failure(hosts: Hosts, manage: Any) -> None:
    manager, dead = manage(health=LONG), hosts.address()
    callers = [gevent.spawn(fail, manager, dead, 1) for _ in range(20)]
    gevent.joinall(callers, raise_error=True)
    assert manager.stats().dial_failed == 1
    assert not is_down(manager, dead)


def test_an_idle_connection_proves_nothing_but_a_new_one_does(hosts: Hosts, manage: Any) -> None:
    def refuse(sock: Any) -> Any:
        raise OSError("no login")

    def connects_fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(OSError, match="no login"):
                manager.get_connection(server.address, sock_type=refuse)
            # Not in the pause after it, when nothing dials.
            until(lambda: all(e.sock_type is not refuse for e in manager._pool.endpoints()))

    server = hosts.server()
    manager = manage(health=LONG)
    connects_fail(2)
    first = manager.get_connection(server.address)
    connects_fail(2)
    assert not is_down(manager, server)
    manager.release_connection(first)  # which says that its request was answered
    connects_fail(2)
    assert not is_down(manager, server)
    again = manager.get_connection(server.address)
    assert again is first
    connects_fail(1)
    assert is_down(manager, server)
    manager.release_connection(again)


def test_a_success_in_between_starts_the_count_again(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage(health=LONG)
    for _ in range(3):
        server.stop()
        manager._pool.dispose()
        fail(manager, server.address, 2)
        server.start()
        until(lambda: not manager._pool.endpoints())  # its back-off is over
        with manager.connection(server.address):
            pass
    assert not is_down(manager, server)


def test_after_its_time_one_caller_probes_and_decides(  # was: all callers rushed in at once
    hosts: Hosts, manage: Any
) -> None:
    server, other = hosts.servers(2)
    manager = manage({"pay": [[(1, server.address)], [(1, other.address)]]}, health=SHORT)
    server.stop()
    with manager.connection("pay") as sock:
        assert sock.address == other.address
    server.start()
    until(lambda: manager.servers[server.address].admits(time.monotonic()))
    found: list[Any] = []
    others_have_called = gevent.event.Event()

    def shake_hands(sock: MonitoredSocket) -> MonitoredSocket:
        if sock.address == server.address:
            assert others_have_called.wait(60)
        return sock

    def call() -> None:
        with manager.connection("pay", sock_type=shake_hands) as sock:
            found.append(sock.address)

    callers = [gevent.spawn(call) for _ in range(20)]
    until(lambda: len(found) == 19)
    assert set(found) == {other.address}
    assert manager.servers[server.address].state(time.monotonic()) == "probing"
    others_have_called.set()
    gevent.joinall(callers, raise_error=True)
    assert found[-1] == server.address
    assert manager.servers[server.address].state(time.monotonic()) == "up"
    with manager.connection("pay") as sock:
        assert sock.address == server.address


@pytest.mark.parametrize("end", [gevent.GreenletExit, gevent.Timeout])
def test_a_probe_whose_caller_leaves_hands_the_right_back(
    hosts: Hosts, manage: Any, end: type[BaseException]
) -> None:
    silent = hosts.silent()
    manager = manage({"pay": group(silent)}, health=SHORT, timeout=60)
    server = manager.servers[silent]
    server.failed(time.monotonic())
    until(lambda: server.admits(time.monotonic()))

    def call() -> None:
        with contextlib.suppress(end):
            manager.get_connection("pay")

    caller = gevent.spawn(call)
    caller.join(0)  # it has begun
    assert server.state(time.monotonic()) == "probing"
    caller.kill(end)
    assert server.admits(time.monotonic())
    assert server.outstanding == 0


def test_a_server_that_accepts_and_then_fails_is_marked_down_by_who_knows(
    hosts: Hosts, manage: Any
) -> None:
    bad, good = hosts.servers(2)
    manager = manage({"pay": [[(1, bad.address)], [(1, good.address)]]}, health=LONG)
    idle = [manager.get_connection(bad.address) for _ in range(3)]
    held = manager.get_connection(bad.address)
    for sock in idle:
        manager.release_connection(sock)
    for _ in range(3):
        assert not is_down(manager, bad)
        with manager.connection("pay") as sock:
            assert sock.address == bad.address
            manager.report(sock, ok=False, error=ValueError("status 500"))

    assert is_down(manager, bad)
    assert "status 500" in str(manager.servers[bad.address].marked_down_error(time.monotonic()))
    with manager.connection("pay") as sock:
        assert sock.address == good.address
    bad.wait_open(1)  # what lay idle is closed
    manager.release_connection(held)
    bad.wait_open(0)


def test_a_server_that_hangs_up_on_requests_is_marked_down(hosts: Hosts, manage: Any) -> None:
    class HangsUp(EchoServer):
        def serve(self, sock: Any) -> None:
            sock.recv(1)

    bad, good = hosts.server(HangsUp), hosts.server()
    manager = manage({"pay": [[(1, bad.address)], [(1, good.address)]]}, health=LONG)
    answers: Counter[bool] = Counter()
    for _ in range(10):
        try:
            with manager.connection("pay") as sock:
                sock.sendall(b"x")
                if not sock.recv(1):
                    raise ConnectionError("hung up")
                answers[True] += 1
        except ConnectionError:
            answers[False] += 1
    # That it closes its connections at once makes callers go on even before the third.
    assert 1 <= answers[False] <= 3
    assert answers.total() == 10
    assert is_down(manager, bad)


def test_many_failures_on_their_way_mark_down_once(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    policy = HealthPolicy(failures=3, backoff=Backoff(first=600, factor=2, longest=1e6, jitter=0))
    manager = manage(health=policy)
    socks = [manager.get_connection(server.address) for _ in range(20)]
    for sock in socks:
        manager.report(sock, ok=False)
        manager.report(sock, ok=False)
        manager.release_connection(sock)
    until = manager.servers[server.address].down_until
    assert until is not None
    assert until - time.monotonic() < 601


def test_each_request_over_one_connection_may_be_reported(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage(health=LONG)
    sock = manager.get_connection(server.address)
    for ok in (False, False, True, False, False):
        manager.report(sock, ok)
    assert not is_down(manager, server)
    manager.report(sock, False)
    assert is_down(manager, server)
    manager.release_connection(sock)


def test_a_failure_may_be_reported_with_an_error_that_has_no_text(
    hosts: Hosts, manage: Any
) -> None:
    class Mute(OSError):
        def __str__(self) -> str:
            raise RuntimeError

    server = hosts.server()
    manager = manage(health=HealthPolicy(failures=1))
    sock = manager.get_connection(server.address)
    manager.report(sock, ok=False, error=Mute("x"))
    manager.release_connection(sock)
    assert is_down(manager, server)
    assert manager.servers[server.address].reason == "Mute: <Mute without a text>"


def test_a_request_that_breaks_counts_though_the_one_before_was_reported(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server()
    manager = manage(health=HealthPolicy(failures=3))
    for before, down in [(True, False), (True, False), (False, False), (None, True)]:
        with pytest.raises(ConnectionResetError), manager.connection(server.address) as sock:
            if before is not None:
                manager.report(sock, ok=before)
            raise ConnectionResetError
        # What was reported as a failure does not fail once more as it leaves the with.
        assert is_down(manager, server) == down


def test_a_dial_that_is_killed_is_no_failure_of_the_server(hosts: Hosts, manage: Any) -> None:
    def hangs(sock: MonitoredSocket) -> MonitoredSocket:
        gevent.sleep(600)
        return sock

    server = hosts.server()
    manager = manage(health=HealthPolicy(failures=1), timeout=60)
    caught: list[BaseException] = []

    def call() -> None:
        with pytest.raises(ConnectError, match="the dial was killed") as error:
            manager.get_connection(server.address, sock_type=hangs)
        caught.append(error.value)

    callers = [gevent.spawn(call) for _ in range(3)]
    server.wait_open(1)
    gevent.killall(list(manager._pool._runtime.dialer.workers.active))
    gevent.joinall(callers, raise_error=True)
    assert len(set(map(id, caught))) == 3
    assert manager.servers[server.address].last_error is None
    assert manager.servers[server.address].outstanding == 0
    server.wait_open(0)


def test_what_a_name_does_not_count_marks_no_server_down(hosts: Hosts, manage: Any) -> None:
    dead, server = hosts.address(), hosts.server()
    infos = {"pay": ConnectInfo(transient_markdown_enabled=False)}
    manager = manage(
        {"pay": [[(1, dead)], [(1, server.address)]]}, connect_infos=infos, health=LONG
    )
    for _ in range(5):
        with manager.connection("pay") as sock:
            manager.report(sock, False)
    assert not is_down(manager, dead)
    assert not is_down(manager, server)


def test_a_name_that_is_marked_down_is_not_connected_to(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()  # was: the field was unused
    infos = {"pay": ConnectInfo(markdown=True)}
    manager = manage({"pay": group(server)}, connect_infos=infos)
    with pytest.raises(MarkedDownError, match="pay is marked down") as caught:
        manager.get_connection("pay")
    assert caught.value.address == "pay"
    assert server.opened == 0


def test_with_all_down_the_one_that_failed_longest_ago_is_tried(hosts: Hosts, manage: Any) -> None:
    servers = hosts.servers(3)
    manager = manage({"pay": group(*servers)}, health=LONG)
    for at in (1, 0, 2):
        server = manager.servers[servers[at].address]
        for _ in range(3):
            server.failed(time.monotonic())
        gevent.sleep(0.001)
    with manager.connection("pay") as sock:
        assert sock.address == servers[1].address
        echo(sock)
    assert not is_down(manager, servers[1])


def test_while_all_are_away_a_crowd_makes_few_dials(hosts: Hosts, manage: Any) -> None:
    manager = manage({"pay": group(hosts.address(), hosts.address())}, health=LONG)

    def call() -> None:
        ends = time.monotonic() + 0.3
        while time.monotonic() < ends:
            with pytest.raises(MultiConnectFailure):
                manager.get_connection("pay")
            gevent.sleep(0.001)

    gevent.joinall([gevent.spawn(call) for _ in range(20)], raise_error=True)
    assert 2 <= manager.stats().dialed < 2 * 60  # of some thousand calls


def test_marked_down_by_hand_it_is_used_for_nothing(hosts: Hosts, manage: Any) -> None:
    server, other = hosts.servers(2)
    manager = manage({"pay": [[(1, server.address)], [(1, other.address)]]})
    held = manager.get_connection("pay")
    with manager.connection("pay"):
        server.wait_open(2)
    manager.mark_down("{}:{}".format(*server.address))

    server.wait_open(1)  # the idle one is closed
    manager.release_connection(held)
    server.wait_open(0)
    with manager.connection("pay") as sock:
        assert sock.address == other.address
    with pytest.raises(MarkedDownError, match="by hand") as caught:
        manager.get_connection(server.address)
    assert caught.value.address == server.address
    manager.mark_down(other.address, 600)
    with pytest.raises(MultiConnectFailure, match=r"by hand.*by hand"):
        manager.get_connection("pay")
    manager.mark_up(server.address)
    with manager.connection("pay") as sock:
        assert sock.address == server.address


def test_at_most_the_set_share_of_a_group_is_left_out(hosts: Hosts, manage: Any) -> None:
    servers = hosts.servers(4)
    policy = HealthPolicy(
        failures=1, max_down=0.25, backoff=Backoff(first=600, longest=600), slow_start=0
    )
    manager = manage({"pay": group(*servers)}, health=policy)
    for server in servers[:3]:
        manager.servers[server.address].failed(time.monotonic())
        gevent.sleep(0.001)
    seen: Counter[Any] = Counter()
    for _ in range(100):  # one of three unseen: 1 in 10 ** 17
        with manager.connection("pay") as sock:
            seen[sock.address] += 1
            if sock.address != servers[3].address:
                manager.report(sock, False)
    assert len(seen) >= 3


def test_a_new_server_is_not_flooded(hosts: Hosts, manage: Any) -> None:
    old, new = hosts.servers(2)
    manager = manage({"pay": group(old, new)}, health=HealthPolicy(slow_start=600))
    now = time.monotonic()
    manager.servers[old.address].share(now - 600)  # it has been there for long
    count: Counter[Any] = Counter()
    for _ in range(300):
        with manager.connection("pay") as sock:
            count[sock.address] += 1
    assert 1 <= count[new.address] <= 75  # of a share of 27 now, and 150 later


def test_latency_is_the_time_that_a_request_took_whether_it_was_answered_or_failed(
    hosts: Hosts, manage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    for file in ("address_walk", "use"):
        monkeypatch.setattr(f"geventpool.manager.{file}.monotonic", lambda: now)
    server = hosts.server()
    manager = manage()
    with manager.connection(server.address):
        now += 2.0
    assert manager.servers[server.address].latency(now) == 2.0
    with pytest.raises(TimeoutError), manager.connection(server.address):
        now += 5.0
        raise TimeoutError
    assert manager.servers[server.address].outstanding == 0
    assert manager.servers[server.address].latency(now) == 5.0


def test_p2c_avoids_the_server_that_has_turned_slow(
    hosts: Hosts, manage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    for file in ("address_walk", "use"):
        monkeypatch.setattr(f"geventpool.manager.{file}.monotonic", lambda: now)
    servers = hosts.servers(4)
    policy = HealthPolicy(failures=None, slow_start=0)
    manager = manage({"pay": group(*servers)}, balance="p2c", health=policy)
    slow = servers[0]

    def requests(number: int) -> Counter[Any]:
        nonlocal now
        count: Counter[Any] = Counter()
        for _ in range(number):
            with manager.connection("pay") as sock:
                echo(sock)
                count[sock.address] += 1
                now += 0.01
        return count

    count = requests(400)
    assert min(count[server.address] for server in servers) > 30
    unanswered = manager.get_connection(slow.address)
    now += 0.1
    assert requests(200)[slow.address] == 0  # they learn it from a request without an answer
    manager.release_connection(unanswered)
    assert requests(200)[slow.address] == 0
    now += 100
    assert requests(200)[slow.address] > 0  # that was long ago


def test_open_sockets_of_a_server_are_known(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage()
    model = manager.servers[server.address]
    with manager.connection(server.address) as sock:
        assert list(model.active_connections) == [sock]
        assert model.outstanding == 1
    assert list(model.active_connections) == [sock]
    assert model.outstanding == 0
    manager._pool.dispose()
    server.wait_open(0)
    assert not model.active_connections


def test_what_went_to_an_address_is_known(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage()
    with manager.connection(server.address) as sock:
        echo(sock, b"12345")
    with manager.connection(server.address) as sock:
        sock.close()
    with manager.connection(server.address) as sock:
        echo(sock, b"123")
    traffic = manager.traffic(server.address)
    assert (traffic.opened, traffic.open) == (2, 1)
    assert traffic.bytes_in == traffic.bytes_out == 8


# Names that change


def watched(groups: Any, manage: Any, **settings: Any) -> ConnectionManager:
    manager: ConnectionManager = manage(groups, watch_interval=0.01, watch_hold=0.02, **settings)
    return manager


def test_a_vanished_address_is_drained(hosts: Hosts, manage: Any) -> None:
    gone, stays, shared = hosts.servers(3)
    groups = AddressGroupMap({"pay": group(gone, stays, shared), "other": group(shared)})
    manager = watched(groups, manage)
    with manager.connection("pay"), manager.connection("other"):
        pass
    held = manager.get_connection(gone.address)
    for server in (gone, stays, shared):
        with manager.connection(server.address):
            pass
    groups["pay"] = group(stays)
    gone.wait_open(1)
    assert held.fileno() >= 0
    echo(held)
    manager.release_connection(held)
    gone.wait_open(0)
    assert stays.open >= 1
    assert shared.open >= 1  # another name has it


def test_a_new_address_gets_its_share_at_once_though_every_socket_is_busy(
    hosts: Hosts, manage: Any
) -> None:
    old, new = hosts.servers(2)
    groups = AddressGroupMap({"pay": group(old)})
    manager = watched(groups, manage, max_sockets=8, health=HealthPolicy(slow_start=0))
    count: Counter[Any] = Counter()
    stop = False

    def busy() -> None:
        while not stop:
            try:
                with manager.connection("pay") as sock:
                    echo(sock)
                    count[sock.address] += 1
            except OutOfSockets:
                gevent.sleep(0)

    callers = [gevent.spawn(busy) for _ in range(8)]
    until(lambda: count.total() > 100)
    groups["pay"] = group(old, new)
    count.clear()
    until(lambda: count.total() > 500)
    stop = True
    gevent.joinall(callers, raise_error=True)
    assert count[new.address] > 150
    assert max(old.peak, new.peak) <= 8


def test_with_rebalance_old_connections_are_replaced_when_an_address_is_new(
    hosts: Hosts, manage: Any
) -> None:
    old, new = hosts.servers(2)
    groups = AddressGroupMap({"pay": group(old)})
    manager = watched(groups, manage, rebalance=0.05)
    socks = [manager.get_connection("pay") for _ in range(3)]
    manager.release_connection(socks.pop())
    groups["pay"] = group(old, new)
    old.wait_open(2)  # the idle one is gone
    gevent.sleep(0.06)
    for sock in socks:
        manager.release_connection(sock)
    old.wait_open(0)


def test_a_name_that_is_not_asked_for_is_watched_no_longer(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    asked: Counter[str] = Counter()

    class Counting:
        def resolve(self, name: str) -> AddressGroup:
            asked[name] += 1
            return group(server)

    manager = watched(Counting(), manage)
    for number in range(100):
        manager.get_addr(f"name {number}")
    until(lambda: min(asked.values()) > 1)
    now = time.monotonic()
    manager._names.forget(now)
    assert len(manager._names._watched) == 100
    manager._names._watched["name 7"].asked_at = now + 3600  # by then
    manager._names.forget(now + 3600)
    assert set(manager._names._watched) == set(manager._names._watcher._names) == {"name 7"}
    asked.clear()
    manager.get_addr("name 3")
    until(lambda: min(asked["name 3"], asked["name 7"]) > 2)
    assert set(asked) == {"name 3", "name 7"}
    manager.close()
    with pytest.raises(PoolClosed):
        manager.get_connection("name 50")


def test_names_that_the_program_knows_need_no_watcher(hosts: Hosts) -> None:
    with ConnectionManager({"pay": group("10.0.0.1:80")}) as manager:
        assert manager._names._watcher is None


# Its own end, and others'


def test_a_manager_that_is_dropped_is_collected_and_closes_what_is_idle(  # was: never
    hosts: Hosts,
) -> None:
    server = hosts.server()
    groups = AddressGroupMap({"pay": group(server)})
    manager = ConnectionManager(groups)
    with manager.connection("pay"):
        pass
    server.wait_open(1)
    pool, gone = weakref.ref(manager._pool), weakref.ref(manager)
    del manager
    server.wait_open(0)
    until(lambda: gone() is None and pool() is None)


def test_closed_it_closes_everything_and_gives_nothing(hosts: Hosts) -> None:
    server = hosts.server()
    manager = ConnectionManager({"pay": group(server)})
    with manager.connection("pay"):
        pass
    with manager:
        pass
    server.wait_open(0)
    with pytest.raises(PoolClosed):
        manager.get_connection("pay")
    assert manager.servers[server.address].outstanding == 0


def test_nothing_is_kept_of_addresses_long_gone(hosts: Hosts, manage: Any) -> None:  # was: all was
    manager = manage(max_per_address=2)
    for server in hosts.servers(5):
        with manager.connection(server.address):
            pass
    assert len(manager._pool._traffic) == len(manager._pool._address_limits) == 5
    manager._pool.dispose()
    for address in hosts.addresses(300):
        with pytest.raises(ConnectionRefusedError):
            manager.get_connection(address)
    until(lambda: not manager._pool.endpoints())
    manager.servers.forget(time.monotonic() + 3600)
    gc.collect()
    pool = manager._pool
    assert not manager.servers
    assert not pool._traffic
    assert not pool._socket_index._entries
    assert not pool._address_limits
    assert len(pool._factories) <= 1024


def test_a_forked_child_opens_its_own_and_leaves_the_parents_alone(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server(IdServer)
    manager = manage({"pay": group(server)})
    held = manager.get_connection("pay")
    with manager.connection("pay") as sock:
        assert ask(sock, "parent") == "parent"
    reader, writer = os.pipe()
    pid = gevent.os.fork_and_watch()
    if not pid:
        try:
            signal.alarm(30)
            try:
                with manager.connection("pay") as sock:
                    said = [sock.new_sock, ask(sock, "child")]
                manager.release_connection(held)
                answer = [*said, manager.stats().in_use]
            except BaseException:
                answer = [traceback.format_exc()]
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    gevent.socket.wait_read(reader)
    answer = os.read(reader, 65536)
    os.close(reader)
    gevent.os.waitpid(pid, 0)
    assert json.loads(answer) == [True, "child", 0]
    assert ask(held, "still") == "still"
    manager.release_connection(held)
    with manager.connection("pay") as sock:
        assert not sock.new_sock
        assert ask(sock, "parent") == "parent"


def test_another_thread_is_told_that_it_is_one_and_changes_nothing(
    hosts: Hosts, manage: Any
) -> None:
    server = hosts.server()
    asked = []

    def missing(name: str) -> AddressGroup:
        asked.append(name)
        return group(server)

    manager = manage(AddressGroupMap(missing=missing), health=HealthPolicy(failures=1))
    model = manager.servers[server.address]
    held = manager.get_connection(server.address)
    manager.mark_down("127.0.0.1:1")
    for call in (
        lambda: manager.get_connection("pay"),
        lambda: manager.report(held, ok=False),
        lambda: manager.release_connection(held),
        lambda: manager.discard_connection(held),
        lambda: manager.mark_down(server.address),
        lambda: manager.mark_up("127.0.0.1:1"),
        manager.close,
    ):
        assert type(gevent.get_hub().threadpool.apply(what_is_raised, (call,))) is WrongHub
    assert not asked
    assert not manager._names._watcher.closed
    assert model.outstanding == 1
    assert model.state(time.monotonic()) == "up"
    assert is_down(manager, ("127.0.0.1", 1))
    manager.release_connection(held)
    with manager.connection("pay") as sock:
        assert sock is held


@pytest.mark.parametrize("strike", STRIKES, ids=named)
def test_nothing_is_lost_wherever_a_call_is_cancelled(hosts: Hosts, strike: Any) -> None:
    """A resolver that gives way; a dead address, a slow one that must be probed, a good one."""

    class GivesWay:
        def resolve(self, name: str) -> AddressGroup:
            gevent.sleep(0)
            return addresses

    def shake_hands(sock: MonitoredSocket) -> MonitoredSocket:
        gevent.sleep(0)
        return sock

    dead, good = hosts.address(), hosts.server()
    probed = hosts.server()
    addresses = AddressGroup([[(1, dead)], [(1, probed.address)], [(1, good.address)]])
    policy = HealthPolicy(backoff=Backoff(first=0, longest=0), forget_after=600, slow_start=0)

    nth = 0
    reached = True
    while reached:
        nth += 1
        with ConnectionManager(GivesWay(), health=policy, max_sockets=2) as manager:
            for _ in range(3):
                manager.servers[probed.address].failed(time.monotonic())
            stage = Stage("caller", strike, nth)
            stage._armed = True

            def act(manager: ConnectionManager = manager) -> None:
                for _ in range(2):
                    with manager.connection("pay", sock_type=shake_hands) as sock:
                        echo(sock)

            stage.play(lambda stage, act=act: stage.act(act))
            reached = stage.switches >= nth
            until(lambda manager=manager: at_rest(manager))
            for each in (dead, probed.address, good.address):
                assert manager.servers[each].outstanding == 0
                assert manager.servers[each].state(time.monotonic()) != "probing"
            held = [manager.get_connection(probed.address) for _ in range(2)]
            with pytest.raises(OutOfSockets):
                manager.get_connection(probed.address)
            for sock in held:
                manager.release_connection(sock)
        probed.wait_open(0)
        good.wait_open(0)
    assert nth > 5


class Moody(IdServer):
    """Hangs, hangs up, answers late, or answers, as *mood* is when it is asked."""

    mood = "well"

    def serve(self, sock: Any) -> None:
        while self.mood != "accepts only" and (line := sock.recv(100)):
            if self.mood == "hangs up":
                return
            while self.mood == "hangs" and sock.recv(100):
                pass
            if self.mood == "late":
                gevent.sleep(0.02)
            sock.sendall(line)


def shake_hands(sock: MonitoredSocket) -> MonitoredSocket:
    assert ask(sock, "hello") == "hello"
    return sock


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["weighted", "p2c"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_no_place_is_lost_and_no_caller_reads_the_reply_of_another(
    hosts: Hosts, manage: Any, monkeypatch: pytest.MonkeyPatch, balance: str, seed: int
) -> None:
    """Servers fail in every way, names change, callers are killed and time out at any moment."""
    dice = random.Random(seed)
    servers = [hosts.server(Moody) for _ in range(4)]
    limit = Limit(6, "of everybody")
    groups = AddressGroupMap({name: group(*servers[at:]) for at, name in enumerate("abc")})
    manager = watched(
        groups,
        manage,
        max_sockets=7,
        max_per_address=3,
        limits=[limit],
        timeout=0.5,
        connect_timeout=0.2,
        idle_timeout=dice.choice([None, 0.02]),
        max_lifetime=dice.choice([None, 0.05]),
        keepalive=0.01,
        rebalance=0.02,
        balance=balance,
        health=HealthPolicy(failures=2, backoff=Backoff(first=0.01, longest=0.05), slow_start=0.02),
    )

    opened: weakref.WeakSet[Any] = weakref.WeakSet()
    original = SocketFactory.__call__
    peak = 0

    def dial(self: Any) -> Any:
        nonlocal peak
        sock = original(self)
        opened.add(sock)
        peak = max(peak, sum(each.fileno() >= 0 for each in opened))
        return sock

    monkeypatch.setattr(SocketFactory, "__call__", dial)

    wrong, calls, answered = [], 0, 0

    def call() -> None:
        nonlocal calls, answered
        calls += 1
        question = f"question {calls}"
        target = dice.choice([*groups, dice.choice(servers).address])
        sock_type = dice.choice([None, shake_hands, a_pair, Pinged, Bare])
        with manager.connection(target, sock_type=sock_type, read_timeout=0.1) as conn:
            sock = manager._pool.socket_of(conn)
            answer = ask(sock, question)
            if answer != question:
                wrong.append((question, answer))
            answered += 1
            act = dice.choice([*"pppp", "report", "discard", "raise"])
            if act == "report":
                manager.report(conn, ok=dice.random() < 0.5)
            elif act == "discard":
                manager.discard_connection(conn)
            elif act == "raise":
                raise ValueError

    def caller() -> None:
        for _ in range(40):
            patience = dice.choice([None, None, 0.001, 0.005, 0.02])
            with contextlib.suppress(OSError, ValueError), gevent.Timeout(patience, False):
                call()
            gevent.sleep(dice.random() * 0.002)

    callers = [gevent.spawn(caller) for _ in range(12)]
    while not all(each.ready() for each in callers):
        gevent.sleep(dice.random() * 0.005)
        at, server = dice.randrange(len(callers)), dice.choice(servers)
        match dice.randrange(8):
            case 0:
                callers[at].kill(block=False)
                callers.append(gevent.spawn(caller) if len(callers) < 40 else callers[at])
            case 1:
                server.stop()
            case 2:
                server.mood = dice.choice(["well", "hangs", "hangs up", "late", "accepts only"])
            case 3:
                server.rst_all()
            case 4:
                manager.mark_down(server.address, dice.choice([None, 0.01]))
            case 5:
                manager.mark_up(server.address)
            case 6:
                groups[dice.choice("abc")] = group(*dice.sample(servers, dice.randint(1, 4)))
            case 7:
                for each in servers:
                    each.stop()
                    each.start()
                    each.mood = "well"

    assert wrong == []
    assert answered > 0
    assert 1 < peak <= 6
    gc.collect()
    until(lambda: at_rest(manager))
    assert limit.used == manager._pool.size == manager.stats().idle
    for model in manager.servers.values():
        assert model.outstanding == 0
        assert model.state(time.monotonic()) != "probing"
    for each in servers:
        each.mood = "well"
        each.stop()
        each.start()
        manager.mark_up(each.address)
    until(lambda: not manager._pool.endpoints())  # and no pause after a failure either
    held: list[Any] = []

    def hold(server: EchoServer) -> bool:
        try:
            held.append(manager.get_connection(server.address))
        except OutOfSockets:
            raise
        except OSError:  # on a machine that stands still, a dial takes longer than it may
            return False
        return True

    for server in servers[:2] * 3:
        until(lambda server=server: hold(server))
    with pytest.raises(OutOfSockets, match="of everybody"):
        manager.get_connection(servers[2].address)
    for sock in held:
        manager.release_connection(sock)
    manager.close()
    assert limit.used == 0


# Listeners, and arguments


def test_listeners_are_told_of_the_endpoint(hosts: Hosts, manage: Any) -> None:
    told = []

    class Listener(PoolListener):
        def connection_created(self, event: Any) -> None:
            told.append((event.endpoint.address, str(event.endpoint)))

    server = hosts.server()
    manager = manage(listeners=[Listener()])
    with manager.connection(server.address):
        pass
    until(lambda: told)
    assert told == [(server.address, "{}:{}".format(*server.address))]


def test_it_says_how_it_stands(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage(name="mine")
    manager.mark_down(hosts.address())
    with manager.connection(server.address):
        assert repr(manager) == (
            "<ConnectionManager 'mine' 1 in use, 0 idle, 0 connecting | 2 servers, 1 down>"
        )


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"address_groups": [1]}, TypeError, "address_groups must be a mapping"),
        ({"address_aliases": {"a": "b"}}, ValueError, "aliases lead nowhere"),
        ({"ssl_context": True}, TypeError, "ssl_context must be an SSLContext"),
        ({"timeout": -1}, ValueError, "timeout must be"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout must be"),
        ({"rebalance": -1}, ValueError, "rebalance must be"),
        ({"max_sockets": 0}, ValueError, "max_sockets must be at least 1"),
        ({"max_per_address": 0}, ValueError, "max_per_address must be at least 1"),
        ({"balance": "best"}, ValueError, "balance must be"),
        ({"health": 3}, TypeError, "policy must be a HealthPolicy"),
        ({"connect_infos": {"a": (1, 2)}}, TypeError, r"connect_infos\['a'\] must be"),
        (
            {"connect_infos": {"a": ConnectInfo(connect_timeout_ms=0)}},
            ValueError,
            r"connect_infos\['a'\].connect_timeout_ms must be",
        ),
        (
            {"connect_infos": {"a": ConnectInfo(max_connect_retry=-1)}},
            ValueError,
            r"connect_infos\['a'\].max_connect_retry must be",
        ),
        ({"address_groups": AddressGroupMap(), "watch_interval": 0}, ValueError, "interval"),
    ],
    ids=named,
)
def test_a_bad_argument_is_named(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ConnectionManager(**settings)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name_or_addr": 5}, TypeError, "target must be"),
        ({"sock_type": 5}, TypeError, "sock_type must be callable"),
        ({"read_timeout": 0}, ValueError, "read_timeout must be more than 0"),
        ({"timeout": -1}, ValueError, "timeout must be"),
        ({"server_hostname": "a"}, ValueError, "server_hostname is of no use without ssl"),
        (
            {"sock_type": type("Odd", (Line,), {"keepalive": 5})},
            TypeError,
            "keepalive of sock_type must be a method",
        ),
        (
            {"sock_type": type("Odd", (Line,), {"idle_timeout": -5})},
            ValueError,
            "idle_timeout of sock_type must be",
        ),
    ],
    ids=named,
)
def test_a_bad_argument_of_a_call_is_named_and_no_server_blamed(
    manage: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    manager = manage()
    with pytest.raises(error, match=message):
        manager.get_connection(**{"name_or_addr": ("10.0.0.1", 80), **options})
    assert manager.servers[Address("10.0.0.1", 80)].last_error is None
    assert manager.servers[Address("10.0.0.1", 80)].outstanding == 0
