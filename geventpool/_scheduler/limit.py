"""A cap on slots, which several buckets may share.

Nothing is decided here: ``scheduler.py`` does, and changes what stands here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from geventpool._scheduler.state import IDLE
from geventpool._util.heap import Heap

if TYPE_CHECKING:
    from geventpool._scheduler.model import Bucket, Slot

__all__ = ["Limit", "idle_since"]


class Limit:
    """A cap on slots: at most *maximum* are counted at any moment, dialing and closing included.

    Give one Limit to several pools of a hub (``limits=(limit,)``) and they share the cap: when it
    is full, the longest idle connection of any of them makes room for the caller that has waited
    longest.  It makes none for another pool's minimum, which is filled when a place comes free.

    ``maximum`` may be set at any time, from any thread; ``math.inf`` means no cap.  Lowered below
    ``used``, nothing more is opened until enough connections have gone: idle ones are closed at
    once, others as they come back.
    """

    def __init__(self, maximum: float, name: str | None = None) -> None:
        self._maximum = _whole(maximum, "maximum")
        self.name = name
        self.used = 0
        self._closing = 0
        self._scheduler: Any = None  # the one whose buckets share it
        self._buckets: dict[Bucket, None] = {}
        # Those of them that are not one of many: their idle slots are asked for when need be.
        self._few: dict[Bucket, None] = {}
        # The idle slots of the others, and what was idle once: by since when, or from before that.
        self._lru: Heap[Slot] = Heap()
        self._with_waiters: dict[Bucket, None] = {}  # have waiters
        # The same by the ticket of their oldest waiter, or that of one before it.
        self._queue: Heap[Bucket] = Heap()
        # Have waiters that wait because this limit is full
        self._blocked_here: dict[Bucket, None] = {}
        # Are below their minimum because of this limit
        self._below_minimum: dict[Bucket, None] = {}

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

    @property
    def full(self) -> bool:
        """Whether no slot more may be counted."""
        return self.used >= self._maximum

    def _enqueue(self, bucket: Bucket) -> None:
        """Note where among those with waiters *bucket* stands."""
        self._queue.put(bucket, next(iter(bucket.waiters)).ticket)

    def _note_idle(self, slot: Slot) -> None:
        """Note an idle slot of a bucket that is one of many."""
        if slot not in self._lru:  # else the key is put right when it is asked for
            self._lru.put(slot, slot.since)

    def _longest_idle(self) -> Slot | None:
        """The slot counted here that has been idle longest, or None."""
        found = [slot for bucket in self._few if (slot := bucket.longest_idle())]
        while self._lru:
            since, slot = self._lru.first()
            if slot.state is not IDLE:
                self._lru.discard(slot)  # until it is idle again
            elif slot.since > since:
                self._lru.put(slot, slot.since)
            else:
                found.append(slot)
                break
        return min(found, key=idle_since, default=None)

    def __repr__(self) -> str:
        return f"<Limit {self.name or ''} {self.used} of {self._maximum}>".replace("  ", " ")


def _whole(value: float, name: str) -> float:
    if isinstance(value, bool) or not (isinstance(value, int) or value == math.inf):
        raise TypeError(f"{name} must be a whole number or math.inf, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative: {value!r}")
    return value


def idle_since(slot: Slot) -> float:
    """By what idle slots are ordered."""
    return slot.since
