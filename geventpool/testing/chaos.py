"""A network that fails on demand: ChaosProxy."""

from __future__ import annotations

import _socket
import math
from time import monotonic
from typing import Any, NamedTuple

import gevent
from gevent.event import Event

from geventpool.addresses import address
from geventpool.pools.extension import check_seconds
from geventpool.sockets import SocketFactory
from geventpool.testing.ends import hang_up, wait_closed
from geventpool.testing.ports import Listener
from geventpool.testing.watched import Watched

__all__ = ["ChaosProxy"]

_PIECE = 65536  # bytes that a direction of a connection holds at most


class _Flow(NamedTuple):
    """How data goes through the proxy."""

    name: str
    to_target: float = 0.0  # seconds that it is held back
    to_client: float = 0.0
    pause: float | None = None  # between two bytes for the client; None: in one piece


_NORMAL = _Flow("normal")


class ChaosProxy(Watched):
    """Passes TCP connections on to *target*, until it is told to do worse.

        with ChaosProxy(("127.0.0.1", 5432)) as proxy:
            pool = MyPool(5, connect=SocketFactory(proxy.address))
            proxy.black_hole()

    *target*: ``("host", port)``, ``"host:port"``, ``"unix:/path"``, or any other spelling of one
    address.  It is dialed anew for each client; if that fails, the client's connection is reset.

    It listens from its construction on, at *address*, a ``(host, port)`` of 127.0.0.1, until
    ``close()`` or the end of its ``with``.  *connections* is the number of clients' connections
    open now, *accepted* that of all so far.

    Once, to all connections of the moment: ``fin()``, ``rst()``, ``half_close()``.  They return how
    many these were, and when they return, it has reached the clients.
    For how data flows, each in place of the one before: ``black_hole()``, ``delay()``,
    ``dribble()``.  For new connections: ``refuse()``.  ``normal()`` ends all of these.

    Bytes are passed on as they are, so TLS goes through.  A reader that is slow slows the other
    side down, as it would without the proxy: no more than 64 KiB each way are held here.  A FIN
    goes through as a FIN, of one direction only, and a reset as a reset.
    """

    def __init__(self, target: object) -> None:
        super().__init__()
        self.target = address(target)
        self._dial = SocketFactory(self.target)
        self.accepted = 0
        self._flow = _NORMAL
        self._news = Event()  # set, and replaced, when the flow changes
        self._links: dict[_Link, None] = {}
        self._listener = Listener(None, self._accepted)
        self.address: tuple[str, int] = self._listener.address
        self._is_closed = False

    def __enter__(self) -> ChaosProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        host, port = self.address
        state = self._flow.name + (", refusing" if self._listener.is_refusing else "")
        if self._is_closed:
            state = "closed"
        return (
            f"<ChaosProxy {host}:{port} -> {self.target} {state},"
            f" {self.connections} open, {self.accepted} accepted>"
        )

    def close(self) -> None:
        """Listen no more, and close every connection; no greenlet and no socket is left.

        Closing it again does nothing.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._listener.close()
        self.fin()

    # Looking

    @property
    def connections(self) -> int:
        """The number of connections of clients that are open now."""
        return len(self._links)

    def wait_connections(self, count: int, timeout: float = 10.0) -> None:
        """Wait until exactly *count* connections are open; AssertionError after *timeout* s."""
        __tracebackhide__ = True
        self.wait_until(lambda: self.connections == count, timeout, f"{count} connections")

    # Once, to the connections of the moment

    def fin(self) -> int:
        """Close every connection in an orderly way, as a server that restarts; return how many."""
        return self._cut(reset=False)

    def rst(self) -> int:
        """Reset every connection, as a server that was killed; return how many."""
        return self._cut(reset=True)

    def half_close(self) -> int:
        """Tell every client that nothing more will come, and go on listening to it.

        The client reads the end, and may still write, which reaches the target.  Answers of the
        target are not read any more.  Returns how many connections these were.
        """
        return sum([link.half_close() for link in list(self._links)])

    # How data flows

    def black_hole(self) -> None:
        """Let nothing through, either way, without a sign: neither data nor a FIN or a reset.

        As with a cable that was pulled, neither end is told.  New connections are accepted, and
        nothing ever comes from them; the target does not see them.  Nor does it, or *connections*,
        see that a client has left.  What was sent meanwhile arrives after the end of it, as far as
        the buffers of the kernel can hold it; a client that sends more than that will wait.
        """
        self._set_flow(_Flow("black hole", to_target=math.inf, to_client=math.inf))

    def delay(self, seconds: float) -> None:
        """Hold back what comes from the target, each piece for so many seconds.

        An answer comes that much later; requests are not held back.  A long answer is delayed once
        for every 64 KiB.
        """
        check_seconds("seconds", seconds, zero=True, none=False)
        self._set_flow(_Flow(f"delay {seconds:g} s", to_client=seconds))

    def dribble(self, pause: float = 0.001) -> None:
        """Pass on what comes from the target one byte at a time, *pause* seconds apart.

        So a client finds out that an answer may come in any number of pieces.
        """
        check_seconds("pause", pause, zero=True, none=False)
        self._set_flow(_Flow("dribble", pause=pause))

    # New connections

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED), as a host where the server is not running.

        Nothing listens any more.  The port stays ours.  Connections that are open stay open.
        """
        self._check_open()
        self._listener.refuse()

    def normal(self) -> None:
        """Pass everything on again, at once, and accept new connections.

        What was held back goes on its way now.
        """
        self._check_open()
        self._listener.welcome()
        self._set_flow(_NORMAL)

    # Machinery

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed")

    def _set_flow(self, flow: _Flow) -> None:
        self._check_open()
        self._flow = flow
        news, self._news = self._news, Event()
        news.set()

    def _accepted(self, client: Any) -> None:
        client.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        link = _Link(client, self)
        self._links[link] = None
        self.accepted += 1
        link.start()
        self._changed()

    def _cut(self, reset: bool) -> int:
        links = list(self._links)
        for link in links:
            link.end(reset)
        gevent.killall([greenlet for link in links for greenlet in link.greenlets])
        wait_closed()
        return len(links)

    def _reach_target(self) -> Any:
        self._hold_back(to_client=False)
        try:
            return self._dial()
        except OSError:
            self._hold_back(to_client=True)
            raise

    def _forget(self, link: _Link) -> None:
        if link in self._links:
            del self._links[link]
            self._changed()

    def _pass_on(self, source: Any, sink: Any, to_client: bool) -> bool:
        """Carry what comes from *source* to *sink* up to its end; False if one of them broke."""
        unbroken = False
        try:
            while data := source.recv(_PIECE):
                self._deliver(sink, data, to_client)
            unbroken = True
        except OSError:
            pass
        self._hold_back(to_client)  # the end, too, be it a FIN or a reset
        if unbroken:
            try:
                sink.shutdown(_socket.SHUT_WR)
            except OSError:
                unbroken = False
        return unbroken

    def _deliver(self, sink: Any, data: bytes, to_client: bool) -> None:
        read_at = monotonic()
        rest = memoryview(data)
        while rest:
            self._hold_back(to_client, read_at)
            pause = self._flow.pause if to_client else None
            size = len(rest) if pause is None else 1
            sink.sendall(rest[:size])
            rest = rest[size:]
            if rest:
                self._news.wait(pause)

    def _hold_back(self, to_client: bool, read_at: float | None = None) -> None:
        """Wait as long as what was read then is held back by the flow, even as that changes."""
        read_at = monotonic() if read_at is None else read_at
        while True:
            held = self._flow.to_client if to_client else self._flow.to_target
            left = read_at + held - monotonic()
            if left <= 0:
                return
            self._news.wait(None if left == math.inf else left)


