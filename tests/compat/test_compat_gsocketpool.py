"""A program that used gsocketpool has changed an import: what held still holds, and more.

S1 to S12 are the faults of gsocketpool 0.1.6; each test says what must hold instead.
"""

from __future__ import annotations

import gc
import inspect
import logging
import pickle
import random
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock, patch

import gevent
import gevent.server
import gevent.socket
import pytest
from gevent import GreenletExit
from gevent.event import Event

from geventpool import Backoff, ConnectError, PoolClosed, PoolError, PoolTimeout, Reason, Verdict
from geventpool.compat import gsocketpool
from geventpool.compat.gsocketpool import (
    Connection,
    ConnectionNotFoundError,
    ConnectionReaper,
    Pool,
    PoolExhaustedError,
    TcpConnection,
)
from geventpool.testing import FakeClock
from support.servers import EchoServer, IdServer, ask, closed_port
from support.waiting import until


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


def tcp_pool(server: EchoServer, *args: Any, **kwargs: Any) -> Pool[TcpConnection]:
    host, port = server.address
    return Pool(TcpConnection, {"host": host, "port": port}, *args, **kwargs)


class Plain(Connection):
    """The least that a user writes; counts those that are open, and the most that were."""

    open_now: set[Plain]
    peak = 0

    def __init__(self) -> None:
        self.is_open = self.has_expired = False

    def __init_subclass__(cls) -> None:
        cls.open_now = set()

    def open(self) -> None:
        gevent.sleep(0)
        self.is_open = True
        self.open_now.add(self)
        type(self).peak = max(self.peak, len(self.open_now))

    def close(self) -> None:
        self.open_now.discard(self)
        self.is_open = False

    def is_connected(self) -> bool:
        return self.is_open

    def is_expired(self) -> bool:
        return self.has_expired


@pytest.fixture
def plain() -> type[Plain]:
    return type("Counted", (Plain,), {})


def echo(conn: TcpConnection, data: bytes = b"hello") -> None:
    conn.send(data)
    assert conn.recv() == data


# The example of its documentation, and its names


def test_the_documented_example_works(server: EchoServer) -> None:
    with tcp_pool(server) as pool:
        with pool.connection() as conn:
            conn.send(b"hello")
            assert conn.recv() == b"hello"
        assert pool.size == len(pool._pool) == 1


@pytest.mark.parametrize(
    ("call", "signature"),
    [
        (
            Pool.__init__,
            "factory options={} initial_connections=0 max_connections=200"
            " reap_expired_connections=True reap_interval=180",
        ),
        (Pool.acquire, "retry=10 retried=0"),
        (Pool.release, "conn"),
        (Pool.drop, "conn"),
        (Pool.drop_expired, ""),
        (Pool.connection, ""),
        (ConnectionReaper.__init__, "pool interval=180"),
        (TcpConnection.__init__, "host port lifetime=600 timeout=None"),
        (TcpConnection.send, "data"),
        (TcpConnection.recv, "size=1024"),
    ],
)
def test_signatures_and_defaults_are_the_documented_ones(
    call: Callable[..., Any], signature: str
) -> None:
    parameters = list(inspect.signature(call).parameters.values())[1:]
    described = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]

    assert " ".join(described).replace("mappingproxy({})", "{}") == signature


def test_the_names_of_the_old_submodules_are_attributes() -> None:
    assert gsocketpool.exceptions.PoolExhaustedError is PoolExhaustedError
    assert gsocketpool.connection.TcpConnection is TcpConnection
    assert gsocketpool.pool.ConnectionReaper is ConnectionReaper


@pytest.mark.parametrize("error", [PoolExhaustedError, ConnectionNotFoundError])
def test_the_errors_are_made_caught_and_pickled_as_before(error: type[Exception]) -> None:
    assert isinstance(pickle.loads(pickle.dumps(error())), error)
    assert str(pickle.loads(pickle.dumps(error("why")))) == "why"
    assert issubclass(error, PoolError)
    # An `except OSError` for broken connections never caught them.
    assert not issubclass(error, OSError)


