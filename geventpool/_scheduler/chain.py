"""Waiters in a row, the first of which is found at once, and which any may leave from anywhere.

Two sources say the same: this one, and ``chain.pyx``, which the compiled build has in its place.
There each waiter knows those next to it, and nothing besides has to be looked at or kept.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geventpool._scheduler.waiter import Waiter

__all__ = ["Chain"]


class Chain(OrderedDict["Waiter", None]):
    """A mapping, so that its verbs are calls of C that nothing interrupts.

    It is not to be changed while it is iterated over.
    """

    __slots__ = ()
