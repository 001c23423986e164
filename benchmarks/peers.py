"""The pools that are compared, each with its own way to lend a connection.

``make(size, connect, warm)`` of each returns a Peer with *size* connections at most, of which it
opens *warm* now (None: all), unless it only ever opens them when asked.  A connection is whatever
*connect* returns, without ``fileno()``, so that it is the pools that are measured.  Pools made for
threads run as in a program that uses gevent: monkey-patched.  Three of them insist on connections
of a certain shape: psycopg_pool, redis and urllib3 get a stand-in that answers, without I/O, what
the pool asks of it.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gevent.hub import Waiter, get_hub
from gevent.lock import BoundedSemaphore
from gevent.queue import LifoQueue

import geventpool

__all__ = [
    "PEERS",
    "Connection",
    "Peer",
    "make_geventpool",
    "make_gsocketpool",
    "make_hand_over",
    "version",
]

Connect = Callable[[], Any]


class Connection:
    """A connection to nowhere.  It opens at once and has no file descriptor."""

    def close(self, *args: object) -> None:
        """What it has of a database connection."""

    commit = rollback = ping = disconnect = connect = close


class Peer:
    """A pool in use: either *lease*, which is to be used in a ``with``, or *take* and *give*."""

    def __init__(
        self,
        lease: Callable[[], Any] | None = None,
        *,
        take: Callable[[], Any] | None = None,
        give: Callable[[Any], object] | None = None,
        pool: Any = None,
    ) -> None:
        self.take, self.give, self.pool = take, give, pool
        self.has_with = lease is not None
        self.lease = lease or self._with

    def close(self) -> None:
        """Have its threads end, where it has any."""
        if hasattr(self.pool, "close"):
            self.pool.close()

    @contextmanager
    def _with(self) -> Iterator[Any]:
        conn = self.take()
        try:
            yield conn
        finally:
            self.give(conn)

    def cycle(self, rounds: int) -> None:
        """Borrow and give back, *rounds* times."""
        if self.has_with:
            lease = self.lease
            for _ in range(rounds):
                with lease():
                    pass
        else:
            take, give = self.take, self.give
            for _ in range(rounds):
                give(take())

    def serve(self, tickets: Iterator[object], hold: Callable[[], object]) -> int:
        """Borrow, hold and give back once for each of the *tickets*, shared with others."""
        served = 0
        if self.has_with:
            lease = self.lease
            for _ in tickets:
                with lease():
                    hold()
                served += 1
        else:
            take, give = self.take, self.give
            for _ in tickets:
                conn = take()
                try:
                    hold()
                finally:
                    give(conn)
                served += 1
        return served


class HandOver:
    """The least that a fair pool must do, and no more: no timeout, no cancellation, no books.

    It is used as a pool is, in a ``with``; *take* and *give* are there for what would not.
    """

    def __init__(self, size: int, connect: Connect) -> None:
        self.idle = deque(connect() for _ in range(size))
        self.line: deque[Any] = deque()
        self.loop = get_hub().loop

    def take(self) -> Any:
        if self.idle:
            return self.idle.popleft()
        waiter = Waiter()
        self.line.append(waiter)
        return waiter.get()

    def give(self, conn: Any) -> None:
        if self.line:
            self.loop.run_callback(self.line.popleft().switch, conn)
        else:
            self.idle.append(conn)

    def get(self) -> _Hand:
        return _Hand(self)


class _Hand:
    """The least that a lease must do."""

    __slots__ = ("conn", "pool")

    def __init__(self, pool: HandOver) -> None:
        self.pool = pool

    def __enter__(self) -> Any:
        self.conn = conn = self.pool.take()
        return conn

    def __exit__(self, *exc_info: object) -> None:
        self.pool.give(self.conn)


def make_hand_over(size: int, connect: Connect, *, bare: bool = False) -> Peer:
    pool = HandOver(size, connect)
    return Peer(take=pool.take, give=pool.give) if bare else Peer(pool.get, pool=pool)


def make_geventpool(size: int, connect: Connect, warm: int | None = None) -> Peer:
    pool = geventpool.ConnectionPool(size, connect=connect, min_size=warm)
    if warm is None:
        pool.fill()
    return Peer(pool.get, pool=pool)


def make_lifo_queue(size: int, connect: Connect, warm: int | None = None) -> Peer:
    queue = LifoQueue()
    for _ in range(size):
        queue.put(connect())
    return Peer(take=queue.get, give=queue.put)


def make_semaphore(size: int, connect: Connect, warm: int | None = None) -> Peer:
    semaphore = BoundedSemaphore(size)
    idle = deque(connect() for _ in range(size))

    def take() -> Any:
        semaphore.acquire()
        return idle.pop()

    def give(conn: Any) -> None:
        idle.append(conn)
        semaphore.release()

    return Peer(take=take, give=give)


def make_gsocketpool(size: int, connect: Connect, warm: int | None = None) -> Peer:
    import gsocketpool

    class Wrapped(gsocketpool.Connection):
        def open(self) -> None:
            self.conn = connect()

        def close(self) -> None:
            self.conn.close()

        def get(self) -> Any:
            return self.conn

        def is_connected(self) -> bool:
            return True

    pool = gsocketpool.Pool(
        Wrapped,
        {},
        initial_connections=size if warm is None else warm,
        max_connections=size,
        reap_expired_connections=False,
    )
    return Peer(pool.connection, pool=pool)


def make_generic(size: int, connect: Connect, warm: int | None = None) -> Peer:
    import generic_connection_pool.threading as generic

    class Manager(generic.BaseConnectionManager[str, Any]):
        def create(self, endpoint: str, timeout: float | None = None) -> Any:
            return connect()

        def dispose(self, endpoint: str, conn: Any, timeout: float | None = None) -> None:
            conn.close()

    pool = generic.ConnectionPool(Manager(), min_idle=size, max_size=size, total_max_size=size)
    return Peer(lambda: pool.connection("server"), pool=pool)


def make_sqlalchemy(size: int, connect: Connect, warm: int | None = None) -> Peer:
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(connect, pool_size=size, max_overflow=0)
    return Peer(take=pool.connect, give=lambda conn: conn.close(), pool=pool)


def make_psycopg(size: int, connect: Connect, warm: int | None = None) -> Peer:
    import psycopg_pool

    class StandIn:
        pgconn: Any
        _pool = None

        @classmethod
        def connect(cls, conninfo: str, **kwargs: Any) -> StandIn:
            self = cls()
            self.pgconn, self.transaction_status = self, 0  # idle
            self.conn = connect()
            return self

        def close(self) -> None:
            self.conn.close()

    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    pool = psycopg_pool.ConnectionPool(
        connection_class=StandIn,
        min_size=size if warm is None else warm,
        max_size=size,
        open=True,
    )
    pool.wait()
    return Peer(take=pool.getconn, give=pool.putconn, pool=pool)


def make_urllib3(size: int, connect: Connect, warm: int | None = None) -> Peer:
    import urllib3

    class StandIn(Connection):
        is_connected = True

        def __init__(self, **kwargs: Any) -> None:
            self.conn = connect()

    class Pool(urllib3.HTTPConnectionPool):
        ConnectionCls = StandIn

    pool = Pool("localhost", maxsize=size, block=True)
    # The pool inside of it: what a request does before and after it talks.
    return Peer(take=pool._get_conn, give=pool._put_conn, pool=pool)


def make_redis(size: int, connect: Connect, warm: int | None = None) -> Peer:
    import os

    import redis

    class StandIn:
        conn = None

        def __init__(self, **kwargs: Any) -> None:
            self.pid = os.getpid()

        def connect(self) -> None:
            if self.conn is None:
                self.conn = connect()

        def disconnect(self, *args: object) -> None:
            self.conn = None

        def can_read(self, timeout: float = 0) -> bool:
            return False

        def should_reconnect(self) -> bool:
            return False

    pool = redis.BlockingConnectionPool(max_connections=size, connection_class=StandIn)
    return Peer(take=pool.get_connection, give=pool.release, pool=pool)


def make_dbutils(size: int, connect: Connect, warm: int | None = None) -> Peer:
    from dbutils.pooled_db import PooledDB

    def creator() -> Any:
        return connect()

    creator.threadsafety = 2  # type: ignore[attr-defined]
    pool = PooledDB(
        creator,
        mincached=size if warm is None else warm,
        maxconnections=size,
        blocking=True,
        ping=0,
        failures=OSError,
    )
    return Peer(take=pool.connection, give=lambda conn: conn.close(), pool=pool)


#: Name of the distribution -> how to make its pool.
PEERS: dict[str, Callable[..., Peer]] = {
    "geventpool": make_geventpool,
    "gevent LifoQueue": make_lifo_queue,
    "gevent BoundedSemaphore + deque": make_semaphore,
    "gsocketpool": make_gsocketpool,
    "urllib3": make_urllib3,
    "DBUtils": make_dbutils,
    "psycopg_pool": make_psycopg,
    "redis": make_redis,
    "SQLAlchemy": make_sqlalchemy,
    "generic-connection-pool": make_generic,
}


def version(name: str) -> str:
    """The installed version of the peer called *name*."""
    if name == "geventpool":
        return geventpool.__version__  # run from the tree, it need not be installed
    return importlib.metadata.version(name.split()[0])
