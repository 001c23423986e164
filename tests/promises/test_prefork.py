"""Programs that make a pool and then fork their workers; also where Python sees no fork."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from support import ROOT, TESTS

SCRIPT = """if True:
    import ctypes, json, os, sys
    sys.path[:0] = sys.argv[1:3]
    import gevent
    from geventpool import ConnectionPool

    dials, note = os.pipe()

    class Conn:
        def __init__(self):
            self.pid = os.getpid()
            os.write(note, b".")

        def close(self):
            pass

    def dialed():
        os.set_blocking(dials, False)
        try:
            return len(os.read(dials, 4096))
        except BlockingIOError:
            return 0

    def fork(how):
        return os.fork() if how == "seen" else ctypes.PyDLL(None).fork()
"""


def run(script: str, *arguments: str) -> Any:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT + script, str(TESTS), str(ROOT), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


MASTER = """
    pool = ConnectionPool(5, connect=Conn)
    workers = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            gevent.sleep(0.2)
            os._exit(0)
        workers.append(pid)
    gevent.sleep(0.3)  # the master's own hub runs, too
    for pid in workers:
        os.waitpid(pid, 0)
    found = [dialed(), pool.stats().opened]
    with pool.get(timeout=5):
        gevent.sleep(0.1)
    print(json.dumps([*found, pool.stats().opened]))
"""


def test_a_master_that_forks_before_its_hub_has_run_opens_nothing_before_it_uses_its_pool() -> None:
    assert run(MASTER) == [10, 0, 5]


def test_a_program_that_forks_nothing_has_its_pool_filled() -> None:
    script = """
    pool = ConnectionPool(5, connect=Conn)
    gevent.sleep(0.1)
    print(json.dumps(pool.stats().opened))
"""
    assert run(script) == 5


def test_a_master_that_fills_its_pool_by_hand_has_it_filled() -> None:
    script = """
    pool = ConnectionPool(5, connect=Conn)
    if not os.fork():
        os._exit(0)
    pool.fill(timeout=5)
    print(json.dumps(pool.stats().opened))
