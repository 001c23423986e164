"""What a pool costs: the rows of a table in docs/benchmarks.md, each with the bar not to miss.

There are two bars, that of the build that runs: all Python, or with its hot path compiled.  A row
is a function that takes *quick* (a shorter run, for a first look) and returns its Rows.
"""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import gevent
import greenlet
from gevent import socket
from gevent.event import Event

import geventpool
from benchmarks.measure import Row, interleaved, median, timed
from benchmarks.peers import (
    Connection,
    Peer,
    make_geventpool,
    make_gsocketpool,
    make_hand_over,
    make_lifo_queue,
    make_urllib3,
)
from benchmarks.server import echo_server
from geventpool import ConnectionPool

__all__ = ["ROWS", "crowd", "fill_seconds", "hold_at_once", "slot_bytes", "spike"]


def _bar(pure: float, compiled: float) -> float:
    return compiled if getattr(geventpool, "COMPILED", False) else pure  # an older one has it not


# Borrow and give back, and no other caller wants any


def uncontended(quick: bool) -> list[Row]:
    """``with pool.get()`` against gsocketpool's ``connection()``, urllib3's pool and a LifoQueue's
    put and get, and against itself at 10,000."""
    operations, rounds = 2000, 50 if quick else 300
    few = make_geventpool(10, Connection)
    many = make_geventpool(1000 if quick else 10_000, Connection)
    peer, queue = make_gsocketpool(10, Connection), make_lifo_queue(10, Connection)
    urllib3 = make_urllib3(10, Connection)
    times = interleaved(
        rounds,
        ours=lambda: timed(lambda: few.cycle(operations)),
        many=lambda: timed(lambda: many.cycle(operations)),
        peer=lambda: timed(lambda: peer.cycle(operations)),
        queue=lambda: timed(lambda: queue.cycle(operations)),
        urllib3=lambda: timed(lambda: urllib3.cycle(operations)),
    )
    # The best round: whatever else the machine does can only slow a round down.
    best = {name: min(each) / operations * 1e9 for name, each in times.items()}
    ours, large, theirs = best["ours"], best["many"], best["peer"]
    for each in (few, many):
        each.close()
    return [
        Row(
            "uncontended `with`, ns (best) | gsocketpool",
            f"{ours:.0f}",
            f"{theirs:.0f}",
            ours / theirs,
            _bar(0.65, 0.25),
        ),
        Row(
            "the same | put and get of a LifoQueue",
            f"{ours:.0f}",
            f"{best['queue']:.0f}",
            ours / best["queue"],
            _bar(10.0, 2.2),
        ),
        Row(
            "the same | urllib3's pool",
            f"{ours:.0f}",
            f"{best['urllib3']:.0f}",
            ours / best["urllib3"],
            _bar(4.0, 1.0),
        ),
        Row(
            "uncontended with 10,000 connections, ns (best) | with 10",
            f"{large:.0f}",
            f"{ours:.0f}",
            large / ours,
            1.4,
        ),
    ]


# A crowd


def crowd(
    peer: Peer, callers: int, operations: int, clock: Callable[[], float] = perf_counter
) -> tuple[float, list[int]]:
    """Seconds per operation of *callers* who want a connection again and again, and hold it for
    one turn of the hub; and how often each was served.

    The clock runs while all of them stand in line: a greenlet is dear to start and to end.
    """
    times: list[float] = []

    def tickets() -> Iterator[int]:
        yield from range(callers)
        times.append(clock())
        yield from range(operations)
        times.append(clock())

    queue = tickets()
    greenlets = [gevent.spawn(peer.serve, queue, _yield) for _ in range(callers)]
    gevent.joinall(greenlets, raise_error=True)
    return (times[1] - times[0]) / operations, [each.value for each in greenlets]


def _yield() -> None:
    gevent.sleep(0)


def contended(quick: bool) -> list[Row]:
    """100 greenlets on 10 connections, against a hand-over along a line of greenlets and nothing
    else: in a ``with`` like ours, and for comparison by two bare calls."""
    operations, rounds = 10_000, 5 if quick else 25
    ours, least = make_geventpool(10, Connection), make_hand_over(10, Connection)
    bare = make_hand_over(10, Connection, bare=True)
    served: list[int] = []

    def serve() -> float:
        seconds, served[:] = crowd(ours, 100, operations)
        return seconds

    times = interleaved(
        rounds,
        ours=serve,
        least=lambda: crowd(least, 100, operations)[0],
        bare=lambda: crowd(bare, 100, operations)[0],
    )
    ours.close()
    mine, other, calls = (median(times[name]) * 1e9 for name in ("ours", "least", "bare"))
    return [
        Row(
            "100 greenlets on 10, ns (median) | hand-over in a `with`",
            f"{mine:.0f}",
            f"{other:.0f}",
            mine / other,
            1.6,
        ),
        Row(
            "the same | two bare calls",
            f"{mine:.0f}",
            f"{calls:.0f}",
            mine / calls,
            _bar(3.5, 1.3),
        ),
        Row(
            "most served | least served, of these 100",
            str(max(served)),
            str(min(served)),
            max(served) / max(1, min(served)),
            1.05,
        ),
    ]


