"""What of a limit is counted.

Nothing is decided here: ``arbiter.py`` does, and ``ledger.py`` changes what stands here.
"""

from __future__ import annotations

__all__ = ["Places"]


class Places:
    """The part of a Limit that is read whenever a caller joins a line, and whenever one is served:
    by itself, as that is compiled, and a Limit may be subclassed."""

    __slots__ = ("_closing", "_coming", "_maximum", "used")

    def __init__(self, maximum: float) -> None:
        self._maximum = maximum
        self.used = 0
        self._closing = 0
        # A bucket claims a place that is free or coming free when its waiter cannot dial yet, as
        # it needs one in another limit, too, or a slot has yet to close.
        self._coming = 0  # places that are claimed
