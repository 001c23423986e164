"""ConnectionPool: its parameters, its hooks and its verbs."""

from __future__ import annotations

import gc
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.pool import Group

from geventpool import (
    Backoff,
    ConnectError,
    ConnectionPool,
    Limit,
    NotInUse,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolTimeout,
    Reason,
    SocketFactory,
)
from geventpool.testing import FakeClock
from support import named
from support.objects import Conn, Maker
from support.servers import EchoServer, closed_port
from support.waiting import until_readable

SOON = Backoff(first=0.005, longest=0.005)


@contextmanager
def waiting(pool: ConnectionPool[Any], count: int = 1, **kwargs: Any) -> Iterator[list[Any]]:
    """That many greenlets in line for a connection; each gives back what it gets at the end.

    Yields a list of what they got, in the order they got it: a connection or an error.
    """
    got: list[Any] = []
    end = Event()

    def caller() -> None:
        try:
            with pool.get(**kwargs) as conn:
                got.append(conn)
                end.wait()
        except PoolError as error:
            got.append(error)

    group = Group()
    for _ in range(count):
        group.spawn(caller)
        gevent.idle()
    try:
        yield got
    except BaseException:
        group.kill()
        raise
    end.set()
    group.join()


def fill_and_idle(pool: ConnectionPool[Any]) -> None:
    pool.fill(timeout=10)
    gevent.idle()


# As in geventconnpool


class PingPool(ConnectionPool[Conn]):
    """Opens Conns, and notes which of them it pinged."""

    def __init__(self, maker: Maker, *args: Any, **kwargs: Any) -> None:
        self.maker = maker
        self.pinged: list[int] = []
        self.ping: Callable[[Conn], object] = lambda conn: None
        super().__init__(*args, **kwargs)

    def _new_connection(self) -> Conn:
        return self.maker()

    def _keepalive(self, conn: Conn) -> None:
        self.pinged.append(conn.number)
        self.maker.changed()
        self.ping(conn)


def test_a_pool_is_made_by_overriding_new_connection_and_giving_a_size(maker):
    class MyPool(ConnectionPool):
        def _new_connection(self):
            return maker()

    pool = MyPool(3)

    with pool.get() as conn:
        assert conn.number == 1
    fill_and_idle(pool)
    assert maker.open == {1, 2, 3}


def test_the_first_three_arguments_are_size_exc_classes_and_keepalive(maker):
    pool = PingPool(maker, 2, (KeyError, IndexError), 30)

    assert pool.size == 2
    assert pool.exc_classes == (KeyError, IndexError)
    assert pool.keepalive == 30


def test_a_bare_exception_class_is_accepted(maker):
    pool = ConnectionPool(1, KeyError, connect=maker)

    with pytest.raises(KeyError):
        with pool.get():
            raise KeyError
    gevent.idle()
    assert maker.open == {2}


def test_the_constructor_neither_waits_nor_fails_because_of_the_server(maker):
    maker.error = ConnectionRefusedError("nothing there")

    pool = ConnectionPool(3, connect=maker)

    assert maker.dials == 0
    assert repr(pool).endswith("0 in use, 0 idle, 1 connecting | 0 waiting>")


# Fixed and elastic


def test_a_fixed_pool_opens_all_its_connections_unasked(maker):
    pool = ConnectionPool(5, connect=maker)
    gevent.idle()

    assert len(maker.open) == 5
    assert pool.stats().min_size == 5


def test_a_fixed_pool_replaces_what_was_discarded_unasked(maker):
    pool = ConnectionPool(2, connect=maker)
    fill_and_idle(pool)

    pool.discard(pool.acquire())
    gevent.idle()

    assert maker.open == {2, 3}


def test_an_elastic_pool_opens_its_minimum_unasked(maker):
    pool = ConnectionPool(5, connect=maker, min_size=2)
    gevent.idle()

    assert len(maker.open) == 2
    assert pool.stats().min_size == 2


def test_an_elastic_pool_without_a_minimum_opens_nothing_unasked(maker):
    pool = ConnectionPool(5, connect=maker, min_size=0)
    gevent.idle()

    assert maker.dials == 0
    assert pool.size == 5


def test_an_elastic_pool_uses_what_is_idle_before_it_opens_more(maker):
    pool = ConnectionPool(5, connect=maker, min_size=0)

    for _ in range(10):
        with pool.get():
            gevent.idle()

    assert maker.opened == 1


def test_an_elastic_pool_grows_to_its_size_and_no_further(maker):
    pool = ConnectionPool(3, connect=maker, min_size=0)

    with waiting(pool, 5) as got:
        assert len(got) == 3
    assert len(got) == 5
    assert maker.peak == 3


# max_overflow


def test_overflow_opens_more_than_size_while_all_are_taken(maker):
    pool = ConnectionPool(2, connect=maker, max_overflow=2)

    with waiting(pool, 5) as got:
        assert len(got) == 4
        assert pool.stats().maximum == 4
        assert pool.size == 2
    assert maker.peak == 4


def test_overflow_is_closed_on_return(maker):
    pool = ConnectionPool(2, connect=maker, max_overflow=2)

    with waiting(pool, 4):
        pass
    gevent.idle()

    assert len(maker.open) == 2
    assert pool.stats().idle == 2
    assert pool.stats().closed[Reason.SURPLUS] == 2


def test_overflow_goes_to_a_waiter_rather_than_be_closed(maker):
    pool = ConnectionPool(1, connect=maker, max_overflow=1)
    first, extra = pool.acquire(), pool.acquire()

    with waiting(pool) as got:
        pool.release(extra)
        gevent.idle()
        assert got == [extra]
    assert maker.opened == 2
    pool.release(first)


def test_an_overflow_of_none_has_no_bound(maker):
    pool = ConnectionPool(1, connect=maker, max_overflow=None)

    with waiting(pool, 40) as got:
        assert len(got) == 40
    gevent.idle()
    assert len(maker.open) == 1


# timeout


def test_a_timeout_of_0_takes_what_is_idle(maker):
    pool = ConnectionPool(1, connect=maker)
    fill_and_idle(pool)

    with pool.get(timeout=0) as conn:
        assert conn.number == 1


def test_a_timeout_of_0_never_waits_nor_lets_anybody_else_run(maker):
    pool = ConnectionPool(1, connect=maker)
    held = pool.acquire()
    others = gevent.spawn(lambda: None)

    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)

    assert not others.ready()
    others.join()
    pool.release(held)


def test_the_timeout_of_the_pool_holds_for_those_who_give_none(maker):
    with FakeClock() as clock, ConnectionPool(1, connect=maker, timeout=20) as pool:
        with pool.get(), waiting(pool) as got:
            clock.advance(15)
            gevent.idle()
            assert got == []
            clock.advance(5)
            gevent.idle()
            assert [type(error) for error in got] == [PoolTimeout]

    assert got[0].timeout == 20


def test_a_callers_timeout_goes_before_that_of_the_pool(maker):
    pool = ConnectionPool(1, connect=maker, timeout=0.01)
    conn = pool.acquire()
    gevent.spawn_later(0.1, pool.release, conn)

    assert pool.acquire(timeout=30) is conn


def test_a_timeout_of_none_waits_as_long_as_it_takes(maker):
    pool = ConnectionPool(1, connect=maker, timeout=0.01)
    conn = pool.acquire()

    with waiting(pool, timeout=None) as got:
        gevent.sleep(0.05)
        assert got == []
        pool.release(conn)
        gevent.idle()
        assert got == [conn]


def test_timeouts_end_in_their_own_order_not_in_that_of_the_line(maker):
    ended = []

    def wait(timeout):
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=timeout)
        ended.append(timeout)

    with FakeClock() as clock, ConnectionPool(1, connect=maker) as pool, pool.get():
        waiters = [gevent.spawn(wait, timeout) for timeout in (90, 10, 50)]
        gevent.idle()
        for order in ([], [10], [10, 50], [10, 50, 90]):
            assert ended == order
            clock.advance(40 if ended else 10)
            gevent.idle()
        gevent.joinall(waiters, raise_error=True)


