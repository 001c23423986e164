"""First come, first served; limits; one deadline; no waiter is forgotten: promises 3, 4, 5, 10."""

from __future__ import annotations

import random
from collections import Counter
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Group

from geventpool import Backoff, ConnectionPool, Limit, PoolTimeout
from geventpool.testing import FakeClock
from support.objects import Conn, Maker
from support.servers import Pulse
from support.waiting import until

# Promise 3: first come, first served


@pytest.mark.parametrize("order", ["fifo", "lifo"])
@pytest.mark.parametrize("verbs", ["with", "acquire and release"])
def test_100_greenlets_over_10_connections_are_served_evenly(
    maker: Maker, order: str, verbs: str
) -> None:
    """Each holds its connection across one yield, and comes again at once."""

    def run(number: int) -> None:
        while not stop.is_set():
            if verbs == "with":
                with pool.get():
                    gevent.sleep(0)
            else:
                conn = pool.acquire()
                gevent.sleep(0)
                pool.release(conn)
            served[number] += 1

    served: Counter[int] = Counter()
    stop = Event()
    with ConnectionPool(10, connect=maker, order=order) as pool:
        pool.fill()
        group = Group()
        for number in range(100):
            group.spawn(run, number)
        while sum(served.values()) < 20_000:
            gevent.sleep(0)
        most, least = max(served.values()), min(served[number] for number in range(100))
        stop.set()
        group.join(raise_error=True)

    assert least > 0
    assert most / least <= 1.05


def test_one_who_comes_back_at_once_does_not_overtake_a_waiter(maker: Maker) -> None:
    def hog() -> None:
        while not ended.is_set():
            with pool.get():
                turns.append("hog")
                gevent.sleep(0)

    def other() -> None:
        for _ in range(100):
            with pool.get():
                turns.append("other")
        ended.set()

    turns: list[str] = []
    ended = Event()
    with ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        greenlets = [gevent.spawn(hog), gevent.spawn(other)]
        gevent.joinall(greenlets, timeout=30, raise_error=True)

    assert turns.count("other") == 100
    assert turns.count("hog") <= 102
    assert "hog hog hog" not in " ".join(turns)


def test_a_releaser_cannot_take_it_back_in_front_of_a_waiter(maker: Maker) -> None:
    """In one go, without a switch between release and acquire."""
    with ConnectionPool(1, connect=maker) as pool:
        order: list[str] = []
        conn = pool.acquire()
        waiter = gevent.spawn(pool.execute, lambda _: order.append("waiter"))
        gevent.idle()
        pool.release(conn)
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)
        with pool.get():
            order.append("releaser")
        waiter.get()

    assert order == ["waiter", "releaser"]


def test_callers_are_served_in_the_order_they_came(maker: Maker) -> None:
    def call(number: int) -> None:
        with pool.get():
            order.append(number)
            gevent.sleep(0)

    order: list[int] = []
    maker.slow = True
    with ConnectionPool(3, connect=maker) as pool:
        callers = [gevent.spawn(call, number) for number in range(50)]
        gevent.idle()
        assert pool.stats().waiting == 50
        maker.slow = False
        maker.let_in(3)
        gevent.joinall(callers, timeout=10, raise_error=True)

    assert order == list(range(50))


def test_one_whose_connection_broke_leaves_the_next_in_line_its_place(maker: Maker) -> None:
    def call(number: int) -> None:
        with pytest.raises(OSError), pool.get():
            order.append(number)
            raise OSError

    order: list[int] = []
    with ConnectionPool(1, connect=maker) as pool:
        callers = [gevent.spawn(call, number) for number in range(20)]
        gevent.joinall(callers, timeout=10, raise_error=True)

    assert order == list(range(20))


def test_callers_of_two_pools_with_one_limit_are_served_in_the_order_they_came() -> None:
    def call(pool: ConnectionPool[Any], number: int) -> None:
        with pool.get():
            order.append(number)

    order: list[int] = []
    limit = Limit(1)
    connect = Maker()
    with ConnectionPool(1, connect=connect, min_size=0, limits=[limit]) as one:
        with ConnectionPool(1, connect=connect, min_size=0, limits=[limit]) as other:
            with one.get():
                callers = []
                for number in range(10):
                    callers.append(gevent.spawn(call, other if number % 2 else one, number))
                    gevent.idle()
            gevent.joinall(callers, timeout=10, raise_error=True)

    assert order == list(range(10))
    assert connect.peak == 1


# Promise 4: a limit is a limit


