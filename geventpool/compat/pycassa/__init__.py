"""The API of pycassa.pool 1.11: ``from geventpool.compat.pycassa import ConnectionPool``.

Its names, parameters, events and exceptions over a geventpool ConnectionPool, which the pool is:
``stats()``, ``holders()``, ``drain()`` and ``close()`` are there, too (but connections come from
``get`` and go by ``put`` alone).  The Thrift client comes from a *client_factory* of yours.
What changes for its users, and why, stands in ``docs/moving.md``.

Read ``pool.py`` first for the callers' side, and ``_dialing.py`` for that of the servers.
"""

from geventpool.compat.pycassa.logging.pool_logger import PoolLogger
from geventpool.compat.pycassa.logging.pool_stats_logger import StatsLogger
from geventpool.compat.pycassa.pool import (
    AllServersUnavailable,
    ConnectionPool,
    ConnectionWrapper,
    InvalidRequestError,
    MaximumRetryException,
    NoConnectionAvailable,
    PoolListener,
    QueuePool,
)

__all__ = [
    "AllServersUnavailable",
    "ConnectionPool",
    "ConnectionWrapper",
    "InvalidRequestError",
    "MaximumRetryException",
    "NoConnectionAvailable",
    "PoolListener",
    "PoolLogger",
    "QueuePool",
    "StatsLogger",
]
