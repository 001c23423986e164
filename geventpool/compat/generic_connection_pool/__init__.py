"""The API of generic-connection-pool 0.8.1, over an EndpointPool, which its ConnectionPool is.

All its modules are here, and all their names are handed on here, too: those of ``threading``,
``common``, ``exceptions`` and ``contrib``, and the cooperative twins of those of ``asyncio``: a
gevent program needs no event loop, so the classes are the same ones, and their methods have no
``async``.  Streams are pairs of buffered files.  What changes for its users, and why, stands in
``docs/moving.md``.  Read ``threading/pool.py`` first.
"""

from geventpool.compat.generic_connection_pool import asyncio as asyncio
from geventpool.compat.generic_connection_pool.common import BaseConnectionPool
from geventpool.compat.generic_connection_pool.contrib.socket import (
    Hostname,
    IpAddress,
    Port,
    SocketAlivenessCheckingMixin,
    SslEndpoint,
    SslSocketAlivenessCheckingMixin,
    SslSocketConnectionManager,
    TcpEndpoint,
    TcpSocketConnectionManager,
)
from geventpool.compat.generic_connection_pool.contrib.socket_async import (
    Stream,
    StreamAlivenessCheckingMixin,
    StreamReader,
    StreamWriter,
    TcpStreamConnectionManager,
    TcpStreamEndpoint,
)
from geventpool.compat.generic_connection_pool.contrib.unix import (
    CheckSocketAlivenessMixin,
    UnixSocketConnectionManager,
    UnixSocketEndpoint,
)
from geventpool.compat.generic_connection_pool.contrib.unix_async import (
    UnixSocketStreamConnectionManager,
)
from geventpool.compat.generic_connection_pool.exceptions import (
    BaseError,
    ConnectionNotAcquired,
    ConnectionPoolClosedError,
    ConnectionPoolIsFull,
    ConnectionPoolNotFound,
)
from geventpool.compat.generic_connection_pool.threading.pool import (
    BaseConnectionManager,
    ConnectionPool,
    ConnectionT,
    EndpointT,
)

__all__ = [
    "BaseConnectionManager",
    "BaseConnectionPool",
    "BaseError",
    "CheckSocketAlivenessMixin",
    "ConnectionNotAcquired",
    "ConnectionPool",
    "ConnectionPoolClosedError",
    "ConnectionPoolIsFull",
    "ConnectionPoolNotFound",
    "ConnectionT",
    "EndpointT",
    "Hostname",
    "IpAddress",
    "Port",
    "SocketAlivenessCheckingMixin",
    "SslEndpoint",
    "SslSocketAlivenessCheckingMixin",
    "SslSocketConnectionManager",
    "Stream",
    "StreamAlivenessCheckingMixin",
    "StreamReader",
    "StreamWriter",
    "TcpEndpoint",
    "TcpSocketConnectionManager",
    "TcpStreamConnectionManager",
    "TcpStreamEndpoint",
    "UnixSocketConnectionManager",
    "UnixSocketEndpoint",
    "UnixSocketStreamConnectionManager",
]
