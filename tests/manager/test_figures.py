"""What a manager counts and tells: each caller once, each server's outage once at each end, and
sockets that are held for long."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import Limit
from geventpool.addresses import AddressGroup
from geventpool.backoff import Backoff
from geventpool.errors import (
    MarkedDownError,
    MultiConnectFailure,
    NameNotFound,
    OutOfSockets,
    PoolTimeout,
)
from geventpool.events import ConnectionHeldLong, PoolListener
from geventpool.manager import ConnectInfo, ConnectionManager, HealthPolicy
from geventpool.testing import FakeClock
from support.managers import Hosts, group
from support.waiting import until

Manage = Callable[..., ConnectionManager]
SHORT = HealthPolicy(failures=1, backoff=Backoff(first=0.05, longest=0.05), slow_start=0)


def counted(manager: ConnectionManager) -> dict[str, int]:
    return {kind: count for kind, count in manager.stats().refusals.items() if count}


def test_a_caller_that_all_addresses_have_failed_is_counted_once(
    hosts: Hosts, manage: Manage
) -> None:
    manager = manage({"pay": AddressGroup.of(*(hosts.address() for _ in range(3)))})
    for _ in range(2):
        with pytest.raises(MultiConnectFailure):
            manager.get_connection("pay")
    assert counted(manager) == {"dial": 2}
    assert all(server.refused == 2 for server in manager.servers.values())


def test_a_caller_that_another_address_has_served_is_not_counted(
    hosts: Hosts, manage: Manage
) -> None:
    server = hosts.server()
    silent = hosts.silent()
    manager = manage({"pay": [[(1, silent)], [(1, server.address)]]}, timeout=1.0)
    with manager.connection("pay"):
        assert counted(manager) == {}


def test_each_kind_of_error_of_a_manager_is_counted_as_that(hosts: Hosts, manage: Manage) -> None:
    server, away, silent = hosts.server(), hosts.address(), hosts.silent()
    info = ConnectInfo(markdown=True)
    manager = manage(
        {"off": group(server)}, connect_infos={"off": info}, limits=[Limit(1)], timeout=0.2
    )
    with pytest.raises(PoolTimeout):
        manager.get_connection(silent)
    until(lambda: not manager._pool.size or not manager._pool.stats().connecting, seconds=20)
    with manager.connection(server.address):
        with pytest.raises(OutOfSockets):
            manager.get_connection(server.address)
    with pytest.raises(ConnectionRefusedError):
        manager.get_connection(away)
    with pytest.raises(MarkedDownError):
        manager.get_connection("off")
    manager.mark_down(away)
    with pytest.raises(MarkedDownError):
        manager.get_connection(away)
    with pytest.raises(NameNotFound):
        manager.get_connection("nowhere")
    assert counted(manager) == {"timeout": 1, "limit": 1, "dial": 2, "down": 2}


def test_a_call_that_is_wrong_is_no_refusal(hosts: Hosts, manage: Manage) -> None:
    manager = manage()
    with pytest.raises(ValueError, match="server_hostname"):
        manager.get_connection(hosts.address(), server_hostname="here")
    with pytest.raises((TypeError, ValueError)):
        manager.get_connection(object())
    assert counted(manager) == {}


def test_the_log_has_a_line_at_each_end_of_an_outage_and_none_for_a_dial(
    hosts: Hosts, manage: Manage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "geventpool")
    server = hosts.server()
    server.stop()
    manager = manage({"pay": group(server)}, health=SHORT, name="pay")
    while manager.stats().dial_failed < 5:
        with pytest.raises(OSError, match=r"refused|marked down"):
            manager.get_connection("pay")
        gevent.sleep(0.02)
    refused = sum(counted(manager).values())
    server.start()
    while not server.opened:
        try:
            manager.release_connection(manager.get_connection("pay"))
        except OSError:
            refused += 1
            gevent.sleep(0.02)

    down, back = (each for each in caplog.records if "closed a connection" not in each.msg)
    assert {down.name, back.name} == {"geventpool.pool.pay"}
    assert (down.levelname, back.levelname) == ("WARNING", "INFO")
    # The caller whose failure marked it down, and got no connection after that, is among them.
    assert f"; {refused} callers got no connection meanwhile" in back.getMessage()


def test_managers_without_a_name_are_told_apart(manage: Manage) -> None:
    class Gateway(ConnectionManager):
        pass

    first, second = manage(), manage()
    kind, number = first.name.split("-")
    assert kind == "ConnectionManager"
    assert second.name == f"ConnectionManager-{int(number) + 1}"
    assert Gateway().name.startswith("Gateway-")
    assert manage(name="pay").name == "pay"


# Held for long


class Told(PoolListener):
    def __init__(self) -> None:
        self.events: list[ConnectionHeldLong] = []

    def connection_held_long(self, event: ConnectionHeldLong) -> None:
        self.events.append(event)


def hold_on(manager: ConnectionManager, target: Any, done: Event) -> None:
    with manager.connection(target):
        done.wait()


def test_a_socket_held_for_long_is_told_of_as_by_a_pool(
    hosts: Hosts, manage: Manage, caplog: pytest.LogCaptureFixture
) -> None:
    told, done, server = Told(), Event(), hosts.server()
    with FakeClock() as clock:
        manager = manage(leak_threshold=3000.0, track=True, listeners=[told], name="pay")
        holder = gevent.spawn(hold_on, manager, server.address, done)
        until(lambda: manager.stats().in_use)
        clock.advance(3001.0)
        until(lambda: told.events)
        until(lambda: "has been held for" in caplog.text)
        assert manager.stats().held_long == 1
        ((seen),) = manager.holders()
        done.set()
        holder.get(timeout=10)
    (event,) = told.events
    assert event.greenlet is holder
    assert event.age >= 3001.0
    assert event.endpoint.address.port == server.address[1]
    assert "in hold_on" in str(event.where)
    assert "in hold_on" in str(seen.where)
    assert "done.wait()" in str(event.stack)


@pytest.mark.parametrize("wrong", [0, -1, "3", True, float("nan")])
def test_a_leak_threshold_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="leak_threshold"):
        ConnectionManager(leak_threshold=wrong)
