"""The way from a slot to its connection, which a caller has: it does not keep that alive.

What is collected without having been given back is noticed, and its place is free again.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from geventpool._runtime.introspection import where_acquired
from geventpool._runtime.slots import ConnectionSlot
from geventpool._scheduler.state import IN_USE
from geventpool._util.clock import monotonic
from geventpool.events import ConnectionLost, Reason

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["Leaks", "connection_ref"]


def connection_ref(slot: ConnectionSlot, conn: Any, when_collected: Callable[[Any], object]) -> Any:
    """Return a callable that returns *conn*, and None once it has been collected.

    Its ``is_for(other)`` says whether that is *conn*.  When *conn* is collected,
    *when_collected* is called with something that has the *slot*, from wherever the collector runs.
    What cannot be weakly referenced is kept alive; but of a tuple, its parts are watched.
    """
    found = _ref_to(slot, conn, when_collected)
    # A tuple with a __dict__ is more than its parts.
    if type(found) is StrongRef and isinstance(conn, tuple) and not hasattr(conn, "__dict__"):
        parts = [_ref_to(slot, part, when_collected) for part in conn]
        if any(type(part) is ConnectionRef for part in parts):
            return PartsRef(conn, parts)
    return found


def _ref_to(
    slot: ConnectionSlot, target: Any, when_collected: Callable[[Any], object]
) -> ConnectionRef | StrongRef:
    try:
        found = ConnectionRef(target, when_collected)
    except TypeError:
        return StrongRef(target)
    found.slot = slot
    return found


class ConnectionRef(weakref.ref):  # type: ignore[type-arg]
    __slots__ = ("slot",)
    slot: ConnectionSlot

    def is_for(self, conn: Any) -> bool:
        return self() is conn


class StrongRef:
    __slots__ = ("_kept",)

    def __init__(self, kept: Any) -> None:
        self._kept = kept

    def __call__(self) -> Any:
        return self._kept

    def is_for(self, conn: Any) -> bool:
        return self._kept is conn


class PartsRef:
    """Watches a tuple, such as a reader and a writer, by those of its parts that can be referenced.

    Leads to a tuple like the first, for which its holder may have no use once it has taken it
    apart, with None for each part that has been collected; to None once all have been that can be.
    """

    __slots__ = ("_parts", "_type")

    def __init__(self, conn: Any, parts: list[ConnectionRef | StrongRef]) -> None:
        self._type = type(conn)
        self._parts = parts

    def __call__(self) -> Any:
        found = tuple(part() for part in self._parts)
        for part, each in zip(self._parts, found, strict=True):
            if each is not None and type(part) is ConnectionRef:
                return tuple.__new__(self._type, found)
        return None

    def is_for(self, conn: Any) -> bool:
        return (
            type(conn) is self._type
            and len(conn) == len(self._parts)
            and all(
                part() is each and (each is not None or type(part) is StrongRef)
                for part, each in zip(self._parts, conn, strict=True)
            )
        )


class Leaks:
    """Gives back the places of connections that were collected while callers had them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lost: deque[ConnectionSlot] = deque()

    def collected(self, ref: ConnectionRef) -> None:
        """A connection was garbage collected.  This may run anywhere: only take a note."""
        slot = ref.slot
        if slot.state is IN_USE and slot.conn is None and not self._runtime.dead:
            self._lost.append(slot)
            self._runtime.loop.run_callback_threadsafe(self._take_back)

    def _take_back(self) -> None:
        runtime = self._runtime
        while self._lost:
            slot = self._lost.popleft()
            if slot.state is not IN_USE or slot.ref() is not None or slot.conn is not None:
                continue
            bucket = slot.bucket
            owner = bucket.owner()
            now = monotonic()
            used = now - slot.since
            runtime.index.forget(owner, slot)
            runtime.scheduler.detach(slot, Reason.LOST, now)
            runtime.changed(bucket)
            if owner is not None:
                where, endpoint = where_acquired(slot), bucket.endpoint
                runtime.notifier.lost(owner, ConnectionLost(owner, used, where, endpoint=endpoint))