def test_it_is_imported_and_used_without_a_warning() -> None:
    program = """
import gevent.server
from geventpool.compat.gsocketpool import Pool, TcpConnection

server = gevent.server.StreamServer(("127.0.0.1", 0), lambda sock, _: sock.sendall(sock.recv(9)))
server.start()
pool = Pool(TcpConnection, dict(host="127.0.0.1", port=server.server_port))
with pool.connection() as conn:
    conn.send(b"hello")
    print(conn.recv().decode())
pool.close()
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_pools_and_connections_can_be_subclassed_and_subscripted(plain: type[Plain]) -> None:
    class Patient(Pool[Plain]):
        def acquire(  # type: ignore[override]
            self, retry: float = 1000, retried: float = 0
        ) -> Plain:
            acquired.append(retry)
            return super().acquire(retry, retried)

        def release(self, conn: Plain) -> None:
            released.append(conn)
            super().release(conn)

    acquired: list[float] = []
    released: list[Plain] = []
    with Patient(plain) as pool, pool.connection() as conn:
        assert isinstance(conn, plain)
    with Pool[Plain](plain) as other:
        assert other.size == 0

    assert (acquired, released) == ([1000], [conn])


def test_the_factory_gets_the_options_as_they_are_at_each_call() -> None:
    class Named(Plain):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    options = {"name": "a"}
    with Pool(Named, options) as pool:
        a = pool.acquire()
        options["name"] = "b"
        b = pool.acquire()

        assert (a.name, b.name) == ("a", "b")
        pool.release(a)
        pool.release(b)


# What its own suite, and so that of its users, looks at


def test_idle_and_used_connections_are_seen_in_the_views(plain: type[Plain]) -> None:
    with Pool(plain, initial_connections=2) as pool:
        first, second = pool._pool
        conn = pool.acquire()

        assert conn is first
        assert conn in pool._using
        assert conn not in pool._pool
        assert (len(pool._pool), len(pool._using), pool.size) == (1, 1, 2)
        pool.release(conn)
        assert list(pool._pool) == [second, first]
        assert len(pool._using) == 0
        with pytest.raises(AttributeError):
            pool._pool = ()  # type: ignore[misc]


def test_connections_that_are_mocks_are_open_and_not_expired() -> None:
    factory = Mock(side_effect=lambda: Mock())
    with Pool(factory, initial_connections=10) as pool:
        for _ in range(20):
            with pool.connection() as conn:
                assert conn in pool._using

        assert factory.call_count == pool.size == 10


def test_one_mock_may_stand_for_all_connections() -> None:
    with Pool(Mock(), initial_connections=10) as pool:
        assert pool.size == 10
        conns = [pool.acquire() for _ in range(3)]
        assert len(pool._using) == 3
        for conn in conns:
            pool.release(conn)
        pool.drop(conns[0])
        pool.drop(conns[0])
        assert pool.size == 8
        with pool.connection():
            assert pool.size == 8


def test_a_dropped_connection_is_closed_on_return_unless_it_was_closed_before() -> None:
    with Pool(Mock(side_effect=lambda: Mock()), initial_connections=2) as pool:
        conn, closed = pool._pool
        closed.is_connected.return_value = False

        pool.drop(conn)
        conn.close.assert_called_once_with()
        pool.drop(closed)
        assert not closed.close.called
        assert pool.size == 0


def test_a_connection_that_is_none_of_the_pool_s_or_not_there_any_more_is_not_found(
    plain: type[Plain],
) -> None:
    with Pool(plain) as pool:
        conn = pool.acquire()
        pool.release(conn)
        with pytest.raises(ConnectionNotFoundError, match="released twice"):
            pool.release(conn)
        with pytest.raises(ConnectionNotFoundError):
            pool.release(plain())
        with pytest.raises(ConnectionNotFoundError):
            pool.drop(plain())
        pool.drop(conn)
        with pytest.raises(ConnectionNotFoundError) as caught:
            pool.drop(conn)

        assert caught.value.connection is conn
        assert caught.value.pool == pool.name


def test_the_pool_starts_the_reaper_that_is_patched_in() -> None:
    with patch("geventpool.compat.gsocketpool.pool.ConnectionReaper") as reaper:
        with Pool(Mock(), reap_expired_connections=True, reap_interval=3) as pool:
            reaper.assert_called_once_with(pool, 3)
            reaper.return_value.start.assert_called_once_with()
        with Pool(Mock(), reap_expired_connections=False):
            reaper.assert_called_once_with(pool, 3)


def test_the_reaper_goes_on_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    called = Event()

    def drop_expired() -> None:
        if pool.drop_expired.call_count == 2:
            called.set()
        raise ValueError

    pool = Mock()
    pool.drop_expired.side_effect = drop_expired
    reaper = ConnectionReaper(pool, 0.01)
    reaper.start()

    assert called.wait(10)
    assert "while dropping expired connections" in caplog.text
    reaper.kill()


# S1


def test_max_connections_is_not_exceeded_by_callers_that_come_at_once(server: EchoServer) -> None:
    """S1: room was looked for before the connect and taken after it; 50 callers got 50."""

    def use() -> None:
        conn = pool.acquire(retry=1000)
        echo(conn)
        pool.release(conn)

    with tcp_pool(server, max_connections=2) as pool:
        gevent.joinall([gevent.spawn(use) for _ in range(50)], raise_error=True, timeout=60)

        assert pool.size <= 2
        assert server.peak <= 2


def test_max_connections_is_not_exceeded_while_connections_close(plain: type[Plain]) -> None:
    """S1: and neither it was counted while it closed."""

    class Slow(plain):  # type: ignore[misc, valid-type]
        def close(self) -> None:
            gevent.sleep(0.001)
            super().close()

    def use() -> None:
        conn = pool.acquire(retry=1000)
        pool.discard(conn)

    with Pool(Slow, max_connections=3) as pool:
        gevent.joinall([gevent.spawn(use) for _ in range(30)], raise_error=True, timeout=60)

        assert Slow.peak == 3


# S2


def test_a_caller_that_waits_is_woken_by_a_release(plain: type[Plain]) -> None:
    """S2: a caller looked every 0.1 s; here it takes no timer at all."""
    with Pool(plain, max_connections=1) as pool:
        conn = pool.acquire()
        waiter = gevent.spawn(pool.acquire, retry=5000)  # which was a RecursionError
        gevent.idle()
        assert not waiter.ready()
        pool.release(conn)
        gevent.sleep(0)
        gevent.sleep(0)

        assert waiter.ready()
        pool.release(waiter.get())


@pytest.mark.parametrize(("retry", "retried"), [(3, 0), (5, 2)])
def test_a_tenth_of_a_second_for_each_retry_is_all_the_patience(
    plain: type[Plain], retry: int, retried: int
) -> None:
    with Pool(plain, max_connections=1) as pool, pool.connection():
        began = time.monotonic()
        with pytest.raises(PoolExhaustedError, match=r"in 0\.3\d* s \(1 in use") as caught:
            pool.acquire(retry=retry, retried=retried)

        assert 0.29 < time.monotonic() - began < 3
        assert isinstance(caught.value.__cause__, PoolTimeout)


def test_without_retries_it_is_exhausted_without_a_switch(plain: type[Plain]) -> None:
    with Pool(plain, max_connections=1) as pool, pool.connection():
        others = gevent.spawn(lambda: None)
        with pytest.raises(PoolExhaustedError):
            pool.acquire(retry=0)

        assert not others.ready()
        others.join()


def test_without_retries_a_connection_is_still_opened_where_there_is_room(
    server: EchoServer,
) -> None:
    with tcp_pool(server, max_connections=1) as pool:
        conn = pool.acquire(retry=0)
        echo(conn)
        pool.release(conn)


def test_opening_a_connection_may_take_longer_than_the_patience(plain: type[Plain]) -> None:
    class Slow(plain):  # type: ignore[misc, valid-type]
        def open(self) -> None:
            gevent.sleep(0.3)
            super().open()

    with Pool(Slow) as pool:
        pool.release(pool.acquire(retry=1))


def test_callers_that_come_back_at_once_starve_no_caller(plain: type[Plain]) -> None:
    """S2: one was served 4375 times, another once, and others not at all."""
    served: Counter[int] = Counter()

    def work(number: int) -> None:
        while sum(served.values()) < 5000:
            with pool.connection():
                served[number] += 1
                gevent.sleep(0)

    with Pool(plain, max_connections=10) as pool:
        greenlets = [gevent.spawn(work, number) for number in range(100)]
        gevent.joinall(greenlets, raise_error=True, timeout=60)

    assert len(served) == 100
    assert max(served.values()) - min(served.values()) <= 2


# S3


@pytest.mark.parametrize("cut", ["fin_all", "rst_all"])
def test_a_connection_that_the_server_closed_is_not_handed_out(
    server: EchoServer, cut: str
) -> None:
    """S3: it was handed out again and again, and is_connected() was True."""
    with tcp_pool(server) as pool:
        conns = [pool.acquire() for _ in range(5)]
        for conn in conns:
            pool.release(conn)
        server.wait_open(5)
        getattr(server, cut)()

        for _ in range(5):
            with pool.connection() as conn:
                assert conn not in conns
                echo(conn)


def test_a_new_connection_is_not_handed_out_dead_either(server: EchoServer) -> None:
    with tcp_pool(server, initial_connections=3) as pool:
        server.wait_open(3)
        server.rst_all()

        with pool.connection() as conn:
            echo(conn)


def test_a_connection_that_its_user_closed_is_not_handed_out(server: EchoServer) -> None:
    with tcp_pool(server) as pool:
        with pool.connection() as conn:
            conn.close()
        assert conn in pool._pool  # its users' tests look

        with pool.connection() as other:
            assert other is not conn
            echo(other)


def test_a_connection_that_says_it_is_not_connected_is_not_handed_out(plain: type[Plain]) -> None:
    with Pool(plain) as pool:
        with pool.connection() as conn:
            conn.is_open = False

        with pool.connection() as other:
            assert other is not conn


def test_what_lies_unread_from_an_earlier_request_is_read_by_no_caller(server: EchoServer) -> None:
    with tcp_pool(server) as pool:
        with pool.connection() as conn:
            conn.send(b"first")
            gevent.socket.wait_read(conn.get().fileno())
        with pool.connection() as conn:
            echo(conn, b"second")


def test_the_greeting_of_a_server_is_not_taken_for_an_unread_reply() -> None:
    def greet(sock: Any, address: object) -> None:
        sock.sendall(b"220 welcome\r\n")
        sock.recv(1)

    server = gevent.server.StreamServer(("127.0.0.1", 0), greet)
    server.start()
    options = {"host": "127.0.0.1", "port": server.server_port}
    with Pool(TcpConnection, options, initial_connections=2) as pool:
        conns = pool._pool
        for conn in conns:
            gevent.socket.wait_read(conn.get().fileno())

        for conn in conns:
            with pool.connection() as greeted:
                assert greeted is conn
                assert conn.recv() == b"220 welcome\r\n"
    server.stop()


# S4


def test_an_expired_connection_is_not_handed_out(plain: type[Plain]) -> None:
    """S4: nothing asked before the reaper did, every three minutes."""
    with Pool(plain, initial_connections=2) as pool:
        first, second = pool._pool
        first.has_expired = True
        with pool.connection() as conn:
            assert conn is second
            conn.has_expired = True
        with pool.connection() as conn:
            assert conn not in (first, second)


def test_a_connection_that_expires_in_use_is_not_handed_to_who_waits(plain: type[Plain]) -> None:
    with Pool(plain, max_connections=1) as pool:
        conn = pool.acquire()
        waiter = gevent.spawn(pool.acquire)
        gevent.idle()
        conn.has_expired = True
        pool.release(conn)

        other = waiter.get(timeout=10)
        assert other is not conn
        assert plain.peak == 1
        pool.release(other)


def test_a_connection_that_is_born_expired_is_used_once(server: EchoServer) -> None:
    options = {"host": server.address[0], "port": server.address[1], "lifetime": -1}
    with Pool(TcpConnection, options) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                echo(conn)

        assert server.opened == 3


def test_the_reaper_closes_the_expired_that_are_not_used(server: EchoServer) -> None:
    options = {"host": server.address[0], "port": server.address[1], "lifetime": 0.01}
    with Pool(TcpConnection, options, initial_connections=3, reap_interval=0.02) as pool:
        server.wait_opened(3)
        server.wait_open(0)

        assert pool.size == 0


# S5


def test_a_holder_can_discard_the_broken_connection_it_holds(plain: type[Plain]) -> None:
    """S5: drop() is for idle ones (and its users' tests say so), and nothing else was there."""
    with Pool(plain, max_connections=1) as pool:
        with pool.connection() as conn:
            with pytest.raises(ConnectionNotFoundError):
                pool.drop(conn)
            assert conn in pool._using
            pool.discard(conn)
        with pool.connection() as other:
            assert other is not conn

        assert plain.peak == 1


def test_a_connection_that_the_pool_has_discarded_may_be_dropped_once_more(
    plain: type[Plain],
) -> None:
    """The way to get rid of a broken one was: release, then drop."""
    with Pool(plain) as pool:
        with pytest.raises(OSError), pool.connection() as conn:
            raise OSError("broken")
        pool.drop(conn)
        with pytest.raises(ConnectionNotFoundError):
            pool.drop(conn)

        assert pool.size == 0


# S6


def test_no_expired_connection_is_handed_out_while_others_are_closing(plain: type[Plain]) -> None:
    """S6: while the first was closed the next was handed out, and the sweep ended in an error."""

    class Slow(plain):  # type: ignore[misc, valid-type]
        def close(self) -> None:
            closing.set()
            gevent.sleep(0.01)
            super().close()

    closing = Event()
    with Pool(Slow, initial_connections=5) as pool:
        old = pool._pool
        for conn in old:
            conn.has_expired = True
        sweep = gevent.spawn(pool.drop_expired)
        assert closing.wait(10)
        with pool.connection() as conn:
            assert conn not in old
        sweep.get(timeout=10)

        assert not any(conn.is_open for conn in old)
        assert list(pool._pool) == [conn]


def test_a_connection_handed_out_while_the_sweep_asks_is_not_closed(plain: type[Plain]) -> None:
    class Slow(plain):  # type: ignore[misc, valid-type]
        def is_expired(self) -> bool:
            if sweeping:
                gevent.sleep(0)
            return sweeping

    sweeping = False
    with Pool(Slow, initial_connections=2) as pool:
        sweeping = True
        sweep = gevent.spawn(pool.drop_expired)
        gevent.sleep(0)
        sweeping = False
        with pool.connection() as conn:
            sweeping = True
            sweep.get(timeout=10)
            sweeping = False

            assert conn.is_open
            assert pool.size == 1


def test_a_sweep_leaves_what_does_not_say_clearly_that_it_is_expired() -> None:
    with Pool(Mock(side_effect=lambda: Mock()), initial_connections=2) as pool:
        expired, other = pool._pool
        expired.is_expired.return_value = True
        pool.drop_expired()

        assert list(pool._pool) == [other]


# S7


def test_reconnect_reconnects(server: EchoServer) -> None:
    """S7: it opened a closed socket again, and hid the error."""
    with tcp_pool(server) as pool:
        with pool.connection() as conn:
            server.wait_open(1)
            server.fin_all()
            conn.reconnect()
            assert conn.is_connected()
            echo(conn)

        assert server.opened == 2


def test_a_connection_that_was_reconnected_stays_in_the_pool(server: EchoServer) -> None:
    with tcp_pool(server) as pool:
        with pool.connection() as conn:
            conn.reconnect()
        for _ in range(3):
            with pool.connection() as again:
                assert again is conn
                echo(conn)
        server.fin_all()

        with pool.connection() as other:
            assert other is not conn
            echo(other)


def test_a_reconnect_in_vain_is_logged_and_leaves_it_closed(
    server: EchoServer, caplog: pytest.LogCaptureFixture
) -> None:
    conn = TcpConnection(*server.address)
    conn.open()
    server.stop()
    conn.reconnect()

    assert "Failed to reconnect" in caplog.text
    assert not conn.is_connected()
    server.start()
    conn.reconnect()
    echo(conn)
    conn.close()


@pytest.mark.parametrize("error", [gevent.Timeout, GreenletExit, KeyboardInterrupt])
def test_a_reconnect_can_be_interrupted(plain: type[Plain], error: type[BaseException]) -> None:
    """S7: a bare except swallowed the Timeout."""
    conn = plain()
    conn.open = Mock(side_effect=error)  # type: ignore[method-assign]

    with pytest.raises(error):
        conn.reconnect()


# S8


def test_send_sends_all_of_it() -> None:
    """S8: of 20 MB, 3.9 went out, and no error."""
    received: list[int] = []

    def count(sock: Any, address: object) -> None:
        total = 0
        while data := sock.recv(1 << 20):
            total += len(data)
        received.append(total)
        sock.close()

    server = gevent.server.StreamServer(("127.0.0.1", 0), count)
    server.start()
    conn = TcpConnection(*server.address)
    conn.open()
    conn.send(bytes(20_000_000))
    conn.get().shutdown(gevent.socket.SHUT_WR)
    assert conn.recv() == b""

    assert received == [20_000_000]
    conn.close()
    server.stop()


# S9


def test_the_timeout_bounds_the_connect() -> None:
    """S9: it was set after it."""
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    crowd = []
    for _ in range(5):  # more than its backlog holds
        sock = gevent.socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        crowd.append(sock)
    host, port = listener.getsockname()
    conn = TcpConnection(host, port, timeout=0.2)

    with gevent.Timeout(20), pytest.raises(TimeoutError):
        conn.open()
    assert not conn.is_connected()
    for sock in (*crowd, listener):
        sock.close()


def test_a_host_that_has_only_an_ipv6_address_is_reached() -> None:
    """S9: ``::1`` was a gaierror."""

    def greet(sock: Any, _: Any) -> None:
        sock.sendall(b"hello")
        sock.recv(1)  # to the end: one whose server hangs up is not handed out

    try:
        server = gevent.server.StreamServer(("::1", 0), greet)
        server.start()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with Pool(TcpConnection, {"host": "::1", "port": server.server_port}) as pool:
        with pool.connection() as conn:
            assert conn.recv() == b"hello"
    server.stop()


def test_before_it_is_opened_a_connection_is_not_expired() -> None:
    conn = TcpConnection("127.0.0.1", 1)

    assert conn.is_expired() is False
    conn.close()


def test_the_wall_clock_does_not_age_a_connection(
    server: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = TcpConnection(*server.address)
    conn.open()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10_000)
    assert not conn.is_expired()
    now_monotonic = time.monotonic()
    monkeypatch.setattr(gsocketpool.connection, "monotonic", lambda: now_monotonic + 601)

    assert conn.is_expired()
    conn.close()


# S10


def test_a_pool_that_is_not_used_any_more_is_closed_and_its_reaper_ends(
    server: EchoServer,
) -> None:
    """S10: the reaper held the pool, for ever."""
    pool: Any = tcp_pool(server, initial_connections=3)
    server.wait_open(3)
    reaper, gone = pool._reaper, weakref.ref(pool)
    del pool
    server.wait_open(0)
    reaper.join(10)
    gc.collect()

    assert gone() is None
    assert reaper.dead


def test_a_reaper_at_work_does_not_keep_its_pool_from_being_collected() -> None:
    swept = Event()

    class Watched(Pool[Connection]):
        def drop_expired(self) -> None:
            swept.set()

    pool: Any = Watched(Connection, reap_interval=0.01)
    reaper, gone = pool._reaper, weakref.ref(pool)
    assert swept.wait(10)
    gevent.sleep(0)
    reaper._delay = 3600
    swept.clear()
    assert swept.wait(10)  # the last time: now it sleeps
    gevent.sleep(0)
    del pool
    reaper.join(10)

    assert reaper.dead
    assert gone() is None


def test_closing_a_pool_ends_its_reaper(server: EchoServer) -> None:
    pool = tcp_pool(server, initial_connections=3)
    pool.close()
    server.wait_open(0)
    assert pool._reaper is not None
    pool._reaper.join(10)

    assert pool._reaper.dead
    with pytest.raises(PoolClosed):
        pool.acquire()


def test_a_pool_that_was_never_made_leaves_nothing_to_complain_of(plain: type[Plain]) -> None:
    with pytest.raises(AssertionError, match="initial_connections must be less"):
        Pool(plain, initial_connections=3, max_connections=2)
    with pytest.raises(ValueError, match="max_connections must be at least 1, not 0"):
        Pool(plain, max_connections=0)
    with pytest.raises(TypeError):
        Pool()  # type: ignore[call-arg]
    gc.collect()


# S11


def test_to_acquire_and_release_no_connection_is_compared(plain: type[Plain]) -> None:
    """S11: each release looked through all that were in use."""

    class Incomparable(plain):  # type: ignore[misc, valid-type]
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

    with Pool(Incomparable, initial_connections=3) as pool:
        for _ in range(5):
            conns = [pool.acquire() for _ in range(3)]
            for conn in reversed(conns):
                pool.release(conn)
        with pool.connection():
            pass


# S12


def test_the_default_options_are_not_to_be_changed(plain: type[Plain]) -> None:
    default = inspect.signature(Pool.__init__).parameters["options"].default

    assert default == {}
    with pytest.raises(TypeError):
        default["host"] = "here"


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError, OSError), (ValueError, ValueError), (gevent.Timeout, ConnectError)],
)
def test_a_connection_that_could_not_be_opened_is_closed(
    error: type[BaseException], raised: type[Exception]
) -> None:
    """S12: it was left to the garbage collector."""
    conn = Mock()
    conn.open.side_effect = error()
    with Pool(lambda: conn) as pool:
        with pytest.raises(raised):
            pool.acquire()

        conn.close.assert_called_once_with()
        assert pool.size == 0


