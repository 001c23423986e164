"""What a slot and a bucket are to the runtime: a place with its connection, and the pool's part.

The scheduler decides about ``Slot`` and ``Bucket`` and knows nothing of what stands here.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from geventpool._runtime import clock
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.state import AT_ONCE, IN_USE
from geventpool._scheduler.waiter import Waiter
from geventpool._util.deadlines import active, useless_after
from geventpool._util.errors import text_of
from geventpool.events import Reason, Refusal
from geventpool.stats import BOUNDS

__all__ = [
    "SHORTEST",
    "Caller",
    "ConnectionSlot",
    "Hold",
    "Look",
    "PoolBucket",
    "hold_of",
    "is_held",
]


class ConnectionSlot(Slot):
    """A slot and the connection in it."""

    __slots__ = (
        "broken_by",
        "conn",
        "fds",
        "forked",
        "holder",
        "ident",
        "identities",
        "looks_on_return",
        "loose_use",
        "raised_before",
        "ref",
        "reported_since",
        "returning",
        "where",
        "where_use",
        "why_unusable",
    )
    bucket: PoolBucket

    def __init__(self, bucket: Bucket, now: float) -> None:
        Slot.__init__(self, bucket, now)  # super() takes longer
        # The connection, while the pool has it.  While a caller has it the slot must not keep it
        # alive: if the caller forgets it, its collection gives the slot back.
        self.conn: Any = None
        self.ref: Any = None  # callable -> the connection wherever it is, None once collected
        self.holder: Any = None  # weak proxy of the greenlet that has it
        self.returning = False  # a caller has released it, and its reset is under way
        self.where: Any = None  # the Stack that acquired it, when the pool tracks
        self.where_use = 0  # the use that *where* is of
        self.ident = 0  # id() of the connection
        self.why_unusable: Any = None  # its probe: truthy if it has unread bytes, or is dead
        self.looks_on_return = False  # the fast path must not take it back unseen
        self.loose_use = 0  # in which no ``with`` has it: another greenlet may give it back
        self.raised_before = 0  # mark of the exception that was being handled when it was acquired
        self.fds: tuple[int, ...] = ()  # the files that are watched
        self.identities: tuple[Any, ...] = ()  # of them, if the connection is no mere socket
        self.broken_by: BaseException | None = None  # what broke it, or cut its use short
        self.forked = False  # left behind by a fork: it is the parent's
        self.reported_since = AT_ONCE  # the *since* of the use that was reported to last long

    def is_quiet(self) -> bool:
        """Whether its probe, which it has, finds nothing.  What it finds is looked at more closely,
        and so is one that fails: it may be a user's.  So is what no caller has used: a server's
        greeting may lie unread on it, and stays there."""
        try:
            return self.uses > 0 and not self.why_unusable(self.conn)
        except Exception:
            return False

    def comes_back_clean(self, owner: Any, conn: Any) -> bool:
        """Whether *conn*, which its caller gives back to *owner*, may go to the next one as it is;
        if not, it is looked at more closely.  What lies unread on it is seen before that one has
        it."""
        if self.returning:
            return False  # its reset is under way: it is given back already
        probe = self.why_unusable
        try:
            if not (self.fds and probe.untouched(conn)):
                return False
            if owner._may_reconnect and probe.why_gone(conn):
                return False  # to a file of the same number, perhaps: it is to be watched anew
            return not (owner.has_reset and owner._needs_reset(conn))
        except Exception:
            return False


class Caller(Waiter):
    """A waiter, as its greenlet sees it."""

    __slots__ = ("gone",)  # whether it does not wait (any more) for what it gets
    gone: bool


#: One use of a slot: which, and its how-many-eth.  A state is no identity: whatever may have
#: switched meanwhile, the slot may be another caller's by now, and IN_USE all the same.
Hold: TypeAlias = tuple[ConnectionSlot, int]


def hold_of(slot: ConnectionSlot) -> Hold:
    """Its present use."""
    return slot, slot.uses


def is_held(hold: Hold) -> bool:
    """Whether that use still lasts."""
    slot, use = hold
    return slot.state is IN_USE and slot.uses == use


class Look(NamedTuple):
    """What the holders of a bucket's connections looked like a moment ago."""

    until: float  # good enough until then
    held_for: tuple[float, ...]  # the longest first
    holders: Counter[int]  # id(greenlet) -> how many it has
    longest: str  # who holds for longest, in words


