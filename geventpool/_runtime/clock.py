"""What every hand-out reads: the time, its place in a histogram, the thread, the greenlet.

Two sources say the same: this one, and ``clock.pyx``, which the compiled build has in its place.
Read all of these by way of the module, ``clock.monotonic()``: the time may be exchanged.
"""

from __future__ import annotations

import operator
import weakref
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any

from gevent import getcurrent, monkey

from geventpool._util.clock import monotonic as real
from geventpool.stats import BOUNDS

__all__ = [
    "get_ident",
    "getcurrent",
    "is_dead",
    "monotonic",
    "place_of",
    "proxy",
    "read_by",
    "real",
]

#: Seconds, of a clock that never goes back.
monotonic: Callable[[], float] = real

#: Among the counts of a histogram, the one of a duration in seconds: by ``BOUNDS``.
place_of: Callable[[float], int] = partial(bisect_left, BOUNDS)

#: The id of the OS thread, whether or not the program is monkey-patched.
get_ident: Callable[[], int] = monkey.get_original("_thread", "get_ident")

#: Whether a greenlet has ended, or its thread has.
is_dead: Callable[[Any], bool] = operator.attrgetter("dead")

#: A weak reference to a greenlet that can be used in its place.
proxy: Callable[[Any], Any] = weakref.proxy


def read_by(read: Callable[[], float]) -> None:
    """Have ``monotonic`` return what *read* does from now on; ``real`` undoes it."""
    global monotonic
    monotonic = read