def test_when_a_first_connection_fails_the_earlier_ones_are_closed(plain: type[Plain]) -> None:
    class Third(plain):  # type: ignore[misc, valid-type]
        def open(self) -> None:
            if len(self.open_now) == 2:
                raise OSError("full")
            super().open()

    with pytest.raises(OSError, match="full"):
        Pool(Third, initial_connections=5)

    assert Third.peak == 2
    assert not Third.open_now


# The server is away


@pytest.mark.slow
def test_the_error_of_a_dial_is_raised_as_it_is() -> None:
    with closed_port() as (host, port):
        with Pool(TcpConnection, {"host": host, "port": port}) as pool:
            for retry in (10, 0, 10, 0):
                with pytest.raises(ConnectionRefusedError):
                    pool.acquire(retry=retry)
            callers = [gevent.spawn(_outcome, pool) for _ in range(20)]
            gevent.joinall(callers, timeout=60)

            assert {caller.value for caller in callers} == {ConnectionRefusedError}


def test_during_an_outage_who_would_not_wait_gets_the_last_error_and_costs_no_dial() -> None:
    dials: list[int] = []

    def refuse() -> Connection:
        dials.append(1)
        raise ConnectionRefusedError

    with FakeClock() as clock, Pool(refuse) as pool:
        pool._bucket.backoff = Backoff(first=60, longest=60)  # its own is over too soon to look
        with pytest.raises(ConnectionRefusedError):
            pool.acquire()
        for _ in range(100):
            with pytest.raises(ConnectionRefusedError):
                pool.acquire(retry=0)
        assert len(dials) == 1
        clock.advance(60)
        with pytest.raises(ConnectionRefusedError):
            pool.acquire(retry=0)

        assert len(dials) == 2


