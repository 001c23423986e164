"""A SocketFactory that is called under a Deadline is done before it, and says what it was at."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event

from geventpool import ConnectError, Deadline, MultiConnectFailure, SocketFactory
from support.managers import Hosts
from support.servers import EchoServer


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        yield Hosts(stack)


def fails_within(seconds: float, factory: SocketFactory, error: type[Exception]) -> Exception:
    began = time.monotonic()
    with pytest.raises(error) as caught, Deadline(seconds):
        factory()
    # Its own error came, and not the Deadline: it was in time, late though a busy machine is.
    assert seconds - 0.05 < time.monotonic() - began < seconds + 2
    return caught.value


def test_a_black_hole_takes_no_longer_than_the_deadline(hosts: Hosts) -> None:
    error = fails_within(0.3, SocketFactory(hosts.silent()), ConnectError)
    assert "connecting to" in str(error) or "accept queue full" in str(error)


def test_of_several_servers_each_has_its_part_of_what_is_left(hosts: Hosts) -> None:
    with EchoServer() as server:
        with Deadline(0.4):
            sock = SocketFactory([hosts.silent(), server.address])()
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"
        sock.close()


def test_of_several_black_holes_the_error_tells_of_each(hosts: Hosts) -> None:
    holes = [hosts.silent(), hosts.silent()]
    error = fails_within(0.3, SocketFactory(holes), MultiConnectFailure)
    assert isinstance(error, MultiConnectFailure)
    assert len(error.errors) == 2


def test_a_handshake_takes_no_longer_either(hosts: Hosts) -> None:
    address = hosts.serve(lambda sock, peer: sock.recv(10_000) and sock.recv(1))
    factory = SocketFactory(address, tls="unverified")
    assert "TLS handshake with" in str(fails_within(0.2, factory, ConnectError))


def test_nor_does_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer, done = Event(), Event(), Event()

    class Slow:
        def getaddrinfo(self, *args: Any) -> Any:
            asked.set()
            answer.wait()
            done.set()
            raise gevent.socket.gaierror(gevent.socket.EAI_NONAME, "no such host")

    monkeypatch.setattr(gevent.get_hub(), "_resolver", Slow())
    factory = SocketFactory("far.test:80")
    try:
        assert "resolving" in str(fails_within(0.1, factory, ConnectError))
        assert asked.is_set()
    finally:
        answer.set()
        done.wait(1)
        gevent.idle()


def test_nor_does_a_resolver() -> None:
    class Silent:
        def resolve(self, name: str) -> Any:
            gevent.sleep(10)

    factory = SocketFactory("far.test:80", resolver=Silent())
    assert "resolving" in str(fails_within(0.1, factory, ConnectError))


def test_its_own_time_limit_counts_if_it_is_sooner(hosts: Hosts) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectError, match=r"not open after 0\.05 s"), Deadline(10):
        SocketFactory(hosts.silent(), connect_timeout=0.05)()
    assert time.monotonic() - began < 1


def test_a_plain_timeout_strikes_as_ever(hosts: Hosts) -> None:
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.05):
        SocketFactory(hosts.silent())()
    assert isinstance(caught.value.__cause__, ConnectError)


def test_with_nothing_left_it_fails_at_once(hosts: Hosts) -> None:
    with pytest.raises((ConnectError, Deadline)), Deadline(0.0):
        SocketFactory(hosts.silent())()
