"""Sockets below the servers: what is open, what listens, what answers nothing, what is reset."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
from collections.abc import Iterator
from typing import Any

import gevent.socket

from geventpool.addresses import Address

__all__ = [
    "LINGER_0",
    "Servers",
    "clients_of",
    "fill_backlog",
    "listening",
    "no_descriptor_left",
    "open_sockets",
    "reset_on_close",
]

LINGER_0 = struct.pack("ii", 1, 0)  # close() sends RST


def listening(host: str) -> Any:
    """Not gevent.socket.create_server(): without patching it makes the stdlib's blocking socket."""
    if host.startswith("/"):
        sock = gevent.socket.socket(socket.AF_UNIX)
        sock.bind(host)
    else:
        sock = gevent.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.bind((host, 0))
    sock.listen()
    return sock


def open_sockets() -> set[str]:
    """What this process has open: compared before and after, it shows a leak at once."""
    links = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.add(os.readlink(f"/proc/self/fd/{name}"))
    return {link for link in links if link.startswith("socket:")}


def clients_of(address: tuple[str, int]) -> set[int]:
    """The ports of the clients that a server of this machine has connections with, as the system
    sees it: of IPv4, those ESTABLISHED on the server's side."""
    host, port = address
    local = f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}:{port:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table]
    return {int(row[2].split(":")[1], 16) for row in rows if (row[1], row[3]) == (local, "01")}


def fill_backlog(listener: Any, keep: Any) -> None:
    """Connect to *listener* until it answers no more."""
    listener.listen(0)
    for _ in range(10):
        filler = keep(gevent.socket.socket())
        filler.settimeout(0.1)
        try:
            filler.connect(listener.getsockname())
        except TimeoutError:
            return
    raise AssertionError("the listener takes any number of connections")


def reset_on_close(sock: Any) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)


class Servers:
    """Addresses that take a connection, refuse it or do not answer at all."""

    def __init__(self, keep: Any) -> None:
        self.keep = keep
        self.listeners: dict[Address, Any] = {}

    def live(self) -> Address:
        listener = self.keep(listening("127.0.0.1"))
        address = Address(*listener.getsockname())
        self.listeners[address] = listener
        return address

    def dead(self) -> Address:
        holder = self.keep(gevent.socket.socket())
        holder.bind(("127.0.0.1", 0))  # bound, and never listening
        return Address(*holder.getsockname())

    def silent(self) -> Address:
        address = self.live()
        fill_backlog(self.listeners[address], self.keep)
        return address


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing can be opened in it, until something is closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
