"""The errors of generic-connection-pool."""

from __future__ import annotations

from geventpool.errors import NotInUse, PoolClosed, PoolError

__all__ = [
    "BaseError",
    "ConnectionNotAcquired",
    "ConnectionPoolClosedError",
    "ConnectionPoolIsFull",
    "ConnectionPoolNotFound",
]


class BaseError(Exception):
    """What generic-connection-pool's own errors have in common."""


class ConnectionPoolClosedError(BaseError, PoolClosed):
    """``close()`` was called: the pool gives out no connection any more."""


class ConnectionPoolIsFull(BaseError, PoolError):
    """Not raised, as it never was: a caller that finds a pool full waits in line."""


class ConnectionNotAcquired(NotInUse, RuntimeError, AssertionError):
    """The connection given back is not in use here: released twice, or never this pool's."""


class ConnectionPoolNotFound(BaseError, NotInUse):
    """The connection given back is one of another endpoint.  Its holder still has it."""