def waiters(quick: bool) -> list[Row]:
    """What an operation costs with 10,000 in line, against 100.

    Ten thousand greenlets are more than a cache holds, whatever wakes them: what that costs is what
    a hand-over and nothing else comes to.
    """
    rounds, operations = 3 if quick else 9, 30_000
    pool, least = make_geventpool(10, Connection), make_hand_over(10, Connection)
    times = interleaved(
        rounds,
        few=lambda: crowd(pool, 100, operations)[0],
        many=lambda: crowd(pool, 10_000, operations)[0],
        least_few=lambda: crowd(least, 100, operations)[0],
        least_many=lambda: crowd(least, 10_000, operations)[0],
    )
    pool.close()
    few, many = median(times["few"]) * 1e9, median(times["many"]) * 1e9
    bare = median(times["least_many"]) / median(times["least_few"])
    return [
        Row(
            f"10,000 waiters, ns (median) | 100 waiters (hand-over and nothing else: {bare:.2f})",
            f"{many:.0f}",
            f"{few:.0f}",
            many / few,
            _bar(1.3, math.inf),  # the less is done besides, the more the caches tell
        ),
        Row(
            "10,000 waiters, ns (median) | hand-over in a `with` with 10,000",
            f"{many:.0f}",
            f"{median(times['least_many']) * 1e9:.0f}",
            many / (median(times["least_many"]) * 1e9),
            _bar(2.5, 1.1),
        ),
    ]


# Real sockets


def _dial(address: tuple[str, int]) -> Any:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.connect(address)
    return sock


def _echo(sock: Any, message: bytes = b"x" * 100) -> None:
    sock.sendall(message)
    missing = len(message)
    while missing:
        missing -= len(sock.recv(missing))


