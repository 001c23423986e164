"""The API of gsocketpool 0.1.6: ``from geventpool.compat.gsocketpool import Pool, TcpConnection``.

Its modules, signatures and defaults over a ConnectionPool, which Pool is: ``stats()``, ``close()``,
``discard()`` and the rest are there, too.  What changes for its users, and why, stands in
``docs/moving.md``.  Read ``pool.py`` first.
"""

from geventpool.compat.gsocketpool.connection import Connection, TcpConnection
from geventpool.compat.gsocketpool.exceptions import ConnectionNotFoundError, PoolExhaustedError
from geventpool.compat.gsocketpool.pool import ConnectionReaper, Pool

__all__ = [
    "Connection",
    "ConnectionNotFoundError",
    "ConnectionReaper",
    "Pool",
    "PoolExhaustedError",
    "TcpConnection",
]
