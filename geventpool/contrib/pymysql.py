"""PyMySQLPool: connections of PyMySQL to MySQL or MariaDB."""

from __future__ import annotations

import copy
import inspect
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pymysql
from gevent.ssl import SSLSocket
from pymysql.constants import CLIENT, CR, ER, SERVER_STATUS
from pymysql.cursors import Cursor

from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import DEFAULT, check_callable
from geventpool.sockets import CLOSED, CUT_SHORT, SocketFactory

__all__ = ["PyMySQLPool", "verdict_of"]

_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - {"size", "connect"}

_COM_RESET_CONNECTION = 0x1F
_VERDICTS = {
    ER.OPTION_PREVENTS_STATEMENT: Verdict.WRONG_SERVER,  # --read-only
    1792: Verdict.WRONG_SERVER,  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
    1836: Verdict.WRONG_SERVER,  # ER_READ_ONLY_MODE
    ER.CON_COUNT_ERROR: Verdict.SERVER_FULL,
    ER.TOO_MANY_USER_CONNECTIONS: Verdict.SERVER_FULL,
    ER.ACCESS_DENIED_ERROR: Verdict.FATAL,
    ER.DBACCESS_DENIED_ERROR: Verdict.FATAL,
    ER.BAD_DB_ERROR: Verdict.FATAL,
}
#: With these the server says goodbye; with its other errors only a statement has failed.
_FAREWELLS = {
    *(ER.SERVER_SHUTDOWN, ER.ABORTING_CONNECTION, ER.NEW_ABORTING_CONNECTION),
    1927,  # ER_CONNECTION_KILLED, of MariaDB
    4031,  # ER_CLIENT_INTERACTION_TIMEOUT, of MySQL
}
#: What may select another database: a USE, after any comments, and an EXECUTE, whose may be one.
_MAY_MOVE = re.compile(
    rb"(?:\A|;)"
    rb"(?:\s|/\*M?!\d*|/\*(?!M?!)[^*]*(?:\*(?!/)[^*]*)*\*/|\*/|--[^\n]*\n|#[^\n]*\n)*"
    rb"(?:use|execute)\b",
    re.IGNORECASE,
)


