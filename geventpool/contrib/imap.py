"""ImapPool: connections to a mail server, by imaplib of the standard library."""

from __future__ import annotations

import imaplib
import inspect
import ssl
from collections.abc import Callable
from typing import Any

from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory, StartTLS

__all__ = ["ImapPool"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}

#: What only a new connection undoes.
_STATEFUL = {"LOGIN", "AUTHENTICATE", "PROXYAUTH", "STARTTLS", "ENABLE", "UNAUTHENTICATE"}

#: By response code, RFC 5530.
_VERDICTS = {
    "[AUTHENTICATIONFAILED]": Verdict.FATAL,
    "[AUTHORIZATIONFAILED]": Verdict.FATAL,
    "[EXPIRED]": Verdict.FATAL,
    "[LIMIT]": Verdict.SERVER_FULL,
    "[UNAVAILABLE]": Verdict.BROKEN,
}


class ImapPool(ConnectionPool[imaplib.IMAP4]):
    """A pool of ``imaplib.IMAP4`` connections, logged in, with no mailbox selected.

        pool = ImapPool(("mail.example.org", 993), 4, user="anna", password="…", tls=True)
        with pool.get() as imap:
            imap.select("INBOX", readonly=True)
            typ, data = imap.search(None, "UNSEEN")

    - *target*: where the server is, as for SocketFactory.
    - *user*, *password*: for LOGIN; a callable *password* is asked at each dial.  *authenticate*:
      called with each new connection in place of that, to log in by another mechanism.
    - *tls*: as for SocketFactory, from the first byte on; *starttls*: the same, but begun by
      STARTTLS (give one of the two, or none).
    - *server_hostname*: whose certificate that must be; by default, the host of *target*.
    - *settings*: those of ConnectionPool.

    Sockets are opened by SocketFactory; nothing needs to be patched.  On return the mailbox is
    unselected, and nothing is expunged, as ``close()``, a command of IMAP, would.  A connection on
    which its user has logged in as somebody else is closed instead.  *conn* is closed by LOGOUT.
    """

    def __init__(
        self,
        target: object,
        size: int = 4,
        *,
        user: str | None = None,
        password: str | Callable[[], str] = "",
        authenticate: Callable[[imaplib.IMAP4], object] | None = None,
        tls: bool | str | ssl.SSLContext = False,
        starttls: bool | str | ssl.SSLContext = False,
        server_hostname: str | None = None,
        **settings: Any,
    ) -> None:
        if unknown := set(settings) - _SETTINGS:
            raise TypeError(f"ImapPool has no argument {min(unknown)!r}")
        if tls and starttls:
            raise ValueError("tls is given and starttls: which is it to be?")
        if (user is None) == (authenticate is None):
            raise ValueError("give either user and password, or authenticate")
        self._user = user
        self._password = password
        self._authenticate = authenticate
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

    def _new_connection(self) -> imaplib.IMAP4:
        conn = _Connection(self._connect_socket)
        try:
            if self._starttls is not None:
                conn.starttls(self._starttls)
            if self._authenticate is not None:
                self._authenticate(conn)
            else:
                password = self._password() if callable(self._password) else self._password
                conn.login(self._user or "", password)
            conn.learn_capabilities()
            conn.has_state = False
        except BaseException:
            conn.hang_up()
            raise
        return conn

    def _socket(self, conn: Any) -> Any:
        return conn.sock

    def _keepalive(self, conn: Any) -> None:
        _expect_ok(conn.noop())

    def _reset_connection(self, conn: Any) -> None:
        if any(done is None for done in conn.tagged_commands.values()):
            raise conn.abort("given back with a reply that was not read")
        if conn.utf8_enabled or conn.state not in ("AUTH", "SELECTED"):
            raise conn.abort(f"given back in state {conn.state}, or with UTF8 enabled")
        if conn.has_state:
            raise conn.abort("given back after a log-in or ENABLE")
        # What was read for this user is none of the next one's.
        conn.untagged_responses.clear()
        if conn.state == "SELECTED":
            if conn.has_unselect:
                _expect_ok(conn.unselect())
            else:  # CLOSE does not expunge what is selected for reading only
                _expect_ok(conn.select("INBOX", readonly=True))
                _expect_ok(conn.close())
            conn.untagged_responses.clear()
        conn.is_readonly = False
        conn.sock.settimeout(None)

    def _close_connection(self, conn: Any) -> None:
        try:
            # In the middle of something it would have to wait for that.
            if conn.state != "LOGOUT" and None not in conn.tagged_commands.values():
                conn.sock.settimeout(1.0)
                conn.logout()
        except (imaplib.IMAP4.error, OSError):
            pass  # it is broken
        finally:
            conn.hang_up()

    def _classify_error(self, error: Exception) -> Verdict:
        if not isinstance(error, imaplib.IMAP4.error):
            return super()._classify_error(error)
        text = str(error)
        for code, verdict in _VERDICTS.items():
            if code in text:
                return verdict
        # The mailbox became read-only: imaplib calls that an abort, too, and does not mean it.
        is_news = isinstance(error, imaplib.IMAP4.readonly)
        lost = isinstance(error, imaplib.IMAP4.abort) and not is_news
        return Verdict.BROKEN if lost else Verdict.FINE


class _Connection(imaplib.IMAP4):
    """One whose socket is opened by a SocketFactory, and closed whatever happens."""

    sock: Any = None
    file: Any = None
    has_unselect = False
    has_state = False

    def __init__(self, connect_socket: SocketFactory) -> None:
        self._connect_socket = connect_socket
        try:
            super().__init__()
        except BaseException:
            self.hang_up()
            raise

    def open(self, *ignored: Any, **ignored_too: Any) -> None:
        self.host, self.port = "", 0
        self.sock = self._connect_socket()
        self.file = self.sock.makefile("rb")

    def _command(self, name: str, *args: Any) -> Any:
        if name.upper() in _STATEFUL:
            self.has_state = True
        return super()._command(name, *args)  # type: ignore[misc]

    def learn_capabilities(self) -> None:
        """There may be more of them after the log-in."""
        self.has_unselect = b" UNSELECT" in self.capability()[1][-1].upper()

    def hang_up(self) -> None:
        """Close the socket, and say nothing."""
        for each in (self.file, self.sock):
            if each is not None:
                each.close()


def _expect_ok(answer: tuple[str, Any]) -> None:
    if answer[0] != "OK":
        raise imaplib.IMAP4.abort(f"the server said {answer[0]} {answer[1]!r}")
