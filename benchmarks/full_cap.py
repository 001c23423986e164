"""What it costs to be served where one cap over many endpoints is full: row ``full_cap``.

Half as many connections are allowed as there are endpoints, and every endpoint is wanted.  So
hardly any can be lent again: a connection of one endpoint is closed for one of another to be
opened.  The pool has to know whose turn it is without looking at everybody each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter, process_time
from typing import NamedTuple

import gevent

from benchmarks.measure import Row, interleaved
from benchmarks.peers import Connection
from geventpool import EndpointPool

__all__ = ["full_cap"]


class Served(NamedTuple):
    """What *callers* have cost, each acquire of theirs."""

    cpu: float
    seconds: float


def serve(endpoints: int, dial: float, operations: int) -> Served:
    """As many callers as *endpoints*, each of which wants one after the other; a dial takes *dial*
    seconds.  The clocks run while there are connections to the full cap, and all callers about.
    """

    def connect(endpoint: int) -> Connection:
        if dial:
            gevent.sleep(dial)
        return Connection()

    def call(first: int) -> None:
        endpoint = first
        for _ in tickets:
            with pool.get(endpoint):
                gevent.sleep(0)
            endpoint = (endpoint + 7) % endpoints

    def hand_out() -> Iterator[None]:
        yield from [None] * endpoints  # one for each: the cap fills, and the line
        clocks.append((process_time(), perf_counter()))
        yield from [None] * operations
        clocks.append((process_time(), perf_counter()))

    clocks: list[tuple[float, float]] = []
    tickets = hand_out()
    with EndpointPool(
        max_size=10, total_max_size=endpoints // 2, min_idle=0, timeout=None, connect=connect
    ) as pool:
        callers = [gevent.spawn(call, number) for number in range(endpoints)]
        gevent.joinall(callers, raise_error=True)
    (cpu, began), (cpu_then, ended) = clocks
    return Served((cpu_then - cpu) / operations, (ended - began) / operations)


def full_cap(quick: bool) -> list[Row]:
    """1,000 endpoints against 50, with dials of no length and of 10 ms; and how many a second."""
    many, operations, rounds = (200, 1000, 2) if quick else (1000, 4000, 5)
    rows = []
    for dial in (0.0, 0.01):
        seconds: list[float] = []

        def crowded(dial: float = dial, seconds: list[float] = seconds) -> float:
            served = serve(many, dial, operations)
            seconds.append(served.seconds)
            return served.cpu

        times = interleaved(
            rounds,
            many=crowded,
            few=lambda dial=dial: serve(50, dial, operations).cpu,
        )
        large, small = min(times["many"]) * 1e6, min(times["few"]) * 1e6
        rows.append(
            Row(
                f"full cap, {many:,} endpoints, dials of {dial * 1e3:.0f} ms,"
                " µs of CPU (best) | 50",
                f"{large:.0f}",
                f"{small:.0f}",
                large / small,
                1.5,
            )
        )
        if not dial:
            a_second = 1 / min(seconds)
            rows.append(
                Row(
                    f"full cap, {many:,} callers, served a second (best) | 2000",
                    f"{a_second:.0f}",
                    "2000",
                    a_second / 2000,
                    1.0,
                    at_least=True,
                )
            )
    return rows