def _outcome(pool: Pool[Any]) -> type[Exception] | None:
    try:
        pool.release(pool.acquire())
    except Exception as error:
        return type(error)
    return None


@pytest.mark.slow
def test_a_server_that_comes_back_is_used_at_once(server: EchoServer) -> None:
    with tcp_pool(server) as pool:
        server.stop()
        for _ in range(10):
            with pytest.raises(ConnectionRefusedError):
                pool.acquire()
        server.start()
        with pool.connection() as conn:
            echo(conn)


# What leaves a with, and cancellation


@pytest.mark.parametrize("error", [gevent.Timeout, GreenletExit, OSError, KeyboardInterrupt])
def test_a_connection_whose_request_was_cut_short_is_closed(
    plain: type[Plain], error: type[BaseException]
) -> None:
    with Pool(plain) as pool:
        with pytest.raises(error), pool.connection() as conn:
            raise error

        assert conn not in pool._pool
        assert pool.stats().closed[Reason.ERROR] == 1


@pytest.mark.parametrize("error", [ValueError, PoolExhaustedError])
def test_another_error_that_leaves_a_with_leaves_the_connection_in_the_pool(
    plain: type[Plain], error: type[Exception]
) -> None:
    with Pool(plain) as pool:
        with pytest.raises(error), pool.connection() as conn:
            raise error

        assert conn in pool._pool


