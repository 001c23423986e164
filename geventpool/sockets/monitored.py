"""MonitoredSocket: a socket that knows how old it is, what went through it, and how long it waited.

Monitoring a socket must not be felt: an operation costs a call more, a look at the clock and some
additions.  That is why a socket counts for itself alone, and Traffic, which has the sums of all
sockets of an address, adds them up when asked to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

from gevent import ssl
from gevent.monkey import get_original
from gevent.socket import MSG_PEEK, socket

from geventpool._util.clock import monotonic
from geventpool.events import Duration

__all__ = ["MonitoredSocket", "Traffic"]

_PEEK = int(MSG_PEEK)  # as the member of an enumeration it would take 1 µs more to ask for
_TLS_SOCKETS = (ssl.SSLSocket, get_original("ssl", "SSLSocket"))


class MonitoredSocket:
    """A socket proxy which counts what goes through it: all that a socket has, and some figures.

    *bytes_in* and *bytes_out* count what was received and sent (by ``sendall``: once all is), TLS
    records unwrapped.  *receives* says how often something was received, how long that took in
    all, and at most.  Times are seconds of the monotonic clock: *opened_at*, *closed_at* (None:
    open) and *last_activity*, the end of the last operation that came to an end.  *address* is
    where it leads to; *new_sock* is True for the caller that was handed it freshly connected.

    *registry* is the Traffic that it counts for.  *name*, *type* and *state* are kept for who reads
    them; what is *protected* is seen from the socket itself.  Files made by ``makefile()`` count,
    too; as with any socket, it is really closed once they are.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_io_refs",
        "_longest",
        "_received",
        "_receiving",
        "_registry",
        "_sock",
        "address",
        "bytes_in",
        "bytes_out",
        "closed_at",
        "detached",
        "last_activity",
        "name",
        "new_sock",
        "opened_at",
        "state",
        "type",
        "use",
    )

    def __init__(
        self,
        sock: Any,
        registry: Traffic | None = None,
        protected: object = None,
        name: str | None = None,
        type: object = None,
        state: object = None,
        *,
        address: object = None,
    ) -> None:
        self.name, self.state = name, state
        self.type: Any = sock.type if type is None else type
        self._sock = sock
        self._registry = registry
        self._io_refs = 0
        self._closed = False
        self._received = 0
        self._receiving = self._longest = 0.0
        self.address = address
        self.bytes_in = self.bytes_out = 0
        self.opened_at = self.last_activity = monotonic()
        self.closed_at: float | None = None
        self.new_sock = True
        #: Whether the descriptor is another's now, as after ``SSLContext.wrap_socket()``.
        self.detached = False
        #: What lends it may keep here what it knows of its present use.
        self.use: Any = None
        if registry is not None:
            registry._opened(self)

    def __del__(self) -> None:
        if getattr(self, "closed_at", 0.0) is None:
            self._book_end()

    def __repr__(self) -> str:
        state = "open" if self.closed_at is None else "closed"
        return (
            f"<{type(self).__name__} {self.address} {state}, {self.lifetime:.3f} s old,"
            f" {self.bytes_in} bytes in, {self.bytes_out} out>"
        )

    def __getattr__(self, name: str) -> Any:
        if name == "_sock":  # it was not made at all
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._sock, name)

    def __getstate__(self) -> object:
        # As of any socket; and a copy would count what this one counts once more.
        raise TypeError(f"cannot pickle or copy a {type(self).__name__}")

    def __enter__(self) -> MonitoredSocket:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Looking

    @property
    def protected(self) -> bool:
        """Whether there is TLS on it."""
        return isinstance(self._sock, _TLS_SOCKETS)

    @property
    def lifetime(self) -> float:
        """For how many seconds it has been open, or was until it was closed."""
        return (monotonic() if self.closed_at is None else self.closed_at) - self.opened_at

    @property
    def receives(self) -> Duration:
        """How often something was received, or waited for in vain, and how long that took."""
        return Duration(self._received, self._receiving, self._longest)

    # In

    def recv(self, bufsize: int = 1024, flags: int = 0) -> bytes:
        """As ``socket.recv(bufsize, flags=0)``."""
        began = monotonic()
        data: bytes = b""
        try:
            data = self._sock.recv(bufsize, flags)
            return data
        finally:
            # Not in a function of its own: the call would cost as much as all of it.
            self.last_activity = now = monotonic()
            if not flags & _PEEK:
                self.bytes_in += len(data)
            took = now - began
            self._received += 1
            self._receiving += took
            if took > self._longest:
                self._longest = took

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As ``socket.recv_into(buffer, nbytes=0, flags=0)``."""
        size = nbytes or memoryview(buffer).nbytes  # TLS would take a 0 by its word
        return self._count_in("recv_into", flags, buffer, size, flags)  # type: ignore[no-any-return]

    def recvfrom(self, bufsize: int, flags: int = 0) -> Any:
        """As ``socket.recvfrom(bufsize, flags=0)``."""
        return self._count_in("recvfrom", flags, bufsize, flags)

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
        """As ``socket.recvfrom_into(buffer, nbytes=0, flags=0)``."""
        return self._count_in("recvfrom_into", flags, buffer, nbytes, flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0) -> Any:
        """As ``socket.recvmsg(bufsize, ancbufsize=0, flags=0)``."""
        return self._count_in("recvmsg", flags, bufsize, ancbufsize, flags)

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0) -> Any:
        """As ``socket.recvmsg_into(buffers, ancbufsize=0, flags=0)``."""
        return self._count_in("recvmsg_into", flags, buffers, ancbufsize, flags)

    def read(self, nbytes: int = 1024, buffer: Any = None) -> Any:
        """As ``SSLSocket.read(nbytes=1024, buffer=None)``; only TLS has it."""
        return self._count_in("read", 0, nbytes, buffer)

    # Out

    def send(self, data: Any, flags: int = 0) -> int:
        """As ``socket.send(data, flags=0)``."""
        sent: int = self._sock.send(data, flags)
        self.bytes_out += sent
        self.last_activity = monotonic()
        return sent

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As ``socket.sendall(data, flags=0)``."""
        self._sock.sendall(data, flags)
        self.bytes_out += len(data) if type(data) is bytes else memoryview(data).nbytes
        self.last_activity = monotonic()

    def sendmsg(
        self, buffers: Any, ancdata: Any = (), flags: int = 0, address: object = None
    ) -> int:
        """As ``socket.sendmsg(buffers, ancdata=(), flags=0, address=None)``."""
        return self._count_out("sendmsg", buffers, ancdata, flags, address)

    def sendto(self, *args: Any) -> int:
        """As ``socket.sendto(data, address)``, or with flags between the two."""
        return self._count_out("sendto", *args)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """As ``socket.sendfile(file, offset=0, count=None)``."""
        # Not by the socket's own, which may call its send() behind our back.
        return self._count_out("sendfile", file, offset, count)

    def write(self, data: Any) -> int:
        """As ``SSLSocket.write(data)``; only TLS has it."""
        return self._count_out("write", data)

    # Files, and the end

    def makefile(self, *args: Any, **kwargs: Any) -> Any:
        """As ``socket.makefile(mode="r", buffering=None, ...)``; what goes through it counts."""
        # gevent's own, run on this object, makes a file of our recv_into() and send().
        method: Any = socket.makefile
        return method(self, *args, **kwargs)

    def fileno(self) -> int:
        """As ``socket.fileno()``: -1 once it is closed."""
        descriptor: int = self._sock.fileno()
        return descriptor

    def close(self) -> None:
        """As ``socket.close()``: at once, or when the last file made of it is closed."""
        self._closed = True
        if self._io_refs <= 0:
            self.close_now()

    def close_now(self) -> None:
        """Close it, whatever files of it are open."""
        self._closed = True
        self._sock.close()
        if self.closed_at is None:
            self._book_end()

    def detach(self) -> int:
        """As ``socket.detach()``: from now on the descriptor is the caller's."""
        descriptor: int = self._sock.detach()
        self.detached = True
        if self.closed_at is None:
            self._book_end()
        return descriptor

    def _decref_socketios(self) -> None:
        # Called by a file made of it when that is closed.
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._closed:
            self.close()

    # Counting

    def _count_in(self, method: str, flags: int, *args: Any) -> Any:
        """Call what returns bytes, or how many, or a tuple that begins with these."""
        began = monotonic()
        count = 0
        try:
            answer = getattr(self._sock, method)(*args)
            first = answer[0] if isinstance(answer, tuple) else answer
            if not flags & _PEEK:  # what was only looked at will come again
                count = first if isinstance(first, int) else len(first)
            return answer
        finally:
            self.last_activity = now = monotonic()
            self.bytes_in += count
            took = now - began
            self._received += 1
            self._receiving += took
            if took > self._longest:
                self._longest = took

    def _count_out(self, method: str, *args: Any) -> int:
        sent: int = getattr(self._sock, method)(*args)
        self.bytes_out += sent
        self.last_activity = monotonic()
        return sent

    def _book_end(self) -> None:
        self.closed_at = monotonic()
        if self._registry is not None:
            self._registry._closed(self)


