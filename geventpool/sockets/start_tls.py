"""TLS on a socket that is open already, for clients that begin it in the middle (STARTTLS)."""

from __future__ import annotations

import ssl
from typing import Any

from gevent.ssl import SSLSocket

from geventpool.addresses import Address
from geventpool.sockets.tls import TLSSessions, make_context, secure, try_out

__all__ = ["StartTLS"]


class StartTLS:
    """What a client takes for an SSLContext: ``smtp.starttls(context=StartTLS(True, "mail.org"))``.

    *tls* is that of SocketFactory: True, ``"unverified"`` or an SSLContext, and the certificate
    must be that of *server_hostname*.  What it wraps is gevent's, in a program not patched, too,
    and remembers when a wait on it is cut short; sessions are resumed.  The socket should be one of
    a SocketFactory.
    """

    def __init__(self, tls: bool | str | ssl.SSLContext, server_hostname: str) -> None:
        context = make_context(tls)
        if context is None:
            raise ValueError("tls must be True, 'unverified' or an SSLContext, not False")
        try_out(context, server_hostname, Address(server_hostname, 0))
        self.context = context
        self.server_hostname = server_hostname
        self._sessions = TLSSessions()

    def wrap_socket(self, sock: Any, **ignored: Any) -> SSLSocket:
        """Return *sock* with TLS on it, the handshake done; blocks for that.

        Raises what the system or TLS has to say.  Whatever is raised, *sock* is closed.
        """
        name, timeout = self.server_hostname, sock.gettimeout()
        session = self._sessions.of(self.context, Address(name, 0), name)
        secured = secure(sock, self.context, name, session)
        if isinstance(secured, OSError):
            raise secured
        secured.settimeout(timeout)
        return secured