class _Link:
    """A client's connection and the one to the target that continues it.

    One greenlet for each direction, and one that waits for the end of both.
    """

    def __init__(self, client: Any, proxy: ChaosProxy) -> None:
        self._client = client
        self._target: Any = None
        self._proxy = proxy
        self._answers: Any = None
        self._is_half_closed = False
        self.greenlets: list[Any] = [gevent.Greenlet(self._run)]

    def start(self) -> None:
        self.greenlets[0].start()

    def half_close(self) -> bool:
        """Send the client a FIN; whether that was news to it."""
        if self._is_half_closed:
            return False
        self._is_half_closed = True
        gevent.killall([] if self._answers is None else [self._answers])
        try:
            self._client.shutdown(_socket.SHUT_WR)
        except OSError:
            return False  # it has left
        return True

    def end(self, reset: bool) -> None:
        """Close both connections, without waiting; their greenlets find out."""
        for sock in (self._client, self._target):
            if sock is not None:
                hang_up(sock, reset)
        self._proxy._forget(self)

    def _run(self) -> None:
        unbroken = False
        try:
            self._target = self._proxy._reach_target()
            unbroken = self._carry()
        except OSError:
            pass  # there is no target: what the client makes of a reset is up to it
        finally:
            gevent.killall(self.greenlets[1:], block=False)
            self.end(reset=not unbroken)

    def _carry(self) -> bool:
        """Carry data both ways up to both ends; False if a connection broke."""
        ways = [gevent.spawn(self._proxy._pass_on, self._client, self._target, False)]
        if not self._is_half_closed:
            self._answers = gevent.spawn(self._proxy._pass_on, self._target, self._client, True)
            ways.append(self._answers)
        self.greenlets += ways
        return all(way.get() for way in gevent.iwait(ways))
