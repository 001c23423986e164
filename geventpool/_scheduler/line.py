"""The callers that wait for a connection of one bucket, and when each of them is due.

Nothing is decided here: see ``arbiter.py``.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

from geventpool._scheduler.chain import Chain
from geventpool._scheduler.state import AT_ONCE, NEVER

if TYPE_CHECKING:
    from geventpool._scheduler.waiter import Waiter

__all__ = ["Line", "deadline_of"]

_numbers = itertools.count()


class Line(Chain):
    """Waiters, the oldest first; any may leave from anywhere."""

    __slots__ = ("_early", "latest")

    def __init__(self) -> None:
        super().__init__()
        self.latest = AT_ONCE  # the latest deadline in it
        # A line is nearly always sorted by deadline, too.  Waiters that are due before another that
        # stands ahead of them are also in this heap; those that have left are taken out in time.
        self._early: list[tuple[float, int, Waiter]] = []

    @property
    def oldest(self) -> Waiter:
        """The one that is served first; there must be one."""
        return next(iter(self))

    def at(self, place: int) -> Waiter | None:
        """The one with *place* others ahead of it, or None: O(place)."""
        return next(itertools.islice(self, place, None), None)

    def join(self, waiter: Waiter) -> None:
        """Put *waiter* at the end."""
        self[waiter] = None
        deadline = waiter.deadline
        if deadline >= self.latest:
            self.latest = deadline
        else:
            self.note_early(waiter, deadline)

    def rejoin(self, waiter: Waiter) -> None:
        """Put *waiter* back where it stood by its ticket: near the front, as only the oldest are
        served."""
        waiter.requeued = True
        self[waiter] = None
        older = list(itertools.takewhile(lambda w: w.ticket < waiter.ticket, self))
        for other in (waiter, *reversed(older)):
            self.move_to_end(other, last=False)
        if waiter.deadline < NEVER:
            self.note_early(waiter, waiter.deadline)
        else:
            self.latest = NEVER

    def drop(self, waiter: Waiter) -> None:
        """Take *waiter* out."""
        del self[waiter]
        if not self:
            self.ended()

    def ended(self) -> None:
        """Keep nothing of those that were in it."""
        self.latest = AT_ONCE
        self._early.clear()  # they would keep alive what is long gone

    def set_right(self) -> None:
        """Have it in order, and all deadlines noted, whatever was cut short."""
        for waiter in sorted(self, key=lambda waiter: waiter.ticket):
            self.move_to_end(waiter)
        deadlines = [(deadline_of(waiter), next(_numbers), waiter) for waiter in self]
        self.latest = max((entry[0] for entry in deadlines), default=AT_ONCE)
        self._early = [entry for entry in deadlines if entry[0] < NEVER]
        heapq.heapify(self._early)

    def due(self, now: float) -> list[Waiter]:
        """Those whose deadline has come."""
        due = []
        while self._early and self._early[0][0] <= now:
            waiter = heapq.heappop(self._early)[2]
            if waiter in self:
                due.append(waiter)
        for waiter in self:
            if not waiter.requeued:
                if deadline_of(waiter) > now:
                    break
                due.append(waiter)
        return due

    def next_deadline(self) -> float:
        """When ``due`` has one next; NEVER if none has a deadline."""
        early = self._early
        while early and early[0][2] not in self:
            heapq.heappop(early)
        first = early[0][0] if early else NEVER
        for waiter in self:
            if not waiter.requeued:  # those stand at the front, and are in the heap
                return min(first, deadline_of(waiter))
        return first

    def note_early(self, waiter: Waiter, deadline: float) -> None:
        """Note one that is due before another ahead of it."""
        heapq.heappush(self._early, (deadline, next(_numbers), waiter))
        if len(self._early) > 64 + 2 * len(self):
            self._early = [entry for entry in self._early if entry[2] in self]
            heapq.heapify(self._early)


def deadline_of(waiter: Waiter) -> float:
    """When its wait ends at the latest; NEVER for no bound."""
    return waiter.deadline
