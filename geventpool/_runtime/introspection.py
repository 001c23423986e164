"""Who holds what, since when, and where: for people who look.  Never on a hot path."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from os.path import dirname, sep
from types import CodeType, FrameType
from typing import Any, TypeAlias

import gevent
from gevent import getcurrent

from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._scheduler.state import IN_USE
from geventpool._util.clock import monotonic
from geventpool.events import Holder

__all__ = [
    "Stack",
    "held_for_long",
    "holder_of",
    "holders",
    "longest_holders",
    "outermost_first",
    "remember_caller",
    "stack_now",
    "stack_of",
    "where_acquired",
]

_PACKAGE = dirname(dirname(__file__)) + sep
_GEVENT = dirname(gevent.__file__) + sep
_STANDARD_LIBRARY = dirname(traceback.__file__) + sep
_THIRD_PARTY = sep + "site-packages" + sep

#: Where a greenlet was: the code that it was in and how far, innermost first.  No frames, which
#: would keep all that their variables hold; lines and text are found out if anybody asks.
Stack: TypeAlias = "list[CodeType | int]"  # code and f_lasti in turn
_DEPTH = 20  # frames of a stack are kept: it is taken at each hand-out


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
        where, stack = where_acquired(slot), stack_now(greenlet)
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


def held_for_long(bucket: PoolBucket, threshold: float, now: float) -> Iterator[ConnectionSlot]:
    """Those whose use has lasted for *threshold* seconds, and was not reported yet."""
    for slot in list(bucket.slots):
        if slot.state is IN_USE and slot.conn is None and slot.since + threshold <= now:
            if slot.reported_since != slot.since:
                slot.reported_since = slot.since
                yield slot


def longest_holders(slots: Iterable[ConnectionSlot], now: float) -> str:
    """Who holds those *slots*, for how long, and the line where each is: a few words for each."""
    found = []
    for slot in slots:
        if (greenlet := holder_of(slot)) is None:
            found.append(f"a greenlet that has ended for {now - slot.since:.3f} s")
            continue
        me = greenlet is getcurrent()
        frame = _callers_frame() if me else getattr(greenlet, "gr_frame", None)
        where = "" if me or frame is None else f" at {_line_of_program(frame)}"
        found.append(f"{_name_of(greenlet)} for {now - slot.since:.3f} s{where}")
    return ", ".join(found)


def _name_of(greenlet: Any) -> str:
    if greenlet is getcurrent():
        return "the caller itself"
    if greenlet.parent is None:
        return "the main greenlet"
    try:
        return str(greenlet.name)
    except Exception:  # a plain greenlet has none; a property may raise what it likes
        return f"{type(greenlet).__name__} at {id(greenlet):#x}"


def _line_of_program(innermost: FrameType) -> str:
    """The innermost line of the program itself, or of what it has installed: a wait stands deep
    within gevent and the standard library."""
    frame: FrameType | None = innermost
    while frame is not None and _is_plumbing(frame.f_code.co_filename):
        frame = frame.f_back
    frame = innermost if frame is None else frame
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _is_plumbing(filename: str) -> bool:
    if filename.startswith((_PACKAGE, _GEVENT, "<frozen ")):
        return True
    return filename.startswith(_STANDARD_LIBRARY) and _THIRD_PARTY not in filename


def remember_caller(slot: ConnectionSlot) -> None:
    """Have *slot* know where the program is that acquires it: once for each use, though two layers
    of the pool may ask for it, as a stack takes 1 to 2 µs."""
    if slot.where_use != slot.uses:
        slot.where = _taken(sys._getframe(1))
        slot.where_use = slot.uses


def _taken(frame: FrameType | None, depth: int = _DEPTH) -> Stack:
    stack: Stack = []
    append = stack.append  # twenty times: a quarter less than += of two
    for _ in range(depth):
        if frame is None:
            break
        append(frame.f_code)
        append(frame.f_lasti)
        frame = frame.f_back
    return stack


def stack_of(greenlet: Any) -> Stack:
    """Where the program is in *greenlet*, which waits: as ``remember_caller`` has it."""
    return _taken(_outside(greenlet.gr_frame))


def where_acquired(slot: ConnectionSlot) -> str | None:
    """The stack that acquired it, outermost first; None if the pool does not track."""
    return None if slot.where is None else outermost_first(slot.where)


def outermost_first(stack: Stack) -> str:
    """A stack as text, in the order of a traceback, from the first frame that is not of this
    package, nor of gevent below it (``PURE_PYTHON``)."""
    frames: list[traceback.FrameSummary] = []
    pairs: Iterator[Any] = iter(stack)
    for code, instruction in zip(pairs, pairs, strict=True):
        if not frames and code.co_filename.startswith((_PACKAGE, _GEVENT)):
            continue
        line = _line_at(code, instruction)
        frames.append(traceback.FrameSummary(code.co_filename, line, code.co_name))
    return "".join(traceback.StackSummary.from_list(reversed(frames)).format())


def _line_at(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def stack_now(greenlet: Any) -> str | None:
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
