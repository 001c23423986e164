"""Promises 2 and 6 for drivers' objects: closed, connected anew, unread, or cut short.

What a pool can find out of a connection that is no socket, it finds out by what carries its bytes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import socket as stdlib_socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import psycopg
import pytest
from gevent import getcurrent, monkey
from gevent.hub import get_hub
from gevent.monkey import get_original
from gevent.pool import Pool as Group

from geventpool import ConnectionPool, EndpointPool, PoolListener, Reason, SocketFactory
from support.certificates import Certificates
from support.drivers import CLIENTS, close
from support.kinds import MakePool
from support.objects import Maker
from support.servers import EchoServer, IdServer, ask, require_server
from support.waiting import until

foreign_socket = get_original("socket", "socket")
patched = monkey.is_module_patched("socket")
cooperative = pytest.mark.skipif(not patched, reason="the client blocks unless gevent patched it")


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    client = request.param()
    if client.needs_patching and not patched:
        pytest.skip("the client blocks unless gevent has patched it")
    with client.server if client.needs_patching else contextlib.nullcontext():
        yield client


of_each_client = pytest.mark.parametrize("client", CLIENTS, indirect=True)
of_those_that_reconnect = pytest.mark.parametrize(
    "client", [each for each in CLIENTS if each.reconnects], indirect=True
)


def pool_of(client: Any, **attributes: Any) -> ConnectionPool[Any]:
    """A pool of one connection of *client*, as one writes it who knows nothing of sockets."""

    def _close_connection(self: Any, conn: Any) -> None:
        with contextlib.suppress(Exception):  # of those closed already, some complain
            close(client, conn)

    kind = type("Naive", (ConnectionPool,), {"_close_connection": _close_connection, **attributes})
    made: ConnectionPool[Any] = kind(1, connect=client.open)
    return made


def number_of(client: Any, conn: Any) -> int:
    carrier = client.socket(conn)
    return carrier if isinstance(carrier, int) else int(carrier.fileno())


def arrived(number: int) -> None:
    gevent.socket.wait_read(number, timeout=5)


@contextlib.contextmanager
def held(pool: ConnectionPool[Any], how: str) -> Iterator[Any]:
    """A connection of *pool*, taken and given back in one of the two ways."""
    if how == "with":
        with pool.get() as conn:
            yield conn
    else:
        conn = pool.acquire()
        yield conn
        pool.release(conn)


either_way = pytest.mark.parametrize("how", ["with", "release"])


# The driver closed it, or connected anew


@either_way
@of_each_client
def test_a_connection_that_its_driver_closed_is_not_handed_out_whatever_has_its_number_now(
    client: Any, how: str
) -> None:
    with contextlib.ExitStack() as stack, pool_of(client) as pool:
        with held(pool, how) as conn:
            number = number_of(client, conn)
            close(client, conn)
            with gevent.Timeout(5):
                while os.path.exists(f"/proc/self/fd/{number}"):
                    gevent.sleep(0)  # gevent closes a socket a little later
            while not os.path.exists(f"/proc/self/fd/{number}"):
                stack.enter_context(foreign_socket())

        assert pool.stats().closed[Reason.GONE] == 1
        with pool.get() as other:
            assert other is not conn
        assert pool.stats().in_use == 0


@of_those_that_reconnect
def test_a_connection_that_connected_anew_by_itself_is_not_handed_out(client: Any) -> None:
    with pool_of(client) as pool:
        with pool.get() as conn:
            client.connect_anew(conn)

        assert pool.stats().closed[Reason.GONE] == 1
        with pool.get() as other:
            assert other is not conn


@of_those_that_reconnect
def test_where_that_is_fine_it_stays_and_is_watched_by_its_new_socket(client: Any) -> None:
    with pool_of(client, _may_reconnect=True) as pool:
        with pool.get() as conn:
            client.connect_anew(conn)
        with pool.get() as again:
            assert again is conn
        with foreign_socket(fileno=os.dup(number_of(client, conn))) as same:
            same.shutdown(stdlib_socket.SHUT_RDWR)
        until(lambda: pool.stats().closed[Reason.PEER_CLOSED] == 1)
        pool.fill()  # some drivers leave a socket behind when their dial is ended


@either_way
def test_it_is_watched_anew_though_its_new_socket_has_the_number_of_the_old_one(how: str) -> None:
    class Numbers(ConnectionPool[Any]):
        _may_reconnect = True

        def _socket(self, conn: Any) -> int:
            return conn.fileno()  # type: ignore[no-any-return]

    def connect() -> Any:
        return gevent.socket.create_connection(server.address)

    with EchoServer() as server, Numbers(1, connect=lambda: Wrapped(connect())) as pool:
        with held(pool, how) as conn, connect() as anew:
            os.dup2(anew.fileno(), conn.fileno())
        assert pool.stats().idle == 1

        conn.sock.shutdown(stdlib_socket.SHUT_RDWR)
        until(lambda: pool.stats().closed[Reason.PEER_CLOSED] == 1)


class Hangups(PoolListener):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def peer_closed(self, event: Any) -> None:
        self.seen.append(event.connection)


def hang_up(client: Any, conn: Any) -> None:
    with foreign_socket(fileno=os.dup(number_of(client, conn))) as same:
        same.shutdown(stdlib_socket.SHUT_RDWR)


@either_way
@of_those_that_reconnect
def test_a_hang_up_of_a_socket_that_its_driver_has_replaced_is_not_held_against_it(
    client: Any, how: str
) -> None:
    with pool_of(client, _may_reconnect=True) as pool:
        hangups = Hangups()
        pool.add_listener(hangups)
        with held(pool, how) as conn:
            hang_up(client, conn)
            until(lambda: hangups.seen == [conn])
            client.connect_anew(conn)
        for _ in range(2):
            with held(pool, how) as again:
                assert again is conn
        assert not any(pool.stats().closed.values())

        with held(pool, how):
            hang_up(client, conn)  # that of the new one is
            until(lambda: len(hangups.seen) == 2)
        assert pool.stats().closed[Reason.PEER_CLOSED] == 1
        pool.fill()


@pytest.mark.parametrize("hook", ["_reset_connection", "_keepalive", "_keepalive before a get"])
def test_a_driver_may_replace_a_socket_whose_peer_hung_up_while_a_hook_uses_it(hook: str) -> None:
    class Reconnecting(ConnectionPool[Any]):
        _may_reconnect = True

        def _connect_anew(self, conn: Any) -> None:
            if conn not in done:
                done.append(conn)
                conn.sock.shutdown(stdlib_socket.SHUT_RDWR)
                until(lambda: hangups.seen == [conn])
                conn.sock.close()
                conn.sock = connect()

    name = hook.partition(" ")[0]
    setattr(Reconnecting, name, lambda pool, conn: pool._connect_anew(conn))
    settings: dict[str, Any] = {"_reset_connection": {}, "_keepalive": {"keepalive": 0.01}}.get(
        hook, {"check_after": 0.0}
    )
    done: list[Any] = []
    hangups = Hangups()
    with EchoServer() as server:
        connect = SocketFactory(server.address)
        with Reconnecting(
            1, connect=lambda: Wrapped(connect()), listeners=[hangups], **settings
        ) as pool:
            with pool.get() as first:
                pass
            if "keepalive" in settings:
                until(lambda: bool(done) and pool.stats().idle == 1)
            with pool.get() as conn:
                assert conn is first
                assert ask(conn.sock, "hello") == "hello"
            assert done == [first]
            assert not any(pool.stats().closed.values())


@either_way
@pytest.mark.parametrize("answer", ["None", "an error", "-1", "another"])
def test_a_hook_that_leads_nowhere_or_elsewhere_says_that_the_connection_is_gone(
    answer: str, how: str
) -> None:
    class Hooked(ConnectionPool[Any]):
        def _socket(self, conn: Any) -> Any:
            if conn not in moved:
                return conn.fileno()
            if answer == "an error":
                raise RuntimeError("there is none")
            return {"None": None, "-1": -1, "another": ours.fileno()}[answer]

    moved: list[Any] = []
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs, EchoServer() as server:
        connect = SocketFactory(server.address)
        with Hooked(1, connect=lambda: Wrapped(connect())) as pool:
            with held(pool, how) as conn:
                moved.append(conn)
            with pool.get() as other:
                assert other is not conn
            assert pool.stats().closed[Reason.GONE] == 1


class Wrapped:
    """A client with a socket inside; connected at its first use if it is given an address."""

    def __init__(self, sock: Any = None, address: Any = None) -> None:
        self.sock = sock
        self._address = address

    def fileno(self) -> int:
        return int(self.sock.fileno())

    def ask(self, question: str) -> str:
        if self.sock is None:
            self.sock = gevent.socket.create_connection(self._address)
        return ask(self.sock, question)

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def test_a_connection_closed_before_any_caller_has_it_is_not_handed_out() -> None:
    with EchoServer() as server:
        connect = SocketFactory(server.address)
        opened: list[Any] = []

        def open_one() -> Any:
            opened.append(Wrapped(connect()))
            return opened[-1]

        with ConnectionPool(2, connect=open_one) as pool:
            pool.fill()
            opened[0].close()
            with pool.get() as conn:
                assert conn is not opened[0]
                assert conn.ask("x") == "x"
            assert pool.stats().closed[Reason.DEAD] == 1


def test_a_client_that_connects_at_its_first_use_is_watched_from_then_on() -> None:
    with EchoServer() as server:
        with ConnectionPool(1, connect=lambda: Wrapped(address=server.address)) as pool:
            with pool.get() as client:
                assert client.ask("x") == "x"
            with pool.get() as again:
                assert again is client
            server.fin_all()
            until(lambda: pool.stats().closed[Reason.PEER_CLOSED] == 1)


def test_of_a_connection_with_several_sockets_each_is_watched() -> None:
    class OfTwo(ConnectionPool[Any]):
        def _new_connection(self) -> Any:
            return Maker(), (factory(), factory())

        def _socket(self, conn: Any) -> Any:
            return conn[1]

        def _close_connection(self, conn: Any) -> None:
            for sock in conn[1]:
                sock.close()

    with EchoServer() as server:
        factory = SocketFactory(server.address)
        with OfTwo(1) as pool:
            for which in range(2):
                with pool.get() as (_, pair):
                    assert ask(pair[which], "x") == "x"
                pair[which].shutdown(stdlib_socket.SHUT_WR)  # the server closes its end then
                until(lambda seen=which: pool.stats().closed[Reason.PEER_CLOSED] == seen + 1)
                pool.fill()  # a dial that is ended half-way leaves the first of the two behind


def test_a_fileno_of_old_still_says_what_carries_the_bytes() -> None:
    class Hidden(Wrapped):
        fileno = None  # type: ignore[assignment]

        def __init__(self, sock: Any) -> None:
            self.hidden = sock

        def close(self) -> None:
            self.hidden.close()

    class Old(ConnectionPool[Any]):
        def _fileno(self, conn: Any) -> int:
            return int(conn.hidden.fileno())

    with EchoServer() as server:
        connect = SocketFactory(server.address)
        with Old(1, connect=lambda: Hidden(connect())) as pool:
            with pool.get() as conn:
                conn.hidden.sendall(b"?")
                arrived(conn.hidden.fileno())
            with pool.get() as other:
                assert ask(other.hidden, "x") == "x"
            assert pool.stats().closed[Reason.UNREAD] == 1
            server.fin_all()
            until(lambda: pool.stats().closed[Reason.PEER_CLOSED] == 1)


# Unread


@either_way
@of_each_client
def test_a_reply_that_came_and_was_not_read_is_left_to_no_other(client: Any, how: str) -> None:
    with pool_of(client) as pool:
        with held(pool, how) as conn:
            client.send(conn)
            arrived(number_of(client, conn))

        with pool.get() as other:
            assert other is not conn
        assert pool.stats().closed[Reason.UNREAD] == 1


@either_way
@of_each_client
def test_a_reply_that_came_while_it_was_idle_is_left_to_no_other(client: Any, how: str) -> None:
    with pool_of(client) as pool:
        with held(pool, how) as conn:
            client.send(conn)
            number = number_of(client, conn)
        if not pool.stats().closed[Reason.UNREAD]:  # some answer too soon
            arrived(number)

        with pool.get() as other:
            assert other is not conn
        assert pool.stats().closed[Reason.UNREAD] == 1


@cooperative
def test_a_query_of_psycopg_that_ended_silently_leaves_its_result_to_no_other() -> None:
    host, port = require_server("postgres")

    def connect() -> Any:
        return psycopg.connect(
            host=host, port=port, user="postgres", dbname="test", autocommit=True
        )

    with ConnectionPool(1, connect=connect) as pool:
        with pool.get() as conn, gevent.Timeout(0.02, False):
            conn.execute("select pg_sleep(0.1)")
        arrived(conn.fileno())
        with pool.get() as other:
            assert other.execute("select 1").fetchone() == (1,)
        assert other is not conn
        assert pool.stats().closed[Reason.UNREAD] == 1


@pytest.mark.parametrize("wrap", [lambda sock: sock, Wrapped], ids=["a socket", "a client"])
def test_a_reset_does_not_take_a_late_reply_for_its_own(wrap: Callable[[Any], Any]) -> None:
    class Resetting(ConnectionPool[Any]):
        def _reset_connection(self, conn: Any) -> None:
            reset.append(conn)
            assert ask(getattr(conn, "sock", conn), "reset") == "reset"

    reset: list[Any] = []
    with EchoServer() as server:
        connect = SocketFactory(server.address)
        with Resetting(1, connect=lambda: wrap(connect())) as pool:
            with pool.get() as conn:
                sock = getattr(conn, "sock", conn)
                sock.sendall(b"a question\n")
                arrived(sock.fileno())
            assert reset == []
            assert pool.stats().closed[Reason.UNREAD] == 1
            with pool.get() as other:
                assert ask(getattr(other, "sock", other), "mine") == "mine"
            assert reset == [other]


def test_a_keepalive_does_not_take_a_late_reply_for_its_own() -> None:
    class Kept(ConnectionPool[Any]):
        def _keepalive(self, conn: Any) -> None:
            asked.append(conn)
            assert ask(conn, "still there?") == "still there?"

    asked: list[Any] = []
    with EchoServer() as server:
        with Kept(1, connect=SocketFactory(server.address), keepalive=0.01) as pool:
            with pool.get() as conn:
                conn.sendall(b"a question\n")
                arrived(conn.fileno())
            until(lambda: pool.stats().closed[Reason.UNREAD] == 1)
            until(lambda: asked)
            assert conn not in asked


def test_a_greeting_over_tls_is_left_whole_to_the_first_caller(
    contexts: Any, certificates: Certificates
) -> None:
    theirs, _ = contexts
    ours = gevent.ssl.create_default_context(cafile=str(certificates.authority))
    ours.maximum_version = ssl.TLSVersion.TLSv1_2  # so that what is readable is the greeting

    class Greeting(EchoServer):
        def serve(self, sock: Any) -> None:
            sock.sendall(b"220 welcome")
            super().serve(sock)

    with Greeting(ssl_context=theirs) as server:
        connect = SocketFactory(server.address, tls=ours, server_hostname="localhost")
        with ConnectionPool(1, connect=connect) as pool:
            pool.fill()
            (conn,) = pool._idle_connections()
            arrived(conn.fileno())

            with pool.get() as conn:
                assert isinstance(conn, ssl.SSLSocket | gevent.ssl.SSLSocket)
                assert conn.recv(100) == b"220 welcome"
                assert ask(conn, "x") == "x"
            with pool.get() as again:
                assert again is conn


# A wait that was cut short


@pytest.mark.skipif(not patched, reason="only gevent's sockets get a guard")
@either_way
@pytest.mark.parametrize("client", [each for each in CLIENTS if each.cuts], indirect=True)
def test_a_wait_of_a_driver_that_ended_silently_spoils_its_connection(
    client: Any, how: str
) -> None:
    with pool_of(client) as pool:
        with held(pool, how) as conn, gevent.Timeout(0.02, False):
            client.wait_in_vain(conn)
            raise AssertionError("it did not wait")

        closed = pool.stats().closed  # some close at once what was cut short
        assert closed[Reason.CUT_SHORT] + closed[Reason.GONE] == 1
        with pool.get() as other:
            assert other is not conn


def by_silence(conn: Any) -> None:
    with gevent.Timeout(0.001, False):
        conn.recv(1)


def by_a_time_out(conn: Any) -> None:
    conn.settimeout(0.001)
    with contextlib.suppress(TimeoutError):
        conn.recv(1)


def by_a_kill_in_vain(conn: Any) -> None:
    def wait() -> None:
        with contextlib.suppress(gevent.GreenletExit):
            conn.recv(1)

    greenlet = gevent.spawn(wait)
    gevent.idle()
    greenlet.kill()


@pytest.mark.parametrize("cut", [by_silence, by_a_time_out, by_a_kill_in_vain])
@pytest.mark.parametrize("plain", [True, False], ids=["gevent's socket", "SocketFactory's"])
def test_a_wait_that_was_cut_short_spoils_however_it_was(
    make_pool: MakePool, cut: Callable[[Any], None], plain: bool
) -> None:
    with EchoServer() as server:

        def connect() -> Any:
            if plain:
                return gevent.socket.create_connection(server.address)
            return SocketFactory(server.address)()

        with make_pool(1, connect=connect) as pool:
            with pool.get() as conn:
                cut(conn)
            with pool.get() as other:
                assert other is not conn
            other = pool.acquire()
            cut(other)
            pool.release(other)
            assert pool.stats().closed[Reason.CUT_SHORT] == 2


def test_of_a_client_that_polls_a_time_out_spoils_nothing() -> None:
    class Polling(ConnectionPool[Any]):
        _may_poll = True

    with EchoServer() as server, Polling(1, connect=SocketFactory(server.address)) as pool:
        with pool.get() as conn:
            by_a_time_out(conn)
        with pool.get() as again:
            assert again is conn


def test_a_wait_that_the_dial_gave_up_and_got_over_spoils_nothing() -> None:
    with EchoServer() as server:

        def connect() -> Any:
            conn = SocketFactory(server.address)()
            by_silence(conn)  # is there a greeting?
            return conn

        with ConnectionPool(1, connect=connect) as pool:
            with pool.get() as conn:
                pass
            with pool.get() as again:
                assert again is conn


REQUESTS = 300
PATIENCE = 0.06  # it covers the wait for a connection, too, and dials after each one given up
LATE_BY = 0.15


@pytest.fixture
def late_server() -> Iterator[IdServer]:
    with IdServer(late_share=0.2, late_by=LATE_BY, seed=7) as server:
        yield server


def silently(pool: Any, question: str) -> str | None:
    with pool.get() as conn, gevent.Timeout(PATIENCE, False):
        return ask(getattr(conn, "sock", conn), question)
    return None


def silently_with_release(pool: Any, question: str) -> str | None:
    conn = pool.acquire()
    with gevent.Timeout(PATIENCE, False):
        answer = ask(getattr(conn, "sock", conn), question)
        pool.release(conn)
        return answer
    pool.release(conn)
    return None


def in_try_and_finally(pool: Any, question: str) -> str | None:
    try:
        with gevent.Timeout(PATIENCE):
            conn = pool.acquire()
            try:
                return ask(getattr(conn, "sock", conn), question)
            finally:
                pool.release(conn)
    except gevent.Timeout:
        return None


@pytest.mark.parametrize("request_by", [silently, silently_with_release, in_try_and_finally])
@pytest.mark.parametrize("wrap", [lambda sock: sock, Wrapped], ids=["sockets", "clients"])
def test_of_many_requests_that_60_greenlets_give_up_silently_none_gets_the_reply_of_another(
    make_pool: MakePool,
    late_server: IdServer,
    request_by: Callable[[Any, str], str | None],
    wrap: Callable[[Any], Any],
) -> None:
    count: Counter[str] = Counter()

    def request(number: int) -> None:
        answer = request_by(pool, f"request {number}")
        kind = "right" if answer == f"request {number}" else "wrong"
        count["given up" if answer is None else kind] += 1

    def connect() -> Any:
        return wrap(gevent.socket.create_connection(late_server.address))

    with make_pool(10, connect=connect) as pool:
        group = Group(60)
        for number in range(REQUESTS):
            group.spawn(request, number)
        group.join(raise_error=True)
        assert pool.stats().in_use == 0

    assert count["wrong"] == 0
    assert count["given up"] >= REQUESTS / 20
    assert count["right"] > 0
    assert sum(count.values()) == REQUESTS


# acquire and release in try and finally


class Trouble(Exception):
    pass


def release_in_finally(pool: Any, error: BaseException) -> Any:
    """Acquire a connection, and release it in a finally that *error* passes; returns it."""
    conn = pool.acquire()
    with pytest.raises(type(error)) as raised:
        try:
            raise error
        finally:
            pool.release(conn)
    assert raised.value is error
    return conn


@pytest.mark.parametrize(
    "error", [OSError("broken"), gevent.Timeout(1), gevent.GreenletExit(), KeyboardInterrupt()]
)
def test_a_connection_released_while_a_breaking_exception_passes_is_closed(
    maker: Maker, make_pool: MakePool, error: BaseException
) -> None:
    with make_pool(1, connect=maker) as pool:
        conn = release_in_finally(pool, error)
        with pool.get() as other:
            assert other is not conn
        assert pool.stats().closed[Reason.ERROR] == 1


def test_one_released_while_another_exception_passes_stays_unless_the_pool_is_strict(
    maker: Maker, make_pool: MakePool
) -> None:
    for strict in (False, True):
        with make_pool(1, connect=maker, strict=strict) as pool:
            conn = release_in_finally(pool, Trouble())
            with pool.get() as again:
                assert (again is not conn) is strict


def test_an_exception_from_before_the_connection_was_acquired_does_not_count(
    maker: Maker, make_pool: MakePool
) -> None:
    with make_pool(1, connect=maker) as pool:
        try:
            raise ConnectionResetError("of another connection")
        except OSError:
            conn = pool.acquire()
            pool.release(conn)  # as a retry does
            with pool.get() as again:
                assert again is conn
            conn = pool.acquire()
        pool.release(conn)
        with pool.get() as again:
            assert again is conn
        assert pool.stats().closed[Reason.ERROR] == 0


def test_one_from_after_that_counts_though_another_was_being_handled(
    maker: Maker, make_pool: MakePool
) -> None:
    with make_pool(1, connect=maker) as pool:
        for _ in range(20):  # the memory of the old one is likely to be that of the new one
            conn = None
            try:
                raise ConnectionResetError("of another connection")
            except OSError:
                conn = pool.acquire()
            try:
                try:
                    raise ConnectionResetError("of this connection")
                finally:
                    pool.release(conn)
            except OSError:
                pass
        assert pool.stats().closed[Reason.ERROR] == 20
        try:
            raise Trouble
        except Trouble:
            conn = release_in_finally(pool, ConnectionResetError())
        assert pool.stats().closed[Reason.ERROR] == 21


def test_a_copy_of_the_one_from_before_is_another_exception(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        try:
            raise ConnectionResetError("of another connection")
        except OSError as error:
            conn = pool.acquire()
            again = copy.copy(error)
        with pytest.raises(OSError):
            try:
                raise again
            finally:
                pool.release(conn)
        assert pool.stats().closed[Reason.ERROR] == 1


def test_an_exception_that_was_dealt_with_does_not_count(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        conn = pool.acquire()
        with contextlib.suppress(OSError):
            raise ConnectionResetError
        pool.release(conn)
        with pool.get() as again:
            assert again is conn


def test_an_exception_known_again_is_not_kept_alive(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        try:
            raise Trouble
        except Trouble:
            pool.acquire()  # and forgotten: so its place is free again
        until(lambda: pool.stats().closed[Reason.LOST] == 1)


# What can see nothing says so


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert getcurrent() is not get_hub()
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler = Lines()
    logging.getLogger("geventpool").addHandler(handler)
    yield handler.lines
    logging.getLogger("geventpool").removeHandler(handler)


def test_a_pool_that_can_see_nothing_of_its_connections_says_so_once_and_what_to_do(
    maker: Maker, make_pool: MakePool, lines: list[str]
) -> None:
    with make_pool(3, connect=maker, name="blind") as pool:
        pool.fill()
        pool.discard(pool.acquire())
        pool.fill()

    (line,) = lines
    assert "'blind'" in line
    assert "Conn" in line
    assert "_socket(conn)" in line
    assert "_is_alive(conn)" in line


@pytest.mark.parametrize("hook", ["_socket", "_fileno", "_is_alive", "_keepalive"])
def test_one_that_has_a_hook_for_that_says_nothing(
    maker: Maker, lines: list[str], hook: str
) -> None:
    kind = type("Knowing", (ConnectionPool,), {hook: lambda self, conn: None})
    settings = {"keepalive": 10.0} if hook == "_keepalive" else {}
    with kind(1, connect=maker, **settings) as pool:
        pool.fill()
    assert lines == []


def test_the_hook_of_many_endpoints_gets_the_endpoint_first() -> None:
    class Hooked(EndpointPool[str, Any]):
        def _socket(self, endpoint: str, conn: Any) -> Any:
            asked.add(endpoint)
            return conn.sock

    asked: set[str] = set()
    with EchoServer() as server:
        factory = SocketFactory(server.address)
        with Hooked(connect=lambda endpoint: Wrapped(factory())) as pool:
            with pool.get("here") as conn:
                conn.sock.sendall(b"?")
                arrived(conn.sock.fileno())
            with pool.get("here") as other:
                assert other is not conn
            assert pool.stats().closed[Reason.UNREAD] == 1
    assert asked == {"here"}
