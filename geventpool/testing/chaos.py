"""A network that fails on demand: ChaosProxy."""

from __future__ import annotations

import _socket
import errno
import math
import struct
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple

import gevent
import gevent.socket
from gevent.event import Event

from geventpool.addresses import address
from geventpool.sockets import SocketFactory
from geventpool.testing.ports import anywhere
from geventpool.testing.watched import Watched

__all__ = ["ChaosProxy"]

_PIECE = 65536  # bytes that a direction of a connection holds at most
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


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
        self._loop = gevent.get_hub().loop
        self._listener = anywhere(_bind_and_listen)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._watcher: Any = None
        self._is_closed = False
        self._listen()

    def __enter__(self) -> ChaosProxy:
        return self

    def __exit__(
        self,
        exc_class: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        host, port = self.address
        state = self._flow.name if self._watcher is not None else f"{self._flow.name}, refusing"
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
        self._stop_listening()
        self.fin()

    # Looking

    @property
    def connections(self) -> int:
        """The number of connections of clients that are open now."""
        return len(self._links)

    def wait_connections(self, count: int, timeout: float = 5.0) -> None:
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

        As with a cable that was pulled, nobody is told.  New connections are accepted, and nothing
        ever comes from them.  What was sent meanwhile arrives after the end of it, as far as the
        buffers of the kernel can hold it; a client that sends more than that will wait.
        """
        self._set_flow(_Flow("black hole", to_target=math.inf, to_client=math.inf))

    def delay(self, seconds: float) -> None:
        """Hold back what comes from the target, each piece for so many seconds.

        An answer comes that much later; requests are not held back.  A long answer is delayed once
        for every 64 KiB.
        """
        held = _seconds("seconds", seconds)
        self._set_flow(_Flow(f"delay {held:g} s", to_client=held))

    def dribble(self, pause: float = 0.001) -> None:
        """Pass on what comes from the target one byte at a time, *pause* seconds apart.

        So a client finds out that an answer may come in any number of pieces.
        """
        self._set_flow(_Flow("dribble", pause=_seconds("pause", pause)))

    # New connections

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED), as a host where the server is not running.

        Nobody listens any more.  The port stays ours.  Connections that are open stay open.
        """
        self._check_open()
        if self._watcher is None:
            return
        self._accept()  # those that are connected already are not new
        self._stop_listening()
        # Bound, and not listening.  There is no switch since the close, so nobody else took it.
        self._listener = _bind(self.address)

    def normal(self) -> None:
        """Pass everything on again, at once, and accept new connections.

        What was held back goes on its way now.
        """
        self._check_open()
        if self._watcher is None:
            self._listener.listen(4096)
            self._listen()
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

    def _listen(self) -> None:
        self._watcher = self._loop.io(self._listener.fileno(), 1)
        self._watcher.start(self._accept)

    def _stop_listening(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
        # A socket of the interpreter, not of gevent: it is closed now, not in the next loop pass.
        self._listener.close()

    def _accept(self) -> None:
        """Take in everybody who is connected.  In the hub: nothing here may switch."""
        while True:
            try:
                fd, _ = self._listener._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue  # left before we came to it
                raise
            client = gevent.socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, fileno=fd)
            client.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            link = _Link(client, self._dial, self._pass_on, self._forget)
            self._links[link] = None
            self.accepted += 1
            link.start()
            self._changed()

    def _forget(self, link: _Link) -> None:
        if link in self._links:
            del self._links[link]
            self._changed()

    def _cut(self, reset: bool) -> int:
        links = list(self._links)
        for link in links:
            link.end(reset)
        gevent.killall([greenlet for link in links for greenlet in link.greenlets])
        # gevent closes the file descriptor of a closed socket in a callback of the next loop pass.
        gevent.sleep(0)
        gevent.sleep(0)
        return len(links)

    def _pass_on(self, source: Any, sink: Any, to_client: bool) -> bool:
        """Carry what comes from *source* to *sink* up to its end; False if one of them broke."""
        try:
            while data := source.recv(_PIECE):
                self._deliver(sink, data, to_client)
            self._hold_back(monotonic(), to_client)
            sink.shutdown(_socket.SHUT_WR)
        except OSError:
            return False
        return True

    def _deliver(self, sink: Any, data: bytes, to_client: bool) -> None:
        read_at = monotonic()
        rest = memoryview(data)
        while rest:
            self._hold_back(read_at, to_client)
            pause = self._flow.pause if to_client else None
            size = len(rest) if pause is None else 1
            sink.sendall(rest[:size])
            rest = rest[size:]
            if rest:
                self._news.wait(pause)

    def _hold_back(self, read_at: float, to_client: bool) -> None:
        """Wait as long as what was read then is held back by the flow, even as that changes."""
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

    def __init__(
        self,
        client: Any,
        dial: Callable[[], Any],
        pass_on: Callable[[Any, Any, bool], bool],
        forget: Callable[[_Link], None],
    ) -> None:
        self._client = client
        self._target: Any = None
        self._dial = dial
        self._pass_on = pass_on
        self._forget = forget
        self._answers: Any = None
        self._is_half_closed = False
        self._has_ended = False
        self.greenlets: list[Any] = [gevent.Greenlet(self._run)]

    def start(self) -> None:
        self.greenlets[0].start()

    def half_close(self) -> bool:
        """Send the client a FIN; whether that was news to it."""
        if self._is_half_closed or self._has_ended:
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
        if self._has_ended:
            return
        self._has_ended = True
        for sock in (self._client, self._target):
            if sock is not None:
                _close(sock, reset)
        self._forget(self)

    def _run(self) -> None:
        unbroken = False
        try:
            self._target = self._dial()
            unbroken = self._carry()
        except OSError:
            pass  # there is no target: what the client makes of a reset is up to it
        finally:
            gevent.killall(self.greenlets[1:], block=False)
            self.end(reset=not unbroken)

    def _carry(self) -> bool:
        """Carry data both ways up to both ends; False if a connection broke."""
        ways = [gevent.spawn(self._pass_on, self._client, self._target, False)]
        if not self._is_half_closed:
            self._answers = gevent.spawn(self._pass_on, self._target, self._client, True)
            ways.append(self._answers)
        self.greenlets += ways
        return all(way.get() for way in gevent.iwait(ways))


def _close(sock: Any, reset: bool) -> None:
    try:
        if reset:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET_ON_CLOSE)
        else:
            _read_what_is_there(sock)  # unread bytes would make a reset of it
    except OSError:
        pass  # it is broken already
    sock.close()


def _read_what_is_there(sock: Any) -> None:
    sock.shutdown(_socket.SHUT_WR)
    try:
        # Not for ever: a client of another process may send faster than we read.
        for _ in range(1000):
            if not sock._sock.recv(_PIECE, _socket.MSG_DONTWAIT):
                return
    except BlockingIOError:
        pass


def _bind(where: tuple[str, int]) -> Any:
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_and_listen(where: tuple[str, int]) -> Any:
    sock = _bind(where)
    try:
        sock.listen(4096)
    except BaseException:
        sock.close()
        raise
    return sock


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative, not {value!r}")
    return float(value)
