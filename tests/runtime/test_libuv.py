"""gevent's other event loop, libuv: it writes to the memory of any watcher that was not closed.

Here such a watcher says so.  The gate runs the whole suite on libuv, too.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """if True:
    import gc
    import gevent
    import gevent.socket
    from geventpool import Backoff, ConnectionPool, PoolTimeout

    class Pool(ConnectionPool):
        def _new_connection(self):
            dials.append(1)
            if len(dials) in (4, 5):
                raise OSError("not now")
            ours, theirs = gevent.socket.socketpair()
            others.append(theirs)
            return ours

        def _keepalive(self, conn):
            gevent.sleep(0.3)

    def caller(timeout):
        try:
            with pool.get(timeout):
                gevent.sleep(0.005)
        except PoolTimeout:
            late.append(timeout)

    dials, others, late = [], [], []
    pool = Pool(2, keepalive=0.05, max_lifetime=60, backoff=Backoff(first=0.002, jitter=0))
    pool.fill()
    held = [pool.acquire(), pool.acquire()]
    # The deadline of each comes before that of the one before it, the last in less than 1 ms.
    timeouts = [0.02 / 2**n for n in range(6)]
    gevent.joinall([gevent.spawn(caller, timeout) for timeout in timeouts], raise_error=True)
    assert sorted(late) == sorted(timeouts), late
    for conn in held:
        pool.discard(conn)
    pool.fill()
    assert len(dials) == 6, dials

    with pool.get():  # of the other one the keepalive takes long, while a caller waits
        while not pool.stats().checking:
            gevent.sleep(0.002)
        caller(2)
    assert len(late) == 6, late
    pool.close()
    for sock in others:
        sock.close()
    gevent.sleep(0.01)
    del pool, conn, held, sock
    others.clear()
    gc.collect()
    print("done")
"""


@pytest.mark.slow
def test_a_pool_closes_every_watcher_that_it_made() -> None:
    pytest.importorskip("_cffi_backend", reason="gevent's libuv loop needs cffi")
    environment = {**os.environ, "GEVENT_LOOP": "libuv", "GEVENT_DEBUG": "debug"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )

    assert (done.stdout, done.stderr) == ("done\n", "")
