"""TLS on a socket that is open already, for clients that begin it in the middle (STARTTLS)."""

from __future__ import annotations

from typing import Any

from gevent.ssl import SSLSocket

from geventpool.addresses import Address, address
from geventpool.sockets.tls import TLSSessions, make_context, secure, try_out

__all__ = ["StartTLS"]


class StartTLS:
    """What a client takes for an SSLContext: ``smtp.starttls(context=StartTLS(True, target))``.

    *tls* is that of SocketFactory: True, ``"unverified"`` or an SSLContext.  The certificate must
    be that of *server_hostname*, by default the host of *target*, an address.  What it wraps is
    gevent's, in a program not patched, too, and remembers when a wait on it is cut short; sessions
    are resumed.  The socket should be one of a SocketFactory.
    """

    def __init__(
        self, tls: object, target: object = None, server_hostname: str | None = None
    ) -> None:
        context = make_context(tls)
        if context is None:
            raise ValueError("tls must be True, 'unverified' or an SSLContext, not False")
        if server_hostname is None:
            found = address(target)
            if not isinstance(found, Address):
                raise ValueError(f"TLS at {target!r} needs server_hostname: whose certificate?")
            server_hostname = found.ip.removesuffix(".")
        self.context = context
        self.server_hostname = server_hostname
        self._server = Address(server_hostname, 0)  # for sessions: which port does not matter
        try_out(context, server_hostname, self._server)
        self._sessions = TLSSessions()

    def wrap_socket(self, sock: Any, **ignored: Any) -> SSLSocket:
        """Return *sock* with TLS on it, the handshake done; blocks for that.

        Raises what the system or TLS has to say.  Whatever is raised, *sock* is closed.
        """
        timeout = sock.gettimeout()
        session = self._sessions.of(self.context, self._server, self.server_hostname)
        secured = secure(sock, self.context, self.server_hostname, session)
        if isinstance(secured, OSError):
            raise secured
        secured.settimeout(timeout)
        return secured