def test_a_connection_released_in_its_with_is_not_released_under_its_next_user(
    plain: type[Plain],
) -> None:
    with Pool(plain, max_connections=1) as pool:
        with pool.connection() as conn:
            pool.release(conn)
            assert pool.acquire() is conn
        assert conn in pool._using
        pool.release(conn)


@pytest.mark.parametrize("exc_class", [gevent.Timeout, GreenletExit])
def test_no_caller_reads_the_reply_to_a_request_that_was_cut_short(
    exc_class: type[BaseException],
) -> None:
    def use(question: str) -> str:
        with pool.connection() as conn:
            return ask(conn.get(), question)

    with IdServer(late_share=1.0, late_by=0.05) as server:
        with tcp_pool(server, max_connections=1) as pool:
            first = gevent.spawn(_swallowing, lambda: use("first"))
            with gevent.Timeout(10):
                while not server.requests:
                    gevent.sleep(0.001)
            first.kill(exc_class)
            server.late_share = 0.0
            assert use("second") == "second"
            assert server.opened == 2


def test_timeouts_and_kills_lose_no_capacity_and_harm_no_other() -> None:
    answers: Counter[str] = Counter()

    def use(number: int) -> None:
        dice = random.Random(number)  # its own: no luck depends on which is faster
        for turn in range(10):
            question = f"{number}-{turn}"
            patience = dice.choice([0.0, 0.002, 0.02, 30])
            try:
                with gevent.Timeout(patience):
                    if dice.random() < 0.5:
                        with pool.connection() as conn:
                            answer = ask(conn.get(), question)
                    else:
                        conn = pool.acquire(retry=300)
                        try:
                            answer = ask(conn.get(), question)
                        except BaseException:
                            pool.discard(conn)
                            raise
                        pool.release(conn)
                assert answer == question
                answers["right"] += 1
            except gevent.Timeout:
                assert patience < 30
                answers["late"] += 1

    class Counted(TcpConnection):
        open_now: set[TcpConnection] = set()  # noqa: RUF012
        peak = 0

        def open(self) -> None:
            super().open()
            self.open_now.add(self)
            Counted.peak = max(self.peak, len(self.open_now))

        def close(self) -> None:
            super().close()
            self.open_now.discard(self)

    with IdServer(late_share=0.2, late_by=0.01, seed=3) as server:
        host, port = server.address
        with Pool(Counted, {"host": host, "port": port}, max_connections=4) as pool:
            users = [gevent.spawn(use, number) for number in range(40)]
            for user in random.Random(2).sample(users, 15):
                gevent.sleep(0.002)
                user.kill(block=False)
            gevent.joinall(users, raise_error=True, timeout=60)

            assert answers["right"] > 50
            assert answers["late"] > 20
            assert len(pool._using) == 0
            conns = [pool.acquire() for _ in range(4)]
            with pytest.raises(PoolExhaustedError):
                pool.acquire(retry=0)
            assert Counted.peak == 4
            for conn in conns:
                pool.release(conn)


