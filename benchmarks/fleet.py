"""Echo servers in a process of their own, which do as they are told: go away, come back, be slow.

    with fleet("127.0.0.2", "127.0.0.3") as servers:
        servers.slow(0, 2.0)  # from now on, each answer of the first one takes 2 s
        servers.away(1)       # its connections are cut, and new ones refused ...
        servers.back(1)       # ... until now

A server that is away keeps its port.  Else one of the dials to it might get that very port as its
own, and be connected to itself: with thousands of dials a second this does happen.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import gevent
from gevent import socket, subprocess
from gevent.pool import Pool
from gevent.server import StreamServer

__all__ = ["Fleet", "fleet"]


class Fleet:
    """The servers that run in *process*.  Each call returns when it has been done."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._commands: Any = process.stdin
        self._answers: Any = process.stdout
        #: Where each of them listens.
        self.addresses: list[tuple[str, int]] = [
            (host, int(port)) for host, port in (each.split(":") for each in self._read().split())
        ]

    def away(self, server: int) -> None:
        """Cut all connections of *server*, in the middle of a request or not; refuse new ones."""
        self._tell(f"away {server}")

    def back(self, server: int) -> None:
        """Have *server* listen again."""
        self._tell(f"back {server}")

    def slow(self, server: int, seconds: float) -> None:
        """Have *server* answer whatever it reads from now on after *seconds*."""
        self._tell(f"slow {server} {seconds}")

    def _tell(self, command: str) -> None:
        self._commands.write(f"{command}\n".encode())
        self._commands.flush()
        answer = self._read()
        assert answer == command, f"told {command!r}, the servers said {answer!r}"

    def _read(self) -> str:
        line: bytes = self._answers.readline()
        return line.decode().strip()


@contextlib.contextmanager
def fleet(*hosts: str, needs: float = 0.0) -> Iterator[Fleet]:
    """An echo server on each of *hosts*, addresses of this machine, as long as the ``with``.

    An answer takes *needs* seconds on average, spread as latencies are (lognormal, sigma 0.5).
    """
    command = [sys.executable, "-m", "benchmarks.fleet", str(needs), *hosts]
    process: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Fleet(process)
    finally:
        process.stdin.close()  # which is what it waits for
        process.wait()
        process.stdout.close()


class _Server:
    """One of them, in the process where they are."""

    def __init__(self, host: str, needs: float) -> None:
        self.needs = needs
        self.lateness: float | None = None
        self._kept = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind((host, 0))
        self.address: tuple[str, int] = self._kept.getsockname()
        self.back()

    def back(self) -> None:
        connections = Pool()  # so that stop() ends them
        self._server = StreamServer(self.address, self._serve, backlog=4096, spawn=connections)
        self._server.start()

    def away(self) -> None:
        self._server.stop(timeout=0)

    def slow(self, seconds: str) -> None:
        self.lateness = float(seconds)

    def _serve(self, sock: Any, address: object) -> None:
        try:
            while data := sock.recv(65536):
                if self.lateness is not None:
                    gevent.sleep(self.lateness)
                elif self.needs:
                    # exp(mu + sigma^2 / 2) is the mean
                    gevent.sleep(self.needs * random.lognormvariate(-0.125, 0.5))
                sock.sendall(data)
        except OSError:
            pass  # the client has gone
        finally:
            sock.close()


def _main(needs: str, *hosts: str) -> None:
    servers = [_Server(host, float(needs)) for host in hosts]
    print(*(f"{host}:{port}" for host, port in (each.address for each in servers)), flush=True)
    unread = b""
    while True:
        socket.wait_read(sys.stdin.fileno())
        data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            return
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            command, server, *arguments = line.decode().split()
            getattr(servers[int(server)], command)(*arguments)
            print(line.decode(), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
