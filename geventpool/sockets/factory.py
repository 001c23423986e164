"""Open a TCP, TLS or Unix socket before a deadline.

Every socket opened here is gevent's own, cooperative whether or not the program is monkey-patched.
What a target may be is in ``addresses.py``, what a dial has to say in ``dial.py``, how the
addresses of one host are raced in ``happy_eyeballs.py``, and how TLS is put on a socket in
``tls.py``.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

from gevent import Timeout
from gevent.socket import AF_UNIX, SOCK_STREAM, socket

from geventpool._util.arguments import check_seconds
from geventpool._util.clock import monotonic
from geventpool.addresses import Address, AnyAddress, Resolver, UnixAddress
from geventpool.errors import NameNotFound
from geventpool.sockets.dial import (
    CONNECTING,
    RESOLVING,
    SHAKING_HANDS,
    Dial,
)
from geventpool.sockets.guard import GuardedSocket
from geventpool.sockets.happy_eyeballs import Candidate, connect, interleaved
from geventpool.sockets.look_up import look_up, numeric
from geventpool.sockets.options import Option, check_options, check_source, tcp_options
from geventpool.sockets.server_list import ServerList, Turn
from geventpool.sockets.tls import TLSSession, TLSSessions, make_context, secure, try_out

__all__ = ["SocketFactory"]

_PATIENT = 1.0  # seconds after which a caller that goes has learnt something about a server


class SocketFactory:
    """Call it, and it returns a new open socket: ``connect=SocketFactory("api.internal:443")``.

    *target* is one address: ``("host", port)``, ``"host:port"``, ``"[v6]:port"``, an Address, a
    pair of an IPv4Address or IPv6Address and a port; of a Unix socket ``"unix:/path"`` or a
    ``pathlib.Path``.  Or it is several: a list of these, of which each call starts with the next
    one, so that a pool spreads over them; or an AddressGroup, in its order.  Or, with a
    *resolver*, it is a name to ask for at each call: ``resolver.resolve(name)``.  If a server
    cannot be reached, the next one is tried, and it comes last for a while; if none can, the
    resolver is asked anew, if it has a ``refresh(name)``.

    *tls* is False, True (TLS 1.2 or later, certificate and host name verified against the system's
    roots), an SSLContext (which may bring a client's certificate, or ALPN), or ``"unverified"``,
    which encrypts without asking who is at the other end.  The certificate must be that of
    *server_hostname*, by default the host of the address.  There is no default for a Unix socket,
    nor for what a *resolver* answers, which may come from anybody.  TLS sessions are resumed where
    server and context allow it, as long as the peer would pass: see ``forget_sessions``.

    *connect_timeout* bounds resolving, connecting and the TLS handshake together, in seconds
    (None: no bound but *user_timeout* and the system's).  It is shared out among several servers,
    so the connect_timeout of a pool should not be shorter.  *read_timeout* is the timeout the
    socket is returned with (None: none).

    A host is looked up by gevent's resolver, at each call that has no *resolver*; two look-ups of
    one host are under way at a time, and other calls wait for an answer of theirs.  Gevent's usual
    resolver asks the system in a thread, of which a hub has ten, and one whose servers are dead
    takes half a minute: a program that has many such names sets ``GEVENT_RESOLVER=ares``.

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
        options: Iterable[Option] = (),
        keepalive: tuple[int, int, int] | None = (15, 5, 3),
        user_timeout: float | None = 30.0,
    ) -> None:
        self._servers = ServerList(target, resolver)
        known, self._name = self._servers.known, self._servers.name
        self._asks = known is None
        self._dials: set[Dial] = set()  # under way
        self.context = make_context(tls)
        self.server_hostname = server_hostname
        check_seconds("connect_timeout", connect_timeout)
        check_seconds("read_timeout", read_timeout)
        check_seconds("user_timeout", user_timeout)
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self._family, self._source = check_source(source_address)
        self._tcp_options = tcp_options(keepalive, user_timeout)
        self._options = check_options(options)
        self._tls_sessions = TLSSessions()
        if self.context is None and server_hostname is not None:
            raise ValueError(f"server_hostname {server_hostname!r} is of no use without tls")
        if self.context is not None:
            if known is None and server_hostname is None and self.context.check_hostname:
                raise ValueError("tls with a resolver needs server_hostname: whose certificate?")
            for server in known or ():
                try_out(self.context, self._hostname(server), server)
        if source_address is not None and known and not any(isinstance(s, Address) for s in known):
            raise ValueError(f"source_address {source_address!r} is of no use for a Unix socket")

    def __call__(self) -> socket:
        """Return a new open socket, a ``gevent.ssl.SSLSocket`` if there is TLS.

        Blocks for at most *connect_timeout*, and not beyond a Deadline that the caller is under (a
        pool's dials are in greenlets of the pool).  The addresses of one host are raced, servers
        are tried one after the other.  If there was only one address to try, what the system, the
        resolver or TLS has to say is raised as it is; if there were more, a MultiConnectFailure
        has it all.  If the time is over, the error is a ConnectError that says what it was spent
        on, or a MultiConnectFailure whose last error is that.  The same is made the ``__cause__``
        of a Timeout that is not ours, the caller's or a pool's, which goes on.  Whatever is
        raised, nothing stays open.
        """
        dial = Dial(self._name, self.connect_timeout)
        self._dials.add(dial)
        try:
            sock = dial.run(self._open)
        except (OSError, Timeout):
            self._servers.refresh_later()
            raise
        finally:
            self._dials.discard(dial)
        with _closed_on_failure(sock):
            self._servers.tell()
        sock.settimeout(self.read_timeout)
        return sock

    def forget_sessions(self) -> None:
        """Have every TLS handshake from now on be a full one: the peer is verified anew.

        A session is resumed for an hour at most, never past the end of the peer's certificates, nor
        after a change of the context (*verify_mode*, *verify_flags*, authorities, revocation lists,
        the client's certificate).  What cannot be seen, such as a certificate that was revoked
        elsewhere, takes this.
        """
        self._tls_sessions.forget()

    def progress(self) -> str:
        """What the calls under way have spent their time on; empty if there is none."""
        return "; ".join(dial.spent() for dial in self._dials)

    def __repr__(self) -> str:
        tls = ""
        if self.context is not None:
            tls = " TLS unverified" if self.context.verify_mode == ssl.CERT_NONE else " TLS"
        return f"<{type(self).__name__} {self._name}{tls}>"

    # From here on None means: no socket, and dial.failed knows why.  What the system has to say is
    # not raised, as a caller's Timeout may carry any exception, an OSError too, and what it raises
    # in a wait must not look like one more address that does not answer.

    def _open(self, dial: Dial) -> socket | None:
        if self._asks:
            dial.enter(RESOLVING, self._name)
        turns = self._servers.turns()
        sock = self._try_each(turns, dial)
        if sock is None and self._asks:
            dial.enter(RESOLVING, self._name)
            sock = self._try_each(self._servers.new_turns(turns), dial)
        return sock

    def _try_each(self, turns: list[Turn], dial: Dial) -> socket | None:
        for number, turn in enumerate(turns):
            dial.server = turn.name
            sock, began = None, monotonic()
            try:
                with dial.part(turn.name, len(turns) - number, dial.ends_at) as its_end:
                    sock = self._open_turn(turn, dial, its_end)
            except Timeout:
                if monotonic() - began >= _PATIENT:
                    self._servers.failed(turn, None)
                raise
            if sock is not None:
                self._servers.connected(turn)
                return sock
            self._servers.failed(turn, dial.failed[-1][1])
        return None

    def _open_turn(self, turn: Turn, dial: Dial, ends_at: float) -> socket | None:
        found = [each for server in turn.addresses for each in self._candidates(server, dial)]
        candidates = interleaved(found)
        while candidates:
            dial.enter(CONNECTING, *candidates)
            connected = connect(candidates, self._make, dial.failed, queued=dial.wait_for_room)
            if connected is None:
                break
            sock, candidate = connected
            if self.context is None:
                return sock
            # The others are tried if this one does not speak TLS, or not with us.
            with dial.part(candidate.name, 1 + len(candidates), ends_at):
                dial.enter(SHAKING_HANDS, candidate)
                server = turn.addresses[0]
                if len(turn.addresses) > 1:
                    server = cast("AnyAddress", candidate.name)
                secured = self._secure(sock, server, candidate, dial)
                if secured is not None:
                    return secured
        return None

    def _candidates(self, server: AnyAddress, dial: Dial) -> list[Candidate]:
        """Where to find *server*; empty if that is not known."""
        if isinstance(server, UnixAddress):
            return [Candidate(AF_UNIX, server.path, server)]
        answer = numeric(server, self._family)
        if answer is None:
            dial.enter(RESOLVING, server.ip)
            answer = look_up(server, self._family)
        if not answer:
            answer = NameNotFound(f"{server.ip} has no address", name=server.ip)
        if isinstance(answer, Exception):
            dial.fail(server, answer)
            return []
        return [
            Candidate(family, sockaddr, Address(*sockaddr[:2]))
            for family, _, _, _, sockaddr in answer
        ]

    def _make(self, candidate: Candidate) -> socket:
        """A new socket for *candidate*, not connected yet."""
        sock = GuardedSocket(candidate.family, SOCK_STREAM)
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
        self, sock: socket, server: AnyAddress, candidate: Candidate, dial: Dial
    ) -> socket | None:
        """Return *sock* with TLS on it, the handshake done."""
        tls_session = self._tls_session(server)
        secured = secure(sock, self.context, self._hostname(server), tls_session)
        if isinstance(secured, OSError):
            dial.fail(candidate.name, secured)
            return None
        return secured

    def _hostname(self, server: AnyAddress) -> str | None:
        """Whose certificate *server* must have."""
        if self.server_hostname is not None or isinstance(server, UnixAddress):
            return self.server_hostname
        # No certificate names a host with the dot that makes it absolute, or a link-local address
        # with the interface that leads to it.
        return server.ip.removesuffix(".").partition("%")[0]

    def _tls_session(self, server: AnyAddress) -> TLSSession:
        return self._tls_sessions.of(self.context, server, self._hostname(server))


@contextmanager
def _closed_on_failure(sock: socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise
