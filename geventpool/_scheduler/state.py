"""The states of a slot, and the moves from one to another.

Must never be here: anything that holds a slot, or decides about one.
"""

from __future__ import annotations

import enum
import math

__all__ = [
    "AT_ONCE",
    "CHECKING",
    "CLOSED",
    "CLOSING",
    "CONNECTING",
    "IDLE",
    "IN_USE",
    "NEVER",
    "OPEN",
    "SALVAGING",
    "TRANSITIONS",
    "State",
]


class State(enum.Enum):
    """Where a slot is in its life."""

    __hash__ = object.__hash__  # Enum's own, which hashes the name, takes four times as long

    CONNECTING = "connecting"
    IDLE = "idle"
    IN_USE = "in use"  # held by a caller, or handed over to one
    CHECKING = "checking"  # the pool itself has it, for its keepalive
    SALVAGING = "salvaging"  # its use was cut short, and the pool brings it back into step
    CLOSING = "closing"  # still counts in every limit
    CLOSED = "closed"


CONNECTING, IDLE, IN_USE, CHECKING, SALVAGING, CLOSING, CLOSED = State

#: Every move a slot may make.  ``Ledger.move`` is the only place that makes one and counts it
#: (but for IDLE <-> IN_USE on the fast path of ``pools.Lease``, which no count depends on).
TRANSITIONS: dict[State, frozenset[State]] = {
    CONNECTING: frozenset({IDLE, CLOSED}),
    IDLE: frozenset({IN_USE, CHECKING, CLOSING}),
    IN_USE: frozenset({IDLE, SALVAGING, CLOSING, CLOSED}),
    CHECKING: frozenset({IDLE, CLOSING}),
    SALVAGING: frozenset({IDLE, CLOSING}),
    CLOSING: frozenset({CLOSED}),
    CLOSED: frozenset(),
}
OPEN = frozenset({IDLE, IN_USE, CHECKING, SALVAGING})
NEVER = math.inf
AT_ONCE = -math.inf
