"""What the runtime adds to buckets: counters, and when one of many may leave."""

from __future__ import annotations

from geventpool import Limit
from geventpool._runtime.slots import PoolBucket
from support.world import World


def bucket_of(world: World) -> PoolBucket:
    settings = {"limits": (Limit(5),), "transient": True}
    bucket = PoolBucket("one of many", size=1, min_size=0, **settings)
    world.scheduler.add(bucket, world.now)
    return bucket


def test_one_of_many_is_empty_without_slots_callers_and_a_back_off() -> None:
    world = World()
    bucket = bucket_of(world)
    empty = [bucket.empty]
    waiter = world.enqueue(bucket)
    empty.append(bucket.empty)
    slot = world.open_one()
    empty.append(bucket.empty)
    assert waiter.slot is slot
    world.discard(slot)
    empty.append(bucket.empty)
    world.close_all()
    empty.append(bucket.empty)
    bucket.pins += 1
    empty.append(bucket.empty)
    bucket.pins -= 1
    bucket.retry_timer = object()
    empty.append(bucket.empty)

    assert empty == [True, False, False, False, True, False, False]


def test_a_counter_absorbed_is_added_and_a_longest_is_compared() -> None:
    world = World()
    one, other = bucket_of(world), bucket_of(world)
    for used in (2.0, 1.0, 1.0):
        one.count_use(used)
    for used in (0.5, 0.5, 0.5, 0.5):
        other.count_use(used)

    one.absorb(other)

    assert (one.use_count, one.use_max, one.use_sum) == (7, 2.0, 6.0)
