"""No caller reads another's reply: promise 2, and what of it holds without ``strict``."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent.event import Event
from gevent.pool import Pool as Group

from geventpool import ConnectionPool, PoolTimeout, Reason, SocketFactory
from geventpool.testing import FakeClock
from support.certificates import Certificates
from support.objects import Conn, Maker
from support.servers import IdServer, ask

REQUESTS = 2000
PATIENCE = 0.006  # of a client, in seconds; a late reply takes LATE_BY
LATE_BY = 0.012


@pytest.fixture
def late_server() -> Iterator[IdServer]:
    with IdServer(late_share=0.2, late_by=LATE_BY, seed=7) as server:
        yield server


class Tally:
    """What became of many requests, each with an id that the right reply repeats."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self.pool = pool
        self.count: Counter[str] = Counter()

    def request(self, number: int, at_sent: Callable[[], object] = lambda: None) -> None:
        question = f"request {number}"
        with self.pool.get() as conn:
            if number % 5 == 0:
                conn.sendall(f"{question}\n".encode())
                at_sent()
                answer = conn.recv(65536).decode().strip()
            else:
                answer = ask(conn, question)
        self.count["right" if answer == question else "wrong"] += 1

    def run(self, client: Callable[[Tally, int], None]) -> None:
        group = Group(20)
        for number in range(REQUESTS):
            group.spawn(client, self, number)
        group.join(raise_error=True)


def gives_up_by_timeout(tally: Tally, number: int) -> None:
    try:
        with gevent.Timeout(PATIENCE):
            tally.request(number)
    except gevent.Timeout:
        tally.count["given up"] += 1


def is_killed(tally: Tally, number: int) -> None:
    request = gevent.spawn(tally.request, number)
    request.join(PATIENCE)
    if not request.ready():
        tally.count["given up"] += 1
        request.kill()


def fails_between_send_and_receive(tally: Tally, number: int) -> None:
    def fail() -> None:
        raise ValueError("a bug of the user's")

    try:
        tally.request(number, at_sent=fail)
    except ValueError:
        tally.count["given up"] += 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "strict"),
    [
        (gives_up_by_timeout, False),
        (is_killed, False),
        (fails_between_send_and_receive, True),
    ],
)
def test_of_2000_requests_to_a_server_often_late_none_gets_the_reply_of_one_given_up(
    late_server: IdServer, client: Callable[[Tally, int], None], strict: bool
) -> None:
    with ConnectionPool(10, connect=SocketFactory(late_server.address), strict=strict) as pool:
        tally = Tally(pool)
        tally.run(client)
        stats = pool.stats()

    assert tally.count["wrong"] == 0
    assert tally.count["given up"] >= REQUESTS / 10
    assert tally.count["right"] > 0
    assert sum(tally.count.values()) == REQUESTS
    assert late_server.late > 0
    assert stats.in_use == stats.waiting == 0


# A late reply, placed by hand: the pool has one end of a pair of sockets, the test the other


class Peers:
    """Opens pairs of connected sockets; keeps the server's ends."""

    def __init__(self) -> None:
        self.of: dict[Any, Any] = {}

    def __call__(self) -> Any:
        ours, theirs = gevent.socket.socketpair()
        self.of[ours] = theirs
        return ours

    def close(self) -> None:
        for theirs in self.of.values():
            theirs.close()
        self.of.clear()


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    made.close()


def leave_by_an_error(conn: Any) -> None:
    raise ValueError("a bug of the user's")


def leave_by_a_silent_timeout(conn: Any) -> None:
    with gevent.Timeout(0.001, False):
        conn.recv(1)


def use(pool: ConnectionPool[Any], leave: Callable[[Any], None], late: Any = None) -> Any:
    """Use a connection, send a request on it and leave without the reply; returns it.

    *late* is called with the connection before it is given back.
    """
    try:
        with pool.get() as conn:
            conn.sendall(b"a request")
            if late is not None:
                late(conn)
            leave(conn)
    except ValueError:
        pass
    return conn


LEAVES = pytest.mark.parametrize(
    ("leave", "reason"),
    [(leave_by_an_error, Reason.UNREAD), (leave_by_a_silent_timeout, Reason.CUT_SHORT)],
)


