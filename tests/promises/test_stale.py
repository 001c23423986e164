"""Servers that hang up, go away, come back, or accept only to close: promises 6 and 7."""

from __future__ import annotations

import socket as stdlib_socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.pool import Group

from geventpool import Backoff, ConnectionPool, PoolListener, PoolTimeout, Reason, SocketFactory
from geventpool.events import PeerClosed
from geventpool.testing import ChaosProxy
from support.servers import EchoServer, IdServer, Pulse, ask
from support.waiting import until, until_readable

HANG_UPS = pytest.mark.parametrize("hang_up", [EchoServer.fin_all, EchoServer.rst_all])
AWAY = 3.0  # seconds of an outage


@pytest.fixture
def server() -> Iterator[IdServer]:
    with IdServer() as server:
        yield server


@pytest.fixture
def proxy(server: IdServer, chaos_proxy: Callable[[object], ChaosProxy]) -> ChaosProxy:
    return chaos_proxy(server.address)


# Idle connections die


@HANG_UPS
def test_100_idle_connections_hung_up_on_cost_the_next_100_requests_nothing(
    server: IdServer, hang_up: Callable[[EchoServer], int]
) -> None:
    with ConnectionPool(100, connect=SocketFactory(server.address)) as pool:
        pool.fill()
        server.wait_open(100)
        assert hang_up(server) == 100

        for number in range(100):
            with pool.get() as conn:
                assert ask(conn, f"request {number}") == f"request {number}"


@HANG_UPS
def test_100_idle_connections_hung_up_on_cost_100_requests_at_once_nothing(
    server: IdServer, hang_up: Callable[[EchoServer], int]
) -> None:
    def request(number: int) -> str:
        with pool.get() as conn:
            return ask(conn, f"request {number}")

    with ConnectionPool(100, connect=SocketFactory(server.address)) as pool:
        pool.fill()
        server.wait_open(100)
        assert hang_up(server) == 100
        requests = [gevent.spawn(request, number) for number in range(100)]

        assert [each.get(timeout=30) for each in requests] == [
            f"request {number}" for number in range(100)
        ]


@HANG_UPS
def test_idle_connections_hung_up_on_are_replaced_before_anybody_asks(
    server: IdServer, hang_up: Callable[[EchoServer], int]
) -> None:
    with ConnectionPool(20, connect=SocketFactory(server.address)) as pool:
        pool.fill()
        server.wait_open(20)
        hang_up(server)
        server.wait_opened(40)
        pool.fill()

        stats = pool.stats()
        assert (stats.idle, stats.closed[Reason.PEER_CLOSED]) == (20, 20)


@pytest.mark.parametrize("linger", [None, 0], ids=["FIN", "RST"])
def test_a_death_is_seen_even_if_the_hub_has_not_run_since(linger: int | None) -> None:
    """From the hang-up to the hand-out nothing switches."""
    theirs: list[Any] = []

    def connect() -> Any:
        sock = gevent.socket.create_connection(listener.getsockname())
        theirs.append(listener.accept()[0])
        return sock

    with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
        with ConnectionPool(2, connect=connect) as pool:
            pool.fill()
            dead, alive = pool.acquire(), pool.acquire()
            pool.release(dead)
            pool.release(alive)
            peer = theirs[0] if theirs[0].getpeername() == dead.getsockname() else theirs[1]
            if linger is not None:
                option = struct.pack("ii", 1, linger)
                peer.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, option)
            theirs.remove(peer)
            _close_at_once(peer)

            with pool.get() as conn:
                assert conn is alive
            assert pool.stats().closed[Reason.PEER_CLOSED] == 1
        for peer in theirs:
            peer.close()


def _close_at_once(sock: Any) -> None:
    """Close it without a switch; gevent's close, if that is what it is, waits for the hub."""
    stdlib_socket.close(sock.detach())


# Connections in use die


