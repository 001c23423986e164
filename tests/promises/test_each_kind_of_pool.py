"""The promises, each kept by each kind of pool.  What is at their borders, the other files try."""

from __future__ import annotations

import gc
import os
import weakref
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError
from gevent.pool import Group

from geventpool import Backoff, PoolClosed, PoolListener, PoolTimeout, SocketFactory
from support.child import Child
from support.kinds import MakePool
from support.objects import Maker
from support.servers import EchoServer, IdServer, Pulse, ask
from support.waiting import until


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """What *call* returned, or what it raised."""
    try:
        return call(*args)
    except BaseException as error:
        return error.with_traceback(None)


def test_in_a_hub_callback_acquire_is_refused_though_something_is_idle(
    make_pool: MakePool, maker: Maker
) -> None:
    with make_pool(1, connect=maker) as pool:
        pool.fill()
        seen: list[Any] = []
        callback = gevent.get_hub().loop.run_callback(lambda: seen.append(outcome(pool.acquire)))
        until(lambda: not callback.pending)

        assert [type(each) for each in seen] == [BlockingSwitchOutError]
        assert (pool.stats().idle, pool.stats().acquired) == (1, 0)


# 1: cancellation loses nothing
@pytest.mark.parametrize("end", ["a kill", "a Timeout"])
def test_callers_cancelled_in_line_and_in_the_with_cost_no_place_and_hurt_no_other(
    make_pool: MakePool, maker: Maker, end: str
) -> None:
    def use() -> None:
        with pool.get():
            in_with.append(gevent.getcurrent())
            Event().wait()

    def in_time() -> None:
        with gevent.Timeout(None, False) as timeouts[gevent.getcurrent()]:
            use()

    in_with: list[Any] = []
    timeouts: dict[Any, gevent.Timeout] = {}
    with make_pool(2, connect=maker) as pool:
        pool.fill()
        victims = [gevent.spawn(use if end == "a kill" else in_time) for _ in range(5)]
        gevent.idle()
        assert (len(in_with), pool.stats().waiting) == (2, 3)
        other = gevent.spawn(pool.execute, lambda conn: conn.number)
        if end == "a kill":
            gevent.killall(victims)
        for victim, timeout in timeouts.items():  # now: a timer's could come too early
            victim.kill(timeout, block=False)
        gevent.joinall(victims, timeout=10, raise_error=True)

        assert other.get(timeout=10) > 2  # those that were held are closed
        conns = [pool.acquire(timeout=10) for _ in range(2)]
        assert pool.stats().in_use == 2
        for conn in conns:
            pool.release(conn)


# 2: nobody reads another's reply
@pytest.mark.parametrize("cut", [gevent.Timeout, GreenletExit], ids=["Timeout", "kill"])
def test_the_late_reply_to_a_request_cut_short_reaches_no_other_caller(
    make_pool: MakePool, cut: type[BaseException]
) -> None:
    with IdServer(late_share=1.0) as server:
        with make_pool(1, connect=SocketFactory(server.address)) as pool:
            caller = gevent.spawn(outcome, pool.execute, ask, "late")
            until(lambda: server.late == 1)
            caller.kill(cut)
            server.late_share = 0.0
            # A connection is served in order: who got that one would read the late reply first.
            replies = [pool.execute(ask, f"number {n}") for n in range(3)]

    assert isinstance(caller.value, cut)
    assert replies == ["number 0", "number 1", "number 2"]


# 3: first come, first served
def test_all_are_served_equally_often(make_pool: MakePool, maker: Maker) -> None:
    def run(number: int) -> None:
        while sum(served.values()) < 3000:
            with pool.get():
                gevent.sleep(0)
            served[number] += 1

    served: Counter[int] = Counter()
    with make_pool(5, connect=maker) as pool:
        pool.fill()
        group = Group()
        for number in range(30):
            group.spawn(run, number)
        group.join(raise_error=True)

    assert len(served) == 30
    assert max(served.values()) - min(served.values()) <= 2


# 4: a limit is a limit
def test_there_are_never_more_connections_than_the_size(make_pool: MakePool, maker: Maker) -> None:
    def use(number: int) -> None:
        with pool.get() as conn:
            gevent.sleep(0)
            assert not conn.closed
            if number % 3 == 0:
                raise OSError("broken")

    with make_pool(3, connect=maker) as pool:
        callers = [gevent.spawn(outcome, use, number) for number in range(60)]
        gevent.joinall(callers, timeout=20)

    assert [type(c.value) for c in callers] == [OSError, type(None), type(None)] * 20
    assert maker.opened > 3  # there were others in the place of broken ones
    assert maker.peak <= 3


# 5: one deadline
def test_the_timeout_covers_the_wait_in_line_and_the_dial(
    make_pool: MakePool, maker: Maker
) -> None:
    maker.slow = True
    with make_pool(1, connect=maker) as pool, Pulse() as pulse:
        began = monotonic()
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(timeout=0.1)
        took = monotonic() - began
        assert (caught.value.timeout, caught.value.connecting) == (0.1, 1)
        assert 0.1 <= took <= 0.2 + pulse.missed
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)
        maker.slow = False
        maker.let_in()
        assert pool.execute(lambda conn: conn.number) == 1