@LEAVES
def test_a_connection_is_not_handed_out_after_its_late_reply_came_while_it_was_idle(
    peers: Peers, leave: Callable[[Any], None], reason: Reason
) -> None:
    with ConnectionPool(1, connect=peers) as pool:
        conn = use(pool, leave)
        peers.of[conn].sendall(b"the late reply")

        with pool.get() as other:
            assert other is not conn
        assert pool.stats().closed[reason] == 1
        assert conn.fileno() == -1


def test_a_connection_left_by_an_error_with_the_reply_unread_does_not_even_lie_idle(
    peers: Peers,
) -> None:
    with ConnectionPool(1, connect=peers, min_size=0) as pool:
        conn = use(pool, leave_by_an_error, late=lambda conn: peers.of[conn].sendall(b"late"))

        stats = pool.stats()
        assert (stats.idle, stats.closed[Reason.UNREAD]) == (0, 1)
        with pool.get() as other:
            assert other is not conn


@LEAVES
def test_a_waiter_is_not_given_a_connection_whose_late_reply_came_before_it_woke(
    peers: Peers, leave: Callable[[Any], None], reason: Reason
) -> None:
    with ConnectionPool(1, connect=peers) as pool:
        got: list[Any] = []

        def wait() -> None:
            with pool.get() as conn:
                got.append(conn)

        def queue_up(conn: Any) -> None:
            waiters.append(gevent.spawn(wait))
            gevent.idle()
            assert pool.stats().waiting == 1

        waiters: list[Any] = []
        conn = use(pool, leave, late=queue_up)
        assert pool.stats().waiting == 0  # it is handed over to that caller
        peers.of[conn].sendall(b"the late reply")
        gevent.joinall(waiters, raise_error=True)

        assert got
        assert got[0] is not conn
        assert pool.stats().closed[reason] == 1


def test_one_that_was_handed_a_spoiled_connection_keeps_its_place_in_line(peers: Peers) -> None:
    with ConnectionPool(1, connect=peers) as pool:
        order: list[int] = []

        def wait(number: int) -> None:
            with pool.get():
                order.append(number)

        with pool.get() as conn:
            waiters = [gevent.spawn(wait, number) for number in range(3)]
            gevent.idle()
        peers.of[conn].sendall(b"the late reply")
        gevent.joinall(waiters, raise_error=True)

    assert order == [0, 1, 2]


def test_one_that_was_handed_a_spoiled_connection_keeps_its_deadline() -> None:
    """Its replacement never comes: the caller waits no longer than it said when it came."""
    made: list[Any] = []

    def connect() -> Any:
        if made:
            Event().wait()
        made.extend(gevent.socket.socketpair())
        return made[0]

    def wait() -> None:
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=60)

    with FakeClock() as clock, ConnectionPool(1, connect=connect) as pool:
        with pool.get():
            waiter = gevent.spawn(wait)
            gevent.idle()
            clock.advance(40)
        made[1].sendall(b"the late reply")
        gevent.idle()
        assert (pool.stats().waiting, pool.stats().closed[Reason.UNREAD]) == (1, 1)
        clock.advance(15)
        gevent.idle()
        assert not waiter.ready()
        clock.advance(5)
        waiter.get(timeout=10)
    made[1].close()


