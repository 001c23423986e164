"""What each pool was like over the last minute and the last hour, for the charts of a status page.

A light greenlet looks at the counters of every pool once a second.  What it keeps is bounded: for
each open pool, sixty seconds and sixty minutes.  A pool that is collected takes its record along,
where that greenlet does not run, too: a snapshot begins one for each pool.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Iterable
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import gevent

from geventpool.registry import pools
from geventpool.stats import Histogram

__all__ = ["Record", "Sample", "record_of", "start", "stop"]

PERIOD = 1.0  # seconds between two looks
SECONDS = 60  # looks that are kept ...
MINUTES = 60  # ... and minutes
_STALLED = 10 * PERIOD  # without a look for so long, the greenlet's hub is gone


class Sample(NamedTuple):
    """One second of a pool, or the worst that was seen in a minute."""

    in_use: int = 0
    waiting: int = 0
    wait: float = 0.0  # seconds: the mean of those served in it that had to wait
    served: float = 0.0  # callers a second
    sent_away: int = 0  # callers whose wait was in vain: too late, too many, server away


class Record:
    """What is remembered of *pool*, by a weak reference; *key* names it within its process."""

    def __init__(self, pool: Any, number: int) -> None:
        self.pool = weakref.ref(pool, partial(_collected, id(pool)))
        self.key = f"{os.getpid()}-{number}"
        self._minute: deque[Sample] = deque(maxlen=SECONDS)
        self._hour: deque[Sample] = deque(maxlen=MINUTES)
        #: How many waits were how long, by the histogram's bounds, at the beginning of the minute
        #: and at the end of each second.
        self._waits: deque[tuple[int, ...]] = deque(maxlen=SECONDS + 1)
        self._looks = 0
        self._seen: tuple[float, Any] | None = None

    def look(self, pool: Any) -> None:
        """Take down the second that has passed."""
        now, stats = monotonic(), pool.stats()
        seen, self._seen = self._seen, (now, stats)
        self._waits.append(stats.wait.histogram.counts)
        if seen is None:
            return  # what was counted before is of no known time
        then, before = seen
        waits = stats.wait.count - before.wait.count
        waited = (stats.wait.sum - before.wait.sum) / waits if waits > 0 else 0.0
        sample = Sample(
            stats.in_use,
            stats.waiting,
            round(max(0.0, waited), 6),
            round(max(0, stats.acquired - before.acquired) / max(now - then, 1e-3), 1),
            max(0, _sent_away(stats) - _sent_away(before)),
        )
        self._minute.append(sample)
        if self._looks % SECONDS == 0:
            self._hour.append(sample)
        else:
            self._hour[-1] = _worst(self._hour[-1], sample)
        self._looks += 1

    def shown(self) -> dict[str, Any]:
        """``{"minute": {"in_use": [...], ...}, "hour": {...}, "wait_p99": ...}``, oldest first."""
        return {
            "minute": _columns(self._minute),
            "hour": _columns(self._hour),
            "wait_p99": self._wait_p99(),
        }

    def _wait_p99(self) -> float:
        """What 99 in 100 waits of the last minute took no longer than, in seconds; 0.0 if there
        were none.  An estimate: see ``Histogram.quantile``."""
        if self._seen is None:
            return 0.0
        last, first = self._waits[-1], self._waits[0]
        lately = Histogram(counts=tuple(map(int.__sub__, last, first)))
        return min(lately.quantile(0.99), float(self._seen[1].wait.max))


def _sent_away(stats: Any) -> int:
    return sum(stats.refusals.values())


def _worst(one: Sample, other: Sample) -> Sample:
    return Sample(
        max(one.in_use, other.in_use),
        max(one.waiting, other.waiting),
        max(one.wait, other.wait),
        max(one.served, other.served),
        one.sent_away + other.sent_away,
    )


def _columns(samples: Iterable[Sample]) -> dict[str, list[float]]:
    rows = list(samples)
    return {name: [row[place] for row in rows] for place, name in enumerate(Sample._fields)}


class _Sampler:
    """The greenlet, and when it last looked."""

    def __init__(self) -> None:
        self.looked_at = monotonic()
        self.greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while _sampler is self:  # else this is a child's copy, or it was replaced
            self.looked_at = monotonic()
            known = pools()
            _forget_all_but({id(pool) for pool in known})
            for pool in known:
                record_of(pool).look(pool)
                gevent.sleep(0)  # two hundred pools are a few milliseconds: in small pieces
            del known
            gevent.sleep(PERIOD, ref=False)


_sampler: _Sampler | None = None
_numbers = itertools.count(1)
_records: dict[int, Record] = {}


def start() -> None:
    """Have this thread's hub look at the pools of this process each second from now on.  Called
    again, it does nothing.  Does not block."""
    global _sampler
    if _sampler is None or monotonic() - _sampler.looked_at > _STALLED:
        _sampler = _Sampler()


def stop() -> None:
    """Look no longer, and forget what was seen.  Does not block."""
    global _sampler
    sampler, _sampler = _sampler, None
    _records.clear()
    if sampler is not None:
        sampler.greenlet.kill(block=False)


def record_of(pool: Any) -> Record:
    """What is remembered of *pool*; nothing yet, if it was not seen before."""
    record = _records.get(id(pool))
    if record is None or record.pool() is not pool:  # the same address, another pool
        record = _records[id(pool)] = Record(pool, next(_numbers))
    return record


def _forget_all_but(ids: set[int]) -> None:
    for each in list(_records):
        if each not in ids:
            _records.pop(each, None)


def _collected(number: int, reference: Any) -> None:
    """The pool of that id is gone."""
    record = _records.get(number)
    if record is not None and record.pool is reference:
        _records.pop(number, None)


def _in_child() -> None:
    """A child begins afresh; its copy of the greenlet ends by itself."""
    global _sampler
    _sampler = None
    _records.clear()


os.register_at_fork(after_in_child=_in_child)
