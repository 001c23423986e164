"""The one hook of the package for forks: in a forked child it calls all that have asked for it.

Nothing here knows gevent: what is to happen once in each child, for all of the package, goes by
``Fork.once``.

A fork that C code makes, as a server does that embeds Python, runs no hook of Python's.  The kernel
wipes a page of memory in each child, whatever forks: ``forks_seen``, a pointer that stands there,
is false then, and ``catch_up()`` does what the hook would have done.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

try:
    import ctypes
except ImportError:  # an interpreter built without it
    ctypes = None  # type: ignore[assignment]

__all__ = ["Fork", "catch_up", "forks_seen", "in_child", "in_parent"]

_WIPE_ON_FORK = 18  # MADV_WIPEONFORK, of Linux


class Fork:
    """One fork, seen from the child."""

    def __init__(self) -> None:
        self._done: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.trouble: Exception | None = None  # the first thing that went wrong

    def once(self, call: Callable[..., object], *args: Any) -> None:
        """Call it, unless another hook has had it called already.

        What it raises is *trouble*, and keeps nobody from the rest: gevent may raise as a hub
        begins anew, say of a worker thread that is gone.
        """
        if not any(call is done and args == its for done, its in self._done):
            self._done.append((call, args))
            self.attempt(call, *args)

    def attempt(self, call: Callable[..., object], *args: Any) -> None:
        """Call it; what it raises is *trouble*."""
        try:
            call(*args)
        except Exception as error:
            self.trouble = self.trouble or error


_in_child: list[Callable[[Fork], object]] = []
_in_parent: list[Callable[[], object]] = []


def in_child(call: Callable[[Fork], object]) -> Callable[[Fork], object]:
    """Have ``call(fork)`` called in each child, within the fork: it may not switch."""
    _in_child.append(call)
    return call


def in_parent(call: Callable[[], object]) -> Callable[[], object]:
    """Have *call* called in the parent after each fork that Python sees: it may not switch."""
    _in_parent.append(call)
    return call


def catch_up() -> None:
    """Do in a child what is to be done; a second time, nothing.

    Whatever a hook raises, all are called.  The first error is told of as an uncaught one is: who
    comes by here first, to get a connection perhaps, has nothing to do with it.
    """
    if forks_seen:
        return
    _page[0] = 1
    fork = Fork()
    for call in _in_child:
        fork.attempt(call, fork)
    if (trouble := fork.trouble) is not None:
        sys.excepthook(type(trouble), trouble, trouble.__traceback__)


def _after_fork_in_child() -> None:
    _page[0] = 0  # where no page is wiped
    catch_up()


def _after_fork_in_parent() -> None:
    for call in _in_parent:
        call()


def _make_page() -> Any:
    """Memory that is zero in each child."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (AttributeError, OSError, ValueError):  # not Linux, or one before 4.14
        return bytearray(mmap.PAGESIZE)
    return page


class _Pointer:
    """As that of ctypes, but slow: true if it is not null."""

    def __bool__(self) -> bool:
        return bool(_page[0])


_page = _make_page()
_page[0] = 1
#: False in a child of which nothing here knows yet.  To ask whether a pointer is null calls no
#: Python, so that the fast path of a pool, too, can afford it.
forks_seen: Any = _Pointer() if ctypes is None else ctypes.POINTER(ctypes.c_byte).from_buffer(_page)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child, after_in_parent=_after_fork_in_parent)
