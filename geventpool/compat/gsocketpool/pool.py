"""Pool: what a factory makes of its options, on demand."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import gevent
from gevent import Greenlet, GreenletExit

from geventpool import sockets
from geventpool.backoff import Backoff
from geventpool.compat.gsocketpool.connection import Connection
from geventpool.compat.gsocketpool.exceptions import ConnectionNotFoundError, PoolExhaustedError
from geventpool.errors import NotInUse, PoolTimeout
from geventpool.events import Reason
from geventpool.pools import ConnectionPool
from geventpool.pools.extension import CLOSE_TIMEOUT

__all__ = ["ConnectionReaper", "Pool"]

C = TypeVar("C", bound=Connection)


class Pool(ConnectionPool[C]):
    """A pool of what *factory*, a Connection class or the like, makes of *options*.

    Opens *initial_connections* now and up to *max_connections* on demand, and closes expired ones
    every *reap_interval* seconds unless *reap_expired_connections* is false.  If one of the first
    cannot be opened, its error is raised and none stays open.
    """

    def __init__(
        self,
        factory: Callable[..., C],
        options: Mapping[str, Any] = MappingProxyType({}),
        initial_connections: int = 0,
        max_connections: int = 200,
        reap_expired_connections: bool = True,
        reap_interval: float = 180,
    ) -> None:
        if not isinstance(max_connections, int) or max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {max_connections!r}")
        assert initial_connections <= max_connections, (
            "initial_connections must be less than max_connections"
        )
        self._factory = factory
        self._options = options
        self._reaper: ConnectionReaper | None = None
        self._opened: WeakValueDictionary[int, C] = WeakValueDictionary()  # and not dropped
        # The back-off is short, as each caller in line is told of a failed dial of its own.
        backoff = Backoff(first=0.01, longest=0.1)
        super().__init__(max_connections, min_size=0, order="fifo", fail_fast=True, backoff=backoff)
        self._open_first(initial_connections)
        if reap_expired_connections:
            self._reaper = ConnectionReaper(self, reap_interval)
            self._reaper.start()

    @contextmanager
    def connection(self) -> Iterator[C]:
        """A connection for the length of a ``with``.

        It is released or discarded after what leaves the ``with``, as with ``get()``: see Lease.
        """
        conn = self.acquire()
        hold = self._hold_of(conn)
        try:
            yield conn
        except BaseException as exc:
            self._end_use(hold, conn, exc)
            raise
        finally:
            if self._is_held(hold):  # and not given back in the body
                self.release(conn)

    @property
    def size(self) -> int:
        """How many connections are open, idle or in use."""
        return self._standing().open

    def acquire(self, retry: float = 10, retried: float = 0) -> C:  # type: ignore[override]
        """Return a connection, the longest idle one or a new one; ``release`` it afterwards.

        If all are taken, waits in line for at most *retry* × 0.1 s; if a new one can be opened,
        for as long as that takes, within ``self.timeout``.  Raises PoolExhaustedError if none came
        free, and what opening a connection raised if that failed.
        """
        now, timeout = self._standing(), min(0.1 * max(retry - retried, 0), 1e9)
        is_down = now.failing and (now.waiting or now.retry_in)
        if now.in_use + now.waiting < now.size and not is_down and self.timeout is not None:
            timeout = max(timeout, self.timeout)
        try:
            return super().acquire(timeout)
        except PoolTimeout as error:
            dial_error = error.__cause__
            if dial_error is None:
                raise PoolExhaustedError(str(error), pool=self.name) from error
        raise dial_error.with_traceback(None)

    def release(self, conn: C) -> None:
        """Give back a connection.  Raises ConnectionNotFoundError if it is not in use here."""
        try:
            super().release(conn)
        except NotInUse as error:
            raise ConnectionNotFoundError(str(error), pool=self.name, connection=conn) from None

    def drop(self, conn: C) -> None:
        """Close an idle connection; returns when that is done, or the pool had done it already.

        Raises ConnectionNotFoundError if it is in use (``discard`` closes those), was dropped
        before, or is none of this pool's.
        """
        self._assert_usable_here()
        is_idle = any(each is conn for each in self._pool)
        was_ours = self._opened.pop(id(conn), None) is not None
        if not is_idle and (conn in self._using or not was_ours):
            raise ConnectionNotFoundError(
                f"pool {self.name!r}: {conn!r} is in use, or dropped already, or not ours",
                pool=self.name,
                connection=conn,
            )
        self._evict_idle(lambda each: each is conn, Reason.DISCARDED, CLOSE_TIMEOUT, most=1)

    def drop_expired(self) -> None:
        """Close the idle connections that are expired; returns when that is done."""
        self._evict_idle(lambda conn: conn.is_expired() is True, Reason.DISCARDED, CLOSE_TIMEOUT)

    def close(self, timeout: float | None = None) -> None:
        if self._reaper is not None:
            self._reaper.kill(block=False)
        super().close(timeout)

    @property
    def _pool(self) -> tuple[C, ...]:
        """The idle connections, the longest idle first."""
        return self._idle_connections()

    @property
    def _using(self) -> tuple[C, ...]:
        """The connections in use."""
        return self._held_connections()

    # Inside

    def _open_first(self, count: int) -> None:
        try:
            self._prefill(count, timeout=None)
        except BaseException:
            self.close(0)
            raise

    def _new_connection(self) -> C:
        conn = self._create_connection()
        with suppress(TypeError):  # it cannot be weakly referenced
            self._opened[id(conn)] = conn
        return conn

    def _create_connection(self) -> C:
        conn = self._factory(**self._options)
        try:
            conn.open()
        except BaseException:
            with suppress(Exception):  # why it could not be opened matters more
                conn.close()
            raise
        return conn

    def _close_connection(self, conn: C) -> None:
        if not _says(conn.is_connected, False):
            conn.close()

    _may_reconnect = True  # by close() and open(), or reconnect()

    def _socket(self, conn: C) -> Any:
        return sockets.carriers(_raw(conn))

    def _is_alive(self, conn: C) -> bool:
        facts = self._facts_of(conn)
        if facts is not None and facts.uses == 1:  # new: what lies unread is the server's greeting
            # Never idle, it comes from open(): what is born expired would be opened without end.
            if facts.idled and _says(conn.is_expired, True):
                return False
            self._poll_hangups()
            facts = self._facts_of(conn)
            return facts is not None and facts.close_reason is None
        if _says(conn.is_expired, True) or _says(conn.is_connected, False):
            return False
        # Each time, as after a reconnect it is another socket
        why_unusable = sockets.make_probe(_raw(conn))
        return why_unusable is None or not why_unusable()


class ConnectionReaper(Greenlet):  # type: ignore[type-arg]
    """Has *pool* drop its expired connections every *interval* seconds, until it is collected."""

    def __init__(self, pool: Any, interval: float = 180) -> None:
        super().__init__()
        self._pool = weakref.ref(pool, self._collected)
        self._delay = interval

    def _run(self) -> None:
        while True:
            gevent.sleep(self._delay, ref=False)
            if (pool := self._pool()) is None:
                return
            try:
                pool.drop_expired()
            except Exception:
                logging.exception("An error has occurred while dropping expired connections")
            del pool  # the sleep must not keep it alive

    def _collected(self, _: object) -> None:
        loop = getattr(self.parent, "loop", None)
        if loop is not None:  # a collection may happen anywhere, in any thread
            loop.run_callback_threadsafe(self.kill, GreenletExit, False)


def _raw(conn: Connection) -> Any:
    """What *conn* calls its raw connection, a socket perhaps; itself if it has none."""
    try:
        return conn.get()
    except Exception:
        return conn


def _says(question: Callable[[], object], answer: bool) -> bool:
    """Whether that is the answer, and not what a mock says, or a method half written."""
    try:
        return question() is answer
    except Exception:
        return False
