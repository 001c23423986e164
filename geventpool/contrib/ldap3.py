"""Ldap3Pool: connections of ldap3 to a directory."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Callable
from typing import Any

import ldap3
from ldap3.core import exceptions

from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory, StartTLS

__all__ = ["Ldap3Pool"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}
_STRATEGIES = (ldap3.SYNC, ldap3.SAFE_SYNC)

#: Result codes of RFC 4511, 4.1.9 and appendix A.
_VERDICTS = {
    7: Verdict.FATAL,  # authMethodNotSupported
    8: Verdict.FATAL,  # strongerAuthRequired
    48: Verdict.FATAL,  # inappropriateAuthentication
    49: Verdict.FATAL,  # invalidCredentials
    51: Verdict.SERVER_FULL,  # busy
    52: Verdict.BROKEN,  # unavailable
}


class Ldap3Pool(ConnectionPool[ldap3.Connection]):
    """A pool of ``ldap3.Connection``, bound.

        pool = Ldap3Pool(("ldap.example.org", 636), 4, user="cn=shop,…", password="…", tls=True)
        with pool.get() as conn:
            conn.search("ou=people,dc=example", "(uid=anna)", attributes=["mail"])
            entries = conn.entries

    - *target*: where the server is, as for SocketFactory.
    - *password*: a callable is asked for it at each dial.
    - *tls*: as for SocketFactory, from the first byte on; *starttls*: the same, but begun by
      STARTTLS (give one of the two, or none).
    - *server_hostname*: whose certificate that must be; by default, the host of *target*.
    - *get_info*: as for ``ldap3.Server``: what is asked of the server at each dial; here nothing.
    - *arguments*: the settings of ConnectionPool, and the arguments of ``ldap3.Connection``.
      *client_strategy* is SYNC or SAFE_SYNC, as the others have threads or sockets of their own.

    Sockets are opened by SocketFactory; nothing needs to be patched, unless *auto_referrals* is
    set, which is off here: ldap3 follows a referral by a socket of its own.  A connection that was
    bound as somebody else is closed on return.
    """

    def __init__(
        self,
        target: object,
        size: int = 4,
        *,
        user: str | None = None,
        password: str | Callable[[], str] | None = None,
        tls: bool | str | ssl.SSLContext = False,
        starttls: bool | str | ssl.SSLContext = False,
        server_hostname: str | None = None,
        get_info: str = ldap3.NONE,
        **arguments: Any,
    ) -> None:
        settings = {name: arguments.pop(name) for name in _SETTINGS & set(arguments)}
        if tls and starttls:
            raise ValueError("tls is given and starttls: which is it to be?")
        for each in ("auto_bind", "lazy"):
            if each in arguments:
                raise TypeError(f"{each} is no argument here: the pool binds what it opens")
        if (strategy := arguments.get("client_strategy", ldap3.SYNC)) not in _STRATEGIES:
            raise ValueError(f"client_strategy must be SYNC or SAFE_SYNC, not {strategy}")
        self._user = user
        self._password = password
        self._starttls = bool(starttls)
        self._arguments = {"auto_referrals": False, **arguments}
        # What it is called has no meaning: it never opens a socket.
        context = StartTLS(starttls, target, server_hostname) if starttls else None
        self._server = ldap3.Server("localhost", get_info=get_info, tls=_Tls(context))
        self._server._address_info = [[0, 0, 0, "", ("", 0), None, None]]
        self._server.candidate_addresses = lambda: self._server._address_info
        self._connect_socket = SocketFactory(
            target,
            tls=tls,
            server_hostname=server_hostname if tls else None,
            connect_timeout=settings.setdefault("connect_timeout", 10.0),
        )
        self._connection(None)  # says what it thinks of the arguments
        super().__init__(size, **settings)

    # Hooks

    def _new_connection(self) -> ldap3.Connection:
        password = self._password() if callable(self._password) else self._password
        conn = self._connection(password)
        conn._pool_sock = self._connect_socket()
        try:
            conn.open(read_server_info=False)
            if self._starttls and not conn.start_tls(read_server_info=False):
                raise exceptions.LDAPStartTLSError(str(conn.last_error or conn.result))
            conn.bind()
            if not conn.bound:
                said = {name: conn.result[name] for name in ("result", "description", "message")}
                raise exceptions.LDAPOperationResult(**said)
        except BaseException:
            conn._hang_up()
            raise
        return conn

    def _socket(self, conn: Any) -> Any:
        return conn.socket  # None once it was closed

    def _keepalive(self, conn: Any) -> None:
        conn.extend.standard.who_am_i()

    def _reset_connection(self, conn: Any) -> None:
        if conn.strategy._outstanding:
            raise exceptions.LDAPCommunicationError("given back with a reply that was not read")
        if not conn.bound or conn.closed or conn.user != self._user:
            raise exceptions.LDAPBindError("given back unbound, or bound as somebody else")
        # What was read for this user is none of the next one's.
        conn.response = conn.result = conn.request = conn.last_error = None

    def _close_connection(self, conn: Any) -> None:
        try:
            if not conn.closed:
                conn.socket.settimeout(1.0)
                conn.unbind()
        except (exceptions.LDAPExceptionError, OSError):
            pass  # it is broken
        finally:
            conn._hang_up()

    def _classify_error(self, error: Exception) -> Verdict:
        code = getattr(error, "result", None)
        if isinstance(error, exceptions.LDAPOperationResult) and isinstance(code, int):
            return _VERDICTS.get(code, Verdict.FINE)
        if isinstance(error, exceptions.LDAPCommunicationError):
            return Verdict.BROKEN
        return super()._classify_error(error)

    # Inside

    def _connection(self, password: Any) -> Any:
        """One that is not open yet."""
        return _Connection(self._server, self._user, password, **self._arguments)


class _Connection(ldap3.Connection):  # type: ignore[misc]
    """One that gets its socket from without."""

    _pool_sock: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.strategy._open_socket = self._adopt

    def __repr__(self) -> str:
        # Errors of the pool show it, and ldap3's own has the password in it.
        state = "bound" if self.bound else "not bound"
        return f"<ldap3.Connection, user {self.user!r}, {state}>"

    def _adopt(self, *ignored: Any, **ignored_too: Any) -> None:
        """Take it, once: a connection that was closed stays so."""
        sock, self._pool_sock = self._pool_sock, None
        if sock is None:
            raise exceptions.LDAPSocketOpenError("it was closed; the pool opens another one")
        if self.receive_timeout is not None:
            sock.settimeout(self.receive_timeout)
        self.socket = sock
        self.closed = False

    def _hang_up(self) -> None:
        for sock in (self._pool_sock, self.socket):
            if sock is not None:
                sock.close()


class _Tls(ldap3.Tls):  # type: ignore[misc]
    """STARTTLS by a context of gevent's."""

    def __init__(self, context: StartTLS | None) -> None:
        super().__init__()
        self._context = context

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        if self._context is None:
            raise exceptions.LDAPStartTLSError("give starttls to the pool")
        connection.socket = self._context.wrap_socket(connection.socket)
