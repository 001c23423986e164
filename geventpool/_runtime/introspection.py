"""Who holds what, since when, and where: for people who look.  Never on a hot path."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from os.path import dirname, sep
from time import monotonic
from types import FrameType
from typing import Any

from gevent import getcurrent

from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._scheduler.state import IN_USE
from geventpool.events import Holder

__all__ = ["callers_stack", "holder_of", "holders", "outermost_first", "stack_of", "where_acquired"]

_PACKAGE = dirname(dirname(__file__)) + sep


def holders(buckets: Sequence[PoolBucket]) -> tuple[Holder, ...]:
    """Who has what, the longest first."""
    now = monotonic()
    found = []
    # Copies: other threads may look, too.
    for slot in [slot for bucket in buckets for slot in list(bucket.slots)]:
        if slot.state is not IN_USE or slot.conn is not None:
            continue
        greenlet = holder_of(slot)
        age = now - slot.since
        where, stack = where_acquired(slot), _stack_of(greenlet)
        endpoint = slot.bucket.endpoint
        found.append(Holder(slot.ref(), greenlet, age, where, stack, endpoint))
    return tuple(sorted(found, key=lambda holder: -holder.age))


def holder_of(slot: ConnectionSlot) -> Any:
    """The greenlet that holds it; None if that has been collected, or none does."""
    try:
        # The way from a proxy, which costs a third of a weakref.ref to make, to what it stands for.
        return None if slot.holder is None else slot.holder.switch.__self__
    except ReferenceError:
        return None


def callers_stack() -> traceback.StackSummary:
    """Where the program is that calls the pool, innermost first; its lines are read when asked."""
    return traceback.StackSummary.extract(
        traceback.walk_stack(_callers_frame()), lookup_lines=False
    )


def stack_of(greenlet: Any) -> traceback.StackSummary:
    """Where the program is in *greenlet*, which waits: as ``callers_stack``."""
    frame = _outside(greenlet.gr_frame)
    return traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)


def where_acquired(slot: ConnectionSlot) -> str | None:
    """The stack that acquired it, outermost first; None if the pool does not track."""
    return None if slot.where is None else outermost_first(slot.where)


def outermost_first(stack: traceback.StackSummary) -> str:
    """A stack as text, in the order of a traceback."""
    return "".join(reversed(stack.format()))


def _stack_of(greenlet: Any) -> str | None:
    """Where *greenlet* is now; None if it has ended."""
    frame: FrameType | None
    if greenlet is getcurrent():
        frame = _callers_frame()
    else:
        frame = getattr(greenlet, "gr_frame", None)
    return None if frame is None else "".join(traceback.format_stack(frame))


def _callers_frame() -> FrameType | None:
    """The innermost frame that is not of this package; the innermost of all if all are."""
    return _outside(sys._getframe(1))


def _outside(innermost: FrameType) -> FrameType:
    """The first frame from *innermost* on that is not of this package; that one if all are."""
    frame = innermost
    while frame.f_code.co_filename.startswith(_PACKAGE):
        if frame.f_back is None:
            return innermost
        frame = frame.f_back
    return frame
