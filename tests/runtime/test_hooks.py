"""A hook may do anything: it is a failed dial or a dead connection, and the pool is whole."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool import Backoff, ConnectionPool, PoolClosed, PoolListener, PoolTimeout
from support import named
from support.objects import Conn, Maker

SOON = Backoff(first=0.001, longest=0.001, jitter=0)


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")

    __repr__ = __str__


class Unsure:
    def __bool__(self) -> bool:
        raise ValueError("neither")


def raising(error: BaseException) -> Callable[..., Any]:
    def hook(*args: Any) -> Any:
        raise error

    return hook


ERRORS = [OSError("no"), Rude(), gevent.Timeout(1), gevent.GreenletExit()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_fileno_raises_loses_no_place(error: BaseException) -> None:
    maker = Maker()
    calls = []

    class Pool(ConnectionPool[Conn]):
        def _fileno(self, conn: Conn) -> None:
            calls.append(conn)
            if len(calls) == 1:
                raise error

    pool = Pool(1, connect=maker, backoff=SOON)
    with pool.get(timeout=5) as conn:
        pass
    pool.close()

    assert pool.stats().connecting == 0
    assert maker.open == set()
    assert conn.number == (1 if isinstance(error, Exception) else 2)


def test_a_pool_that_is_closed_while_fileno_gives_way_closes_what_was_opened() -> None:
    maker = Maker()

    class Pool(ConnectionPool[Conn]):
        def _fileno(self, conn: Conn) -> None:
            gevent.sleep(5)

    pool = Pool(2, connect=maker)
    maker.wait_until(lambda: maker.opened == 1)
    with gevent.Timeout(2):
        pool.close()

    assert maker.open == set()
    assert pool.stats().connecting == 0


def test_a_fileno_that_hangs_is_a_failed_dial() -> None:
    maker = Maker()

    class Pool(ConnectionPool[Conn]):
        def _fileno(self, conn: Conn) -> None:
            if conn.number == 1:
                gevent.sleep(60)

    pool = Pool(1, connect=maker, connect_timeout=0.05, backoff=SOON)
    with pool.get(timeout=5) as conn:
        assert conn.number == 2
    assert maker.open == {2}
    pool.close()


@pytest.mark.parametrize("answer", [Unsure(), ValueError, Rude, gevent.Timeout(1)], ids=named)
def test_whatever_is_alive_does_the_next_connection_is_handed_out(answer: Any) -> None:
    maker = Maker()

    class Pool(ConnectionPool[Conn]):
        def _is_alive(self, conn: Conn) -> Any:
            if conn.number > 1:
                return True
            if isinstance(answer, Unsure):
                return answer
            raise answer

    pool = Pool(1, connect=maker)
    if isinstance(answer, gevent.Timeout):  # it may be the caller's own
        with pytest.raises(gevent.Timeout):
            pool.acquire(timeout=5)
    with pool.get(timeout=5) as conn:
        assert conn.number == 2
    assert maker.open == {2}
    pool.close()


def test_an_error_without_a_text_does_not_replace_ours() -> None:
    pool = ConnectionPool(1, connect=raising(Rude()), backoff=SOON)
    with pytest.raises(PoolTimeout, match="last dial: Rude") as caught:
        pool.acquire(timeout=0.05)

    assert isinstance(caught.value.__cause__, Rude)
    pool.close()


def test_a_timeout_without_a_text_is_a_failed_dial() -> None:
    class Mute(gevent.Timeout):
        def __str__(self) -> str:
            raise RuntimeError

    maker = Maker()
    errors: list[BaseException] = [Mute()]

    def connect() -> Conn:
        if errors:
            raise errors.pop()
        return maker()

    pool = ConnectionPool(1, connect=connect, backoff=SOON)
    with pool.get(timeout=5):
        pass
    pool.close()


@pytest.mark.parametrize("drawn", [raising(ValueError("no luck")), lambda: "x", lambda: -7.0])
def test_a_backoff_whose_rng_fails_waits_without_jitter(drawn: Callable[[], Any]) -> None:
    class Rng(random.Random):
        def random(self) -> Any:
            return drawn()

    maker = Maker()
    maker.error = OSError("refused")
    pool = ConnectionPool(1, connect=maker, backoff=Backoff(0.001, longest=0.01, rng=Rng()))
    maker.wait_until(lambda: maker.dials > 3)
    maker.error = None
    with pool.get(timeout=5):
        pass
    pool.close()


@pytest.mark.parametrize(
    "what", ["connection_created", "connection_recycled", "connection_disposed"]
)
def test_a_listener_that_takes_its_time_holds_up_no_dial(what: str) -> None:
    maker, listener, end = Maker(), PoolListener(), Event()
    setattr(listener, what, lambda event: end.wait())
    pool = ConnectionPool(100, connect=maker, max_overflow=4, listeners=[listener])
    try:
        with gevent.Timeout(20):
            pool.fill()
            pool.drain()
            maker.wait_until(lambda: maker.opened >= 200 and len(maker.open) == 100)
        pool.close(timeout=0)
    finally:
        end.set()
        gevent.idle()


def test_a_log_handler_that_takes_its_time_holds_up_no_dial() -> None:
    end = Event()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            end.wait()

        def acquire(self) -> None:  # each by itself
            pass

        release = acquire

    maker = Maker()
    log = logging.getLogger("geventpool.slowly logged")
    handler = Slow()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        with gevent.Timeout(20):
            pool = ConnectionPool(80, connect=maker, name="slowly logged")
            pool.fill()
            pool.dispose()
            maker.wait_until(lambda: maker.opened == 160 and len(maker.open) == 80)
        end.set()
        gevent.idle()
        log.setLevel(logging.WARNING)
        pool.close()
    finally:
        end.set()
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


@pytest.mark.parametrize("closer", ["_new_connection", "_fileno", "_keepalive", "_is_alive"])
def test_a_hook_may_close_the_pool(closer: str) -> None:
    maker = Maker()

    class Pool(ConnectionPool[Conn]):
        def _keepalive(self, conn: Conn) -> None:
            pass

    def hook(self: Any, *args: Any) -> Any:
        pool.close(timeout=0)
        return maker() if closer == "_new_connection" else None

    setattr(Pool, closer, hook)
    connect = None if closer == "_new_connection" else maker
    pool = Pool(1, connect=connect, check_after=0)
    if closer == "_keepalive":
        pool.fill()
        gevent.sleep(0.01)
    with pytest.raises(PoolClosed, match="closed"):
        pool.acquire(timeout=5)
    gevent.idle()
    pool.close()

    assert maker.open == set()
    assert pool._bucket.slots == {}


def test_a_reset_that_hangs_is_cut_short() -> None:
    maker = Maker()

    class Pool(ConnectionPool[Conn]):
        def _reset_connection(self, conn: Conn) -> None:
            gevent.sleep(60)

    pool = Pool(1, connect=maker, keepalive_timeout=0.05)
    with gevent.Timeout(2), pool.get() as conn:
        pass
    with pool.get(timeout=5) as other:
        assert other is not conn
        pool.discard(other)
    assert conn.closed
    pool.close()


def test_an_exception_group_that_holds_a_breaking_one_discards() -> None:
    group = pytest.importorskip("builtins").__dict__.get("ExceptionGroup")
    if group is None:
        pytest.skip("before Python 3.11")
    pool = ConnectionPool(1, connect=Maker())
    for error, breaks in (
        (group("several", [ValueError(), group("inner", [KeyError(), OSError()])]), True),
        (group("several", [ValueError(), PoolTimeout("of another pool")]), False),
    ):
        with pytest.raises(group), pool.get() as conn:
            raise error
        gevent.idle()
        assert conn.closed is breaks
    pool.close()
