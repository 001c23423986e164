"""PsycopgPool: connections of psycopg 3 to PostgreSQL, in a program that gevent has patched."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import psycopg
from gevent import get_hub, monkey
from gevent.socket import wait_read
from psycopg import capabilities, waiting
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus

from geventpool.contrib._postgres import verdict_of_refusal, verdict_of_state
from geventpool.errors import Verdict
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import DEFAULT, check_callable
from geventpool.sockets import CUT_SHORT

__all__ = ["PsycopgPool", "ensure_cooperative", "verdict_of"]

Connection = psycopg.Connection[Any]
_ACTIVE, _IDLE = TransactionStatus.ACTIVE, TransactionStatus.IDLE

#: What a caller may set of a connection that the server has no part in, so that no rollback and no
#: DISCARD ALL sets it back.
_ATTRIBUTES = (
    *("autocommit", "isolation_level", "read_only", "deferrable"),
    *("prepare_threshold", "prepared_max"),
    *("row_factory", "cursor_factory", "server_cursor_factory"),
)
_attributes_of = attrgetter(*_ATTRIBUTES)
_AS_OPENED = "_geventpool_as_opened"  # where they, and the handlers, are kept: in the connection


class PsycopgPool(ConnectionPool[Connection]):
    """A pool of psycopg 3 connections.

        pool = PsycopgPool("host=db.example.org dbname=shop", 10)
        with pool.connection() as conn:  # commits, or rolls back if the body raises
            conn.execute("update account set balance = balance - 10")

    - *conninfo*: as for ``psycopg.connect``; a callable is asked for it at each dial, as for a
      password that expires.  *kwargs*: further arguments of ``connect``, or a callable that returns
      them.  *connection_class*: what is connected.
    - *configure*: called with each new connection; *reset*: with each that is given back, after the
      rollback; both must leave it without an open transaction.  *check*: called with one before it
      is handed out, and as its keepalive; give *check_after* to leave out those just used.  Any
      exception of theirs closes the connection.
    - *discard_all*: DISCARD ALL on return, so that no SET, temporary table, LISTEN, notification,
      advisory lock or prepared statement reaches the next user; *configure* is called again after
      it.
    - *settings*: those of ConnectionPool.

    On return an open or failed transaction is rolled back, and what was set of ``autocommit``,
    ``isolation_level``, ``row_factory`` and the like is set back, and the handlers of notices and
    notifications are again those that *configure* has left; what was registered in ``adapters``
    stays.  After a Timeout or a kill the statement is cancelled at the server, by the pool, and the
    connection rolled back.

    Raises RuntimeError where psycopg would block the hub: it must be imported in a program that
    gevent has patched already.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        size: int = 10,
        *,
        kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        connection_class: type[Connection] = Connection,
        configure: Callable[[Connection], object] | None = None,
        reset: Callable[[Connection], object] | None = None,
        check: Callable[[Connection], object] | None = None,
        discard_all: bool = False,
        **settings: Any,
    ) -> None:
        ensure_cooperative()
        if not callable(conninfo):
            _check_conninfo(conninfo)
        for name, value in (("configure", configure), ("reset", reset), ("check", check)):
            if value is not None:
                check_callable(name, value)
        self._conninfo = conninfo
        self._kwargs = {} if kwargs is None else kwargs
        self._connection_class = connection_class
        self._configure = configure
        self._reset = reset
        self._check = check
        self._discard_all = discard_all
        if check is not None:
            settings.setdefault("check_after", 0.0)
        super().__init__(size, **settings)

    @contextmanager
    def connection(self, timeout: float | None = DEFAULT) -> Iterator[Connection]:
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

    @staticmethod
    def check_connection(conn: Connection) -> None:
        """Make a round trip to the server, for *check*."""
        conn.execute("")

    # Hooks

    def _new_connection(self) -> Connection:
        conninfo = self._conninfo
        if callable(conninfo):
            conninfo = conninfo()
            _check_conninfo(conninfo)  # as libpq's error would show a password
        kwargs = self._kwargs() if callable(self._kwargs) else self._kwargs
        conn = self._connection_class.connect(conninfo, **kwargs)
        try:
            self._call(self._configure, conn)
            vars(conn)[_AS_OPENED] = _attributes_of(conn), _handlers_of(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    @staticmethod
    def _socket(conn: Connection) -> int:
        return conn.fileno()

    def _make_probe(self, conn: Connection, ask: Callable[[Any], Any]) -> Any:
        return _Probe(conn, super()._make_probe(conn, ask))

    def _keepalive(self, conn: Connection) -> None:
        (self._check or self.check_connection)(conn)
        if conn.pgconn.transaction_status != _IDLE:
            conn.rollback()

    def _needs_reset(self, conn: Connection) -> bool:
        pgconn = conn.pgconn
        if pgconn.transaction_status != _IDLE or pgconn.pipeline_status != PipelineStatus.OFF:
            return True
        if self._discard_all or self._reset is not None:
            return True
        if getattr(conn, "_notifies_backlog", ()) is None:  # its generator has the lock
            return True
        as_opened, (notice_handlers, notify_handlers) = vars(conn)[_AS_OPENED]
        return bool(
            conn._notice_handlers != notice_handlers
            or conn._notify_handlers != notify_handlers
            or _attributes_of(conn) != as_opened
        )

    def _reset_connection(self, conn: Connection) -> None:
        if conn.pgconn.pipeline_status != PipelineStatus.OFF:
            raise psycopg.InterfaceError("given back in the middle of a pipeline")
        if getattr(conn, "_notifies_backlog", ()) is None:  # its generator has the lock
            raise psycopg.InterfaceError("given back in the middle of notifies()")
        if conn.pgconn.transaction_status != _IDLE:
            conn.rollback()
        as_opened, handlers = vars(conn)[_AS_OPENED]
        _set_handlers(conn, handlers)
        if _attributes_of(conn) != as_opened:
            for name, value in zip(_ATTRIBUTES, as_opened, strict=True):
                setattr(conn, name, value)
        if self._discard_all:
            conn.autocommit = True  # it may not run in a transaction
            conn.execute("discard all", prepare=False)
            conn.autocommit = as_opened[0]
            if backlog := getattr(conn, "_notifies_backlog", None):
                backlog.clear()
            self._call(self._configure, conn)
            _set_handlers(conn, handlers)  # else each call of configure may add one
        self._call(self._reset, conn)

    def _salvage_connection(self, conn: Connection, error: BaseException | None) -> None:
        """Cancel what runs, read what is left of it, and roll back."""
        if conn.pgconn.transaction_status == _ACTIVE:
            _cancel(conn)
        if conn.pgconn.transaction_status != _IDLE:
            conn.rollback()

    def _classify_error(self, error: Exception) -> Verdict:
        if isinstance(error, psycopg.Error):
            return verdict_of(error)
        return super()._classify_error(error)

    def _call(self, function: Callable[[Connection], object] | None, conn: Connection) -> None:
        """Call one of the user's, which may have nothing open when it returns."""
        if function is None:
            return
        function(conn)
        if (status := TransactionStatus(conn.pgconn.transaction_status)) != _IDLE:
            raise psycopg.ProgrammingError(
                f"pool {self.name!r}: {function!r} left the connection in a transaction:"
                f" {status.name}, not IDLE"
            )


def _handlers_of(conn: Connection) -> tuple[list[Any], list[Any]]:
    return conn._notice_handlers[:], conn._notify_handlers[:]


def _set_handlers(conn: Connection, handlers: tuple[list[Any], list[Any]]) -> None:
    conn._notice_handlers[:], conn._notify_handlers[:] = handlers


def verdict_of(error: psycopg.Error) -> Verdict:
    """What an error of psycopg's says of its connection, or of the server."""
    state = error.sqlstate
    if state is None:
        if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            return Verdict.FINE
        return verdict_of_refusal(str(error))
    return verdict_of_state(state, error.diag.severity_nonlocalized)


class _Probe:
    """The pool's own look at a connection, which sees a statement that is under way, too.

    psycopg waits by poll(), so that no guard of a socket sees a wait that was cut short.
    """

    __slots__ = ("_pgconn", "_probe")

    def __init__(self, conn: Connection, probe: Any) -> None:
        self._pgconn = conn.pgconn  # not *conn*, which a probe must not keep alive
        self._probe = probe

    def __call__(self, conn: Connection) -> object:
        if self._pgconn.transaction_status == _ACTIVE:
            return CUT_SHORT
        return self._probe(conn)

    def untouched(self, conn: Connection) -> bool:
        return bool(self._pgconn.transaction_status != _ACTIVE and self._probe.untouched(conn))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._probe, name)


