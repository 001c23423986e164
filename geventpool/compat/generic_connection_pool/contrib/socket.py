"""Managers of TCP and TLS sockets."""

from __future__ import annotations

import ssl as tls
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Generic

from gevent.socket import SHUT_RDWR
from gevent.socket import socket as Socket
from gevent.ssl import SSLSocket

from geventpool.compat.generic_connection_pool._liveness import LookingMixin
from geventpool.compat.generic_connection_pool._manager import BaseConnectionManager
from geventpool.compat.generic_connection_pool._open import open_socket
from geventpool.compat.generic_connection_pool.common import ConnectionT, EndpointT

__all__ = [
    "BaseConnectionManager",
    "EndpointT",
    "Hostname",
    "IpAddress",
    "Port",
    "SocketAlivenessCheckingMixin",
    "SocketManager",
    "SslEndpoint",
    "SslSocketAlivenessCheckingMixin",
    "SslSocketConnectionManager",
    "TcpEndpoint",
    "TcpSocketConnectionManager",
]


IpAddress = IPv4Address | IPv6Address
Hostname = str
Port = int
TcpEndpoint = tuple[IpAddress, Port]
SslEndpoint = tuple[Hostname, Port]


class SocketAlivenessCheckingMixin(LookingMixin[EndpointT], Generic[EndpointT]):
    """For managers of sockets."""


class SslSocketAlivenessCheckingMixin(LookingMixin[EndpointT], Generic[EndpointT]):
    """For managers of TLS sockets."""


class SocketManager(BaseConnectionManager[EndpointT, ConnectionT]):
    def dispose(self, endpoint: EndpointT, conn: Any, timeout: float | None = None) -> None:
        """Close the socket.  Does not block."""
        with suppress(OSError):
            conn.shutdown(SHUT_RDWR)
        conn.close()


class TcpSocketConnectionManager(
    SocketAlivenessCheckingMixin[TcpEndpoint], SocketManager[TcpEndpoint, Socket]
):
    """Opens TCP sockets to ``(IPv4Address or IPv6Address, port)``."""

    def create(self, endpoint: TcpEndpoint, timeout: float | None = None) -> Socket:
        """Return a connected socket; TimeoutError after *timeout* seconds."""
        sock: Socket = open_socket(endpoint, timeout)
        return sock


class SslSocketConnectionManager(
    SslSocketAlivenessCheckingMixin[SslEndpoint], SocketManager[SslEndpoint, SSLSocket]
):
    """Opens TLS sockets to ``(host name, port)``; *ssl* is the context."""

    def __init__(self, ssl: tls.SSLContext) -> None:
        self._ssl = ssl

    def create(self, endpoint: SslEndpoint, timeout: float | None = None) -> SSLSocket:
        """Return a socket after the handshake; TimeoutError after *timeout* seconds."""
        sock: SSLSocket = open_socket(endpoint, timeout, self._ssl)
        return sock
