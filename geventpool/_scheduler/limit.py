"""A cap on slots, which several buckets may share, and whose the places are that come free.

Nothing is decided here: ``arbiter.py`` does, and ``ledger.py`` changes what stands here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from geventpool._scheduler.idle_queue import idle_since
from geventpool._scheduler.places import Places
from geventpool._scheduler.state import IDLE
from geventpool._util.heap import Heap

if TYPE_CHECKING:
    from geventpool._scheduler.model import Bucket, Slot

__all__ = ["Limit"]


class Limit(Places):
    """A cap on slots: at most *maximum* are counted at any moment, dialing and closing included.

    Give one Limit to several pools of a hub (``limits=(limit,)``) and they share the cap: when it
    is full, the longest idle connection of any of them makes room for the caller that has waited
    longest.  It makes none for another pool's minimum, which is filled when a place comes free.

    ``maximum`` may be set at any time, from any thread; ``math.inf`` means no cap.  Lowered below
    ``used``, nothing more is opened until enough connections have gone: idle ones are closed at
    once, others as they come back.
    """

    def __init__(self, maximum: float, name: str | None = None) -> None:
        super().__init__(_whole(maximum, "maximum"))
        self.name = name
        self._demand: float = 0  # how many more the waiters of all could use
        self._scheduler: Any = None  # the one whose buckets share it
        self._buckets: dict[Bucket, None] = {}
        # Those of them that are not one of many: their idle slots are asked for when need be.
        self._few: dict[Bucket, None] = {}
        # The idle slots of the others, and what was idle once: by since when, or from before that.
        self._lru: Heap[Slot] = Heap()
        # Buckets with a claim on it, the one with the youngest waiter first ...
        self._claims: Heap[Bucket] = Heap()
        # ... and those of them that could dial but that no place is free here, the oldest first.
        self._ripe: Heap[Bucket] = Heap()
        # Those whose next waiter waits because nothing comes free here, the oldest first.
        self._queue: Heap[Bucket] = Heap()
        self._crowded = False  # whether that has any, as those with a fast path were told
        self._below_minimum: dict[Bucket, None] = {}  # those that are so because of it
        self._audited_at = -math.inf

    @property
    def maximum(self) -> float:
        """The cap; ``math.inf`` for none."""
        return self._maximum

    @maximum.setter
    def maximum(self, maximum: float) -> None:
        self._maximum = _whole(maximum, "maximum")
        if self._scheduler is not None:
            self._scheduler.effects.reconcile_limit_later(self)

    @property
    def effects(self) -> Any:
        """Of the scheduler whose buckets share it, or shared it last; None before that."""
        return None if self._scheduler is None else self._scheduler.effects

    def abandon(self) -> None:
        """Forget all that is counted here: the hub that it was counted for is gone."""
        Limit.__init__(self, self._maximum, self.name)

    # For a cap that is shared with other processes

    def may_dial(self) -> bool:
        """Whether a dial that is counted here may begin: asked just before each one, in the
        greenlet that dials.  May lower ``maximum``; must not switch."""
        return True

    @property
    def may_rise(self) -> bool:
        """Whether ``maximum`` may be raised soon, by itself."""
        return False

    def server_full(self) -> None:
        """A dial that is counted here was told that the server takes no more connections.  May
        lower ``maximum``; must not switch."""

    @property
    def in_use(self) -> int:
        """How many of those counted here callers hold."""
        return sum(bucket.in_use for bucket in self._buckets)

    @property
    def full(self) -> bool:
        """Whether no slot more may be counted."""
        return self.used >= self._maximum

    @property
    def waiting(self) -> int:
        """How many callers wait for a place in it, those included for which one comes free."""
        return sum(bucket.unserved for bucket in {*self._queue, *self._claims})

    @property
    def spare(self) -> float:
        """How many places are free or coming free that no bucket has claimed."""
        return self._maximum - self.used + self._closing - self._coming

    @property
    def overfull(self) -> bool:
        """Whether it was lowered, and more slots must close than are closing."""
        return self.used - self._closing > self._maximum

    @property
    def reserved(self) -> bool:
        """Whether waiters could use all the places that are left."""
        return self.used + self._demand >= self._maximum or self.spare <= 0

    def youngest_claim(self) -> tuple[float, Bucket] | None:
        """The ticket of the youngest waiter for which a place is claimed, and its bucket."""
        if not self._claims:
            return None
        key, bucket = self._claims.first()
        return -key, bucket

    def forget(self, bucket: Bucket) -> None:
        """Know nothing of where *bucket* stands."""
        self._claims.discard(bucket)
        self._ripe.discard(bucket)
        self._queue.discard(bucket)

    def note_idle(self, slot: Slot) -> None:
        """Note an idle slot of a bucket that is one of many."""
        if slot not in self._lru:
            self._lru.put(slot, slot.since)
        # Keys are put right as they come first: two here for each that may have become wrong, so
        # that a search for the longest idle finds little to do.
        elif not self._first_is_right():
            self._first_is_right()

    def longest_idle(self) -> Slot | None:
        """The slot counted here that has been idle longest, or None."""
        found = [slot for bucket in self._few if (slot := bucket.longest_idle())]
        while not self._first_is_right():
            pass
        if self._lru:
            found.append(self._lru.first()[1])
        return min(found, key=idle_since, default=None)

    def _first_is_right(self) -> bool:
        """Whether the first in the heap of idle slots, if any, is idle, and since then; if not,
        another may be first now."""
        if not self._lru:
            return True
        since, slot = self._lru.first()
        if slot.state is IDLE and slot.since == since:
            return True
        if slot.state is IDLE:
            self._lru.put(slot, slot.since)
        else:
            self._lru.discard(slot)  # until it is idle again
        return False

    def __repr__(self) -> str:
        return f"<Limit {self.name or ''} {self.used} of {self._maximum}>".replace("  ", " ")


def _whole(value: float, name: str) -> float:
    if isinstance(value, bool) or not (isinstance(value, int) or value == math.inf):
        raise TypeError(f"{name} must be a whole number or math.inf, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative: {value!r}")
    return value
