"""Real processes, of two hubs each, on a real PostgreSQL with little room beyond the cap.

With ``GEVENTPOOL_FLEET_PROCESSES=24`` there are so many, and with ``GEVENTPOOL_FLEET_LEASE=10``
each lease takes so many seconds: the store is away for a minute then.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import psycopg2
import pytest
import redis

from support.fleets import RealFleet, RealProcess
from support.own_servers import OwnEtcd, OwnRedis, OwnServer, OwnZooKeeper
from support.waiting import until

# One fleet serves several tests.
pytestmark = [pytest.mark.slow, pytest.mark.may_leak, pytest.mark.timeout(300)]

PROCESSES, HUBS = int(os.environ.get("GEVENTPOOL_FLEET_PROCESSES", "6")), 2
LEASE = float(os.environ.get("GEVENTPOOL_FLEET_LEASE", "3"))
CAP = 4 * PROCESSES
AWAY = 6 * LEASE  # seconds
START = 30.0 + 5 * PROCESSES  # seconds that processes may need to start, on a busy machine
BUSY = 10.0  # seconds that a busy machine may add
#: What may be open beyond the cap: what a stopped process keeps; what a server has yet to notice
#: that it was closed; three for a superuser, and the connection of the test.
SLACK = 2 * CAP // PROCESSES + 4 + 3 + 1
#: Those of the store, where that is the database itself, and of a successor.
OF_STORE = (PROCESSES + 1) * HUBS

STORES: dict[str, type[OwnServer]] = {
    "redis": OwnRedis,
    "zookeeper": OwnZooKeeper,
    "etcd": OwnEtcd,
}
on_redis = pytest.mark.parametrize("fleet_and_store", ["redis"], indirect=True)


def fleet_on(store: str, slack: int = SLACK, **settings: Any) -> RealFleet:
    needs = PROCESSES / 24  # as many requests a second, however many processes
    more = {"processes": PROCESSES, "store": store, "lease": LEASE, "callers": 6, **settings}
    return RealFleet(cap=CAP, slack=slack, hubs=HUBS, needs=needs, **more)


@pytest.fixture(scope="module", params=list(STORES))
def fleet_and_store(request: pytest.FixtureRequest) -> Iterator[tuple[RealFleet, OwnServer]]:
    with STORES[request.param]() as store:
        with fleet_on(request.param, address=store.address) as fleet:
            fleet.until_open(CAP, START)
            yield fleet, store


def all_is_well(fleet: RealFleet, *, beyond: int = 0) -> None:
    """Nobody was refused, no request was lost, and the cap held but for *beyond*."""
    assert fleet.refused == []
    assert fleet.errors == []
    assert fleet.in_vain == []
    # What its client has closed may be in pg_stat_activity for a moment.
    assert fleet.most <= CAP + beyond + 2
    print(f"at most {fleet.most} of {CAP} were open; {fleet.done} requests are done")
    fleet.most = 0


def flip(processes: list[RealProcess]) -> None:
    """Have these begin to work, or end it."""
    for each in processes:
        each.signal(signal.SIGUSR1)


def killed_and_replaced(fleet: RealFleet) -> None:
    fleet.kill(fleet.processes[0])
    # For some leases a floor is kept for each hub that went without a word.
    fleet.until_open(CAP - HUBS, 2 * LEASE + BUSY)
    done = fleet.start()
    until(lambda: done.said["done"] > 0, "a request of the successor", START)
    all_is_well(fleet)


def stopped_past_its_lease(fleet: RealFleet) -> None:
    stopped = fleet.processes[0]
    held = sum(stopped.said["shares"])
    fleet.pause(stopped, LEASE * 2)
    before = stopped.said["done"]
    until(lambda: stopped.said["done"] > before, "a request of the one that was stopped", BUSY)
    until(lambda: fleet.open <= CAP, "the cap to hold again", LEASE + BUSY)
    all_is_well(fleet, beyond=held)
    fleet.until_open(CAP - HUBS, 2 * LEASE + BUSY)


def tell(store: OwnServer, *command: str) -> None:
    host, port = store.address
    with redis.Redis(host, port) as client:
        client.execute_command(*command)


class TestOnAServerOfItsOwn:
    @pytest.fixture(autouse=True)
    def begin(self, fleet_and_store: tuple[RealFleet, OwnServer]) -> None:
        self.fleet, self.store = fleet_and_store

    @on_redis
    def test_a_load_that_moves_finds_its_connections_and_the_cap_holds(self) -> None:
        busy, idle = self.fleet.processes[1::2], self.fleet.processes[::2]
        flip(idle)
        gevent.sleep(LEASE)
        for _ in range(3):
            self.until_shared_by(busy)
            flip(self.fleet.processes)
            busy, idle = idle, busy
        self.until_shared_by(busy)
        flip(idle)
        all_is_well(self.fleet)

    def until_shared_by(self, processes: list[RealProcess]) -> None:
        """Wait until these have all but the floors of the others."""
        until(
            lambda: sum(sum(each.said["shares"]) for each in processes) >= CAP - PROCESSES,
            "the shares of the busy ones",
            BUSY,
        )

    def test_one_that_is_killed_leaves_its_share_to_the_others(self) -> None:
        killed_and_replaced(self.fleet)

    def test_one_that_is_stopped_opens_nothing_on_an_old_lease(self) -> None:
        stopped_past_its_lease(self.fleet)

    @on_redis
    def test_a_store_that_is_slow_for_less_than_a_lease_is_not_noticed(self) -> None:
        tell(self.store, "CLIENT", "PAUSE", str(int(LEASE * 500)), "ALL")
        gevent.sleep(LEASE)
        self.fleet.until_open(CAP - HUBS, BUSY)
        all_is_well(self.fleet)

    @on_redis
    def test_a_store_that_is_emptied_learns_what_there_is(self) -> None:
        tell(self.store, "FLUSHALL")
        gevent.sleep(LEASE)
        self.fleet.until_open(CAP, LEASE + BUSY)
        all_is_well(self.fleet)

    def test_a_store_that_is_started_anew_is_used_again(self) -> None:
        self.store.restart()  # a Redis of these has nothing on disk
        gevent.sleep(LEASE)
        self.fleet.until_open(CAP - HUBS, 2 * LEASE + BUSY)
        all_is_well(self.fleet)

    def test_with_the_store_away_for_long_each_goes_on_with_its_floor(self) -> None:
        self.store.stop()
        left = gevent.spawn(gevent.sleep, AWAY)
        until(lambda: self.fleet.open <= PROCESSES * HUBS, "floors only", LEASE + BUSY)
        before = [each.said["done"] for each in self.fleet.processes]
        left.join()
        done = [
            each.said["done"] - less
            for less, each in zip(before, self.fleet.processes, strict=True)
        ]
        assert min(done) > 0, done
        assert self.fleet.open <= PROCESSES * HUBS
        self.store.start()
        self.fleet.until_open(CAP, 2 * LEASE + BUSY)
        all_is_well(self.fleet)


def test_the_database_itself_is_the_store() -> None:
    with fleet_on("postgres", SLACK + OF_STORE) as fleet:
        fleet.until_open(CAP, START)
        killed_and_replaced(fleet)
        stopped_past_its_lease(fleet)
        # It takes the connections with it, and comes back empty.
        fleet.restart_database()
        fleet.until_open(CAP, 2 * LEASE + BUSY)
        assert fleet.refused == []
        assert fleet.most <= CAP + 2
        print(f"{fleet.done} requests are done, {len(fleet.errors)} were cut")
        assert all("PoolTimeout" not in error for error in fleet.errors)


def test_one_of_the_processes_has_the_records_until_it_is_killed(tmp_path: Path) -> None:
    with fleet_on("local", processes=1, address=str(tmp_path / "run")) as fleet:
        until(lambda: fleet.done > 0, "the first one, which answers the others", START)
        for _ in range(PROCESSES - 1):
            fleet.start()
        fleet.until_open(CAP, START)
        killed_and_replaced(fleet)
        fleet.until_open(CAP, 2 * LEASE + BUSY)  # the successor has not known of any floor
        all_is_well(fleet)


def test_what_is_beyond_the_limit_of_the_database_is_seen() -> None:
    with fleet_on("none", processes=0) as fleet:
        conns = []
        with pytest.raises(psycopg2.OperationalError):
            for _ in range(CAP + SLACK):
                conns.append(psycopg2.connect(**fleet.database.login))
        for conn in conns:
            conn.close()
        assert fleet.refused