class PyMySQLPool(ConnectionPool[Any]):
    """A pool of PyMySQL connections.

        pool = PyMySQLPool(10, host="db.example.org", user="shop", password="…", autocommit=True)
        with pool.get() as conn, conn.cursor() as cursor:
            cursor.execute("select name from customer where id = %s", (42,))

    - *password*: a callable is asked for it at each dial, as for one that expires.
    - *configure*: called with each new connection.
    - *reset_session*: have the server forget all of the session on return, so that no SET,
      temporary table or lock reaches the next user; *configure* is called again after it.
    - *arguments*: the settings of ConnectionPool, and the arguments of ``pymysql.connect``.
      *connect_timeout* bounds the whole dial.

    Sockets are opened by SocketFactory: the addresses of a host are raced, and nothing needs to be
    patched.  There is one SSLContext for all dials.

    On return a transaction is rolled back: with ``autocommit=True`` only if the server says that
    there is one, which saves a round trip each time; and what was set of ``autocommit``,
    ``cursorclass``, ``encoders``, ``decoders``, the character set and the database is set back to
    what it was after *configure*.  A connection that had no database and has one is closed, as none
    can be deselected: give *database* if you select others.

    After a Timeout or a kill the statement is killed at the server, over a connection of its own;
    PyMySQL has closed its connection by then if it waited for a reply.  It is killed only if the
    server that is reached has that session, by its id and our port: behind a balancer, a proxy or a
    NAT it may go on, and the connection is closed.
    """

    def __init__(
        self,
        size: int = 10,
        *,
        password: str | bytes | Callable[[], str | bytes] = "",
        configure: Callable[[Any], object] | None = None,
        reset_session: bool = False,
        **arguments: Any,
    ) -> None:
        settings = {name: arguments.pop(name) for name in _SETTINGS & set(arguments)}
        if configure is not None:
            check_callable("configure", configure)
        self._password = password
        self._configure = configure
        self._reset_session = reset_session
        # It reads option files, checks the arguments and makes the SSLContext, which takes long.
        self._template: Any = _Connection(**arguments, defer_connect=True)
        if self._template.ssl:
            self._template.ctx = _Context(self._template.ctx)
        path, port = self._template.unix_socket, self._template.port
        self._template._secure = bool(path)
        self._connect_socket = SocketFactory(
            f"unix:{path}" if path else (self._template.host, port),
            connect_timeout=settings.setdefault("connect_timeout", 10.0),
            source_address=self._template.bind_address,
        )
        super().__init__(size, **settings)

    @contextmanager
    def connection(self, timeout: float | None = DEFAULT) -> Iterator[Any]:
        """A connection for the length of a ``with``, and a transaction: committed at its end,
        rolled back if an exception leaves it.  Waits for the connection as ``get`` does.

        What the commit raises is raised; the transaction has not taken place then, or, if the
        connection broke, it is not known whether it has.
        """
        with self.get(timeout) as conn:
            if conn.get_autocommit():
                conn.begin()
            yield conn
            # After an exception the rollback is that of every return.
            if conn.open:
                conn.commit()

    # Hooks

    def _new_connection(self) -> Any:
        conn = self._dial()
        try:
            if self._configure is not None:
                self._configure(conn)
            conn.note_as_opened()
        except BaseException:
            conn.close()
            raise
        return conn

    @staticmethod
    def _socket(conn: Any) -> Any:
        return conn._sock  # None once it was closed

    def _make_probe(self, conn: Any, ask: Callable[[Any], Any]) -> Any:
        return _Probe(conn, super()._make_probe(conn, ask))

    def _keepalive(self, conn: Any) -> None:
        conn.ping(reconnect=False)

    def _reset_connection(self, conn: Any) -> None:
        if (result := conn._result) is not None and result.unbuffered_active:
            raise pymysql.InterfaceError("given back with a result that is read by half")
        if self._reset_session:
            self._make_new(conn)
            return
        # An error says nothing of the transaction: without autocommit it may have begun one.
        if conn.server_status & SERVER_STATUS.SERVER_STATUS_IN_TRANS or not conn.get_autocommit():
            conn.rollback()
        conn.set_back()
        if conn.moved:
            conn.go_home()

    def _close_connection(self, conn: Any) -> None:
        if conn._result is not None:
            # Else its finalizer, wherever that runs, would read the rest of it.
            conn._result.unbuffered_active = False
        if conn.open:  # else it raises, as PyMySQL has closed it itself
            conn.close()

    def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
        """Have the server end what runs, read what is left of it, and roll back."""
        if not conn.open:
            self._kill("kill", conn)
            raise pymysql.InterfaceError("PyMySQL has closed the connection itself")
        if (result := conn._result) is not None and result.unbuffered_active:
            self._kill("kill query", conn)
            try:
                result._finish_unbuffered_query()
            except pymysql.OperationalError as killed:
                if killed.args[0] != ER.QUERY_INTERRUPTED:
                    raise
        self._reset_connection(conn)

    def _classify_error(self, error: Exception) -> Verdict:
        if isinstance(error, pymysql.MySQLError):
            return verdict_of(error)
        return super()._classify_error(error)

    # Inside

    def _dial(self) -> Any:
        conn = copy.copy(self._template)
        conn.encoders, conn.decoders = dict(conn.encoders), dict(conn.decoders)
        password = self._password() if callable(self._password) else self._password
        if password:
            conn.password = password.encode("latin1") if isinstance(password, str) else password
        conn.connect(self._connect_socket())  # which it closes if that fails
        return conn

    def _make_new(self, conn: Any) -> None:
        """Have the server forget the session, and do again what a dial does."""
        template = self._template
        conn._execute_command(_COM_RESET_CONNECTION, b"")
        conn._read_ok_packet()
        conn.set_back()
        conn.set_character_set(template.charset, template.collation)
        if template.sql_mode is not None:
            conn.query(f"set sql_mode={conn.escape(template.sql_mode)}")
        if template.init_command is not None:
            conn.query(template.init_command)
        if template.autocommit_mode is not None:
            conn.autocommit(template.autocommit_mode)
        if conn.moved or conn.home is not None:  # a server may have kept another
            conn.go_home()
        if self._configure is not None:
            self._configure(conn)
        conn.moved = False

    def _kill(self, how: str, conn: Any) -> None:
        """End what the session of *conn* does, or the session; raises if it is at another server,
        where its id may be that of anybody's."""
        other = self._dial()
        try:
            if conn.own_port is not None and not other.has_session(conn):
                raise pymysql.InterfaceError("it is not at the server that was reached")
            other.query(f"{how} {conn.thread_id()}")
        finally:
            other.close()


