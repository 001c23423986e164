"""Psycopg2Pool: connections of psycopg2 to PostgreSQL, which wait by psycogreen's callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import psycogreen.gevent
import psycopg2
from gevent.socket import SOCK_STREAM, getaddrinfo
from psycopg2 import extensions

from geventpool.contrib._postgres import verdict_of_refusal, verdict_of_state
from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import DEFAULT, check_callable

__all__ = ["Psycopg2Pool", "ensure_cooperative", "verdict_of"]

#: What a caller may set of a connection, and no rollback sets back.
_ATTRIBUTES = ("autocommit", "isolation_level", "readonly", "deferrable", "cursor_factory")
_attributes_of = attrgetter(*_ATTRIBUTES)


class Psycopg2Pool(ConnectionPool[Any]):
    """A pool of psycopg2 connections.

        pool = Psycopg2Pool("host=db.example.org dbname=shop", 10)
        with pool.connection() as conn, conn.cursor() as cursor:  # commits, or rolls back
            cursor.execute("update account set balance = balance - 10")

    - *dsn*: as for ``psycopg2.connect``; a callable is asked for it at each dial, as for a password
      that expires.  *kwargs*: further arguments of ``connect``, or a callable that returns them.
    - *configure*: called with each new connection; *reset*: with each that is given back, after the
      rollback; both must leave it without an open transaction.  *check*: called with one before it
      is handed out, and as its keepalive; give *check_after* to leave out those just used.  Any
      exception of theirs closes the connection.
    - *discard_all*: DISCARD ALL on return, so that no SET, temporary table, LISTEN, notification,
      advisory lock or prepared statement reaches the next user; *configure* is called again after
      it.
    - *settings*: those of ConnectionPool.

    The first pool installs psycogreen's wait callback for all of psycopg2, unless there is a
    callback already; nothing needs to be patched.  Names of hosts that the DSN or *kwargs* have are
    looked up by gevent; one that leads nowhere is left out if another leads somewhere.  What only
    PGHOST or a service file names libpq looks up itself, which stops the hub meanwhile.

    On return an open or failed transaction is rolled back, and what was set of ``autocommit``,
    ``isolation_level``, ``cursor_factory``, the encoding, ``notices`` and the like is set back;
    what was registered for a connection (``register_type``) stays.  A Timeout or a kill during a
    statement closes the connection: psycopg2 does so itself, and the statement goes on at the
    server, unless that has ``client_connection_check_interval`` set.
    """

    def __init__(
        self,
        dsn: str | Callable[[], str] = "",
        size: int = 10,
        *,
        kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        configure: Callable[[Any], object] | None = None,
        reset: Callable[[Any], object] | None = None,
        check: Callable[[Any], object] | None = None,
        discard_all: bool = False,
        **settings: Any,
    ) -> None:
        if not callable(dsn):
            _check_dsn(dsn)
        for name, value in (("configure", configure), ("reset", reset), ("check", check)):
            if value is not None:
                check_callable(name, value)
        ensure_cooperative()
        self._dsn = dsn
        self._kwargs = {} if kwargs is None else kwargs
        self._configure = configure
        self._reset = reset
        self._check = check
        self._discard_all = discard_all
        self._as_opened: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        if check is not None:
            settings.setdefault("check_after", 0.0)
        super().__init__(size, **settings)

    @contextmanager
    def connection(self, timeout: float | None = DEFAULT) -> Iterator[Any]:
        """A connection for the length of a ``with``, and a transaction: committed at its end,
        rolled back if an exception leaves it.  Waits for the connection as ``get`` does.

        What the commit raises is raised; the transaction has not taken place then, or, if the
        connection broke, it is not known whether it has.
        """
        with self.get(timeout) as conn:
            yield conn
            # After an exception the rollback is that of every return.
            if not conn.closed:
                conn.commit()

    # Hooks

    def _new_connection(self) -> Any:
        dsn = self._dsn
        if callable(dsn):
            dsn = dsn()
            _check_dsn(dsn)  # as libpq's error would show a password
        kwargs = self._kwargs() if callable(self._kwargs) else self._kwargs
        dsn = _resolved(dsn, kwargs)
        try:
            conn = psycopg2.connect(dsn, **_of_connect(kwargs))
        except psycopg2.Error as error:
            # A frame of the wait callback holds the connection, and that its socket.
            raise error.with_traceback(None) from None
        try:
            self._call(self._configure, conn)
            as_opened = _attributes_of(conn), _encodings_of(conn)
            self._as_opened[conn] = as_opened, conn.notices, conn.notifies
        except BaseException:
            conn.close()
            raise
        return conn

    @staticmethod
    def _socket(conn: Any) -> int:
        # It raises once psycopg2 has closed it, as the number may be another file's by then.
        return conn.fileno()  # type: ignore[no-any-return]

    def _keepalive(self, conn: Any) -> None:
        if self._check is not None:
            self._check(conn)
        else:
            _execute(conn, "select 1")
        _roll_back(conn)

    def _needs_reset(self, conn: Any) -> bool:
        if conn.status != extensions.STATUS_READY or self._discard_all or self._reset is not None:
            return True
        idle = conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        as_opened, notices, notifies = self._as_opened[conn]
        return bool(
            not idle
            or (_attributes_of(conn), _encodings_of(conn)) != as_opened
            or conn.notices is not notices
            or conn.notifies is not notifies
        )

    def _reset_connection(self, conn: Any) -> None:
        _roll_back(conn)
        as_opened, notices, notifies = self._as_opened[conn]
        conn.notices, conn.notifies = notices, notifies
        _set_back(conn, *as_opened)
        if self._discard_all:
            conn.autocommit = True  # it may not run in a transaction
            _execute(conn, "discard all")
            _set_back(conn, *as_opened)
            conn.notices, conn.notifies = [], []
            self._call(self._configure, conn)
        self._call(self._reset, conn)

    def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
        """Roll back, if it was between two statements that it was cut short."""
        _roll_back(conn)

    def _classify_error(self, error: Exception) -> Verdict:
        if isinstance(error, psycopg2.Error):
            return verdict_of(error)
        return super()._classify_error(error)

    def _call(self, function: Callable[[Any], object] | None, conn: Any) -> None:
        """Call one of the user's, which may have nothing open when it returns."""
        if function is None:
            return
        function(conn)
        if conn.status != extensions.STATUS_READY:
            raise psycopg2.ProgrammingError(
                f"pool {self.name!r}: {function!r} left the connection in a transaction"
            )


