"""The errors of pycassa's pools."""

from __future__ import annotations

from geventpool.errors import NotInUse, PoolError

__all__ = [
    "AllServersUnavailable",
    "InvalidRequestError",
    "MaximumRetryException",
    "NoConnectionAvailable",
]


class AllServersUnavailable(PoolError):
    """Each server was dialed twice, in vain; ``__cause__`` is the last failure."""


class NoConnectionAvailable(PoolError):
    """All connections are taken, and none came free in time."""


class MaximumRetryException(Exception):
    """An operation failed more often than *max_retries* allows; ``__cause__`` is the last failure.

    Its wrapper has no connection any more; another operation takes another one.
    """


class InvalidRequestError(NotInUse):
    """The wrapper was given back already, or is none of this pool's."""
