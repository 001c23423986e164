"""Nothing wanted is lost, nothing unwanted stays: what the garbage collector has to do with it.

Promise 9: a dropped pool is collected and its sockets closed; a connection acquired and forgotten
gives its slot back; a slot is never reclaimed while anyone can still use its connection.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple

import gevent
import pytest
from gevent.event import Event

from geventpool import ConnectionPool, NotInUse, PoolListener, PoolTimeout, Reason, SocketFactory
from geventpool._runtime.runtime import Runtime
from geventpool.events import ConnectionLost
from support.objects import Conn, Maker
from support.servers import EchoServer


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


class Half:
    """One of two: a reader or a writer."""


def collect() -> None:
    """Let the collector do what it can, and the pool what follows from it."""
    for _ in range(3):
        gc.collect()
        gevent.idle()


# A pool that is not used any more


class Pinged(ConnectionPool[Any]):
    def _keepalive(self, conn: Any) -> None:
        conn.sendall(b"ping")
        assert conn.recv(4) == b"ping"


class Ears(PoolListener):
    """A listener that holds its pool, as many do."""

    pool: Any = None

    def connection_created(self, event: object) -> None: ...
    def connection_disposed(self, event: object) -> None: ...


def _plain(connect: Any) -> ConnectionPool[Any]:
    return ConnectionPool(5, connect=connect)


def _elastic(connect: Any) -> ConnectionPool[Any]:
    pool = ConnectionPool(5, connect=connect, min_size=1, max_overflow=5, idle_timeout=30)
    pool.fill()
    return pool


def _with_keepalive(connect: Any) -> ConnectionPool[Any]:
    return Pinged(5, connect=connect, keepalive=0.01)


def _with_a_reaper(connect: Any) -> ConnectionPool[Any]:
    return ConnectionPool(5, connect=connect, max_lifetime=3600, idle_timeout=60)


def _with_a_listener(connect: Any) -> ConnectionPool[Any]:
    ears = Ears()
    ears.pool = ConnectionPool(5, connect=connect, listeners=[ears])
    return ears.pool  # type: ignore[no-any-return]


def _drained(connect: Any) -> ConnectionPool[Any]:
    pool = ConnectionPool(5, connect=connect)
    pool.fill()
    pool.drain(over=3600)
    return pool


def _in_a_cycle(connect: Any) -> ConnectionPool[Any]:
    pool = ConnectionPool(5, connect=connect)
    pool.itself = pool  # type: ignore[attr-defined]
    return pool


def _used(connect: Any) -> ConnectionPool[Any]:
    pool = ConnectionPool(5, connect=connect, greenlet_local=True, track=True, name="used")
    with pool.get() as conn, pool.get() as same:
        assert same is conn
    with pytest.raises(OSError), pool.get():
        raise OSError
    return pool


class Picking(ConnectionPool[Any]):
    """A pool that is asked by a function of its own what carries the bytes."""

    def __init__(self, size: int, **settings: Any) -> None:
        self._socket = lambda conn: self.pick(conn)  # type: ignore[method-assign]
        super().__init__(size, **settings)

    def pick(self, conn: Any) -> Any:
        return conn.sock


class Client:
    """An object with a socket in it."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock

    def close(self) -> None:
        self.sock.close()


def _picking(connect: Any) -> ConnectionPool[Any]:
    return Picking(5, connect=lambda: Client(connect()))


@pytest.mark.parametrize(
    "make",
    [
        _plain,
        _elastic,
        _with_keepalive,
        _with_a_reaper,
        _with_a_listener,
        _drained,
        _in_a_cycle,
        _used,
        _picking,
    ],
)
def test_a_dropped_pool_is_collected_and_its_sockets_are_closed(
    server: EchoServer, make: Callable[[Any], ConnectionPool[Any]]
) -> None:
    pool = make(SocketFactory(server.address))
    pool.fill()
    server.wait_open(5)
    gone = weakref.ref(pool)

    del pool
    collect()
    server.wait_open(0)

    assert gone() is None


def test_a_pool_without_a_cycle_needs_no_collector(server: EchoServer) -> None:
    gc.disable()
    try:
        pool = ConnectionPool(3, connect=SocketFactory(server.address), max_lifetime=60)
        pool.fill()
        server.wait_open(3)
        del pool
        server.wait_open(0)
    finally:
        gc.enable()


