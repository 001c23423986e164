"""A server that is away is dialed once per back-off, told of once, and keeps nobody waiting."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.server
import pytest

from geventpool.backoff import Backoff
from geventpool.manager import ConnectionManager, HealthPolicy
from support.managers import Hosts, group


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
    kinds = [lambda sock, kind=kind: (kind, sock) for kind in range(10)]

    dials = dials_by_then(
        manager, lambda n: manager.connection(address, sock_type=kinds[n % 10]), 3.5
    )

    assert dials <= 4


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
    assert back.getMessage().endswith(f" s and {dials} dials")


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