class Counting:
    """Opens and closes slowly, and counts both as places taken."""

    def __init__(self, seed: int) -> None:
        self.taken = self.peak = 0
        self._random = random.Random(seed)

    def pause(self) -> None:
        gevent.sleep(self._random.choice([0, 0, 0.001]))

    def open(self) -> CountedConn:
        self.taken += 1
        self.peak = max(self.peak, self.taken)
        try:
            self.pause()
            if self._random.random() < 0.1:
                raise ConnectionRefusedError
        except BaseException:
            self.taken -= 1
            raise
        return CountedConn(self)


class CountedConn:
    def __init__(self, counting: Counting) -> None:
        self._counting = counting

    def close(self) -> None:
        self._counting.pause()
        self._counting.taken -= 1


@pytest.mark.parametrize("seed", range(5))
def test_dialing_and_closing_connections_count_against_every_limit(seed: int) -> None:
    """Two pools, each below its own limit, share one that is less than both need."""
    rng = random.Random(seed)
    both, one_counts = Counting(seed), []

    def run(pool: ConnectionPool[Any]) -> None:
        for _ in range(30):
            try:
                with gevent.Timeout(rng.choice([0.001, 1]), False), pool.get(timeout=5):
                    gevent.sleep(rng.choice([0, 0.001]))
                    if rng.random() < 0.3:
                        raise OSError
            except (OSError, PoolTimeout):
                pass
            one_counts.append(limit.used)

    limit = Limit(5, "both")
    settings: dict[str, Any] = {
        "connect": both.open,
        "limits": [limit],
        "backoff": Backoff(first=0, longest=0),
    }
    with ConnectionPool(4, min_size=1, **settings) as one:
        with ConnectionPool(2, min_size=0, max_overflow=2, **settings) as other:
            users = [gevent.spawn(run, rng.choice([one, other])) for _ in range(20)]
            gevent.joinall(users, timeout=60, raise_error=True)

    assert both.peak == 5
    assert max(one_counts) == 5
    assert (both.taken, limit.used) == (0, 0)


# Promise 5: one deadline


def time_out(pool: ConnectionPool[Any], timeout: float) -> None:
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=timeout)


def test_the_timeout_covers_the_wait_and_the_dial_together() -> None:
    def connect() -> Any:
        Event().wait()

    with FakeClock() as clock:
        with ConnectionPool(1, connect=connect, connect_timeout=0.02) as pool:
            caller = gevent.spawn(time_out, pool, 30)
            for failed in (1, 2, 3):  # three dials, none of which starts it again
                until(lambda: pool.stats().dial_failed >= failed)  # noqa: B023
                assert not caller.ready()
                clock.advance(12)

            caller.get(timeout=10)


def test_the_timeout_covers_the_checks_too() -> None:
    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> object:
            return Conn(maker, 0)

        def _keepalive(self, conn: Any) -> None:
            checks.append(conn)
            answer = Event()
            answers.append(answer)
            answer.wait()
            raise OSError("no")

    maker = Maker()
    checks: list[Any] = []
    answers: list[Event] = []
    with FakeClock() as clock:
        with Pool(5, check_after=0, keepalive_timeout=60, min_size=0) as pool:
            pool.fill()
            caller = gevent.spawn(time_out, pool, 30)
            for begun in (1, 2, 3):  # each is bounded by itself, all of them by the timeout
                until(lambda: len(checks) >= begun)  # noqa: B023
                assert not caller.ready()
                clock.advance(12)
                answers[-1].set()

            caller.get(timeout=10)
            assert len(checks) == 3


def test_after_one_check_met_silence_the_next_connection_is_a_fresh_one() -> None:
    """And the others that were idle as long are checked by the pool itself meanwhile."""

    class Pool(ConnectionPool[Any]):
        def _keepalive(self, conn: Any) -> None:
            checks.append(conn)
            Event().wait()

    maker = Maker()
    checks: list[Any] = []
    with Pool(20, connect=maker, timeout=5, keepalive_timeout=0.1, check_after=0.01) as pool:
        pool.fill()
        old = {slot.conn for slot in pool._bucket.slots}
        gevent.sleep(0.02)
        began = monotonic()
        with pool.get() as conn:
            assert monotonic() - began < 0.3
            assert conn not in old
        with gevent.Timeout(5):
            maker.wait_until(lambda: maker.opened == 40)
        assert len(checks) == 20
        assert not old & {slot.conn for slot in pool._bucket.slots}


def test_a_caller_that_times_out_is_told_that_checks_failed() -> None:
    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> object:
            if opened:
                Event().wait()
            opened.append(True)
            return object()

        def _keepalive(self, conn: Any) -> None:
            raise OSError("no answer")

    opened: list[bool] = []
    pool = Pool(1, check_after=0.001)
    pool.fill()
    gevent.sleep(0.002)
    with pytest.raises(PoolTimeout, match="checks failed, the last one with OSError: no answer"):
        pool.acquire(timeout=0.05)
    pool.close()


