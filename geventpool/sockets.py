"""Open a TCP or TLS socket before a deadline; look whether one is clean and alive.

Every socket opened here is gevent's own, cooperative whether or not the program is monkey-patched.
Looking never switches: the engine does it between taking a connection and handing it out.
"""

from __future__ import annotations

import errno
import math
import os
import select
import ssl
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any

from gevent import Timeout
from gevent.monkey import get_original
from gevent.socket import (
    IPPROTO_TCP,
    SO_ERROR,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    getaddrinfo,
    socket,
    wait_write,
)
from gevent.ssl import SSLSocket, create_default_context

from geventpool.errors import ConnectError, NameNotFound

__all__ = ["SocketFactory", "close", "fileno", "look", "look_at_descriptor"]

# The standard library's own, also in a patched program.
_poll = get_original("select", "poll")
_SSLContext = get_original("ssl", "SSLContext")
_SOCKETS = (socket, get_original("socket", "socket"))
_TLS_SOCKETS = (SSLSocket, get_original("ssl", "SSLSocket"))


class SocketFactory:
    """Call it, and it returns a new open socket: ``connect=SocketFactory(("api.internal", 443))``.

    *target* is ``("host", port)``, ``"host:port"`` or ``"[v6]:port"``.  *tls* is False, True (TLS
    1.2 or later, certificate and host name verified against the system's roots), an SSLContext,
    or ``"unverified"``, which encrypts without asking who is at the other end.  The certificate
    must be that of *server_hostname*, by default the host.

    *connect_timeout* bounds resolving, connecting and the TLS handshake together, in seconds
    (None: no bound).  *read_timeout* is the timeout the socket is returned with (None: none).
    """

    def __init__(
        self,
        target: tuple[str, int] | str,
        *,
        tls: bool | str | ssl.SSLContext = False,
        server_hostname: str | None = None,
        connect_timeout: float | None = 10.0,
        read_timeout: float | None = None,
    ) -> None:
        self.host, self.port = _host_and_port(target)
        self.verified = tls != "unverified"
        self.context = _context(tls)
        # No certificate names a host with the dot that makes it absolute.
        own = self.host.removesuffix(".")
        self.server_hostname = own if server_hostname is None else server_hostname
        self.connect_timeout = _seconds("connect_timeout", connect_timeout)
        self.read_timeout = _seconds("read_timeout", read_timeout)
        if self.context is None and server_hostname is not None:
            raise ValueError(f"server_hostname {server_hostname!r} is of no use without tls")
        if self.context is not None:
            _try_out(self.context, self.server_hostname)

    def __call__(self) -> socket:
        """Return a new open socket, a ``gevent.ssl.SSLSocket`` if there is TLS.

        The addresses of the host are tried one after the other.  Blocks for at most
        *connect_timeout*, then raises ConnectError, which says where the time went.  What the
        system or TLS has to say is raised as it is, an OSError; of several addresses, what the
        last one had to say.  Whatever is raised, the caller's own Timeout or a kill included,
        nothing stays open.
        """
        phases: list[tuple[str, float]] = []
        deadline = Timeout(self.connect_timeout)
        try:
            with deadline:
                return self._open(phases)
        except Timeout as expired:
            if expired is not deadline:
                raise
            message = f"{self._target}: not open after {self.connect_timeout} s: {_spent(phases)}"
            raise ConnectError(message) from None

    def __repr__(self) -> str:
        tls = "" if self.context is None else " TLS" if self.verified else " TLS unverified"
        return f"<{type(self).__name__} {self._target}{tls}>"

    @property
    def _target(self) -> str:
        return _text((self.host, self.port))

    def _open(self, phases: list[tuple[str, float]]) -> socket:
        phases.append(("resolving", monotonic()))
        addresses = getaddrinfo(self.host, self.port, type=SOCK_STREAM)
        failure: OSError = NameNotFound(f"{self.host} has no address", name=self.host)
        for info in addresses:
            phases.append((f"connecting to {_text(info[4])}", monotonic()))
            outcome = _connect(info)
            if not isinstance(outcome, OSError):
                break
            failure = outcome
        else:
            raise failure
        if self.context is not None:
            phases.append(("TLS handshake", monotonic()))
            outcome = _secure(outcome, self.context, self.server_hostname)
        outcome.settimeout(self.read_timeout)
        return outcome