def test_one_deadline_covers_the_wait_and_the_check(maker):
    pool = PingPool(maker, 1, check_after=0, keepalive_timeout=30)
    fill_and_idle(pool)
    pool.ping = lambda conn: gevent.sleep(30)
    maker.slow = True  # else a new one might be there in the last moment
    began = time.monotonic()

    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.05)

    assert 0.04 < time.monotonic() - began < 5
    assert pool.stats().timed_out == 1
    pool.close()


# max_waiting


def test_who_comes_when_max_waiting_are_in_line_is_sent_away_at_once(maker):
    pool = ConnectionPool(1, connect=maker, max_waiting=2, name="db")
    held = pool.acquire()

    with waiting(pool, 2):
        with pytest.raises(PoolFull, match="'db'.* 2 callers are waiting") as raised:
            pool.acquire(timeout=30)
        assert raised.value.max_waiting == 2
        assert raised.value.pool == "db"
        assert pool.stats().refused == 1
        assert pool.stats().waiting == 2
        pool.release(held)


def test_with_a_max_waiting_of_0_only_those_who_need_not_wait_are_served(maker):
    pool = ConnectionPool(1, connect=maker, max_waiting=0)
    fill_and_idle(pool)

    with pool.get():
        with pytest.raises(PoolFull):
            pool.acquire()
    with pool.get():
        pass


# Dialing: connect_timeout, max_connecting, backoff, fail_fast


def test_a_dial_that_hangs_ends_after_connect_timeout_as_a_failed_one(maker):
    maker.slow = True
    pool = ConnectionPool(1, connect=maker, connect_timeout=0.02, backoff=SOON)

    maker.wait_until(lambda: maker.dials >= 2)
    maker.slow = False

    with pool.get(timeout=10) as conn:
        assert conn.number == 1
    assert pool.stats().dial_failed >= 1


def test_what_a_dial_beyond_connect_timeout_is_reported_as(maker):
    maker.slow = True
    pool = ConnectionPool(1, connect=maker, connect_timeout=0.01, name="db", fail_fast=True)

    with pytest.raises(ConnectError, match=r"'db'.*longer than connect_timeout \(0.01 s\)"):
        pool.acquire()


def test_a_dial_cut_short_by_the_pool_says_what_its_time_was_spent_on():
    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        connect = SocketFactory(listener.getsockname(), tls="unverified")
        with ConnectionPool(1, connect=connect, connect_timeout=0.05, backoff=SOON) as pool:
            told = r"connect_timeout \(0.05 s\): .*TLS handshake with"
            # On a busy machine a dial may have got no further than to connect: then the next one.
            with gevent.Timeout(30, AssertionError(f"never said: {told}")):
                while not re.search(told, str(pool.stats().last_error)):
                    gevent.sleep(0.005)
            assert isinstance(pool.stats().last_error, ConnectError)


def test_without_a_connect_timeout_a_dial_may_take_as_long_as_it_likes(maker):
    maker.slow = True
    pool = ConnectionPool(1, connect=maker, connect_timeout=None)

    gevent.sleep(0.05)
    assert pool.stats().connecting == 1
    maker.let_in()
    assert pool.stats().idle == 1


def test_a_burst_of_dials_starts_with_one_and_each_success_doubles_it(maker):
    maker.slow = True
    pool = ConnectionPool(20, connect=maker, max_connecting=10)
    under_way = []

    for _ in range(5):
        gevent.idle()
        under_way.append(len(maker.waiting))
        maker.let_in(1)

    assert under_way == [1, 2, 4, 8, 10]
    assert pool.stats().connecting == 10
    pool.close()


def test_a_failed_dial_sets_the_burst_back_to_one(maker):
    maker.slow = True
    pool = ConnectionPool(20, connect=maker, backoff=SOON)
    for _ in range(3):
        gevent.idle()
        maker.let_in(1)
    assert len(maker.waiting) == 8

    maker.error = ConnectionRefusedError()
    maker.let_in(8)
    maker.wait_until(lambda: maker.dials > 11)
    gevent.idle()

    assert len(maker.waiting) == 1
    assert pool.stats().dial_failed == 8
    pool.close()


def test_a_burst_is_over_when_no_more_dials_are_wanted(maker):
    pool = ConnectionPool(8, connect=maker)
    fill_and_idle(pool)
    maker.slow = True

    conns = [pool.acquire() for _ in range(8)]
    for conn in conns:
        pool.discard(conn)
    gevent.idle()

    assert len(maker.waiting) == 1
    pool.close()


def test_a_spike_of_short_requests_opens_at_most_two_more(maker):
    pool = ConnectionPool(50, connect=maker, min_size=5)
    maker.wait_until(lambda: maker.opened == 5)
    maker.slow = True  # a dial takes longer than the whole spike

    def request():
        with pool.get():
            gevent.sleep(0.002)

    gevent.joinall([gevent.spawn(request) for _ in range(50)], raise_error=True)
    while maker.waiting:
        maker.let_in()

    assert maker.opened <= 7
    assert pool.stats().dialed <= 7


def test_fifty_long_requests_all_get_a_connection_of_their_own(maker):
    def connect():
        gevent.sleep(0.05 if maker.opened >= 5 else 0)
        return maker()

    pool = ConnectionPool(50, connect=connect, min_size=5)

    with waiting(pool, 50) as got:
        maker.wait_until(lambda: len(maker.open) == 50)
        gevent.idle()
        assert len(got) == 50


def test_a_dial_that_no_caller_wants_any_more_is_not_begun(maker):
    pool = ConnectionPool(2, connect=maker, min_size=0)
    conn = pool.acquire()

    waiter = gevent.spawn(pool.acquire)
    gevent.sleep(0)  # it has joined the line now, and the dial has not begun
    assert pool.stats().connecting == 1
    pool.release(conn)
    waiter.join()
    gevent.idle()

    assert maker.dials == 1
    assert pool.stats().connecting == 0


def test_a_caller_that_leaves_does_not_waste_the_dial_that_has_begun(maker):
    maker.slow = True
    pool = ConnectionPool(2, connect=maker, min_size=0)
    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.01)

    maker.let_in()

    assert pool.stats().idle == 1
    assert pool.acquire(timeout=0).number == 1


def test_who_waits_gets_whichever_connection_is_free_first(maker):
    pool = ConnectionPool(2, connect=maker, min_size=0)
    conn = pool.acquire()
    maker.slow = True

    with waiting(pool) as got:
        assert len(maker.waiting) == 1
        pool.release(conn)
        gevent.idle()
        assert got == [conn]
    maker.let_in()
    assert pool.stats().idle == 2


def test_failed_dials_are_spaced_by_the_backoff(maker):
    at = []

    def connect():
        at.append(time.monotonic())
        return maker()

    maker.error = ConnectionRefusedError()
    backoff = Backoff(first=0.02, factor=2, longest=0.08, jitter=0)
    pool = ConnectionPool(5, connect=connect, backoff=backoff)
    maker.wait_until(lambda: maker.dials >= 6)

    pauses = [later - sooner for sooner, later in itertools.pairwise(at)]
    for pause, least in zip(pauses, [0.02, 0.04, 0.08, 0.08, 0.08], strict=False):
        assert pause >= least - 0.002
    assert pool.stats().connecting <= 1


def test_after_an_outage_that_is_over_the_backoff_begins_anew(maker):
    pool = ConnectionPool(1, connect=maker, backoff=Backoff(first=0.01, longest=0.05, jitter=0))
    maker.error = ConnectionRefusedError()
    maker.wait_until(lambda: maker.dials >= 4)
    maker.error = None
    with pool.get(timeout=10):
        pass

    assert pool._bucket.failures == 0


