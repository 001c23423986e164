"""Every store decides the same, by a clock of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geventpool.fleet import MemoryStore, Store
from geventpool.fleet.local import LocalStore
from geventpool.fleet.share import MEMORY, Grant, Report
from support.child import FORKS, Child
from support.own_servers import OwnEtcd, OwnServer, OwnZooKeeper
from support.servers import require_server
from support.waiting import until

LONG = 1000.0  # a lease that does not end here


def redis_store() -> Any:
    from geventpool.fleet.redis import RedisStore

    host, port = require_server("redis")
    return RedisStore(f"redis://{host}:{port}/0")


def zookeeper_store(server: OwnServer) -> Any:
    from geventpool.fleet.zookeeper import ZooKeeperStore

    host, port = server.address
    return ZooKeeperStore(f"{host}:{port}")


def etcd_store(server: OwnServer) -> Any:
    from geventpool.fleet.etcd import EtcdStore

    return EtcdStore(server.address)


def postgres_store() -> Any:
    from geventpool.contrib.psycopg2 import Psycopg2Pool
    from geventpool.fleet.postgres import PostgresStore

    host, port = require_server("postgres")
    pool = Psycopg2Pool(f"host={host} port={port} user=postgres dbname=test", 1)
    return PostgresStore(pool)


@pytest.fixture(scope="module")
def zookeeper() -> Iterator[OwnServer]:
    with OwnZooKeeper() as server:
        yield server


@pytest.fixture(scope="module")
def etcd() -> Iterator[OwnServer]:
    with OwnEtcd() as server:
        yield server


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("zookeeper", "etcd")]


@pytest.fixture(params=["memory", "local", "redis", "postgres", *SLOW])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    made: Any
    match request.param:
        case "memory":
            yield MemoryStore()
        case "local":
            request.getfixturevalue("run_folder")
            made = LocalStore()
            yield made
            made.close()
        case "redis":
            made = redis_store()
            yield made
            made.client.close()
        case "postgres":
            made = postgres_store()
            yield made
            made.pool.close()
        case "zookeeper":
            made = zookeeper_store(request.getfixturevalue("zookeeper"))
            yield made
            made.close()
        case _:
            made = etcd_store(request.getfixturevalue("etcd"))
            yield made
            made.close()


class Cap:
    """One cap of a store, that has learnt already what there is."""

    def __init__(self, store: Store, cap: int = 10, *, learning: bool = False) -> None:
        self.store, self.name, self.cap = store, uuid.uuid4().hex, cap
        self.number = 0
        if not learning:
            self.renew("first", lease=0.05)
            # Once it has learnt, one that wants nothing gets nothing, whatever it has.
            until(lambda: not self.renew("first", has=1, floor=0, lease=0.05).share)
            store.release(self.name, "first")

    def renew(self, id: str, wants: int = 0, used: int = 0, has: int = 0, **more: Any) -> Grant:
        self.number += 1
        settings = {"needs": wants, "floor": 1, "lease": LONG, "number": self.number, **more}
        return self.store.renew(Report(self.name, self.cap, id, used, has, wants=wants, **settings))


def test_shares_move_to_who_wants_more_once_they_are_free(store: Store) -> None:
    cap = Cap(store)
    assert cap.renew("a", 10).share == 10
    assert cap.renew("b", 10) == (0, 2, cap.renew("a", 10, used=10, has=10).epoch, 1)
    assert cap.renew("a", 10, used=5, has=5).share == 5
    assert cap.renew("b", 10).share == 5


def test_one_that_releases_is_forgotten_at_once(store: Store) -> None:
    cap = Cap(store)
    cap.renew("a", 10)
    store.release(cap.name, "a")
    assert cap.renew("b", 10)[:2] == (10, 1)


def test_one_whose_lease_ends_keeps_its_floor_for_a_while_and_no_more(store: Store) -> None:
    cap, lease = Cap(store), 0.2
    cap.renew("a", 10, floor=2, lease=lease)
    assert cap.renew("b", 10).share == 0
    until(lambda: cap.renew("b", 10).share == 8)
    until(lambda: cap.renew("b", 10, has=8).share == 10, seconds=(MEMORY + 1) * lease + 20)


def test_an_emptied_store_says_so_by_its_epoch_and_learns(store: Store) -> None:
    cap = Cap(store, learning=True)
    first = cap.renew("a", 10, used=7, has=8)
    assert first.share == 8
    assert cap.renew("b", 10).share == 1
    other = Cap(store, learning=True)
    assert other.renew("a", 10).epoch != first.epoch == cap.renew("a", 10, has=8).epoch


def test_what_is_needed_comes_before_what_some_would_like_to_spare(store: Store) -> None:
    cap = Cap(store)
    cap.renew("a", 10, needs=2)
    cap.renew("b", 9, needs=7)
    assert cap.renew("a", 10, used=2, has=2, needs=2).share == 3  # one is left to spare
    assert cap.renew("b", 9, needs=7).share == 7


def test_a_report_that_comes_after_a_later_one_changes_nothing(store: Store) -> None:
    cap = Cap(store)
    cap.renew("a", 4)
    late = cap.number + 1
    cap.number = late
    assert cap.renew("a", 9, used=4, has=4).share == 9
    assert cap.renew("a", 1, used=0, has=0, number=late)[:2] == (9, 1)
    assert cap.renew("b", 10).share == 1


def test_each_process_has_a_place_of_its_own_for_as_long_as_it_lives(store: Store) -> None:
    cap = Cap(store)
    assert [cap.renew(id).place for id in "abcabc"] == [0, 1, 2, 0, 1, 2]
    store.release(cap.name, "b")
    assert [cap.renew(id).place for id in "cda"] == [2, 1, 0]


def test_an_emptied_store_gives_each_process_the_place_that_it_had(store: Store) -> None:
    cap = Cap(store)
    assert cap.renew("a", place=4).place == 4
    assert cap.renew("b", place=2).place == 2
    assert cap.renew("c", place=4).place == 0  # which another has by now


def test_a_late_report_is_told_the_place_too(store: Store) -> None:
    cap = Cap(store)
    cap.renew("a")
    assert cap.renew("b").place == 1
    assert cap.renew("b", number=1).place == 1


def test_an_older_generation_wants_nothing_more(store: Store) -> None:
    cap = Cap(store)
    cap.renew("old", 10)
    cap.renew("new", 6, generation=1)
    assert cap.renew("old", 10, used=1, has=1).share == 1
    assert cap.renew("new", 6, generation=1).share == 6


def test_caps_of_different_names_know_nothing_of_each_other(store: Store) -> None:
    one, other = Cap(store), Cap(store)
    assert one.renew("a", 10).share == 10
    assert other.renew("a", 10).share == 10


def test_many_at_a_time_never_get_more_than_there_is(store: Store) -> None:
    cap = Cap(store, cap=20)
    has = dict.fromkeys(map(str, range(15)), 0)

    def live(id: str) -> None:
        for _ in range(10):
            has[id] = cap.renew(id, wants=7, used=has[id], has=has[id]).share
            assert sum(has.values()) <= 20
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(live, id) for id in has], raise_error=True)
    # What one is to give back is free once it has said so: a report later, wherever it stands.
    for id in (*has, *has, *has):
        has[id] = cap.renew(id, wants=7, used=has[id], has=has[id]).share
    assert sum(has.values()) == 20
    assert max(has.values()) - min(has.values()) <= 1


reports = st.lists(
    st.tuples(
        st.sampled_from("abcde"),
        st.integers(0, 12),
        st.integers(0, 12),
        st.integers(0, 6),
        st.integers(0, 6),
        st.sampled_from([1, 1, 2, 3]),
        st.sampled_from([0, 1, 2]),
        st.sampled_from([0, 0, 0, 1]),
    )
    | st.sampled_from("abcde"),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow
def test_all_stores_decide_the_same(request: pytest.FixtureRequest) -> None:
    redis, postgres = redis_store(), postgres_store()
    stores: list[Any] = [MemoryStore(), redis, postgres]
    try:

        @settings(
            max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(st.integers(1, 25), reports)
        def same(size: int, steps: list[Any]) -> None:
            caps = [Cap(store, size) for store in stores]
            for step in steps:
                if isinstance(step, str):
                    for cap in caps:
                        cap.store.release(cap.name, step)
                    continue
                id, wants, needs, used, has, weight, floor, generation = step
                more = {"weight": weight, "floor": min(floor, size), "generation": generation}
                more["needs"] = needs
                grants = [cap.renew(id, wants, used, has, **more) for cap in caps]
                answers = [(each.share, each.members, each.place) for each in grants]
                assert answers == [answers[0]] * 3, (step, answers)

        same()
    finally:
        redis.client.close()
        postgres.pool.close()


@pytest.mark.slow
def test_caps_of_similar_names_are_none_of_each_other_s_in_zookeeper(
    zookeeper: OwnServer,
) -> None:
    store = zookeeper_store(zookeeper)
    start = uuid.uuid4().hex
    names = [f"{start}{end}" for end in ("", ".clock", "/b", "%2Fb", "/", " b", "é")]
    for number, name in enumerate((*names, ".", "..")):
        store.renew(Report(name, 10, f"of {number}", 0, 0, wants=0, needs=0, floor=1, lease=LONG))
    for number, name in enumerate((*names, ".", "..")):
        found, _ = store._read(store._path("caps", name))
        assert found is not None
        assert set(found.records) == {f"of {number}"}
    store.close()


def test_a_client_that_is_none_is_not_shown() -> None:
    from geventpool.fleet.redis import RedisStore

    with pytest.raises(TypeError, match="client must be .*, not a tuple$"):
        RedisStore(("user", "hunter2"))


@pytest.mark.slow
@FORKS
def test_a_child_has_a_session_with_zookeeper_of_its_own(zookeeper: OwnServer, fork: Any) -> None:
    store = zookeeper_store(zookeeper)
    try:
        name = uuid.uuid4().hex
        store.renew(Report(name, 10, "parent", 0, 0, 3, 3))

        def child() -> int:
            members: int = store.renew(Report(name, 10, "child", 0, 0, 3, 3)).members
            store.close()
            return members

        assert Child(fork, child).result() == 2
        assert store.renew(Report(name, 10, "parent", 0, 0, 3, 3, number=2)).members == 2
    finally:
        store.close()