class Traffic:
    """What went through all MonitoredSockets of one address, those that are closed included."""

    def __init__(self) -> None:
        self.opened = 0
        self._live: WeakSet[MonitoredSocket] = WeakSet()
        self._bytes_in = self._bytes_out = 0
        self._last_activity = -math.inf
        self._receives = self._lifetimes = Duration()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.open} open of {self.opened} opened,"
            f" {self.bytes_in} bytes in, {self.bytes_out} out>"
        )

    @property
    def open(self) -> int:
        """How many of the sockets are open."""
        return sum(sock.closed_at is None for sock in self._live)

    @property
    def bytes_in(self) -> int:
        """The bytes received."""
        return self._bytes_in + sum(sock.bytes_in for sock in self._still_open())

    @property
    def bytes_out(self) -> int:
        """The bytes sent."""
        return self._bytes_out + sum(sock.bytes_out for sock in self._still_open())

    @property
    def last_activity(self) -> float | None:
        """When something was sent or received last, by the monotonic clock; None: never opened."""
        times = [self._last_activity, *(sock.last_activity for sock in self._still_open())]
        return None if max(times) == -math.inf else max(times)

    @property
    def receives(self) -> Duration:
        """How often something was received, and how long that took."""
        return _sum([self._receives, *(sock.receives for sock in self._still_open())])

    @property
    def lifetimes(self) -> Duration:
        """How many sockets were closed, and for how long they had been open."""
        return self._lifetimes

    def _still_open(self) -> list[MonitoredSocket]:
        return [sock for sock in self._live if sock.closed_at is None]

    def _opened(self, sock: MonitoredSocket) -> None:
        self.opened += 1
        self._live.add(sock)

    def _closed(self, sock: MonitoredSocket) -> None:
        """Take over what *sock* has counted; called once, perhaps as it is collected."""
        self._live.discard(sock)
        self._bytes_in += sock.bytes_in
        self._bytes_out += sock.bytes_out
        self._last_activity = max(self._last_activity, sock.last_activity)
        self._receives = _sum([self._receives, sock.receives])
        self._lifetimes = _sum([self._lifetimes, Duration(1, sock.lifetime, sock.lifetime)])


def _sum(durations: Iterable[Duration]) -> Duration:
    parts = list(durations)
    return Duration(
        sum(part.count for part in parts),
        sum(part.sum for part in parts),
        max(part.max for part in parts),
    )
