"""What the pools that geventpool descends from got wrong, and what must hold instead.

One test for each fault of geventconnpool (G1 to G12) and for each that most of the five share
(X1 to X7).  The depth is elsewhere: test_poison, test_fairness, test_stale, test_collection, ...
"""

from __future__ import annotations

import functools
import gc
import logging
import ssl
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from time import monotonic, process_time
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent.event import Event

from geventpool import (
    Backoff,
    ConnectionPool,
    PoolClosed,
    PoolTimeout,
    Reason,
    SocketFactory,
    retry,
)
from support.certificates import make_certificates
from support.objects import Conn, Maker
from support.servers import EchoServer, IdServer, Pulse, ask
from support.waiting import until_readable

# geventconnpool


def test_a_server_that_is_down_at_the_start_is_dialed_until_it_is_up() -> None:
    """G1: what _new_connection raised killed the greenlet that dialed, the slot was lost for ever,
    and get() still blocked when the server had long come up."""
    server = IdServer()
    server.start()
    server.stop()
    with ConnectionPool(2, connect=SocketFactory(server.address)) as pool:
        user = gevent.spawn(pool.execute, ask, "hello")
        with gevent.Timeout(10):
            while not pool.stats().dial_failed:
                gevent.sleep(0.005)
        server.start()

        assert user.get(timeout=10) == "hello"
        pool.fill(timeout=10)
    server.stop()


@pytest.mark.parametrize("error", [OSError(), ValueError(), gevent.Timeout(), AssertionError()])
def test_one_failed_replacement_does_not_block_a_pool_of_one(
    maker: Maker, error: BaseException
) -> None:
    """G1, second half: a pool of one whose only replacement failed once was blocked for ever."""
    with ConnectionPool(1, connect=maker) as pool:
        pool.fill()
        maker.error = error
        with pytest.raises(OSError), pool.get():
            raise OSError
        maker.wait_until(lambda: maker.dials == 2)
        maker.error = None

        with pool.get(timeout=5) as conn:
            assert conn.number == 2


def test_a_connection_is_discarded_when_its_user_is_killed_or_timed_out(maker: Maker) -> None:
    """G2: whatever was no Exception left the connection in the pool, the reply still to come."""

    def use() -> None:
        with pool.get():
            Event().wait()

    with ConnectionPool(1, connect=maker) as pool:
        user = gevent.spawn(use)
        gevent.idle()
        user.kill()
        with gevent.Timeout(0.01, False), pool.get(timeout=5):
            Event().wait()
        with pool.get(timeout=5) as conn:
            assert conn.number == 3


def test_a_broken_connection_is_closed_even_while_its_traceback_lives() -> None:
    """G3: it was only dropped, and stayed open at the server as long as the traceback lived."""
    with EchoServer() as server:
        with ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
            with pytest.raises(OSError) as caught, pool.get() as conn:
                raise OSError
            server.wait_opened(2)
            server.wait_open(1)

            assert caught.value.__traceback__ is not None
            assert conn.fileno() == -1


def test_a_broken_connection_is_replaced_at_once(maker: Maker) -> None:
    """G4: its replacement was dialed one second later, whatever the server was like; with a pool
    of one, each attempt of @retry took a second."""
    attempts: list[int] = []

    @retry
    def request() -> int:
        with pool.get() as conn:
            attempts.append(conn.number)
            if len(attempts) < 20:
                raise OSError
            return int(conn.number)

    with ConnectionPool(1, connect=maker) as pool:
        began = monotonic()
        with Pulse() as pulse:
            assert request() == 20

        assert monotonic() - began < 2.0 + pulse.missed  # it was 19


def test_the_keepalive_survives_whatever_it_raises(maker: Maker) -> None:
    """G5: anything outside exc_classes silently ended the keepalive of the whole pool."""

    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> Conn:
            return maker()

        def _keepalive(self, conn: Conn) -> None:
            checked.append(conn.number)
            if len(checked) < 5:
                raise errors[len(checked) % len(errors)]

    errors = [ValueError("a"), NotImplementedError(), gevent.Timeout(), AssertionError()]
    checked: list[int] = []
    with Pool(1, keepalive=0.01) as pool:
        maker.wait_until(lambda: maker.dials == 5)
        with gevent.Timeout(10):
            while len(checked) < 8:
                gevent.sleep(0.01)

        assert checked[:5] == [1, 2, 3, 4, 5]
        assert set(checked[5:]) == {5}
        assert pool.stats().closed[Reason.KEEPALIVE] == 4


