"""Every pool and manager of this process that is open: what ``geventpool.pools()`` tells.

For who looks from outside: a status page, metrics, a debugger.  Nothing is kept alive by it.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from types import ModuleType
from typing import Any

__all__ = ["CallablePackage", "pools", "register", "unnamed"]

_order = itertools.count()
# By the order in which they were made.  Nothing in it needs a lock: each change is one C call.
_known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_numbers: Counter[str] = Counter()


def register(pool: Any) -> None:
    """Have *pool*, which is whole now, be known; it has a *closed*."""
    _known[next(_order)] = pool


def unnamed(cls: type) -> str:
    """The next name for a pool that was given none: ``ConnectionPool-1``."""
    _numbers[cls.__name__] += 1
    return f"{cls.__name__}-{_numbers[cls.__name__]}"


def pools() -> tuple[Any, ...]:
    """Every pool and every ConnectionManager of this process, of all its threads, in the order in
    which they were made; without those that are closed or gone.  The sockets of a manager are no
    pool of their own.

    Each has a ``name`` and ``stats()``.  Does not block, and may be called from any thread.
    """
    found = [reference() for reference in _known.valuerefs()]  # a copy, made by one C call
    return tuple(pool for pool in found if pool is not None and not pool.closed)


class CallablePackage(ModuleType):
    """A package that is also the function ``pools``: ``geventpool.pools`` is both.

    (A module may be given such a class: see "Customizing module attribute access" in Python's
    reference.)
    """

    def __call__(self) -> tuple[Any, ...]:
        return pools()