@HANG_UPS
def test_a_connection_hung_up_on_while_held_is_closed_when_it_comes_back(
    server: IdServer, hang_up: Callable[[EchoServer], int]
) -> None:
    with ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
        with pool.get() as conn:
            hang_up(server)
            gevent.idle()  # the hub has noticed
            assert pool.stats().in_use == 1
            assert conn.fileno() >= 0  # it is the holder's to find out
        with pool.get() as other:
            assert other is not conn
            assert ask(other, "hello") == "hello"

        assert pool.stats().closed[Reason.PEER_CLOSED] == 1


def test_a_connection_hung_up_on_while_held_is_not_passed_to_a_waiter(server: IdServer) -> None:
    def request() -> str:
        with pool.get() as conn:
            return ask(conn, "hello")

    with ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
        with pool.get():
            waiter = gevent.spawn(request)
            gevent.idle()
            assert pool.stats().waiting == 1
            server.fin_all()

        assert waiter.get(timeout=10) == "hello"


def test_listeners_are_told_of_a_hang_up_and_whether_a_caller_held_the_connection(
    server: IdServer,
) -> None:
    class Ears(PoolListener):
        def peer_closed(self, event: PeerClosed) -> None:
            heard.append((event.pool, event.connection, event.in_use))
            if len(heard) == 2:
                both.set()

    heard: list[tuple[Any, Any, bool]] = []
    both = Event()
    connect = SocketFactory(server.address)
    with ConnectionPool(2, connect=connect, listeners=[Ears()]) as pool:
        pool.fill()
        server.wait_open(2)
        with pool.get() as held:
            server.fin_all()
            assert both.wait(5)

    assert sorted(in_use for _, _, in_use in heard) == [False, True]
    assert {id(told) for told, _, _ in heard} == {id(pool)}
    assert [conn for _, conn, in_use in heard if in_use] == [held]


# An outage


class Load:
    """Greenlets that make one request after the other, whatever happens to them."""

    def __init__(self, pool: ConnectionPool[Any], greenlets: int) -> None:
        self.pool = pool
        self.answered_at = [0.0] * greenlets  # of each greenlet, its last answer
        self.wrong = 0
        self.failed = 0
        self._news = Event()
        self._group = Group()
        for number in range(greenlets):
            self._group.spawn(self._run, number)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._group.kill()

    def first_answers_since(self, moment: float) -> list[float]:
        """Wait until each greenlet has an answer later than *moment*; when it got its first."""
        first: dict[int, float] = {}
        with gevent.Timeout(30):
            while len(first) < len(self.answered_at):
                for number, at in enumerate(self.answered_at):
                    if at > moment:
                        first.setdefault(number, at)
                self._news.clear()
                self._news.wait()
        return sorted(first.values())

    def _run(self, number: int) -> None:
        count = 0
        while True:
            count += 1
            question = f"{number}/{count}"
            try:
                with self.pool.get() as conn:
                    self.wrong += ask(conn, question) != question
            except OSError:
                self.failed += 1
                continue
            self.answered_at[number] = monotonic()
            self._news.set()
            gevent.sleep(0.002)


def most_dials(seconds: float) -> float:
    """How many dials a server that is away for so long may see: 12 in 3 s, as the pauses grow from
    25 to 50 ms to between 0.5 and 1 s."""
    return 6 + 2 * seconds


@pytest.mark.slow
def test_an_outage_under_load_sees_few_dials_and_ends_quickly_for_everybody(
    server: IdServer,
) -> None:
    with ConnectionPool(10, connect=SocketFactory(server.address)) as pool:
        with Load(pool, greenlets=20) as load:
            load.first_answers_since(0.0)

            server.stop()
            stopped_at = monotonic()
            dialed_before = pool.stats().dialed
            gevent.sleep(AWAY)
            dialed_while_away = pool.stats().dialed - dialed_before
            with Pulse() as pulse:
                back_at = monotonic()
                server.start()
                answers = load.first_answers_since(back_at)

        assert dialed_while_away <= most_dials(back_at - stopped_at)
        assert answers[0] - back_at <= 1.2 + pulse.missed
        assert answers[-1] - answers[0] <= 0.3 + pulse.missed
        assert load.wrong == 0
        assert load.failed <= 20  # those whose request was cut off; no other saw anything


