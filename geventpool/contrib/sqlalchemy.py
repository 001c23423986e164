"""GeventPool: a pool for SQLAlchemy's engines, given as ``poolclass``."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Mapping
from typing import Any
from weakref import proxy, ref

from gevent import monkey
from sqlalchemy import event, exc
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.pool.base import _ConnectionRecord, reset_none

from geventpool import sockets
from geventpool.errors import NotInUse, PoolDown, PoolTimeout, Verdict
from geventpool.events import Reason
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import check_callable, check_whole, copy_of

__all__ = ["GeventPool"]

#: The settings of ConnectionPool that are arguments of ``create_engine``, by what they are there.
_ARGUMENTS = {
    "size": "pool_size",
    "min_size": "min_size",
    "max_overflow": "max_overflow",
    "timeout": "pool_timeout",
    "max_lifetime": "pool_recycle",
    "order": "pool_use_lifo",
    "name": "pool_logging_name",
    "connect": "creator",
}
_SETTINGS = frozenset(inspect.signature(ConnectionPool).parameters) - set(_ARGUMENTS)


class GeventPool(Pool):
    """What QueuePool is, in a program that gevent has patched.

        engine = create_engine(url, poolclass=GeventPool, pool_size=10, max_overflow=0)

    - *pool_size*, *max_overflow* (-1: no bound), *timeout* (seconds; None: no bound), *use_lifo*,
      *recycle*, *reset_on_return*, *pre_ping* and *events*: those of QueuePool, which
      ``create_engine`` calls ``pool_timeout`` and so on.  *pool_size* must be at least 1.
    - *min_size*: so many connections are kept open, once the pool is used for the first time.
    - *pool_settings*: further settings of ConnectionPool, as ``{"keepalive": 30.0}``, which pings.

    Connections are opened in the background, and callers in line are served in the order in which
    they came; a connection whose peer has hung up is never handed out, without a ping.  What is
    recycled or invalidated is replaced by a dial of the pool's, too; only what fails its ping, or
    the event ``checkout``, is connected anew by its user.

    ``connect`` raises ``sqlalchemy.exc.TimeoutError`` if no connection came free in time; its
    ``__cause__`` is the PoolTimeout.  While nothing is open and dials fail it raises what the last
    one raised, at once; give ``pool_settings={"down_after": None}`` to have callers wait instead.

    A statement that a Timeout or a kill cuts short costs the connection: SQLAlchemy closes it.  An
    error that says that the server is read-only counts as a disconnect, as after a failover.

    *connections* is the ConnectionPool of it all: ``engine.pool.connections.stats()``.  It is the
    gevent hub's of the thread that made the engine.  Nothing is opened before it is used, neither
    at first nor after ``dispose()``; a forked child opens its own, with ``dispose(close=False)`` or
    without.
    """

    #: What SQLAlchemy asks of a poolclass before it is given to an engine.
    _is_asyncio = False

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = False,
        min_size: int = 0,
        pool_settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_callable("creator", creator)
        check_whole("pool_size", pool_size, least=1)
        check_whole("max_overflow", max_overflow, least=-1)
        check_whole("min_size", min_size)
        if min_size > pool_size:
            raise ValueError(f"min_size ({min_size}) is more than pool_size ({pool_size})")
        super().__init__(creator, **kwargs)
        self._arguments: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": max_overflow,
            "timeout": timeout,
            "use_lifo": use_lifo,
            "min_size": min_size,
            "pool_settings": dict(pool_settings or {}),
        }
        self._checked: Any = None  # the dialect, once its driver is known to be cooperative
        self._warm = min_size == 0
        self.connections = SQLAlchemyPool(
            self,
            pool_size,
            max_overflow=None if max_overflow < 0 else max_overflow,
            timeout=timeout,
            order="lifo" if use_lifo else "fifo",
            max_lifetime=self._recycle if self._recycle > 0 else None,
            name=self._orig_logging_name,
            **_checked_settings(pool_settings or {}),
        )
        if self._dialect is not Pool._dialect:
            self._check_driver()

    # What SQLAlchemy calls

    def recreate(self) -> GeventPool:
        """A pool like this one, with nothing open, nor to be opened before it is used."""
        self.logger.info("Pool recreating")
        return type(self)(
            self._creator,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            dialect=self._dialect,
            _dispatch=self.dispatch,
            **self._arguments,
        )

    def dispose(self) -> None:
        """Close the idle connections, and those in use when they are given back.

        Waits until the idle ones are closed, for 5 s at most.  The pool stays usable.
        """
        self._invalidate_time = time.time()
        if self._warm:
            self._warm = not self._arguments["min_size"]
            self.connections.resize(self.size(), 0)
        self.connections._evict_idle(lambda record: True, Reason.DISPOSED, timeout=5.0)
        self.logger.info("Pool disposed. %s", self.status())

    def _do_get(self) -> ConnectionPoolEntry:
        if self._checked is not self._dialect:
            self._check_driver()
        connections = self.connections
        if not self._warm:
            self._warm = True
            connections.resize(self.size(), self._arguments["min_size"])
        while True:
            try:
                record = connections.acquire()
            except PoolTimeout as error:
                raise exc.TimeoutError(str(error), code="3o7r") from error
            except PoolDown as error:
                if error.__cause__ is None:
                    raise
                raise copy_of(error.__cause__) from None
            if not record._is_hard_or_soft_invalidated():
                return record
            connections.discard(record)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        assert isinstance(record, _Record)
        self.connections.give_back(record)

    # Looking

    def status(self) -> str:
        """How it stands, in the words of QueuePool."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()}"
            f" Current Overflow: {self.overflow()}"
            f" Current Checked out connections: {self.checkedout()}"
        )

    def size(self) -> int:
        """How many connections are kept at most."""
        return self.connections.size

    def timeout(self) -> float | None:
        """For how many seconds ``connect`` waits; None: as long as it takes."""
        return self.connections.timeout

    def checkedin(self) -> int:
        """How many connections are idle."""
        return self.connections._standing().idle

    def checkedout(self) -> int:
        """How many are in use."""
        return self.connections._standing().in_use

    def overflow(self) -> int:
        """How many there are beyond *pool_size*; below 0: so many may still be opened within it."""
        standing = self.connections._standing()
        return standing.open + standing.connecting - self.size()

    # Inside

    def _check_driver(self) -> None:
        """Raise RuntimeError or ImportError if the driver would stop the hub."""
        if not (monkey.is_module_patched("socket") and monkey.is_module_patched("threading")):
            raise RuntimeError(
                "SQLAlchemy would block gevent's hub, as the program is not patched: call"
                " gevent.monkey.patch_all() before anything imports sqlalchemy"
            )
        driver = _driver_of(self._dialect)
        getattr(driver, "ensure_cooperative", lambda: None)()
        if driver is not None and not event.contains(self._dialect, "handle_error", _note_failover):
            event.listen(self._dialect, "handle_error", _note_failover)
        self._checked = self._dialect


