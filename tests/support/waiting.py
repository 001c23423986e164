"""Waiting for what nothing tells of: the kernel, another process, the garbage collector.

Where something does tell of it (an event, a counter with its own ``wait_…``), wait for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
import gevent.socket
import pytest
from gevent import monkey

__all__ = ["block", "until", "until_readable"]

raw_select = monkey.get_original("select", "select")
raw_sleep = monkey.get_original("time", "sleep")


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


def until_readable(fd: int, seconds: float = 30.0) -> None:
    """Wait until there is something to read from *fd*, or its end."""
    # On gevent's libuv loop wait_read() may return at once: for what was read just before.
    while not raw_select([fd], [], [], 0)[0]:
        gevent.socket.wait_read(fd, timeout=seconds)


def block(seconds: float) -> None:
    """Keep the hub from running, as a greenlet that computes does; in a patched program, too."""
    raw_sleep(seconds)
