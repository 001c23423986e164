"""A heap whose things may leave it from anywhere, at any time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["Heap"]

T = TypeVar("T", bound=Hashable)
_numbers = itertools.count()


class Heap(Generic[T]):
    """Things by their key, the least first; each is in it once at most, and may leave at any time.

    One that leaves is let go of at once.  The gap it leaves stays until it comes to the top, or
    there are more gaps than things: closing it would cost O(n).
    """

    __slots__ = ("_entries", "_heap")

    def __init__(self) -> None:
        self._heap: list[list[Any]] = []  # [key, number, thing, or None for a gap]
        self._entries: dict[T, list[Any]] = {}

    def put(self, thing: T, key: float) -> None:
        """Put *thing* in, or give it another key."""
        entry = self._entries.get(thing)
        if entry is not None:
            if entry[0] == key:
                return
            self.discard(thing)
        entry = self._entries[thing] = [key, next(_numbers), thing]
        heapq.heappush(self._heap, entry)

    def discard(self, thing: T) -> None:
        """Take *thing* out, if it is in it."""
        entry = self._entries.pop(thing, None)
        if entry is not None:
            entry[2] = None
            if len(self._heap) > 64 + 2 * len(self._entries):
                self._heap = list(self._entries.values())
                heapq.heapify(self._heap)

    def first(self) -> tuple[float, T]:
        """The least key and whose it is; there must be one."""
        while self._heap[0][2] is None:
            heapq.heappop(self._heap)
        key, _, thing = self._heap[0]
        return key, thing

    def __contains__(self, thing: object) -> bool:
        return thing in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)
