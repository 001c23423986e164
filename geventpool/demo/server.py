"""The echo server: a process of its own, which can be killed.

It lives for as long as its standard input is open, so it goes when the demo goes, however that one
ends.
"""

from __future__ import annotations

import errno
import math
import random
import sys
from time import monotonic
from typing import Any

import gevent
from gevent import socket, subprocess
from gevent.server import StreamServer

__all__ = ["SERVE", "Server", "exchange", "serve", "why_no_echo"]

SERVE = "_serve"  # the hidden command of its process
LATE_SHARE = 0.01  # of the replies come late ...
LATE_BY = 0.3  # ... by so many seconds


class Server:
    """An echo server in a process of its own."""

    def __init__(self) -> None:
        self.listens_since = math.inf
        self._process: Any = None

    def start(self, port: int = 0) -> tuple[str, int]:
        """Start it and wait until it listens; returns its address."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "geventpool", "demo", SERVE, str(port)],
            stdin=subprocess.PIPE,  # it ends when this does
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is meant for the demo alone
        )
        with gevent.Timeout(30.0, RuntimeError("the echo server does not start")):
            words = self._process.stdout.readline().split()
        if not words:
            raise RuntimeError("the echo server could not start")
        self.listens_since = float(words[1])
        return "127.0.0.1", int(words[0])

    def stop(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


def serve(port: int) -> int:
    """Be that process: echo lines, some of them late, until standard input ends."""
    server = StreamServer(_listen(port), _echo)
    server.start()
    print(server.server_port, monotonic(), flush=True)
    socket.wait_read(sys.stdin.fileno())
    return 0


def _listen(port: int) -> Any:
    # Below the ports that systems give to outgoing connections: else the pool, dialing a server
    # that is away, might be connected to itself.
    for candidate in [port] if port else random.sample(range(20000, 32000), 100):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
            listener.listen(1024)
            return listener
        except OSError as error:
            listener.close()
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise RuntimeError("no free port was found")


def _echo(sock: Any, address: object) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while line := sock.recv(4096):
            if random.random() < LATE_SHARE:
                gevent.sleep(LATE_BY)
            sock.sendall(line)
    except OSError:
        pass  # its client has gone


def exchange(sock: Any, request: bytes) -> bytes:
    """Send *request*, and return what comes back, up to the end of a line."""
    sock.sendall(request)
    reply = b""
    while not reply.endswith(b"\n"):
        data = sock.recv(4096)
        if not data:
            raise ConnectionError("the server has hung up")
        reply += data
    return reply


def why_no_echo(address: tuple[str, int]) -> str:
    """Why there is no line-echo server at *address*; empty if there is one."""
    line = b"geventpool %d\n" % random.getrandbits(32)
    try:
        with gevent.Timeout(10.0, TimeoutError("no reply")):
            with socket.create_connection(address) as sock:
                reply = exchange(sock, line)
    except OSError as error:
        return f"{error}"
    return "" if reply == line else f"no line-echo server: {line!r} was answered by {reply[:40]!r}"
