"""Ports of loopback for the servers of a test: listened at, or held with nobody listening."""

from __future__ import annotations

import contextlib
import errno
import random
import socket as stdlib_socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gevent.socket

__all__ = ["anywhere", "closed_port", "listen"]

R = TypeVar("R")

# Below the range from which Linux takes the port of an outgoing connection (32768 and up), so that
# nobody takes the port of a stopped server, and a dial to it cannot connect to itself.
_PORTS = range(20000, 32000)
_dice = random.SystemRandom()  # hypothesis seeds the global one: then all would pick the same


def anywhere(open_at: Callable[[tuple[str, int]], R]) -> R:
    """What *open_at* returns for an address of loopback that is free.

    Another one is tried as long as it raises that the address is in use.
    """
    for _ in range(100):
        try:
            return open_at(("127.0.0.1", _dice.choice(_PORTS)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise RuntimeError("no free port in a hundred tries")


def listen(address: Any) -> Any:
    """A listening socket at *address*, ``(host, port)`` or the path of a Unix socket."""
    family = stdlib_socket.AF_UNIX if isinstance(address, str) else stdlib_socket.AF_INET
    listener = gevent.socket.socket(family, stdlib_socket.SOCK_STREAM)
    try:
        listener.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def closed_port() -> Iterator[tuple[str, int]]:
    """An address at which connections are refused, and which nobody else takes meanwhile."""
    with contextlib.closing(stdlib_socket.socket()) as holder:
        anywhere(holder.bind)  # bound, and never listening
        yield holder.getsockname()
