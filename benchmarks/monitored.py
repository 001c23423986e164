"""What it costs to monitor a socket."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from gevent import socket

from benchmarks.measure import Row, interleaved, median, timed
from benchmarks.server import echo_server
from geventpool.sockets import MonitoredSocket, Traffic

__all__ = ["monitored"]

_MESSAGE = b"x" * 100


def monitored(quick: bool) -> list[Row]:
    """One greenlet's echoes through a MonitoredSocket, against those through the plain socket.

    The same connection serves for both, in turns.
    """
    requests, rounds = 200, 50 if quick else 300

    with echo_server() as address, closing(socket.create_connection(address)) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        counted = MonitoredSocket(plain, Traffic(), address=address)
        times = interleaved(
            rounds,
            counted=lambda: timed(lambda: _echo(counted, requests)),
            plain=lambda: timed(lambda: _echo(plain, requests)),
        )

    ours, theirs = (median(times[name]) / requests * 1e6 for name in ("counted", "plain"))
    return [
        Row(
            "echo through a MonitoredSocket, µs | the plain socket",
            f"{ours:.2f}",
            f"{theirs:.2f}",
            ours / theirs,
            1.10,
        )
    ]


def _echo(sock: Any, requests: int) -> None:
    for _ in range(requests):
        sock.sendall(_MESSAGE)
        missing = len(_MESSAGE)
        while missing:
            missing -= len(sock.recv(missing))
