"""A crowd of callers, let loose on one or two subjects; afterwards these have to be whole."""

from __future__ import annotations

import gc
import random
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent

from benchmarks.fuzz.callers import Caller
from benchmarks.fuzz.chaos import ALLOWED, Chaos
from benchmarks.fuzz.children import well_in_child
from benchmarks.fuzz.subjects import Endpoints, Managed, Plain, Subject
from geventpool import Limit

__all__ = ["Round", "play"]

#: Seconds after which it is given up that something comes to rest.
PATIENCE = 30.0


class Round:
    """One or two subjects, drawn by *dice*, of a server at *port*.  Two of them share a limit."""

    def __init__(self, dice: random.Random, port: int, callers: int = 30) -> None:
        self.dice = dice
        self.callers = callers
        self.chaos = Chaos(dice, ("127.0.0.1", port), most=1000)
        shared = dice.random() < 0.3
        limits = [Limit(5, name="shared")] if shared else []
        makers: list[Callable[[], Subject]] = [
            lambda: Plain(self.chaos, limits),
            lambda: Endpoints(self.chaos, limits),
            lambda: Managed(self.chaos, limits, port),
        ]
        self.subjects = [make() for make in dice.sample(makers, 2 if shared else 1)]
        self.chaos.most = 5 if shared else self.subjects[0].most
        self._shared = shared

    def play(self, forks: bool = True) -> None:
        """Let them loose, and kill some of them."""
        victims: list[Any] = []
        others: list[Any] = []
        for _ in range(self.callers):
            caller = Caller(self.dice.choice(self.subjects), forks)
            greenlet: Any = gevent.Greenlet(caller.run)
            greenlet.start()
            (victims if self.dice.random() < 0.3 else others).append(greenlet)
        for victim in victims:
            gevent.sleep(self.dice.choice([0, 0, 0.001]))
            victim.kill(block=False)
        gevent.joinall([*victims, *others], timeout=PATIENCE)
        everybody = [*victims, *others]
        for greenlet in everybody:
            if not greenlet.ready():
                at = "".join(traceback.format_stack(greenlet.gr_frame)[-12:])
                self.chaos.fault(AssertionError(f"{greenlet} hangs at\n{at}"))
        gevent.killall(everybody, timeout=PATIENCE)

    def come_to_rest(self) -> None:
        """Wait until all that was begun has ended; then all that is counted has to be right."""
        self.chaos.calm = True
        gc.collect()  # what callers forgot
        ends_at = time.monotonic() + PATIENCE
        while not all(subject.at_rest for subject in self.subjects):
            if time.monotonic() > ends_at:
                self.chaos.fault(AssertionError(f"no rest: {[s.pool for s in self.subjects]}"))
                break
            gevent.sleep(0.001)
        for subject in self.subjects:
            subject.audit()
        gevent.idle()  # what it says is said later

    def go_on(self) -> None:
        """Be ready to play again."""
        self.chaos.calm = False

    def fork(self) -> None:
        """See that a child has all that may be had, of its own."""

        def look() -> None:
            self.chaos.conns.clear()  # copies of the parent's
            self.subjects[0].recover()  # else a manager may know its servers to be down
            self._hold_all(self.subjects[0], most=1)
            self.chaos.judge("in a child")

        if not well_in_child(look):
            self.chaos.fault(AssertionError(f"a child gets no connection: {self.subjects[0].pool}"))

    def end(self) -> None:
        """See that each has all of its connections, and close all."""
        while self.subjects:
            subject = self.subjects.pop()
            if not (self._shared and self.subjects):
                subject.recover()
                self._hold_all(subject, min(subject.most, self.chaos.most))
            self._close(subject)

    def _hold_all(self, subject: Subject, most: int) -> None:
        held: list[Any] = []
        ends_at = time.monotonic() + PATIENCE
        while len(held) < most and time.monotonic() < ends_at:
            try:
                conn = subject.acquire(timeout=1)
            except ALLOWED:
                gevent.sleep(0.001)
                continue
            if any(conn is other for other in held):
                self.chaos.fault(AssertionError(f"{conn} was lent twice"))
            held.append(conn)
        if len(held) < most:
            self.chaos.fault(AssertionError(f"{len(held)} of {most} are left: {subject.pool}"))
        for conn in held:
            self.chaos.attempt(partial(self.chaos.ask, conn))
            subject.release(conn)

    def _close(self, subject: Subject) -> None:
        """While one still has a connection, which may be closed under it."""

        def use() -> None:
            with subject.get(timeout=1) as conn:
                self.chaos.ask(conn)
                gevent.sleep(0.005)

        user = gevent.spawn(self.chaos.attempt, use)
        gevent.sleep(0)
        subject.close(self.dice.choice([0, 0.001, PATIENCE]))
        user.join(PATIENCE)
        subject.close(None)
        stats = subject.pool.stats()
        if stats.in_use or stats.idle or stats.waiting:
            self.chaos.fault(AssertionError(f"closed, and not empty: {subject.pool}"))
        if not self.subjects:
            gevent.idle()
            gc.collect()
            if self.chaos.open_now:
                self.chaos.fault(AssertionError(f"{self.chaos.open_now} connections are left"))


def play(seed: int, port: int, forks: bool = True) -> int:
    """Play the round of that *seed*; how many connections were lent.  AssertionError if anything
    did not hold."""
    this = Round(random.Random(seed), port)
    with this.chaos.watching():
        this.play(forks)
        this.come_to_rest()
        if forks and this.dice.random() < 0.1:
            this.fork()
        this.end()
    this.chaos.judge(f"seed {seed}")
    return this.chaos.served