# 6: no dead connection is handed out
@pytest.mark.parametrize("end", [EchoServer.fin_all, EchoServer.rst_all], ids=["FIN", "RST"])
def test_after_a_restart_of_the_server_no_caller_meets_a_dead_connection(
    make_pool: MakePool, end: Any
) -> None:
    with EchoServer() as server, make_pool(5, connect=SocketFactory(server.address)) as pool:
        pool.fill()
        assert end(server) == 5
        for _ in range(10):
            with pool.get() as conn:
                conn.sendall(b"hello")
                assert conn.recv(5) == b"hello"


# 7: no storm
def test_a_server_that_is_away_sees_one_dial_per_back_off_whatever_the_crowd(
    make_pool: MakePool, maker: Maker
) -> None:
    def use() -> None:
        with pool.get():
            gevent.sleep(0)

    maker.error = ConnectionRefusedError("away")
    backoff = Backoff(first=0.1, factor=1, longest=0.1, jitter=0.0)
    with make_pool(20, connect=maker, backoff=backoff) as pool:
        began = monotonic()
        callers = [gevent.spawn(use) for _ in range(100)]
        maker.wait_until(lambda: maker.dials == 3)
        assert monotonic() - began >= 0.2
        maker.error = None
        gevent.joinall(callers, timeout=20, raise_error=True)

    assert all(caller.ready() for caller in callers)
    assert maker.dials <= 4 + 20


# 8: fork is silent
def test_a_child_opens_its_own_and_leaves_the_parents_alone(make_pool: MakePool) -> None:
    def in_child() -> tuple[list[str], bool]:
        return [pool.execute(ask, f"child {n}") for n in range(3)], pool.stats().dialed > 0

    with IdServer() as server, make_pool(2, connect=SocketFactory(server.address)) as pool:
        pool.fill()
        with pool.get() as held:
            child = Child(os.fork, in_child)
            assert ask(held, "parent") == "parent"
            assert child.result() == [["child 0", "child 1", "child 2"], True]
            assert ask(held, "parent again") == "parent again"
        assert pool.execute(ask, "the other") == "the other"
        stats = pool.stats()

    assert (stats.dialed, sum(stats.closed.values())) == (2, 0)


# 9: nothing wanted is lost, nothing unwanted stays
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_forgotten_connection_gives_its_place_back_and_a_dropped_pool_closes_all(
    make_pool: MakePool, maker: Maker
) -> None:
    pool = make_pool(1, connect=maker)
    pool.fill()
    pool.acquire()
    gc.collect()
    assert pool.execute(lambda conn: conn.number) == 2

    gone = weakref.ref(pool)
    del pool
    until(lambda: gc.collect() >= 0 and gone() is None)
    maker.wait_until(lambda: maker.open == {1})  # the forgotten one was not closed, but collected


# 10: every waiter is served
def test_a_crowd_whose_dials_fail_at_random_is_served_to_the_last(
    make_pool: MakePool, maker: Maker
) -> None:
    def connect() -> Any:
        gevent.sleep(0)
        if maker.dials % 3:
            maker.dials += 1
            raise OSError("not now")
        return maker()

    def use(number: int) -> int:
        with pool.get() as conn:
            gevent.sleep(0)
            if number % 4 == 0:
                conn.close()
                raise ConnectionResetError
            return number

    backoff = Backoff(first=0.001, longest=0.001)
    with make_pool(4, connect=connect, backoff=backoff) as pool:
        callers = [gevent.spawn(outcome, use, number) for number in range(200)]
        gevent.joinall(callers, timeout=30)

    assert [c.value for c in callers if type(c.value) is int] == [n for n in range(200) if n % 4]
    assert {type(c.value) for c in callers} == {int, ConnectionResetError}


# 11: nothing of the user's can break it
def test_a_listener_that_raises_or_waits_breaks_nothing(make_pool: MakePool, maker: Maker) -> None:
    class Bad(PoolListener):
        def connection_created(self, event: Any) -> None:
            heard.append("created")
            raise RuntimeError("a bug of the user's")

        def connection_checked_out(self, event: Any) -> None:
            heard.append("checked out")
            gevent.sleep(0)
            raise gevent.Timeout

        def connection_disposed(self, event: Any) -> None:
            heard.append("disposed")
            raise KeyError("another one")

    heard: list[str] = []
    with make_pool(2, connect=maker, listeners=[Bad()]) as pool:
        pool.fill()
        for _ in range(3):
            with pytest.raises(gevent.Timeout):
                pool.acquire()
        assert pool.stats().in_use == 0
        assert {"created", "checked out"} <= set(heard)
    until(lambda: "disposed" in heard)


def test_close_tells_who_waits_and_takes_what_is_held_when_it_comes_back(
    make_pool: MakePool, maker: Maker
) -> None:
    pool = make_pool(1, connect=maker)
    conn = pool.acquire()
    waiter = gevent.spawn(outcome, pool.acquire)
    gevent.idle()
    closing = gevent.spawn(pool.close)
    assert isinstance(waiter.get(timeout=5), PoolClosed)
    assert not closing.ready()
    pool.release(conn)
    closing.get(timeout=5)

    assert not maker.open
