"""Slots and buckets: what there is, and how it stands.

Nothing is decided here: see ``arbiter.py``.  ``ledger.py`` changes what stands here (but for the
fast path of ``pools/lease.py``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from geventpool._scheduler.ceiling import Ceiling
from geventpool._scheduler.delay_control import DelayControl
from geventpool._scheduler.dial_window import DialWindow
from geventpool._scheduler.idle_queue import IdleQueue
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.line import Line
from geventpool._scheduler.outage import Outage
from geventpool._scheduler.state import AT_ONCE, CONNECTING, NEVER
from geventpool.backoff import Backoff
from geventpool.events import Reason
from geventpool.overload import CoDel

if TYPE_CHECKING:
    from geventpool._scheduler.waiter import Waiter

__all__ = ["Bucket", "Slot"]


class Slot:
    """One counted place, from the start of a dial to the end of the close."""

    __slots__ = (
        "bucket",
        "checked_at",
        "close_reason",
        "dialed_at",
        "expires_at",
        "fast_path_until",
        "idled",
        "retire_at",
        "retire_for",
        "since",
        "state",
        "unverified",
        "uses",
        "waiter",
    )

    def __init__(self, bucket: Bucket, now: float) -> None:
        self.bucket = bucket
        self.state = CONNECTING
        self.since = now  # dial asked for, last returned, or handed out
        self.dialed_at = now  # when the dial was asked for
        self.uses = 0
        self.waiter: Waiter | None = None  # that it was handed to, until this has run
        self.idled = 0.0  # how long it was idle before this hand-out
        self.checked_at = now
        self.close_reason: Reason | None = None  # close it as soon as it is not held
        self.unverified = False  # opened after failures, and not yet returned in good order
        self.retire_at = NEVER  # from then on replace it when that costs no caller anything
        self.retire_for = Reason.EXPIRED
        self.expires_at = NEVER  # from then on hand it to no caller
        self.fast_path_until = NEVER  # the fast path may have it until then

    # What the runtime books

    def handed_out(self, now: float) -> None:
        """A caller that did not have to wait gets it."""
        self.uses += 1
        self.since = now

    def check_begins(self, now: float) -> None:
        """The server is asked for a sign of life, or has just given one."""
        self.checked_at = now

    def __repr__(self) -> str:
        return f"<Slot {self.state.value} of {self.bucket.name!r}>"


class Bucket:
    """Slots that are interchangeable, and the callers that want one."""

    # What the fast path reads: of thirty attributes and more, a slot's is found soonest.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_idle",
        "fast_path_max_idle",
        "fast_path_open",
        "fast_path_thread",
        "pop_idle",
        "push_idle",
        "scheduler",
        "waiters",
    )
    slot_type: type[Slot] = Slot

    def __init__(
        self,
        name: str,
        *,
        size: int,
        min_size: int,
        max_overflow: float = 0,
        limits: Iterable[Limit] = (),
        max_connecting: int = 16,
        backoff: Backoff | None = None,
        lifo: bool = False,
        fail_fast: bool = False,
        idle_timeout: float | None = None,
        max_lifetime: float | None = None,
        max_uses: int | None = None,
        jitter: float = 0.0,
        rng: random.Random | None = None,
        min_idle: int = 0,
        transient: bool = False,
        fail_when_full: bool = False,
        fail_when_down: bool = False,
        down_after: float | None = None,
        overload: CoDel | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self.min_size = min_size
        self.max_overflow = max_overflow
        self.own = Limit(size + max_overflow, name)
        self.shared = tuple(limits)
        self.limits = (self.own, *self.shared)
        self.lifo = lifo
        self.fail_fast = fail_fast
        self.idle_timeout = idle_timeout
        self.max_lifetime = max_lifetime
        self.max_uses = max_uses
        #: Says when its line is slow; None: callers wait as long as they like.
        self.delay_control = None if overload is None else DelayControl(overload)
        # Nothing to weigh at a hand-over
        self.simple = max_uses is None and not self.shared and overload is None
        self.jitter = jitter
        self.rng: Any = rng or random  # the module's own starts anew in a forked child
        # So many connections idle_timeout spares; they are not opened for that
        self.min_idle = min_idle
        #: One of many that come and go: it has no fast path, but leaves no trace when it is empty,
        #: and a Limit finds the longest idle of a thousand such as soon as that of one.
        self.transient = transient
        self.fail_when_full = fail_when_full  # no caller waits for a place: OutOfSockets at once
        #: No caller waits for the end of a back-off: one in line when a dial fails, and one that
        #: comes before the next one, gets its error.
        self.fail_when_down = fail_when_down
        self.dials = DialWindow(max_connecting, backoff)
        self.outage = Outage(down_after)
        self.ceiling = Ceiling()
        self._begin_empty()
        self.reset_counters()

    def _begin_empty(self) -> None:
        self.closed = False
        self.scheduler: Any = None  # whose it is
        self.postponed = False  # its minimum is not opened before it is used
        self.filling = 0  # callers of fill() that wait for *size* connections
        self.slots: dict[Slot, None] = {}
        self._idle = IdleQueue()
        self.waiters = Line()
        self.retiring: dict[Slot, None] = {}  # past their retire_at, waiting to be replaced
        self.open = self.connecting = self.checking = self.salvaging = self.closing = 0
        self.coming = 0  # places claimed for waiters behind those whom dials under way serve
        self.demand: float = 0  # as its shared limits have counted it
        self.condemned_at = AT_ONCE  # what was dialed before is connected to the wrong server
        self.reconcile_at = NEVER  # for when that was asked for
        self.set_troubled(False)
        self.blocked_at: Limit | None = None  # in whose queue it is
        self.ripe_at: Limit | None = None  # in whose heap of the ripe it is

        # The fast path: the thread that may pop from ``idle`` and push to it without asking the
        # scheduler, 0 for none.  *fast_path_thread* is what the runtime allows; the scheduler opens
        # and shuts it.
        self.fast_path_thread = 0
        self.fast_path_open = 0
        # The fast path takes nothing that was idle longer (seconds; None: however long)
        self.fast_path_max_idle: float | None = None
        # Bound once: a method of a subclass of deque takes twice as long to find at each call.
        self.pop_idle: Callable[[], Any] = self._idle.pop if self.lifo else self._idle.popleft
        self.push_idle: Callable[[Any], None] = self._idle.append

    def reset_counters(self) -> None:
        """Start to count from zero."""
        self.dial_failed = 0
        self.reasons: dict[Reason, int] = {}

    def absorb(self, other: Bucket) -> None:
        """Add what *other* has counted."""
        self.dial_failed += other.dial_failed
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count

    # How it stands

    @property
    def idle(self) -> int:
        """How many connections lie idle."""
        return self._idle.living

    @property
    def in_use(self) -> int:
        """How many are held by a caller or handed over to one."""
        return self.open - self.idle - self.checking - self.salvaging

    @property
    def quiet(self) -> bool:
        """Whether its callers may take and leave idle slots at no cost to others."""
        if self.waiters or self.closed or self.open > self.size or self.overfull:
            return False
        return not (self.shared and self.crowded)

    @property
    def crowded(self) -> bool:
        """Whether a caller waits for a place in a limit that it shares."""
        return any(limit._queue for limit in self.shared)

    @property
    def has_room(self) -> bool:
        """Whether none of its limits is full."""
        for limit in self.limits:  # noqa: SIM110 - every dial comes by: half of any()
            if limit.used >= limit._maximum:
                return False
        return True

    @property
    def overfull(self) -> bool:
        """Whether one of its limits was lowered, and more slots must close than are closing."""
        for limit in self.limits:  # noqa: SIM110 - every release comes by: half of any()
            if limit.used - limit._closing > limit._maximum:
                return True
        return False

    @property
    def failing(self) -> bool:
        """Whether the last dial failed, or its connection died unused."""
        return self.dials.failing

    @property
    def retry_at(self) -> float:
        """When the next dial may begin."""
        return self.dials.retry_at

    @property
    def last_error(self) -> BaseException | None:
        """Why the last dial failed; None once one has succeeded."""
        return self.dials.last_error

    @property
    def backoff(self) -> Backoff:
        """How long it pauses after failures."""
        return self.dials.backoff

    @backoff.setter
    def backoff(self, backoff: Backoff) -> None:
        self.dials.backoff = backoff

    @property
    def failures(self) -> int:
        """How many dials in a row have failed."""
        return self.dials.failures

    @property
    def effective_min_size(self) -> int:
        """How many connections to keep open, callers or not."""
        if self.closed or self.postponed:
            return 0
        return max(self.min_size, self.size) if self.filling else self.min_size

    @property
    def maximum(self) -> float:
        """How many connections it may have, by its settings."""
        return self.size + self.max_overflow

    @property
    def min_kept(self) -> int:
        """How many connections *idle_timeout* leaves open."""
        return max(self.effective_min_size, self.min_idle)

    @property
    def idle_spared(self) -> int:
        """How many connections *idle_timeout* neither closes nor replaces.  In a fixed pool, what
        it means is the time after which the server closes what is idle: none but *min_idle*."""
        return self.min_idle if self.min_size >= self.size else self.min_kept

    @property
    def missing(self) -> int:
        """How many dials it takes to reach that minimum without those that are due to go; one, to
        learn whether the server is back."""
        missing = self.effective_min_size - self.open + len(self.retiring)
        if self.outage.probing and not (self.closed or self.postponed):
            return max(missing, 1)
        return missing

    @property
    def unserved(self) -> int:
        """How many waiters there are for which no dial is under way."""
        return max(0, len(self.waiters) - self.connecting)

    @property
    def eligible(self) -> float:
        """For how many of those its own limit has places."""
        return min(self.unserved, max(0, self.own._maximum - self.own.used))

    @property
    def next_unserved(self) -> float:
        """The ticket of the first waiter for which nothing is under way; NEVER if there is none."""
        served = self.connecting + self.coming
        if len(self.waiters) <= served:
            return NEVER
        waiter = self.waiters.at(served)
        return NEVER if waiter is None else waiter.ticket

    def idle_slots(self) -> Iterator[Any]:
        """The idle slots, of its kind, longest idle first."""
        return self._idle.slots()

    def longest_idle(self) -> Slot | None:
        """The slot that has been idle longest, or None."""
        return self._idle.longest_idle()

    # What the pool and the runtime set

    def allow_fast_path(self, thread: int, max_idle: float | None = None) -> None:
        """Let callers of *thread* (0: of none) have what was idle for less than *max_idle* seconds
        (None: no bound) without asking the scheduler, when it opens the fast path; it is shut for
        now."""
        self.fast_path_thread, self.fast_path_max_idle = thread, max_idle
        self.fast_path_open = 0

    def postpone(self, postponed: bool) -> None:
        """Open its minimum only when it is used, or not so any more."""
        self.postponed = postponed

    def count_filling(self, change: int) -> None:
        """So many more callers wait for *size* connections."""
        self.filling += change

    def spare_idle(self, min_idle: int) -> None:
        """Have *idle_timeout* spare so many connections."""
        self.min_idle = min_idle

    def refuse_while_down(self, refuse: bool) -> None:
        """Say whether callers are sent away during a back-off."""
        self.fail_when_down = refuse
        self.set_troubled(self.troubled)

    def set_troubled(self, troubled: bool) -> None:
        """Say whether its failed dials may send callers away, or its server is full."""
        self.troubled = troubled
        #: Whether a caller of the crowd may just stand in line.
        self.patient = not (troubled or self.fail_when_full or self.fail_when_down)

    def note_error(self, error: BaseException) -> None:
        """Have *error* be the cause of what callers get from now on."""
        self.dials.last_error = error

    def __repr__(self) -> str:
        return (
            f"{self.name!r} {self.in_use} in use, {self.idle} idle, {self.connecting} connecting"
            f" | {len(self.waiters)} waiting"
        )