def test_a_pool_dropped_as_soon_as_it_is_made_leaves_nothing_open(maker: Maker) -> None:
    ConnectionPool(3, connect=maker)
    collect()

    assert maker.open == set()


def test_a_pool_dropped_during_a_dial_closes_what_the_dial_opens(maker: Maker) -> None:
    maker.slow = True
    pool = ConnectionPool(3, connect=maker)
    maker.wait_until(lambda: maker.dials == 1)
    gevent.idle()
    gone = weakref.ref(pool)
    del pool
    maker.let_in()
    collect()

    assert maker.opened >= 1
    assert maker.open == set()
    assert gone() is None


def test_a_pool_dropped_while_its_server_is_away_stops_dialing(maker: Maker) -> None:
    maker.error = ConnectionRefusedError()
    pool = ConnectionPool(3, connect=maker)
    maker.wait_until(lambda: maker.dials >= 2)
    gone = weakref.ref(pool)
    del pool, maker.error
    collect()
    assert gone() is None

    dials = maker.dials
    gevent.sleep(0.3)
    assert maker.dials == dials


def test_a_closed_pool_is_collected_too(server: EchoServer) -> None:
    pool = Pinged(3, connect=SocketFactory(server.address), keepalive=0.01, max_lifetime=60)
    pool.fill()
    pool.close()
    gone = weakref.ref(pool)
    del pool
    collect()

    assert gone() is None


@pytest.mark.parametrize("in_a_cycle", [False, True])
@pytest.mark.parametrize("due", ["check", "dial"])
def test_what_is_due_as_a_pool_is_dropped_leaves_nothing_open(due: str, in_a_cycle: bool) -> None:
    class Pool(ConnectionPool[Any]):
        itself: Any = None

        def _new_connection(self) -> Half:
            opened.append(Half())
            return opened[-1]

        def _keepalive(self, conn: Half) -> None: ...

        def _close_connection(self, conn: Half) -> None:
            closed.append(conn)

    opened: list[Half] = []
    closed: list[Half] = []
    pool = Pool(3, min_size=2, keepalive=60)
    pool.itself = pool if in_a_cycle else None
    gevent.idle()
    assert pool.stats().idle == 2
    bucket, scheduler = pool._bucket, pool._runtime.scheduler
    gc.disable()
    try:
        del pool
        if due == "dial":
            scheduler.resize(bucket, 3, 3, monotonic())
        if in_a_cycle:
            gc.collect()
        if due == "check":
            scheduler.start_checks(bucket, 0.0, monotonic() + 1)
            assert bucket.checking
    finally:
        gc.enable()
    collect()
    assert len(opened) in (2, 3)
    assert set(closed) == set(opened)
    assert not bucket.slots


def test_hundreds_of_pools_made_and_dropped_leave_nothing(maker: Maker) -> None:
    runtime = Runtime.of_this_thread()
    collect()
    before = set(runtime.buckets)
    for _ in range(300):
        pool = ConnectionPool(2, connect=maker, max_lifetime=60)
        with pool.get():
            pass
    del pool
    collect()
    maker.wait_until(lambda: not maker.open)
    collect()

    assert set(runtime.buckets) <= before


def test_a_connection_in_use_outlives_its_dropped_pool(server: EchoServer) -> None:
    conn = ConnectionPool(2, connect=SocketFactory(server.address)).acquire()
    collect()
    server.wait_open(1)

    conn.sendall(b"still here")
    assert conn.recv(100) == b"still here"
    conn.close()


def test_a_caller_in_a_with_keeps_the_pool(maker: Maker) -> None:
    def use() -> None:
        with ConnectionPool(1, connect=maker).get() as conn:
            inside.set()
            go_on.wait()
            conns.append(conn)

    inside, go_on, conns = Event(), Event(), list[Conn]()
    user = gevent.spawn(use)
    inside.wait()
    collect()
    assert len(maker.open) == 1
    go_on.set()
    user.join()
    collect()

    assert conns[0].closed


