"""A load that is too much for a pool for a while, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from benchmarks.overload.pools import SIZE, Make, Server
from benchmarks.query_server import QUERY, VirtualServer, query_server
from benchmarks.traffic import Record, Traffic
from benchmarks.virtual_time import virtual_time

__all__ = ["CAPACITY", "NORMAL", "Outcome", "Scenario", "in_virtual_time", "on_real_sockets"]

CAPACITY = SIZE / QUERY  # answers per second
NORMAL = 0.8  # times the capacity


@dataclass(frozen=True)
class Scenario:
    """*load* times the capacity is asked for *seconds*, from a server *slowness* times slower than
    before and after; requests come *burst* at a time."""

    load: float
    seconds: float
    dial: float = 0.1
    retries: int = 0
    slowness: float = 1.0
    even: bool = False
    burst: int = 1
    before: float = 1.0
    after: float = 5.0

    def __str__(self) -> str:
        if self.slowness != 1:
            return f"server {self.slowness:g} × slower"
        bursts = f", bursts of {self.burst}" if self.burst > 1 else ""
        return f"{self.load:g} × load{bursts}" + (", even" if self.even else "")


@dataclass
class Outcome:
    """What became of a Scenario: the moments of its parts are those of the *record*."""

    scenario: Scenario
    record: Record
    start: float
    overload: tuple[float, float]
    after: tuple[float, float]
    dials: int

    @property
    def goodput(self) -> float:
        """The answers under overload, as a share of those that the server can give."""
        return self.record.goodput(*self.overload, CAPACITY / self.scenario.slowness)

    @property
    def answered_after(self) -> float:
        """The share of requests that are answered from 2 s after the overload on."""
        begin, end = self.after
        return self.record.answered(begin + 2.0, end)

    @property
    def normal_after(self) -> float:
        """Seconds from the end of the overload until all is well; infinite for never."""
        return self.record.normal_after(*self.after)

    @property
    def redials(self) -> float:
        """Connections that had to be opened anew, for 1,000 requests."""
        return 1000 * (self.dials - SIZE) / self.record.attempts

    @property
    def refused(self) -> float:
        """The share of requests that were not answered under "overload"."""
        return 1 - self.record.answered(*self.overload)


def play(
    make: Make, server: Server, scenario: Scenario, clock: Callable[[], float] = monotonic
) -> Outcome:
    """Have *scenario* happen to a pool of *server*."""
    lender = make(server)
    traffic = Traffic(lender, clock, scenario.retries)
    start, _ = traffic.offer(NORMAL * CAPACITY, scenario.before)
    server.slow(scenario.slowness)
    overload = traffic.offer(scenario.load * CAPACITY, scenario.seconds, scenario.burst)
    server.slow(1.0)
    after = traffic.offer(NORMAL * CAPACITY, scenario.after)
    record = traffic.finish()
    lender.close()
    return Outcome(scenario, record, start, overload, after, server.dials)


def in_virtual_time(make: Make, scenario: Scenario) -> Outcome:
    """The whole pool on a clock that jumps."""
    with virtual_time() as loop:
        server = VirtualServer(scenario.dial, even=scenario.even)
        return play(make, server, scenario, loop.now)


def on_real_sockets(make: Make, scenario: Scenario) -> Outcome:
    """In this process, the server being another one on this machine."""
    with query_server(scenario.dial) as server:
        return play(make, server, scenario)
