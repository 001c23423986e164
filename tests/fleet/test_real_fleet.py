"""Real processes, of two hubs each, on a real PostgreSQL with little room beyond the cap."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import psycopg2
import pytest
import redis

from support.fleets import RealFleet, RealProcess
from support.own_servers import OwnRedis
from support.waiting import until

# One fleet serves several tests.
pytestmark = [pytest.mark.slow, pytest.mark.may_leak, pytest.mark.timeout(300)]

CAP, PROCESSES, HUBS = 24, 6, 2
LEASE = 3.0
START = 40.0  # seconds that processes may need to start, on a busy machine
BUSY = 10.0  # seconds that a busy machine may add
#: What may be open beyond the cap: what a stopped process keeps; what a server has yet to notice
#: that it was closed; three for a superuser, and the connections of the test and the store.
SLACK = 2 * CAP // PROCESSES + 4 + 3 + 1 + PROCESSES * HUBS + HUBS


def fleet_on(store: str, **settings: Any) -> RealFleet:
    more = {"processes": PROCESSES, "store": store, "lease": LEASE, "callers": 6, **settings}
    return RealFleet(cap=CAP, slack=SLACK, hubs=HUBS, needs=0.1, **more)


class Store(OwnRedis):
    """A Redis that does as it is told."""

    def tell(self, *command: str) -> None:
        host, port = self.address
        with redis.Redis(host, port) as client:
            client.execute_command(*command)


@pytest.fixture(scope="module")
def on_redis() -> Iterator[tuple[RealFleet, Store]]:
    with ExitStack() as stack:
        store = Store()
        stack.enter_context(store)
        fleet = stack.enter_context(fleet_on("redis", redis=store.address))
        fleet.until_open(CAP, START)
        yield fleet, store


def all_is_well(fleet: RealFleet, *, beyond: int = 0) -> None:
    """Nobody was refused, no request was lost, and the cap held but for *beyond*."""
    assert fleet.refused == []
    assert fleet.errors == []
    assert fleet.in_vain == 0
    # What its client has closed may be in pg_stat_activity for a moment.
    assert fleet.most <= CAP + beyond + 2
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


class TestOnRedis:
    @pytest.fixture(autouse=True)
    def begin(self, on_redis: tuple[RealFleet, Store]) -> None:
        self.fleet, self.store = on_redis

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

    def test_a_store_that_is_slow_for_less_than_a_lease_is_not_noticed(self) -> None:
        self.store.tell("CLIENT", "PAUSE", str(int(LEASE * 500)), "ALL")
        gevent.sleep(LEASE)
        self.fleet.until_open(CAP - HUBS, BUSY)
        all_is_well(self.fleet)

    def test_a_store_that_is_emptied_learns_what_there_is(self) -> None:
        self.store.tell("FLUSHALL")
        gevent.sleep(LEASE)
        self.fleet.until_open(CAP, LEASE + BUSY)
        all_is_well(self.fleet)

    def test_a_store_that_is_started_anew_is_used_again(self) -> None:
        self.store.restart()  # it has nothing on disk
        gevent.sleep(LEASE)
        self.fleet.until_open(CAP, 2 * LEASE + BUSY)
        all_is_well(self.fleet)

    def test_with_the_store_away_each_goes_on_with_its_floor(self) -> None:
        self.store.stop()
        until(lambda: self.fleet.open <= PROCESSES * HUBS, "floors only", LEASE + BUSY)
        before = [each.said["done"] for each in self.fleet.processes]
        gevent.sleep(LEASE)
        after = [each.said["done"] for each in self.fleet.processes]
        assert all(more > less for less, more in zip(before, after, strict=True))
        self.store.start()
        self.fleet.until_open(CAP, 2 * LEASE + BUSY)
        all_is_well(self.fleet)


def test_the_database_itself_is_the_store() -> None:
    with fleet_on("postgres") as fleet:
        fleet.until_open(CAP, START)
        killed_and_replaced(fleet)
        stopped_past_its_lease(fleet)
        # It takes the connections with it, and comes back empty.
        fleet.restart_database()
        fleet.until_open(CAP, 2 * LEASE + BUSY)
        assert fleet.refused == []
        assert fleet.most <= CAP + 2
        assert all("PoolTimeout" not in error for error in fleet.errors)


def test_what_is_beyond_the_limit_of_the_database_is_seen() -> None:
    with fleet_on("none", processes=0) as fleet:
        conns = []
        with pytest.raises(psycopg2.OperationalError):
            for _ in range(CAP + SLACK):
                conns.append(psycopg2.connect(**fleet.database.login))
        for conn in conns:
            conn.close()
        assert fleet.refused