def _cancel(conn: Connection) -> None:
    """Have the server end what runs on *conn*, and read what is left of it."""
    if not conn.lock.acquire(blocking=False):
        # Its finalizer would cancel what the next user runs.
        raise psycopg.InterfaceError("a stream or a COPY, left by half, has the connection still")
    try:
        if capabilities.has_cancel_safe():
            conn.cancel_safe()
        else:  # it blocks, without a bound
            get_hub().threadpool.apply(conn.cancel)
        _drain(conn)
    finally:
        conn.lock.release()


def _drain(conn: Connection) -> None:
    """Read and forget the results of what runs, as libpq has it done without blocking."""
    pgconn = conn.pgconn
    if pgconn.pipeline_status != PipelineStatus.OFF or pgconn.flush():
        raise psycopg.InterfaceError("a pipeline, or a statement that was sent by half")
    while True:
        while pgconn.is_busy():
            wait_read(pgconn.socket)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return
        if result.status in (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH):
            raise psycopg.InterfaceError("a COPY that was cut short")


def _check_conninfo(conninfo: object) -> None:
    if not isinstance(conninfo, str):
        raise TypeError(f"conninfo must be a string, or a callable, not {type(conninfo).__name__}")
    try:
        conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:  # its text may have the password
        raise ValueError("conninfo is no connection string") from None


def ensure_cooperative() -> None:
    """Raise RuntimeError if a wait of psycopg's would stop the hub."""
    if not monkey.is_module_patched("select"):
        what = "the program is not patched"
    elif waiting.wait is getattr(waiting, "wait_c", None) or (
        vars(waiting).get("DefaultSelector") not in (None, selectors.DefaultSelector)
    ):
        what = "psycopg was imported before the program was patched"
    else:
        return
    raise RuntimeError(
        f"psycopg would block gevent's hub, as {what}: call gevent.monkey.patch_all() before"
        " anything imports psycopg (with gunicorn --preload: at the top of gunicorn.conf.py)"
    )
