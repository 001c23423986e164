"""What both backends share: which pool a DatabaseWrapper uses, and when it gives back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import ref

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.utils import DatabaseErrorWrapper, Error, OperationalError
from django.utils.functional import cached_property
from gevent import Greenlet, getcurrent

from geventpool.errors import NotInUse, PoolDown, PoolUnavailable, Verdict
from geventpool.pools.extension import copy_of

__all__ = ["PooledWrapper"]

#: What one pool leads to, of the settings of a database: a test database has one of its own.
_IDENTITY = ("NAME", "HOST", "PORT", "USER", "TIME_ZONE")
_CLOSE_TIMEOUT = 5.0  # seconds for those who still use the connections of a pool that is closed


class PooledWrapper:
    """A mixin for a DatabaseWrapper of Django's, whose connections come from a pool.

    Each greenlet has a DatabaseWrapper of its own, as Django keeps one per thread.  It acquires a
    connection for its first query, and gives it back at the end of the request, by ``close()``, or
    as the greenlet ends, whatever ends it.

    ``CONN_MAX_AGE`` is how long a connection may live in the pool, not how long a greenlet keeps
    it.  Where no connection can be had, ``django.db.OperationalError`` is raised, whose
    ``__cause__`` is the PoolUnavailable.
    """

    # Of the DatabaseWrapper beneath.
    Database: Any
    alias: str
    autocommit: bool
    connection: Any
    settings_dict: dict[str, Any]
    in_atomic_block: bool
    allow_thread_sharing: bool
    run_commit_hooks_on_set_autocommit_on: bool
    close: Callable[[], None]

    #: The pools of the process, by alias and identity.
    _pools: ClassVar[dict[tuple[Any, ...], Any]]
    #: What the server said, of the connection or of itself, that the pool has to know.
    _bad_news: Exception | None = None
    #: The greenlet that has the connection, and what it calls as it ends.
    _holder: tuple[Any, Callable[[Any], None]] | None = None

    # The pool

    def _make_pool(self, settings: dict[str, Any]) -> Any:
        """A pool of this database's connections, with those settings."""
        raise NotImplementedError

    def _is_cut_short(self) -> bool:
        """Whether a statement on the connection was cut short, so that no other may be sent."""
        raise NotImplementedError

    @property
    def pool(self) -> Any:
        """The pool of this database, made when it is first asked for; None: there is to be none."""
        settings = self.settings_dict["OPTIONS"].get("pool", True)
        if self.alias == NO_DB_ALIAS or settings is False or settings is None:
            return None
        key = self._key
        if (pool := self._pools.get(key)) is None:
            settings = {} if settings is True else dict(settings)
            settings.setdefault("min_size", 0)
            settings.setdefault("max_lifetime", self.settings_dict["CONN_MAX_AGE"] or None)
            settings.setdefault("down_after", 0.001)
            settings.setdefault("name", self.alias)
            try:
                pool = self._make_pool(settings)
            except (TypeError, ValueError) as error:
                text = f"DATABASES[{self.alias!r}]: OPTIONS['pool']: {error}"
                raise ImproperlyConfigured(text) from error
            self._pools[key] = pool
        return pool

    @property
    def _key(self) -> tuple[Any, ...]:
        return (self.alias, *map(self.settings_dict.get, _IDENTITY))

    def close_pool(self) -> None:
        """Close the pool, as Django does before it drops a test database; a query makes another."""
        if (pool := self._pools.pop(self._key, None)) is not None:
            pool.close(_CLOSE_TIMEOUT)

    # A connection

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        if _pool_of(self.connection) is not None:
            self.close_at = 0.0  # it is due back at the end of the request

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        try:
            conn = self._obtain(conn_params)
        except PoolDown as error:
            if isinstance(error.__cause__, self.Database.Error):
                raise copy_of(error.__cause__) from error
            raise OperationalError(str(error.__cause__ or error)) from error
        except PoolUnavailable as error:
            raise OperationalError(str(error)) from error
        greenlet = getcurrent()
        if _pool_of(conn) is not None and isinstance(greenlet, Greenlet):
            give_back = _at_the_end(ref(self), conn)
            greenlet.link(give_back)
            self._holder = greenlet, give_back
        return conn

    def _obtain(self, conn_params: dict[str, Any]) -> Any:
        """A connection, of the pool if there is one."""
        return super().get_new_connection(conn_params)  # type: ignore[misc]

    def _close(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            holder[0].unlink(holder[1])
        pool = _pool_of(self.connection)
        if pool is None:
            super()._close()  # type: ignore[misc]
            return
        conn, self.connection = self.connection, None
        error, self._bad_news = self._bad_news, None
        with self.wrap_database_errors:
            pool.putconn(conn, error)

    @cached_property  # type: ignore[untyped-decorator]
    def wrap_database_errors(self) -> Any:
        return _ErrorWrapper(self)

    def note_error(self, error: Exception) -> None:
        """Remember an error of a statement's, which Django may deal with long before it closes the
        connection, if it says that this, or the server, is not to be used any more."""
        pool = _pool_of(self.connection)
        if pool is None:
            return
        verdict = pool._classify_error(error)
        # A statement that was cut short breaks the rollback after it: that is for the pool to mend.
        if verdict is not Verdict.FINE and not self._is_cut_short():
            self._bad_news = error

    def ensure_connection(self) -> None:
        self._forsake_if_cut_short()
        super().ensure_connection()  # type: ignore[misc]

    def _forsake_if_cut_short(self) -> None:
        """Give the connection back if a Timeout has ended the wait for a statement: the pool deals
        with that.  Not in a transaction, which must not go on with another connection."""
        if (
            self.connection is not None
            and not self.in_atomic_block
            and not self.allow_thread_sharing
            and _pool_of(self.connection) is not None
            and self._is_cut_short()
        ):
            self.close()

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        self._forsake_if_cut_short()
        error = sys.exc_info()[1]
        if self.connection is not None and not isinstance(error, (Exception, type(None))):
            # The rollback itself was cut short, and the setting cannot change in a transaction.
            try:
                super()._rollback()  # type: ignore[misc]
            except Error:
                self.close()
        if (
            self.connection is None
            and autocommit == self.settings_dict["AUTOCOMMIT"]
            and not self.in_atomic_block
            and not self.run_commit_hooks_on_set_autocommit_on
        ):
            # As the next connection will have it anyway: an atomic block that a Timeout or a kill
            # leaves must not wait for one.
            self.autocommit = autocommit
            return
        super().set_autocommit(autocommit, *args, **kwargs)  # type: ignore[misc]


class PoolFace:
    """What Django asks of a pool: a mixin for a ConnectionPool."""

    def open(self) -> None:
        """Nothing: it opens by itself."""

    def getconn(self: Any) -> Any:
        """Acquire a connection."""
        conn = self.acquire()
        conn._pool = self
        return conn

    def putconn(self: Any, conn: Any, error: Exception | None = None) -> None:
        """Give it back, after that *error*, unless it is the parent's of this process."""
        conn._pool = None
        try:
            if error is None:
                self.release(conn)
            else:
                self._end_use(self._hold_of(conn), conn, error)
        except NotInUse:
            pass


class _ErrorWrapper(DatabaseErrorWrapper):  # type: ignore[misc]
    """Django's, which makes its own errors of a driver's, and has the wrapper look at those."""

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        if isinstance(exc, Exception):
            self.wrapper.note_error(exc)
        super().__exit__(exc_type, exc, traceback)


def _pool_of(conn: Any) -> Any:
    """What *conn* was acquired from; None if that was no pool."""
    return getattr(conn, "_pool", None)


def _at_the_end(wrapper: Any, conn: Any) -> Callable[[Any], None]:
    """What gives *conn* back once the greenlet that has it has ended."""

    def give_back(greenlet: Any) -> None:
        if (owner := wrapper()) is not None and owner.connection is conn:
            owner.connection = None
        if (pool := conn._pool) is not None:
            pool.putconn(conn)

    return give_back
