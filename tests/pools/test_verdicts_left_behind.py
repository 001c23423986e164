"""What an error said once does not stay, nor does a lease whose hook was interrupted."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import pytest

from geventpool import Backoff, ConnectionPool, Verdict
from support.objects import Conn, Maker
from support.waiting import until


class Fatal(OSError):
    pass


class Pool(ConnectionPool[Conn]):
    def _classify_error(self, error: Exception) -> Verdict:
        return Verdict.FATAL if isinstance(error, Fatal) else Verdict.BROKEN


def test_an_outage_ends_when_all_that_the_pool_may_have_is_open(maker: Maker) -> None:
    with Pool(3, connect=maker, backoff=Backoff(first=0.01, longest=0.02)) as pool:
        pool.fill()
        maker.error = Fatal("password")
        pool.discard(pool.acquire())
        until(lambda: pool._bucket.outage.on)
        assert not pool.stats().down, "two connections are open"
        pool.resize(2)
        until(lambda: not pool._bucket.outage.on)
        maker.error = None
        pool.discard(pool.acquire())
        pool.fill(timeout=10)  # none of its callers is told of an error of long ago


@pytest.mark.parametrize("greenlet_local", [False, True])
def test_a_kill_while_a_hooks_error_is_logged_gives_the_connection_back(
    maker: Maker, greenlet_local: bool
) -> None:
    class Rude(ConnectionPool[Conn]):
        def _classify_error(self, error: Exception) -> Verdict:
            raise RuntimeError("a bug in the hook")

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "_classify_error failed" in record.getMessage():
                logging_it.set()
                gevent.sleep(10)

    def use() -> None:
        lease = pool.get()
        kept.append(lease)
        with lease:
            raise ValueError

    kept: list[Any] = []
    logging_it = gevent.event.Event()
    with Rude(1, connect=maker, greenlet_local=greenlet_local, name="rude") as pool:
        handler = Slow()
        pool.log.addHandler(handler)
        try:
            greenlet = gevent.spawn(use)
            assert logging_it.wait(10)
            greenlet.kill()
        finally:
            pool.log.removeHandler(handler)
        pool.release(pool.acquire(timeout=10))


def test_a_local_lease_asks_once_what_an_error_says(maker: Maker) -> None:
    asked: list[Exception] = []

    class Asking(ConnectionPool[Conn]):
        def _classify_error(self, error: Exception) -> Verdict:
            asked.append(error)
            return Verdict.FINE

    with Asking(1, connect=maker, greenlet_local=True) as pool:
        with pytest.raises(ValueError), pool.get():
            raise ValueError
    assert len(asked) == 1