class _Record(_ConnectionRecord):
    """SQLAlchemy's place in a pool, which is what ours lends."""

    def checkin(self, _fairy_was_created: bool = True) -> None:
        try:
            super().checkin(_fairy_was_created)
        except BaseException:
            # Cut short in a listener, or as the isolation level is set back: it would never return.
            self._pool().connections.forsake(self)
            raise

    def _pool(self) -> Any:
        return self._ConnectionRecord__pool  # type: ignore[attr-defined]


class SQLAlchemyPool(ConnectionPool[_Record]):
    """The pool of the records of a GeventPool, which it does not keep alive."""

    _may_reconnect = True  # a record whose ping failed

    def __init__(self, owner: GeventPool, size: int, **settings: Any) -> None:
        self._owner = ref(owner)
        settings.setdefault("down_after", 0.001)
        super().__init__(size, min_size=0, **settings)

    def give_back(self, record: _Record) -> None:
        """Take back a record, which SQLAlchemy has reset, or whose connection it has closed."""
        hold = self._hold_of(record)
        owner = self._owner()
        is_reset = owner is not None and owner._reset_on_return is not reset_none
        if record._is_hard_or_soft_invalidated() or _is_busy(record.driver_connection, is_reset):
            self._discard(hold, record, Reason.ERROR, sys.exc_info()[1])
        else:
            self._checkin(hold, record, suspect=sys.exc_info()[1] is not None)

    def forsake(self, record: _Record) -> None:
        """Close a record, unless it was given back."""
        try:
            hold = self._hold_of(record)
        except NotInUse:
            return
        self._discard(hold, record, Reason.ERROR)

    # Hooks

    def _new_connection(self) -> _Record:
        owner = self._owner()
        if owner is None:
            raise ReferenceError("the engine is gone")
        try:
            # A proxy, as the records that lie idle would keep a forgotten engine for ever.
            return _Record(proxy(owner))
        except _errors_of(owner._dialect) as error:
            # A frame of psycopg2's wait callback holds the connection, and that its socket.
            raise error.with_traceback(None) from None

    def _close_connection(self, record: _Record) -> None:
        if self._owner() is not None:
            record.close()
        elif record.dbapi_connection is not None:
            record.dbapi_connection.close()

    @staticmethod
    def _socket(record: _Record) -> Any:
        conn: Any = record.driver_connection
        # Nearly always there is no need to look for it.
        return conn.fileno() if hasattr(conn, "fileno") else sockets.carriers(conn)

    def _keepalive(self, record: _Record) -> None:
        owner = self._owner()
        if owner is None or not owner._dialect.do_ping(record.dbapi_connection):  # type: ignore
            raise exc.DisconnectionError("the ping failed")

    def _classify_error(self, error: Exception) -> Verdict:
        error = getattr(error, "orig", None) or error
        owner = self._owner()
        return Verdict.BROKEN if owner is None else _verdict_of(error, owner._dialect)


