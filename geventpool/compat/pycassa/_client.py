"""A Thrift client, made by any face: its server, its socket, its end."""

from __future__ import annotations

from typing import Any

from geventpool import sockets
from geventpool.addresses import Address, address

__all__ = ["close", "host_and_port", "socket_of"]


def host_and_port(server: object) -> tuple[str, int]:
    found = address(server, 9160) if isinstance(server, str) else None
    if not isinstance(found, Address):
        raise TypeError(f"server_list must hold texts like 'host:port', not {server!r}")
    return found.ip, found.port


def socket_of(client: Any) -> Any:
    """The socket below *client* and its layers, as Thrift has them; *client* if none is found."""
    layer = client
    for _ in range(8):
        if hasattr(layer, "recv") and hasattr(layer, "fileno"):
            return layer
        below = (getattr(layer, name, None) for name in _BELOW)
        layer = next((each for each in below if each is not None), None)
    return client


# In thriftpy2, Apache Thrift, and what people write.
_BELOW = ("_iprot", "trans", "_trans", "_TFramedTransport__trans", "handle", "sock", "_sock")


def close(client: Any) -> None:
    """Close *client*; if it has no method for that, its transport or its socket."""
    if not hasattr(client, "close"):
        client = getattr(getattr(client, "_iprot", None), "trans", None) or socket_of(client)
    sockets.close(client)
