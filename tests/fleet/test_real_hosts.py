"""Three hosts of one cap, each a network namespace: one is cut off from the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import gevent
import pytest

from support.fleets import RealFleet, RealProcess
from support.networks import Hosts, Place
from support.own_servers import OwnRedis
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.may_leak, pytest.mark.timeout(300)]

HOSTS, PROCESSES, HUBS = 3, 2, 2  # processes of a host, hubs of a process
CAP, LEASE = 24, 3.0
START, BUSY = 60.0, 10.0  # seconds that a busy machine may add
FLOORS = PROCESSES * HUBS  # of a host
SLACK = 4 + 3 + 1  # not yet seen to be closed; a superuser's; the test's


@pytest.fixture
def fleet() -> Iterator[tuple[RealFleet, Hosts, dict[Place, list[RealProcess]]]]:
    with ExitStack() as stack:
        hosts = stack.enter_context(Hosts(HOSTS))
        options = ("--protected-mode", "no")
        store = stack.enter_context(OwnRedis(*options, place=hosts.place("store")))
        settings = {"store": "redis", "address": store.address, "lease": LEASE, "callers": 6}
        fleet = RealFleet(
            cap=CAP,
            slack=SLACK,
            hubs=HUBS,
            needs=0.1,
            processes=0,
            place=hosts.place("database"),
            **settings,
        )
        stack.enter_context(fleet)
        there = {host: [fleet.start(host) for _ in range(PROCESSES)] for host in hosts.hosts}
        fleet.until_open(CAP, START)
        yield fleet, hosts, there


def shares(processes: list[RealProcess]) -> int:
    return sum(sum(each.said["shares"]) for each in processes)


def test_a_host_cut_off_from_the_store_goes_on_with_its_floors_and_the_cap_holds(
    fleet: tuple[RealFleet, Hosts, dict[Place, list[RealProcess]]],
) -> None:
    real, hosts, there = fleet
    cut, *others = hosts.hosts
    rest = [each for host in others for each in there[host]]
    hosts.cut(cut, "store")
    until(lambda: shares(there[cut]) == FLOORS, "floors only", LEASE + BUSY)
    until(lambda: shares(rest) == CAP - FLOORS, "what it has left", LEASE + BUSY)
    real.until_open(CAP, BUSY)
    before = [each.said["done"] for each in there[cut]]
    gevent.sleep(2 * LEASE)
    after = [each.said["done"] for each in there[cut]]
    assert all(more > less for less, more in zip(before, after, strict=True))
    assert shares(there[cut]) == FLOORS
    hosts.mend(cut, "store")
    fair = CAP // HOSTS
    until(lambda: shares(there[cut]) == fair, "its share again", 2 * LEASE + BUSY)
    real.until_open(CAP, BUSY)
    assert real.refused == []
    assert real.errors == []
    assert real.in_vain == []
    assert real.most <= CAP + 2  # what its client has closed may be there for a moment
