"""``python -m benchmarks.clients.load CONTENDER SHARE SECONDS``: one run, in a process of its own.

200 greenlets ask through a pool of 10 connections, each for a token of its own, again and again.
With a SHARE of 0.15, 15 % of the requests are under a ``gevent.Timeout`` of 0.5 to 60 ms, which
half of them raise and half end silently by, and 15 % take the server 30 ms.  Prints an Outcome.

A pool whose callers barge serves few greenlets often, and the others hardly ever: counted by the
request, those that starve would not show.  So the slowest 1 % are corrected for coordinated
omission, as HdrHistogram does it (Gil Tene): who waits for longer than all would if they were
served equally often counts for the requests, too, that it could not make meanwhile.
"""

from __future__ import annotations

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import itertools
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import monotonic, process_time
from typing import Any

import gevent

__all__ = ["Outcome", "run"]

GREENLETS = 200
SIZE = 10
SLOW = 0.03  # seconds
STARVED = 2.0  # seconds: a caller that has waited for so long is starving, or all are stuck
STUCK = 0.5  # seconds in which nobody was served
WARM_UP = 0.5  # seconds
MOST_SOCKETS = 15  # of a pool of ten: one more for each statement that is just being cancelled

#: Asks for a token through a pool, which the server answers after so many seconds.
Ask = Callable[[str, float], str]


@dataclass
class Outcome:
    """What came of a run; *seconds* and *cpu* of it, *p99* in seconds."""

    right: int
    wrong: int
    given_up: int
    errors: int
    error: str  # the most frequent
    starved: int
    stuck: bool
    sockets: int  # open at the end
    seconds: float
    cpu: float
    p99: float

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.right / self.seconds

    @property
    def rate_of_cpu(self) -> float:
        """Right answers per second of CPU time, of this process."""
        return self.right / self.cpu

    @property
    def fault(self) -> str:
        """What costs answers; "" if nothing does."""
        found = {"wrong": self.wrong, self.error: self.errors}
        faults = [f"{count:,} {what}" for what, count in found.items() if count]
        if self.sockets > MOST_SOCKETS:
            faults.append(f"{self.sockets} connections")
        return ", ".join([*faults, *["stuck"] * self.stuck])


class Load:
    """The greenlets, and what came of their requests."""

    def __init__(self, ask: Ask, share: float) -> None:
        self.ask = ask
        self.share = share
        self.dice = random.Random(1)
        self.numbers = itertools.count()
        self.begun: dict[int, float] = {}  # when those began that have no answer yet
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self.right = self.given_up = 0
        self.wrong: list[str] = []
        self.took: list[float] = []
        self.last = monotonic()  # when there was a right answer
        self.errors: Counter[str] = Counter()

    def work(self) -> None:
        while True:
            number = next(self.numbers)
            began = self.begun[number] = monotonic()
            limited = self.dice.random() < self.share
            slow = bool(self.share) and self.dice.random() < 0.15
            try:
                if limited:
                    self.request_in_time(f"token-{number}", SLOW * slow)
                else:
                    self.request(f"token-{number}", SLOW * slow)
            except Exception as error:
                self.errors[type(error).__name__] += 1
                gevent.sleep(0.001)  # else one that fails at once keeps the hub
            else:
                if not limited:
                    self.took.append(monotonic() - began)
            del self.begun[number]

    def request(self, token: str, seconds: float) -> bool:
        answer = self.ask(token, seconds)
        if answer == token:
            self.right += 1
            self.last = monotonic()
        else:
            self.wrong.append(answer)
        return True

    def request_in_time(self, token: str, seconds: float) -> None:
        patience = self.dice.uniform(0.0005, 0.06)
        answered = False
        try:
            with gevent.Timeout(patience, None if self.dice.random() < 0.5 else False):
                answered = self.request(token, seconds)
        except gevent.Timeout:
            pass
        self.given_up += not answered

    def slowest(self, share: float, seconds: float) -> float:
        """The wait that this *share* of the requests exceeds, those without an answer included."""
        now = monotonic()
        waits = [*self.took, *(now - began for began in self.begun.values())]
        equal = seconds * GREENLETS / max(self.right + self.given_up, 1)
        for wait in tuple(waits):
            waits += [wait - times * equal for times in range(1, int(wait / equal) + 1)]
        return sorted(waits)[int((1 - share) * (len(waits) - 1))]


def run(make: Callable[[int], Ask], share: float, seconds: float) -> Outcome:
    """Load the pool that *make* makes, for so many *seconds* and a moment before."""
    load = Load(make(SIZE), share)
    # First as many as there are connections: some pools open more for a crowd than they may.
    gevent.joinall([gevent.spawn(load.ask, "token", SLOW) for _ in range(SIZE)], raise_error=True)
    greenlets = [gevent.spawn(load.work) for _ in range(GREENLETS)]
    gevent.sleep(WARM_UP)
    load.forget()
    began, cpu = monotonic(), process_time()
    gevent.sleep(seconds)
    now = monotonic()
    took, cpu = now - began, process_time() - cpu
    sockets = _open_sockets()
    stuck = now - load.last > STUCK or any(each.dead for each in greenlets)
    gevent.killall(greenlets, block=False)
    errors = load.errors.most_common(1)
    return Outcome(
        right=load.right,
        wrong=len(load.wrong),
        given_up=load.given_up,
        errors=load.errors.total(),
        error=errors[0][0] if errors else "",
        starved=sum(now - each > STARVED for each in load.begun.values()),
        stuck=stuck,
        sockets=sockets,
        seconds=took,
        cpu=cpu,
        p99=load.slowest(0.01, took),
    )


def _open_sockets() -> int:
    """How many this process has."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
        except OSError:
            pass  # that of the listing itself
    return found


def main(name: str, share: str, seconds: str) -> None:
    from benchmarks.clients.contenders import CONTENDERS

    outcome: Any = asdict(run(CONTENDERS[name], float(share), float(seconds)))
    print("RESULT " + json.dumps(outcome), flush=True)
    os._exit(0)  # without waiting for what is stuck


if __name__ == "__main__":
    main(*sys.argv[1:])
