"""The pool that was for coroutines: here that of ``threading``, as greenlets need none."""

from geventpool.compat.generic_connection_pool.threading.pool import (
    BaseConnectionManager,
    ConnectionPool,
    ConnectionT,
    EndpointT,
)

__all__ = ["BaseConnectionManager", "ConnectionPool", "ConnectionT", "EndpointT"]
