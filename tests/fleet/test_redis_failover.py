"""RedisStore on a master that Sentinel replaces, and on a cluster whose slots move."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis.cluster import ClusterNode, RedisCluster

from geventpool.fleet.redis import RedisError, RedisStore
from geventpool.fleet.share import Grant, Report
from support.adapters.redis import OwnSentinel
from support.own_servers import OwnRedis, free_port
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SLOTS = 16384
numbers = itertools.count(1)


def renew(store: RedisStore, has: int = 0) -> Grant:
    given = {"needs": 5, "wants": 5, "lease": 1000.0, "number": next(numbers)}
    return store.renew(Report("db", 10, "a", has, has, **given))


def until_renewed(store: RedisStore, has: int) -> Grant:
    """Wait until it answers again."""
    answers: list[Grant] = []

    def answered() -> bool:
        try:
            answers.append(renew(store, has))
        except RedisError:
            return False
        return True

    until(answered, "an answer", 60)
    return answers[-1]


def tell(server: OwnRedis, *words: object) -> Any:
    with redis.Redis(*server.address) as client:
        return client.execute_command(*words)


def info(server: OwnRedis, section: str) -> dict[str, Any]:
    with redis.Redis(*server.address) as client:
        return client.info(section)  # type: ignore[no-any-return]


def test_a_master_that_was_killed_is_replaced_by_sentinel_with_the_records() -> None:
    with OwnRedis() as one, OwnRedis("--replicaof", *map(str, one.address)) as two:
        lines = [
            f"sentinel monitor shop {one.address[0]} {one.address[1]} 1",
            "sentinel down-after-milliseconds shop 1000",
            "sentinel failover-timeout shop 3000",
        ]
        with OwnSentinel(*lines) as watcher, ExitStack() as stack:
            admin = stack.enter_context(redis.Redis(*watcher.address))
            admin.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", 100)
            until(lambda: admin.sentinel_slaves("shop"), "the replica to be known")
            sentinel = redis.Sentinel([watcher.address])
            stack.callback(sentinel.sentinels[0].close)
            master = stack.enter_context(sentinel.master_for("shop", socket_timeout=2.0))
            store = RedisStore(master)
            first = renew(store)
            assert renew(store, first.share).share == 1  # it learns, for a lease
            until(lambda: tell(two, "EXISTS", store.prefix + "db"), "the replica's copy")
            tell(one, "WAIT", 1, 5000)
            one.stop(signal.SIGKILL)
            # It has the records; its scripts are none of them.
            answer = until_renewed(store, 1)
            assert answer.epoch == first.epoch
            assert info(two, "replication")["role"] == "master"


@pytest.fixture
def cluster() -> Iterator[list[OwnRedis]]:
    """Three nodes with a third of the slots each, and one that is the replica of the first."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(node()) for _ in range(4)]
        for number, each in enumerate(nodes[:3]):
            tell(each, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            begin, end = (SLOTS * part // 3 for part in (number, number + 1))
            tell(each, "CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for each in nodes[1:]:
            tell(nodes[0], "CLUSTER", "MEET", *each.address, bus_of(each))
        until(lambda: all(is_whole(each) for each in nodes), "the cluster")
        tell(nodes[3], "CLUSTER", "REPLICATE", id_of(nodes[0]))
        until(lambda: info(nodes[3], "replication").get("master_link_status") == "up", "a replica")
        yield nodes


def node() -> OwnRedis:
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
    return OwnRedis(*options, "--cluster-port", str(free_port()))


def bus_of(node: OwnRedis) -> str:
    return node.options[-1]


def id_of(node: OwnRedis) -> str:
    return tell(node, "CLUSTER", "MYID").decode()  # type: ignore[no-any-return]


def is_whole(node: OwnRedis) -> bool:
    found = tell(node, "CLUSTER", "INFO")
    said = (
        found
        if isinstance(found, dict)
        else dict(line.split(":") for line in found.decode().split())
    )
    return said["cluster_state"] == "ok" and said["cluster_known_nodes"] == "4"


@pytest.fixture
def store(cluster: list[OwnRedis]) -> Iterator[RedisStore]:
    startup = [ClusterNode(*each.address) for each in cluster[:3]]
    client = RedisCluster(startup_nodes=startup, socket_timeout=2.0)
    yield RedisStore(client, prefix="{a}")  # whose slot is 15495, of the third node
    client.close()


def move(key: str, slot: int, source: OwnRedis, target: OwnRedis) -> None:
    tell(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", id_of(source))
    tell(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", id_of(target))
    tell(source, "MIGRATE", *target.address, key, 0, 5000)
    for each in (target, source):
        tell(each, "CLUSTER", "SETSLOT", slot, "NODE", id_of(target))


def test_in_a_cluster_records_are_followed_wherever_they_are(
    cluster: list[OwnRedis], store: RedisStore
) -> None:
    key = store.prefix + "db"
    first = renew(store)
    slot = tell(cluster[0], "CLUSTER", "KEYSLOT", key)
    assert tell(cluster[2], "EXISTS", key)

    for each in cluster[:3]:
        tell(each, "SCRIPT", "FLUSH")
    assert renew(store, 1).epoch == first.epoch

    move(key, slot, cluster[2], cluster[0])
    assert renew(store, 1).epoch == first.epoch
    assert tell(cluster[0], "EXISTS", key)
    now, records = store.records("db")
    assert records.keys() == {"a"}
    assert now < records["a"].expires

    tell(cluster[0], "WAIT", 1, 5000)
    cluster[0].stop(signal.SIGKILL)  # its replica takes its slots
    assert until_renewed(store, 1).epoch == first.epoch
    assert info(cluster[3], "replication")["role"] == "master"