def test_a_waiter_keeps_waiting_while_dials_fail_and_is_served_when_one_succeeds(maker):
    maker.error = ConnectionRefusedError()
    pool = ConnectionPool(1, connect=maker, backoff=Backoff(first=0.01, longest=0.01))

    with waiting(pool) as got:
        maker.wait_until(lambda: maker.dials >= 3)
        assert got == []
        maker.error = None
        maker.wait_until(lambda: maker.opened == 1)
        gevent.idle()
        assert len(got) == 1


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("no"),
        ValueError("bad greeting"),
        KeyError("x"),
        gevent.Timeout(1, ValueError("a timeout of the hook's own")),
        gevent.Timeout(1),
    ],
    ids=named,
)
def test_whatever_new_connection_raises_is_a_failed_dial(maker, error):
    maker.error = error
    pool = ConnectionPool(1, connect=maker, backoff=SOON)
    maker.wait_until(lambda: maker.dials >= 3)
    if isinstance(error, Exception):
        assert pool.stats().last_error is error
    else:
        assert isinstance(pool.stats().last_error, ConnectError)
    maker.error = None

    with pool.get(timeout=10) as conn:
        assert conn.number == 1


def test_a_killed_dial_frees_its_place_and_is_dialed_again(maker):
    def connect():
        if maker.dials == 0:
            maker.dials += 1
            gevent.getcurrent().kill(block=False)
            gevent.sleep(0)
        return maker()

    pool = ConnectionPool(1, connect=connect, backoff=SOON)

    with pool.get(timeout=10):
        assert pool.stats().in_use == 1
    assert maker.open == {1}


def test_none_is_a_failed_dial(maker):
    answers = [None, "a connection"]
    pool = ConnectionPool(1, connect=lambda: answers.pop(0), backoff=SOON)

    assert pool.acquire() == "a connection"
    assert pool.stats().dial_failed == 1


def test_that_none_was_returned_is_said(maker):
    pool = ConnectionPool(1, connect=lambda: None, fail_fast=True, name="db")

    with pytest.raises(ConnectError, match="'db'.*_new_connection returned None"):
        pool.acquire()


@pytest.mark.parametrize("falsy", [0, "", [], False], ids=named)
def test_falsy_connections_are_connections(falsy):
    pool = ConnectionPool(1, connect=lambda: falsy)

    with pool.get(timeout=10) as conn:
        assert conn is falsy
    assert pool.stats().dialed == 1
    pool.release(pool.acquire(timeout=0))


def test_fail_fast_raises_a_copy_of_the_error_of_the_dial_to_the_oldest_waiter(maker):
    maker.slow = True
    maker.error = ConnectionRefusedError("nothing there")
    pool = ConnectionPool(1, connect=maker, fail_fast=True, backoff=SOON)
    raised = []

    def caller(number):
        try:
            pool.acquire()
        except OSError as error:
            raised.append((number, error))

    callers = [gevent.spawn(caller, number) for number in range(3)]
    gevent.idle()
    maker.let_in()
    [(first, error)] = raised
    assert first == 0
    assert (type(error), error.args) == (ConnectionRefusedError, ("nothing there",))
    assert error is not maker.error
    maker.slow = False
    maker.let_in()
    gevent.joinall(callers)

    assert [number for number, _ in raised] == [0, 1, 2]


def test_fill_of_a_fail_fast_pool_raises_the_error_of_the_first_dial_that_fails(maker):
    pool = ConnectionPool(3, connect=maker, min_size=0, fail_fast=True, backoff=SOON)
    pool.release(pool.acquire())
    maker.error = ConnectionRefusedError("nothing there")

    with pytest.raises(ConnectionRefusedError, match="nothing there"):
        pool.fill(timeout=60)
    assert len(maker.open) == 1
    maker.error = None
    pool.fill(timeout=60)
    assert len(maker.open) == 3


def test_without_fail_fast_a_failed_dial_is_only_the_cause_of_a_timeout(maker):
    maker.error = ConnectionRefusedError("nothing there")
    pool = ConnectionPool(1, connect=maker)

    with pytest.raises(PoolTimeout) as raised:
        pool.acquire(timeout=0.02)

    assert raised.value.__cause__ is maker.error


def test_fail_fast_wraps_what_is_no_exception(maker):
    maker.error = gevent.Timeout()
    pool = ConnectionPool(1, connect=maker, fail_fast=True)

    with pytest.raises(ConnectError) as raised:
        pool.acquire()

    assert raised.value.__cause__ is maker.error


def test_fail_fast_does_not_touch_those_for_whom_something_is_idle(maker):
    pool = ConnectionPool(2, connect=maker, fail_fast=True)
    fill_and_idle(pool)
    maker.error = ConnectionRefusedError()
    pool.discard(pool.acquire())
    gevent.idle()
    assert pool.stats().dial_failed >= 1

    with pool.get(timeout=10) as conn:
        assert conn.number == 2


# keepalive, check_after


def test_keepalive_pings_the_connections_that_are_idle_for_that_long(maker):
    pool = PingPool(maker, 3, keepalive=0.02)

    maker.wait_until(lambda: set(pool.pinged) == {1, 2, 3})

    assert pool.stats().checked >= 2
    assert maker.open == {1, 2, 3}


def test_keepalive_leaves_alone_what_is_in_use(maker):
    pool = PingPool(maker, 2, keepalive=0.02)
    fill_and_idle(pool)

    with pool.get() as conn:
        pool.pinged.clear()
        maker.wait_until(lambda: len(pool.pinged) >= 3)
        assert conn.number not in pool.pinged


def test_keepalive_leaves_alone_what_was_used_lately(maker):
    with FakeClock() as clock, PingPool(maker, 1, keepalive=100) as pool:
        fill_and_idle(pool)
        for _ in range(5):
            clock.advance(60)
            with pool.get():
                pass
            gevent.idle()
        assert pool.pinged == []

        clock.advance(100)
        gevent.idle()
        assert pool.pinged == [1]


def test_a_keepalive_that_cannot_keep_up_lets_others_run(maker):
    """Each visit took longer than the pause to the next, while one was due that had to wait."""
    pool = PingPool(maker, 4, keepalive=1e-6)
    pool.ping = lambda conn: gevent.sleep(0.001)

    maker.wait_until(lambda: pool.stats().checked > 100)
    pool.close()


def test_several_keepalives_run_at_a_time_and_callers_still_find_connections(maker):
    pool = PingPool(maker, 8, keepalive=0.05, keepalive_timeout=30)
    answered = Event()
    pool.ping = lambda conn: answered.wait()
    fill_and_idle(pool)

    maker.wait_until(lambda: len(pool.pinged) == 4)
    for _ in range(20):
        with pool.get(timeout=0) as conn:
            assert conn.number not in pool.pinged
    assert pool.stats().checking == 4
    answered.set()
    pool.close()


def test_a_keepalive_that_hangs_ends_after_keepalive_timeout_and_discards(maker):
    pool = PingPool(maker, 1, keepalive=0.02, keepalive_timeout=0.02)
    pool.ping = lambda conn: gevent.sleep(30 if conn.number == 1 else 0)

    maker.wait_until(lambda: maker.open == {2})

    assert pool.stats().closed[Reason.KEEPALIVE] == 1


def test_no_caller_waits_for_the_keepalive_of_a_hung_peer(maker):
    pool = PingPool(maker, 1, keepalive=0.02, keepalive_timeout=60)
    pool.ping = lambda conn: gevent.sleep(60 if conn.number == 1 else 0)
    maker.wait_until(lambda: pool.pinged == [1])

    with pool.get(timeout=10) as conn:
        assert conn.number == 2
    gevent.idle()
    assert 1 not in maker.open


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        ValueError("bad answer"),
        gevent.Timeout(1),
        gevent.GreenletExit(),
        PoolTimeout("of another pool"),
    ],
    ids=named,
)
def test_whatever_keepalive_raises_discards_and_keepalives_go_on(maker, error, hub_errors):
    pool = PingPool(maker, 1, keepalive=0.01)

    def ping(conn):
        if conn.number <= 2:
            raise error.with_traceback(None)

    pool.ping = ping
    maker.wait_until(lambda: pool.pinged[:5] == [1, 2, 3, 3, 3])

    assert maker.open == {3}
    assert pool.stats().closed[Reason.KEEPALIVE] == 2
    pool.close()


def test_a_keepalive_keeps_its_place_among_the_idle(maker):
    pool = PingPool(maker, 3, keepalive=0.02)
    maker.wait_until(lambda: set(pool.pinged) == {1, 2, 3})
    gevent.idle()

    assert [pool.acquire(0) for _ in range(3)] == sorted_by_number(pool)