def look(connection: object) -> Callable[[], object] | None:
    """Return a *look* for this connection, or None if it is not a socket.

    A look takes nothing, never switches, never blocks, and may be called any number of times.
    What it returns is falsy if the connection is open, alive and has no unread bytes, and else
    says why not.  Then the connection is good for closing only: of TLS, a byte may be missing.
    It does not keep the connection alive.
    """
    if not isinstance(connection, _SOCKETS):
        return None
    descriptor = fileno(connection)
    if descriptor is None:
        return lambda: "closed"
    poller = _poll()
    poller.register(descriptor, select.POLLIN)
    make = _look_at_tls if isinstance(connection, _TLS_SOCKETS) else _look_at_raw
    return make(connection, descriptor, poller)


def look_at_descriptor(descriptor: int) -> Callable[[], object]:
    """A look at a file descriptor whose owner is no socket we know: anything to read is unread.

    It must not be used once the descriptor is closed, as the number may be another file's then.
    """
    poller = _poll()
    poller.register(descriptor, select.POLLIN)
    return partial(poller.poll, 0)


def fileno(connection: Any) -> int | None:
    """The descriptor of *connection*, or None if it has none (any more)."""
    try:
        descriptor = connection.fileno()
    except Exception:
        return None
    return descriptor if isinstance(descriptor, int) and descriptor >= 0 else None


def close(connection: object) -> None:
    """Close *connection* by its ``close()``, if there is one."""
    method = getattr(connection, "close", None)
    if callable(method):
        method()


# What the arguments of a SocketFactory mean.


def _host_and_port(target: object) -> tuple[str, int]:
    """Take ``("host", port)``, ``"host:port"`` or ``"[v6]:port"`` apart."""
    match target:
        case str():
            host, _, digits = target.rpartition(":")
            if host.startswith("[") and host.endswith("]"):
                host = host[1:-1]
            elif ":" in host:
                host = ""  # "::1:443" could be read in two ways, and an URL is not a target
            port = int(digits) if digits.isascii() and digits.isdecimal() else 0
        case (str(host), int(port)) if not isinstance(port, bool):
            pass
        case _:
            raise TypeError(_expected(target))
    if not host or not host.isprintable() or " " in host or not 0 < port < 65536:
        raise ValueError(_expected(target))
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"{_expected(target)}: {error}") from error
    return host, port


def _expected(target: object) -> str:
    return f'target must be ("host", port), "host:port" or "[v6]:port", not {target!r}'


def _context(tls: object) -> ssl.SSLContext | None:
    """The SSLContext that *tls* asks for.  Made once per factory: that takes 20 ms."""
    if isinstance(tls, _SSLContext):
        return tls  # type: ignore[no-any-return]
    if tls is False:
        return None
    if tls is not True and tls != "unverified":
        raise TypeError(f'tls must be False, True, "unverified" or an SSLContext, not {tls!r}')
    context = create_default_context()
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    if tls == "unverified":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _try_out(context: ssl.SSLContext, server_hostname: str) -> None:
    """Raise ValueError now if no handshake could ever start with these."""
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=server_hostname)
    except (ValueError, ssl.SSLError) as error:
        message = f"tls cannot be used with server_hostname {server_hostname!r}: {error}"
        raise ValueError(message) from error


