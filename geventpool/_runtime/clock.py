"""What is read at every hand-out: the time, the thread and the current greenlet.

Two sources say the same: this one, and ``clock.pyx``, which the compiled build has in its place.
Read all of these by way of the module, ``clock.monotonic()``: the time may be exchanged.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

from gevent import getcurrent, monkey

__all__ = ["get_ident", "getcurrent", "monotonic", "proxy", "read_by"]

#: Seconds, of a clock that never goes back.
monotonic: Callable[[], float] = time.monotonic

#: The id of the OS thread, whether or not the program is monkey-patched.
get_ident: Callable[[], int] = monkey.get_original("_thread", "get_ident")

#: A weak reference to a greenlet that can be used in its place.
proxy: Callable[[Any], Any] = weakref.proxy


def read_by(read: Callable[[], float]) -> None:
    """Have ``monotonic`` return what *read* does from now on; ``time.monotonic`` undoes it."""
    global monotonic
    monotonic = read
