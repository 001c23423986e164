"""What generic-connection-pool got wrong (D1 to D16), and what must hold of EndpointPool instead.

One test or two for each fault, named after what holds.  The depth is in test_endpoints.
"""

from __future__ import annotations

import gc
import ssl
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import greenlet
import pytest
from gevent import GreenletExit
from gevent.event import Event

from geventpool import Backoff, NotInUse, PoolTimeout, Reason, SocketFactory
from geventpool.pools import EndpointPool
from geventpool.testing import FakeClock
from support.certificates import make_certificates
from support.objects import Conn, Maker
from support.servers import EchoServer, IdServer, ask, closed_port
from support.waiting import until, until_readable

CANCELLATIONS = [GreenletExit, KeyboardInterrupt, gevent.Timeout]


def pool_of(maker: Maker, **settings: Any) -> EndpointPool[str, Any]:
    return EndpointPool(connect=lambda endpoint: maker(), **settings)


def outcome_of(action: Callable[..., object], *args: Any) -> Any:
    """Start *action* in a greenlet, whose value is what was raised in it, or None."""

    def run() -> BaseException | None:
        try:
            action(*args)
        except BaseException as error:
            return error
        return None

    greenlet: Any = gevent.Greenlet(run)
    greenlet.start()
    return greenlet


@pytest.mark.parametrize("exc_class", CANCELLATIONS)
def test_a_caller_cancelled_during_the_dial_loses_no_place(
    maker: Maker, exc_class: type[BaseException]
) -> None:
    """D1: a Timeout or a kill during create() took the endpoint's place, and one of the total, for
    ever: with max_size=1 every later acquire timed out."""
    with pool_of(maker, max_size=1, total_max_size=1) as pool:
        maker.slow = True
        caller = outcome_of(pool.acquire, "a")
        gevent.idle()
        caller.kill(exc_class)
        assert type(caller.value) is exc_class
        maker.slow = False
        maker.let_in()

        for endpoint in "ab":
            pool.release(pool.acquire(endpoint, timeout=5))
        assert pool.size == 1


@pytest.mark.parametrize("error", [OSError(), ValueError(), gevent.Timeout(), GreenletExit()])
def test_a_dial_that_raises_anything_loses_no_place(
    maker: Maker, error: BaseException, hub_errors: list[BaseException]
) -> None:
    """D1, from within: only an Exception of create() gave the places back."""
    backoff = Backoff(first=0.001, longest=0.001)
    with pool_of(maker, max_size=1, total_max_size=1, backoff=backoff) as pool:
        maker.error = error
        with pytest.raises(PoolTimeout):
            pool.acquire("a", timeout=0.05)
        assert maker.dials >= 1
        maker.error = None

        for endpoint in "ab":
            pool.release(pool.acquire(endpoint, timeout=5))
    hub_errors.clear()


class Yielding(EndpointPool[str, Any]):
    """The hook named *where* waits until it is let go on, or is struck."""

    def __init__(self, maker: Maker, where: str, **settings: Any) -> None:
        self.maker = maker
        self.where: str | None = where
        self.here = Event()
        super().__init__(max_size=1, total_max_size=1, **settings)

    def _hang(self, where: str) -> None:
        if self.where == where:
            self.here.set()
            Event().wait()

    def _new_connection(self, endpoint: str) -> Conn:
        return self.maker()

    def _keepalive(self, endpoint: str, conn: Conn) -> None:
        self._hang("check")

    def _reset_connection(self, endpoint: str, conn: Conn) -> None:
        self._hang("reset")

    def _close_connection(self, endpoint: str, conn: Conn) -> None:
        try:
            self._hang("close")
        finally:
            conn.close()


@pytest.mark.parametrize("exc_class", CANCELLATIONS)
@pytest.mark.parametrize("where", ["check", "reset", "listener"])
def test_a_caller_cancelled_in_a_hook_or_a_listener_leaves_no_connection_in_use(
    maker: Maker, where: str, exc_class: type[BaseException]
) -> None:
    """D2: cancelled in check_aliveness or on_acquire, its connection was in use for ever."""

    class Ears:
        def connection_checked_out(self, event: Any) -> None:
            pool._hang("listener")

    pool = Yielding(maker, "nowhere", check_after=0.0, listeners=[Ears()])
    with pool:
        pool.release(pool.acquire("a"))
        pool.where = where

        def use() -> None:
            with pool.get("a"):
                pass

        caller = outcome_of(use)
        assert pool.here.wait(5)
        caller.kill(exc_class)
        assert type(caller.value) is exc_class
        pool.where = None

        assert pool.stats().in_use == 0
        for endpoint in "ab":
            pool.release(pool.acquire(endpoint, timeout=5))
        assert len(maker.open) == pool.size == 1