_COUNTERS = (
    *("use_sum", "wait_sum", "connect_sum", "held_long"),
    *("lost_uses", "abandoned", "dialed", "checked"),
    *("salvaged", "salvage_failed"),
)
_LONGEST = ("use_max", "wait_max", "connect_max", "waiting_max")
_HISTOGRAMS = ("use_counts", "wait_counts", "connect_counts")

#: The shortest bound of a histogram: what is below it takes no search for its place.
SHORTEST = BOUNDS[0]

_ERRORS = 10  # the last so many are kept

# How the duration of long uses is estimated: see PoolBucket.long_use.
_FEW_USES = 10
_STEP = 0.05  # of its logarithm; the estimate is right to about a tenth
_MOST_AT_ONCE = 20  # so many short uses are made up for: nobody has asked, so it was not corrected
_SHORTEST_USE = 1e-6  # seconds


class PoolBucket(Bucket):
    """A bucket and the pool's part in it: whose hooks, timers and greenlets serve it."""

    __slots__ = (  # as in Bucket
        *("use_counts", "use_long", "use_max", "use_sum"),
        *("wait_counts", "wait_max", "wait_sum", "waiting_max"),
    )
    slot_type = ConnectionSlot
    slots: dict[ConnectionSlot, None]  # type: ignore[assignment]
    _idle: deque[ConnectionSlot]  # type: ignore[assignment]

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.owner: Callable[[], Any] = _nobody  # -> the pool whose hooks open and close, or None
        self.kept_hooks: Any = None  # that pool once it was collected, as long as there are slots
        self.key: tuple[Any, ...] = ()  # what the hooks get first: nothing, or the endpoint
        self.retry_timer: Any = None  # runs during a back-off
        self.shorten_timer: Any = None  # runs while a caller waits for a check
        self.look_timer: Any = None  # until the next look at its line, with *overload*
        self.cut_short: deque[float] | None = None  # when Timeouts did that to the last few uses
        self.changed: Any = None  # an Event, for those that wait for slots to come or go
        self.pins = 0  # of one of many: callers that are about to wait or do
        self.on_empty: Callable[[PoolBucket], object] | None = None  # called when it left, empty
        self.maintenance: tuple[Any, ...] = ()  # what looks after it: keepalive and reaper
        self.has_keepalive = True  # by the keepalive of its pool, if that has one
        self.last_look: Look | None = None  # at the holders of many connections
        self.check_error: str | None = None  # of the check that failed last,
        self.check_failed_at = AT_ONCE  # at that time
        self.last_peer: str | None = None  # that hung up on an unused connection
        self.recycled: deque[Any] = deque()  # closed ones whose replacement is to be announced

    def reset_counters(self) -> None:
        """Start to count from zero."""
        super().reset_counters()
        # How many were how long, by BOUNDS: use_count and the like are the sums of these.
        none = [0] * (len(BOUNDS) + 1)
        self.use_counts, self.wait_counts = list(none), list(none)
        self.connect_counts = none
        self.use_sum = self.wait_sum = self.connect_sum = 0.0
        self.use_max = self.wait_max = self.connect_max = 0.0
        self.lost_uses = self.abandoned = 0
        self.refusals: Counter[Refusal] = Counter()  # callers that got no connection, by why
        self.use_long = 0.0  # a use that took longer is noted: see long_use
        self.uses_seen: int | None = None  # by that; None: nobody has asked for it yet
        self.dialed = self.checked = self.salvaged = self.salvage_failed = 0
        self.waiting_max = self.held_long = 0
        self.errors: deque[tuple[float, str]] = deque(maxlen=_ERRORS)  # when and what, the last few

    def absorb(self, other: Bucket) -> None:
        """Add what *other* has counted."""
        super().absorb(other)
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _LONGEST:
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for name in _HISTOGRAMS:
            both = zip(getattr(self, name), getattr(other, name), strict=True)
            setattr(self, name, [mine + its for mine, its in both])
        if isinstance(other, PoolBucket):
            self.refusals.update(other.refusals)
            self.errors = deque(sorted((*self.errors, *other.errors)), maxlen=_ERRORS)

    @property
    def use_count(self) -> int:
        """How many uses have ended."""
        return sum(self.use_counts)

    @property
    def wait_count(self) -> int:
        """How many callers that had to wait were served."""
        return sum(self.wait_counts)

    @property
    def connect_count(self) -> int:
        """How many dials have succeeded."""
        return sum(self.connect_counts)

    @property
    def down(self) -> bool:
        """Whether nothing is open, and dials fail."""
        if self.open:
            return False
        return self.outage.on or (self.failing and self.last_error is not None)

    def note_failure(self, error: BaseException) -> None:
        """Keep *error*, as text, among the last few."""
        # Its frames would keep the pool alive.
        self.errors.append((time.time(), f"{type(error).__name__}: {text_of(error)}"))

    def check_failed(self, error: BaseException, now: float) -> None:
        """Note that a server did not answer as it should."""
        self.note_failure(error)
        self.check_error, self.check_failed_at = self.errors[-1][1], now

    def count_use(self, used: float) -> None:
        """Book the end of a use that was so long."""
        self.use_counts[clock.place_of(used)] += 1
        self.use_sum += used
        if used > self.use_long:
            self.note_long_use(used)

    def note_long_use(self, used: float) -> None:
        """One took longer than *use_long*."""
        if used > self.use_max:
            self.use_max = used
        if self.uses_seen is None:
            self.use_long = self.use_max
        else:
            self._adapt(1.0)

    def long_use(self) -> float:
        """What nine in ten uses take no longer than, in seconds; 0.0 as long as few were counted.

        An estimate by stochastic approximation (Robbins and Monro, 1951), as streams of data have
        their quantiles estimated without being kept: each use that takes longer than the estimate
        raises it, and each that does not lowers it by a ninth of that; those are only counted, and
        made up for now and then.  So a use costs no more than without it.  It begins with the mean,
        which errs on the side of handing out.
        """
        if self.use_count < _FEW_USES:
            return 0.0
        if self.uses_seen is None:
            self.uses_seen, self.use_long = self.use_count, self.use_sum / self.use_count
        elif self.use_count - self.uses_seen >= _FEW_USES:
            self._adapt(0.0)
        return self.use_long

    def _adapt(self, longer: float) -> None:
        """Make up for the uses since the last time, of which so many took longer."""
        uses = min(self.use_count - (self.uses_seen or 0), _MOST_AT_ONCE)
        self.uses_seen = self.use_count
        changed = self.use_long * math.exp(_STEP * (longer - 0.1 * uses))
        self.use_long = min(max(changed, _SHORTEST_USE), self.use_max)

    def useless_after(self, greenlet: Any) -> float:
        """From when on a connection is of no use to *greenlet*, by its nearest Deadline; NEVER if
        it is under none."""
        return useless_after(greenlet, self.long_use())

    def is_useless_to(self, greenlet: Any) -> bool:
        """Whether it is too late for *greenlet* to use a connection."""
        return greenlet in active and self.useless_after(greenlet) <= clock.monotonic()

    def count_connect(self, seconds: float) -> None:
        """Book a dial that succeeded and took so long."""
        self.connect_counts[clock.place_of(seconds)] += 1
        self.connect_sum += seconds
        if seconds > self.connect_max:
            self.connect_max = seconds

    @property
    def endpoint(self) -> Any:
        """Where its connections lead; None where that goes without saying."""
        return self.key[0] if self.key else None

    def carriers_of(self, conn: Any) -> Any:
        """What the pool's hook says that carries the bytes of *conn*.  A probe keeps this, which
        must not keep the pool."""
        return self.last_owner._ask_socket(*self.key, conn)

    @property
    def empty(self) -> bool:
        """Whether it has neither slots nor callers, nor has to remember a back-off."""
        return not (self.slots or self.waiters or self.pins or self.retry_timer)

    @property
    def last_owner(self) -> Any:
        """The pool, even if it was collected and its connections wait to be closed; or None."""
        owner = self.owner()
        return self.kept_hooks if owner is None else owner

    def reason_counted(self, reason: Reason) -> int:
        """How many connections were closed for *reason*."""
        return self.reasons.get(reason, 0)


def _nobody() -> None:
    return None
