"""What a server sees that comes back to 200 pools, which all want their connections again.

Each pool has 5 connections and 10 callers.  Each caller asks for an answer, which takes the server
0.5 s on average, and pauses for 0.25 to 0.75 s, whether it got one or not; and so on.  The server
goes away for 5 s: it cuts all connections, and refuses new ones.  Every dial is counted.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.queue import Queue

from benchmarks.fleet import fleet
from benchmarks.peers import version
from geventpool.pools import ConnectionPool

__all__ = ["HEADINGS", "compare"]

HEADINGS = (
    "pool",
    "dials while away",
    "in the worst second",
    "dials at its return",
    "in the worst 100 ms",
    "all pools served after, s",
)

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "herd.png"

SIZE = 5
CALLERS = 10
NEEDS = 0.5  # seconds that the server takes for an answer
PAUSE = (0.25, 0.75)
AFTERMATH = 3.0  # seconds for which dials are counted after the return
BIN = 0.1  # seconds of a bar of the picture

Connect = Callable[[], Any]
Lend = Callable[[], AbstractContextManager[Any]]
#: Makes a pool of so many connections, and returns how to borrow one and how to close the pool.
Make = Callable[[int, Connect], tuple[Lend, Callable[[], object]]]


class SocketQueue:
    """What is written by hand where there is no pool: a queue of sockets, opened when needed."""

    def __init__(self, size: int, connect: Connect) -> None:
        self.connect = connect
        self.sockets: Queue[Any] = Queue()
        for _ in range(size):
            self.sockets.put(None)

    @contextlib.contextmanager
    def get(self) -> Iterator[Any]:
        sock = self.sockets.get()
        try:
            if sock is None:
                sock = self.connect()
            yield sock
        except OSError:
            if sock is not None:
                sock.close()
            sock = None  # the next one who gets it connects
            raise
        finally:
            self.sockets.put(sock)

    def close(self) -> None:
        while not self.sockets.empty():
            if (sock := self.sockets.get()) is not None:
                sock.close()


def _make_geventpool(size: int, connect: Connect) -> tuple[Lend, Callable[[], object]]:
    pool = ConnectionPool(size, connect=connect)
    return pool.get, pool.close


def _make_queue(size: int, connect: Connect) -> tuple[Lend, Callable[[], object]]:
    pool = SocketQueue(size, connect)
    return pool.get, pool.close


def _make_generic(size: int, connect: Connect) -> tuple[Lend, Callable[[], object]]:
    import generic_connection_pool.threading as generic
    from generic_connection_pool.contrib.socket import TcpSocketConnectionManager

    class Manager(TcpSocketConnectionManager):
        def create(self, endpoint: Any, timeout: float | None = None) -> Any:
            return connect()

    pool: Any = generic.ConnectionPool(Manager(), min_idle=size, max_size=size, total_max_size=size)
    return lambda: pool.connection("server"), pool.close


_BY_HAND = "queue of sockets, by hand"

CONTENDERS: dict[str, Make] = {
    "geventpool": _make_geventpool,
    "generic-connection-pool": _make_generic,
    _BY_HAND: _make_queue,
}


@dataclass
class Outage:
    """What happened to the pools of one contender, in seconds since the server's return."""

    away: float
    dials: list[float] = field(default_factory=list)
    """When each dial began, 0.0 being the return."""

    served: list[float] = field(default_factory=list)
    """When each pool had its first answer since the return."""

    def before(self) -> list[float]:
        """The dials while the server was away."""
        return [at for at in self.dials if -self.away <= at < 0.0]

    def after(self) -> list[float]:
        """The dials since its return."""
        return [at for at in self.dials if 0.0 <= at < AFTERMATH]


def most(times: Sequence[float], width: float) -> int:
    """How many of *times* fall into the fullest bin of *width* seconds."""
    return max(Counter(at // width for at in times).values(), default=0)


def outage(make: Make, pools: int, away: float) -> Outage:
    """Have *pools* pools under load lose their server for *away* seconds."""
    dials: list[float] = []
    served: dict[int, float] = {}
    dice = random.Random(1)
    enough = Event()

    with fleet("127.0.0.1", needs=NEEDS) as servers:

        def connect() -> Any:
            dials.append(monotonic())
            return socket.create_connection(servers.addresses[0], timeout=5.0)

        def call(number: int, lend: Lend) -> None:
            while not enough.is_set():
                gevent.sleep(dice.uniform(*PAUSE))
                with contextlib.suppress(OSError), lend() as sock:
                    _echo(sock)
                    served.setdefault(number, monotonic())

        lent = [make(SIZE, connect) for _ in range(pools)]
        callers = [
            gevent.spawn(call, number, lend)
            for number, (lend, _) in enumerate(lent)
            for _ in range(CALLERS)
        ]
        try:
            _until(lambda: len(served) == pools)
            gevent.sleep(2.0)
            gone = monotonic()
            servers.away(0)
            gevent.sleep(away)
            served.clear()
            servers.back(0)
            back = monotonic()
            _until(lambda: len(served) == pools)
            gevent.sleep(back + AFTERMATH - monotonic())
        finally:
            enough.set()  # not killed: generic-connection-pool could not be closed then
            gevent.joinall(callers)
            for _, close in lent:
                close()
    return Outage(
        back - gone,
        [at - back for at in dials],
        [at - back for at in served.values()],
    )


def compare(quick: bool) -> list[tuple[str, ...]]:
    """A line for each contender, in the order of HEADINGS; and the picture.

    With *quick*: of 40 pools, whose server is away for 1 s, and no picture.
    """
    pools, away = (40, 1.0) if quick else (200, 5.0)
    outages = {name: outage(make, pools, away) for name, make in CONTENDERS.items()}
    if not quick:
        draw(outages, PICTURE)
    return [_line(name, each) for name, each in outages.items()]


def _line(name: str, seen: Outage) -> tuple[str, ...]:
    return (
        name if name == _BY_HAND else f"{name} {version(name)}",
        f"{len(seen.before()):,}",
        f"{most(seen.before(), 1.0):,}",
        f"{len(seen.after()):,}",
        str(most(seen.after(), BIN)),
        f"{max(seen.served):.2f}",
    )


def draw(outages: dict[str, Outage], picture: Path) -> None:
    """Draw the dials of each contender, one below the other, into the PNG file *picture*."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(outages), sharex=True, sharey=True, figsize=(9, 6), layout="constrained"
    )
    first, last = -max(each.away for each in outages.values()) - 0.5, AFTERMATH
    bins = [first + BIN * number for number in range(round((last - first) / BIN) + 1)]
    for panel, (name, seen) in zip(panels, outages.items(), strict=True):
        panel.axvspan(-seen.away, 0.0, color="0.9")
        panel.hist(seen.dials, bins, color="tab:blue")
        panel.set_title(
            f"{name}: {len(seen.before()):,} dials while the server is away (grey),"
            f" {most(seen.after(), BIN)} in the worst 100 ms at its return",
            loc="left",
            fontsize=10,
        )
        panel.set_ylabel("dials per 100 ms")
        panel.set_xlim(first, last)
    panels[-1].set_xlabel("seconds since the server came back")
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def _echo(sock: Any) -> None:
    sock.sendall(b"x" * 100)
    missing = 100
    while missing:
        data = sock.recv(missing)
        if not data:
            raise ConnectionResetError("the server hung up")
        missing -= len(data)


def _until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = monotonic() + seconds
    while not true():
        if monotonic() > ends:
            raise TimeoutError(f"not within {seconds} s")
        gevent.sleep(0.01)
