"""Servers at addresses of their own, for a ConnectionManager.

The hosts are loopback addresses: all of 127.0.0.0/8 is this machine.
"""

from __future__ import annotations

import _socket
import contextlib
import random
from collections.abc import Callable
from contextlib import closing
from typing import Any

from gevent.server import StreamServer

from geventpool.addresses import AddressGroup
from geventpool.testing.ports import anywhere
from support.servers import EchoServer, listener_at

__all__ = ["Hosts", "a_host", "group"]

_dice = random.SystemRandom()


def a_host() -> str:
    """One of sixteen millions, so that a suite that runs beside this one has another."""
    return ".".join(["127", *(str(_dice.randrange(1, 255)) for _ in range(3))])


class Hosts:
    """Servers at addresses of their own, gone at the end of the test."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def server(self, make: Callable[..., EchoServer] = EchoServer, **settings: Any) -> EchoServer:
        server = make(**settings)

        def start(each: tuple[str, int]) -> None:
            server.address = (a_host(), each[1])
            server.start()

        anywhere(start)
        self._stack.callback(server.stop)
        return server

    def serve(self, handler: Callable[[Any, Any], object]) -> tuple[str, int]:
        """The address of a server that calls *handler* with each connection and its peer."""
        found: list[StreamServer] = []

        def start(each: tuple[str, int]) -> None:
            server = StreamServer(listener_at((a_host(), each[1])), handler)
            server.start()
            found.append(server)

        anywhere(start)
        self._stack.callback(found[0].stop, 0)
        address: tuple[str, int] = found[0].address
        return address

    def servers(self, count: int) -> list[EchoServer]:
        return [self.server() for _ in range(count)]

    def address(self) -> tuple[str, int]:
        """Where nothing listens, and nothing can."""
        return self._bound(a_host()).getsockname()  # type: ignore[no-any-return]

    def addresses(self, count: int) -> list[tuple[str, int]]:
        """Many such."""
        port = self._bound("0.0.0.0").getsockname()[1]
        return [(f"127.1.{number >> 8}.{number & 255}", port) for number in range(1, count + 1)]

    def silent(self) -> tuple[str, int]:
        """Where connecting takes for ever: the line of those to be accepted is full."""
        listener = self._bound(a_host())
        listener.listen(0)
        address: tuple[str, int] = listener.getsockname()
        for _ in range(3):
            filler = self._stack.enter_context(closing(_socket.socket()))
            filler.setblocking(False)
            filler.connect_ex(address)
        return address

    def _bound(self, host: str) -> Any:
        """A socket that keeps an address, as it allows no other to reuse it."""
        sock = self._stack.enter_context(closing(_socket.socket()))
        anywhere(lambda each: sock.bind((host, each[1])))
        return sock


def group(*servers: Any) -> AddressGroup:
    return AddressGroup.of(*(getattr(each, "address", each) for each in servers))