@pytest.mark.parametrize("exc_class", [GreenletExit, gevent.Timeout])
def test_a_close_that_is_cancelled_gives_its_place_back(
    maker: Maker, exc_class: type[BaseException], hub_errors: list[BaseException]
) -> None:
    """D2, third: cancelled in dispose(), the total was never counted down again."""
    pool = Yielding(maker, "close")
    with pool:
        pool.discard(pool.acquire("a"))
        assert pool.here.wait(5)
        [closer] = pool._runtime.closer.workers.active
        pool.where = None
        closer.kill(exc_class)

        pool.release(pool.acquire("b", timeout=5))
        assert pool.endpoints() == ["b"]
    hub_errors.clear()


@pytest.mark.parametrize("exc_class", CANCELLATIONS)
@pytest.mark.parametrize("wanted", ["a", "b"])
def test_a_waiter_killed_as_it_is_handed_a_connection_passes_it_on(
    maker: Maker, wanted: str, exc_class: type[BaseException]
) -> None:
    """D3: killed in the tick of the hand-over, the caller kept the connection, and all others
    hung."""
    with pool_of(maker, max_size=1, total_max_size=1) as pool:
        held = pool.acquire("a")
        waiter = outcome_of(pool.acquire, "a")
        gevent.idle()
        neighbour = gevent.spawn(pool.acquire, wanted)
        gevent.idle()

        waiter.kill(exc_class, block=False)
        pool.release(held)  # it is the waiter's now, which never wakes for it
        assert pool.stats().waiting == 1

        pool.release(neighbour.get(timeout=5))
        assert type(waiter.get(timeout=5)) is exc_class
        assert pool.stats().in_use == 0


@pytest.mark.parametrize("wanted", ["a", "b"])
def test_a_waiter_at_the_total_hears_of_what_becomes_idle(maker: Maker, wanted: str) -> None:
    """D4: A released, and B, of another endpoint or even of the same, timed out with one idle."""
    with pool_of(maker, max_size=1, total_max_size=1) as pool:
        held = pool.acquire("a")
        waiter = gevent.spawn(pool.acquire, wanted, 5)
        gevent.idle()
        pool.release(held)

        pool.release(waiter.get(timeout=5))
        assert pool.endpoints() == [wanted]


@pytest.mark.slow
def test_close_waits_without_spinning_and_no_longer_than_its_timeout(maker: Maker) -> None:
    """D5: close() with a connection held span at full speed and never looked at its timeout; held
    connections were never closed."""
    switches: list[Any] = []
    pool = pool_of(maker)
    held = pool.acquire("a")
    closing = gevent.spawn(pool.close, timeout=0.5)
    began = monotonic()
    tracer = greenlet.settrace(lambda *switch: switches.append(switch))
    try:
        closing.get(timeout=10)
    finally:
        greenlet.settrace(tracer)

    assert 0.4 < monotonic() - began < 5
    assert len(switches) < 100  # who spins makes thousands in half a second
    assert held.closed
    assert pool.size == 0


def test_close_wakes_who_waits_and_a_release_after_it_returns(maker: Maker) -> None:
    """D5, second half: who waited was not woken, and with one waiting release() hung."""
    pool = pool_of(maker, max_size=1, total_max_size=1)
    held = pool.acquire("a")
    waiters = [outcome_of(pool.acquire, endpoint) for endpoint in "ab"]
    gevent.idle()
    closer = gevent.spawn(pool.close)
    gevent.joinall(waiters, timeout=5)
    pool.release(held)
    closer.get(timeout=5)

    assert [type(waiter.value).__name__ for waiter in waiters] == ["PoolClosed"] * 2
    assert held.closed


