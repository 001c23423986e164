"""A gevent-native pool of connections: kept open, healthy, and fairly shared between greenlets."""

from geventpool._core import Limit
from geventpool.backoff import Backoff
from geventpool.errors import (
    ConnectError,
    MarkedDownError,
    MultiConnectFailure,
    NameNotFound,
    NotInUse,
    OutOfSockets,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolTimeout,
    WrongHub,
)
from geventpool.events import Duration, Holder, PoolListener, PoolStats, Reason
from geventpool.pool import ConnectionPool, Lease
from geventpool.retry import RetryBudget, RetryDetails, retry
from geventpool.sockets import SocketFactory

__version__ = "0.1.0"

__all__ = [
    # Pools
    "ConnectionPool",
    "Lease",
    "Limit",
    # Opening connections, trying again
    "Backoff",
    "RetryBudget",
    "RetryDetails",
    "SocketFactory",
    "retry",
    # Looking
    "Duration",
    "Holder",
    "PoolListener",
    "PoolStats",
    "Reason",
    # Errors
    "ConnectError",
    "MarkedDownError",
    "MultiConnectFailure",
    "NameNotFound",
    "NotInUse",
    "OutOfSockets",
    "PoolClosed",
    "PoolError",
    "PoolFull",
    "PoolTimeout",
    "WrongHub",
]
