"""A store whose server goes away and comes back, seen by a FleetLimit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from geventpool.fleet import FleetLimit
from geventpool.fleet.share import Report
from support.own_servers import OwnEtcd, OwnRedis, OwnZooKeeper
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(params=["redis", "zookeeper", "etcd"])
def server_and_store(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    with ExitStack() as stack:
        server: Any
        match request.param:
            case "redis":
                from geventpool.fleet.redis import RedisStore

                server = stack.enter_context(OwnRedis())
                store: Any = RedisStore("redis://{}:{}".format(*server.address))
                stack.callback(store.client.close)
            case "zookeeper":
                from geventpool.fleet.zookeeper import ZooKeeperStore

                server = stack.enter_context(OwnZooKeeper())
                store = ZooKeeperStore("{}:{}".format(*server.address))
                stack.callback(store.close)
            case _:
                from geventpool.fleet.etcd import EtcdStore

                server = stack.enter_context(OwnEtcd())
                store = EtcdStore(server.address)
                stack.callback(store.close)
        yield server, store


def test_a_store_that_goes_away_and_comes_back_is_used_again(
    server_and_store: tuple[Any, Any],
) -> None:
    server, store = server_and_store
    limit = FleetLimit(10, store=store, name="db", lease=3.0, on_loss="stop")
    try:
        until(lambda: limit.maximum == 1, "the first answer")
        server.stop()
        until(lambda: limit.lost_at is not None, "the loss")
        assert limit.maximum == 1
        until(lambda: limit.maximum == 0, "the end of the lease")
        server.start()
        until(lambda: limit.lost_at is None, "the return", 60)
        answer = store.renew(Report("db", 10, "other", 0, 0, 3, 3))
        assert answer.members == 2
    finally:
        limit.close()
