"""TLS on a connected socket: contexts, the handshake, and sessions that make the next one short."""

from __future__ import annotations

import math
import ssl
import weakref
from collections.abc import Callable
from time import time as wall_clock
from typing import Any, TypeGuard

from gevent.monkey import get_original
from gevent.socket import socket, wait_read, wait_write
from gevent.ssl import SSLSocket, create_default_context

from geventpool._util.clock import monotonic
from geventpool.addresses import AnyAddress
from geventpool.sockets.guard import GuardedTLSSocket

__all__ = ["TLSSession", "TLSSessions", "is_context", "make_context", "secure", "try_out"]

# The standard library's own, also in a patched program.
_thread_id = get_original("_thread", "get_ident")

_MOST_TLS_SESSIONS = 64  # servers whose TLS session a factory remembers
_SESSION_AGE = 10.0  # seconds that one is new enough: to ask for another one takes 0.15 ms
_LONGEST_LINEAGE = 3600.0  # seconds after which a peer is verified anew, whatever it resumes


def is_context(value: object) -> TypeGuard[ssl.SSLContext]:
    """Whether *value* is an SSLContext, gevent's or not."""
    # The class itself has no name here: gevent would warn who patches later of a wrong one.
    return isinstance(value, get_original("ssl", "SSLContext"))


def make_context(tls: object) -> ssl.SSLContext | None:
    """The SSLContext that *tls* asks for.  Made once per factory: that takes 20 ms."""
    if is_context(tls):
        return tls
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


def try_out(context: ssl.SSLContext, server_hostname: str | None, server: AnyAddress) -> None:
    """Raise ValueError now if no handshake could ever start with these."""
    if server_hostname is None:
        raise ValueError(f"tls over {server} needs server_hostname: whose certificate?")
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=server_hostname)
    except (ValueError, ssl.SSLError) as error:
        message = f"tls cannot be used with server_hostname {server_hostname!r}: {error}"
        raise ValueError(message) from error


def secure(
    sock: socket,
    context: ssl.SSLContext | None,
    server_hostname: str | None,
    tls_session: TLSSession,
) -> SSLSocket | OSError:
    """Return *sock* with TLS on it, the handshake done, or what went wrong.

    Unless it returns a socket, *sock* is closed.  Whatever it raises is the caller's own, a kill or
    a Timeout of any class.
    """
    # Not context.wrap_socket(): without monkey-patching, create_default_context() of gevent.ssl
    # makes the standard library's SSLContext, and what that one wraps blocks the whole hub.
    # Nor the constructor: the new socket is ours to close even if its __init__ fails half-way.
    secured: Any = _TLSSocket.__new__(_TLSSocket)
    try:
        error = _wrap(secured, sock, context, server_hostname)
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
    return error


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


class _TLSSocket(GuardedTLSSocket):
    """Leaves its session to the next one when it is closed."""

    tls_session: TLSSession | None = None
    lineage: Lineage  # how it was verified

    def close(self) -> None:
        if self.tls_session is not None:
            self.tls_session.store(self)
        super().close()


class TLSSessions:
    """The sessions that a factory may resume, of a bounded number of servers."""

    def __init__(self) -> None:
        self._sessions: dict[object, TLSSession] = {}

    def of(self, context: Any, server: AnyAddress, server_hostname: str | None) -> TLSSession:
        """That of the sessions that may be resumed with *server* under the same conditions.

        A resumed session is not verified again: what was lax once must not count as strict.  And
        to ask a socket for its session while another thread reads from it is not safe.
        """
        key = (server, server_hostname, _terms(context), _thread_id())
        if key not in self._sessions and len(self._sessions) >= _MOST_TLS_SESSIONS:
            # A resolver may name ever new servers
            del self._sessions[next(iter(self._sessions))]
        return self._sessions.setdefault(key, TLSSession())

    def forget(self) -> None:
        """Resume none of those that there are, nor what open sockets still leave behind."""
        self._sessions.clear()


def _terms(context: Any) -> tuple[object, ...]:
    """Under which conditions *context* trusts a peer, and as what it comes itself."""
    _count_certificates(context)
    return (
        context.verify_mode,
        context.check_hostname,
        context.verify_flags,
        context.minimum_version,
        *context.cert_store_stats().values(),  # authorities and revocation lists
        context._certificates_loaded,
    )


def _count_certificates(context: Any) -> None:
    """Have *context* count the certificates that it is given for itself: it does not tell them."""
    if "_certificates_loaded" in vars(context):
        return
    load, itself = type(context).load_cert_chain, weakref.ref(context)

    def load_cert_chain(*args: Any, **kwargs: Any) -> None:
        one: Any = itself()
        one._certificates_loaded += 1
        load(one, *args, **kwargs)

    context._certificates_loaded = 0
    context.load_cert_chain = load_cert_chain


class Lineage:
    """One full handshake, and the sessions that come of it, each by resuming the one before."""

    __slots__ = ("_expires_at", "_until")

    def __init__(self, secured: Any) -> None:
        self._until = monotonic() + _LONGEST_LINEAGE
        self._expires_at = _expiry(secured)

    @property
    def is_over(self) -> bool:
        """Whether the peer has to be verified anew."""
        return monotonic() >= self._until or wall_clock() >= self._expires_at


def _expiry(secured: Any) -> float:
    """When the first of the certificates ends that the peer was verified by."""
    if secured.context.verify_mode == ssl.CERT_NONE:
        return math.inf
    chain = [certificate.get_info() for certificate in secured._sslobj.get_verified_chain() or ()]
    ends = [each["notAfter"] for each in (*chain, secured.getpeercert()) if "notAfter" in each]
    return min(map(ssl.cert_time_to_seconds, ends), default=math.inf)


def _nobody() -> None:
    return None


class TLSSession:
    """The newest TLS session with one server, which makes the next handshake a short one.

    TLS 1.3 sends after the handshake what is needed to resume it, and it has come when the socket
    has been read from: so sockets are asked late, when the next one opens or when they close.

    A session that is resumed has no certificate shown to it, and leaves another one behind: it
    would go on for ever, long after the certificate.  So each knows of the handshake it comes from.
    """

    __slots__ = ("_latest", "_lineage", "_session", "_stored_at")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._session: ssl.SSLSession | None = None
        self._lineage: Lineage | None = None
        self._stored_at = -math.inf
        self._latest: Callable[[], _TLSSocket | None] = _nobody

    def offer(self, secured: _TLSSocket) -> None:
        """Offer the server to resume; if it does not want to, it is a full handshake."""
        if (latest := self._latest()) is not None:
            self.store(latest)
        if self._lineage is None:
            return
        if self._lineage.is_over:
            self.forget()
            return
        try:
            secured.session = self._session
        except (ValueError, ssl.SSLError):  # the factory has another context now
            self.forget()
        else:
            secured.lineage = self._lineage

    def keep(self, secured: _TLSSocket) -> None:
        """The handshake is done: have the next one resume that, once it can be."""
        if not secured.session_reused:
            self.forget()  # what was offered, the server does not know any more
            secured.lineage = Lineage(secured)
        secured.tls_session = self
        self._latest = weakref.ref(secured)

    def store(self, secured: _TLSSocket) -> None:
        now = monotonic()
        if now - self._stored_at < _SESSION_AGE or secured.lineage.is_over:
            return
        session = secured.session  # None if it is closed
        if session is not None and session.id:  # without one it cannot be resumed, or not yet
            self._session = session
            self._lineage = secured.lineage
            self._stored_at = now