def _seconds(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be more than 0 seconds (None: no bound), not {value!r}")
    return value


# How a socket is opened.


def _connect(info: tuple[Any, ...]) -> socket | OSError:
    """Connect to one answer of getaddrinfo; return the socket, or why there is none.

    The reason is returned because only returned ones are the system's: a caller's Timeout may
    carry any exception, an OSError too, and what it raises in the wait must not look like one
    more address that does not answer.
    """
    family, kind, protocol, _, address = info
    try:
        sock = socket(family, kind, protocol)
    except OSError as error:  # a family this machine does not have
        return error
    with _closed_on_failure(sock):
        # Not sock.connect(): that would raise.
        sock.setblocking(False)
        # A request sent in two pieces waits 40 ms for a delayed ACK otherwise.
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        number = sock.connect_ex(address)
        if number == errno.EINPROGRESS:
            wait_write(sock.fileno())
            number = sock.getsockopt(SOL_SOCKET, SO_ERROR)
        sock.settimeout(None)
    if number == 0:
        return sock
    sock.close()
    return OSError(number, f"{os.strerror(number)} ({_text(address)})")


def _secure(sock: socket, context: ssl.SSLContext, server_hostname: str) -> socket:
    """Return *sock* with TLS on it, the handshake done."""
    # Not context.wrap_socket(): without monkey-patching, create_default_context() of gevent.ssl
    # makes the standard library's SSLContext, and what that one wraps blocks the whole hub.
    # The new socket is ours to close before its __init__ takes the descriptor over and may fail.
    secured: Any = SSLSocket.__new__(SSLSocket)
    with _closed_on_failure(sock, secured):
        SSLSocket.__init__(
            secured,
            sock=sock,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            _context=context,
        )
        secured.do_handshake()
    return secured  # type: ignore[no-any-return]


@contextmanager
def _closed_on_failure(*sockets: socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for sock in sockets:
            sock.close()
        raise


def _spent(phases: list[tuple[str, float]]) -> str:
    """Say how long each phase took, the last one until now."""
    ends = [began for _, began in phases[1:]] + [monotonic()]
    return ", ".join(
        f"{phase} {end - began:.3f} s" for (phase, began), end in zip(phases, ends, strict=True)
    )


def _text(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# How a socket is looked at.  Each look asks for the descriptor again: that of a socket its user
# closed may be another connection's by now, and poll would tell of that one.


class _LookAtRaw(weakref.ref):  # type: ignore[type-arg]
    """A look at a raw socket, which it does not keep alive.

    There is one for each pooled connection: as a closure it would be three times as large.
    """

    __slots__ = ("descriptor", "poller")
    descriptor: int
    poller: Any

    def __call__(self) -> object:
        sock = _dereference(self)
        if sock is None or sock.fileno() != self.descriptor:
            return "closed"
        return self.poller.poll(0)


_dereference: Callable[[Any], Any] = weakref.ref.__call__


def _look_at_raw(connection: socket, descriptor: int, poller: Any) -> Callable[[], object]:
    # gevent's close() lets go of the socket within; asking that one saves 0.14 us per look.
    look = _LookAtRaw(getattr(connection, "_sock", connection))
    look.descriptor, look.poller = descriptor, poller
    return look


def _look_at_tls(connection: Any, descriptor: int, poller: Any) -> Callable[[], object]:
    reference = weakref.ref(connection)
    verdict: str | None = None  # kept: what a look has read, the next one would not find

    def look_at_tls() -> object:
        nonlocal verdict
        sock = reference()
        if verdict is not None or sock is None or sock.fileno() != descriptor:
            return verdict or "closed"
        session = sock._sslobj
        if session is None:  # unwrapped: from here on everything would go in clear text
            return "TLS was shut down"
        if session.pending():
            return f"{session.pending()} unread bytes"
        # Readable need not mean data: TLS 1.3 sends session tickets after the handshake.
        verdict = _read_byte(sock) if poller.poll(0) else None
        return verdict

    return look_at_tls


def _read_byte(sock: Any) -> str | None:
    """Read a byte from a TLS socket without waiting; None if that would block."""
    timeout = sock.gettimeout()
    sock.settimeout(0.0)  # the one mode in which neither gevent's nor the stdlib's read waits
    try:
        return "unread bytes" if sock.recv(1) else "closed by the peer"
    except ssl.SSLWantReadError:
        return None
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        sock.settimeout(timeout)