@pytest.mark.slow
def test_an_outage_that_is_not_noticed_sees_one_dial_per_back_off_too(server: IdServer) -> None:
    with ConnectionPool(10, connect=SocketFactory(server.address)) as pool:
        pool.fill()
        server.stop()
        stopped_at = monotonic()
        gevent.sleep(1.0)

        assert pool.stats().dialed - 10 <= most_dials(monotonic() - stopped_at)
        until(lambda: pool.stats().dialed - 10 >= 2)
        server.start()
        pool.fill()
        server.wait_open(10)


def test_a_server_that_comes_back_sees_one_dial_and_each_success_doubles_what_is_under_way() -> (
    None
):
    def connect() -> object:
        if not up:
            raise ConnectionRefusedError
        gate = Event()
        gates.append(gate)
        gate.wait()
        return object()

    def succeed(count: int) -> int:
        for gate in gates[:count]:
            gate.set()
        del gates[:count]
        gevent.idle()
        return len(gates)

    gates: list[Event] = []
    up = False
    with ConnectionPool(40, connect=connect, max_connecting=16) as pool:
        with Holders(pool, 80):
            while not pool.stats().dial_failed:
                gevent.idle()
            up = True
            with gevent.Timeout(10):
                while not gates:
                    gevent.sleep(0.001)

            assert [succeed(0), *(succeed(1) for _ in range(6))] == [1, 2, 4, 8, 16, 16, 16]
            while gates:
                succeed(16)


class Holders:
    """Callers who take a connection and keep it to the end."""

    def __init__(self, pool: ConnectionPool[Any], count: int) -> None:
        self._end = Event()
        self._group = Group()
        for _ in range(count):
            self._group.spawn(self._hold, pool)
        gevent.idle()

    def _hold(self, pool: ConnectionPool[Any]) -> None:
        with pool.get():
            self._end.wait()

    def __enter__(self) -> Holders:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self._group.join(raise_error=True)


# A server that accepts and closes at once: overloaded, or a proxy with nothing behind it


class ClosingServer(EchoServer):
    """Accepts, and closes without a word while *closes* is set."""

    closes = True

    def __enter__(self) -> ClosingServer:
        self.start()
        return self

    def serve(self, sock: Any) -> None:
        if not self.closes:
            super().serve(sock)


@pytest.mark.slow
def test_a_server_that_accepts_and_closes_at_once_is_not_dialed_in_a_storm_by_an_idle_pool() -> (
    None
):
    with ClosingServer() as server:
        with ConnectionPool(10, connect=SocketFactory(server.address)) as pool:
            began = monotonic()
            gevent.sleep(1.0)

            # Three per step of the back-off.
            assert pool.stats().dialed <= 3 * most_dials(monotonic() - began)
            until(lambda: pool.stats().dialed >= 2)


def _raise(pool: ConnectionPool[Any]) -> None:
    with pool.get() as conn:
        ask(conn, "hello")


def _discard(pool: ConnectionPool[Any]) -> None:
    conn = pool.acquire()
    try:
        ask(conn, "hello")
    except OSError:
        pool.discard(conn)
        raise
    pool.release(conn)


def _raise_another_error(pool: ConnectionPool[Any]) -> None:
    with pool.get() as conn:
        try:
            ask(conn, "hello")
        except OSError as error:
            raise ProtocolError from error


class ProtocolError(Exception):
    """What clients of a protocol make of an OSError; it is not in exc_classes."""


@pytest.mark.slow
@pytest.mark.parametrize("request_", [_raise, _discard, _raise_another_error])
def test_a_server_that_accepts_and_closes_at_once_is_not_dialed_in_a_storm_under_load(
    request_: Callable[[ConnectionPool[Any]], None],
) -> None:
    def run() -> None:
        while server.closes:
            try:
                request_(pool)
            except (OSError, ProtocolError, PoolTimeout):
                pass
        request_(pool)

    with ClosingServer() as server:
        with ConnectionPool(10, connect=SocketFactory(server.address)) as pool:
            began = monotonic()
            clients = [gevent.spawn(run) for _ in range(20)]
            gevent.sleep(1.0)
            dialed, ran = pool.stats().dialed, monotonic() - began
            server.closes = False
            gevent.joinall(clients, timeout=30, raise_error=True)

            assert all(client.ready() for client in clients)
            assert dialed <= 3 * most_dials(ran)  # three per step of the back-off