def test_keepalive_without_a_keepalive_method_is_refused_at_once() -> None:
    """G5, second half: the default, NotImplementedError, ended the keepalive, too."""
    with pytest.raises(ValueError, match="_keepalive is not overridden"):
        ConnectionPool(1, connect=object, keepalive=1.0)


def test_a_peer_that_hangs_in_a_keepalive_does_not_block_users(maker: Maker) -> None:
    """G6: the keepalive had no time limit and took a connection as a user does, so a hung peer
    blocked the users of a small pool for as long as it liked."""

    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> Conn:
            return maker()

        def _keepalive(self, conn: Conn) -> None:
            checking.set()
            Event().wait()

    checking = Event()
    with Pool(1, keepalive=0.01, keepalive_timeout=30) as pool:
        assert checking.wait(5)
        began = monotonic()
        with Pulse() as pulse, pool.get():
            waited = monotonic() - began
        assert waited < 3.0 + pulse.missed
    with Pool(2, keepalive=0.01, keepalive_timeout=0.05) as pool:
        maker.wait_until(lambda: maker.dials >= 6)  # hung ones are replaced, without any user


def test_get_times_out_by_itself_and_a_hog_starves_no_caller(maker: Maker) -> None:
    """G7: get() waited for ever, and of two loops one was served 153,924 times, the other once."""

    def loop(number: int) -> None:
        while sum(served.values()) < 2000:
            with pool.get():
                gevent.sleep(0)
            served[number] += 1

    served: Counter[int] = Counter()
    with ConnectionPool(1, connect=maker) as pool:
        with pool.get(), pytest.raises(PoolTimeout, match="1 in use"):
            pool.acquire(timeout=0.01)
        gevent.joinall([gevent.spawn(loop, 0), gevent.spawn(loop, 1)], raise_error=True)

    assert abs(served[0] - served[1]) <= 2


def test_retry_works_bare_called_and_as_a_partial_and_keeps_the_real_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """G8: @retry(max_failures=...), as documented, was a TypeError; with a logger an
    AttributeError took the place of the real error."""
    mine = functools.partial(retry, max_failures=1, logger=logging.getLogger("mine"))
    for decorate in (retry, retry(max_failures=2), mine, mine()):
        calls: list[int] = []

        @decorate  # type: ignore[operator, untyped-decorator]
        def fails_once(calls: list[int] = calls) -> str:
            calls.append(1)
            if len(calls) < 2:
                raise OSError("broken")
            return "done"

        assert fails_once() == "done"

    @mine  # type: ignore[untyped-decorator]
    def fails() -> None:
        raise OSError("the real error")

    with caplog.at_level(logging.INFO, "mine"), pytest.raises(OSError, match="the real error"):
        fails()
    assert "Connection broken in" in caplog.text


def test_connections_that_are_falsy_are_connections() -> None:
    """G9: one with a length of 0 was taken for a failed dial, and leaked."""

    class Empty(list[int]):
        pass

    made: list[Empty] = []

    def connect() -> Empty:
        made.append(Empty())
        return made[-1]

    with ConnectionPool(2, connect=connect) as pool:
        pool.fill(timeout=5)
        with pool.get() as one, pool.get() as other:
            assert {id(one), id(other)} == {id(conn) for conn in made}

    assert len(made) == 2


@pytest.mark.parametrize("error", [RuntimeError("a bug in it"), gevent.GreenletExit()])
def test_an_error_on_the_way_in_is_raised_as_it_is_and_loses_no_slot(
    maker: Maker, error: BaseException
) -> None:
    """G10: an error inside get() itself, before it had a connection, turned into an
    UnboundLocalError in its own clean-up, and the slot was lost."""

    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> Conn:
            return maker()

        def _keepalive(self, conn: Conn) -> None:
            if not raised:
                raised.append(error)
                raise error

    raised: list[BaseException] = []
    with Pool(1, check_after=0.0) as pool:
        pool.fill()
        if isinstance(error, Exception):
            with pool.get():  # one that fails its check is replaced
                pass
        else:
            with pytest.raises(gevent.GreenletExit) as caught, pool.get():
                pass
            assert caught.value is error
        with pool.get(timeout=5) as conn:
            assert conn.number == 2
        assert raised == [error]


