"""A load that is too much for a pool for a while, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import gevent

from benchmarks.overload.pools import SIZE, Make, Server
from benchmarks.query_server import QUERY, Session, VirtualServer, query_server
from benchmarks.traffic import Record, Traffic
from benchmarks.virtual_time import virtual_time

__all__ = [
    "CAPACITY",
    "NORMAL",
    "Outcome",
    "Scenario",
    "in_virtual_time",
    "on_real_sockets",
    "real_capacity",
]

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
    capacity: float
    dials: int

    @property
    def goodput(self) -> float:
        """The answers under overload, as a share of those that the server can give."""
        return self.record.goodput(*self.overload, self.capacity / self.scenario.slowness)

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
    make: Make,
    server: Server,
    scenario: Scenario,
    clock: Callable[[], float] = monotonic,
    capacity: float = CAPACITY,
) -> Outcome:
    """Have *scenario* happen to a pool of *server*, which can give *capacity* answers a second."""
    lender = make(server)
    traffic = Traffic(lender, clock, scenario.retries)
    start, _ = traffic.offer(NORMAL * capacity, scenario.before)
    server.slow(scenario.slowness)
    overload = traffic.offer(scenario.load * capacity, scenario.seconds, scenario.burst)
    server.slow(1.0)
    after = traffic.offer(NORMAL * capacity, scenario.after)
    record = traffic.finish()
    lender.close()
    return Outcome(scenario, record, start, overload, after, capacity, server.dials)


def in_virtual_time(make: Make, scenario: Scenario) -> Outcome:
    """The whole pool on a clock that jumps."""
    with virtual_time() as loop:
        server = VirtualServer(scenario.dial, even=scenario.even)
        return play(make, server, scenario, loop.now)


def on_real_sockets(make: Make, scenario: Scenario, capacity: float = CAPACITY) -> Outcome:
    """In this process, the server being another one on this machine."""
    with query_server(scenario.dial) as server:
        return play(make, server, scenario, capacity=capacity)


def real_capacity(seconds: float) -> float:
    """The answers per second that SIZE sessions get of such a server without a pool: it takes some
    time to ask, too."""

    def ask_on(session: Session) -> None:
        while monotonic() < ends:
            session.query()
            answers.append(monotonic())

    answers: list[float] = []
    with query_server(0.0) as server:
        sessions = [server.connect() for _ in range(SIZE)]
        ends = monotonic() + seconds
        gevent.joinall([gevent.spawn(ask_on, each) for each in sessions], raise_error=True)
        for session in sessions:
            session.close()
    return sum(at < ends for at in answers) / seconds
