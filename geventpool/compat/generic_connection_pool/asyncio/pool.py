"""The pool that was for coroutines: that of ``threading.pool``."""

from geventpool.compat.generic_connection_pool.threading.pool import (
    BaseConnectionManager,
    ConnectionPool,
    ConnectionT,
    EndpointT,
)

__all__ = ["BaseConnectionManager", "ConnectionPool", "ConnectionT", "EndpointT"]
