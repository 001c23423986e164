"""FleetLimit: a Limit whose maximum is a leased share of a cap over many processes."""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import secrets
import socket
import statistics
import weakref
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import Literal, get_args

import gevent
from gevent.lock import Semaphore

from geventpool.errors import PoolError
from geventpool.fleet.share import Grant, Report
from geventpool.fleet.stores import Store
from geventpool.pools import Limit
from geventpool.pools.extension import check_seconds, check_whole, log_safely

__all__ = ["FleetLimit", "FleetStats", "OnLoss", "fleets", "release_all"]

OnLoss = Literal["floor", "keep", "stop"]

_EVERY = 1.0  # seconds from one renewal to the next, give or take, but all of a cap together make
_PER_SECOND = 250.0  # so many in a second, if the store does not name a number of its own
_VARIED = 0.1  # that share of them, lest all processes ask at the same time
_SOONEST = 0.2  # seconds between two, where callers wait; longer each time it does not help
_MARGIN = 0.1  # of its lease a process does not use: clocks run differently
_MORE = 1.25  # so many times what is used and waited for is wanted
_SLOWLY = 30.0  # seconds of which the median is what is wanted, if less is wanted now

_log = logging.getLogger("geventpool.fleet")
_all: weakref.WeakSet[FleetLimit] = weakref.WeakSet()


@dataclass(frozen=True)
class FleetStats:
    """What a process knows of a cap: its *share* of it, what is *used* of that, what its callers
    *need*, what it *wants* by its last report, how many *members* there are by the last answer,
    the *age* in seconds of what the store knows of it, or None if that is nothing, and for how many
    seconds the store has not answered, or None, and why."""

    name: str
    cap: int
    share: int
    used: int
    needs: int
    wants: int
    members: int
    age: float | None
    lost_for: float | None
    last_error: BaseException | None


