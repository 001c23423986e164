"""A manager that is asked under a Deadline is done before it, whatever it is at."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest

from geventpool import Deadline, MultiConnectFailure
from support.managers import Hosts, group


def test_a_call_ends_before_the_deadline_with_what_all_the_addresses_came_to(
    hosts: Hosts, manage: Any
) -> None:
    manager = manage({"pay": group(hosts.silent(), hosts.silent())})
    began = time.monotonic()
    with pytest.raises(MultiConnectFailure), Deadline(0.4):
        manager.get_connection("pay")
    assert time.monotonic() - began < 0.6


def test_there_is_time_left_for_the_address_that_answers(hosts: Hosts, manage: Any) -> None:
    silent, server = hosts.silent(), hosts.server()
    manager = manage({"pay": [[(1, silent)], [(1, server.address)]]})
    with Deadline(0.6), manager.connection("pay") as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"


def test_its_own_timeout_counts_if_it_is_sooner(hosts: Hosts, manage: Any) -> None:
    manager = manage({"pay": group(hosts.silent())}, timeout=0.1)
    began = time.monotonic()
    with pytest.raises(OSError), Deadline(10):
        manager.get_connection("pay")
    assert time.monotonic() - began < 1


def test_without_a_timeout_of_its_own_it_is_bound_all_the_same(hosts: Hosts, manage: Any) -> None:
    manager = manage({"pay": group(hosts.silent())}, timeout=None)
    began = time.monotonic()
    with pytest.raises(OSError), Deadline(0.2):
        manager.get_connection("pay")
    assert time.monotonic() - began < 1


def test_a_resolver_that_says_nothing_takes_no_longer(manage: Any) -> None:
    class Silent:
        def resolve(self, name: str) -> Any:
            gevent.sleep(10)

    manager = manage(Silent())
    began = time.monotonic()
    with pytest.raises(OSError, match="not resolved after"), Deadline(0.1):
        manager.get_connection("pay")
    assert time.monotonic() - began < 1


def test_a_server_is_not_blamed_for_callers_that_come_too_late(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    manager = manage({"pay": group(server)})
    uses = [gevent.spawn(_use, manager, 0.12) for _ in range(12)]
    gevent.joinall(uses, raise_error=True)

    def late() -> None:
        with pytest.raises(OSError), Deadline(0.2):
            gevent.sleep(0.12)  # less is left than a use takes, and than half of it
            manager.get_connection("pay")

    gevent.joinall([gevent.spawn(late) for _ in range(12)], raise_error=True)

    (model,) = manager.servers.values()
    assert model.down_until is None
    _use(manager, 0)


def _use(manager: Any, seconds: float) -> None:
    with manager.connection("pay"):
        gevent.sleep(seconds)