@pytest.mark.parametrize("passes", range(1, 25))
@pytest.mark.parametrize("exc_class", [GreenletExit, gevent.Timeout])
def test_a_greenlet_struck_at_any_pass_of_the_loop_leaves_the_pool_whole(
    plain: type[Plain], passes: int, exc_class: type[BaseException]
) -> None:
    class Slow(plain):  # type: ignore[misc, valid-type]
        def close(self) -> None:
            try:
                gevent.sleep(0)
            finally:
                super().close()

    def act() -> None:
        Pool(Slow, initial_connections=2).close()
        with pool.connection() as conn:
            gevent.sleep(0)
        pool.drop(conn)
        pool.release(pool.acquire())
        for each in pool._pool:
            each.has_expired = True
        pool.drop_expired()

    with Pool(Slow, max_connections=1) as pool:
        actor = gevent.spawn(_swallowing, act)
        for _ in range(passes):
            gevent.sleep(0)
        actor.kill(exc_class)
        with pool.connection() as conn:
            assert pool._using == (conn,)
            with pytest.raises(PoolExhaustedError):
                pool.acquire(retry=0)
    gc.collect()
    with gevent.Timeout(10):
        while Slow.open_now:
            gevent.sleep(0.001)


def _swallowing(action: Callable[[], object]) -> None:
    try:
        action()
    except gevent.Timeout:
        pass


