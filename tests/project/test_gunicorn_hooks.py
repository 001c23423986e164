"""The hooks of ``geventpool.gunicorn``, called as gunicorn calls them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from geventpool import (
    Address,
    ConnectionManager,
    ConnectionPool,
    PoolClosed,
    SocketFactory,
    gunicorn,
)
from geventpool.directory.registration import Registration
from geventpool.observe.worker_socket import workers
from geventpool.testing import EchoServer, closed_port
from support import ROOT
from support.threads import Thread
from support.waiting import until


class Worker:
    """A gunicorn worker, as far as the hooks look at it."""

    def __init__(self, pid: int | None = None, **settings: float) -> None:
        self.pid = os.getpid() if pid is None else pid
        self.cfg = SimpleNamespace(**{"timeout": 30, "graceful_timeout": 30, **settings})
        self.log = logging.getLogger("a worker")


pytestmark = pytest.mark.usefixtures("run_folder")


def test_the_pools_are_full_when_the_worker_begins() -> None:
    with EchoServer() as server:
        fixed = ConnectionPool(4, connect=SocketFactory(server.address))
        elastic = ConnectionPool(5, min_size=2, connect=SocketFactory(server.address))
        lazy = ConnectionPool(5, min_size=0, connect=SocketFactory(server.address))
        with fixed, elastic, lazy, ConnectionManager():
            gunicorn.post_worker_init(Worker())
            assert [pool.stats().idle for pool in (fixed, elastic, lazy)] == [4, 2, 0]


def test_gunicorn_s_master_may_have_them_before_the_worker_patches() -> None:
    program = "import geventpool.gunicorn; from gevent import monkey; monkey.patch_all()"
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, check=True)


def test_a_server_that_is_away_is_said_and_the_worker_begins_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closed_port() as address, caplog.at_level(logging.WARNING, "a worker"):
        with ConnectionPool(2, connect=SocketFactory(address), name="away"):
            began = time.monotonic()
            gunicorn.post_worker_init(Worker(timeout=0.2))
            assert time.monotonic() - began >= 0.1
    (record,) = [each for each in caplog.records if each.name == "a worker"]
    assert "'away' is not full as the worker begins" in record.getMessage()


def test_a_worker_that_exits_closes_its_pools_and_waits_for_no_holder() -> None:
    with EchoServer() as server:
        pool = ConnectionPool(2, connect=SocketFactory(server.address))
        pool.fill()
        held = pool.acquire()
        gevent.spawn(gunicorn.worker_exit, None, Worker(graceful_timeout=0.1)).get(timeout=10)
        assert pool.closed
        server.wait_open(0)
        assert held.fileno() < 0


def test_a_worker_that_exits_withdraws_what_it_has_announced() -> None:
    class Entry:
        withdrawn = False

        def announce(self) -> None:
            """It is there at once."""

        def keep(self) -> None:
            """It is there still."""

        def withdraw(self) -> None:
            self.withdrawn = True

    entry = Entry()
    registration = Registration(entry, "web", Address("10.0.0.1", 80), 10.0)
    assert registration.wait(10)
    gunicorn.worker_exit(None, Worker(pid=os.getppid()))
    assert not entry.withdrawn
    gunicorn.worker_exit(None, Worker())
    assert entry.withdrawn


def test_at_an_interrupt_a_request_may_finish_and_one_in_line_is_sent_away() -> None:
    with EchoServer() as server:
        pool = ConnectionPool(1, connect=SocketFactory(server.address))
        sock = pool.acquire()

        def wait() -> None:
            with pytest.raises(PoolClosed):
                pool.acquire()

        waiting = gevent.spawn(wait)
        gevent.sleep(0)
        interrupt = gevent.spawn(gunicorn.worker_int, Worker())
        waiting.get(timeout=10)
        sock.sendall(b"still good\n")
        assert sock.recv(100) == b"still good\n"
        assert not interrupt.ready()
        pool.release(sock)
        interrupt.get(timeout=10)


def test_a_worker_answers_for_its_master_s_group_until_it_exits(run_folder: Path) -> None:
    gunicorn.post_worker_init(Worker())
    (worker,) = workers(run_folder)
    assert (worker.group, worker.pid) == (os.getppid(), os.getpid())
    gunicorn.worker_exit(None, Worker())
    assert workers(run_folder) == []


def test_where_it_cannot_listen_the_worker_begins_all_the_same(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_folder.write_text("no folder")
    with caplog.at_level(logging.WARNING, "a worker"):
        gunicorn.post_worker_init(Worker())
    assert "cannot be looked at from outside" in caplog.text


def test_the_master_closes_nothing_for_a_worker_that_it_did_not_find() -> None:
    with EchoServer() as server:
        with ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
            gunicorn.worker_exit(None, Worker(pid=os.getpid() + 1))
            assert not pool.closed


def test_the_pools_of_other_threads_are_left_to_them() -> None:
    made: list[Any] = []
    done: list[bool] = []

    def work() -> bool:
        with EchoServer() as server:
            with ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
                made.append(pool)
                while not done:
                    gevent.sleep(0.001)
                return pool.closed

    thread = Thread(work)
    until(lambda: made)
    gunicorn.post_worker_init(Worker())
    gunicorn.worker_exit(None, Worker())
    done.append(True)
    assert thread.result() is False


def test_the_master_takes_the_gauges_of_a_dead_worker_out_of_the_metrics(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    multiprocess = SimpleNamespace(mark_process_dead=told.append)
    monkeypatch.setitem(gunicorn.sys.modules, "prometheus_client.multiprocess", multiprocess)
    gunicorn.child_exit(None, Worker(pid=17))
    assert told == []
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    gunicorn.child_exit(None, Worker(pid=17))
    assert told == [17]
