"""The one after-fork hook of the package: in a forked child it calls all that have asked for it.

Nothing here knows gevent: what is to happen once in each child, whoever asks for it, goes by
``Fork.once``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["Fork", "in_child"]


class Fork:
    """One fork, seen from the child."""

    def __init__(self) -> None:
        self._done: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def once(self, call: Callable[..., object], *args: Any) -> None:
        """Call it, unless another hook has had it called already."""
        if not any(call is done and args == its for done, its in self._done):
            self._done.append((call, args))
            call(*args)


_calls: list[Callable[[Fork], object]] = []


def in_child(call: Callable[[Fork], object]) -> Callable[[Fork], object]:
    """Have ``call(fork)`` called in each child, within the fork: it may not switch."""
    _calls.append(call)
    return call


def _after_fork_in_child() -> None:
    fork = Fork()
    for call in _calls:
        call(fork)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