"""
    assert run(script) == 5


WORKER = """
    class Pool(ConnectionPool):
        def _keepalive(self, conn):
            pass

    settings = {"plain": {}, "checked": {"check_after": 60}, "local": {"greenlet_local": True}}
    pool = Pool(3, connect=Conn, **settings[sys.argv[4]])
    pool.fill()
    gevent.sleep(0)
    held = pool.acquire()
    answer, report = os.pipe()
    pid = fork(sys.argv[3])
    if not pid:
        if sys.argv[5] == "later":
            gevent.sleep(0.001)  # its hub waits for something before it is asked for a connection
        with pool.get(timeout=5) as conn:
            mine = conn.pid == os.getpid()
        pool.fill(timeout=5)
        pool.release(held)  # the parent's
        os.write(report, json.dumps([mine, pool.stats().dialed, pool.stats().idle]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    pool.release(held)
    print(json.dumps([json.loads(os.read(answer, 100)), pool.stats().dialed, pool.stats().idle]))
"""


@pytest.mark.parametrize("use", ["at once", "later"])
@pytest.mark.parametrize("kind", ["plain", "checked", "local"])
@pytest.mark.parametrize("fork", ["seen", "unseen"])
def test_a_child_opens_its_own_connections_whoever_forks(fork: str, kind: str, use: str) -> None:
    assert run(WORKER, fork, kind, use) == [[True, 3, 3], 3, 3]


IN_A_WITH = """
    pool = ConnectionPool(1, connect=Conn, greenlet_local=sys.argv[4] == "local")
    pool.fill()
    gevent.sleep(0)
    answer, report = os.pipe()

    def whose():
        with pool.get(timeout=5) as conn:
            return conn.pid == os.getpid()

    with pool.get():
        waits = gevent.spawn(whose)
        gevent.sleep(0)  # it is in line now
        parent = os.getpid()
        pid = fork(sys.argv[3])
        if not pid and sys.argv[4] == "local":
            os.write(report, json.dumps(whose()).encode())
            os._exit(0)
    if os.getpid() != parent:  # it has given back what is the parent's
        os.write(report, json.dumps(waits.get()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    print(json.dumps([json.loads(os.read(answer, 100)), waits.get(), pool.stats().dialed]))
"""


@pytest.mark.parametrize("kind", ["plain", "local"])
@pytest.mark.parametrize("fork", ["seen", "unseen"])
def test_what_a_child_gives_back_that_is_its_parents_no_caller_in_it_gets(
    fork: str, kind: str
) -> None:
    assert run(IN_A_WITH, fork, kind) == [True, True, 1]


TROUBLED = """
    from geventpool._util.forks import in_child

    def fail(forked):
        raise RuntimeError("a thread's hub is gone")

    pool = ConnectionPool(1, connect=Conn)
    pool.fill()
    in_child(fail)
    sys.excepthook = lambda kind, *rest: os.write(note, kind.__name__.encode())
    pid = fork(sys.argv[3])
    if not pid:
        with pool.get(timeout=5) as conn:
            os.write(note, b" own" if conn.pid == os.getpid() else b" the parent's")
        os._exit(0)
    os.waitpid(pid, 0)
    print(json.dumps(os.read(dials, 100).decode().replace(".", "")))
"""


@pytest.mark.parametrize("fork", ["seen", "unseen"])
def test_what_goes_wrong_in_a_child_is_told_of_and_is_no_callers_error_whoever_forks(
    fork: str,
) -> None:
    assert run(TROUBLED, fork) == "RuntimeError own"


RETURNS = """
    class Pool(ConnectionPool):
        def _reset_connection(self, conn):
            if os.getpid() != conn.pid:
                os.write(note, b"!")  # a round trip, on the parent's socket

    def release():
        pool.release(held)

    def release_in_an_except():
        try:
            raise ValueError
        except ValueError:
            pool.release(held)

    pool = Pool(2, connect=Conn)
    pool.fill()
    lease = pool.get()
    lease.__enter__()
    held = pool.acquire()
    pid = fork(sys.argv[3])
    if not pid:
        lease.__exit__(None, None, None)
        locals()[sys.argv[4]]()
        with pool.get(timeout=5) as conn:
            os.write(note, b"own" if conn.pid == os.getpid() else b"the parent's")
        os._exit(0)
    os.waitpid(pid, 0)
    pool.release(held)
    lease.__exit__(None, None, None)
    print(json.dumps([os.read(dials, 100).decode().replace(".", ""), pool.stats().idle]))
"""


@pytest.mark.parametrize("how", ["release", "release_in_an_except"])
@pytest.mark.parametrize("fork", ["seen", "unseen"])
def test_no_connection_of_the_parents_is_reset_as_a_child_gives_it_back_whoever_forks(
    fork: str, how: str
) -> None:
    assert run(RETURNS, fork, how) == ["own", 2]


DIALING = """
    from gevent.event import Event
    class Pool(ConnectionPool):
        def _new_connection(self):
            steps = [os.getpid()]
            for _ in range(3):
                gevent.sleep(0.02)
                steps.append(os.getpid())
            if len(set(steps)) > 1:
                os.write(note, b"!")  # the copy of the parent's dial has gone on
            return Conn()

    pool = Pool(2)
    gevent.sleep(0.03)
    pid = fork(sys.argv[3])
    if not pid:
        pool.fill(timeout=5)
        os._exit(0)
    os.waitpid(pid, 0)
    pool.fill(timeout=5)
    print(json.dumps(os.read(dials, 100).decode()))
"""


@pytest.mark.parametrize("fork", ["seen", "unseen"])
def test_no_copy_of_a_dial_goes_on_in_a_child_whoever_forks(fork: str) -> None:
    assert run(DIALING, fork) == "...."
