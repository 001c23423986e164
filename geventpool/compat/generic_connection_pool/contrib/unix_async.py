"""Managers of Unix sockets and streams, for those who had them from asyncio."""

from __future__ import annotations

import pathlib

from geventpool.compat.generic_connection_pool._manager import BaseConnectionManager
from geventpool.compat.generic_connection_pool._open import open_socket
from geventpool.compat.generic_connection_pool._streams import Stream, streams
from geventpool.compat.generic_connection_pool.common import EndpointT
from geventpool.compat.generic_connection_pool.contrib.socket_async import (
    SocketAlivenessCheckingMixin,
    StreamAlivenessCheckingMixin,
    StreamManager,
)
from geventpool.compat.generic_connection_pool.contrib.unix import (
    UnixSocketConnectionManager,
    UnixSocketEndpoint,
)

__all__ = [
    "BaseConnectionManager",
    "EndpointT",
    "SocketAlivenessCheckingMixin",
    "Stream",
    "StreamAlivenessCheckingMixin",
    "UnixSocketConnectionManager",
    "UnixSocketEndpoint",
    "UnixSocketStreamConnectionManager",
]


class UnixSocketStreamConnectionManager(
    StreamAlivenessCheckingMixin[UnixSocketEndpoint], StreamManager[UnixSocketEndpoint]
):
    """Opens ``(reader, writer)`` pairs on Unix sockets; the endpoint is a ``pathlib.Path``."""

    def create(self, endpoint: UnixSocketEndpoint, timeout: float | None = None) -> Stream:
        """Return a reader and a writer; TimeoutError after *timeout* seconds."""
        return streams(open_socket(pathlib.Path(endpoint), timeout))
