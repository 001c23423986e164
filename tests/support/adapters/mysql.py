"""contrib.pymysql, and MariaDB."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

import pymysql

from support.contract import Adapter, Address
from support.own_servers import OwnMariaDb, OwnServer

__all__ = ["PyMySQL"]


class PyMySQL(Adapter):
    name = "PyMySQL"
    needs_patching = False
    server = "mariadb"
    own_server = OwnMariaDb
    options = ("--max-connections=30", "--log-warnings=2")
    most = 30
    lost = (pymysql.err.OperationalError, pymysql.err.InterfaceError)
    refusal = pymysql.err.OperationalError
    states = (
        *("an open transaction", "a failed transaction", "a result read by half"),
        *("autocommit", "another database"),
    )
    forgetful: ClassVar[Any] = {"reset_session": True}
    protocol_errors = r"packets out of order|reading communication packets|unknown command"

    def login(self, address: Address, plain: bool) -> dict[str, Any]:
        user = "contract" if plain else "root"
        return {"host": address[0], "port": address[1], "user": user, "ssl_disabled": True}

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.pymysql import PyMySQLPool

        login = {**self.login(address, plain), "database": "information_schema"}
        return PyMySQLPool(size, **login, **settings)

    def execute(self, conn: Any, statement: str, *values: Any) -> Any:
        """Return the first column of the first row, if there is one."""
        with conn.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchone()[0] if cursor.description else None

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        wait = ", sleep(%s)" if seconds else ""
        values = (token, seconds) if seconds else (token,)
        return str(self.execute(conn, f"select %s{wait}", *values))

    def session(self, conn: Any) -> Hashable:
        return conn.thread_id()  # type: ignore[no-any-return]

    def administer(self, address: Address, *statements: str) -> list[Any]:
        """Run them one by one over a connection of its own; the first column of the last one."""
        with pymysql.connect(**self.login(address, plain=False), autocommit=True) as conn:
            with conn.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return [row[0] for row in cursor.fetchall()] if cursor.description else []

    def prepare(self, server: OwnServer) -> None:
        make = ("create user contract", "create database contract")
        self.administer(server.address, *make, "grant all on contract.* to contract")
        self.administer(server.address, "create table contract.written (n int)")

    def sessions(self, address: Address) -> set[Hashable]:
        return set(
            self.administer(
                address,
                "select id from information_schema.processlist"
                " where id <> connection_id() and command <> 'Daemon'",
            )
        )

    def busy(self, address: Address) -> set[Hashable]:
        return set(
            self.administer(
                address,
                "select id from information_schema.processlist"
                " where command = 'Query' and id <> connection_id()",
            )
        )

    def end_session(self, address: Address, session: Hashable) -> None:
        self.administer(address, f"kill {session}")

    def set_read_only(self, address: Address, on: bool) -> None:
        self.administer(address, f"set global read_only = {int(on)}")

    def write(self, conn: Any) -> None:
        self.execute(conn, "insert into contract.written values (1)")

    def leave(self, state: str, conn: Any) -> object:
        if state == "an open transaction":
            return conn.begin()
        if state == "a failed transaction":
            conn.begin()
            try:
                self.execute(conn, "select no_such_thing()")
            except pymysql.err.OperationalError:
                return None
        if state == "a result read by half":
            cursor = conn.cursor(pymysql.cursors.SSCursor)
            cursor.execute("select seq from mysql.seq_1_to_100000")
            cursor.fetchone()
            return cursor
        if state == "autocommit":
            return conn.autocommit(True)
        if state == "another database":
            return conn.select_db("mysql")
        raise AssertionError(state)

    def remains(self, state: str, conn: Any) -> object:
        if state == "autocommit":
            return self.execute(conn, "select @@autocommit")
        if state == "another database":
            return self.execute(conn, "select database() = 'mysql'")
        return self.execute(conn, "select @@in_transaction")

    def set_variable(self, conn: Any) -> None:
        self.execute(conn, "set @left_behind = 1")

    def variable(self, conn: Any) -> object:
        return self.execute(conn, "select @left_behind")
