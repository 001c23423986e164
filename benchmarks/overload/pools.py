"""The pools of ``overload``: ours as it is and with each cure, and what others have.

Each is made for SIZE connections of a server, and lent as its documentation has it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import geventpool
from benchmarks.traffic import Lender

__all__ = [
    "ALL_CURES",
    "BOTH",
    "CODEL",
    "DEADLINE",
    "OURS",
    "PEERS",
    "PLAIN",
    "SALVAGE",
    "SIZE",
    "Make",
    "Server",
]

SIZE = 10


class Server(Protocol):
    """What sessions can be had of."""

    dials: int

    def connect(self) -> Any: ...

    def slow(self, factor: float) -> None: ...


Make = Callable[[Server], Lender]


class Pool(geventpool.ConnectionPool[Any]):
    """Sessions of a server."""

    def _socket(self, conn: Any) -> Any:
        return conn.sock  # None in virtual time


class SalvagingPool(Pool):
    def _salvage_connection(self, conn: Any, error: BaseException) -> None:
        conn.cancel()


def _ours(
    pool_class: type[Pool] = Pool, bound: Any = None, **settings: Any
) -> Callable[[Server], Lender]:
    def make(server: Server) -> Lender:
        pool = pool_class(SIZE, connect=server.connect, **settings)
        pool.fill()
        lender = Lender(pool.get, pool.close)
        if bound is not None:
            lender.bound = bound
        return lender

    return make


PLAIN = "no cure"
CODEL = "CoDel"
SALVAGE = "salvage"
DEADLINE = "Deadline"
BOTH = "salvage, Deadline"
ALL_CURES = "all three"

_SHEDDING: dict[str, Any] = {"overload": geventpool.CoDel(target=0.1, interval=1.0)}

#: This library's pool as it is, first come, first served; and with what it has against overload.
OURS: dict[str, Make] = {
    PLAIN: _ours(),
    CODEL: _ours(**_SHEDDING),
    SALVAGE: _ours(SalvagingPool),
    DEADLINE: _ours(bound=geventpool.Deadline),
    BOTH: _ours(SalvagingPool, geventpool.Deadline),
    ALL_CURES: _ours(SalvagingPool, geventpool.Deadline, **_SHEDDING),
}


# Others


def _make_sqlalchemy(server: Server) -> Lender:
    from sqlalchemy.exc import TimeoutError as QueueTimeout
    from sqlalchemy.pool import QueuePool

    class Session:
        """What SQLAlchemy takes for a connection of a driver."""

        def __init__(self) -> None:
            self.session = server.connect()

        def rollback(self) -> None: ...

        def close(self) -> None:
            self.session.close()

    pool = QueuePool(Session, pool_size=SIZE, max_overflow=0)

    @contextlib.contextmanager
    def lend() -> Iterator[Any]:
        conn: Any = pool.connect()
        try:
            yield conn.dbapi_connection.session
        except BaseException:
            conn.invalidate()  # as an Engine does if a statement is cut short
            raise
        finally:
            conn.close()

    return Lender(lend, pool.dispose, refusals=(QueueTimeout, OSError))


def _make_psycopg(server: Server) -> Lender:
    import psycopg_pool

    class Session:
        """What psycopg_pool takes for a connection of psycopg."""

        pgconn: Any
        closed = False
        _pool = None

        @classmethod
        def connect(cls, conninfo: str, **kwargs: Any) -> Session:
            self = cls()
            self.session, self.pgconn = server.connect(), self
            return self

        @property
        def transaction_status(self) -> int:
            if self.closed:
                return 4  # unknown
            return 1 if self.session.busy else 0  # active, idle

        def close(self) -> None:
            self.closed = True
            self.session.close()

    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    pool = psycopg_pool.ConnectionPool(
        connection_class=Session,  # type: ignore[type-var]
        min_size=SIZE,
        max_size=SIZE,
        open=True,
    )
    pool.wait()

    @contextlib.contextmanager
    def lend() -> Iterator[Any]:
        conn: Any = pool.getconn()
        try:
            yield conn.session
        finally:
            pool.putconn(conn)

    return Lender(lend, pool.close, refusals=(psycopg_pool.PoolTimeout, OSError))


def _make_redis(server: Server) -> Lender:
    import redis

    class Session:
        """What redis-py's pool takes for its connection."""

        def __init__(self, **kwargs: Any) -> None:
            self.pid = os.getpid()
            self.session: Any = None

        def connect(self) -> None:
            if self.session is None:
                self.session = server.connect()

        def disconnect(self, *args: object) -> None:
            if self.session is not None:
                self.session.close()
                self.session = None

        def can_read(self, timeout: float = 0) -> bool:
            return False

        def should_reconnect(self) -> bool:
            return False

    pool: Any = redis.BlockingConnectionPool(max_connections=SIZE, connection_class=Session)

    @contextlib.contextmanager
    def lend() -> Iterator[Any]:
        conn = pool.get_connection()
        try:
            yield conn.session
        except BaseException:
            conn.disconnect()  # as its connection does if a reply is not read
            raise
        finally:
            pool.release(conn)

    return Lender(lend, pool.disconnect, refusals=(redis.ConnectionError, OSError))


#: Name of the distribution -> how to make its pool.
PEERS: dict[str, Make] = {
    "SQLAlchemy": _make_sqlalchemy,
    "psycopg_pool": _make_psycopg,
    "redis": _make_redis,
}