def test_a_dropped_pool_ends_and_one_that_need_not_be_full_opens_on_demand(maker: Maker) -> None:
    """G11: the greenlets of the pool kept it for ever, it could not be closed, and it opened all
    its connections even if they were not used."""
    pool = ConnectionPool(5, connect=maker, min_size=0, max_lifetime=60)
    gevent.idle()
    assert maker.dials == 0
    with pool.get():
        pass
    assert maker.dials == 1

    gone = weakref.ref(pool)
    del pool
    gc.collect()
    maker.wait_until(lambda: not maker.open)
    gevent.idle()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("patched", [False, True])
def test_the_package_imports_in_a_fresh_interpreter_without_a_warning(patched: bool) -> None:
    """G12: what was published imported modules that Python 3 and newer gevents do not have."""
    program = f"""if True:
        if {patched}:
            from gevent import monkey
            monkey.patch_all()
        import importlib, pkgutil
        import geventpool
        for module in pkgutil.walk_packages(geventpool.__path__, "geventpool."):
            if not {{"__main__", "contrib", "compat"}} & set(module.name.split(".")):
                importlib.import_module(module.name)
        for name in geventpool.__all__:
            getattr(geventpool, name)
        print("imported")
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("imported\n", "")


# What most of the five have in common


@pytest.mark.parametrize("interrupt", ["a Timeout", "a kill", "a parse error"])
def test_one_who_asks_second_does_not_get_the_first_reply(interrupt: str) -> None:
    """X1: a request was cut short, its connection pooled again, and "SECOND" was answered by the
    reply to "FIRST"; by a gevent.Timeout, by kill(), and by an error between send and receive."""

    def first() -> None:
        with pool.get() as conn:
            conn.sendall(b"FIRST\n")
            if interrupt == "a parse error":
                raise ValueError
            conn.recv(100)

    with IdServer(late_share=1.0, late_by=0.05) as server:
        connect = SocketFactory(server.address)
        with ConnectionPool(1, connect=connect, strict=True) as pool:
            if interrupt == "a Timeout":
                with gevent.Timeout(0.01, False):
                    first()
            elif interrupt == "a kill":
                user = gevent.spawn(first)
                user.join(0.01)
                user.kill()
            else:
                with pytest.raises(ValueError):
                    first()

            with pool.get() as conn:
                assert ask(conn, "SECOND") == "SECOND"


def test_of_100_greenlets_over_10_connections_none_starves(maker: Maker) -> None:
    """X2: those who re-acquired at once were served all the time, and the other 90 never."""

    def run(number: int) -> None:
        while sum(served.values()) < 5000:
            with pool.get():
                gevent.sleep(0)
            served[number] += 1

    served: Counter[int] = Counter()
    with ConnectionPool(10, connect=maker) as pool:
        pool.fill()
        users = [gevent.spawn(run, number) for number in range(100)]
        gevent.joinall(users, raise_error=True)

    assert min(served[number] for number in range(100)) >= 48
    assert max(served.values()) <= 52


def test_a_hand_out_costs_no_more_when_thousands_of_connections_are_out() -> None:
    """X3: it took 1 microsecond with 10 connections out and 91 with 5,000: they were searched."""

    def cost(pool: ConnectionPool[Any], rounds: int = 2000) -> float:
        best = float("inf")
        for _ in range(7):
            began = process_time()
            for _ in range(rounds):
                pool.release(pool.acquire())
            best = min(best, process_time() - began)
        return best

    class Thing:
        pass

    with ConnectionPool(5001, connect=Thing, max_connecting=5000) as big:
        with ConnectionPool(11, connect=Thing) as small:
            for pool in (big, small):
                pool.fill()
                held = [pool.acquire() for _ in range(pool.size - 1)]
                pool.held = held  # type: ignore[attr-defined]
            of_few, of_many = cost(small), cost(big)
            for pool in (big, small):
                for thing in pool.held:  # type: ignore[attr-defined]
                    pool.release(thing)

    assert of_many < 5 * of_few


def test_looking_whether_a_connection_is_alive_never_waits() -> None:
    """X4: recv with MSG_PEEK and MSG_DONTWAIT waits on a gevent socket: a look at an idle
    connection took more than a second; and select() fails beyond descriptor 1023."""
    with EchoServer() as server:
        with ConnectionPool(2, connect=SocketFactory(server.address)) as pool:
            pool.fill()
            switched: list[bool] = []
            other = gevent.spawn(switched.append, True)
            for _ in range(10):
                with pool.get():
                    pass

            assert switched == []  # not even a switch, let alone a wait
            other.join()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_of_tls_a_goodbye_is_a_death_and_a_session_ticket_is_not(
    tmp_path: Any, version: ssl.TLSVersion
) -> None:
    """X5: that bytes could be read was taken for life when they were the peer's close_notify, and
    for dirt when they were session tickets of TLS 1.3."""

    class Server(IdServer):
        def serve(self, sock: Any) -> None:
            question = sock.recv(100)
            sock.sendall(question)
            may_leave.wait()
            try:
                sock.unwrap()  # says close_notify; TCP stays open until the client answers
            finally:
                left.set()

    may_leave, left = Event(), Event()
    certificates = make_certificates(tmp_path)
    theirs = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificates.certificate, certificates.key)
    theirs.minimum_version = theirs.maximum_version = version
    ours = gevent.ssl.create_default_context(cafile=str(certificates.authority))
    with Server(ssl_context=theirs) as server:
        connect = SocketFactory(server.address, tls=ours, server_hostname="localhost")
        with ConnectionPool(1, connect=connect) as pool:
            pool.fill()
            server.wait_open(1)
            with pool.get() as fresh:  # its tickets, if any, are unread
                pass
            with pool.get() as conn:
                assert conn is fresh
                assert ask(conn, "hello") == "hello"

            may_leave.set()
            until_readable(conn.fileno())
            with pool.get() as other:
                assert other is not conn


def test_an_unrelated_timeout_error_of_another_pool_evicts_nothing(maker: Maker) -> None:
    """X6: TimeoutError is an OSError, so that of a nested pool made the outer one drop a healthy
    connection; and @retry would have tried again for as long as the pool was exhausted."""
    calls: list[int] = []

    @retry(max_failures=5)
    def request() -> None:
        calls.append(1)
        with outer.get(), inner.get(timeout=0.01):
            pass

    with ConnectionPool(1, connect=maker) as outer, ConnectionPool(1, connect=object) as inner:
        with inner.get(), pytest.raises(PoolTimeout):
            request()
        with outer.get() as conn:
            assert conn.number == 1

        assert maker.dials == len(calls) == 1


def _close_with_a_held_connection(maker: Maker) -> None:
    def hold() -> None:
        with pool.get():
            go_on.wait()

    def wait() -> None:
        with pytest.raises(PoolClosed):
            pool.acquire()

    go_on = Event()
    pool = ConnectionPool(1, connect=maker)
    users = [gevent.spawn(hold), gevent.spawn(wait)]
    gevent.idle()
    began = monotonic()
    pool.close(timeout=0.05)
    assert monotonic() - began < 2.0
    assert maker.open == set()
    go_on.set()
    gevent.joinall(users, timeout=5, raise_error=True)


def _lifetimes_end_apart(maker: Maker) -> None:
    with ConnectionPool(20, connect=maker, max_lifetime=1000.0, jitter=0.5) as pool:
        pool.fill()
        ends = {round(slot.retire_at) for slot in pool._bucket.slots}
    assert len(ends) > 10


def _forgotten_in_a_greenlet_that_died(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        gevent.spawn(lambda: pool.acquire() and None).join()
        gc.collect()
        with pool.get(timeout=5) as conn:
            assert conn.number == 2


def _the_clock_is_set(maker: Maker) -> None:
    import time

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: 0.0)
        settings: dict[str, Any] = {"max_lifetime": 60, "idle_timeout": 60}
        with ConnectionPool(1, connect=maker, backoff=Backoff(), **settings) as pool:
            pool.fill()
            patch.setattr(time, "time", lambda: 1e9)
            with pool.get() as conn:
                assert conn.number == 1


@pytest.mark.parametrize(
    "what",
    [
        _close_with_a_held_connection,
        _lifetimes_end_apart,
        _forgotten_in_a_greenlet_that_died,
        _the_clock_is_set,
    ],
)
def test_a_pool_has_what_none_of_the_five_had(maker: Maker, what: Callable[[Maker], None]) -> None:
    """X7: a close that works, lifetimes that do not all end together, a connection given back when
    the greenlet that had it died, and a clock that cannot be set (and forks: test_fork)."""
    what(maker)
