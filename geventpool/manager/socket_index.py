"""From what is pooled to the socket in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from geventpool.sockets.monitored import MonitoredSocket

__all__ = ["SocketIndex"]


class SocketIndex:
    """The MonitoredSocket in each thing that is pooled, which may be that itself.

    A thing is known by its identity, as it may say that it equals others; and a tuple, as of a
    reader and a writer, by that of its parts, as its holder may take it apart and put it together
    again.  For as long as they live the socket does, even if nothing in them needs it any more.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def get(self, thing: Any) -> MonitoredSocket | None:
        """The socket in *thing*; None if there is none."""
        entry = self._entry(thing)
        return None if entry is None else entry.sock()

    def put(self, thing: Any, sock: MonitoredSocket) -> None:
        """Note that *sock* is in *thing*."""
        parts = _parts(thing)
        part_ids = tuple(map(id, parts))
        weakrefable = [part for part in parts if _is_weakrefable(part)]
        # It must not keep itself alive; and what cannot tell of its end must not keep anything.
        is_part = any(part is sock for part in parts)
        hold = weakref.ref(sock) if is_part or not weakrefable else lambda: sock
        for part in weakrefable:
            self._entries[id(part)] = _Entry(part_ids, hold, self._until_gone(part, id(part)))
        if not weakrefable:
            self._entries[id(thing)] = _Entry(part_ids, hold, self._until_gone(sock, id(thing)))

    def discard(self, thing: Any) -> None:
        """Keep nothing of *thing*."""
        entry = self._entry(thing)
        if entry is not None:
            for key in entry.part_ids:
                self._entries.pop(key, None)

    def _entry(self, thing: Any) -> _Entry | None:
        entry = self._entries.get(id(thing))
        if entry is not None and len(entry.part_ids) == 1:
            return entry
        parts = _parts(thing)
        found = (self._entries.get(id(part)) for part in parts)
        # Parts may be shared; None stands for one that has been collected.
        return next((entry for entry in found if entry is not None and entry.is_of(parts)), None)

    def _until_gone(self, anchor: Any, key: int) -> weakref.ref[Any]:
        entries = self._entries
        return weakref.ref(anchor, lambda _: entries.pop(key, None))


class _Entry(NamedTuple):
    part_ids: tuple[int, ...]  # the identities of the parts
    sock: Callable[[], MonitoredSocket | None]
    anchor: weakref.ref[Any]  # takes the entry out of the book

    def is_of(self, parts: Sequence[Any]) -> bool:
        return len(parts) == len(self.part_ids) and all(
            part is None or id(part) == known
            for part, known in zip(parts, self.part_ids, strict=True)
        )


def _parts(thing: Any) -> Sequence[Any]:
    """What *thing* is known by: the parts of a plain tuple, if one of them tells of its end."""
    if isinstance(thing, tuple) and not _is_weakrefable(thing) and any(map(_is_weakrefable, thing)):
        return thing
    return (thing,)


def _is_weakrefable(thing: Any) -> bool:
    """Whether *thing* can be weakly referenced."""
    return type(thing).__weakrefoffset__ != 0  # negative where the interpreter keeps it for itself
