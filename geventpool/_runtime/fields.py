"""What the hot path reads of objects that stay Python: compiled, it finds a field by its place.

Each class here is the base of another, which has all the rest, and sets these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Alarm", "PoolFields"]


class PoolFields:
    """Of a pool."""

    __slots__ = (
        "_bucket",
        "_desk",
        "_lease",
        "checks_on_checkout",
        "listening",
        "max_waiting",
        "timeout",
        "track",
    )

    _bucket: Any  # of a ConnectionPool: its PoolBucket; None before there is one
    _desk: Any
    _lease: type[Any]  # what ``get`` makes
    checks_on_checkout: bool  # whether a hand-out takes more than a probe
    listening: dict[str, tuple[Callable[[Any], object], ...]]  # the listeners, by event
    max_waiting: int | None
    timeout: float | None
    track: bool


class Alarm:
    """Of what looks at the callers in line when the time has come."""

    __slots__ = ("at", "idle")

    at: float  # when it does so next, by the clock; NEVER if that is not known
    idle: bool  # no look is due that would do for a caller that comes now
