"""What becomes of a connection whose use was cut short, where the pool overrides the hook for it.

That no caller ever reads another's reply after it: tests/promises/test_salvage.py.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent import GreenletExit
from gevent.event import Event

from geventpool import (
    ConnectionPool,
    EndpointPool,
    NotInUse,
    PoolListener,
    PoolTimeout,
    Reason,
    SocketFactory,
)
from geventpool.testing import FakeClock
from support.objects import Conn, Maker
from support.servers import EchoServer
from support.waiting import until


class SalvagingPool(ConnectionPool[Any]):
    """Salvages wait until they are told how to end; *salvages* has what the hook was called with,
    and the greenlet."""

    def __init__(self, size: int, **settings: Any) -> None:
        self.salvages: list[tuple[Any, BaseException | None, Any]] = []
        self.ends: list[Event] = []
        self.error: BaseException | None = None
        settings.setdefault("salvage_timeout", 20.0)
        super().__init__(size, **settings)
        self.fill()

    def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
        self.salvages.append((conn, error, gevent.getcurrent()))
        end = Event()
        self.ends.append(end)
        end.wait()
        if self.error is not None:
            raise self.error

    def let_end(self) -> None:
        """Have all that are under way end, and what follows from it happen."""
        for end in self.ends:
            end.set()
        self.ends.clear()
        gevent.idle()


@pytest.fixture
def pool(maker: Maker) -> Iterator[SalvagingPool]:
    with SalvagingPool(2, connect=maker) as pool:
        yield pool
        pool.let_end()


def cut_short(pool: Any, error: BaseException | None = None) -> Any:
    """Have a ``with`` be left by a Timeout, or *error*; returns the connection, and waits for the
    salvage to begin, if it does."""
    error = gevent.Timeout() if error is None else error
    with pytest.raises(type(error)), pool.get() as conn:
        raise error
    gevent.idle()
    return conn


def now(pool: Any) -> tuple[int, int, int]:
    stats = pool.stats()
    return stats.salvaging, stats.salvaged, stats.salvage_failed


# What is salvaged


def test_a_pool_without_the_hook_closes_what_was_cut_short(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker) as pool:
        conn = cut_short(pool)

        assert conn.closed
        assert pool.stats().closed[Reason.ERROR] == 1
        assert now(pool) == (0, 0, 0)


def test_the_with_returns_at_once_and_the_pool_salvages_in_the_background(
    pool: SalvagingPool,
) -> None:
    error = gevent.Timeout()
    with pytest.raises(gevent.Timeout), pool.get() as conn:
        raise error
    assert pool.salvages == []
    assert now(pool) == (1, 0, 0)  # counted, and in nobody's hands
    assert (pool.stats().in_use, pool.stats().idle, pool.holders()) == (0, 1, ())
    gevent.idle()

    [(salvaged, cause, greenlet)] = pool.salvages
    assert salvaged is conn
    assert cause is error
    assert greenlet is not gevent.getcurrent()
    pool.let_end()
    assert now(pool) == (0, 1, 0)
    assert pool.stats().idle == 2
    assert pool.stats().opened == 2
    assert not conn.closed


@pytest.mark.parametrize("error", [GreenletExit, KeyboardInterrupt, GeneratorExit])
def test_a_kill_cuts_short_as_a_timeout_does(
    pool: SalvagingPool, error: type[BaseException]
) -> None:
    cut_short(pool, error())

    assert now(pool) == (1, 0, 0)


@pytest.mark.parametrize("form", ["release", "discard"])
def test_a_release_in_a_finally_salvages_and_a_discard_closes(
    pool: SalvagingPool, form: str
) -> None:
    conn = pool.acquire()
    with pytest.raises(gevent.Timeout):
        try:
            raise gevent.Timeout
        finally:
            getattr(pool, form)(conn)
    gevent.idle()

    assert now(pool) == ((1, 0, 0) if form == "release" else (0, 0, 0))
    assert conn.closed is (form == "discard")


def test_an_error_that_says_the_connection_is_broken_closes_it(maker: Maker) -> None:
    group: Any = getattr(__import__("builtins"), "BaseExceptionGroup", None)
    with SalvagingPool(1, connect=maker, exc_classes=(OSError, GreenletExit), strict=True) as pool:
        errors = [OSError(), ValueError(), GreenletExit()]
        if group is not None:
            errors.append(group("both", [gevent.Timeout(), OSError()]))
        for error in errors:
            assert cut_short(pool, error).closed
            pool.fill()
        assert now(pool) == (0, 0, 0)
        assert pool.stats().closed[Reason.ERROR] == len(errors)
        if group is not None:
            assert not cut_short(pool, group("one", [gevent.Timeout()])).closed
            pool.let_end()
            assert now(pool) == (0, 1, 0)


def test_a_wait_that_was_cut_short_and_found_on_return_is_salvaged() -> None:
    with EchoServer() as server, SalvagingPool(1, connect=SocketFactory(server.address)) as pool:
        with pool.get() as sock:
            with gevent.Timeout(0.01, False):
                sock.recv(1)
        gevent.idle()

        assert [(conn, error) for conn, error, _ in pool.salvages] == [(sock, None)]
        pool.let_end()
        with pool.get() as again:
            assert again is sock
        assert now(pool) == (0, 1, 0)


def test_nested_in_a_greenlet_local_pool_the_last_with_to_be_left_salvages(maker: Maker) -> None:
    with SalvagingPool(1, connect=maker, greenlet_local=True) as pool:
        error = gevent.Timeout()
        with pool.get() as conn:
            with pytest.raises(gevent.Timeout), pool.get():
                raise error
            gevent.idle()
            assert pool.salvages == []
        gevent.idle()

        assert [(each, cause) for each, cause, _ in pool.salvages] == [(conn, error)]
        pool.let_end()
        assert now(pool) == (0, 1, 0)

        with pytest.raises(OSError), pool.get() as conn:
            with pytest.raises(gevent.Timeout), pool.get():
                raise gevent.Timeout
            raise OSError
        gevent.idle()
        assert conn.closed
        assert now(pool) == (0, 1, 0)


def test_an_endpoint_pool_gives_the_hook_the_endpoint_first(maker: Maker) -> None:
    class Pool(EndpointPool[str, Any]):
        def _salvage_connection(self, endpoint: str, conn: Any, error: Any) -> None:
            called.append((endpoint, conn, error))

    called: list[Any] = []
    error = gevent.Timeout()
    with Pool(max_size=2, connect=lambda endpoint: maker()) as pool:
        with pytest.raises(gevent.Timeout), pool.get("a") as conn:
            raise error
        gevent.idle()

        assert called == [("a", conn, error)]
        assert (pool.stats("a").salvaged, pool.stats("a").idle) == (1, 1)
        pool.dispose()
        until(lambda: not pool.endpoints())
        assert pool.stats().salvaged == 1


# How it ends


def test_a_salvaged_connection_goes_to_the_oldest_waiter(maker: Maker) -> None:
    with SalvagingPool(1, connect=maker) as pool:
        conn = cut_short(pool)
        served: list[tuple[int, Any]] = []

        def caller(number: int) -> None:
            with pool.get() as got:
                served.append((number, got))

        callers = [gevent.spawn(caller, number) for number in range(2)]
        gevent.idle()
        assert pool.stats().waiting == 2
        pool.let_end()
        gevent.joinall(callers)

        assert served == [(0, conn), (1, conn)]


def test_a_salvage_that_raises_closes_the_connection(
    pool: SalvagingPool, caplog: pytest.LogCaptureFixture
) -> None:
    pool.error = RuntimeError("out of step")
    with caplog.at_level(logging.INFO):
        conn = cut_short(pool)
        pool.let_end()
        pool.fill()

    assert conn.closed
    assert now(pool) == (0, 0, 1)
    assert pool.stats().closed[Reason.SALVAGE] == 1
    assert pool.stats().idle == 2
    assert "could not be salvaged: RuntimeError('out of step')" in caplog.text


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_salvage_that_takes_longer_than_its_time_closes_the_connection(
    maker: Maker, swallowed: bool
) -> None:
    class Pool(SalvagingPool):
        def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
            try:
                gevent.sleep(30)
            except gevent.Timeout:
                if not swallowed:
                    raise

    with Pool(1, connect=maker, salvage_timeout=0.02) as pool:
        conn = cut_short(pool)
        until(lambda: conn.closed)

        assert now(pool) == (0, 0, 1)
        assert pool.stats().closed[Reason.SALVAGE] == 1


def test_a_kill_of_the_salvaging_greenlet_closes_the_connection(pool: SalvagingPool) -> None:
    conn = cut_short(pool)
    pool.salvages[0][2].kill()
    until(lambda: conn.closed)

    assert now(pool) == (0, 0, 1)
    pool.fill()


@pytest.mark.parametrize("error", [GreenletExit, gevent.Timeout, SystemExit])
def test_a_hook_may_raise_anything(
    maker: Maker, error: type[BaseException], hub_errors: list[BaseException]
) -> None:
    class Pool(SalvagingPool):
        def _salvage_connection(self, conn: Any, cause: BaseException | None) -> None:
            raise error

    with Pool(1, connect=maker) as pool:
        try:
            conn = cut_short(pool)
            until(lambda: conn.closed)
        except SystemExit:  # goes on to the main greenlet, as from any other
            assert error is SystemExit
        pool.fill()
        assert now(pool) == (0, 0, 1)
    hub_errors.clear()


def test_a_hook_may_kill_itself_close_the_pool_or_release_the_connection(maker: Maker) -> None:
    class Pool(SalvagingPool):
        def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
            act(self, conn)
            done.append(act)

    def kill_itself(pool: Pool, conn: Conn) -> None:
        gevent.getcurrent().kill()

    def release(pool: Pool, conn: Conn) -> None:
        with pytest.raises(NotInUse):
            pool.release(conn)
        with pytest.raises(NotInUse):
            pool.discard(conn)

    def close(pool: Pool, conn: Conn) -> None:
        pool.close()

    done: list[Any] = []
    for act, closed in ((kill_itself, True), (release, False), (close, True)):
        with Pool(1, connect=maker) as pool:
            conn = cut_short(pool)
            until(lambda pool=pool: not (pool.stats().salvaging + pool.stats().closing))  # type: ignore[misc]
            assert conn.closed is closed, act
    assert done == [release, close]
    assert not maker.open


def test_what_is_reset_on_return_is_reset_after_a_salvage(maker: Maker) -> None:
    class Pool(SalvagingPool):
        reset_error: BaseException | None = None

        def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
            order.append("salvage")

        def _reset_connection(self, conn: Any) -> None:
            order.append("reset")
            gevent.sleep(0)
            if self.reset_error is not None:
                raise self.reset_error

    order: list[str] = []
    with Pool(1, connect=maker) as pool:
        cut_short(pool)
        assert order == ["salvage", "reset"]
        assert now(pool) == (0, 1, 0)
        pool.reset_error = ValueError()
        conn = cut_short(pool)
        assert conn.closed
        assert now(pool) == (0, 1, 1)
        assert pool.stats().closed[Reason.RESET] == 1


def test_a_use_that_was_cut_short_is_counted_once(pool: SalvagingPool) -> None:
    pool.error = RuntimeError()
    cut_short(pool)
    pool.let_end()
    pool.error = None
    pool.fill()
    cut_short(pool)
    pool.let_end()
    stats = pool.stats()

    assert (stats.acquired, stats.released, stats.use.count) == (2, 0, 2)


def test_listeners_are_told_what_was_salvaged_and_what_was_not(maker: Maker) -> None:
    class Ears(PoolListener):
        def connection_salvaged(self, event: Any) -> None:
            told.append(("salvaged", event.connection, event.error))
            assert event.pool is pool
            assert 0 <= event.seconds < 20

        def connection_failed(self, event: Any) -> None:
            told.append(("failed", event.connection, event.error))

        def connection_disposed(self, event: Any) -> None:
            told.append((event.reason, event.connection, event.error))

    told: list[Any] = []
    error = gevent.Timeout()
    with SalvagingPool(1, connect=maker, listeners=[Ears()]) as pool:
        conn = cut_short(pool, error)
        assert told == []
        pool.let_end()
        assert told == [("salvaged", conn, error)]
        told.clear()
        pool.error = why = RuntimeError()
        cut_short(pool, error)
        pool.let_end()
        assert told == [("failed", conn, why), (Reason.SALVAGE, conn, why)]


def test_what_is_to_be_closed_anyway_is_not_salvaged(maker: Maker) -> None:
    with SalvagingPool(1, connect=maker, max_uses=1) as pool:
        conn = cut_short(pool)

        assert conn.closed
        assert pool.salvages == []


# How many at a time


@pytest.mark.parametrize(("size", "most"), [(1, 1), (2, 1), (5, 2), (8, 4)])
def test_half_of_the_size_is_salvaged_at_a_time_and_the_rest_is_closed(
    maker: Maker, size: int, most: int
) -> None:
    with SalvagingPool(size, connect=maker) as pool:
        conns = [pool.acquire() for _ in range(size)]
        for conn in conns:
            try:
                raise gevent.Timeout
            except gevent.Timeout:
                pool.release(conn)
        gevent.idle()

        assert now(pool) == (most, 0, 0)
        assert [conn.closed for conn in conns] == [False] * most + [True] * (size - most)
        assert pool.stats().closed[Reason.CUT_SHORT] == size - most
        pool.let_end()


def test_surplus_is_not_salvaged_unless_a_caller_waits(maker: Maker) -> None:
    with SalvagingPool(2, connect=maker, max_overflow=1) as pool:
        conns = [pool.acquire() for _ in range(3)]

        def give_back(conn: Any) -> None:
            try:
                raise gevent.Timeout
            except gevent.Timeout:
                pool.release(conn)

        waiter = gevent.spawn(pool.acquire)
        gevent.idle()
        give_back(conns[0])
        gevent.idle()
        assert now(pool) == (1, 0, 0)
        pool.let_end()
        assert waiter.get() is conns[0]
        give_back(conns[1])
        gevent.idle()
        assert conns[1].closed
        for conn in (conns[0], conns[2]):
            pool.release(conn)


# What else may happen meanwhile


def test_a_caller_that_waits_in_vain_is_told_how_many_are_being_salvaged(maker: Maker) -> None:
    with SalvagingPool(1, connect=maker) as pool:
        cut_short(pool)

        with pytest.raises(PoolTimeout, match="0 in use, 0 idle.*; 1 being salvaged"):
            pool.acquire(timeout=0.01)


def test_an_audit_finds_nothing_wrong_with_a_salvage(
    pool: SalvagingPool, caplog: pytest.LogCaptureFixture
) -> None:
    cut_short(pool)
    pool._runtime.scheduler.audit(pool._bucket, 1e9)
    gevent.idle()

    assert now(pool) == (1, 0, 0)
    assert "the books were wrong" not in caplog.text


def test_a_peer_that_hangs_up_meanwhile_is_noticed() -> None:
    with EchoServer() as server, SalvagingPool(1, connect=SocketFactory(server.address)) as pool:
        cut_short(pool)
        server.fin_all()
        until(lambda: pool._bucket.slots and next(iter(pool._bucket.slots)).close_reason)
        pool.let_end()

        assert pool.stats().closed[Reason.PEER_CLOSED] == 1
        assert now(pool)[1:] == (0, 1)
        pool.fill()


@pytest.mark.parametrize("verb", ["dispose", "drain", "max_lifetime"])
def test_what_is_to_go_meanwhile_goes_when_the_salvage_has_ended(maker: Maker, verb: str) -> None:
    reason = {"dispose": Reason.DISPOSED, "drain": Reason.DRAINED}.get(verb, Reason.EXPIRED)
    with FakeClock() as clock, SalvagingPool(1, connect=maker, max_lifetime=60, jitter=0) as pool:
        conn = cut_short(pool)
        if verb == "max_lifetime":
            clock.advance(61)
        else:
            getattr(pool, verb)()
        gevent.idle()
        assert not conn.closed
        pool.let_end()
        pool.fill()

        assert conn.closed
        assert pool.stats().closed[reason] == 1
        assert pool.stats().idle == 1


def test_a_pool_made_smaller_meanwhile_keeps_to_its_size(pool: SalvagingPool) -> None:
    cut_short(pool)
    pool.resize(1)
    pool.let_end()
    until(lambda: not pool.stats().closing)

    assert (pool.stats().idle, pool._bucket.open) == (1, 1)


def test_close_ends_what_is_being_salvaged(maker: Maker) -> None:
    pool = SalvagingPool(1, connect=maker)
    conn = cut_short(pool)

    with gevent.Timeout(5):
        pool.close()

    assert conn.closed
    assert pool.stats().closed[Reason.POOL_CLOSED] == 1


def test_close_with_a_timeout_is_not_held_up_by_a_salvage_that_will_not_end(maker: Maker) -> None:
    class Stubborn(SalvagingPool):
        def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
            while not over.is_set():
                try:
                    over.wait()
                except Exception as exc:
                    swallowed.append(exc)

    swallowed: list[Exception] = []
    over = Event()
    pool = Stubborn(1, connect=maker)
    conn = cut_short(pool)

    with gevent.Timeout(5):
        pool.close(timeout=0.05)

    assert conn.closed
    assert len(swallowed) == 1
    assert now(pool)[0] == 0
    over.set()
    gevent.idle()
    assert pool._bucket.slots == {}


def test_a_pool_dropped_while_it_salvages_is_collected_when_that_has_ended(maker: Maker) -> None:
    pool = SalvagingPool(1, connect=maker)
    conn = weakref.ref(cut_short(pool))
    bucket, ends, gone = pool._bucket, pool.ends, weakref.ref(pool)
    assert bucket.salvaging
    del pool
    gc.collect()
    for end in ends:
        end.set()
    until(lambda: gc.collect() >= 0 and not bucket.slots)

    assert gone() is None
    assert not maker.open
    assert conn() is None


def test_what_cut_it_short_is_not_kept_alive_by_what_was_salvaged(pool: SalvagingPool) -> None:
    class Mine(BaseException):
        pass

    def use() -> Any:
        error = Mine()
        cut_short(pool, error)
        return weakref.ref(error)

    error = use()
    pool.let_end()
    pool.salvages.clear()
    gc.collect()

    assert error() is None
    assert now(pool) == (0, 1, 0)
