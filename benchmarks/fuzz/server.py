"""A server in a process of its own: it echoes lines, some of them late, and hangs up when told to.

It listens at all addresses of loopback, so it stands for several servers.
"""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent import socket
from gevent.server import StreamServer

__all__ = ["ALL", "FIN", "LATE", "RESET", "serving"]

_ROOT = Path(__file__).parent.parent.parent

FIN, RESET = b"fin\n", b"reset\n"  # it closes this connection
ALL = b"all\n"  # it closes every connection
LATE = b"late"  # with which a line begins that is echoed after 3 ms


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """The port of a server that runs as long as the ``with``."""
    command = [sys.executable, "-m", "benchmarks.fuzz.server"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=_ROOT, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()  # which is what it waits for


def _main() -> None:
    everybody: set[Any] = set()

    def talk(sock: Any, address: object) -> None:
        everybody.add(sock)
        with contextlib.suppress(OSError):
            for line in sock.makefile("rb"):
                if line == ALL:
                    for each in everybody:
                        with contextlib.suppress(OSError):
                            each.shutdown(socket.SHUT_RDWR)
                if line == RESET:
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                if line in (FIN, RESET, ALL):
                    break
                if line.startswith(LATE):
                    gevent.sleep(0.003)
                sock.sendall(line)
        everybody.discard(sock)
        sock.close()

    server = StreamServer(("0.0.0.0", 0), talk, backlog=4096)
    server.start()
    print(server.server_port, flush=True)
    socket.wait_read(sys.stdin.fileno())


if __name__ == "__main__":
    _main()
