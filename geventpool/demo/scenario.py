"""What happens in a demo: greenlets that share a pool, and a server that goes and comes back.

Open it at ``Demo._request``, which is what a program of yours would do, and ``Demo._direct``, which
makes life hard for it.  What is counted meanwhile is judged in ``verdicts.py``.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from geventpool.demo.screen import TICK, Rate, Screen
from geventpool.demo.server import Server, exchange
from geventpool.demo.verdicts import Figures, Verdict, judge
from geventpool.errors import PoolError
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory

__all__ = ["CONNECTIONS", "GREENLETS", "Demo"]

CONNECTIONS = 20
GREENLETS = 100
MAX_WAIT = 0.1  # no caller waits for a reply longer than this ...
MAX_WAIT_ELSEWHERE = 2.0  # ... or this, with a server of the user's
SHORT_WAIT_SHARE = 0.02  # of the requests are given up wherever they are, in line too ...
SHORT_WAIT = 0.02  # ... at a random moment within so many seconds


class Demo:
    """One run of the demo, against the server at *address*; None: one of its own."""

    def __init__(self, seconds: float, address: tuple[str, int] | None = None) -> None:
        self.seconds = seconds
        self.address = address or ("127.0.0.1", 0)
        self.server = Server() if address is None else None
        self.max_wait = MAX_WAIT if address is None else MAX_WAIT_ELSEWHERE
        self.away = min(2.8, 0.35 * seconds)  # to which comes what the server takes to start
        self.pool: ConnectionPool[Any]
        self.workers: list[gevent.Greenlet[..., Any]] = []
        self.state = "opening"
        self.interrupted = Event()
        self.numbers = itertools.count(1)
        #: What is counted, and judged in the end.
        self.figures = Figures(CONNECTIONS, own_server=self.server is not None)
        self.figures.began_at = self.figures.ended_at = monotonic()
        # Compared are the waits of a calm time: it has a number, 0 is no such.
        self.calm = 0
        self.calm_since = 0.0
        self.in_line: dict[int, float] = {}  # who is -> since when
        self.failed_before = 0
        self.everybody_served = Event()

    def make_pool(self) -> ConnectionPool[Any]:
        """The pool that is put to the test."""
        return ConnectionPool(CONNECTIONS, connect=SocketFactory(self.address), name="demo")

    def run(self, screen: Screen) -> None:
        """Run to the end, or until the user has enough; leave no process and no connection."""
        try:
            if self.server is not None:
                self.address = self.server.start()
            screen.print(self._plan())
            self.pool = self.make_pool()
            try:
                self._watch(screen)
                self._look_at_the_remains()
            finally:
                gevent.killall(self.workers, timeout=5.0)
                self.pool.close(timeout=2.0)
        finally:
            if self.server is not None:
                self.server.stop()

    def _watch(self, screen: Screen) -> None:
        """Keep the live line going while the director is at work."""
        director = gevent.spawn(self._direct)
        try:
            rate = Rate()
            while not director.ready() and not self.interrupted.is_set():
                screen.live(self._line(rate(self.figures.answered), screen))
                due = monotonic() + TICK
                ends: list[Any] = [director, self.interrupted]
                gevent.wait(ends, TICK, count=1)
                self.figures.lag = max(self.figures.lag, monotonic() - due)
        finally:
            screen.end_live()
            director.kill()
            self._end_calm()
            self.figures.ended_at = monotonic()
            gevent.killall(self.workers, timeout=5.0)  # wherever they are: in line, in a request
        error = director.exception
        if isinstance(error, PoolError):
            self.figures.refusals.append(error)
        elif error is not None:
            raise error

    # What each of the greenlets does

    def _work(self, me: int) -> None:
        while True:
            self._request(me)

    def _request(self, me: int) -> None:
        """Send a number that was not sent before: the reply must be that number."""
        figures = self.figures
        request = b"%d\n" % next(self.numbers)
        max_wait = SHORT_WAIT * random.random() if random.random() < SHORT_WAIT_SHARE else None
        calm, asked_at, served_at = self.calm, monotonic(), math.inf
        self.in_line[me] = asked_at
        try:
            with gevent.Timeout(max_wait), self.pool.get() as sock:
                served_at = monotonic()
                del self.in_line[me]
                with gevent.Timeout(self.max_wait):
                    reply = exchange(sock, request)
        except gevent.Timeout:
            if served_at < math.inf:
                figures.late += 1
            else:
                figures.left_the_line += 1
        except PoolError as error:
            figures.refusals.append(error)
            gevent.sleep(TICK)
        except OSError:
            figures.cut_short += 1
        else:
            figures.answered += 1
            figures.wrong += reply != request
            if figures.unserved and served_at >= figures.died_at:
                self._note_served(me)
        finally:
            self.in_line.pop(me, None)
        if calm and calm == self.calm and served_at < math.inf:
            figures.waits.append(served_at - asked_at)
            figures.longest_hold = max(figures.longest_hold, monotonic() - served_at)

    def _note_served(self, me: int) -> None:
        """One more has had a reply from the server that came back."""
        figures = self.figures
        figures.last_reply_at = monotonic()
        figures.first_reply_at = min(figures.first_reply_at, figures.last_reply_at)
        figures.unserved.discard(me)
        if not figures.unserved:
            self.everybody_served.set()

    # What happens to them

    def _direct(self) -> None:
        self.pool.fill(timeout=10.0)
        self.figures.began_at = monotonic()
        self.workers = [gevent.spawn(self._work, number) for number in range(GREENLETS)]
        self.figures.worked = True
        self._begin_calm(1)
        if self.server is None:
            gevent.sleep(self.seconds)
        else:
            gevent.sleep((self.seconds - self.away) / 2)
            self._take_away(self.server)
            self._begin_calm(2)
            gevent.sleep((self.seconds - self.away) / 2)

    def _take_away(self, server: Server) -> None:
        """Kill the server, start it again after a while, and wait until everybody is served."""
        self._end_calm()
        self.state = "outage"
        opened = self.pool.stats().opened
        server.stop()
        self.figures.died_at = monotonic()
        dead = self.pool.stats()
        # Dying, its backlog still took connections.
        self.figures.opened_in_vain = dead.opened - opened
        # Those under way as it died, a burst of them perhaps, were begun before it was away.
        self.failed_before = dead.dial_failed + dead.connecting
        self.figures.unserved = set(range(GREENLETS))
        gevent.sleep(self.away)
        server.start(self.address[1])
        self.figures.back_at = server.listens_since
        self.everybody_served.wait(timeout=10.0)

    def _begin_calm(self, number: int) -> None:
        self.calm, self.calm_since = number, monotonic()
        self.state = ""

    def _end_calm(self) -> None:
        if self.calm and self.in_line:  # a caller may have waited all the time
            first = min(self.in_line.values())
            self.figures.waits.append(monotonic() - max(first, self.calm_since))
        self.calm = 0

    def _look_at_the_remains(self) -> None:
        """All greenlets have been killed: the pool must be what it was before they came."""
        if self.figures.died_at < math.inf:
            failed = self.pool.stats().dial_failed - self.failed_before
            self.figures.failed_dials = max(0, failed)
        if self.figures.is_server_there:
            try:
                self.pool.fill(timeout=10.0)
            except PoolError:
                pass  # the figures tell
        self.figures.remains = self.pool.stats()

    # What there is to see

    def _plan(self) -> str:
        host, port = self.address
        text = (
            f"{GREENLETS} greenlets share {CONNECTIONS} connections to {host}:{port}"
            f" for {self.seconds:g} s.\nSome requests are given up at a random moment"
        )
        if self.server is None:
            return f"{text}.\n"
        return (
            f"{text}, and some because the reply is late.\n"
            f"Half-way the server is killed, and started again {self.away:.1f} s later.\n"
        )

    def _line(self, rate: float, screen: Screen) -> str:
        stats = self.pool.stats()
        bar = screen.bar(stats.in_use, stats.idle, stats.connecting)
        ran = monotonic() - self.figures.began_at if self.workers else 0.0
        return (
            f"{ran:4.1f} s {rate:6,.0f} requests/s  {bar}{stats.in_use:2} in use"
            f" {stats.idle:2} idle {stats.connecting:2} connecting {stats.waiting:3} waiting"
            f"  {self.state}"
        ).rstrip()

    def verdicts(self) -> Iterator[Verdict]:
        """The rows of the table."""
        self.figures.interrupted = self.interrupted.is_set()
        return judge(self.figures)
