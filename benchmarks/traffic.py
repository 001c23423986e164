"""Requests that come whether the earlier ones were answered or not, and what became of them."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.pool import Group

from geventpool.errors import PoolUnavailable

__all__ = ["PATIENCE", "Lender", "Record", "Traffic"]

PATIENCE = 1.0  # seconds that a caller has for the wait and the answer together

_NORMAL = 0.95  # the share of requests that are answered when all is well
_BIN = 0.25  # seconds, of which that is asked
_MOST_LATE = 0.1  # seconds
_ONE_PASS = 0.02  # seconds: on a busy machine it may take so long


@dataclass
class Lender:
    """How to borrow a connection of a pool, and how to close that."""

    lend: Callable[[], AbstractContextManager[Any]]
    close: Callable[[], object]
    #: What bounds a caller: ``with bound(seconds):``.
    bound: Callable[[float], AbstractContextManager[Any]] = gevent.Timeout
    #: What the pool raises if it has no connection in time.
    refusals: tuple[type[Exception], ...] = (PoolUnavailable,)


@dataclass
class Record:
    """What became of requests; moments are those of the clock of their Traffic."""

    requests: list[tuple[float, bool]] = field(default_factory=list)
    """When each one came first, and whether it was answered, at the first attempt or a later."""

    answers: list[float] = field(default_factory=list)
    """When an answer was there, in the caller's own time."""

    handed: list[tuple[int, float]] = field(default_factory=list)
    """The attempts that got a connection, by their numbers, and when."""

    attempts: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Attempts that failed, by the name of the error."""

    def goodput(self, begin: float, end: float, capacity: float) -> float:
        """The answers from *begin* to *end*, as a share of the *capacity* (answers per second)."""
        return sum(begin <= at < end for at in self.answers) / (capacity * (end - begin))

    def answered(self, begin: float, end: float) -> float:
        """The share that was answered of the requests that came from *begin* to *end*; 1 if none
        came."""
        came = [answered for at, answered in self.requests if begin <= at < end]
        return sum(came) / len(came) if came else 1.0

    def normal_after(self, begin: float, end: float) -> float:
        """How many seconds after *begin* all was well, and so until *end*; else infinite."""
        bins = [begin + _BIN * number for number in range(round((end - begin) / _BIN))]
        bad = [at for at in bins if self.answered(at, at + _BIN) < _NORMAL]
        if not bad:
            return 0.0
        return math.inf if bad[-1] == bins[-1] else bad[-1] + _BIN - begin

    @property
    def in_order(self) -> bool:
        """Whether those that were served were served in the order in which they came.  (But two to
        which connections are handed in the same pass of the loop may run in any order.)"""
        came = sorted(self.handed)
        return all(one[1] <= other[1] + _ONE_PASS for one, other in itertools.pairwise(came))


class Traffic:
    """Callers of a pool, each of which asks one query within PATIENCE, and once more up to
    *retries* times if that has failed."""

    def __init__(self, lender: Lender, clock: Callable[[], float], retries: int = 0) -> None:
        self.record = Record()
        self._lender, self._clock, self._retries = lender, clock, retries
        self._callers = Group()
        self._dice = random.Random(1)

    def offer(self, rate: float, seconds: float, burst: int = 1) -> tuple[float, float]:
        """Have *rate* requests per second come at random, *burst* at a time, for so long; returns
        when that began and ended."""
        began = due = self._clock()
        while (due := due + self._dice.expovariate(rate / burst)) < began + seconds:
            # What a machine that stood still has missed does not come all at once.
            due = max(due, self._clock() - _MOST_LATE)
            gevent.sleep(max(due - self._clock(), 0.0))
            for _ in range(burst):
                self._callers.spawn(self._request, self._clock())
        gevent.sleep(max(began + seconds - self._clock(), 0.0))
        return began, self._clock()

    def finish(self) -> Record:
        """Wait for those that are under way, and return what became of all."""
        self._callers.join()
        return self.record

    def _request(self, came: float) -> None:
        answered = any(self._attempt() for _ in range(1 + self._retries))
        self.record.requests.append((came, answered))

    def _attempt(self) -> bool:
        record, lender = self.record, self._lender
        record.attempts += 1
        number = record.attempts
        try:
            with lender.bound(PATIENCE), lender.lend() as session:
                record.handed.append((number, self._clock()))
                session.query()
        except (gevent.Timeout, *lender.refusals) as error:
            record.failures[type(error).__name__] += 1
            return False
        record.answers.append(self._clock())
        return True
