"""What a ConnectionManager does with the changes that a directory pushes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from geventpool.directory import WatchingResolver
from geventpool.manager import HealthPolicy
from support.directories import Board
from support.managers import Hosts
from support.waiting import until


def at(server: Any) -> str:
    return "{}:{}".format(*server.address)


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def resolver(board: Board) -> Iterator[WatchingResolver]:
    with WatchingResolver(board) as resolver:
        yield resolver


def echo(sock: Any) -> None:
    sock.sendall(b"ping")
    assert sock.recv(4) == b"ping"


def test_connections_to_a_server_that_vanished_finish_and_are_no_more(
    hosts: Hosts, manage: Any, board: Board, resolver: WatchingResolver
) -> None:
    old, new = hosts.servers(2)
    board.write("web", at(old))
    manager = manage(resolver, watch_interval=3600.0, watch_hold=0.0)
    held = manager.get_connection("web")
    with manager.connection("web") as idle:
        echo(idle)
    board.write("web", at(new))
    until(lambda: old.open == 1, "the end of the idle one")
    with manager.connection("web") as sock:
        assert sock.getpeername() == new.address
    echo(held)
    manager.release_connection(held)
    until(lambda: not old.open, "the end of the held one")


def test_a_new_server_gets_its_share_by_and_by(
    hosts: Hosts, manage: Any, board: Board, resolver: WatchingResolver
) -> None:
    first, second = hosts.servers(2)
    board.write("web", at(first))
    manager = manage(resolver, watch_hold=0.0, health=HealthPolicy(slow_start=3600.0))
    manager.get_addr("web")
    with manager.connection("web") as sock:
        echo(sock)
    manager.servers[at(first)]._up_since = -1e9  # it has been there for long
    board.write("web", at(first), at(second))
    until(lambda: len(manager.get_all_addrs("web")) == 2)
    chosen: Counter[Any] = Counter()
    for _ in range(400):
        with manager.connection("web") as sock:
            chosen[sock.getpeername()] += 1
    # A tenth of its weight, against all of that of the other: 36 of 400.
    assert 0 < chosen[second.address] < 90
    manager.servers[at(second)]._up_since = -1e9
    chosen.clear()
    for _ in range(400):
        with manager.connection("web") as sock:
            chosen[sock.getpeername()] += 1
    assert 140 < chosen[second.address] < 260


def test_a_service_that_is_emptied_loses_no_connection(
    hosts: Hosts, manage: Any, board: Board, resolver: WatchingResolver
) -> None:
    server = hosts.server()
    board.write("web", at(server))
    manager = manage(resolver, watch_interval=0.01, watch_hold=0.0)
    with manager.connection("web") as sock:
        echo(sock)
    board.write("web")
    until(lambda: resolver._services["web"].roster.is_emptied)
    with manager.connection("web") as sock:
        echo(sock)
    assert manager.stats().opened == 1