def sorted_by_number(pool: ConnectionPool[Conn]) -> list[Conn]:
    return sorted((holder.connection for holder in pool.holders()), key=lambda conn: conn.number)


def test_check_after_pings_before_the_hand_out_what_was_idle_longer(maker):
    with FakeClock() as clock, PingPool(maker, 1, check_after=60) as pool:
        fill_and_idle(pool)
        with pool.get():
            assert pool.pinged == []

        clock.advance(61)
        with pool.get():
            assert pool.pinged == [1]
        with pool.get():
            assert pool.pinged == [1]


def test_a_caller_whose_check_fails_gets_another_connection(maker):
    pool = PingPool(maker, 2, check_after=0)
    fill_and_idle(pool)

    def ping(conn):
        if conn.number == 1:
            raise ConnectionResetError

    pool.ping = ping
    with pool.get(timeout=10) as conn:
        assert conn.number == 2
    gevent.idle()
    assert maker.open == {2, 3}
    assert pool.stats().closed[Reason.KEEPALIVE] == 1


def test_a_check_before_the_hand_out_is_bounded_by_keepalive_timeout(maker):
    pool = PingPool(maker, 1, check_after=0, keepalive_timeout=0.02)
    fill_and_idle(pool)
    pool.ping = lambda conn: gevent.sleep(60 if conn.number == 1 else 0)

    with pool.get(timeout=30) as conn:
        assert conn.number == 2


def test_a_caller_with_a_timeout_of_0_gets_nothing_unchecked_and_the_pool_keeps_it(maker):
    pool = PingPool(maker, 1, check_after=0)
    fill_and_idle(pool)

    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0)

    assert pool.pinged == []
    assert maker.open == {1}
    with pool.get() as conn:
        assert conn.number == 1
        assert pool.pinged == [1]


def test_the_callers_own_timeout_in_a_check_goes_on_and_the_pool_is_whole(maker):
    pool = PingPool(maker, 1, check_after=0)
    fill_and_idle(pool)
    pool.ping = lambda conn: gevent.sleep(60 if conn.number == 1 else 0)

    with pytest.raises(gevent.Timeout) as raised:
        with gevent.Timeout(0.02) as own:
            pool.acquire()

    assert raised.value is own
    gevent.idle()
    assert maker.open == {2}
    assert pool.stats().idle == 1


# idle_timeout, max_lifetime, max_uses, jitter


def test_idle_timeout_closes_what_was_not_used_but_never_below_the_minimum(maker):
    with FakeClock() as clock:
        with ConnectionPool(5, connect=maker, min_size=2, idle_timeout=60) as pool:
            with waiting(pool, 5):
                pass
            assert len(maker.open) == 5

            for _ in range(3):
                clock.advance(61)
                gevent.idle()

            assert len(maker.open) == 2
            assert maker.opened == 5
            assert pool.stats().closed[Reason.IDLE] == 3


def test_idle_timeout_replaces_what_was_idle_too_long_in_a_fixed_pool(maker):
    with FakeClock() as clock:
        with ConnectionPool(3, connect=maker, idle_timeout=60, jitter=0) as pool:
            pool.fill()
            clock.advance(40)
            with pool.get() as used:
                pass
            clock.advance(30)
            maker.wait_until(lambda: maker.opened == 5)
            gevent.idle()

            assert maker.open == {used.number, 4, 5}
            assert pool.stats().closed[Reason.IDLE] == 2
            assert pool.stats().idle == 3


def test_what_was_idle_too_long_in_a_fixed_pool_is_not_handed_out(maker):
    with FakeClock() as clock:
        with ConnectionPool(1, connect=maker, idle_timeout=60) as pool:
            pool.fill()
            clock.advance(61)  # without a switch, so the reaper has not run
            with pool.get() as conn:
                assert conn.number == 2


def test_what_was_idle_too_long_is_not_handed_out_even_before_the_reaper_comes(maker):
    with FakeClock() as clock:
        with ConnectionPool(2, connect=maker, min_size=0, idle_timeout=60) as pool:
            with pool.get():
                pass

            clock.advance(61)  # without a switch, so the reaper has not run
            with pool.get() as conn:
                assert conn.number == 2


def test_a_connection_beyond_max_lifetime_is_replaced_unasked(maker):
    pool = ConnectionPool(2, connect=maker, max_lifetime=0.05)

    maker.wait_until(lambda: {1, 2}.isdisjoint(maker.open) and len(maker.open) == 2)

    assert pool.stats().closed[Reason.EXPIRED] >= 2


