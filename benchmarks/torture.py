"""Does a pool still have all its connections after its callers were cancelled at random?

Each pool is tortured in a process of its own: some never come back from it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import os
import random
import subprocess
import sys
from collections.abc import Callable

import gevent

from benchmarks.peers import PEERS, Connection, Peer
from benchmarks.rows import hold_at_once

__all__ = ["capacity_left"]


def capacity_left(name: str) -> str:
    """How many of 4 connections of the pool called *name* are left; "hangs" if that cannot be
    told."""
    command = [sys.executable, "-m", "benchmarks.torture", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "hangs"
    return done.stdout.strip()


def torture(make: Callable[..., Peer], callers: int = 40, rounds: int = 60) -> int:
    """Have *callers* given up by Timeout and killed at random, *rounds* times each, while opening
    a connection takes a turn of the hub; return how many of 4 can still be borrowed at once."""
    dice = random.Random(1)

    def connect() -> Connection:
        gevent.sleep(0)
        return Connection()

    def request() -> None:
        with gevent.Timeout(dice.uniform(0.0, 0.01), False), peer.lease():
            gevent.sleep(dice.uniform(0.0, 0.001))

    def call() -> None:
        for _ in range(rounds):
            greenlet = gevent.spawn(request)
            greenlet.join(dice.uniform(0.0, 0.01))
            greenlet.kill(timeout=1.0)

    peer = make(4, connect)
    gevent.joinall([gevent.spawn(call) for _ in range(callers)])
    return hold_at_once(peer, 4)


if __name__ == "__main__":
    print(torture(PEERS[sys.argv[1]]), flush=True)
    os._exit(0)  # without waiting for threads that wait for a lock for ever