def _driver_of(dialect: Any) -> Any:
    """The module of geventpool.contrib that knows the driver; None if there is none."""
    name = getattr(dialect, "driver", "")
    module: Any = None
    if name == "psycopg":
        from geventpool.contrib import psycopg as module
    elif name == "psycopg2":
        from geventpool.contrib import psycopg2 as module
    elif name == "pymysql":
        from geventpool.contrib import pymysql as module
    elif name == "mysqldb":
        from geventpool.contrib import mysqlclient as module  # which says what to use instead
    return module


def _errors_of(dialect: Any) -> type[Exception]:
    """What all errors of the driver's are."""
    found: type[Exception] = getattr(getattr(dialect, "loaded_dbapi", None), "Error", OSError)
    return found


def _verdict_of(error: BaseException, dialect: Any) -> Verdict:
    """What an error of the driver's says."""
    if not isinstance(error, _errors_of(dialect)):
        return Verdict.BROKEN if isinstance(error, OSError) else Verdict.FINE
    if (driver := _driver_of(dialect)) is not None:
        verdict: Verdict = driver.verdict_of(error)
        return verdict
    return Verdict.BROKEN if dialect.is_disconnect(error, None, None) else Verdict.FINE


def _note_failover(context: Any) -> None:
    """Have SQLAlchemy leave a server that was demoted, with all connections."""
    if _verdict_of(context.original_exception, context.dialect) is Verdict.WRONG_SERVER:
        context.is_disconnect = context.invalidate_pool_on_disconnect = True


def _is_busy(conn: Any, is_reset: bool) -> bool:
    """Whether a statement is under way at PostgreSQL, as after a Timeout that nobody has seen, or a
    pipeline; or, though it *is_reset*, a transaction: psycopg2 rolls back none that its user began
    by hand, with autocommit."""
    # By psycopg's own info each would be an Enum, which takes longer than all the rest.
    libpq = getattr(conn, "pgconn", None) or getattr(conn, "info", None)
    status = getattr(libpq, "transaction_status", 0)  # 0 is IDLE, 1 is ACTIVE
    return bool(status == 1 or (is_reset and status) or getattr(libpq, "pipeline_status", 0))


def _checked_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in settings:
        if name in _ARGUMENTS:
            raise ValueError(f"pool_settings: {name!r} is {_ARGUMENTS[name]} of create_engine")
        if name not in _SETTINGS:
            raise ValueError(f"pool_settings: ConnectionPool has no {name!r}")
    return settings