def test_a_forgotten_connection_gives_its_place_back(plain: type[Plain]) -> None:
    class Forgettable(plain):  # type: ignore[misc, valid-type]
        def open(self) -> None:
            self.is_open = True

    with Pool(Forgettable, max_connections=1) as pool:
        pool.acquire()
        gc.collect()

        pool.release(pool.acquire())


# Users' own connections


def test_a_connection_that_asks_for_nothing_more_than_the_documented_three_is_enough() -> None:
    class Three(Connection):
        def open(self) -> None:
            self.is_open = True

        def close(self) -> None:
            self.is_open = False

        def is_connected(self) -> bool:
            return self.is_open

    with Pool(Three, initial_connections=1) as pool:
        with pool.connection() as conn:
            assert isinstance(conn, Three)
        with pool.connection() as again:
            assert again is conn


def test_the_connection_of_the_documentation_is_watched(server: EchoServer) -> None:
    class Documented(Connection):
        def __init__(self, host: str, port: int) -> None:
            self._sock = gevent.socket.socket(gevent.socket.AF_INET)
            self._address = (host, port)
            self._connected = False
            self._created = 0.0

        def get(self) -> Any:
            return self._sock

        def open(self) -> None:
            self._sock.connect(self._address)
            self._connected = True
            self._created = time.time()

        def close(self) -> None:
            if self._connected:
                self._sock.close()
                self._connected = False

        def is_connected(self) -> bool:
            return self._connected

        def is_expired(self) -> bool:
            return time.time() - self._created > 600

    host, port = server.address
    with Pool(Documented, {"host": host, "port": port}) as pool:
        with pool.connection() as conn:
            assert ask(conn.get(), "hello") == "hello"
        server.fin_all()
        with gevent.Timeout(10):
            while pool.size:
                gevent.sleep(0.001)
        with pool.connection() as conn:
            assert ask(conn.get(), "hello") == "hello"