class Client:
    """No socket itself, but it has one: what most clients of a protocol look like."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return int(self.sock.fileno())

    def close(self) -> None:
        self.sock.close()


@pytest.mark.parametrize("arrives", ["before it is given back", "while it is idle"])
def test_a_client_with_a_socket_inside_is_looked_at_once_an_error_has_left_its_with(
    peers: Peers, arrives: str
) -> None:
    with ConnectionPool(1, connect=lambda: Client(peers())) as pool:
        with pytest.raises(ValueError):
            with pool.get() as client:
                if arrives == "before it is given back":
                    peers.of[client.sock].sendall(b"the late reply")
                raise ValueError("between send and receive")
        if arrives == "while it is idle":
            peers.of[client.sock].sendall(b"the late reply")

        with pool.get() as other:
            assert other is not client
        assert pool.stats().closed[Reason.UNREAD] == 1


def test_what_a_server_has_said_unasked_is_not_left_to_the_next_user(peers: Peers) -> None:
    with ConnectionPool(1, connect=lambda: Client(peers())) as pool:
        with pool.get() as client:
            peers.of[client.sock].sendall(b"a reply that nobody has read")
        with pool.get() as other:
            assert other is not client

        assert pool.stats().closed[Reason.UNREAD] == 1


def test_what_a_client_keeps_unread_by_its_own_choice_is_left_alone_while_nothing_goes_wrong(
    peers: Peers,
) -> None:
    class Listening(ConnectionPool[Client]):
        def _is_alive(self, conn: Client) -> bool:
            return True  # notices may lie unread

    with Listening(1, connect=lambda: Client(peers())) as pool:
        with pool.get() as client:
            peers.of[client.sock].sendall(b"a notice")
        with pool.get() as again:
            pass
        assert again is client

        with pytest.raises(ValueError), pool.get():
            raise ValueError("is it the notice still, or a reply?")
        assert pool.stats().closed[Reason.UNREAD] == 1


def test_strict_discards_whatever_left_the_with_by_any_exception(peers: Peers) -> None:
    with ConnectionPool(1, connect=peers, strict=True) as pool:
        conn = use(pool, leave_by_an_error)

        with pool.get() as other:
            assert other is not conn
        assert pool.stats().closed[Reason.ERROR] == 1


@pytest.mark.parametrize(
    "cut_short", [gevent.Timeout, gevent.GreenletExit, KeyboardInterrupt, GeneratorExit, SystemExit]
)
def test_a_connection_whose_request_was_cut_short_is_never_handed_out_again(
    peers: Peers, cut_short: type[BaseException]
) -> None:
    with ConnectionPool(1, connect=peers) as pool:
        with pytest.raises(cut_short):
            with pool.get() as conn:
                conn.sendall(b"a request")
                raise cut_short

        with pool.get() as other:
            assert other is not conn
        assert pool.stats().closed[Reason.ERROR] == 1


def test_a_request_cut_short_in_a_nested_get_of_the_same_greenlet_spoils_its_connection(
    peers: Peers,
) -> None:
    with ConnectionPool(1, connect=peers, greenlet_local=True) as pool:
        with pool.get() as conn:
            with pytest.raises(gevent.Timeout):
                with pool.get() as same:
                    assert same is conn
                    raise gevent.Timeout

        with pool.get() as other:
            assert other is not conn


def test_a_request_cut_short_in_execute_spoils_its_connection() -> None:
    maker = Maker()

    def cut_short(conn: Conn) -> None:
        raise gevent.Timeout

    with ConnectionPool(1, connect=maker) as pool:
        with pytest.raises(gevent.Timeout):
            pool.execute(cut_short)

        assert pool.execute(lambda conn: conn.number) == 2


# TLS: what is unread is encrypted, and not everything that is readable is a reply


@pytest.mark.parametrize("late_reply", [b"slow\n", b"!"], ids=["a line", "a single byte"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_late_reply_over_tls_is_seen_at_the_next_hand_out(
    certificates: Certificates, version: ssl.TLSVersion, late_reply: bytes
) -> None:
    theirs = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificates.certificate, certificates.key)
    theirs.minimum_version = theirs.maximum_version = version
    ours = gevent.ssl.create_default_context(cafile=str(certificates.authority))

    replied = Event()

    class Server(IdServer):
        def serve(self, sock: Any) -> None:
            while question := sock.recv(65536):
                if question == b"slow\n":
                    may_reply.wait()
                    sock.sendall(late_reply)
                else:
                    sock.sendall(question)
                replied.set()

    may_reply = Event()
    with Server(ssl_context=theirs) as server:
        connect = SocketFactory(server.address, tls=ours, server_hostname="localhost")
        with ConnectionPool(1, connect=connect) as pool:
            with pytest.raises(ValueError), pool.get() as conn:
                assert ask(conn, "fast") == "fast"
                replied.clear()
                conn.sendall(b"slow\n")
                raise ValueError("between send and receive")
            may_reply.set()
            assert replied.wait(5)

            with pool.get() as other:
                assert other is not conn
                assert ask(other, "mine") == "mine"
            assert pool.stats().closed[Reason.UNREAD] == 1
