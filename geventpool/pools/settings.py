"""The settings that all pools have: what they are is checked here, once.

Their meaning is told in ConnectionPool; a pool spells them out in its signature, for ``help()``,
with defaults of its own, and hands them on by ``PoolSettings.of(locals())``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from geventpool._scheduler.limit import Limit
from geventpool._util.arguments import (
    check_callable,
    check_instance,
    check_seconds,
    check_share,
    check_text,
    check_whole,
    exception_classes,
    several,
)
from geventpool.backoff import Backoff
from geventpool.overload import CoDel

__all__ = ["PoolSettings"]


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """The settings of a pool, checked.  What is wrong raises TypeError or ValueError, and names
    the argument."""

    exc_classes: tuple[type[BaseException], ...]
    keepalive: float | None
    connect: Callable[..., Any] | None
    timeout: float | None
    max_waiting: int | None
    overload: CoDel | None
    connect_timeout: float | None
    max_connecting: int
    backoff: Backoff | None
    keepalive_timeout: float
    salvage_timeout: float
    idle_timeout: float | None
    max_lifetime: float | None
    max_uses: int | None
    jitter: float
    check_after: float | None
    order: str | None
    strict: bool
    fail_fast: bool
    down_after: float | None
    greenlet_local: bool
    limits: tuple[Limit, ...]
    listeners: tuple[object, ...]
    track: bool
    leak_threshold: float | None
    name: str | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> PoolSettings:
        """Those among *arguments*, which has others, too."""
        given = {each.name: arguments[each.name] for each in fields(cls)}
        given["exc_classes"] = exception_classes("exc_classes", given["exc_classes"])
        for name in ("limits", "listeners"):
            given[name] = several(name, given[name])
        return cls(**given)

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_durations()
        if self.order not in (None, "fifo", "lifo"):
            raise ValueError(f'order must be "fifo", "lifo" or None, not {self.order!r}')
        if self.backoff is not None:
            check_instance("backoff", self.backoff, Backoff)
        if self.overload is not None:
            check_instance("overload", self.overload, CoDel)
        if self.connect is not None:
            check_callable("connect", self.connect)
        if self.name is not None:
            check_text("name", self.name)
        for limit in self.limits:
            if not isinstance(limit, Limit):
                raise TypeError(f"limits must hold Limit objects, not {limit!r}")
        if len(set(self.limits)) < len(self.limits):
            raise ValueError("limits holds the same Limit twice")

    def _check_numbers(self) -> None:
        check_whole("max_connecting", self.max_connecting, least=1)
        if self.max_waiting is not None:
            check_whole("max_waiting", self.max_waiting)
        if self.max_uses is not None:
            check_whole("max_uses", self.max_uses, least=1)
        check_share("jitter", self.jitter)

    def _check_durations(self) -> None:
        for name in ("timeout", "check_after"):
            check_seconds(name, getattr(self, name), zero=True)
        for name in ("keepalive", "connect_timeout", "idle_timeout", "max_lifetime", "down_after"):
            check_seconds(name, getattr(self, name))
        check_seconds("leak_threshold", self.leak_threshold)
        for name in ("keepalive_timeout", "salvage_timeout"):
            check_seconds(name, getattr(self, name), none=False)
