"""A gevent-native pool of connections: kept open, healthy, and fairly shared between greenlets."""

from typing import TYPE_CHECKING

from geventpool._compiled import COMPILED
from geventpool._scheduler.limit import Limit
from geventpool.addresses import Address, AddressGroup, UnixAddress
from geventpool.backoff import Backoff
from geventpool.deadline import Deadline
from geventpool.discovery import (
    CachingResolver,
    DnsResolver,
    FileResolver,
    SrvResolver,
    StaticResolver,
    Watcher,
)
from geventpool.errors import (
    ConnectError,
    MarkedDownError,
    MultiConnectFailure,
    NameNotFound,
    NotInUse,
    OutOfSockets,
    PoolClosed,
    PoolDeadlock,
    PoolDown,
    PoolError,
    PoolFull,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
    Verdict,
    WrongHub,
)
from geventpool.events import Duration, Holder, PoolListener, PoolStats, Reason
from geventpool.manager import (
    AddressGroupMap,
    ConnectInfo,
    ConnectionManager,
    HealthPolicy,
    ServerModel,
    ServerModelDirectory,
    Subset,
)
from geventpool.overload import CoDel
from geventpool.pools import ConnectionPool, EndpointPool, Lease
from geventpool.retry import RetryBudget, RetryDetails, retry
from geventpool.sockets import MonitoredSocket, SocketFactory

if TYPE_CHECKING:  # the package, which is callable: see there
    from geventpool.registry import pools

__version__ = "0.1.0"

__all__ = [
    # Whether the hot path is compiled
    "COMPILED",
    # Pools
    "CoDel",
    "ConnectionPool",
    "EndpointPool",
    "Lease",
    "Limit",
    # From a name to an open connection
    "AddressGroupMap",
    "ConnectInfo",
    "ConnectionManager",
    "HealthPolicy",
    "MonitoredSocket",
    "ServerModel",
    "ServerModelDirectory",
    "Subset",
    # Opening connections, trying again
    "Backoff",
    "Deadline",
    "RetryBudget",
    "RetryDetails",
    "SocketFactory",
    "retry",
    # From a name to addresses
    "Address",
    "AddressGroup",
    "CachingResolver",
    "DnsResolver",
    "FileResolver",
    "SrvResolver",
    "StaticResolver",
    "UnixAddress",
    "Watcher",
    # Looking
    "Duration",
    "Holder",
    "PoolListener",
    "PoolStats",
    "Reason",
    "pools",
    # Errors
    "ConnectError",
    "MarkedDownError",
    "MultiConnectFailure",
    "NameNotFound",
    "NotInUse",
    "OutOfSockets",
    "PoolClosed",
    "PoolDeadlock",
    "PoolDown",
    "PoolError",
    "PoolFull",
    "PoolOverloaded",
    "PoolTimeout",
    "PoolUnavailable",
    "Verdict",
    "WrongHub",
]