def verdict_of(error: Any) -> Verdict:
    """What an error of PyMySQL's says of its connection, or of the server."""
    code = error.args[0] if error.args else None
    if (verdict := _VERDICTS.get(code)) is not None:
        return verdict
    if isinstance(code, int) and code >= 1000:
        lost = CR.CR_ERROR_FIRST <= code <= CR.CR_ERROR_LAST or code in _FAREWELLS
        return Verdict.BROKEN if lost else Verdict.FINE
    kinds = (pymysql.OperationalError, pymysql.InterfaceError, pymysql.InternalError)
    return Verdict.BROKEN if isinstance(error, kinds) else Verdict.FINE


class _Connection(pymysql.connections.Connection):  # type: ignore[misc]
    """One that is closed when a statement was sent by half, as PyMySQL's is by half a reply; and
    that knows how it was as it was opened."""

    own_port: int | None = None  # of our end; None: a Unix socket
    home: str | None = None  # the database as opened
    moved = False  # another may have been selected
    encoders: dict[Any, Any]
    decoders: dict[Any, Any]
    _as_opened: tuple[Any, ...]

    def connect(self, sock: Any = None) -> None:
        super().connect(sock)
        name = self._sock.getsockname()
        self.own_port = name[1] if isinstance(name, tuple) else None

    def select_db(self, db: str) -> None:
        self.moved = True
        super().select_db(db)

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        if isinstance(sql, str):
            sql = sql.encode(self.encoding)
        # Only where one may have several statements it can be in the middle.
        several = self.client_flag & CLIENT.MULTI_STATEMENTS
        if (_MAY_MOVE.search if several else _MAY_MOVE.match)(sql):
            self.moved = True
        return super().query(sql, unbuffered)

    def note_as_opened(self) -> None:
        self._as_opened = (
            *(self.cursorclass, dict(self.encoders), dict(self.decoders), self.use_unicode),
            *(self.charset, self.collation, self.get_autocommit()),
        )
        self.home = self._database() if self.moved else self.db
        self.moved = False

    def set_back(self) -> None:
        """Set back what was set through this object; the database apart."""
        cursorclass, encoders, decoders, use_unicode, charset, collation, autocommit = (
            self._as_opened
        )
        self.cursorclass, self.use_unicode = cursorclass, use_unicode
        if self.encoders != encoders:
            self.encoders = dict(encoders)
        if self.decoders != decoders:
            self.decoders = dict(decoders)
        if (self.charset, self.collation) != (charset, collation):
            self.set_character_set(charset, collation)
        if self.get_autocommit() != autocommit:
            self.autocommit(autocommit)

    def go_home(self) -> None:
        """Select the database as opened."""
        if self.home is not None:
            self.select_db(self.home)
        elif (other := self._database()) is not None:
            raise pymysql.InterfaceError(
                f"given back with the database {other!r}, and it was opened with none"
            )
        self.moved = False

    def has_session(self, conn: Any) -> bool:
        """Whether the server that this one is at is that of *conn*."""
        with self.cursor(Cursor) as cursor:
            found = cursor.execute(
                "select 1 from information_schema.processlist where id = %s and host like %s",
                (conn.thread_id(), f"%:{conn.own_port}"),
            )
        return bool(found)

    def _database(self) -> Any:
        with self.cursor(Cursor) as cursor:
            cursor.execute("select database()")
            return cursor.fetchone()[0]

    def _write_bytes(self, data: bytes) -> None:
        try:
            super()._write_bytes(data)
        except BaseException:
            self._force_close()
            raise


class _Probe:
    """The pool's own look at a connection, which sees a use that was cut short also once PyMySQL
    has closed the connection for that."""

    __slots__ = ("_probe", "_sock")

    def __init__(self, conn: Any, probe: Any) -> None:
        self._sock = conn._sock
        self._probe = probe

    def __call__(self, conn: Any) -> object:
        why = self._probe(conn)
        return CUT_SHORT if why == CLOSED and getattr(self._sock, "cut_short", False) else why

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probe, name)


class _Context:
    """The SSLContext of all dials.  What it wraps is gevent's, in a program not patched, too."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def wrap_socket(self, sock: Any, server_hostname: str | None = None) -> SSLSocket:
        # Not the constructor: a handshake that is cut short must not leave the socket open.
        secured = SSLSocket.__new__(SSLSocket)
        try:
            SSLSocket.__init__(
                secured, sock=sock, server_hostname=server_hostname, _context=self.context
            )
        except BaseException:
            (sock if sock.fileno() >= 0 else secured).close()
            raise
        return secured
