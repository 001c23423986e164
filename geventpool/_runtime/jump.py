"""How a test has the pools read another clock, and what their timers are told when it jumps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent

from geventpool._runtime.clock import read_by, real
from geventpool._scheduler.state import AT_ONCE

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime

__all__ = ["clock_jumped", "read_by", "real"]


def clock_jumped(now: float) -> None:
    """Have the pools of this thread look at the time again: it is *now*, and their timers, which
    count in real seconds, do not know."""
    runtime: Runtime | None = getattr(gevent.get_hub(), "_geventpool_runtime", None)
    if runtime is None:
        return
    runtime.scheduler.expire(now)
    for bucket in list(runtime.buckets):
        runtime.scheduler.reconcile(bucket, now)
        runtime.scheduler.look_at_line(bucket, now)
        for loop in bucket.maintenance:
            if bucket in loop.buckets:
                loop.add(bucket, AT_ONCE)