@pytest.mark.parametrize("method", ["is_expired", "is_connected", "get"])
def test_a_method_that_raises_makes_no_connection_unfit(
    plain: type[Plain], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Plain) -> bool:
        raise TypeError

    faulty: Any = type("Faulty", (plain,), {method: fail})
    with Pool(faulty) as pool:
        with pool.connection() as conn:
            pass
        with pool.connection() as again:
            assert again is conn

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    faulty.open_now.clear()


# Against the original


def _programme(library: Any, host: str, port: int) -> list[Any]:
    """What a program sees of the pool while nothing goes wrong, and when it is asked amiss."""
    seen: list[Any] = []
    options = {"host": host, "port": port}
    pool = library.Pool(library.TcpConnection, options, 2, 3, reap_expired_connections=False)

    def look() -> None:
        seen.append((pool.size, len(pool._pool), len(pool._using)))

    def catch(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            seen.append(call(*args, **kwargs))
        except Exception as error:
            seen.append(type(error).__name__)

    look()
    first = pool.acquire()
    second = pool.acquire()
    third = pool.acquire()
    look()
    catch(pool.acquire, retry=0)
    catch(pool.acquire, retry=1)
    catch(pool.drop, first)
    catch(pool.release, object())
    for conn in (second, first, third):
        seen.append(conn.send(b"hello"))
        seen.append(conn.recv(2) + conn.recv(3))
        pool.release(conn)
    look()
    catch(pool.release, first)
    seen.append([[second, first, third].index(conn) for conn in pool._pool])
    with pool.connection() as conn:
        seen.append(conn is second)
        look()
    try:
        with pool.connection() as conn:
            seen.append(conn is first)
            raise ValueError
    except ValueError:
        look()
    catch(pool.drop, third)
    seen.append(third.is_connected())
    catch(pool.drop, third)
    look()
    first.is_expired = lambda: True
    catch(pool.drop_expired)
    look()
    waiter = gevent.spawn(pool.acquire)
    other = waiter.get(timeout=10)
    seen.append(other is second)
    catch(library.Pool, library.TcpConnection, options, 3, 2)
    catch(library.Pool, library.TcpConnection, {"host": host, "port": 1}, 1)
    catch(library.TcpConnection(host, port).send, b"early")
    catch(library.Connection().open)
    seen.append(library.Connection().is_expired())
    other.close()
    return seen


@pytest.mark.may_leak  # the original closes nothing but by its finalizer
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_program_sees_the_same_as_with_the_original(server: EchoServer) -> None:
    original = pytest.importorskip("gsocketpool")

    assert _programme(gsocketpool, *server.address) == _programme(original, *server.address)
    gc.collect()


def test_a_wrong_server_has_all_connections_replaced(plain: type[Plain]) -> None:
    class Moved(Exception):
        pass

    class Knows(Pool[Plain]):
        def _classify_error(self, error: Exception) -> Verdict:
            return Verdict.WRONG_SERVER if isinstance(error, Moved) else Verdict.FINE

    pool = Knows(plain, initial_connections=3)
    old = set(plain.open_now)
    with pytest.raises(Moved), pool.connection():
        raise Moved
    until(lambda: not plain.open_now)
    with pool.connection() as conn:
        assert conn not in old
    pool.close()
