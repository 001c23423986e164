"""One pool per thread: a foreign thread is told so at once, and the pool is none the worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
import pytest

from geventpool import ConnectionPool, Limit, PoolTimeout, Reason, SocketFactory, WrongHub
from support.objects import Maker
from support.servers import IdServer, ask
from support.threads import Thread, get_ident, in_thread


@pytest.fixture
def pool(maker: Maker) -> Iterator[ConnectionPool[Any]]:
    with ConnectionPool(3, connect=maker) as pool:
        pool.fill()
        yield pool


def _with(pool: ConnectionPool[Any], conn: Any) -> None:
    with pool:
        pass


def _get(pool: ConnectionPool[Any], conn: Any) -> None:
    with pool.get():
        pass


VERBS: dict[str, Callable[[ConnectionPool[Any], Any], Any]] = {
    "get": _get,
    "get(timeout=0)": lambda pool, conn: pool.get(timeout=0).__enter__(),
    "acquire": lambda pool, conn: pool.acquire(),
    "acquire(timeout=None)": lambda pool, conn: pool.acquire(timeout=None),
    "release": lambda pool, conn: pool.release(conn),
    "discard": lambda pool, conn: pool.discard(conn),
    "detach": lambda pool, conn: pool.detach(conn),
    "execute": lambda pool, conn: pool.execute(lambda conn: None),
    "fill": lambda pool, conn: pool.fill(),
    "resize": lambda pool, conn: pool.resize(5),
    "drain": lambda pool, conn: pool.drain(),
    "dispose": lambda pool, conn: pool.dispose(),
    "close": lambda pool, conn: pool.close(),
    "close(timeout=0)": lambda pool, conn: pool.close(timeout=0),
    "with": _with,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("idle", [2, 0], ids=["some idle", "all taken"])
def test_a_foreign_thread_is_told_so_at_once_and_the_pool_is_whole(
    pool: ConnectionPool[Any], maker: Maker, verb: str, idle: int
) -> None:
    held = [pool.acquire() for _ in range(3 - idle)]
    before = pool.stats()

    with pytest.raises(WrongHub) as caught:
        in_thread(lambda: VERBS[verb](pool, held[0]))

    assert caught.value.pool == pool.name
    assert "another thread" in str(caught.value)
    assert pool.stats() == before
    assert [holder.connection for holder in pool.holders()] == held
    for conn in held:
        pool.release(conn)
    assert pool.stats().idle == 3
    with pool.get() as conn:
        assert not conn.closed
    assert maker.dials == 3


@pytest.mark.parametrize("verb", ["release", "discard", "detach"])
def test_a_foreign_thread_is_told_so_even_of_a_connection_that_is_not_in_use(
    pool: ConnectionPool[Any], verb: str
) -> None:
    with pytest.raises(WrongHub):
        in_thread(lambda: VERBS[verb](pool, object()))


@pytest.mark.parametrize("error", [ValueError, OSError, GeneratorExit])
def test_a_lease_that_breaks_in_a_foreign_thread_stays_with_its_holder(
    pool: ConnectionPool[Any], error: type[BaseException]
) -> None:
    """As when a generator with a connection is collected over there."""
    lease = pool.get()
    conn = lease.__enter__()

    with pytest.raises(WrongHub):
        in_thread(lambda: lease.__exit__(error, error(), None))

    assert pool.stats().in_use == 1
    lease.__exit__(None, None, None)
    assert (pool.stats().in_use, pool.stats().idle, conn.closed) == (0, 3, False)


def test_a_foreign_thread_with_a_hub_of_its_own_is_told_so_too(pool: ConnectionPool[Any]) -> None:
    def use() -> None:
        gevent.sleep(0)
        pool.acquire()

    with pytest.raises(WrongHub):
        in_thread(use)


def test_a_worker_of_the_threadpool_is_a_foreign_thread(
    pool: ConnectionPool[Any], hub_errors: list[BaseException]
) -> None:
    with pytest.raises(WrongHub):
        gevent.get_hub().threadpool.apply(pool.acquire)
    gevent.idle()
    hub_errors.clear()  # the threadpool prints what its tasks raise

    assert pool.stats().idle == 3


def test_a_foreign_thread_may_look(pool: ConnectionPool[Any]) -> None:
    with pool.get() as conn:
        text, stats, holders, size = in_thread(
            lambda: (repr(pool), pool.stats(), pool.holders(), pool.size)
        )

        assert "1 in use, 2 idle" in text
        assert (stats.in_use, stats.idle, size) == (1, 2, 3)
        assert [holder.connection for holder in holders] == [conn]


def test_a_foreign_thread_may_look_while_connections_come_and_go(
    pool: ConnectionPool[Any],
) -> None:
    def look() -> int:
        count = 0
        until = monotonic() + 0.3
        while not count or monotonic() < until:
            pool.stats()
            pool.holders()
            repr(pool)
            count += 1
        return count

    def use() -> None:
        while not looker.value and not looker.error:
            with pytest.raises(OSError), pool.get():
                gevent.sleep(0)
                raise OSError

    looker = Thread(look)
    users = [gevent.spawn(use) for _ in range(5)]

    assert looker.result() > 0
    gevent.joinall(users, raise_error=True)


def test_a_pool_per_thread_each_with_its_own_hub_works() -> None:
    def run() -> tuple[int, int]:
        def client(number: int) -> int:
            right = 0
            for count in range(20):
                question = f"{get_ident()} {number} {count}"
                with pool.get() as conn:
                    right += ask(conn, question) == question
            return right

        with ConnectionPool(3, connect=SocketFactory(server.address)) as pool:
            clients = [gevent.spawn(client, number) for number in range(10)]
            right = sum(each.get(timeout=30) for each in clients)
            return right, pool.stats().in_use

    with IdServer() as server:
        threads = [Thread(run) for _ in range(3)]
        here = run()
        there = [thread.result(seconds=60) for thread in threads]
        server.wait_open(0)

    assert [here, *there] == [(200, 0)] * 4


def test_the_pool_of_a_thread_that_has_ended_is_told_of_as_such() -> None:
    """Even in a thread that got the same id, as most do."""
    made: list[ConnectionPool[Any]] = []

    def make() -> None:
        made.append(ConnectionPool(1, connect=Maker()))
        made[0].fill()

    def use() -> str:
        try:
            made[0].acquire(timeout=0.1)
        except WrongHub:
            return "told"
        except PoolTimeout:
            return "timed out"
        return "served"

    first = Thread(make)
    first.result()
    for _ in range(20):
        second = Thread(use)
        assert second.result() == "told"
        if second.ident == first.ident:
            break

    assert use() == "told"
    made.clear()


def test_what_a_thread_that_has_ended_had_out_cannot_be_given_back_in_another() -> None:
    """Even in a thread that got the same id, as most do."""
    had: list[tuple[ConnectionPool[Any], Any]] = []

    def take() -> None:
        pool = ConnectionPool(1, connect=Maker())
        had.append((pool, pool.acquire()))

    def give_back() -> str:
        pool, conn = had[0]
        try:
            pool.release(conn)
        except WrongHub:
            return "told"
        return "taken back"

    first = Thread(take)
    first.result()
    for _ in range(20):
        second = Thread(give_back)
        assert second.result() == "told"
        if second.ident == first.ident:
            break

    assert give_back() == "told"
    had.clear()


def test_a_limit_is_not_shared_between_two_hubs(pool: ConnectionPool[Any], maker: Maker) -> None:
    limit = Limit(5, "shared")
    connect = Maker()
    with ConnectionPool(2, connect=maker, limits=[limit]) as here:
        here.fill()
        with pytest.raises(ValueError, match=r"shared.*another hub"):
            in_thread(lambda: ConnectionPool(1, connect=connect, limits=[limit]))

        assert limit.used == 2
    assert connect.dials == 0


def test_a_limit_whose_pools_are_gone_may_be_used_in_another_thread(maker: Maker) -> None:
    def use() -> int:
        with ConnectionPool(2, connect=Maker(), limits=[limit]) as there:
            there.fill()
            return limit.used

    limit = Limit(2, "shared")
    with ConnectionPool(2, connect=maker, limits=[limit]) as here:
        here.fill()

    assert in_thread(use) == 2
    assert limit.used == 0


def test_the_maximum_of_a_limit_may_be_set_in_another_thread(maker: Maker) -> None:
    """Who waits for a place is served, though nothing else wakes the hub."""
    limit = Limit(1, "shared")
    with ConnectionPool(2, connect=maker, limits=[limit], min_size=0) as pool:
        with pool.get():
            waiter = gevent.spawn(pool.execute, lambda conn: conn.number)
            gevent.idle()
            assert pool.stats().waiting == 1
            in_thread(lambda: setattr(limit, "maximum", 2))

            assert waiter.get(timeout=5) == 2


def test_a_pool_dropped_in_another_thread_is_closed_in_its_own(maker: Maker) -> None:
    box = [ConnectionPool(2, connect=maker)]
    box[0].fill()
    in_thread(box.clear)
    maker.wait_until(lambda: not maker.open)

    assert maker.dials == 2


def test_a_connection_dropped_in_another_thread_gives_its_slot_back(
    pool: ConnectionPool[Any], maker: Maker
) -> None:
    box = [pool.acquire()]
    in_thread(box.clear)
    maker.wait_until(lambda: maker.dials == 4)

    assert pool.stats().closed[Reason.LOST] == 1
    assert pool.stats().in_use == 0
