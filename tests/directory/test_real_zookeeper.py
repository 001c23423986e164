"""What is ZooKeeper's alone: rights on single nodes, and watches that are taken back."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from kazoo.security import make_digest_acl

from geventpool.addresses import AddressGroup
from geventpool.errors import NameNotFound
from support.real_directories import ZooKeeperDirectory
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


@pytest.fixture(scope="module")
def zookeeper() -> Iterator[ZooKeeperDirectory]:
    with ZooKeeperDirectory() as directory:
        yield directory


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


def watched_by(resolver: Any) -> tuple[set[str], int]:
    """The paths that its kazoo watches, and how many watches the server has."""
    session = resolver._source._session
    client, (host, port) = session.client(), session.hosts.split(":")
    here = set()
    for known in (client._child_watchers, client._data_watchers):
        assert all(len(watches) == 1 for watches in known.values())
        here |= known.keys()
    with gevent.socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(b"mntr")
        said = dict(line.split(b"\t") for line in sock.makefile("rb"))
    return here, int(said[b"zk_watch_count"])


def test_a_server_that_may_not_be_read_takes_no_other_away(
    zookeeper: ZooKeeperDirectory, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    zookeeper.write(name, A)
    acl = [make_digest_acl("user", "password", all=True)]
    zookeeper.session.client().create(f"/services/{name}/{B}", b"", acl=acl)
    with zookeeper.resolver() as resolver:
        assert resolver.resolve(name) == AddressGroup.of(A)
        zookeeper.write(name, C)
        until(lambda: resolver.resolve(name) == AddressGroup.of(A, C))
    assert not caplog.messages


def test_a_name_that_is_watched_anew_leaves_no_more_watches_behind(
    zookeeper: ZooKeeperDirectory, name: str
) -> None:
    other, third = f"{name}-2", f"{name}-3"
    zookeeper.write(name, A)
    zookeeper.write(other, B)
    with zookeeper.resolver(max_names=1) as resolver:
        for _ in range(5):
            resolver.resolve(name)
            resolver.resolve(other)  # ends the watch of the first
            resolver._services[other].greenlet.kill()
            assert resolver.resolve(other) == AddressGroup.of(B)
            with pytest.raises(NameNotFound):
                resolver.resolve(third)
        until(lambda: watched_by(resolver) == ({f"/services/{third}"}, 1))
        resolver.resolve(name)
        expected = {f"/services/{name}", f"/services/{name}/{A}"}
        until(lambda: watched_by(resolver) == (expected, 2))
        zookeeper.write(name, C)
        until(lambda: resolver.resolve(name) == AddressGroup.of(A, C))
        zookeeper.write(name, A, B.encode())
        until(lambda: resolver.resolve(name) == AddressGroup.of(B, C))


def test_what_comes_and_goes_leaves_nothing_behind(
    zookeeper: ZooKeeperDirectory, name: str
) -> None:
    with zookeeper.resolver() as resolver:
        zookeeper.write(name, A)
        resolver.resolve(name)
        for number in range(5):
            entry = f"10.0.1.{number}:80"
            zookeeper.write(name, entry)
            until(lambda entry=entry: resolver.resolve(name) == AddressGroup.of(A, entry))  # type: ignore[misc]
            zookeeper.remove(name, entry)
            until(lambda: resolver.resolve(name) == AddressGroup.of(A))
        zookeeper.write(name, B)
        until(lambda: resolver.resolve(name) == AddressGroup.of(A, B))
        gevent.idle()
        assert resolver._source._folders[name]._stale <= {A, B}