def test_a_check_and_the_wait_after_it_have_one_deadline() -> None:
    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> object:
            if opened:
                Event().wait()
            opened.append(True)
            return object()

        def _keepalive(self, conn: Any) -> None:
            checking.set()
            answer.wait()
            raise OSError("no sign of life")

    opened: list[bool] = []
    checking, answer = Event(), Event()
    with FakeClock() as clock:
        with Pool(1, check_after=0.0, keepalive_timeout=60, connect_timeout=60) as pool:
            pool.fill()
            caller = gevent.spawn(time_out, pool, 30)
            assert checking.wait(10)
            clock.advance(20)
            answer.set()
            until(lambda: pool.stats().waiting)
            assert not caller.ready()
            clock.advance(20)

            caller.get(timeout=10)


def test_a_timeout_of_none_has_no_bound_and_zero_does_not_wait(maker: Maker) -> None:
    with FakeClock() as clock, ConnectionPool(1, connect=maker, timeout=10) as pool:
        with pool.get(timeout=None) as conn:
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=0)
            waiter = gevent.spawn(pool.acquire, timeout=None)
            gevent.idle()
            clock.advance(1000)
            gevent.idle()
            assert pool.stats().waiting == 1

        assert waiter.get(timeout=5) is conn
        pool.release(conn)


@pytest.mark.parametrize("busy", [False, True], ids=["an idle hub", "a busy hub"])
def test_deadlines_of_many_waiters_are_kept_in_any_order(maker: Maker, busy: bool) -> None:
    def wait(timeout: float) -> float:
        began = monotonic()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=timeout)
        return monotonic() - began - timeout

    def keep_busy() -> None:
        while True:
            gevent.sleep(0)

    timeouts = [0.2, 0.4, 0.05, 0.3, 0.1, 0.35, 0.15, 0.25]
    with ConnectionPool(1, connect=maker) as pool:
        noise = gevent.spawn(keep_busy) if busy else None
        with pool.get(timeout=None), Pulse() as pulse:
            waiters = [gevent.spawn(wait, timeout) for timeout in timeouts]
            late = [waiter.get(timeout=10) for waiter in waiters]
        if noise is not None:
            noise.kill()

    assert all(-0.005 < each < 0.1 + pulse.missed for each in late), (late, pulse.missed)


# Promise 10: from any state, if dials succeed and callers release, every waiter is served


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_after_any_disorder_every_waiter_is_served(seed: int) -> None:
    rng = random.Random(seed)

    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> Conn:
            gevent.sleep(rng.choice([0, 0, 0.001]))
            if trouble and rng.random() < 0.4:
                raise ConnectionRefusedError
            return Conn(maker, 0)

        def _keepalive(self, conn: Conn) -> None:
            gevent.sleep(rng.choice([0, 0.001]))
            if trouble and rng.random() < 0.3:
                raise ConnectionResetError

    def disturb() -> None:
        pool = rng.choice(pools)
        match rng.randrange(6):
            case 0:
                pool.drain()
            case 1:
                pool.dispose()
            case 2:
                pool.resize(rng.randint(1, 6), min_size=0)
            case 3:
                limit.maximum = rng.randint(2, 8)
            case 4:
                with gevent.Timeout(0.001, False), pool.get():
                    gevent.sleep(0.01)
            case 5:
                gevent.spawn(pool.fill, timeout=None).kill(timeout=0.001)

    def use(pool: ConnectionPool[Any]) -> None:
        for _ in range(20):
            try:
                with gevent.Timeout(rng.choice([0.0005, 0.005, 1]), False), pool.get():
                    gevent.sleep(rng.choice([0, 0.001]))
                    if rng.random() < 0.3:
                        raise OSError
            except OSError:
                pass
            if rng.random() < 0.1:
                disturb()

    trouble = True
    maker = Maker()
    limit = Limit(5, "shared")
    settings: dict[str, Any] = {
        "limits": [limit],
        "min_size": 0,
        "keepalive": 0.005,
        "max_lifetime": 0.05,
        "idle_timeout": 0.02,
        "backoff": Backoff(first=0.001, longest=0.005),
    }
    pools = [Pool(size, **settings) for size in (1, 3, 5)]
    users = [gevent.spawn(use, rng.choice(pools)) for _ in range(30)]
    gevent.joinall(users, timeout=60, raise_error=True)

    trouble = False
    waiters = [gevent.spawn(pool.execute, lambda _: gevent.sleep(0)) for pool in pools * 20]
    gevent.joinall(waiters, timeout=30, raise_error=True)

    assert all(waiter.ready() for waiter in waiters), pools
    assert [pool.stats().in_use + pool.stats().waiting for pool in pools] == [0, 0, 0]
    for pool in pools:
        pool.close()
    assert limit.used == 0
