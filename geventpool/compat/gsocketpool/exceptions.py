"""The errors of gsocketpool."""

from __future__ import annotations

from geventpool.errors import NotInUse, PoolError

__all__ = ["ConnectionNotFoundError", "PoolExhaustedError"]


class PoolExhaustedError(PoolError):
    """All connections are taken, and none came free in time.

    No TimeoutError, unlike the PoolTimeout it comes from (its ``__cause__``): an ``except OSError``
    that is there for broken connections must not catch it.
    """


class ConnectionNotFoundError(NotInUse):
    """What was to be released is not in use here, or what was to be dropped is not idle here."""
