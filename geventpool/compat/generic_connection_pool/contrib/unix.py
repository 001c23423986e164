"""The manager of Unix sockets."""

from __future__ import annotations

import pathlib
from typing import Generic

from gevent.socket import socket as Socket

from geventpool.compat.generic_connection_pool._liveness import LookingMixin
from geventpool.compat.generic_connection_pool._manager import BaseConnectionManager
from geventpool.compat.generic_connection_pool._open import open_socket
from geventpool.compat.generic_connection_pool.common import EndpointT
from geventpool.compat.generic_connection_pool.contrib.socket import SocketManager

__all__ = [
    "BaseConnectionManager",
    "CheckSocketAlivenessMixin",
    "EndpointT",
    "UnixSocketConnectionManager",
    "UnixSocketEndpoint",
]


UnixSocketEndpoint = pathlib.Path


class CheckSocketAlivenessMixin(LookingMixin[EndpointT], Generic[EndpointT]):
    """For managers of Unix sockets."""


class UnixSocketConnectionManager(
    CheckSocketAlivenessMixin[UnixSocketEndpoint], SocketManager[UnixSocketEndpoint, Socket]
):
    """Opens Unix sockets; the endpoint is a ``pathlib.Path``."""

    def create(self, endpoint: UnixSocketEndpoint, timeout: float | None = None) -> Socket:
        """Return a connected socket; TimeoutError after *timeout* seconds."""
        sock: Socket = open_socket(pathlib.Path(endpoint), timeout)
        return sock