def ensure_cooperative() -> None:
    """Install psycogreen's wait callback, unless there is a callback already."""
    if extensions.get_wait_callback() is None:
        psycogreen.gevent.patch_psycopg()


def verdict_of(error: Any) -> Verdict:
    """What an error of psycopg2's says of its connection, or of the server."""
    state = error.pgcode
    if state is None:
        if not isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)):
            # "server closed the connection unexpectedly" is a DatabaseError now and then.
            return Verdict.BROKEN if type(error) is psycopg2.DatabaseError else Verdict.FINE
        return verdict_of_refusal(str(error))
    return verdict_of_state(state, error.diag.severity_nonlocalized)


def _check_dsn(dsn: object) -> None:
    if not isinstance(dsn, str):
        raise TypeError(f"dsn must be a string, or a callable, not {type(dsn).__name__}")
    try:
        extensions.parse_dsn(dsn)
    except psycopg2.ProgrammingError:  # its text may have the password
        raise ValueError("dsn is no connection string") from None


def _execute(conn: Any, statement: str) -> None:
    with conn.cursor() as cursor:
        cursor.execute(statement)


def _roll_back(conn: Any) -> None:
    """End any transaction; raises if *conn* is closed, or a statement is due."""
    status = conn.info.transaction_status
    if status == extensions.TRANSACTION_STATUS_ACTIVE:
        raise psycopg2.InterfaceError("given back while a statement of its user is under way")
    if status != extensions.TRANSACTION_STATUS_IDLE and conn.status == extensions.STATUS_READY:
        _execute(conn, "rollback")  # begun by hand, with autocommit: psycopg2 knows of none
    if conn.status != extensions.STATUS_READY:
        conn.rollback()


def _encodings_of(conn: Any) -> tuple[str, str]:
    """What psycopg2 takes the texts of the server to be in, and what the server says."""
    return conn.encoding, conn.get_parameter_status("client_encoding")


def _set_back(conn: Any, attributes: tuple[Any, ...], encodings: tuple[str, str]) -> None:
    """Set back what was set of *conn*, outside of a transaction."""
    if _encodings_of(conn) != encodings:
        conn.autocommit = True  # else it would be undone with a transaction
        conn.set_client_encoding(encodings[0])
        # Where psycopg2 thinks that it is so already, it does not ask the server for it.
        _execute(conn, f"set client_encoding to {encodings[1]}")
    if _attributes_of(conn) != attributes:
        for name, value in zip(_ATTRIBUTES, attributes, strict=True):
            setattr(conn, name, value)


def _of_connect(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of *kwargs* that are for psycopg2 itself: the others are in the DSN."""
    own = ("connection_factory", "cursor_factory")
    return {name: kwargs[name] for name in own if name in kwargs}


def _resolved(dsn: str, kwargs: Mapping[str, Any]) -> str:
    """The DSN with the addresses of its hosts, as libpq would stop the hub to look them up."""
    own = _of_connect(kwargs)
    given = {name: value for name, value in kwargs.items() if name not in own}
    parameters = extensions.parse_dsn(extensions.make_dsn(dsn, **given))
    hosts = parameters.get("host", "").split(",")
    if not any(hosts) or "hostaddr" in parameters:
        return str(extensions.make_dsn(**parameters))
    ports = parameters.get("port", "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    found: list[tuple[str, str, str]] = []
    failed: OSError | None = None
    for host, port in zip(hosts, ports, strict=True):
        try:
            found += [(host, address, port) for address in _addresses(host)]
        except OSError as error:  # libpq goes on with the next, too
            failed = failed or error
    if failed is not None and not found:
        try:
            raise failed
        finally:
            del failed  # else the two hold each other
    for name, values in zip(("host", "hostaddr", "port"), zip(*found, strict=True), strict=True):
        parameters[name] = ",".join(values)
    return str(extensions.make_dsn(**parameters))


def _addresses(host: str) -> list[str]:
    if not host or host.startswith(("/", "@")):
        return [""]  # the path of a Unix socket
    found = getaddrinfo(host, None, type=SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
