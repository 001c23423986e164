"""The pool that was for threads: here it is for greenlets."""

from geventpool.compat.generic_connection_pool.threading.pool import (
    BaseConnectionManager,
    ConnectionPool,
    ConnectionT,
    EndpointT,
)

__all__ = ["BaseConnectionManager", "ConnectionPool", "ConnectionT", "EndpointT"]