@pytest.mark.slow
def test_a_server_that_closes_during_the_dial_is_not_dialed_in_a_storm_under_load() -> None:
    """The next dials are asked for as the one before has succeeded, and begin as it has died."""

    def connect() -> Any:
        ours, theirs = gevent.socket.socketpair()
        gevent.sleep(0)
        theirs.close()
        return ours

    def run() -> None:
        while True:
            try:
                _raise(pool)
            except (OSError, PoolTimeout):
                pass

    with ConnectionPool(10, connect=connect) as pool:
        began = monotonic()
        clients = [gevent.spawn(run) for _ in range(2)]
        gevent.sleep(1.0)
        gevent.killall(clients)

        assert pool.stats().dialed <= 3 * most_dials(monotonic() - began)


def test_a_server_that_closes_after_each_answer_is_not_slowed_down() -> None:
    """As HTTP/1.0 does: a connection that was used in good order is no sign of an outage."""

    class OneAnswer(IdServer):
        def serve(self, sock: Any) -> None:
            sock.sendall(sock.recv(100))

    with OneAnswer() as server:
        with ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
            began = monotonic()
            with Pulse() as pulse:
                for number in range(100):
                    with pool.get() as conn:
                        assert ask(conn, f"{number}") == f"{number}"

            # By back-offs it would take more than a minute.
            assert monotonic() - began < 3.0 + pulse.missed


# A network that fails between the two


class CheckedPool(ConnectionPool[Any]):
    """Asks the server whether it is there."""

    def _keepalive(self, conn: Any) -> None:
        assert ask(conn, "keepalive") == "keepalive"


def closed(pool: ConnectionPool[Any]) -> Counter[Reason]:
    """How many connections the pool has closed, by reason."""
    return +Counter(pool.stats().closed)


@pytest.mark.parametrize(
    "end", [ChaosProxy.fin, ChaosProxy.rst, ChaosProxy.half_close], ids=["FIN", "RST", "half"]
)
def test_however_a_proxy_ends_idle_connections_the_next_requests_notice_nothing(
    proxy: ChaosProxy, server: IdServer, end: Callable[[ChaosProxy], int]
) -> None:
    with ConnectionPool(20, connect=SocketFactory(proxy.address)) as pool:
        pool.fill()
        server.wait_open(20)
        assert end(proxy) == 20
        for number in range(20):
            with pool.get() as conn:
                assert ask(conn, f"{number}") == f"{number}"
        pool.fill()

        assert closed(pool) == {Reason.PEER_CLOSED: 20}
        proxy.wait_connections(20)


def test_a_connection_half_closed_while_held_is_used_to_the_end_and_then_closed(
    proxy: ChaosProxy, server: IdServer
) -> None:
    with ConnectionPool(1, connect=SocketFactory(proxy.address)) as pool:
        with pool.get() as conn:
            assert ask(conn, "hello") == "hello"
            assert proxy.half_close() == 1
            gevent.idle()
            conn.sendall(b"last words\n")
            until(lambda: server.requests == 2)
        with pool.get() as other:
            assert other is not conn
            assert ask(other, "hello") == "hello"

        assert closed(pool) == {Reason.PEER_CLOSED: 1}


@pytest.mark.slow
def test_idle_connections_in_a_black_hole_are_out_of_the_pool_within_keepalive_timeout(
    proxy: ChaosProxy,
) -> None:
    """Each within that time of its check, which half of them have at a time."""
    connect = SocketFactory(proxy.address)
    with CheckedPool(4, connect=connect, keepalive=0.2, keepalive_timeout=0.2) as pool:
        pool.fill()
        proxy.black_hole()
        silent_since = monotonic()
        until(lambda: closed(pool)[Reason.KEEPALIVE] >= 4)
        seen_after = monotonic() - silent_since
        proxy.normal()
        until(lambda: _all_answer(pool))

    assert 0.2 <= seen_after < 10