def test_a_caller_in_line_keeps_the_pool(maker: Maker) -> None:
    def use() -> int:
        return int(ConnectionPool(1, connect=maker).execute(lambda conn: conn.number))

    maker.slow = True
    user = gevent.spawn(use)
    maker.wait_until(lambda: maker.dials == 1)
    gevent.idle()
    collect()
    maker.let_in()

    assert user.get(timeout=5) == 1


# A connection that is never given back


class Told(PoolListener):
    def __init__(self) -> None:
        self.events: list[ConnectionLost] = []
        self.event = Event()

    def connection_lost(self, event: ConnectionLost) -> None:
        self.events.append(event)
        self.event.set()


def forget(pool: ConnectionPool[Any]) -> None:
    pool.acquire()


def forget_in_a_cycle(pool: ConnectionPool[Any]) -> None:
    conn = pool.acquire()
    conn.user = [conn]


def forget_in_a_greenlet_that_dies(pool: ConnectionPool[Any]) -> None:
    def use() -> None:
        conn = pool.acquire()
        conn.ready = True

    gevent.spawn(use).join()


def forget_in_a_greenlet_that_is_killed(pool: ConnectionPool[Any]) -> None:
    def use() -> None:
        conn = pool.acquire()
        conn.ready = True
        Event().wait()

    greenlet = gevent.spawn(use)
    gevent.idle()
    greenlet.kill()


def forget_the_lease(pool: ConnectionPool[Any]) -> None:
    pool.get().__enter__()


FORGETTERS = [
    forget,
    forget_in_a_cycle,
    forget_in_a_greenlet_that_dies,
    forget_in_a_greenlet_that_is_killed,
    forget_the_lease,
]


