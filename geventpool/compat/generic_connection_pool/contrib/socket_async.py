"""Managers of TCP sockets and streams, for those who had them from asyncio."""

from __future__ import annotations

import ssl as tls
from contextlib import suppress
from typing import Any, Generic

from gevent.socket import SHUT_RDWR
from gevent.ssl import create_default_context

from geventpool.compat.generic_connection_pool._liveness import LookingMixin
from geventpool.compat.generic_connection_pool._manager import BaseConnectionManager
from geventpool.compat.generic_connection_pool._open import open_socket
from geventpool.compat.generic_connection_pool._streams import (
    Stream,
    StreamReader,
    StreamWriter,
    streams,
)
from geventpool.compat.generic_connection_pool.common import EndpointT
from geventpool.compat.generic_connection_pool.contrib.socket import (
    Hostname,
    IpAddress,
    Port,
    SocketAlivenessCheckingMixin,
    TcpEndpoint,
    TcpSocketConnectionManager,
)

__all__ = [
    "BaseConnectionManager",
    "EndpointT",
    "Hostname",
    "IpAddress",
    "Port",
    "SocketAlivenessCheckingMixin",
    "Stream",
    "StreamAlivenessCheckingMixin",
    "StreamManager",
    "StreamReader",
    "StreamWriter",
    "TcpEndpoint",
    "TcpSocketConnectionManager",
    "TcpStreamConnectionManager",
    "TcpStreamEndpoint",
]


TcpStreamEndpoint = tuple[Hostname, Port]


class StreamAlivenessCheckingMixin(LookingMixin[EndpointT], Generic[EndpointT]):
    """For managers of streams."""


class StreamManager(BaseConnectionManager[EndpointT, Stream]):
    def dispose(self, endpoint: EndpointT, conn: Stream, timeout: float | None = None) -> None:
        """Close both files and the socket.  Does not block."""
        # One of them may be gone: a pool that is closed by force has what is left of a stream.
        files: list[Any] = [file for file in reversed(conn) if file is not None]
        sock = files[0].sock
        with suppress(OSError):
            sock.shutdown(SHUT_RDWR)  # what a write that was cut short has left is not sent now
        for each in (*files, sock):
            with suppress(OSError):
                each.close()


class TcpStreamConnectionManager(
    StreamAlivenessCheckingMixin[TcpStreamEndpoint], StreamManager[TcpStreamEndpoint]
):
    """Opens ``(reader, writer)`` pairs to ``(host name, port)``: see StreamReader, StreamWriter.

    *ssl* is None or False, True (TLS, verified against the system's roots), or an SSLContext.
    """

    def __init__(self, ssl: bool | tls.SSLContext | None = None) -> None:
        self._ssl = create_default_context() if ssl is True else ssl or False

    def create(self, endpoint: TcpStreamEndpoint, timeout: float | None = None) -> Stream:
        """Return a reader and a writer; TimeoutError after *timeout* seconds."""
        return streams(open_socket(endpoint, timeout, self._ssl))
