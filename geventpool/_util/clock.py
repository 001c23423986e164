"""The clock of all that waits, ages or is measured here.

A test that freezes the time of its program, as freezegun does, exchanges ``time.monotonic`` in
every module that has it.  The loop of gevent goes on meanwhile, and so must what waits in it: a
pool's limit of 2 s would never come, and all that it has would be decades old.  These are other
objects, which nothing looks for; a test that wants an hour to pass has FakeClock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

__all__ = ["monotonic", "perf_counter"]

#: Seconds, of a clock that never goes back.
monotonic: Callable[[], float] = partial(time.monotonic)

#: The same, for what is real whatever FakeClock says.
perf_counter: Callable[[], float] = partial(time.perf_counter)
