"""Servers for the suite: on loopback, in the test's own hub, gone at the end of a ``with``.

    with EchoServer() as server:
        sock = gevent.socket.create_connection(server.address)
        server.wait_open(1)

A test that needs a database asks ``require_server("redis")`` for its address.

One that says how long something may take allows for a busy machine with a ``Pulse``:

    with Pulse() as pulse:
        ...
    assert took <= 0.3 + pulse.missed
"""

from __future__ import annotations

import os
import random
import shutil
import ssl
import time
from types import TracebackType
from typing import Any, NoReturn

import gevent
import gevent.socket
import pytest

from geventpool.testing import EchoServer, closed_port
from geventpool.testing.ports import listen

__all__ = [
    "Driver",
    "EchoServer",
    "IdServer",
    "Pulse",
    "ask",
    "closed_port",
    "listener_at",
    "require_program",
    "require_server",
]


class IdServer(EchoServer):
    """Answers the line ``b"<id>\\n"`` with the same line; a share of the answers is late.

    *late_share* (0 to 1) of the answers comes *late_by* seconds late; which ones, *seed* decides.
    Both may be set while it runs.  One connection is served in order, as by most protocols: so a
    client that gave up waiting, and its connection's next user, would read the late answer.
    """

    def __init__(
        self,
        *,
        late_share: float = 0.0,
        late_by: float = 0.05,
        seed: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(ssl_context=ssl_context, path=path)
        self.late_share = late_share
        self.late_by = late_by
        self.requests = 0
        self.late = 0
        self._random = random.Random(seed)

    def serve(self, sock: Any) -> None:
        unread = b""
        while data := sock.recv(65536):
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                self.requests += 1
                if self._random.random() < self.late_share:
                    self.late += 1
                    gevent.sleep(self.late_by)
                sock.sendall(line + b"\n")


def listener_at(address: tuple[str, int]) -> Any:
    """A socket for a server of gevent's: its own is left open if the address is in use."""
    return gevent.socket.socket(fileno=listen(address).detach())


def ask(sock: Any, question: str) -> str:
    """Send the line *question* to an IdServer and return what comes back, one line or more."""
    sock.sendall(question.encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        data: bytes = sock.recv(65536)
        if not data:
            raise ConnectionResetError("the server hung up")
        answer += data
    return answer[:-1].decode()


# How busy the machine is


class Pulse:
    """Feels how long this process did not get to run while it could have.

    *missed* are the seconds, so far, by which a beat came late without this process having used
    the CPU meanwhile.  What came late because greenlets kept the hub busy is not in it.
    """

    BEAT = 0.005
    _USUAL = 0.02  # so late a beat may be: what a scheduler does to any process is no news

    def __init__(self) -> None:
        self.missed = 0.0
        self._heart: Any = None

    def __enter__(self) -> Pulse:
        self._heart = gevent.spawn(self._beat)
        return self

    def __exit__(
        self,
        exc_class: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gevent.sleep(self.BEAT)  # a beat may be due that tells of the last moments
        self._heart.kill()

    def _beat(self) -> None:
        now, used = time.monotonic(), time.process_time()
        while True:
            gevent.sleep(self.BEAT)
            before, now = now, time.monotonic()
            used_before, used = used, time.process_time()
            late = now - before - self.BEAT - (used - used_before)
            if late > self._USUAL:
                self.missed += late


# Real servers

_STANDARD_PORTS = {"mariadb": 3306, "postgres": 5432, "rabbitmq": 5672, "redis": 6379}


def require_server(name: str) -> tuple[str, int]:
    """Return the address of a real server, or skip the test because it is not there.

    It is looked for at its standard port of 127.0.0.1, or where ``GEVENTPOOL_<NAME>=host:port``
    says.  With ``GEVENTPOOL_REQUIRE_SERVERS=1``, as in the gate, its absence is a failure.
    """
    __tracebackhide__ = True
    host, _, port = os.environ.get(f"GEVENTPOOL_{name.upper()}", "").rpartition(":")
    address = (host or "127.0.0.1", int(port or _STANDARD_PORTS[name]))
    try:
        gevent.socket.create_connection(address, timeout=2).close()
        return address
    except OSError as error:
        missing = f"no {name} at {address[0]}:{address[1]}: {error}"
    _give_up(missing)


def require_program(name: str) -> str:
    """Return the path of a program that is installed, or skip the test, or fail it, as
    ``require_server`` does."""
    __tracebackhide__ = True
    path = shutil.which(name)
    return _give_up(f"no program {name}") if path is None else path


def _give_up(missing: str) -> NoReturn:
    __tracebackhide__ = True
    if os.environ.get("GEVENTPOOL_REQUIRE_SERVERS") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


class Driver:
    """A driver's connection, which says goodbye as it is finalized."""

    def __init__(self, server: tuple[str, int], with_fileno: bool) -> None:
        self._sock = gevent.socket.create_connection(server)
        if with_fileno:
            self.fileno = self._sock.fileno

    def ask(self, what: str) -> str:
        return ask(self._sock, what)

    def close(self) -> None:
        self._sock.close()

    def __del__(self) -> None:
        if self._sock.fileno() >= 0:
            self._sock.sendall(b"goodbye\n")
            self._sock.close()