def test_a_release_after_close_raises_nothing_out_of_the_with(maker: Maker) -> None:
    """D6: it raised ConnectionPoolClosedError out of the with, in the place of the result."""
    pool = pool_of(maker)

    def use() -> str:
        with pool.get("a"):
            gevent.spawn(pool.close)
            gevent.idle()
            return "the result"

    assert gevent.spawn(use).get(timeout=5) == "the result"
    until(lambda: not maker.open)


def test_a_connection_found_dead_is_closed_by_the_hook(maker: Maker) -> None:
    """D7: it was dropped, never disposed of."""

    class Pool(EndpointPool[str, Any]):
        def _new_connection(self, endpoint: str) -> Conn:
            return maker()

        def _is_alive(self, endpoint: str, conn: Conn) -> bool:
            return conn.number != 1 or not pool.stats().released

        def _close_connection(self, endpoint: str, conn: Conn) -> None:
            closed.append((endpoint, conn.number))
            conn.close()

    closed: list[Any] = []
    with Pool() as pool:
        pool.release(pool.acquire("a"))
        with pool.get("a") as conn:
            assert conn.number == 2
        until(lambda: closed == [("a", 1)])


@pytest.mark.parametrize("setting", ["idle_timeout", "max_lifetime"])
def test_limits_of_age_hold_at_the_hand_out(maker: Maker, setting: str) -> None:
    """D8: lifetime and idle time were not looked at when a connection was handed out."""
    settings: dict[str, Any] = {setting: 30, "min_idle": 0}
    with FakeClock() as clock, pool_of(maker, **settings) as pool:
        pool.release(pool.acquire("a"))
        clock.advance(30)  # and nothing else runs: no reaper comes first

        with pool.get("a") as conn:
            assert conn.number == 2


def test_a_look_at_a_unix_socket_does_not_wait(tmp_path: Path) -> None:
    """D9: MSG_DONTWAIT waits on a gevent socket: the second use of a Unix socket hung."""
    path = tmp_path / "shout.sock"
    with (
        EchoServer(path=path),
        EndpointPool[Path, Any](connect=lambda path: SocketFactory(path)()) as pool,
    ):
        pool.release(pool.acquire(path))
        switched: list[bool] = []
        other = gevent.spawn(switched.append, True)
        for _ in range(10):
            with pool.get(path):
                pass

        assert switched == []
        assert pool.stats().dialed == 1
        other.join()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_of_tls_a_close_notify_is_a_death(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """D10: it made the plain socket readable, and that was taken for life."""

    class Server(IdServer):
        def serve(self, sock: Any) -> None:
            sock.sendall(sock.recv(100))
            leave.wait()
            sock.unwrap()  # says close_notify; TCP stays open

    leave = Event()
    certificates = make_certificates(tmp_path)
    theirs = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificates.certificate, certificates.key)
    theirs.minimum_version = theirs.maximum_version = version
    ours = gevent.ssl.create_default_context(cafile=str(certificates.authority))

    def connect(address: tuple[str, int]) -> Any:
        return SocketFactory(address, tls=ours, server_hostname="localhost")()

    with Server(ssl_context=theirs) as server, EndpointPool(connect=connect) as pool:
        with pool.get(server.address) as conn:
            assert ask(conn, "hello") == "hello"
        leave.set()
        until_readable(conn.fileno())

        with pool.get(server.address) as other:
            assert other is not conn


def test_a_tls_handshake_that_fails_leaves_no_socket_open(tmp_path: Path) -> None:
    """D10, second half: the socket of a failed handshake stayed open."""
    certificates = make_certificates(tmp_path)
    theirs = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificates.certificate, certificates.key)

    def connect(address: tuple[str, int]) -> Any:  # whom it does not trust
        return SocketFactory(address, tls=True, server_hostname="localhost")()

    with EchoServer(ssl_context=theirs) as server:
        with EndpointPool(connect=connect, fail_fast=True) as pool:
            with pytest.raises(ssl.SSLCertVerificationError):
                pool.acquire(server.address)
            server.wait_open(0)
            until(lambda: pool.endpoints() == [])


