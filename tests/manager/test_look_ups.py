"""No server is marked down for what went wrong on the way to it, and nothing breaks on that way."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool.backoff import Backoff
from geventpool.manager import HealthPolicy
from support.managers import Hosts, group

#: The first failure marks down for good.
STRICT = HealthPolicy(failures=1, backoff=Backoff(first=600.0, longest=600.0, jitter=0))


class Resolver:
    """In the place of the hub's resolver: *answer* is what it raises or does."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def getaddrinfo(self, *args: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer()


@pytest.fixture
def resolve_by(monkeypatch: pytest.MonkeyPatch) -> Any:
    hub: Any = gevent.get_hub()

    def install(answer: Any) -> None:
        monkeypatch.setattr(hub, "_resolver", Resolver(answer))

    return install


@pytest.mark.parametrize("code", ["EAI_AGAIN", "EAI_FAIL", "EAI_SYSTEM", "EAI_MEMORY"])
def test_nobody_is_marked_down_for_a_look_up_that_came_to_no_end(
    manage: Any, resolve_by: Any, code: str
) -> None:
    resolve_by(socket.gaierror(getattr(socket, code), "no answer"))
    manager = manage({"pay": group("far.test:80")}, health=STRICT)
    for _ in range(5):
        with pytest.raises(OSError, match="no answer"):
            manager.get_connection("pay")
    assert manager.servers["far.test:80"].down_until is None


def test_who_has_no_such_host_is_marked_down(manage: Any, resolve_by: Any) -> None:
    resolve_by(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    manager = manage({"pay": group("far.test:80")}, health=STRICT)
    with pytest.raises(OSError, match="not known"):
        manager.get_connection("pay")
    assert manager.servers["far.test:80"].down_until is not None


def test_nobody_is_marked_down_while_its_host_is_looked_up(manage: Any, resolve_by: Any) -> None:
    never = Event()
    resolve_by(never.wait)
    manager = manage({"pay": group("far.test:80")}, health=STRICT, connect_timeout=5.0)
    for _ in range(3):
        with pytest.raises(OSError, match="no connection came free"):
            manager.get_connection("pay", timeout=0.2)
    assert manager.servers["far.test:80"].down_until is None
    never.set()


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 20, hard))
    try:
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in taken:
            os.close(each)


def test_nobody_is_marked_down_while_no_descriptor_is_left(
    hosts: Hosts, manage: Any, hub_errors: list[Any]
) -> None:
    server = hosts.server()
    targets = {"ip": group(server), "host": group(f"localhost:{server.address[1]}")}
    manager = manage(targets, health=STRICT)
    with no_descriptor_left():
        for name in ("ip", "host", "ip", "host"):
            with pytest.raises(OSError):
                manager.get_connection(name, timeout=3.0)
    hub_errors.clear()  # gevent tells of what fails in its threads
    assert all(each.down_until is None for each in manager.servers.values())
    with manager.connection("ip") as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def test_a_caller_is_told_what_the_dial_is_at_that_it_waited_for(
    hosts: Hosts, manage: Any, resolve_by: Any
) -> None:
    silent = hosts.serve(lambda sock, peer: never.wait())
    never = Event()
    where = "{}:{}".format(*silent)
    manager = manage(timeout=0.3, connect_timeout=1.0)
    with pytest.raises(
        OSError, match=rf"; connecting to {where} .* TLS handshake with {where} 0\."
    ):
        manager.get_connection(silent, ssl="unverified")
    resolve_by(never.wait)
    with pytest.raises(OSError, match=r"; resolving far\.test 0\.\d\d\d s"):
        manager.get_connection("far.test:80")
    never.set()


def test_no_digits_beyond_a_millisecond_are_told(hosts: Hosts, manage: Any) -> None:
    manager = manage({"pay": group(hosts.silent(), hosts.silent())}, timeout=0.4)
    with pytest.raises(OSError) as caught:
        manager.get_connection("pay")
    numbers = [word.strip("():;,") for word in str(caught.value).split()]
    shown = [each for each in numbers if each.replace(".", "", 1).isdigit() and "." in each]
    assert shown
    assert all(len(each.partition(".")[2]) <= 3 for each in shown)
