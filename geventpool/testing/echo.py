"""A server whose answers are known: EchoServer."""

from __future__ import annotations

import contextlib
import os
import select
import ssl
from typing import Any, TypeVar

import gevent
import gevent.ssl
from gevent.monkey import get_original

from geventpool.testing.ends import hang_up, wait_closed
from geventpool.testing.ports import Listener
from geventpool.testing.watched import Watched

__all__ = ["EchoServer"]

Self = TypeVar("Self", bound="EchoServer")

_poll = get_original("select", "poll")  # the patched one switches


class EchoServer(Watched):
    """Sends back whatever comes in; counts its connections and can cut them.

    In a ``with`` it listens on a port of its own of 127.0.0.1, and *address* is ``(host, port)``.
    With *path* it listens on a Unix socket, and *address* is that path; with *ssl_context*, one of
    a server, it speaks TLS.  ``stop()`` and ``start()`` may follow each other: the address stays.

    *opened* is the number of connections accepted so far, *open* of those open now, *peak* the
    most that were open at once.

    A subclass that overrides ``serve(sock)`` is a server of another protocol.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.address: Any = None if path is None else os.fspath(path)
        self.opened = 0
        self.peak = 0
        self._ssl_context = ssl_context
        self._sockets: dict[gevent.Greenlet[..., None], Any] = {}
        self._listener: Listener | None = None

    def __enter__(self: Self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._listener is None else f"{self.open} open"
        return f"<{type(self).__name__} {self.address} {state}, {self.opened} opened>"

    # Up and down

    def start(self) -> None:
        """Listen, at the same address as before if it was stopped.

        Raises RuntimeError if it is running, and OSError if the address has been taken.
        """
        if self._listener is not None:
            raise RuntimeError(f"{self!r} is running")
        self._listener = Listener(self.address, self._accepted)
        self.address = self._listener.address

    def stop(self) -> None:
        """Refuse new connections and close all that are open; no greenlet is left."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        self.fin_all()
        if isinstance(self.address, str):
            with contextlib.suppress(FileNotFoundError):
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

    def wait_open(self, count: int, timeout: float = 10.0) -> None:
        """Wait until exactly *count* connections are open; AssertionError after *timeout* s."""
        __tracebackhide__ = True
        self.wait_until(lambda: self.open == count, timeout, f"{count} open")

    def wait_opened(self, count: int, timeout: float = 10.0) -> None:
        """Wait until at least *count* connections have been accepted, ever."""
        __tracebackhide__ = True
        self.wait_until(lambda: self.opened >= count, timeout, f"{count} opened")

    # What it does with a connection: for a subclass

    def serve(self, sock: Any) -> None:
        """Talk to one client until it leaves, in a greenlet of its own; an OSError ends it, too.

        The socket is closed afterwards.
        """
        while data := sock.recv(65536):
            sock.sendall(data)

    # Machinery

    def _accepted(self, sock: Any) -> None:
        # In the hub.  Counted here, so that a connection is never neither in line nor open.
        greenlet = gevent.Greenlet(self._talk, sock)
        self._sockets[greenlet] = sock
        self.opened += 1
        if self.open > self.peak:
            self.peak = max(self.peak, self.open - self._hung_up())
        greenlet.start()
        self._changed()

    def _hung_up(self) -> int:
        """How many clients have left whose greenlet has not run since: they are not open twice."""
        poller = _poll()
        for sock in self._sockets.values():
            if sock.fileno() >= 0:
                poller.register(sock.fileno(), select.POLLRDHUP)
        return len(poller.poll(0))

    def _talk(self, sock: Any) -> None:
        me: Any = gevent.getcurrent()
        try:
            if self._ssl_context is not None:
                # Not by the context: what that of the standard library wraps blocks the hub.
                sock = self._sockets[me] = gevent.ssl.SSLSocket(
                    sock,
                    server_side=True,
                    do_handshake_on_connect=False,
                    _context=self._ssl_context,
                )
                sock.do_handshake()
            self.serve(sock)
        except OSError:
            pass  # the client left in the middle, or failed the handshake
        finally:
            sock = self._sockets.pop(me, None)
            if sock is not None:  # else it is being cut
                sock.close()
                self._changed()

    def _cut(self, reset: bool) -> int:
        cut, self._sockets = self._sockets, {}
        # First, as gevent's TLS breaks in the hands of a greenlet if another one closes it.
        gevent.killall(list(cut))
        for sock in cut.values():
            hang_up(sock, reset)
        wait_closed()
        self._changed()
        return len(cut)
