"""SmtpPool: connections to a mail server, by smtplib of the standard library."""

from __future__ import annotations

import inspect
import smtplib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory, StartTLS

__all__ = ["SmtpPool"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}

_GOODBYE = 421  # the server closes the connection, whatever was asked for
_NO_CODE = -1  # what it said is no reply
_STATEFUL = ("AUTH", "STARTTLS", "XCLIENT")  # only a new connection undoes them
_NOT_LET_IN = (530, 534, 535, 538)  # RFC 4954: of the credentials, or of how they were given


class SmtpPool(ConnectionPool[smtplib.SMTP]):
    """A pool of ``smtplib.SMTP`` connections, greeted, secured and logged in.

        pool = SmtpPool(("mail.example.org", 587), 4, starttls=True, user="shop", password="…")
        with pool.get() as smtp:
            smtp.send_message(message)

    - *target*: where the server is, as for SocketFactory.
    - *user*, *password*: log in, if given; a callable *password* is asked at each dial.
    - *tls*: as for SocketFactory, from the first byte on; *starttls*: the same, but begun by
      STARTTLS (give one of the two, or none).
    - *server_hostname*: whose certificate that must be; by default, the host of *target*.
    - *local_hostname*: what we call ourselves; by default, the name of this host.
    - *settings*: those of ConnectionPool.

    Sockets are opened by SocketFactory; nothing needs to be patched.  On return a mail that was
    begun is given up by RSET; a connection with a reply still due is closed instead, and one on
    which its user has logged in, or begun TLS.  A refused recipient or sender says nothing against
    the connection; the reply 421 does.
    """

    def __init__(
        self,
        target: object,
        size: int = 4,
        *,
        user: str | None = None,
        password: str | Callable[[], str] = "",
        tls: bool | str | ssl.SSLContext = False,
        starttls: bool | str | ssl.SSLContext = False,
        server_hostname: str | None = None,
        local_hostname: str | None = None,
        **settings: Any,
    ) -> None:
        if unknown := set(settings) - _SETTINGS:
            raise TypeError(f"SmtpPool has no argument {min(unknown)!r}")
        if tls and starttls:
            raise ValueError("tls is given and starttls: which is it to be?")
        self._user = user
        self._password = password
        self._local_hostname = local_hostname or socket.gethostname()
        self._starttls: Any = None
        if starttls:
            self._starttls = StartTLS(starttls, target, server_hostname)
        self._connect_socket = SocketFactory(
            target,
            tls=tls,
            server_hostname=server_hostname if tls else None,
            connect_timeout=settings.setdefault("connect_timeout", 10.0),
        )
        super().__init__(size, **settings)

    # Hooks

    def _new_connection(self) -> smtplib.SMTP:
        conn = _Connection(self._connect_socket, self._local_hostname)
        try:
            code, text = conn.connect()
            if code != 220:
                raise smtplib.SMTPConnectError(code, text)
            conn.ehlo_or_helo_if_needed()
            if self._starttls is not None:
                conn.starttls(context=self._starttls)
                conn.ehlo_or_helo_if_needed()
            if self._user is not None:
                password = self._password() if callable(self._password) else self._password
                conn.login(self._user, password)
            conn.has_state = False
        except BaseException:
            conn.close()
            raise
        return conn

    def _socket(self, conn: Any) -> Any:
        return conn.sock  # None once it was closed

    def _keepalive(self, conn: Any) -> None:
        _expect(conn.noop(), 250)

    def _reset_connection(self, conn: Any) -> None:
        # The pool has looked; but a reply that is due may be on its way yet.
        if conn.due:
            raise smtplib.SMTPServerDisconnected("given back with a reply that was not read")
        if conn.has_state:
            raise smtplib.SMTPServerDisconnected("given back after a log-in or STARTTLS")
        if conn.in_mail:
            _expect(conn.rset(), 250)
            conn.in_mail = False
        conn.sock.settimeout(None)

    def _close_connection(self, conn: Any) -> None:
        try:
            # In the middle of something it would have to wait for that.
            if conn.sock is not None and not conn.due:
                conn.sock.settimeout(1.0)
                conn.quit()
        except OSError:
            pass  # which SMTPException is, too: it is broken
        finally:
            conn.close()

    def _classify_error(self, error: Exception) -> Verdict:
        if not isinstance(error, smtplib.SMTPException):
            return super()._classify_error(error)
        if isinstance(error, smtplib.SMTPServerDisconnected):
            return Verdict.BROKEN
        if not isinstance(error, smtplib.SMTPResponseException):
            return Verdict.FINE
        code = error.smtp_code
        if isinstance(error, smtplib.SMTPAuthenticationError):
            return Verdict.FATAL if code in _NOT_LET_IN else Verdict.FINE
        if isinstance(error, smtplib.SMTPConnectError):
            full = "too many" in str(error.smtp_error).lower()
            return Verdict.SERVER_FULL if full else Verdict.BROKEN
        return Verdict.BROKEN if code in (_GOODBYE, _NO_CODE) else Verdict.FINE


class _Connection(smtplib.SMTP):
    """One that counts the replies that are due, and knows whether a mail was begun, or a log-in."""

    def __init__(self, connect_socket: SocketFactory, local_hostname: str) -> None:
        super().__init__(local_hostname=local_hostname)
        self.sock = self.file = None
        self._connect_socket = connect_socket
        self._host = connect_socket.server_hostname or ""
        self.due = 1  # the greeting
        self.in_mail = False
        self.has_state = False

    def _get_socket(self, *ignored: Any) -> Any:
        return self._connect_socket()

    def putcmd(self, cmd: str, args: str = "") -> None:
        self.due += 1
        if cmd[:4].lower() == "mail":
            self.in_mail = True
        if cmd.upper().split()[:1] in ([name] for name in _STATEFUL):
            self.has_state = True
        super().putcmd(cmd, args)

    def getreply(self) -> tuple[int, bytes]:
        code, text = super().getreply()
        if code != 354:  # after that one the mail follows, and then another reply
            self.due -= 1
        return code, text

    def data(self, msg: Any) -> tuple[int, bytes]:
        reply = super().data(msg)
        self.in_mail = False  # taken or not, that was the end of it
        return reply


def _expect(reply: tuple[int, bytes], code: int) -> None:
    if reply[0] != code:
        raise smtplib.SMTPResponseException(*reply)
