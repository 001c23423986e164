"""Of a large service each process uses a part: small, stable, and even over all processes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.subset import parts
from benchmarks.subset import subset as benchmark
from geventpool import AddressGroupMap, ConnectError, Subset
from geventpool.addresses import Address, AddressGroup, AnyAddress, Tier
from geventpool.backoff import Backoff
from geventpool.fleet import FleetLimit, MemoryStore
from geventpool.manager import Balance, HealthPolicy, ServerModelDirectory
from support.child import FORKS, Child
from support.managers import Hosts, group
from support.servers import ask
from support.waiting import until

MANY = [Address(f"10.0.{n // 250}.{n % 250 + 1}", 80) for n in range(300)]


class Place:
    """Where a process stands among all of its kind."""

    def __init__(self, place: int | None) -> None:
        self.place = place


def tier_of(*addresses: AnyAddress) -> Tier:
    return tuple((1.0, each) for each in addresses)


def first(subset: Subset, tier: Tier, down: Any = ()) -> list[AnyAddress]:
    """The first that are up, in their order."""
    near, _ = subset.near(tier, lambda each: each not in down)
    return [each for _, each in near if each not in down]


sizes = st.integers(1, 30)
keys = st.text(max_size=8)
servers = st.lists(st.sampled_from(MANY), min_size=1, max_size=60, unique=True)


def either(key: str, place: int | None) -> dict[str, Any]:
    return {"key": key, "fleet": None if place is None else Place(place)}


places = st.none() | st.integers(0, 1000)


@pytest.mark.slow
@given(sizes, keys, places, servers, st.integers(0, 10**6))
def test_it_is_as_large_as_said_and_the_same_in_whatever_order_the_servers_come(
    size: int, key: str, place: int | None, known: list[Address], seed: int
) -> None:
    chosen = first(Subset(size, **either(key, place)), tier_of(*known))
    assert len(chosen) == min(size, len(known))
    shuffled = random.Random(seed).sample(known, len(known))
    assert set(first(Subset(size, **either(key, place)), tier_of(*shuffled))) == set(chosen)


@pytest.mark.slow
@given(sizes, keys, servers, st.data())
def test_by_a_key_only_the_place_of_one_that_goes_is_filled_anew(
    size: int, key: str, known: list[Address], data: st.DataObject
) -> None:
    before = set(first(Subset(size, key=key), tier_of(*known)))
    gone = data.draw(st.sampled_from(known))
    left = [each for each in known if each != gone]
    after = set(first(Subset(size, key=key), tier_of(*left)))
    assert before - after == before & {gone}
    assert len(after) == min(size, len(left))


@pytest.mark.slow
@given(sizes, st.integers(0, 1000), servers, st.data())
def test_by_a_place_two_move_at_most_as_one_goes_or_comes(
    size: int, place: int, known: list[Address], data: st.DataObject
) -> None:
    subset = Subset(size, fleet=Place(place))
    before = set(first(subset, tier_of(*known)))
    gone = data.draw(st.sampled_from(known))
    after = set(first(subset, tier_of(*(each for each in known if each != gone))))
    assert len(before - after - {gone}) <= 1
    assert len(after - before) <= 2


@pytest.mark.slow
@given(sizes, keys, places, servers, st.data())
def test_of_those_that_are_down_others_take_the_places_and_no_more_than_these(
    size: int, key: str, place: int | None, known: list[Address], data: st.DataObject
) -> None:
    subset, tier = Subset(size, **either(key, place)), tier_of(*known)
    before = set(first(subset, tier))
    down = data.draw(st.sets(st.sampled_from(known)))
    after = set(first(subset, tier, down))
    assert len(after) == min(size, len(known) - len(down))
    assert before - down <= after
    assert set(first(subset, tier)) == before  # as they are back


@pytest.mark.slow
@given(sizes, keys, places, servers)
def test_no_server_is_out_of_reach(
    size: int, key: str, place: int | None, known: list[Address]
) -> None:
    near, rest = Subset(size, **either(key, place)).near(tier_of(*known), lambda _: False)
    assert sorted(each for _, each in near) == sorted(known)
    assert not rest


@pytest.mark.slow
def test_over_many_processes_each_server_gets_its_part_by_weight() -> None:
    weights = [1, 2, 3, 10] * 20
    tier = tuple((float(weight), each) for weight, each in zip(weights, MANY, strict=False))
    load = dict.fromkeys(weights, 0.0)
    for number in range(2000):
        near, _ = Subset(12, key=f"process {number}").near(tier, lambda _: True)
        total = sum(weight for weight, _ in near)
        for weight, each in near:
            load[weights[MANY.index(each)]] += weight / total
    shares = [load[weight] / 2000 for weight in (1, 2, 3, 10)]
    assert shares == pytest.approx([1 / 16, 2 / 16, 3 / 16, 10 / 16], rel=0.08)


def test_one_so_heavy_that_all_processes_use_it_keeps_its_weight() -> None:
    tier = ((300.0, MANY[0]), *tier_of(*MANY[1:101]))
    near, _ = Subset(10, key="a").near(tier, lambda _: True)
    weights = {each: weight for weight, each in near}
    assert weights.pop(MANY[0]) == 300.0
    # The others stand for all that are not there.
    assert 40 < sum(weights.values()) < 250
    assert len(set(weights.values())) == 1


def test_one_of_weight_0_is_for_when_all_others_are_down() -> None:
    tier = (*((0.0, each) for each in MANY[:20]), *tier_of(*MANY[20:25]))
    near, rest = Subset(8, key="a").near(tier, lambda _: True)
    assert {each for weight, each in near if weight} == set(MANY[20:25])
    assert len(near) == 8
    assert all(candidate.weight == 0.0 for candidate in rest)


def test_where_weights_differ_the_key_decides_whatever_the_place() -> None:
    tier = tuple((1.0 + n % 2, each) for n, each in enumerate(MANY[:50]))
    by_key, by_both = Subset(5, key="a"), Subset(5, key="a", fleet=Place(3))
    assert by_both.near(tier, lambda _: True) == by_key.near(tier, lambda _: True)


@pytest.mark.slow
def test_the_load_is_even_by_keys_and_nearly_equal_by_places() -> None:
    addresses = AddressGroup.of(*MANY[:200])
    for places, most in ((False, 1.8), (True, 1.1)):
        load = Counter(each for part in parts(addresses, 400, 12, places=places) for each in part)
        assert sum(load.values()) == 4800
        assert max(load.values()) <= most * 24
    assert all(row.ok for row in benchmark(quick=True))


# In a directory


def directory(
    subset: Subset, balance: Balance = "weighted", **settings: Any
) -> ServerModelDirectory:
    backoff = Backoff(first=60.0, longest=60.0, jitter=0)
    policy = HealthPolicy(failures=1, backoff=backoff, **settings)
    draw = random.Random(17).expovariate
    return ServerModelDirectory(policy, balance=balance, subset=subset, draw=draw)


@pytest.mark.parametrize("balance", ["weighted", "p2c"])
@pytest.mark.parametrize(("size", "count"), [(5, 20), (5, 100), (40, 100)])
def test_the_first_are_those_that_are_up_then_the_rest_then_what_is_down(
    size: int, count: int, balance: Balance
) -> None:
    known = AddressGroup.of(*MANY[:count])
    found = directory(Subset(size, key="a"), balance)
    expected = first(found.subset or Subset(1), known.tiers[0])
    assert set(found.order(known, 0.0)[:size]) == set(expected)
    assert sorted(found.order(known, 0.0)) == sorted(MANY[:count])
    down = expected[:3]
    for each in down:
        found[each].failed(0.0)
    order = found.order(known, 1.0)
    assert set(order[:size]) == set(first(Subset(size, key="a"), known.tiers[0], down))
    assert set(order[-3:]) == set(down)
    assert len(order) == len(set(order)) == count


def test_a_whole_part_that_is_down_is_not_too_much_of_a_large_tier() -> None:
    """As in a tier of 12 it would be, by max_down: half of them would be tried all the same."""
    known = AddressGroup.of(*MANY[:100])
    found = directory(Subset(12, key="a"), max_down=0.2)
    down = first(Subset(12, key="a"), known.tiers[0])
    for each in down:
        found[each].failed(0.0)
    assert not set(found.order(known, 1.0)[:88]) & set(down)
    for each in found.order(known, 1.0)[:18]:
        found[each].failed(1.0)
    assert set(found.order(known, 2.0)[:22]) & set(down)  # 30 of 100 are more than a fifth


def test_the_next_tier_is_not_for_what_the_first_can_bear() -> None:
    known = AddressGroup([[(1, each) for each in MANY[:20]], [(1, each) for each in MANY[20:40]]])
    found = directory(Subset(3, key="a"))
    assert set(found.order(known, 0.0)[:20]) == set(MANY[:20])
    for each in found.order(known, 0.0)[:3]:
        found[each].failed(0.0)
    assert set(found.order(known, 1.0)[:17]) < set(MANY[:20])
    second = first(Subset(3, key="a"), known.tiers[1])
    assert set(found.order(known, 1.0)[17:20]) == set(second)


def test_of_servers_that_are_for_others_nothing_is_kept() -> None:
    found = directory(Subset(12))
    known = AddressGroup.of(*MANY)
    for _ in range(1000):
        attempt = found.attempt(known, 0.0)
        assert attempt is not None
        attempt.succeeded(0.001)
    assert len(found) == 12


# Who it is


@FORKS
def test_each_process_has_a_part_of_its_own_and_keeps_it(fork: Callable[[], int]) -> None:
    known = AddressGroup.of(*MANY)
    subset = Subset(12)
    ours = subset.of(known)
    assert Subset(12).of(known) == ours
    theirs = Child(
        fork, lambda: [subset.of(known) == Subset(12).of(known), *map(str, subset.of(known))]
    )
    alike, *chosen = theirs.result()
    assert alike
    assert len(chosen) == 12
    assert set(chosen) != set(map(str, ours))
    assert subset.of(known) == ours


def test_the_place_in_a_fleet_is_taken_as_it_becomes_known() -> None:
    store, known = MemoryStore(), AddressGroup.of(*MANY)
    limits = [FleetLimit(100, store=store, name="db") for _ in range(16)]
    try:
        subsets = [Subset(12, fleet=each) for each in limits]
        assert len({subset.of(known) for subset in subsets}) == 1  # by the key of this process
        until(lambda: all(each.place is not None for each in limits))
        assert sorted(each.place or 0 for each in limits) == list(range(16))
        load = Counter(each for subset in subsets for each in subset.of(known))
        assert set(load.values()) == {1}  # 16 x 12 of 300
    finally:
        for each in limits:
            each.close()


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "said"),
    [
        ((0,), {}, ValueError, "size must be at least 1"),
        ((2.5,), {}, TypeError, "size must be a whole number"),
        ((3,), {"key": 7}, TypeError, "key must be a string"),
        ((3,), {"fleet": 7}, TypeError, "fleet must have a place"),
    ],
)
def test_what_it_cannot_be_made_of_is_named(
    arguments: Any, settings: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Subset(*arguments, **settings)


def test_a_manager_takes_a_subset_and_nothing_else(manage: Any) -> None:
    with pytest.raises(TypeError, match="subset must be a Subset or None, not 12"):
        manage({}, subset=12)
    assert repr(Subset(12)) == "Subset(12)"


# With real servers


def test_a_manager_connects_to_its_part_alone(hosts: Hosts, manage: Any) -> None:
    servers = hosts.servers(20)
    manager = manage({"web": group(*servers)}, subset=Subset(4, key="a"))

    def call() -> None:
        with manager.connection("web") as sock:
            assert ask(sock, "hello") == "hello"

    for _ in range(10):
        gevent.joinall([gevent.spawn(call) for _ in range(20)], raise_error=True)
    used = {server.address for server in servers if server.opened}
    assert used == set(Subset(4, key="a").of(group(*servers)))


def test_as_servers_fail_others_serve_and_no_call_is_lost(hosts: Hosts, manage: Any) -> None:
    servers = hosts.servers(12)
    policy = HealthPolicy(failures=1, backoff=Backoff(first=60.0, longest=60.0), slow_start=0.0)
    manager = manage({"web": group(*servers)}, subset=Subset(3, key="a"), health=policy)
    mine = Subset(3, key="a").of(group(*servers))

    def call() -> tuple[str, int]:
        with manager.connection("web") as sock:
            assert ask(sock, "hello") == "hello"
            address: tuple[str, int] = sock.getpeername()
            return address

    assert {call() for _ in range(60)} == mine
    for server in servers:
        if server.address in mine:
            server.stop()
    manager._pool.dispose()
    others = {call() for _ in range(60)}
    assert len(others) == 3
    assert not others & mine
    for server in servers:
        if server.address in mine:
            server.start()
            manager.mark_up(server.address)
    assert {call() for _ in range(60)} == mine


def test_one_call_goes_through_all_servers_if_it_must(hosts: Hosts, manage: Any) -> None:
    server = hosts.server()
    dead = hosts.addresses(15)
    manager = manage({"web": group(*dead, server)}, subset=Subset(2, key="a"))
    with manager.connection("web") as sock:
        assert sock.getpeername() == server.address
    manager = manage({"web": group(*dead)}, subset=Subset(2, key="a"))
    with pytest.raises(ConnectError, match="no connection to any of 15 addresses"):
        manager.get_connection("web")


def test_a_new_server_has_connections_replaced_only_where_it_is_used(
    hosts: Hosts, manage: Any
) -> None:
    servers = hosts.servers(8)
    by_address = {server.address: server for server in servers}
    ranked, _ = Subset(1, key="a").near(group(*servers).tiers[0], lambda _: False)
    *better, worst = [by_address[each] for _, each in ranked]
    best, *others = better
    groups = AddressGroupMap({"web": group(*others)})
    manager = manage(
        groups,
        subset=Subset(3, key="a"),
        rebalance=0.0,
        watch_interval=0.01,
        watch_hold=0.0,
    )
    for each in others[:3]:
        with manager.connection(each.address):
            pass
    manager.get_addr("web")
    groups["web"] = group(*others, worst)
    until(lambda: len(manager._names._watched["web"].group) == 7)
    for each in others[:3]:
        with manager.connection(each.address):
            pass
    assert [each.opened for each in others[:3]] == [1, 1, 1]
    groups["web"] = group(*others, worst, best)
    for each in others[:3]:
        each.wait_open(0)