def test_a_replacement_is_open_before_the_expired_one_closes_where_limits_allow(maker):
    fewest = []

    class Watchful(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _close_connection(self, conn):
            fewest.append(len(maker.open) - 1)
            conn.close()

    with FakeClock() as clock:
        with Watchful(2, max_overflow=1, max_lifetime=200, jitter=0.5) as pool:
            fill_and_idle(pool)
            for _ in range(1000):
                clock.advance(1)
                gevent.idle()

            assert maker.opened >= 10
            assert min(fewest) == 2
            assert maker.peak == 3


def test_no_expired_connection_is_ever_handed_out(maker):
    born = {}

    def connect():
        conn = maker()
        born[conn.number] = clock()
        return conn

    with FakeClock() as clock, ConnectionPool(2, connect=connect, max_lifetime=60) as pool:
        fill_and_idle(pool)
        for number in range(100):
            # At times the reaper comes first, at times the caller.
            if number % 2:
                gevent.idle()
            with pool.get(timeout=10) as conn:
                assert clock() - born[conn.number] <= 60
            clock.advance(7)
    assert maker.opened > 4


def test_a_held_connection_that_expires_is_closed_on_return(maker):
    with FakeClock() as clock:
        with ConnectionPool(1, connect=maker, min_size=0, max_lifetime=60) as pool:
            with pool.get():
                clock.advance(61)
                gevent.idle()
                assert maker.open == {1}
            gevent.idle()

            assert maker.open == set()
            assert pool.stats().closed[Reason.EXPIRED] == 1


def test_connections_opened_together_do_not_expire_together():
    pool = ConnectionPool(100, connect=object, max_lifetime=1000, jitter=0.2)
    fill_and_idle(pool)
    retire_at = sorted(slot.retire_at - slot.since for slot in pool._bucket.slots)

    assert 799 < retire_at[0] < 840
    assert 960 < retire_at[-1] <= 1000
    assert len({round(at) for at in retire_at}) > 50


def test_without_jitter_a_connection_lives_its_whole_lifetime():
    pool = ConnectionPool(20, connect=object, max_lifetime=1000, jitter=0)
    fill_and_idle(pool)

    assert {round(slot.retire_at - slot.since) for slot in pool._bucket.slots} == {1000}


def test_max_uses_closes_a_connection_after_so_many_hand_outs(maker):
    pool = ConnectionPool(1, connect=maker, max_uses=3)

    used = []
    for _ in range(7):
        with pool.get(timeout=10) as conn:
            used.append(conn.number)
        gevent.idle()

    assert used == [1, 1, 1, 2, 2, 2, 3]
    assert pool.stats().closed[Reason.WORN_OUT] == 2


# order


def test_a_fixed_pool_uses_its_connections_evenly(maker):
    pool = ConnectionPool(3, connect=maker)
    fill_and_idle(pool)

    used = []
    for _ in range(6):
        with pool.get() as conn:
            used.append(conn.number)

    assert used == [1, 2, 3, 1, 2, 3]


def test_an_elastic_pool_uses_the_last_used_again(maker):
    pool = ConnectionPool(3, connect=maker, min_size=1)
    fill_and_idle(pool)

    used = set()
    for _ in range(6):
        with pool.get() as conn:
            used.add(conn.number)

    assert len(used) == 1


@pytest.mark.parametrize(("order", "different"), [("fifo", 3), ("lifo", 1)])
@pytest.mark.parametrize("min_size", [None, 1])
def test_the_order_asked_for_is_the_order_kept(maker, order, different, min_size):
    pool = ConnectionPool(3, connect=maker, min_size=min_size, order=order)
    fill_and_idle(pool)

    used = set()
    for _ in range(6):
        with pool.get() as conn:
            used.add(conn.number)

    assert len(used) == different


# What leaves a `with`


def leave_with(pool: ConnectionPool[Any], error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        with pool.get():
            raise error
    assert raised.value is error
    gevent.idle()


def test_nothing_raised_releases(maker):
    pool = ConnectionPool(1, connect=maker)

    with pool.get():
        assert pool.stats().in_use == 1

    assert pool.stats().idle == 1
    assert maker.open == {1}


@pytest.mark.parametrize(
    "error",
    [
        OSError("broken"),
        ConnectionResetError(),
        TimeoutError(),
        gevent.Timeout(1),
        gevent.GreenletExit(),
        KeyboardInterrupt(),
        GeneratorExit(),
        SystemExit(),
    ],
    ids=named,
)
def test_an_oserror_or_what_is_no_exception_discards(maker, error):
    pool = ConnectionPool(1, connect=maker)

    leave_with(pool, error)

    assert maker.open == {2}
    assert pool.stats().closed[Reason.ERROR] == 1


def test_any_other_exception_releases(maker):
    pool = ConnectionPool(1, connect=maker)

    leave_with(pool, ValueError("a bug of the caller's"))

    assert maker.open == {1}


def test_exc_classes_say_which_exceptions_discard(maker):
    pool = ConnectionPool(1, (KeyError,), connect=maker)

    leave_with(pool, OSError())
    assert maker.open == {1}
    leave_with(pool, KeyError())
    assert maker.open == {2}


def test_strict_discards_for_any_exception(maker):
    pool = ConnectionPool(1, connect=maker, strict=True)

    leave_with(pool, ValueError())

    assert maker.open == {2}


@pytest.mark.parametrize("error", [PoolTimeout("x"), PoolClosed("x"), PoolFull("x"), NotInUse("x")])
def test_an_error_of_a_nested_pool_does_not_discard(maker, error):
    pool = ConnectionPool(1, (OSError, PoolError), connect=maker)

    leave_with(pool, error)

    assert maker.open == {1}


@contextmanager
def socket_pool(**kwargs: Any) -> Iterator[tuple[EchoServer, ConnectionPool[Any]]]:
    with EchoServer() as server:
        kwargs.setdefault("connect", SocketFactory(server.address))
        with ConnectionPool(1, **kwargs) as pool:
            pool.fill(timeout=10)
            yield server, pool


def await_readable(sock: Any) -> None:
    until_readable(sock.fileno())


def test_unread_bytes_are_seen_at_release_if_an_exception_left_the_with():
    with socket_pool() as (server, pool):
        with pytest.raises(ValueError):
            with pool.get() as sock:
                sock.sendall(b"late")
                await_readable(sock)
                raise ValueError

        assert pool.stats().closed[Reason.UNREAD] == 1
        server.wait_opened(2)


def test_unread_bytes_that_came_later_are_seen_at_the_next_hand_out():
    with socket_pool() as (_, pool):
        with pytest.raises(ValueError):
            with pool.get() as sock:
                sock.sendall(b"late")
                raise ValueError
        await_readable(sock)

        with pool.get(timeout=10) as other:
            assert other is not sock
        assert pool.stats().closed[Reason.UNREAD] == 1


def test_unread_bytes_are_seen_before_a_connection_goes_straight_to_a_waiter():
    with socket_pool() as (_, pool):
        sock = pool.acquire()
        sock.sendall(b"late")
        await_readable(sock)

        with waiting(pool) as got:
            pool.release(sock)
        assert len(got) == 1
        assert got[0] is not sock


class Wrapper:
    """What a client library makes of a socket: an object with a fileno()."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()


def test_a_suspect_that_is_no_socket_is_looked_at_by_its_fileno():
    with EchoServer() as server:
        connect = SocketFactory(server.address)
        with ConnectionPool(1, connect=lambda: Wrapper(connect())) as pool:
            with pytest.raises(ValueError):
                with pool.get() as conn:
                    conn.sock.sendall(b"late")
                    await_readable(conn)
                    raise ValueError

            assert pool.stats().closed[Reason.UNREAD] == 1


# greenlet_local


def test_a_nested_get_of_the_same_greenlet_yields_the_connection_it_has(maker):
    pool = ConnectionPool(1, connect=maker, greenlet_local=True, timeout=0.1)
    fill_and_idle(pool)

    with pool.get() as outer:
        with pool.get() as inner:
            assert inner is outer
        assert pool.stats().in_use == 1

    assert pool.stats().idle == 1
    assert pool.stats().acquired == 1


def test_another_greenlet_gets_another_connection(maker):
    pool = ConnectionPool(2, connect=maker, greenlet_local=True)

    with pool.get() as mine, waiting(pool) as got:
        assert got
        assert got[0] is not mine


def test_acquire_always_takes_another_connection(maker):
    pool = ConnectionPool(2, connect=maker, greenlet_local=True)

    with pool.get() as mine:
        other = pool.acquire()
        assert other is not mine
        pool.release(other)


def test_an_exception_caught_between_two_nested_withs_still_discards(maker):
    pool = ConnectionPool(1, connect=maker, greenlet_local=True)

    with pool.get():
        with pytest.raises(OSError):
            with pool.get():
                raise OSError
    gevent.idle()

    assert maker.open == {2}


def test_another_exception_caught_between_two_nested_withs_makes_it_a_suspect():
    with socket_pool(greenlet_local=True) as (_, pool):
        with pool.get() as sock:
            with pytest.raises(ValueError):
                with pool.get():
                    sock.sendall(b"late")
                    await_readable(sock)
                    raise ValueError

        with pool.get(timeout=10) as other:
            assert other is not sock


def test_after_a_nested_discard_the_greenlet_gets_a_fresh_one(maker):
    pool = ConnectionPool(1, connect=maker, greenlet_local=True)

    with pool.get() as first:
        pool.discard(first)
        with pool.get() as second:
            assert second is not first
    assert pool.stats().in_use == 0


# limits


def test_a_limit_shared_by_two_pools_holds_over_both(maker):
    limit = Limit(3)
    one = ConnectionPool(3, connect=maker, min_size=0, limits=[limit])
    two = ConnectionPool(3, connect=maker, min_size=0, limits=[limit])

    held = [one.acquire() for _ in range(3)]
    with waiting(two, 3) as got:
        assert got == []
        assert limit.used == 3
        assert limit.full
        for conn in held:
            one.release(conn)
        gevent.idle()
        assert len(got) == 3
    assert maker.peak == 3


def test_the_longest_idle_of_another_pool_is_closed_for_a_waiter(maker):
    limit = Limit(3)
    one, two, three = (
        ConnectionPool(2, connect=maker, min_size=0, limits=[limit]) for _ in range(3)
    )
    for pool in (one, two):
        with pool.get() as conn:
            pass
    with one.get(), one.get():
        pass  # connections 1 and 3; that of pool two, 2, is idle for longest now
    assert maker.open == {1, 2, 3}

    with three.get(timeout=10) as conn:
        assert conn.number == 4
        assert maker.open == {1, 3, 4}
    assert two.stats().closed[Reason.EVICTED] == 1
    assert maker.peak == 3


def test_waiters_of_two_pools_are_served_in_the_order_they_came(maker):
    limit = Limit(1)
    one = ConnectionPool(1, connect=maker, min_size=0, limits=[limit])
    two = ConnectionPool(1, connect=maker, min_size=0, limits=[limit])
    held = one.acquire()
    served = []

    def caller(pool, number):
        with pool.get():
            served.append(number)
            gevent.idle()

    callers = []
    for number, pool in enumerate([two, one, two, one, one, two]):
        callers.append(gevent.spawn(caller, pool, number))
        gevent.idle()
    one.release(held)
    gevent.joinall(callers, raise_error=True)

    assert served == [0, 1, 2, 3, 4, 5]
    assert maker.peak == 1


def test_a_limit_raised_at_run_time_serves_those_who_wait(maker):
    limit = Limit(1)
    pool = ConnectionPool(3, connect=maker, min_size=0, limits=[limit])

    with waiting(pool, 3) as got:
        assert len(got) == 1
        limit.maximum = 2
        gevent.idle()
        assert len(got) == 2


def test_a_limit_lowered_at_run_time_closes_what_is_idle_and_the_rest_on_return(maker):
    limit = Limit(4)
    pool = ConnectionPool(4, connect=maker, min_size=0, limits=[limit])
    conns = [pool.acquire() for _ in range(4)]
    pool.release(conns.pop())
    pool.release(conns.pop())

    limit.maximum = 1
    gevent.idle()
    assert len(maker.open) == 2
    for conn in conns:
        pool.release(conn)
    gevent.idle()

    assert len(maker.open) == 1
    assert limit.used == 1


def test_minimums_that_cannot_fit_a_limit_are_refused(maker):
    limit = Limit(3, name="sockets")
    pool = ConnectionPool(2, connect=maker, limits=[limit])

    with pytest.raises(ValueError, match="limits:.*sockets.*cannot hold.*4"):
        ConnectionPool(2, connect=maker, limits=[limit])

    with waiting(pool, 2) as got:
        assert len(got) == 2
    assert limit.used == 2


def test_a_pool_that_is_closed_gives_its_share_of_the_limit_back(maker):
    limit = Limit(2)
    ConnectionPool(2, connect=maker, limits=[limit]).close()

    with ConnectionPool(2, connect=maker, limits=[limit]) as pool:
        pool.fill(timeout=10)
        assert limit.used == 2
    assert limit.used == 0


# resize


def test_resize_up_opens_more_in_a_fixed_pool(maker):
    pool = ConnectionPool(2, connect=maker)
    fill_and_idle(pool)

    pool.resize(4)
    gevent.idle()

    assert pool.size == 4
    assert len(maker.open) == 4


def test_resize_up_serves_those_who_wait(maker):
    pool = ConnectionPool(1, connect=maker)

    with waiting(pool, 3) as got:
        pool.resize(3)
        gevent.idle()
        assert len(got) == 3


def test_resize_down_closes_the_idle_ones_now_and_the_held_ones_on_return(maker):
    pool = ConnectionPool(4, connect=maker)
    fill_and_idle(pool)
    held = [pool.acquire() for _ in range(3)]

    pool.resize(1)
    gevent.idle()
    assert maker.open == {conn.number for conn in held}
    for conn in held:
        pool.release(conn)
    gevent.idle()

    assert len(maker.open) == 1
    assert pool.stats().closed[Reason.SURPLUS] == 3


def test_resize_may_change_max_overflow_and_else_leaves_it(maker):
    pool = ConnectionPool(2, connect=maker, max_overflow=1)
    fill_and_idle(pool)

    pool.resize(3)
    assert pool.stats().maximum == 4
    with waiting(pool, 5) as got:
        assert len(got) == 4
        pool.resize(3, max_overflow=2)
        gevent.idle()
        assert len(got) == 5
    pool.resize(3, max_overflow=None)
    assert pool.stats().maximum == float("inf")
    for bad, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="max_overflow"):
            pool.resize(7, max_overflow=bad)
    assert pool.size == 3
    pool.resize(3, max_overflow=0)
    gevent.idle()
    assert len(maker.open) == 3


def test_resize_keeps_the_minimum_of_an_elastic_pool_as_far_as_size_allows(maker):
    pool = ConnectionPool(10, connect=maker, min_size=3)

    pool.resize(20)
    assert (pool.size, pool.stats().min_size) == (20, 3)
    pool.resize(2)
    assert (pool.size, pool.stats().min_size) == (2, 2)
    pool.resize(5, min_size=0)
    assert (pool.size, pool.stats().min_size) == (5, 0)


# drain


def test_drain_replaces_every_connection_opened_so_far(maker):
    pool = ConnectionPool(3, connect=maker)
    fill_and_idle(pool)

    pool.drain()
    maker.wait_until(lambda: maker.open == {4, 5, 6})
    gevent.idle()

    assert pool.stats().closed[Reason.DRAINED] == 3
    assert maker.opened == 6


def test_drain_replaces_a_held_connection_on_return(maker):
    pool = ConnectionPool(1, connect=maker)

    with pool.get():
        pool.drain()
        gevent.idle()
        assert maker.open == {1}
    maker.wait_until(lambda: maker.open == {2})


def test_drain_replaces_also_what_is_being_dialed_just_now(maker):
    maker.slow = True
    pool = ConnectionPool(1, connect=maker)
    gevent.idle()

    pool.drain()
    maker.slow = False
    maker.let_in()

    maker.wait_until(lambda: maker.open == {2})


def test_drain_spreads_over_the_time_given(maker):
    opened = set()
    with FakeClock() as clock, ConnectionPool(10, connect=maker) as pool:
        fill_and_idle(pool)

        pool.drain(over=300)
        for _ in range(30):
            gevent.idle()
            opened.add(maker.opened)
            clock.advance(10)
        maker.wait_until(lambda: len(maker.open) == 10 and min(maker.open) > 10)

    assert maker.opened == 20
    assert len(opened) > 3  # the moments are random, but ten of them share no two or three steps


def test_drain_replaces_a_fixed_pool_one_at_a_time(maker):
    fewest = []

    class Watchful(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _close_connection(self, conn):
            conn.close()
            fewest.append(len(maker.open))

    pool = Watchful(4)
    fill_and_idle(pool)
    pool.drain()
    maker.wait_until(lambda: maker.open == {5, 6, 7, 8})

    assert min(fewest) == 3


def test_drain_never_goes_below_the_minimum_where_there_is_room(maker):
    fewest = []

    class Watchful(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _close_connection(self, conn):
            conn.close()
            fewest.append(len(maker.open))

    pool = Watchful(8, min_size=4)
    maker.wait_until(lambda: len(maker.open) == 4)
    gevent.idle()
    pool.drain()
    maker.wait_until(lambda: len(maker.open) == 4 and min(maker.open) > 4)

    assert min(fewest) >= 4


@pytest.mark.parametrize("min_size", [None, 2])
def test_drain_keeps_the_old_connections_while_the_server_refuses_new_ones(maker, min_size):
    pool = ConnectionPool(4, connect=maker, min_size=min_size, backoff=SOON)
    pool.fill(timeout=10)
    maker.error = ConnectionRefusedError()

    pool.drain()
    before = maker.dials
    maker.wait_until(lambda: maker.dials > before + 5)
    gevent.sleep(0)
    assert len(maker.open) >= (2 if min_size else 3)
    maker.error = None
    maker.wait_until(lambda: len(maker.open) >= (min_size or 4) and min(maker.open) > 4)


# detach, execute, fill, dispose


def test_a_detached_connection_is_its_holders_and_is_replaced(maker):
    pool = ConnectionPool(1, connect=maker)
    conn = pool.acquire()

    assert pool.detach(conn) is conn
    gevent.idle()

    assert maker.open == {1, 2}
    assert not conn.closed
    assert pool.stats().closed[Reason.DETACHED] == 1
    with pytest.raises(NotInUse):
        pool.release(conn)


def test_execute_calls_a_function_with_a_connection(maker):
    pool = ConnectionPool(1, connect=maker)

    assert pool.execute(lambda conn, a, b: (conn.number, a, b), 2, b=3) == (1, 2, 3)
    assert pool.stats().in_use == 0


def test_execute_calls_the_method_of_that_name(maker):
    pool = ConnectionPool(1, connect=maker)

    assert pool.execute("double", 20, plus=2) == 42


def test_execute_discards_as_a_with_does(maker):
    pool = ConnectionPool(1, connect=maker)

    def broken(conn):
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        pool.execute(broken)
    gevent.idle()

    assert maker.open == {2}


def test_fill_waits_until_all_are_open(maker):
    maker.slow = True
    pool = ConnectionPool(2, connect=maker)
    filler = gevent.spawn(pool.fill)
    gevent.idle()

    maker.let_in()
    assert not filler.ready()
    maker.let_in()
    gevent.idle()

    assert filler.ready()


def test_fill_fills_an_elastic_pool_too(maker):
    pool = ConnectionPool(4, connect=maker, min_size=1)

    pool.fill(timeout=10)

    assert len(maker.open) == 4


def test_fill_counts_what_is_in_use(maker):
    pool = ConnectionPool(2, connect=maker, min_size=0)

    with pool.get():
        pool.fill(timeout=10)
        assert len(maker.open) == 2


def test_fill_times_out_with_the_last_dial_error_as_its_cause(maker):
    maker.error = ConnectionRefusedError("nothing there")
    pool = ConnectionPool(2, connect=maker, name="db")

    with pytest.raises(PoolTimeout, match="'db': 0 of 2 connections") as raised:
        pool.fill(timeout=0.02)

    assert raised.value.__cause__ is maker.error
    assert pool._bucket.filling == 0


def test_fill_of_a_pool_that_closes_raises_pool_closed(maker):
    maker.slow = True
    pool = ConnectionPool(2, connect=maker)

    def fill():
        with pytest.raises(PoolClosed):
            pool.fill()

    filler = gevent.spawn(fill)
    gevent.idle()
    pool.close()

    filler.get(timeout=10)


def test_dispose_closes_the_idle_ones_and_the_pool_stays_usable(maker):
    pool = ConnectionPool(3, connect=maker, min_size=0)
    pool.fill(timeout=10)
    held = pool.acquire()

    pool.dispose()
    gevent.idle()
    assert maker.open == {held.number}
    pool.release(held)

    assert pool.acquire(timeout=0) is held
    assert pool.stats().closed[Reason.DISPOSED] == 2


def test_dispose_of_a_fixed_pool_refills_it(maker):
    pool = ConnectionPool(2, connect=maker)
    fill_and_idle(pool)

    pool.dispose()
    gevent.idle()

    assert maker.open == {3, 4}


# close


def test_close_closes_what_is_idle_and_stops_the_dials(maker):
    pool = ConnectionPool(3, connect=maker)
    gevent.idle()
    maker.slow = True
    pool.discard(pool.acquire())
    gevent.idle()
    assert len(maker.waiting) == 1

    pool.close()

    assert maker.open == set()
    assert maker.waiting == []
    assert pool.stats().closed[Reason.POOL_CLOSED] == 2


def test_after_close_no_caller_gets_a_connection(maker):
    pool = ConnectionPool(1, connect=maker, name="db")
    pool.close()

    with pytest.raises(PoolClosed, match="'db' is closed") as raised:
        pool.acquire()
    assert raised.value.pool == "db"
    with pytest.raises(PoolClosed):
        with pool.get(timeout=0):
            pass
    with pytest.raises(PoolClosed):
        pool.fill()


def test_close_tells_those_who_wait_at_once(maker):
    pool = ConnectionPool(1, connect=maker)
    held = pool.acquire()

    with waiting(pool, 3) as got:
        closer = gevent.spawn(pool.close)
        gevent.idle()
        assert [type(each) for each in got] == [PoolClosed] * 3
        pool.release(held)
        closer.join()


def test_close_waits_for_those_who_hold_and_closes_on_return(maker):
    pool = ConnectionPool(1, connect=maker)
    with waiting(pool):
        closer = gevent.spawn(pool.close)
        gevent.idle()
        assert not closer.ready()
        assert maker.open == {1}
    closer.get(timeout=10)

    assert maker.open == set()


def test_a_timeout_of_close_closes_under_the_holders(maker):
    pool = ConnectionPool(1, connect=maker)
    with waiting(pool) as got:
        pool.close(timeout=0.02)
        assert got[0].closed
        assert maker.open == set()


def test_a_close_with_a_timeout_of_0_does_not_wait_for_holders(maker):
    pool = ConnectionPool(1, connect=maker)
    with waiting(pool):
        pool.close(timeout=0)
        assert maker.open == set()


def test_close_ends_a_keepalive_that_is_under_way(maker):
    pool = PingPool(maker, 1, keepalive=0.02, keepalive_timeout=60)
    pool.ping = lambda conn: gevent.sleep(60)
    maker.wait_until(lambda: pool.pinged == [1])

    with gevent.Timeout(3):
        pool.close()

    assert maker.open == set()
    assert pool.stats().closed[Reason.POOL_CLOSED] == 1


def test_closing_twice_does_no_harm(maker):
    pool = ConnectionPool(1, connect=maker)
    fill_and_idle(pool)

    pool.close()
    pool.close()

    assert maker.open == set()


def test_two_may_close_at_once_and_both_wait(maker):
    pool = ConnectionPool(1, connect=maker)
    with waiting(pool):
        closers = [gevent.spawn(pool.close) for _ in range(2)]
        gevent.idle()
        assert not any(closer.ready() for closer in closers)
    assert len(gevent.joinall(closers, timeout=10)) == 2


def test_close_does_not_wait_for_what_the_caller_itself_holds(maker):
    pool = ConnectionPool(2, connect=maker)

    with pool.get():
        pool.close()
        assert maker.open == {1}
    gevent.idle()
    assert maker.open == set()


def test_a_with_of_the_pool_closes_it(maker):
    with ConnectionPool(2, connect=maker) as pool:
        assert isinstance(pool, ConnectionPool)
        pool.fill(timeout=10)

    assert maker.open == set()
    with pytest.raises(PoolClosed):
        pool.acquire()


def test_a_with_of_the_pool_closes_it_whatever_leaves_it(maker):
    with pytest.raises(ZeroDivisionError):
        with ConnectionPool(2, connect=maker) as pool:
            pool.fill(timeout=10)
            raise ZeroDivisionError

    assert maker.open == set()


def test_drain_resize_and_dispose_of_a_closed_pool_open_nothing(maker):
    pool = ConnectionPool(2, connect=maker)
    fill_and_idle(pool)
    pool.close()

    pool.drain()
    pool.resize(5)
    pool.dispose()
    gevent.idle()

    assert maker.open == set()
    assert maker.opened == 2


def test_a_closed_pool_that_was_drained_leaves_nothing_in_the_runtime(maker):
    pool = ConnectionPool(2, connect=maker)
    pool.close()

    pool.drain()
    gevent.idle()

    assert not any(pool._bucket in loop.buckets for loop in pool._bucket.maintenance)


# Release, discard, detach


@pytest.mark.parametrize("verb", ["release", "discard", "detach"])
def test_giving_back_inside_the_with_is_enough(maker, verb):
    pool = ConnectionPool(1, connect=maker)

    with pool.get() as conn:
        getattr(pool, verb)(conn)
    gevent.idle()

    assert pool.stats().idle == 1
    assert pool.stats().in_use == 0


@pytest.mark.parametrize("verb", ["release", "discard", "detach"])
def test_an_exception_after_giving_back_inside_the_with_hits_no_other(maker, verb):
    pool = ConnectionPool(1, connect=maker)

    with pytest.raises(OSError):
        with pool.get() as conn:
            getattr(pool, verb)(conn)
            mine = gevent.spawn(pool.acquire).get(timeout=10)  # perhaps the very same one
            raise OSError

    gevent.idle()
    assert mine.number in maker.open
    pool.release(mine)


@pytest.mark.parametrize("verb", ["release", "discard", "detach"])
def test_giving_back_twice_raises_not_in_use(maker, verb):
    pool = ConnectionPool(1, connect=maker, name="db")
    conn = pool.acquire()
    pool.release(conn)

    with pytest.raises(NotInUse, match="'db'.*<Conn 1>") as raised:
        getattr(pool, verb)(conn)

    assert raised.value.connection is conn
    assert pool.stats().idle == 1


@pytest.mark.parametrize("verb", ["release", "discard", "detach"])
def test_giving_back_what_is_not_ours_raises_not_in_use(maker, verb):
    pool = ConnectionPool(1, connect=maker)
    other = ConnectionPool(1, connect=maker)
    conn = other.acquire()

    for foreign in (conn, object(), None):
        with pytest.raises(NotInUse):
            getattr(pool, verb)(foreign)
    other.release(conn)


def test_a_discarded_connection_is_closed_and_replaced(maker):
    pool = ConnectionPool(1, connect=maker)

    pool.discard(pool.acquire())
    gevent.idle()

    assert maker.open == {2}
    assert pool.stats().closed[Reason.DISCARDED] == 1


def test_one_greenlet_may_release_what_another_acquired(maker):
    pool = ConnectionPool(1, connect=maker)
    conn = pool.acquire()

    gevent.spawn(pool.release, conn).get(timeout=10)

    assert pool.stats().idle == 1


# Odd connections


def test_the_same_object_may_stand_in_several_slots():
    shared = Wrapper(None)
    pool = ConnectionPool(2, connect=lambda: shared)
    pool._fileno = None  # not called again
    one, two = pool.acquire(), pool.acquire()
    assert one is two is shared

    pool.release(one)
    assert pool.stats().in_use == 1
    pool.release(two)
    assert pool.stats().in_use == 0
    with pytest.raises(NotInUse):
        pool.release(one)


def test_the_same_object_in_several_slots_survives_the_discard_of_one():
    made: Counter[str] = Counter()

    class Shared(ConnectionPool):
        def _new_connection(self):
            made["dialed"] += 1
            return "the one and only"

    pool = Shared(2)
    one, two = pool.acquire(), pool.acquire()

    pool.discard(one)
    gevent.idle()
    pool.release(two)

    assert pool.stats().idle == 2
    assert made["dialed"] == 3


def test_connections_that_cannot_be_weakly_referenced_are_pooled():
    pool = ConnectionPool(2, connect=lambda: (1, 2))

    with pool.get() as conn:
        assert conn == (1, 2)
    pool.release(pool.acquire())
    with pytest.raises(OSError):
        with pool.get():
            raise OSError
    gevent.idle()

    assert pool.stats().idle == 2
    assert pool.stats().in_use == 0


def test_a_connection_that_compares_equal_to_everything_is_no_trouble():
    class Equal:
        def __eq__(self, other):
            return True

        __hash__ = None  # type: ignore[assignment]

    pool = ConnectionPool(2, connect=Equal)
    one, two = pool.acquire(), pool.acquire()

    pool.release(one)
    pool.discard(two)
    with pytest.raises(NotInUse):
        pool.release(one)


# Hooks


@pytest.mark.parametrize("answer", [None, ValueError, -1, 10**6, 10**100, "three"], ids=named)
def test_whatever_fileno_answers_the_connection_is_pooled(maker, answer):
    class Odd(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _fileno(self, conn):
            if answer is ValueError:
                raise ValueError
            return answer

    pool = Odd(1)
    with pool.get(timeout=10):
        pass
    pool.discard(pool.acquire(timeout=10))
    with pool.get(timeout=10):
        pass
    gevent.idle()

    assert maker.open == {2}


def test_is_alive_decides_what_is_handed_out_again(maker):
    dead = {1}

    class Choosy(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _is_alive(self, conn):
            return conn.number not in dead

    pool = Choosy(2)
    fill_and_idle(pool)
    for _ in range(2):
        with pool.get():
            pass
    dead.add(2)

    with pool.get(timeout=10) as conn:
        assert conn.number > 2
    assert pool.stats().closed[Reason.DEAD] == 2


def test_an_is_alive_that_raises_says_dead(maker):
    class Raising(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _is_alive(self, conn):
            if conn.number == 1:
                raise RuntimeError("who knows")
            return True

    pool = Raising(1, backoff=SOON)

    with pool.get(timeout=10) as conn:
        assert conn.number == 2
    assert pool.stats().closed[Reason.DEAD] == 1


def test_fresh_connections_that_are_not_alive_are_dialed_with_a_back_off(maker):
    class Hopeless(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _is_alive(self, conn):
            return False

    pool = Hopeless(1, backoff=Backoff(first=0.05, longest=0.05, jitter=0))

    with pytest.raises(PoolTimeout):
        pool.acquire(timeout=0.3)

    assert maker.dials <= 8


class Resetting(ConnectionPool[Conn]):
    def __init__(self, maker: Maker, *args: Any, **kwargs: Any) -> None:
        self.reset: list[int] = []
        self.on_reset: Callable[[Conn], object] = lambda conn: None
        super().__init__(*args, connect=maker, **kwargs)

    def _reset_connection(self, conn: Conn) -> None:
        self.reset.append(conn.number)
        self.on_reset(conn)


def test_reset_is_called_on_return_and_not_for_what_is_closed(maker):
    pool = Resetting(maker, 1)
    with pool.get():
        pass
    pool.release(pool.acquire())
    pool.discard(pool.acquire())

    assert pool.reset == [1, 1]


@pytest.mark.parametrize("error", [OSError, ValueError, PoolTimeout])
def test_a_reset_that_raises_discards_and_the_caller_does_not_notice(maker, error):
    pool = Resetting(maker, 1)

    def fail(conn):
        raise error

    pool.on_reset = fail
    with pool.get() as conn:
        assert conn.number == 1
    gevent.idle()

    assert maker.open == {2}
    assert pool.stats().closed[Reason.RESET] == 1


def test_a_timeout_in_a_reset_discards_and_goes_on(maker):
    pool = Resetting(maker, 1)
    pool.on_reset = lambda conn: gevent.sleep(60)
    fill_and_idle(pool)

    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.02), pool.get():
            pass
    gevent.idle()

    assert maker.open == {2}
    assert pool.stats().in_use == 0


@pytest.mark.parametrize("error", [OSError, ValueError, gevent.Timeout, gevent.GreenletExit])
def test_whatever_close_raises_the_place_is_free_again(maker, error):
    class Stubborn(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _close_connection(self, conn):
            conn.close()
            raise error

    pool = Stubborn(1)
    for number in range(1, 4):
        conn = pool.acquire(timeout=10)
        assert conn.number == number
        pool.discard(conn)
    pool.close()
    assert pool.stats().closing == 0


def test_a_close_that_hangs_is_cut_short(maker, monkeypatch):
    monkeypatch.setattr("geventpool._runtime.closer.CLOSE_TIMEOUT", 0.02)

    class Hanging(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _close_connection(self, conn):
            try:
                gevent.sleep(60)
            finally:
                conn.close()

    pool = Hanging(1)
    pool.discard(pool.acquire())
    with pool.get(timeout=10) as conn:
        assert conn.number == 2
        assert pool.stats().closing == 0
    pool.close()


def test_the_discarding_caller_does_not_wait_for_the_close(maker):
    class Slow(ConnectionPool):
        def _new_connection(self):
            return maker()

        def _close_connection(self, conn):
            gevent.sleep(0.05)
            conn.close()

    pool = Slow(1)
    conn = pool.acquire()
    others = gevent.spawn(lambda: None)
    pool.discard(conn)

    assert not others.ready()
    assert pool.stats().closing == 1
    others.join()
    pool.close()


def test_a_connection_without_close_is_just_dropped():
    pool = ConnectionPool(1, connect=object)

    pool.discard(pool.acquire())
    assert pool.acquire(timeout=10)


# The fast path


def test_the_fast_path_is_open_when_no_caller_waits_and_nothing_listens(maker):
    pool = ConnectionPool(2, connect=maker)
    fill_and_idle(pool)

    assert pool._bucket.fast_path_open == pool._runtime.ident
    with pool.get(), pool.get():
        assert pool._bucket.fast_path_open == pool._runtime.ident
        with waiting(pool):
            assert pool._bucket.fast_path_open == 0
            for holder in pool.holders():
                pool.release(holder.connection)
            gevent.idle()
            assert pool._bucket.fast_path_open == pool._runtime.ident


def test_a_dropped_pool_is_collected_and_its_connections_closed(maker):
    ConnectionPool(3, connect=maker).fill(timeout=10)

    gc.collect()
    gevent.idle()

    assert maker.open == set()


def test_a_dial_to_where_nothing_listens_is_the_cause_of_the_timeout():
    with closed_port() as address:
        with ConnectionPool(1, connect=SocketFactory(address)) as pool:
            with gevent.Timeout(10):
                while not pool.stats().dial_failed:
                    gevent.sleep(0.001)
            with pytest.raises(PoolTimeout) as raised:
                pool.acquire(timeout=0.01)

    assert isinstance(raised.value.__cause__, ConnectionRefusedError)
