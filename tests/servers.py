"""Servers for the suite: on loopback, in the test's own hub, gone at the end of a ``with``.

    with EchoServer() as server:
        sock = gevent.socket.create_connection(server.address)
        server.wait_open(1)

A test that needs a database asks ``require_server("redis")`` for its address.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket as stdlib_socket
import ssl
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import gevent
import gevent.server
import gevent.socket
import pytest
from gevent.event import Event

__all__ = [
    "EchoServer",
    "IdServer",
    "ask",
    "closed_port",
    "require_server",
]

# Below the range from which Linux takes the port of an outgoing connection (32768 and up), so that
# nobody takes the port of a stopped server, and a dial to it cannot connect to itself.
_PORTS = range(20000, 32000)
_dice = random.SystemRandom()  # hypothesis seeds the global one: then all would pick the same

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class EchoServer:
    """Sends back whatever comes in; counts its connections and can cut them.

    *opened* is the number of connections accepted so far, *open* of those open now, *peak* the
    most that were open at once.  With *path* it listens on a Unix socket, with *ssl_context* it
    speaks TLS.  ``stop()`` and ``start()`` may follow each other: the address stays.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.address: Any = None if path is None else os.fspath(path)
        self.opened = 0
        self.peak = 0
        self._ssl_context = ssl_context
        self._sockets: dict[gevent.Greenlet[..., None], Any] = {}
        self._waiting: list[tuple[Callable[[], bool], Event]] = []
        self._server: _Listener | None = None

    def __enter__(self) -> EchoServer:
        self.start()
        return self

    def __exit__(
        self,
        exc_class: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._server is None else f"{self.open} open"
        return f"<{type(self).__name__} {self.address} {state}, {self.opened} opened>"

    # Up and down

    def start(self) -> None:
        """Listen, at the same address as before if it was stopped."""
        assert self._server is None, f"{self!r} is running"
        listener = _listen(self.address)
        self.address = listener.getsockname()
        self._server = _Listener(listener, self._accepted)
        self._server.start()

    def stop(self) -> None:
        """Refuse new connections and close all that are open; no greenlet is left."""
        if self._server is None:
            return
        self._server.stop()
        self._server = None
        self.fin_all()
        if isinstance(self.address, str):
            os.unlink(self.address)

    def fin_all(self) -> int:
        """Close every open connection in an orderly way; return how many.

        When it returns, the FINs have reached the peers (loopback is synchronous).
        """
        return self._cut(reset=False)

    def rst_all(self) -> int:
        """Reset every open connection; return how many.  The RSTs have reached the peers."""
        return self._cut(reset=True)

    # Looking and waiting

    @property
    def open(self) -> int:
        return len(self._sockets)

    def wait_open(self, count: int, timeout: float = 5.0) -> None:
        """Wait until exactly *count* connections are open."""
        self.wait_until(lambda: self.open == count, timeout, f"{count} open")

    def wait_opened(self, count: int, timeout: float = 5.0) -> None:
        """Wait until at least *count* connections have been accepted, ever."""
        self.wait_until(lambda: self.opened >= count, timeout, f"{count} opened")

    def wait_until(
        self, condition: Callable[[], bool], timeout: float = 5.0, wanted: str = "the condition"
    ) -> None:
        """Wait until *condition* holds; it is asked whenever a counter changes."""
        __tracebackhide__ = True
        waiting = (condition, Event())
        self._waiting.append(waiting)
        try:
            if not condition() and not waiting[1].wait(timeout):
                pytest.fail(f"waited {timeout} s for {wanted}: {self!r}")
        finally:
            self._waiting.remove(waiting)

    # What it does with a connection: for a subclass

    def serve(self, sock: Any) -> None:
        """Talk to one client until it leaves; an OSError ends it, too."""
        while data := sock.recv(65536):
            sock.sendall(data)

    # Machinery

    def _accepted(self, sock: Any) -> None:
        # In the hub.  Counted here, so that a connection is never neither in line nor open.
        greenlet = gevent.Greenlet(self._talk, sock)
        self._sockets[greenlet] = sock
        self.opened += 1
        self.peak = max(self.peak, self.open)
        greenlet.start()
        self._changed()

    def _talk(self, sock: Any) -> None:
        me: Any = gevent.getcurrent()
        try:
            if self._ssl_context is not None:
                sock = self._sockets[me] = self._ssl_context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
                sock.do_handshake()
            self.serve(sock)
        except OSError:
            pass  # the client left in the middle, or failed the handshake
        finally:
            self._forget(me)

    def _forget(self, greenlet: Any) -> None:
        sock = self._sockets.pop(greenlet, None)
        if sock is not None:
            sock.close()
            self._changed()

    def _cut(self, reset: bool) -> int:
        cut = dict(self._sockets)
        for sock in cut.values():
            if reset:
                sock.setsockopt(
                    stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, _RESET_ON_CLOSE
                )
        gevent.killall(list(cut))
        for greenlet in cut:
            self._forget(greenlet)  # if it was killed before its first switch
        # gevent closes the file descriptor of a closed socket in a callback of the next loop pass.
        gevent.sleep(0)
        gevent.sleep(0)
        return len(cut)

    def _changed(self) -> None:
        for condition, event in self._waiting:
            if condition():
                event.set()


class IdServer(EchoServer):
    """Answers the line ``b"<id>\\n"`` with the same line; a share of the answers is late.

    *late_share* (0 to 1) of the answers comes *late_by* seconds late; which ones, *seed* decides.
    Both may be set while it runs.  One connection is served in order, as by most protocols: so a
    client who gave up waiting, and his connection's next user, would read the late answer.
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

    def __enter__(self) -> IdServer:
        self.start()
        return self

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


class _Listener(gevent.server.StreamServer):
    """Accepts, and leaves the greenlets to the EchoServer."""

    def __init__(self, listener: Any, accepted: Callable[[Any], None]) -> None:
        super().__init__(listener, self.do_handle)
        self._accepted = accepted

    def do_handle(self, *args: Any) -> None:
        self._accepted(args[0])


def _listen(address: Any) -> Any:
    """A listening socket at *address*, or at any of _PORTS if it is None."""
    if address is not None:
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
    for _ in range(100):
        try:
            return _listen(("127.0.0.1", _dice.choice(_PORTS)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise RuntimeError("no free port in a hundred tries")


@contextlib.contextmanager
def closed_port() -> Iterator[tuple[str, int]]:
    """An address at which connections are refused, and which nobody else takes meanwhile."""
    holder = stdlib_socket.socket()
    try:
        while True:
            address = ("127.0.0.1", _dice.choice(_PORTS))
            try:
                holder.bind(address)  # bound, and never listening
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        yield address
    finally:
        holder.close()


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
    if os.environ.get("GEVENTPOOL_REQUIRE_SERVERS") == "1":
        pytest.fail(missing)
    pytest.skip(missing)
