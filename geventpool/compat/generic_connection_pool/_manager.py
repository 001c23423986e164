"""BaseConnectionManager: what opens and closes the connections of a pool, and how it is called."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic

from geventpool.compat.generic_connection_pool._liveness import LookingMixin
from geventpool.compat.generic_connection_pool.common import ConnectionT, EndpointT

__all__ = ["BaseConnectionManager", "is_own", "timed"]


class BaseConnectionManager(Generic[EndpointT, ConnectionT], abc.ABC):
    """Opens and closes the connections of a pool, and is told what becomes of them.

    Each *timeout*, in seconds, may be left out of a method that has no use for it: the pool ends
    what takes longer.  Nothing raised here harms the pool.
    """

    @abc.abstractmethod
    def create(self, endpoint: EndpointT, timeout: float | None = None) -> ConnectionT:
        """Return a new connection to *endpoint*.  What it raises is raised to a caller."""

    @abc.abstractmethod
    def dispose(self, endpoint: EndpointT, conn: ConnectionT, timeout: float | None = None) -> None:
        """Close *conn*; what it raises is logged."""

    def check_aliveness(
        self, endpoint: EndpointT, conn: ConnectionT, timeout: float | None = None
    ) -> bool:
        """Whether *conn*, which has been used before, may be handed out.

        It is disposed of if not, or if this raises.
        """
        return True

    def on_acquire(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called just before a caller gets *conn*.  What it raises is raised to that caller, and
        *conn* is disposed of."""

    def on_release(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called once after each ``on_acquire``, before anybody else gets *conn*.  What it raises
        is logged, and *conn* is disposed of.

        If *conn* cannot be used again anyway, it is called in the background before ``dispose``.
        """

    def on_connection_dead(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called when *conn* was found dead: by ``check_aliveness``, or by the pool itself, which
        may have disposed of it already."""


# What its methods take


_OURS = {
    BaseConnectionManager.check_aliveness,
    BaseConnectionManager.on_acquire,
    BaseConnectionManager.on_release,
    BaseConnectionManager.on_connection_dead,
    LookingMixin.check_aliveness,
}


def is_own(method: Any) -> bool:
    """Whether *method* of a manager is its author's, and not one of this module's."""
    return getattr(method, "__func__", method) not in _OURS


def timed(method: Any, *arguments: str) -> Callable[..., Any]:
    """*method*, made to take a timeout if it does not."""
    if inspect.iscoroutinefunction(method):
        raise TypeError(
            f"{method!r} is async: a gevent program needs no event loop, so make it def"
        )
    try:
        signature = inspect.signature(method)
    except ValueError:  # of a callable in C that does not tell
        return method  # type: ignore[no-any-return]
    with suppress(TypeError):
        signature.bind(*arguments, timeout=None)
        return method  # type: ignore[no-any-return]
    with suppress(TypeError):
        signature.bind(*arguments, None)  # by another name
        return lambda *args, timeout: method(*args, timeout)
    return lambda *args, timeout: method(*args)
