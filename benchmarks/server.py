"""An echo server in a process of its own, so that it does not share a hub with what is measured."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from gevent import socket
from gevent.server import StreamServer


@contextlib.contextmanager
def echo_server() -> Iterator[tuple[str, int]]:
    """The address of an echo server that runs as long as the ``with``."""
    command = [sys.executable, "-m", "benchmarks.server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        port = int(process.stdout.readline())
        try:
            yield "127.0.0.1", port
        finally:
            process.stdin.close()  # which is what it waits for


def _echo(sock: Any, address: object) -> None:
    with contextlib.suppress(OSError):
        while data := sock.recv(65536):
            sock.sendall(data)
    sock.close()


def _main() -> None:
    server = StreamServer(("127.0.0.1", 0), _echo, backlog=4096)
    server.start()
    print(server.server_port, flush=True)
    socket.wait_read(sys.stdin.fileno())


if __name__ == "__main__":
    _main()
