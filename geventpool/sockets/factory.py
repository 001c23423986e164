"""Open a TCP, TLS or Unix socket before a deadline.

Every socket opened here is gevent's own, cooperative whether or not the program is monkey-patched.
What a target may be is in ``addresses.py``, how the addresses of one host are raced in
``happy_eyeballs.py``, and how a socket is looked at, whether it is clean and alive, in
``liveness.py``.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import random
import socket as stdlib_socket
import ssl
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import gevent
from gevent import Timeout
from gevent.monkey import get_original
from gevent.socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AF_UNSPEC,
    AI_NUMERICHOST,
    AI_NUMERICSERV,
    IPPROTO_TCP,
    SO_KEEPALIVE,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    gaierror,
    getaddrinfo,
    socket,
    wait_read,
    wait_write,
)
from gevent.ssl import SSLSocket, create_default_context

from geventpool._util.arguments import check_seconds
from geventpool._util.errors import about
from geventpool.addresses import Address, AddressGroup, AnyAddress, Resolver, UnixAddress, address
from geventpool.errors import ConnectError, MultiConnectFailure, NameNotFound
from geventpool.sockets.happy_eyeballs import Candidate, connect, interleaved
from geventpool.sockets.liveness import close, fileno, is_socket, make_descriptor_probe, make_probe

__all__ = ["SocketFactory", "close", "fileno", "is_socket", "make_descriptor_probe", "make_probe"]

# The standard library's own, also in a patched program.
_own_getaddrinfo = get_original("socket", "getaddrinfo")
_thread_id = get_original("_thread", "get_ident")
_SSLContext = get_original("ssl", "SSLContext")

_LEAST_PART = 2.0  # seconds for each of many servers: enough for a SYN to be lost once
_MOST_TLS_SESSIONS = 64  # servers whose TLS session a factory remembers
_SESSION_AGE = 10.0  # seconds that one is new enough: to ask for another one takes 0.15 ms

_Option = tuple[int, int, "int | bytes"]


class SocketFactory:
    """Call it, and it returns a new open socket: ``connect=SocketFactory("api.internal:443")``.

    *target* is one address: ``("host", port)``, ``"host:port"``, ``"[v6]:port"``, an Address, a
    pair of an IPv4Address or IPv6Address and a port; of a Unix socket ``"unix:/path"`` or a
    ``pathlib.Path``.  Or it is several: a list of these, of which each call starts with the next
    one, so that a pool spreads over them; or an AddressGroup, in its order.  Or, with a
    *resolver*, it is a name to ask for at each call: ``resolver.resolve(name)``.  If a server
    cannot be reached, the next one is tried.

    *tls* is False, True (TLS 1.2 or later, certificate and host name verified against the system's
    roots), an SSLContext (which may bring a client's certificate, or ALPN), or ``"unverified"``,
    which encrypts without asking who is at the other end.  The certificate must be that of
    *server_hostname*, by default the host of the address.  There is no default for a Unix socket,
    nor for what a *resolver* answers, which may come from anybody.  TLS sessions are resumed where
    server and context allow it.

    *connect_timeout* bounds resolving, connecting and the TLS handshake together, in seconds
    (None: no bound but *user_timeout* and the system's).  It is shared out among several servers,
    so the connect_timeout of a pool should not be shorter.  *read_timeout* is the timeout the
    socket is returned with (None: none).

    A TCP socket comes with TCP_NODELAY, and with two ways to notice that its peer is gone, as
    neither does the work of the other.  *keepalive* is for a silent connection, ``(idle, interval,
    count)``: after *idle* seconds a probe every *interval* seconds, of which *count* may be lost.
    *user_timeout* is for one with data on its way: so many seconds may they stay unacknowledged.
    It also bounds the above, so it should not be less than ``idle + interval * count``, and the
    wait for an answer to the connecting.  The system takes whole seconds and milliseconds.  None
    leaves it to the system: two hours and about 15 minutes.  *source_address* is the near end,
    ``"ip"`` or ``("ip", port)``.  *options* are set after these, ``(level, name, value)`` each.
    """

    def __init__(
        self,
        target: object,
        *,
        resolver: Resolver | None = None,
        tls: bool | str | ssl.SSLContext = False,
        server_hostname: str | None = None,
        connect_timeout: float | None = 10.0,
        read_timeout: float | None = None,
        source_address: str | tuple[str, int] | None = None,
        options: Iterable[_Option] = (),
        keepalive: tuple[int, int, int] | None = (15, 5, 3),
        user_timeout: float | None = 30.0,
    ) -> None:
        self._servers, known, self._name = _servers(target, resolver)
        self._asks = known is None
        self.context = _context(tls)
        self.server_hostname = server_hostname
        check_seconds("connect_timeout", connect_timeout)
        check_seconds("read_timeout", read_timeout)
        check_seconds("user_timeout", user_timeout)
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self._family, self._source = _source(source_address)
        self._tcp_options = _tcp_options(keepalive, user_timeout)
        self._options = _options(options)
        self._tls_sessions: dict[object, _TLSSession] = {}
        if self.context is None and server_hostname is not None:
            raise ValueError(f"server_hostname {server_hostname!r} is of no use without tls")
        if self.context is not None:
            if known is None and server_hostname is None and self.context.check_hostname:
                raise ValueError("tls with a resolver needs server_hostname: whose certificate?")
            for server in known or ():
                _try_out(self.context, self._hostname(server), server)
        if source_address is not None and known and not any(isinstance(s, Address) for s in known):
            raise ValueError(f"source_address {source_address!r} is of no use for a Unix socket")

    def __call__(self) -> socket:
        """Return a new open socket, a ``gevent.ssl.SSLSocket`` if there is TLS.

        Blocks for at most *connect_timeout*.  The addresses of one host are raced, servers are
        tried one after the other.  If there was only one address to try, what the system, the
        resolver or TLS has to say is raised as it is; if there were more, a MultiConnectFailure
        has it all.  If the time is over, the error is a ConnectError that says what it was spent
        on, or a MultiConnectFailure whose last error is that.  The same is made the ``__cause__``
        of a Timeout that is not ours, the caller's or a pool's, which goes on.  Whatever is
        raised, nothing stays open.
        """
        dial = _Dial(self._name)
        deadline = Timeout(self.connect_timeout)
        try:
            with deadline:
                sock = self._open(dial)
        except Timeout as expired:
            if expired is deadline:
                dial.give_up(self.connect_timeout)
                raise dial.failure() from None
            dial.give_up()
            expired.__cause__ = dial.failure()
            raise
        if sock is None:
            raise dial.failure()
        sock.settimeout(self.read_timeout)
        return sock

    def __repr__(self) -> str:
        tls = ""
        if self.context is not None:
            tls = " TLS unverified" if self.context.verify_mode == ssl.CERT_NONE else " TLS"
        return f"<{type(self).__name__} {self._name}{tls}>"

    # From here on None means: no socket, and dial.failed knows why.  What the system has to say is
    # not raised, as a caller's Timeout may carry any exception, an OSError too, and what it raises
    # in a wait must not look like one more address that does not answer.

    def _open(self, dial: _Dial) -> socket | None:
        ends_at = math.inf if self.connect_timeout is None else dial.began + self.connect_timeout
        if self._asks:
            dial.enter("resolving", self._name)
        servers = self._servers()
        for number, server in enumerate(servers):
            dial.server = server
            with dial.part(server, len(servers) - number, ends_at) as its_end:
                sock = self._open_server(server, dial, its_end)
                if sock is not None:
                    return sock
        return None

    def _open_server(self, server: AnyAddress, dial: _Dial, ends_at: float) -> socket | None:
        candidates = self._candidates(server, dial)
        while candidates:
            dial.enter("connecting to", *candidates)
            connected = connect(candidates, self._make, dial.failed)
            if connected is None:
                break
            sock, candidate = connected
            if self.context is None:
                return sock
            # The others are tried if this one does not speak TLS, or not with us.
            with dial.part(candidate.name, 1 + len(candidates), ends_at):
                dial.enter("TLS handshake with", candidate)
                secured = self._secure(sock, server, candidate, dial)
                if secured is not None:
                    return secured
        return None

    def _candidates(self, server: AnyAddress, dial: _Dial) -> list[Candidate]:
        """Where to find *server*; empty if that is not known."""
        if isinstance(server, UnixAddress):
            return [Candidate(AF_UNIX, server.path, server)]
        answer = _numeric(server, self._family)
        if answer is None:
            dial.enter("resolving", server.ip)
            answer = _look_up(server, self._family)
        if not answer:
            answer = NameNotFound(f"{server.ip} has no address", name=server.ip)
        if isinstance(answer, Exception):
            dial.failed.append((server, answer))
            return []
        return interleaved(
            Candidate(family, sockaddr, Address(*sockaddr[:2]))
            for family, _, _, _, sockaddr in answer
        )

    def _make(self, candidate: Candidate) -> socket:
        """A new socket for *candidate*, not connected yet."""
        sock = socket(candidate.family, SOCK_STREAM)
        with _closed_on_failure(sock):
            sock.setblocking(False)
            if candidate.family != AF_UNIX:
                for ours in self._tcp_options:
                    sock.setsockopt(*ours)
            for option in self._options:
                try:
                    sock.setsockopt(*option)
                except OSError as error:
                    raise OSError(error.errno, f"{error.strerror} (option {option})") from None
            if self._source is not None and candidate.family != AF_UNIX:
                sock.bind(self._source)
        return sock

    def _secure(
        self, sock: socket, server: AnyAddress, candidate: Candidate, dial: _Dial
    ) -> socket | None:
        """Return *sock* with TLS on it, the handshake done."""
        # Not context.wrap_socket(): without monkey-patching, create_default_context() of gevent.ssl
        # makes the standard library's SSLContext, and what that one wraps blocks the whole hub.
        # Nor the constructor: the new socket is ours to close even if its __init__ fails half-way.
        tls_session = self._tls_session(server)
        secured: Any = _TLSSocket.__new__(_TLSSocket)
        error: OSError | None = None
        try:
            error = _wrap(secured, sock, self.context, self._hostname(server))
            if error is None:
                tls_session.offer(secured)
                error = _shake_hands(secured)
            if error is None:
                tls_session.keep(secured)
                kept, secured = secured, None
                return kept  # type: ignore[no-any-return]
        finally:
            if secured is not None:
                # One of the two has the descriptor; the other may not even know how to close.
                (sock if sock.fileno() >= 0 else secured).close()
        tls_session.forget()  # perhaps it is what the server stumbled over
        dial.failed.append((candidate.name, error))
        return None

    def _hostname(self, server: AnyAddress) -> str | None:
        """Whose certificate *server* must have."""
        if self.server_hostname is not None or isinstance(server, UnixAddress):
            return self.server_hostname
        # No certificate names a host with the dot that makes it absolute.
        return server.ip.removesuffix(".")

    def _tls_session(self, server: AnyAddress) -> _TLSSession:
        """That of the sessions that may be resumed with *server* under the same conditions.

        A resumed session is not verified again: what was lax once must not count as strict.  And
        to ask a socket for its session while another thread reads from it is not safe.
        """
        context: Any = self.context
        terms = (context.verify_mode, context.check_hostname)
        key = (server, self._hostname(server), terms, _thread_id())
        if key not in self._tls_sessions and len(self._tls_sessions) >= _MOST_TLS_SESSIONS:
            # A resolver may name ever new servers
            del self._tls_sessions[next(iter(self._tls_sessions))]
        return self._tls_sessions.setdefault(key, _TLSSession())


# What the arguments of a SocketFactory mean.


def _servers(
    target: object, resolver: Resolver | None
) -> tuple[Callable[[], Sequence[AnyAddress]], Collection[AnyAddress] | None, str]:
    """What returns the servers to try, in order; all there are, if known; and what to call them."""
    if resolver is not None:
        if not callable(getattr(resolver, "resolve", None)):
            raise TypeError(f"resolver must have a method resolve(name), {resolver!r} has none")
        if not isinstance(target, str) or not target:
            raise TypeError(f"target must be a name for the resolver, not {target!r}")
        return lambda: resolver.resolve(target).connect_ordering(), None, target
    if isinstance(target, AddressGroup):
        known = sorted(target.addresses, key=str)
        return target.connect_ordering, known, _listed(known)
    if isinstance(target, list):
        if not target:
            raise ValueError("target must be at least one address, not an empty list")
        known = [address(each) for each in target]
    else:
        known = [address(target)]
    return _Rotation(known), known, _listed(known)


class _Rotation:
    """The same addresses again and again, beginning with the next one each time."""

    def __init__(self, addresses: list[AnyAddress]) -> None:
        self._addresses = addresses
        # Not every program that starts now shall start with the same server.
        self._turns = itertools.count(random.randrange(len(addresses)))

    def __call__(self) -> list[AnyAddress]:
        first = next(self._turns) % len(self._addresses)
        return self._addresses[first:] + self._addresses[:first]


def _listed(addresses: list[AnyAddress]) -> str:
    shown = ", ".join(map(str, addresses[:3]))
    return shown if len(addresses) <= 3 else f"{shown} and {len(addresses) - 3} more"


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


def _try_out(context: ssl.SSLContext, server_hostname: str | None, server: AnyAddress) -> None:
    """Raise ValueError now if no handshake could ever start with these."""
    if server_hostname is None:
        raise ValueError(f"tls over {server} needs server_hostname: whose certificate?")
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=server_hostname)
    except (ValueError, ssl.SSLError) as error:
        message = f"tls cannot be used with server_hostname {server_hostname!r}: {error}"
        raise ValueError(message) from error


def _source(given: object) -> tuple[int, tuple[str, int] | None]:
    """The family and the address to bind to, or AF_UNSPEC and None.

    A host name is none: to bind to it would be to look it up at each dial, in the hub.
    """
    match given:
        case None:
            return AF_UNSPEC, None
        case str(host):
            port = 0
        case (str(host), int(port)) if not isinstance(port, bool):
            pass
        case _:
            raise TypeError(f'source_address must be "ip" or ("ip", port), not {given!r}')
    try:
        version = ipaddress.ip_address(host).version
    except ValueError as error:
        raise ValueError(f"source_address {given!r}: {error}") from None
    if not 0 <= port < 65536:
        raise ValueError(f"source_address {given!r}: a port is 0 (any) to 65535")
    return AF_INET if version == 4 else AF_INET6, (host, port)


def _tcp_options(keepalive: object, user_timeout: float | None) -> list[tuple[int, int, int]]:
    """What to set on each TCP socket, as far as the platform has it."""
    options = [(IPPROTO_TCP, TCP_NODELAY, 1)]  # else a request in two pieces takes 40 ms more
    named: dict[str, int] = {}
    match keepalive:
        case None:
            pass
        case (int(idle), int(interval), int(count)):
            if not (0 < idle <= 32767 and 0 < interval <= 32767 and 0 < count <= 127):
                raise ValueError(
                    "keepalive must be (idle, interval, count), two times 1 to 32767 seconds and"
                    f" 1 to 127 probes, not {keepalive!r}"
                )
            options.append((SOL_SOCKET, SO_KEEPALIVE, 1))
            named |= {"TCP_KEEPIDLE": idle, "TCP_KEEPINTVL": interval, "TCP_KEEPCNT": count}
        case _:
            raise TypeError(f"keepalive must be (idle, interval, count) or None, not {keepalive!r}")
    if user_timeout is not None:
        # 0 would mean the system's own, and the kernel takes no more than an int.
        named["TCP_USER_TIMEOUT"] = min(max(1, round(user_timeout * 1000)), 2**31 - 1)
    for name, value in named.items():
        if hasattr(stdlib_socket, name):
            options.append((IPPROTO_TCP, getattr(stdlib_socket, name), value))
    return options


def _options(given: object) -> tuple[_Option, ...]:
    if not isinstance(given, Iterable):
        raise TypeError(f"options must be a list of (level, name, value), not {given!r}")
    options = tuple(given)
    for option in options:
        match option:
            case (int(), int(), int() | bytes()):
                pass
            case _:
                raise TypeError(
                    f"options: {option!r} is no (level, name, value), two ints and an int or bytes"
                )
    return options


# How a socket is opened.


class _Dial:
    """One call of a factory: which server it is at, what took how long, what has failed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.server: object = name
        self.began = monotonic()
        self.failed: list[tuple[object, Exception]] = []
        self._phases: list[tuple[float, str, tuple[object, ...]]] = []

    def enter(self, phase: str, *what: object) -> None:
        self._phases.append((monotonic(), phase, what))

    @contextmanager
    def part(self, name: object, share: int, ends_at: float) -> Iterator[float]:
        """Give the body one of *share* parts of the time until *ends_at*; yields when it is over.

        A body that takes longer is ended, and that is a failure of *name*.  The last one has all
        the time that is left.  Go's net.Dialer shares its time in this way; but here there is
        always some left for the next server.
        """
        left = ends_at - monotonic()
        if share == 1 or left == math.inf:
            yield ends_at
            return
        seconds = max(left / share, min(_LEAST_PART, left / 2))
        first_phase = len(self._phases)
        timer = Timeout(seconds)
        try:
            with timer:
                yield ends_at - left + seconds
        except Timeout as expired:
            if expired is not timer:
                raise
            self.failed.append((name, self._late(name, seconds, first_phase)))

    def give_up(self, seconds: float | None = None) -> None:
        """Book that what is under way took too long."""
        seconds = monotonic() - self.began if seconds is None else seconds
        self.failed.append((self.server, self._late(self.server, seconds, 0)))

    def failure(self) -> Exception:
        """The one error of a dial that failed, or one with all of them."""
        if len(self.failed) == 1:
            return self.failed.pop()[1]  # or it would hold the frame that holds it
        each = (about(name, error) for name, error in self.failed)
        message = f"{self.name}: {len(self.failed)} attempts to connect failed: {'; '.join(each)}"
        return MultiConnectFailure(message, errors=self.failed)

    def _late(self, name: object, seconds: float, first_phase: int) -> ConnectError:
        phases = self._phases[first_phase:]
        ends = [began for began, _, _ in phases[1:]] + [monotonic()]
        spent = ", ".join(
            f"{phase} {' and '.join(map(str, what))} {end - began:.3f} s"
            for (began, phase, what), end in zip(phases, ends, strict=True)
        )
        return ConnectError(f"{name}: not open after {seconds:.4g} s: {spent}")


def _numeric(server: Address, family: int) -> Any:
    """The answer of getaddrinfo for an IP address; None if it is none.

    Through gevent's resolver it would go to a thread and back, which takes longer than to connect.
    """
    flags = AI_NUMERICHOST | AI_NUMERICSERV
    try:
        return _own_getaddrinfo(server.ip, server.port, family, SOCK_STREAM, 0, flags)
    except (gaierror, UnicodeError):
        return None


def _look_up(server: Address, family: int) -> Any:
    """The answer of gevent's resolver, or what it raised.

    It is asked by a greenlet of its own: that is how one knows what the resolver raised, and what
    was thrown at the greenlet that waits for it.
    """
    asking = gevent.spawn(_ask_resolver, server.ip, server.port, family)
    try:
        asking.join()
    finally:
        asking.kill(block=False)
    answer = asking.value
    if isinstance(answer, gevent.GreenletExit):  # by code that kills whatever it finds
        return NameNotFound(f"the look-up of {server.ip} was killed", name=server.ip)
    return answer


def _ask_resolver(host: str, port: int, family: int) -> Any:
    try:
        return getaddrinfo(host, port, family, SOCK_STREAM)
    except Exception as error:
        return error.with_traceback(None)


def _wrap(
    secured: Any, sock: socket, context: ssl.SSLContext | None, server_hostname: str | None
) -> OSError | None:
    """Make *secured* the TLS socket on the connection of *sock*; does not switch."""
    if server_hostname is not None:
        # An international name: ssl does this itself, gevent.ssl would raise UnicodeEncodeError.
        server_hostname = server_hostname.encode("idna").decode("ascii")
    try:
        SSLSocket.__init__(
            secured,
            sock=sock,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            _context=context,
        )
    except OSError as error:  # reset since it was connected
        return error.with_traceback(None)
    return None


def _shake_hands(secured: Any) -> OSError | None:
    """Do the TLS handshake; return what went wrong."""
    secured.settimeout(0.0)  # so that what is raised below is TLS's, and not thrown in a wait
    while True:
        try:
            secured.do_handshake()
            return None
        except ssl.SSLWantReadError:
            wait = wait_read
        except ssl.SSLWantWriteError:
            wait = wait_write
        except OSError as error:
            return error.with_traceback(None)
        wait(secured.fileno())


class _TLSSocket(SSLSocket):
    """Leaves its session to the next one when it is closed."""

    tls_session: _TLSSession | None = None

    def close(self) -> None:
        if self.tls_session is not None:
            self.tls_session.store(self)
        super().close()


def _nobody() -> None:
    return None


class _TLSSession:
    """The newest TLS session with one server, which makes the next handshake a short one.

    TLS 1.3 sends after the handshake what is needed to resume it, and it has come when the socket
    has been read from: so sockets are asked late, when the next one opens or when they close.
    """

    __slots__ = ("_latest", "_session", "_stored_at")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._session: ssl.SSLSession | None = None
        self._stored_at = -math.inf
        self._latest: Callable[[], _TLSSocket | None] = _nobody

    def offer(self, secured: _TLSSocket) -> None:
        """Offer the server to resume; if it does not want to, it is a full handshake."""
        if (latest := self._latest()) is not None:
            self.store(latest)
        if self._session is not None:
            try:
                secured.session = self._session
            except (ValueError, ssl.SSLError):  # the factory has another context now
                self.forget()

    def keep(self, secured: _TLSSocket) -> None:
        """The handshake is done: have the next one resume that, once it can be."""
        if not secured.session_reused:
            self.forget()  # what was offered, the server does not know any more
        secured.tls_session = self
        self._latest = weakref.ref(secured)

    def store(self, secured: _TLSSocket) -> None:
        now = monotonic()
        if now - self._stored_at < _SESSION_AGE:
            return
        session = secured.session  # None if it is closed
        if session is not None and session.id:  # without one it cannot be resumed, or not yet
            self._session = session
            self._stored_at = now


@contextmanager
def _closed_on_failure(sock: socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise
