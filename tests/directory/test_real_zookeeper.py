"""What is ZooKeeper's alone: rights on single nodes, and watches that cannot be taken back."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import gevent
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
        client = resolver._source._session.client()
        for watchers, path in (
            (client._child_watchers, f"/services/{name}"),
            (client._data_watchers, f"/services/{name}/{A}"),
            (client._child_watchers, f"/services/{other}"),
            (client._data_watchers, f"/services/{third}"),
        ):
            assert len(watchers[path]) == 1
        resolver.resolve(name)
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
