"""contrib.sqlalchemy, with each driver, and the server of that."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, suppress
from typing import Any, ClassVar

from sqlalchemy import create_engine, exc, text
from sqlalchemy.engine import URL

from support.adapters.mysql import PyMySQL
from support.adapters.postgres import Psycopg, Psycopg2
from support.contract import Adapter, Address
from support.waiting import until

__all__ = ["ENGINES"]


class EnginePool:
    """The pool of an engine, with the verbs that the contract wants; closed with it."""

    def __init__(self, url: URL, size: int, **settings: Any) -> None:
        from geventpool.contrib.sqlalchemy import GeventPool

        self.engine = create_engine(
            url,
            poolclass=GeventPool,
            pool_size=size,
            min_size=size,
            max_overflow=0,
            pool_timeout=settings.pop("timeout", 30.0),
            connect_args=settings.pop("connect_args"),
            pool_settings=settings,
        )

    def __enter__(self) -> EnginePool:
        with suppress(exc.OperationalError):
            self.engine.connect().close()  # nothing is opened before
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self.connections.close()
        self.engine.dispose(close=False)

    def fill(self, timeout: float = 30.0) -> None:
        # Until a dial succeeds, who waits is sent away.
        until(lambda: not self._standing().failing, "a dial that succeeds", seconds=timeout)
        self.connections.fill(timeout)

    @property
    def connections(self) -> Any:
        return self.engine.pool.connections  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connections, name)


class ByEngine(Adapter):
    """What does not depend on the driver; *conn* is a Connection of SQLAlchemy's."""

    needs_patching = True
    unavailable = (exc.TimeoutError, exc.OperationalError)
    lost = (exc.DBAPIError, exc.PendingRollbackError)
    forgetful = None
    set_variable = Adapter.set_variable
    variable = Adapter.variable
    states = (
        *("an open transaction", "a failed transaction", "a result read by half"),
        "an isolation level",
    )
    failing = "select 1 / 0"
    connect_args: ClassVar[dict[str, Any]] = {}

    def url(self, address: Address, plain: bool) -> URL:
        raise NotImplementedError

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        arguments = {"connect_args": self.connect_args, **settings}
        return EnginePool(self.url(address, plain), size, **arguments)

    def lease(self, pool: Any) -> AbstractContextManager[Any]:
        return pool.engine.connect()  # type: ignore[no-any-return]

    def execute(self, conn: Any, statement: str, **values: Any) -> Any:
        result = conn.execute(text(statement), values)
        return result.scalar() if result.returns_rows else None

    def leave(self, state: str, conn: Any) -> object:
        if state == "an open transaction":
            return self.execute(conn, "create temporary table left_open (n int)")
        if state == "a failed transaction":
            self.execute(conn, "create temporary table left_open (n int)")
            try:
                return self.execute(conn, self.failing)
            except exc.DBAPIError:
                return None
        if state == "a result read by half":
            result = conn.execution_options(stream_results=True).execute(text(self.many))
            result.fetchone()
            return result
        if state == "an isolation level":
            return conn.execution_options(isolation_level="AUTOCOMMIT")
        raise AssertionError(state)

    many: str


class PostgresEngine(ByEngine):
    many = "select generate_series(1, 100000)"
    refusal = exc.InternalError
    driver: str

    def url(self, address: Address, plain: bool) -> URL:
        user = "contract" if plain else "postgres"
        return URL.create(f"postgresql+{self.driver}", user, None, *address, "postgres")

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        wait = ", pg_sleep(:seconds)" if seconds else ""
        values = {"token": token, **({"seconds": seconds} if seconds else {})}
        return str(self.execute(conn, f"select cast(:token as text){wait}", **values))

    def session(self, conn: Any) -> Hashable:
        return conn.connection.driver_connection.info.backend_pid  # type: ignore[no-any-return]

    def remains(self, state: str, conn: Any) -> object:
        driver = conn.connection.driver_connection
        if state == "an isolation level":
            return driver.autocommit
        return driver.info.transaction_status or self.execute(
            conn, "select to_regclass('left_open') is not null or exists (select from pg_cursors)"
        )


class PsycopgEngine(PostgresEngine, Psycopg):
    name = "SQLAlchemy with psycopg"
    driver = "psycopg"
    busy = Adapter.busy  # SQLAlchemy closes the connection, and the server goes on for a while


class Psycopg2Engine(PostgresEngine, Psycopg2):
    name = "SQLAlchemy with psycopg2"
    driver = "psycopg2"


class PyMySQLEngine(ByEngine, PyMySQL):
    name = "SQLAlchemy with PyMySQL"
    refusal = exc.OperationalError
    many = "select seq from mysql.seq_1_to_100000"
    failing = "select no_such_thing()"
    connect_args: ClassVar[dict[str, Any]] = {"ssl_disabled": True}
    busy = Adapter.busy

    def url(self, address: Address, plain: bool) -> URL:
        user = "contract" if plain else "root"
        return URL.create("mysql+pymysql", user, None, *address, "information_schema")

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        wait = ", sleep(:seconds)" if seconds else ""
        values = {"token": token, **({"seconds": seconds} if seconds else {})}
        return str(self.execute(conn, f"select :token{wait}", **values))

    def session(self, conn: Any) -> Hashable:
        return conn.connection.driver_connection.thread_id()  # type: ignore[no-any-return]

    def leave(self, state: str, conn: Any) -> object:
        if state in ("an open transaction", "a failed transaction"):
            conn.connection.driver_connection.begin()
            if state == "an open transaction":
                return None
            try:
                return self.execute(conn, self.failing)
            except exc.DBAPIError:
                return None
        return super().leave(state, conn)

    def remains(self, state: str, conn: Any) -> object:
        driver = conn.connection.driver_connection
        if state == "an isolation level":
            return driver.get_autocommit()
        with driver.cursor() as cursor:
            cursor.execute("select @@in_transaction")
            return cursor.fetchone()[0]


ENGINES: list[Adapter] = [PsycopgEngine(), Psycopg2Engine(), PyMySQLEngine()]
