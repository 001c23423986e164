"""A server whose answers take 20 ms on average, and to which connecting takes a while, too.

``query_server()`` is a real one on loopback, in a process of its own.  ``VirtualServer`` is the
same in virtual time: its sessions do nothing but sleep.  Both are asked by ``query()``, and told to
drop what they are working at by ``cancel()``, which needs a second connection, as in PostgreSQL.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

__all__ = ["QUERY", "QueryServer", "Session", "VirtualServer", "query_server"]

QUERY = 0.02  # seconds for an answer, on average


class VirtualServer:
    """Answers in virtual time.  *even*: each answer takes as long as the others, instead of being
    spread exponentially as if each moment were as likely as any other to be the end."""

    def __init__(self, dial: float, *, even: bool = False) -> None:
        self.dial = dial
        self.dials = 0
        self.slowness = 1.0
        self._even = even
        self._dice = random.Random(2)

    def connect(self) -> _VirtualSession:
        """Open a session; counted in *dials*."""
        self.dials += 1
        gevent.sleep(self.dial)
        return _VirtualSession(self)

    def slow(self, factor: float) -> None:
        """Take *factor* times as long for each answer from now on."""
        self.slowness = factor

    def query(self) -> None:
        gevent.sleep(QUERY * self.slowness * (1 if self._even else self._dice.expovariate(1)))


class _VirtualSession:
    sock = None

    def __init__(self, server: VirtualServer) -> None:
        self._server = server

    def query(self) -> None:
        self._server.query()

    def cancel(self) -> None:
        gevent.sleep(0.001)  # there and back

    def close(self) -> None: ...


class QueryServer:
    """The real one, as its clients see it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.dials = 0

    def connect(self) -> Session:
        """Open a session; counted in *dials*."""
        self.dials += 1
        return Session(self.address)

    def slow(self, factor: float) -> None:
        """Take *factor* times as long for each answer from now on."""
        _tell(self.address, f"slow {factor}")


class Session:
    """A client's connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._unread = b""
        self._due = 0  # answers that are still to come
        self.sock: Any = socket.create_connection(address, timeout=10)
        try:
            self.sock.settimeout(None)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._number = self._ask("login")
        except BaseException:
            self.sock.close()
            raise

    @property
    def busy(self) -> bool:
        """Whether the server owes it an answer."""
        return self._due > 0

    def query(self) -> None:
        """Wait for an answer."""
        self._ask("query")

    def cancel(self) -> None:
        """Have the server drop what it is working at, and read what it had to say."""
        if self._due:
            _tell(self._address, f"cancel {self._number}")
        while self._due:
            self._read()

    def close(self) -> None:
        self.sock.close()

    def _ask(self, line: str) -> str:
        self._due += 1
        self.sock.sendall(f"{line}\n".encode())
        return self._read()

    def _read(self) -> str:
        while b"\n" not in self._unread:
            data = self.sock.recv(4096)
            if not data:
                raise ConnectionResetError("the server hung up")
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        self._due -= 1
        return line.decode()


def _tell(address: tuple[str, int], line: str) -> None:
    with contextlib.closing(socket.create_connection(address, timeout=10)) as sock:
        sock.sendall(f"{line}\n".encode())
        if not sock.recv(4096):
            raise ConnectionResetError("the server hung up")


@contextlib.contextmanager
def query_server(dial: float) -> Iterator[QueryServer]:
    """A server in a process of its own, for as long as the ``with``; a login takes *dial* s."""
    command = [sys.executable, "-m", "benchmarks.query_server", str(dial)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        port = int(process.stdout.readline())
        try:
            yield QueryServer(("127.0.0.1", port))
        finally:
            process.stdin.close()  # which is what it waits for


class _Server:
    """In the process where it is."""

    def __init__(self, dial: float) -> None:
        self._dial = dial
        self._slowness = 1.0
        self._sessions = 0
        self._at_work: dict[str, Event] = {}  # by the number of the session; set to cancel
        self._dice = random.Random(2)

    def serve(self, sock: Any, address: object) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sessions += 1
        number, unread = str(self._sessions), b""
        with contextlib.suppress(OSError):  # the client has gone
            while data := sock.recv(4096):
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    answer = self._answer(number, *line.decode().split())
                    sock.sendall(f"{answer}\n".encode())
        sock.close()

    def _answer(self, number: str, verb: str, argument: str = "") -> str:
        match verb:
            case "login":
                gevent.sleep(self._dial)
                return number
            case "query":
                cancelled = self._at_work[number] = Event()
                cancelled.wait(QUERY * self._slowness * self._dice.expovariate(1))
                del self._at_work[number]
                return "cancelled" if cancelled.is_set() else "answer"
            case "cancel" if argument in self._at_work:
                self._at_work[argument].set()
            case "slow":
                self._slowness = float(argument)
        return "done"


def _main(dial: str) -> None:
    server = StreamServer(("127.0.0.1", 0), _Server(float(dial)).serve, backlog=4096)
    server.start()
    print(server.server_port, flush=True)
    socket.wait_read(sys.stdin.fileno())


if __name__ == "__main__":
    _main(*sys.argv[1:])
