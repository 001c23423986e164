"""A connection that a caller has, for this once: what every verb that gives it back takes."""

from __future__ import annotations

from typing import NamedTuple

from geventpool._scheduler.model import Slot

__all__ = ["Hold"]


class Hold(NamedTuple):
    """Which slot it is, and which of its uses: a state is no identity, as it may come again."""

    slot: Slot
    use: int
