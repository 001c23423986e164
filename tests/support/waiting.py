"""Waiting for what nothing tells of: the kernel, another process, the garbage collector.

Where something does tell of it (an event, a counter with its own ``wait_…``), wait for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
import pytest

__all__ = ["until"]


def until(
    condition: Callable[[], object], wanted: str = "the condition", seconds: float = 30.0
) -> None:
    """Ask every millisecond until *condition* holds; fail after so many *seconds*."""
    __tracebackhide__ = True
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            pytest.fail(f"waited {seconds:g} s in vain for {wanted}")
        gevent.sleep(0.001)
