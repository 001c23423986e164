"""contrib.psycopg and contrib.psycopg2, and PostgreSQL."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

import psycopg
import psycopg2

from support.contract import Adapter, Address
from support.own_servers import OwnPostgres, OwnServer

__all__ = ["Psycopg", "Psycopg2"]


class Postgres(Adapter):
    """What does not depend on the client."""

    server = "postgres"
    own_server = OwnPostgres
    options = ("max_connections=30", "log_min_messages=log", "log_disconnections=on")
    most = 27  # three are kept for superusers
    forgetful: ClassVar[Any] = {"discard_all": True}

    def dsn(self, address: Address, plain: bool) -> str:
        user = "contract" if plain else "postgres"
        return f"host={address[0]} port={address[1]} user={user} dbname=postgres"

    def execute(self, conn: Any, statement: str, *values: Any) -> Any:
        """Return the first column of the first row, if there is one."""
        with conn.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchone()[0] if cursor.description else None

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        wait = ", pg_sleep(%s)" if seconds else ""
        values = (token, seconds) if seconds else (token,)
        return str(self.execute(conn, f"select %s::text{wait}", *values))

    def session(self, conn: Any) -> Hashable:
        return conn.info.backend_pid  # type: ignore[no-any-return]

    def administer(self, address: Address, *statements: str) -> list[Any]:
        """Run them one by one over a connection of its own; the first column of the last one."""
        conn = psycopg2.connect(self.dsn(address, plain=False))
        try:
            conn.autocommit = True
            with conn.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return [row[0] for row in cursor.fetchall()] if cursor.description else []
        finally:
            conn.close()

    def prepare(self, server: OwnServer) -> None:
        make = "create role contract login"
        self.administer(server.address, make, "create table written (n int)")
        self.administer(server.address, "grant all on written to contract")

    def sessions(self, address: Address) -> set[Hashable]:
        return set(
            self.administer(
                address,
                "select pid from pg_stat_activity"
                " where backend_type = 'client backend' and pid <> pg_backend_pid()",
            )
        )

    def end_session(self, address: Address, session: Hashable) -> None:
        self.administer(address, f"select pg_terminate_backend({session})")

    def set_read_only(self, address: Address, on: bool) -> None:
        value = "on" if on else "off"
        alter = f"alter system set default_transaction_read_only = {value}"
        # The administrator's own session may be read-only by now.
        self.administer(address, "set default_transaction_read_only = off", alter)
        self.administer(address, "select pg_reload_conf()")

    def write(self, conn: Any) -> None:
        self.execute(conn, "insert into written values (1)")

    def leave(self, state: str, conn: Any) -> object:
        if state == "an open transaction":
            return self.execute(conn, "create temporary table left_open (n int)")
        if state == "a failed transaction":
            try:
                self.execute(conn, "select 1 / 0")
            except (psycopg.Error, psycopg2.Error):
                return None
        if state == "a cursor read by half":
            cursor = conn.cursor(name="left")
            cursor.execute("select generate_series(1, 10000)")
            cursor.fetchone()
            return cursor
        if state == "autocommit":
            conn.autocommit = True
            return None
        raise AssertionError(state)

    def remains(self, state: str, conn: Any) -> object:
        if state == "autocommit":
            return conn.autocommit
        return conn.info.transaction_status or self.execute(
            conn, "select to_regclass('left_open') is not null or exists (select from pg_cursors)"
        )

    def set_variable(self, conn: Any) -> None:
        self.execute(conn, "set geventpool.behind = 'left'")
        conn.commit()

    def variable(self, conn: Any) -> object:
        return self.execute(conn, "select current_setting('geventpool.behind', true)")


class Psycopg(Postgres):
    name = "psycopg"
    lost = (psycopg.OperationalError, psycopg.InterfaceError)
    refusal = psycopg.errors.ReadOnlySqlTransaction
    states = (
        *("an open transaction", "a failed transaction", "a cursor read by half", "autocommit"),
        *("a stream read by half", "a COPY read by half", "a row factory", "a pipeline"),
    )

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.psycopg import PsycopgPool

        return PsycopgPool(self.dsn(address, plain), size, **settings)

    def busy(self, address: Address) -> set[Hashable]:
        return set(
            self.administer(
                address,
                "select pid from pg_stat_activity"
                " where state = 'active' and backend_type = 'client backend'"
                " and pid <> pg_backend_pid()",
            )
        )

    def leave(self, state: str, conn: Any) -> object:
        if state == "a stream read by half":
            rows = conn.cursor().stream("select generate_series(1, 100000)")
            next(rows)
            return rows
        if state == "a COPY read by half":
            copy = conn.cursor().copy("copy (select generate_series(1, 100000)) to stdout")
            next(iter(copy.__enter__()))
            return copy
        if state == "a row factory":
            conn.row_factory = psycopg.rows.dict_row
            return None
        if state == "a pipeline":
            pipeline = conn.pipeline()
            pipeline.__enter__()
            return pipeline
        return super().leave(state, conn)

    def remains(self, state: str, conn: Any) -> object:
        if state == "a row factory":
            return conn.row_factory is psycopg.rows.dict_row
        if state == "a pipeline":
            return conn.pgconn.pipeline_status
        return super().remains(state, conn)


class Psycopg2(Postgres):
    name = "psycopg2"
    needs_patching = False
    lost = (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.DatabaseError)
    refusal = psycopg2.errors.ReadOnlySqlTransaction
    states = ("an open transaction", "a failed transaction", "a cursor read by half", "autocommit")

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.psycopg2 import Psycopg2Pool

        return Psycopg2Pool(self.dsn(address, plain), size, **settings)