def echo(quick: bool) -> list[Row]:
    """100 greenlets that share 10 sockets, against 10 that have a socket each.

    A caller that shares has to stand in line, which the others need not: what that costs at the
    least is what a hand-over and nothing else comes to.
    """
    requests, rounds = 10_000, 3 if quick else 15
    ratios: list[float] = []

    with echo_server() as address, ExitStack() as stack:
        sockets = [_dial(address) for _ in range(10)]
        for sock in sockets:
            stack.callback(sock.close)
        pool = stack.enter_context(ConnectionPool(10, connect=lambda: _dial(address)))
        pool.fill()
        least = make_hand_over(10, lambda: _dial(address))

        def alone(sock: Any) -> None:
            for _ in range(requests // 10):
                _echo(sock)

        def shared(get: Callable[[], Any], waits: list[float]) -> None:
            for _ in range(requests // 100):
                came = perf_counter()
                with get() as sock:
                    waits.append(perf_counter() - came)
                    _echo(sock)

        def crowd_on(get: Callable[[], Any], waits: list[float]) -> float:
            greenlets = [gevent.spawn(shared, get, waits) for _ in range(100)]
            return timed(lambda: gevent.joinall(greenlets, raise_error=True))

        def pooled() -> float:
            waits: list[float] = []
            seconds = crowd_on(pool.get, waits)
            ratios.append(max(waits) / median(waits))
            return seconds

        def dedicated() -> float:
            return timed(lambda: gevent.joinall([gevent.spawn(alone, sock) for sock in sockets]))

        times = interleaved(
            rounds,
            pooled=pooled,
            least=lambda: crowd_on(least.lease, []),
            dedicated=dedicated,
        )
        while least.pool.idle:
            least.pool.idle.pop().close()

    mine, bare, each = (requests / median(times[name]) for name in ("pooled", "least", "dedicated"))
    return [
        Row(
            "echo, 100 greenlets on 10 sockets, per s | a socket each for 10"
            f" (hand-over and nothing else: {bare / each:.2f})",
            f"{mine:.0f}",
            f"{each:.0f}",
            mine / each,
            0.9,
            at_least=True,
        ),
        Row(
            "the same | a hand-over and nothing else",
            f"{mine:.0f}",
            f"{bare:.0f}",
            mine / bare,
            _bar(0.7, 0.95),
            at_least=True,
        ),
        Row(
            "slowest wait | median wait, of these 100 (median of the rounds)",
            f"{median(ratios):.2f}",
            "1",
            median(ratios),
            5,
        ),
    ]


def fill_seconds(address: tuple[str, int], size: int) -> float:
    """Seconds until a pool of *size* has opened all its connections."""
    pool = ConnectionPool(size, connect=lambda: _dial(address))
    seconds = timed(pool.fill)
    pool.close()
    return seconds


def fill(quick: bool) -> list[Row]:
    """Filling a pool with 1,000 connections, against a loop that spawns a greenlet for each."""
    size, rounds = 100 if quick else 1000, 3 if quick else 9

    with echo_server() as address:

        def bare() -> float:
            greenlets: list[Any] = []
            greenlets.extend(gevent.spawn(_dial, address) for _ in range(size))
            seconds = timed(lambda: gevent.joinall(greenlets, raise_error=True))
            for each in greenlets:
                each.value.close()
            return seconds

        times = interleaved(rounds, pooled=lambda: fill_seconds(address, size), bare=bare)

    mine, least = median(times["pooled"]) * 1e3, median(times["bare"]) * 1e3
    return [
        Row(
            f"fill of {size} connections, ms (median) | bare greenlets",
            f"{mine:.1f}",
            f"{least:.1f}",
            mine / least,
            1.5,
        )
    ]


# A spike


def spike(make: Callable[..., Peer]) -> tuple[float, int]:
    """Milliseconds until 50 callers who come at once are served, by 5 warm connections of at most
    50; and how many connections more were opened for it.  Connect 150 ms, query 2 ms."""
    opened = 0

    def connect() -> Connection:
        nonlocal opened
        opened += 1
        gevent.sleep(0.15)
        return Connection()

    def query() -> None:
        with peer.lease():
            gevent.sleep(0.002)

    peer = make(50, connect, warm=5)
    hold_at_once(peer, 5)
    warm = opened
    greenlets = [gevent.spawn(query) for _ in range(50)]
    milliseconds = timed(lambda: gevent.joinall(greenlets, raise_error=True)) * 1e3
    gevent.sleep(0.5)  # for those that are still being opened
    extra = opened - warm
    peer.close()
    return milliseconds, extra


def hold_at_once(peer: Peer, count: int) -> int:
    """Have *count* greenlets hold a connection at the same time; how many of them got one."""
    holding = 0
    everybody = Event()

    def hold() -> None:
        nonlocal holding
        with peer.lease():
            holding += 1
            if holding == count:
                everybody.set()
            everybody.wait()

    greenlets = [gevent.spawn(hold) for _ in range(count)]
    everybody.wait(2.0)
    everybody.set()
    gevent.joinall(greenlets, timeout=1.0)
    gevent.killall(greenlets, timeout=1.0)  # those for whom there was none
    return holding


def spikes(quick: bool) -> list[Row]:
    """50 callers at once on 5 warm connections."""
    runs = [spike(make_geventpool) for _ in range(3 if quick else 7)]
    milliseconds, extra = median(run[0] for run in runs), max(run[1] for run in runs)
    return [
        Row("spike, ms (median) | 35", f"{milliseconds:.1f}", "35", milliseconds / 35, 1.0),
        Row("spike, extra connections (most) | 2", str(extra), "2", extra / 2, 1.0),
    ]


# What an idle pool costs


def slot_bytes(address: tuple[str, int], size: int) -> float:
    """Bytes of Python memory that an idle slot takes beyond those of its socket."""
    sockets: list[Any] = []
    bare = _traced(lambda: sockets.extend(_dial(address) for _ in range(size)))
    for sock in sockets:
        sock.close()
    _idle_pool(address, 1).close()  # what is made once per hub
    pools: list[ConnectionPool[Any]] = []
    pooled = _traced(lambda: pools.append(_idle_pool(address, size)))
    pools.pop().close()
    return (pooled - bare) / size


def _idle_pool(address: tuple[str, int], size: int) -> ConnectionPool[Any]:
    """A filled pool with all that an idle connection may be told."""
    pool = _Pinged(
        size,
        keepalive=1000.0,
        min_size=size,
        idle_timeout=1000.0,
        max_lifetime=1000.0,
        connect=lambda: _dial(address),
    )
    pool.fill()
    gevent.sleep(0.05)  # the dialers end
    return pool


def memory(quick: bool) -> list[Row]:
    """Python memory of an idle slot beyond that of its socket, and greenlets of an idle pool."""
    size = 100 if quick else 1000
    idle: list[int] = []

    with echo_server() as address:
        beyond = slot_bytes(address, size)
        with _idle_pool(address, 1):  # what is made once per hub
            for each in (10, size):
                before = _greenlets()
                with _idle_pool(address, each):
                    idle.append(_greenlets() - before)

    return [
        Row(
            "memory of an idle slot beyond its socket, bytes | 1024",
            f"{beyond:.0f}",
            "1024",
            beyond / 1024,
            1.0,
        ),
        Row(
            f"greenlets of an idle pool of {size} (of 10: {idle[0]}) | 2",
            str(idle[1]),
            "2",
            max(idle) / 2,
            1.0,
        ),
    ]


class _Pinged(ConnectionPool[Any]):
    def _keepalive(self, conn: Any) -> None:
        _echo(conn)


def _traced(work: Callable[[], object]) -> int:
    """Bytes that Python has allocated more after *work*."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def _greenlets() -> int:
    gc.collect()
    return sum(isinstance(each, greenlet.greenlet) and bool(each) for each in gc.get_objects())


ROWS: dict[str, Callable[[bool], list[Row]]] = {
    "uncontended": uncontended,
    "contended": contended,
    "waiters": waiters,
    "echo": echo,
    "fill": fill,
    "spike": spikes,
    "memory": memory,
}
