"""One figure of one checkout, in a process of its own: what side_by_side.py runs again and again.

``python benchmarks/probe.py CHECKOUT PROBE`` prints the best of a few short rounds; where a probe
waits for nothing it is CPU time, as what else the machine does counts less in that.  geventpool is
that of CHECKOUT, all else that of the checkout in which this file is, so that an older one can be
measured that knows nothing of it.  Hence a probe uses public names of geventpool only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    sys.path[0] = sys.argv[1]
    import geventpool

    assert Path(geventpool.__file__).is_relative_to(sys.argv[1]), geventpool.__file__
    sys.path[0] = str(ROOT)

from benchmarks.measure import timed  # noqa: E402
from benchmarks.peers import Connection, make_geventpool  # noqa: E402
from benchmarks.rows import crowd, fill_seconds, slot_bytes  # noqa: E402
from benchmarks.server import echo_server  # noqa: E402

__all__ = ["PROBES"]


def uncontended() -> float:
    """Nanoseconds of ``with pool.get()`` that no other caller wants."""
    pool = make_geventpool(10, Connection)
    pool.cycle(2000)
    return min(timed(lambda: pool.cycle(2000), process_time) for _ in range(100)) / 2000 * 1e9


def contended() -> float:
    """Nanoseconds of one of 100 greenlets on 10 connections, held for a turn of the hub."""
    pool = make_geventpool(10, Connection)
    return min(crowd(pool, 100, 2000, process_time)[0] for _ in range(30)) * 1e9


def waiters() -> float:
    """The same for one of 10,000 greenlets."""
    pool = make_geventpool(10, Connection)
    return min(crowd(pool, 10_000, 20_000, process_time)[0] for _ in range(3)) * 1e9


def fill() -> float:
    """Milliseconds until a pool has opened 1,000 connections."""
    with echo_server() as address:
        return min(fill_seconds(address, 1000) for _ in range(10)) * 1e3


def memory() -> float:
    """Bytes that an idle slot takes beyond its socket."""
    with echo_server() as address:
        return slot_bytes(address, 1000)


#: By name: what it measures, and in which unit.
PROBES: dict[str, tuple[Callable[[], float], str]] = {
    "uncontended": (uncontended, "ns"),
    "contended": (contended, "ns"),
    "waiters": (waiters, "ns"),
    "fill": (fill, "ms"),
    "memory": (memory, "bytes"),
}

if __name__ == "__main__":
    print(PROBES[sys.argv[2]][0]())