class FleetLimit(Limit):
    """A cap on connections over all processes and machines that share a *store*::

        limit = FleetLimit(300, store=RedisStore("redis://..."), name="db")
        pool = ConnectionPool(20, connect=..., limits=[limit])

    Each process leases a share of *cap* from the store and renews it in the background: each
    second, and with more than 250 processes (40, in ZooKeeper or etcd) less often.  To acquire a
    connection costs nothing more.  Shares follow the demand, max-min fair by *weight*: what callers
    need comes first, then a quarter to spare.  What is open counts until it is closed, so the cap
    holds while shares move.

    - *name* says which cap it is: processes with the same name in one store share it, and should
      give the same *cap*, *floor* and *lease*.
    - *floor*: so many connections are every process's own: with them it starts, and goes on, while
      the store is away.
    - *lease*: seconds that a share holds without the store.  *on_loss*: what is left after that:
      "floor", "keep" (the share: the cap may be exceeded), or "stop" (nothing more is opened).
    - *generation*: of a deploy.  Processes of an older one than the newest want nothing more than
      their floor, so that what they drain is there for their successors.

    It has no connection before the store has answered, or failed to, for the first time.  Made
    before a fork, it is another one in the child, with a share of its own.  One is for one gevent
    hub.  ``close()`` gives the share back at once; without it, the lease ends by itself.  Nothing
    that the store does raises here: the loss of the store, and its return, are on the log
    ``geventpool.fleet``.
    """

    def __init__(
        self,
        cap: int,
        *,
        store: Store,
        name: str,
        floor: int = 1,
        weight: int = 1,
        lease: float = 10.0,
        on_loss: OnLoss = "floor",
        generation: int = 0,
    ) -> None:
        check_whole("cap", cap, least=1)
        check_whole("floor", floor)
        check_whole("weight", weight, least=1)
        check_whole("generation", generation)
        check_seconds("lease", lease, none=False)
        if floor > cap:
            raise ValueError(f"floor ({floor}) is more than cap ({cap})")
        if lease < 2.0:
            raise ValueError(f"lease must be 2 s or more, not {lease!r}")
        if on_loss not in get_args(OnLoss):
            raise ValueError(f'on_loss must be "floor", "keep" or "stop", not {on_loss!r}')
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be a text that is not empty, not {name!r}")
        if not (callable(getattr(store, "renew", None)) and hasattr(store, "release")):
            raise TypeError(f"store must have renew and release, not be {store!r}")
        super().__init__(0, name)
        self.cap = cap
        self.floor = floor
        self.weight = weight
        self.lease = lease
        self.on_loss = on_loss
        self.generation = generation
        self.store = store
        self._per_second = float(getattr(store, "per_second", _PER_SECOND))
        self.closed = False
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """As a process that no store knows yet."""
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.members = 0  # processes, by the last answer
        self.epoch: str | None = None
        #: Which of them this one is, 0, 1, 2, ..., for a Subset; None before the first answer.
        self.place: int | None = None
        #: Since when the store has not answered; None while it does.
        self.lost_at: float | None = None
        self.last_error: BaseException | None = None
        self._known_since: float | None = None  # when the last report that was answered was sent
        self._lease_ends = -math.inf
        self._ceiling = math.inf  # by what the server has said,
        self._ceiling_until = -math.inf  # until then
        self._was_full = False  # since the last answer
        self._told = 0  # with how many the store counts it, by the last report ...
        self._asked_for = 0  # ... and how many it wants by that
        self._numbers = itertools.count(1)
        self._asking = Semaphore()  # reports are sent one after the other, as they are numbered
        self._wanted: deque[tuple[float, int]] = deque()
        self._greenlet = gevent.spawn(_keep_renewing, weakref.ref(self))

    # What the pools ask

    def may_dial(self) -> bool:
        """Whether the lease still holds for the dial that is about to begin."""
        self._look_at_lease()
        return self.used <= self._maximum

    @property
    def may_rise(self) -> bool:
        """Whether the share may grow: it is not the whole cap."""
        return self._maximum < self.cap

    def server_full(self) -> None:
        """The server's own limit was reached: others have more open than was agreed.  Half of the
        share will do for a lease; it is halved once, however many dials were refused, until the
        store has answered again."""
        if self._was_full:
            return
        self._was_full = True
        half = max(self.floor, int(min(self._maximum, self.used)) // 2)
        self._ceiling, self._ceiling_until = half, monotonic() + self.lease
        self.maximum = half

    # Looking, and the end

    @property
    def needs(self) -> int:
        """How many connections the callers of this process hold or wait for."""
        return min(self.cap, self.in_use + self.waiting)

    @property
    def wants(self) -> int:
        """How many connections this process would like: what it needs and a quarter; if that is
        less than it was, the median of the last half minute.  What others need comes first."""
        now = monotonic()
        wanted = math.ceil(_MORE * self.needs)
        while self._wanted and self._wanted[0][0] < now - _SLOWLY:
            self._wanted.popleft()
        usual = statistics.median([each for _, each in self._wanted]) if self._wanted else 0
        return min(self.cap, max(self.floor, wanted, math.ceil(usual)))

    def stats(self) -> FleetStats:
        """What is known of the cap in this process.  Does not block; from any thread."""
        now, lost_at, known_since = monotonic(), self.lost_at, self._known_since
        return FleetStats(
            name=str(self.name),
            cap=self.cap,
            share=int(self._maximum),
            used=self.used,
            needs=self.needs,
            wants=self._asked_for,
            members=self.members,
            age=None if known_since is None else now - known_since,
            lost_for=None if lost_at is None else now - lost_at,
            last_error=self.last_error,
        )

    def renew(self) -> Grant:
        """Ask the store now, and use its answer; the greenlet of the limit does so each second.

        Blocks for as long as the store takes, a third of *lease* at most.  Raises what the store
        raises, or gevent.Timeout; then the share stays what it was.
        """
        # The answer to the report before is awaited or given up first: else this one would say
        # less than may be opened by then.
        with gevent.Timeout(self.lease / 3), self._asking:
            return self._ask()

    def _ask(self) -> Grant:
        sent = monotonic()
        wants, needs = self.wants, self.needs
        self._wanted.append((sent, math.ceil(_MORE * needs)))
        report = Report(
            name=str(self.name),
            cap=self.cap,
            id=self.id,
            used=self.used,
            has=int(self._maximum),
            needs=needs,
            wants=wants,
            weight=self.weight,
            floor=self.floor,
            lease=self.lease,
            generation=self.generation,
            number=next(self._numbers),
            place=self.place,
        )
        self._told, self._asked_for = max(report.used, report.has), wants
        answer = self.store.renew(report)
        if self.closed:
            self.store.release(report.name, report.id)
            return answer
        self._known_since, self._lease_ends = sent, sent + self.lease * (1 - _MARGIN)
        self.members, self.epoch, self.place = answer.members, answer.epoch, answer.place
        share, self._was_full = answer.share, False
        if sent < self._ceiling_until:
            share = int(min(share, self._ceiling))
        if share != self._maximum:
            self.maximum = share
        return answer

    def close(self) -> None:
        """Give the share back to the store: for a process whose pools are closed.

        Nothing is opened any more.  Blocks for as long as the store takes, a third of *lease* at
        most.  What the store raises is logged: the lease ends by itself.
        """
        if self.closed:
            return
        self.closed = True
        self.maximum = 0
        if self._greenlet is not gevent.getcurrent():
            self._greenlet.kill(block=False)
        try:
            with gevent.Timeout(self.lease / 3, TimeoutError("the store took too long")):
                self.store.release(str(self.name), self.id)
        except Exception as error:
            text = "fleet %r: the share was not given back: %r"
            log_safely(_log, logging.WARNING, text, self.name, error)

    # Inside

    def _fallback(self) -> float:
        """What is left when the lease is over."""
        if self.on_loss == "keep" and self.epoch is not None:
            return max(self._maximum, self.floor)
        return 0 if self.on_loss == "stop" else self.floor

    def _look_at_lease(self) -> None:
        if not self.closed and self._maximum and monotonic() >= self._lease_ends:
            left = self._fallback()
            if left < self._maximum:
                self.maximum = int(left)

    def _renew_and_say(self) -> None:
        """Ask the store; say if it is lost, or is back."""
        try:
            self.renew()
        except (Exception, gevent.Timeout) as error:
            self.last_error = error
            if self.lost_at is None:
                self.lost_at = monotonic()
                text = (
                    "fleet %r: the store does not answer: %r; at most %s connections from then on"
                )
                log_safely(_log, logging.WARNING, text, self.name, error, self._fallback())
            # It has never answered, or last had no room for the floor of this one: a lease later
            # all have closed what was in its way.
            may_rise = self.epoch is None or monotonic() - self.lost_at >= self.lease
            if may_rise and self._maximum < self._fallback():
                self.maximum = int(self._fallback())
            self._look_at_lease()
            return
        if self.lost_at is not None:
            seconds, self.lost_at, self.last_error = monotonic() - self.lost_at, None, None
            text = "fleet %r: the store is back after %.1f s; %d connections of %d, %d processes"
            words = self.name, seconds, self._maximum, self.cap, self.members
            log_safely(_log, logging.INFO, text, *words)

    @property
    def _every(self) -> float:
        return min(max(_EVERY, self.members / self._per_second), self.lease / 4)

    @property
    def _soonest(self) -> float:
        return max(_SOONEST, self.members / self._per_second / 4)

    @property
    def _rarest(self) -> float:
        """Seconds between two renewals of a process that is short of a cap that is full."""
        return max(_EVERY / 2, self.members / self._per_second)

    @property
    def _has_less(self) -> bool:
        """Whether the store counts it with more than it may have open now."""
        return max(self.used, self._maximum) < self._told

    @property
    def _is_short(self) -> bool:
        """Whether callers wait that a larger share would help."""
        return self.used >= self._maximum and self.waiting > 0

    def __repr__(self) -> str:
        return f"<FleetLimit {self.name} {self.used} of {self._maximum} of {self.cap}>"


def _keep_renewing(reference: weakref.ref[FleetLimit]) -> None:
    """Renew the share of a limit for as long as it is used; it is not kept alive for that."""
    soon = _SOONEST
    while (limit := reference()) is not None and not limit.closed:
        enforced, short = limit._maximum, limit._is_short
        limit._renew_and_say()
        # Many that are short of a full cap must not keep the store busy with that.
        in_vain = short and limit._maximum == enforced
        soon = min(2 * soon, limit._rarest) if in_vain else limit._soonest
        every = limit._every
        del limit
        began = monotonic()
        ends = began + every * (1 + random.uniform(-_VARIED, _VARIED))
        while (left := ends - monotonic()) > 0:
            gevent.sleep(min(_SOONEST, left))
            limit = reference()
            if limit is None or limit.closed:
                return
            limit._look_at_lease()
            waited = monotonic() - began
            if (limit._has_less and waited >= limit._soonest) or (
                limit._is_short and waited >= soon
            ):
                break  # tell the store that less is used, or ask for more
            del limit


def fleets() -> list[FleetLimit]:
    """Those of this process that are not closed, by their names."""
    return sorted((each for each in list(_all) if not each.closed), key=lambda each: str(each.name))


def release_all() -> None:
    """Give back the shares of all limits of this thread's hub, at the same time: for the end of a
    worker.  Blocks as ``FleetLimit.close``."""

    def close(limit: FleetLimit) -> None:
        try:
            limit.close()
        except PoolError:
            return  # another hub's

    gevent.joinall([gevent.spawn(close, limit) for limit in list(_all)])


def _begin_anew_in_child() -> None:
    for limit in list(_all):
        if not limit.closed:
            limit._greenlet.kill(block=False)  # a copy of the parent's, which must not go on
            limit.maximum = 0
            limit._begin()


os.register_at_fork(after_in_child=_begin_anew_in_child)