def _all_answer(pool: ConnectionPool[Any]) -> bool:
    """Whether a request on each connection of a full pool is answered."""
    pool.fill(timeout=10)
    conns = [pool.acquire(timeout=10) for _ in range(pool.size)]
    answers = []
    for conn in conns:
        conn.settimeout(1.0)
        try:
            answers.append(ask(conn, "hello"))
        except OSError:
            pool.discard(conn)
        else:
            pool.release(conn)
    return answers == ["hello"] * pool.size


def test_a_caller_does_not_get_a_connection_in_a_black_hole_where_it_is_checked_first(
    proxy: ChaosProxy,
) -> None:
    connect = SocketFactory(proxy.address)
    with CheckedPool(1, connect=connect, check_after=0, keepalive_timeout=0.2) as pool:
        pool.fill()
        proxy.black_hole()
        caller = gevent.spawn(_ask_once, pool)
        until(lambda: closed(pool)[Reason.KEEPALIVE])
        proxy.normal()

        assert caller.get(timeout=20) == "hello"


def _ask_once(pool: ConnectionPool[Any]) -> str:
    with pool.get(timeout=20) as conn:
        return ask(conn, "hello")


def test_a_request_given_up_in_a_delay_leaves_its_answer_to_no_caller(proxy: ChaosProxy) -> None:
    with ConnectionPool(1, connect=SocketFactory(proxy.address)) as pool:
        pool.fill()
        proxy.delay(0.3)
        with pytest.raises(gevent.Timeout), pool.get() as conn, gevent.Timeout(0.05):
            ask(conn, "first")
        with pool.get() as other:
            assert other is not conn
            assert ask(other, "second") == "second"

        assert closed(pool) == {Reason.ERROR: 1}


def test_an_answer_that_comes_late_but_in_time_costs_nothing(proxy: ChaosProxy) -> None:
    connect = SocketFactory(proxy.address)
    with CheckedPool(2, connect=connect, keepalive=0.05, keepalive_timeout=5.0) as pool:
        proxy.delay(0.02)
        for number in range(10):
            with pool.get() as conn:
                assert ask(conn, f"{number}") == f"{number}"

        assert not closed(pool)


def test_a_dribbled_answer_is_an_answer_and_its_connection_stays(proxy: ChaosProxy) -> None:
    with ConnectionPool(1, connect=SocketFactory(proxy.address)) as pool:
        proxy.dribble()
        for number in range(3):
            with pool.get() as conn:
                assert ask(conn, f"answer number {number}") == f"answer number {number}"

        assert pool.stats().dialed == 1


def test_half_of_a_dribbled_answer_is_for_no_other(proxy: ChaosProxy) -> None:
    """The rest comes in while the connection is idle, if it is: nothing may read it."""
    with ConnectionPool(1, connect=SocketFactory(proxy.address)) as pool:
        proxy.dribble(pause=0.01)
        with pytest.raises(LookupError), pool.get() as conn:
            conn.sendall(b"a long question\n")
            assert conn.recv(2)
            raise LookupError  # none of exc_classes: it goes back, unless it is seen to be dirty
        until_readable(conn.fileno())
        proxy.normal()
        with pool.get() as other:
            assert ask(other, "hello") == "hello"

        assert closed(pool) == {Reason.UNREAD: 1}


def test_refused_dials_end_with_the_refusal_and_open_connections_outlive_it(
    proxy: ChaosProxy,
) -> None:
    backoff = Backoff(first=0.05, longest=0.2)
    connect = SocketFactory(proxy.address)
    with ConnectionPool(2, connect=connect, min_size=0, backoff=backoff) as pool:
        with pool.get() as open_one:
            assert ask(open_one, "before") == "before"
            proxy.refuse()
            waiter = gevent.spawn(_ask_once, pool)
            until(lambda: pool.stats().dial_failed)
            with pytest.raises(PoolTimeout) as caught:
                pool.acquire(timeout=0.01)
            assert isinstance(caught.value.__cause__, ConnectionRefusedError)
            assert ask(open_one, "meanwhile") == "meanwhile"
            assert pool.stats().waiting == 1
            proxy.normal()
            assert waiter.get(timeout=20) == "hello"

    assert proxy.accepted == 2
