"""The idle slots of one bucket, longest idle first."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from geventpool._scheduler.state import IDLE

if TYPE_CHECKING:
    from geventpool._scheduler.model import Slot

__all__ = ["IdleQueue", "idle_since"]


class IdleQueue(deque["Slot"]):
    """A deque, so that the fast path takes and leaves a slot by one call that nothing interrupts.

    A slot that leaves from the middle stays in it as a tombstone, known by its state, until it
    comes to an end of the queue: removing it would cost O(n).
    """

    __slots__ = ("tombstones",)

    def __init__(self) -> None:
        super().__init__()
        self.tombstones = 0

    @property
    def living(self) -> int:
        """How many lie idle."""
        return len(self) - self.tombstones

    def slots(self) -> Iterator[Slot]:
        """Those, longest idle first."""
        return (slot for slot in self if slot.state is IDLE)

    def push(self, slot: Slot) -> None:
        """Put *slot* in: last, or where a check took it from."""
        if self and self[-1].since > slot.since:
            self.insert(bisect.bisect_right(self, slot.since, key=idle_since), slot)
        else:
            self.append(slot)

    def take_out(self, slot: Slot) -> None:
        """Take out a slot that is not idle any more, wherever in it it is."""
        if self and self[0] is slot:
            self.popleft()
        else:
            self.tombstones += 1
            if self.tombstones > 32 + self.living:
                self.compact()

    def longest_idle(self) -> Slot | None:
        """The slot that has been idle longest, or None."""
        while self:
            if self[0].state is IDLE:
                return self[0]
            self.popleft()
            self.tombstones -= 1
        return None

    def compact(self) -> None:
        """Take the tombstones out, in place: methods are bound to this very deque."""
        living = list(self.slots())
        self.refill(living)

    def refill(self, slots: list[Slot]) -> None:
        """Have *slots*, longest idle first, and nothing else in it."""
        self.clear()
        self.extend(slots)
        self.tombstones = 0


def idle_since(slot: Slot) -> float:
    """By what idle slots are ordered."""
    return slot.since
