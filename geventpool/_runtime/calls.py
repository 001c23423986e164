"""Calls of a user's hook that may not take for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

__all__ = ["call_bounded"]


def call_bounded(seconds: float, hook: Callable[..., object], *args: Any) -> BaseException | None:
    """Call *hook* within so many *seconds*, and return what it raised, its time limit included.

    A kill passes, and so does a Timeout that is not ours: it is the caller's, or the hook's own.
    """
    timer = gevent.Timeout.start_new(seconds)
    try:
        hook(*args)
    except Exception as exc:
        return exc
    except gevent.Timeout as exc:
        if exc is not timer:
            raise
        return exc
    finally:
        timer.close()
    return None