@pytest.mark.parametrize("forgetter", FORGETTERS)
@pytest.mark.parametrize("track", [False, True])
def test_a_connection_collected_unreleased_gives_its_slot_back_and_is_told_and_logged(
    maker: Maker,
    forgetter: Callable[[ConnectionPool[Any]], None],
    track: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = Told()
    with ConnectionPool(1, connect=maker, listeners=[told], track=track, name="db") as pool:
        pool.fill()
        with caplog.at_level(logging.WARNING, "geventpool.pool.db"):
            forgetter(pool)
            collect()
            assert told.event.wait(5)

        with pool.get(timeout=5) as conn:
            assert conn.number == 2
        stats = pool.stats()

    assert (stats.closed[Reason.LOST], stats.in_use) == (1, 0)
    assert [event.pool for event in told.events] == [pool]
    assert told.events[0].used >= 0
    assert (told.events[0].where is not None) == track
    if track:
        assert "pool.acquire()" in told.events[0].where or "__enter__" in told.events[0].where
    assert "'db'" in caplog.text
    assert "never released" in caplog.text


@pytest.mark.parametrize("forgetter", FORGETTERS)
def test_a_waiter_gets_the_place_of_a_connection_collected_unreleased(
    maker: Maker, forgetter: Callable[[ConnectionPool[Any]], None]
) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        forgetter(pool)
        waiter = gevent.spawn(pool.execute, lambda conn: conn.number)
        collect()

        assert waiter.get(timeout=5) == 2


def _forget_one(pool: ConnectionPool[Any]) -> None:
    pool.acquire()
    collect()


def test_a_socket_collected_unreleased_is_closed_and_replaced(server: EchoServer) -> None:
    with ConnectionPool(2, connect=SocketFactory(server.address)) as pool:
        pool.fill()
        with pytest.warns(ResourceWarning):
            _forget_one(pool)
        pool.fill()
        server.wait_opened(3)
        server.wait_open(2)

        assert pool.stats().closed[Reason.LOST] == 1


def test_the_counters_add_up_when_connections_are_lost(maker: Maker) -> None:
    with ConnectionPool(2, connect=maker) as pool:
        for _ in range(3):
            pool.acquire()
            collect()
            with pool.get():
                pass
        stats = pool.stats()

    assert (stats.acquired, stats.released, stats.closed[Reason.LOST]) == (6, 3, 3)


# A slot is not taken back while anyone can still use its connection


def test_one_who_keeps_the_connection_but_drops_the_lease_keeps_the_slot(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        conn = pool.get().__enter__()
        collect()

        assert pool.stats().in_use == 1
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)
        pool.release(conn)
        assert (pool.stats().idle, maker.dials) == (1, 1)


def test_one_who_keeps_the_lease_but_drops_the_connection_keeps_the_slot(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        lease = pool.get()
        lease.__enter__()
        collect()

        assert pool.stats().in_use == 1
        lease.__exit__(None, None, None)
        assert (pool.stats().idle, maker.dials) == (1, 1)


def test_one_who_keeps_only_a_method_of_the_connection_keeps_the_slot(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        double = pool.acquire().double
        collect()
        assert pool.stats().in_use == 1
        assert double(21) == 42

        del double
        collect()
        with pool.get(timeout=5) as conn:
            assert conn.number == 2


def test_one_who_keeps_a_file_of_the_socket_keeps_the_slot(server: EchoServer) -> None:
    with ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
        file = pool.acquire().makefile("rwb")
        collect()
        assert pool.stats().in_use == 1

        file.write(b"hello\n")
        file.flush()
        assert file.readline() == b"hello\n"
        files = [file]
        del file
        with pytest.warns(ResourceWarning):
            files.clear()
        with pool.get(timeout=5) as conn:
            conn.sendall(b"hello")


def test_a_connection_in_a_living_greenlet_keeps_the_slot(maker: Maker) -> None:
    def use() -> None:
        conn = pool.acquire()
        go_on.wait()
        pool.release(conn)

    go_on = Event()
    with ConnectionPool(1, connect=maker) as pool:
        user = gevent.spawn(use)
        gevent.idle()
        collect()
        assert pool.stats().in_use == 1
        go_on.set()
        user.get(timeout=5)

        assert (pool.stats().idle, maker.dials) == (1, 1)


def test_a_connection_handed_over_to_a_caller_that_has_not_woken_is_not_lost(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        with pool.get():
            waiter = gevent.spawn(pool.execute, lambda conn: conn.number)
            gevent.idle()
        gc.collect()  # it has not run yet, and only the pool knows the connection

        assert waiter.get(timeout=5) == 1
        assert maker.dials == 1


def test_a_connection_that_cannot_be_weakly_referenced_is_never_taken_for_lost() -> None:
    with ConnectionPool(1, connect=lambda: (1, 2)) as pool:
        pool.acquire()
        collect()
        assert pool.stats().in_use == 1

        pool.release(pool.holders()[0].connection)
        assert pool.stats().idle == 1


# A tuple cannot be weakly referenced; what it is made of can


class Pair(NamedTuple):
    number: int
    reader: Half
    writer: Half


class Pairs:
    def __init__(self) -> None:
        self.dials = 0

    def __call__(self) -> Pair:
        self.dials += 1
        return Pair(self.dials, Half(), Half())


def test_a_tuple_collected_with_all_its_parts_gives_its_slot_back() -> None:
    with ConnectionPool(1, connect=Pairs()) as pool:
        pool.acquire()
        collect()

        with pool.get(timeout=5) as pair:
            assert pair.number == 2
        assert pool.stats().closed[Reason.LOST] == 1


@pytest.mark.parametrize("kept", ["reader", "writer"])
def test_one_who_keeps_a_part_of_a_tuple_keeps_the_slot(kept: str) -> None:
    with ConnectionPool(1, connect=Pairs()) as pool:
        half = getattr(pool.acquire(), kept)
        collect()
        assert pool.stats().in_use == 1
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.01)

        del half
        collect()
        with pool.get(timeout=5) as pair:
            assert pair.number == 2


@pytest.mark.parametrize("leave", ["release", "discard", "detach"])
def test_a_tuple_taken_apart_is_given_back_put_together(leave: str) -> None:
    with ConnectionPool(3, connect=Pairs(), min_size=0) as pool:
        for _ in range(2):
            held = []
            for _ in range(3):
                number, reader, writer = pool.acquire(timeout=5)
                held.append((number, reader, writer))
            # Tuples made since may have the places in memory that those of the pool had.
            for number, reader, writer in held:
                with pytest.raises(NotInUse):
                    pool.release((number, reader, writer))  # type: ignore[arg-type]
                for wrong in (Pair(number, writer, reader), Pair(number, reader, Half())):
                    with pytest.raises(NotInUse):
                        pool.release(wrong)
                getattr(pool, leave)(Pair(number, reader, writer))
                with pytest.raises(NotInUse):
                    pool.release(Pair(number, reader, writer))
            assert pool.stats().in_use == 0
            if leave == "release":
                assert pool.stats().idle == 3
                taken = [pool.acquire(timeout=5) for _ in range(3)]
                assert {id(pair.reader) for pair in taken} == {id(pair[1]) for pair in held}
                for pair in taken:
                    pool.release(pair)


def test_close_by_force_closes_what_is_left_of_a_tuple() -> None:
    closed: list[Pair] = []

    class Pool(ConnectionPool[Pair]):
        def _close_connection(self, conn: Pair) -> None:
            closed.append(conn)

    pool = Pool(1, connect=Pairs())
    writer = pool.acquire().writer
    collect()
    gevent.spawn(pool.close, timeout=0).join(5)  # by another, who does not hold it
    assert closed == [(1, None, writer)]
    assert pool.stats().in_use == 0


def test_the_same_object_dialed_twice_is_released_twice_and_no_more() -> None:
    shared = Half()
    with ConnectionPool(2, connect=lambda: shared, min_size=0) as pool:
        one, other = pool.acquire(), pool.acquire()
        assert one is other is shared
        pool.discard(shared)  # and with it goes the way from the object to a slot
        pool.release(shared)
        assert pool.stats().in_use == 0
        with pytest.raises(NotInUse):
            pool.release(shared)


def test_a_detached_connection_is_not_missed_when_it_is_collected(maker: Maker) -> None:
    told = Told()
    with ConnectionPool(1, connect=maker, listeners=[told]) as pool:
        pool.detach(pool.acquire())
        collect()

        assert told.events == []
        assert pool.stats().closed[Reason.LOST] == 0


# A greenlet that is collected inside a with: its body is left by GreenletExit


def test_a_greenlet_collected_inside_a_with_gives_its_connection_back(maker: Maker) -> None:
    def use() -> None:
        with pool.get() as conn:
            numbers.append(conn.number)
            gevent.get_hub().switch()  # nothing will ever switch back

    numbers: list[int] = []
    with ConnectionPool(1, connect=maker) as pool:
        greenlet = gevent.spawn_raw(use)  # a gevent.Greenlet that waits is never collected
        gevent.idle()
        assert pool.stats().in_use == 1

        gone = weakref.ref(greenlet)
        del greenlet
        collect()
        assert gone() is None
        with pool.get(timeout=5) as conn:
            assert conn.number == 2
        assert numbers == [1]
        assert pool.stats().closed[Reason.ERROR] == 1  # it may have been in the middle


def test_a_generator_collected_inside_a_with_gives_its_connection_back(maker: Maker) -> None:
    def rows() -> Iterator[int]:
        with pool.get() as conn:
            yield conn.number
            yield conn.number

    with ConnectionPool(1, connect=maker) as pool:
        reading = rows()
        assert next(reading) == 1
        del reading
        collect()

        with pool.get(timeout=5) as conn:
            assert conn.number == 2  # closed: the rest of the rows may be on it


def test_a_greenlet_collected_in_line_leaves_the_line(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        with pool.get():
            waiter = gevent.spawn(pool.acquire)
            gevent.idle()
            assert pool.stats().waiting == 1
            waiter.kill()
            del waiter
            collect()
            assert pool.stats().waiting == 0

        assert pool.stats().idle == 1


@pytest.mark.parametrize("ending", ["killed", "failed"])
def test_a_dial_cut_short_keeps_nothing_alive_of_what_it_had_half_open(ending: str) -> None:
    """Its error is kept, as a cause of errors to come; a traceback would keep the socket open."""

    class HalfOpen:
        pass

    half_open: list[weakref.ref[HalfOpen]] = []
    dialing = Event()

    def connect() -> object:
        half = HalfOpen()
        half_open.append(weakref.ref(half))
        dialing.set()
        if ending == "failed":
            raise OSError("handshake failed")
        gevent.sleep(60)
        return half

    pool = ConnectionPool(1, connect=connect)
    assert dialing.wait(5)
    pool.close()
    gevent.sleep(0)

    assert [ref() for ref in half_open] == [None]
