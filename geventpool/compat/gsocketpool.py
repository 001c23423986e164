"""The API of gsocketpool 0.1.6: ``from geventpool.compat.gsocketpool import Pool, TcpConnection``.

Its signatures and defaults over a ConnectionPool, which Pool is: ``stats()``, ``close()``,
``discard()`` and the rest are there, too.  What changes for its users, and why, stands in
``docs/moving.md``.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic, time
from types import MappingProxyType
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import gevent
from gevent import Greenlet, GreenletExit, socket

from geventpool import sockets
from geventpool._runtime.runtime import CLOSE_TIMEOUT
from geventpool._runtime.slots import ConnectionSlot as Slot
from geventpool._scheduler.state import CLOSING, IN_USE
from geventpool.backoff import Backoff
from geventpool.errors import NotInUse, PoolError, PoolTimeout
from geventpool.events import Reason
from geventpool.pools import ConnectionPool

__all__ = [
    "Connection",
    "ConnectionNotFoundError",
    "ConnectionReaper",
    "Pool",
    "PoolExhaustedError",
    "TcpConnection",
]

# The modules that gsocketpool is made of: all their names are here, and a line such as
# ``from geventpool.compat.gsocketpool.exceptions import …`` finds them (as os.path does it).
connection = exceptions = pool = sys.modules[__name__]
for _module in ("connection", "exceptions", "pool"):
    sys.modules[f"{__name__}.{_module}"] = pool


class PoolExhaustedError(PoolError):
    """All connections are taken, and none came free in time.

    No TimeoutError, unlike the PoolTimeout it comes from (its ``__cause__``): an ``except OSError``
    that is there for broken connections must not catch it.
    """


class ConnectionNotFoundError(NotInUse):
    """What was to be released is not in use here, or what was to be dropped is not idle here."""


class Connection:
    """What a Pool keeps.  Override at least ``open``, ``close`` and ``is_connected``."""

    def open(self) -> object:
        """Open it.  Any exception: it could not be opened."""
        raise NotImplementedError

    def close(self) -> object:
        """Close it."""
        raise NotImplementedError

    def get(self) -> Any:
        """The raw connection.  If that is a socket, or has a ``fileno()``, it is watched."""
        raise NotImplementedError

    def is_connected(self) -> bool:
        """Whether it is open.  One that was used and says False is not handed out again."""
        raise NotImplementedError

    def is_expired(self) -> bool:
        """Whether it is too old: one that says True is not handed out again.  Must not switch."""
        return False

    def reconnect(self) -> None:
        """Close it if it is open, and open it; an Exception is logged and leaves it closed."""
        try:
            if self.is_connected():
                self.close()
            self.open()
        except Exception:
            logging.exception("Failed to reconnect")


class TcpConnection(Connection):
    """A TCP connection, by IPv4 or, where the host has no such address, by IPv6.

    *lifetime*: seconds after which it is expired; *timeout*: seconds that connecting, sending and
    receiving may take (None: no bound of their own).
    """

    def __init__(
        self, host: str, port: int, lifetime: float = 600, timeout: float | None = None
    ) -> None:
        self._sock: Any = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._host = host
        self._port = port
        self._lifetime = lifetime
        self._timeout = timeout
        self._connected = False
        self._created: float | None = None  # wall clock, for subclasses that look at it
        self._expires_at: float | None = None

    @property
    def socket(self) -> Any:
        """The socket; another one after a reconnect."""
        return self._sock

    def get(self) -> Any:
        return self._sock

    def open(self) -> None:
        if self._sock.fileno() == -1:  # a closed one cannot be opened again
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._connect()
        except socket.gaierror:
            self._sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            self._connect()
        self._connected = True
        self._created = time()
        self._expires_at = monotonic() + self._lifetime

    def _connect(self) -> None:
        try:
            if self._timeout:
                self._sock.settimeout(self._timeout)
            self._sock.connect((self._host, self._port))
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        self._connected = False
        self._sock.close()

    def is_connected(self) -> bool:
        return self._connected

    def is_expired(self) -> bool:
        return self._expires_at is not None and monotonic() > self._expires_at

    def send(self, data: Any) -> None:
        """Send all of *data*."""
        assert self._connected
        sent = self._sock.send(data)  # by this name, which the mocks in users' tests know
        if sent != len(data):
            self._sock.sendall(data[sent:])

    def recv(self, size: int = 1024) -> bytes:
        """Receive up to *size* bytes; ``b""`` once the peer has closed."""
        assert self._connected
        data: bytes = self._sock.recv(size)
        return data


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
        self._prefill(initial_connections)
        if reap_expired_connections:
            self._reaper = ConnectionReaper(self, reap_interval)
            self._reaper.start()

    @contextmanager
    def connection(self) -> Iterator[C]:
        """A connection for the length of a ``with``.

        It is released or discarded after what leaves the ``with``, as with ``get()``: see Lease.
        """
        conn = self.acquire()
        slot = self._runtime.find(self, conn)
        use = slot.uses

        def is_held() -> bool:
            return slot.state is IN_USE and slot.uses == use  # and not given back in the body

        try:
            yield conn
        except BaseException as exc:
            if self._breaks_connection(exc) and is_held():
                self._runtime.discard(self, slot, conn, Reason.ERROR, exc)
            raise
        finally:
            if is_held():
                self.release(conn)

    @property
    def size(self) -> int:
        """How many connections are open, idle or in use."""
        return self._bucket.open

    def acquire(self, retry: float = 10, retried: float = 0) -> C:  # type: ignore[override]
        """Return a connection, the longest idle one or a new one; ``release`` it afterwards.

        If all are taken, waits in line for at most *retry* × 0.1 s; if a new one can be opened,
        for as long as that takes, within ``self.timeout``.  Raises PoolExhaustedError if none came
        free, and what opening a connection raised if that failed.
        """
        bucket, timeout = self._bucket, min(0.1 * max(retry - retried, 0), 1e9)
        ahead = len(bucket.waiters)
        is_down = bucket.failing and (ahead or monotonic() < bucket.retry_at)
        if bucket.in_use + ahead < bucket.size and not is_down and self.timeout is not None:
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
        self._runtime.assert_usable_here(self._bucket)
        slots = [slot for slot in self._bucket.idle_slots() if slot.conn is conn][:1]
        was_ours = self._opened.pop(id(conn), None) is not None
        if not slots and (conn in self._using or not was_ours):
            raise ConnectionNotFoundError(
                f"pool {self.name!r}: {conn!r} is in use, or dropped already, or not ours",
                pool=self.name,
                connection=conn,
            )
        self._close_idle(slots)

    def drop_expired(self) -> None:
        """Close the idle connections that are expired; returns when that is done."""
        self._runtime.assert_usable_here(self._bucket)
        idle = [(slot, slot.conn) for slot in self._bucket.idle_slots()]
        self._close_idle([slot for slot, conn in idle if conn.is_expired() is True])

    def close(self, timeout: float | None = None) -> None:
        if self._reaper is not None:
            self._reaper.kill(block=False)
        super().close(timeout)

    @property
    def _pool(self) -> tuple[C, ...]:
        """The idle connections, the longest idle first."""
        return tuple(slot.conn for slot in self._bucket.idle_slots())

    @property
    def _using(self) -> tuple[C, ...]:
        """The connections in use."""
        return tuple(s.ref() for s in list(self._bucket.slots) if s.state is IN_USE)

    # Inside

    def _prefill(self, count: int) -> None:
        opened: list[C] = []
        try:
            while len(opened) < count:
                opened.append(Pool.acquire(self))
        except BaseException:
            for conn in opened:
                self.discard(conn)
            self.close(0)
            raise
        for conn in opened:
            slot = self._runtime.find(self, conn)
            slot.conn = conn
            self._runtime.scheduler.return_unused(slot, monotonic())

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
        if conn.is_connected():
            conn.close()

    def _fileno(self, conn: C) -> int | None:
        return sockets.fileno(_raw(conn))

    def _is_alive(self, conn: C) -> bool:
        slot = self.slots_by_id.get(id(conn))
        if slot is not None and slot.uses == 1:  # new: what lies unread is the server's greeting
            self._runtime.hangups.poll()
            # Never idle, it comes from open(): what is born expired would be opened without end.
            return slot.close_reason is None and not (slot.idled and _says(conn.is_expired, True))
        if _says(conn.is_expired, True) or _says(conn.is_connected, False):
            return False
        # Each time, as after a reconnect it is another socket
        why_unusable = sockets.make_probe(_raw(conn))
        return why_unusable is None or not why_unusable()

    def _close_idle(self, slots: list[Slot]) -> None:
        """Close those of *slots* that are (still) idle, and wait until they are closed."""
        now = monotonic()
        for slot in slots:
            self._runtime.scheduler.dismiss(slot, Reason.DISCARDED, now)
        while any(slot.state is CLOSING for slot in slots):
            if not self._runtime._wait_for_change(self._bucket, now + CLOSE_TIMEOUT):
                break


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