@pytest.mark.parametrize("error", [ValueError(), OSError()])
def test_a_connection_whose_reset_failed_is_not_handed_out_again(
    maker: Maker, error: Exception
) -> None:
    """D11: on_release raised, and the connection was pooled and handed out as it was."""

    class Pool(EndpointPool[str, Any]):
        def _new_connection(self, endpoint: str) -> Conn:
            return maker()

        def _reset_connection(self, endpoint: str, conn: Conn) -> None:
            if conn.number == 1:
                raise error

    with Pool() as pool:
        pool.release(pool.acquire("a"))  # and nothing is raised
        with pool.get("a") as conn:
            assert conn.number == 2
        until(lambda: maker.open == {2})
        assert pool.stats().closed[Reason.RESET] == 1


def test_a_double_release_and_that_of_a_stranger_are_told_and_lose_nothing(maker: Maker) -> None:
    """D12: an AssertionError; and a release to a wrong endpoint leaked the connection."""
    with pool_of(maker) as pool, pool_of(maker) as other:
        conn = pool.acquire("a")
        with pytest.raises(NotInUse) as caught:
            other.release(conn)  # of which it knows no endpoint
        assert (caught.value.connection, caught.value.pool) == (conn, other.name)
        pool.release(conn)
        with pytest.raises(NotInUse):
            pool.release(conn)

        assert pool.stats().idle == 1
        assert (pool.endpoints(), other.endpoints()) == (["a"], [])


def test_a_release_pays_for_no_others_close(maker: Maker) -> None:
    """D13: it disposed of the connections of others first, however long that took."""

    class Pool(EndpointPool[str, Any]):
        def _new_connection(self, endpoint: str) -> Conn:
            return maker()

        def _close_connection(self, endpoint: str, conn: Conn) -> None:
            closing.append(conn)
            go_on.wait()
            conn.close()

    closing: list[Conn] = []
    go_on = Event()
    with Pool(max_uses=1, min_idle=0) as pool:
        conns = [pool.acquire(endpoint) for endpoint in "abcde"]
        switched: list[bool] = []
        other = gevent.spawn(switched.append, True)
        for conn in conns:
            pool.release(conn)
        assert switched == []  # not even a switch, let alone a wait
        other.join()
        until(lambda: len(closing) == 5)
        go_on.set()


def test_a_program_that_does_not_close_its_pool_ends() -> None:
    """D14: the collector's thread kept the process from ending for ever."""
    program = """if True:
        from geventpool.pools import EndpointPool

        class Pool(EndpointPool):
            def _new_connection(self, endpoint):
                return object()

            def _keepalive(self, endpoint, conn):
                pass

        pool = Pool(idle_timeout=60, max_lifetime=60, keepalive=30)
        for endpoint in range(3):
            with pool.get(endpoint):
                pass
        print(len(pool.endpoints()))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)


def test_a_pool_that_is_not_used_any_more_is_collected(maker: Maker) -> None:
    """D14, second half: the collector kept the pool."""
    pool = pool_of(maker)
    for endpoint in "abc":
        pool.release(pool.acquire(endpoint))
    gone = weakref.ref(pool)

    del pool
    gc.collect()
    maker.wait_until(lambda: not maker.open)

    assert gone() is None


def test_a_thousand_endpoints_that_cannot_be_reached_leave_no_entry() -> None:
    """D15: each kept its entry, though its create() had failed."""

    def call(number: int) -> None:
        with pytest.raises(ConnectionRefusedError):
            pool.acquire((*nowhere, number))

    backoff = Backoff(first=0.05, longest=0.05)
    with (
        closed_port() as nowhere,
        EndpointPool[Any, Any](
            connect=lambda endpoint: SocketFactory(endpoint[:2])(), fail_fast=True, backoff=backoff
        ) as pool,
    ):
        callers = [gevent.spawn(call, number) for number in range(1000)]
        gevent.joinall(callers, timeout=60, raise_error=True)
        assert pool.stats().dial_failed >= 1000
        until(lambda: pool.endpoints() == [])

        assert pool.size == 0
        assert len(pool._total._buckets) == 0


def test_a_back_off_of_exactly_nothing_is_no_wait_for_ever(maker: Maker) -> None:
    """D16: one of exactly 0.0 was taken for none given: it waited for the next notice."""
    maker.error = OSError()
    with pool_of(maker, backoff=Backoff(first=0.0, longest=0.0)) as pool:
        caller = gevent.spawn(pool.acquire, "a", None)
        maker.wait_until(lambda: maker.dials >= 3)
        maker.error = None

        pool.release(caller.get(timeout=5))
