"""contrib.django, with both backends, as its requests use them: each by a wrapper of its own."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import django
from django.conf import settings
from django.db import utils

from support.adapters.mysql import PyMySQL
from support.adapters.postgres import Psycopg
from support.contract import Adapter, Address
from support.waiting import until

__all__ = ["BACKENDS", "Database"]

if not settings.configured:
    settings.configure(USE_TZ=True, DATABASES={}, LOGGING_CONFIG=None)
    django.setup()

_numbers = itertools.count(1)


class Database:
    """A database of Django's settings, with the verbs of its pool that the contract wants."""

    def __init__(self, backend: str, pool: Any, **settings: Any) -> None:
        from django.db.utils import ConnectionHandler, load_backend

        self.alias = f"contract{next(_numbers)}"
        settings = {"ENGINE": f"geventpool.contrib.django.{backend}", **settings}
        settings["OPTIONS"] = {**settings.get("OPTIONS", {}), "pool": pool}
        databases = {"default": {}, self.alias: settings}
        self.settings = ConnectionHandler(databases).settings[self.alias]
        self.wrapper_class: Any = load_backend(settings["ENGINE"]).DatabaseWrapper

    def wrapper(self) -> Any:
        """One as each greenlet has it."""
        return self.wrapper_class(self.settings, self.alias)

    @contextmanager
    def request(self) -> Iterator[Any]:
        """One that is used as by a request, and gives its connection back at the end."""
        wrapper = self.wrapper()
        try:
            wrapper.ensure_connection()
            yield wrapper
        finally:
            wrapper.close()

    @property
    def pool(self) -> Any:
        return self.wrapper().pool

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self.wrapper().close_pool()

    def fill(self, timeout: float = 30.0) -> None:
        # Until a dial succeeds, who waits is sent away.
        until(lambda: not self._standing().failing, "a dial that succeeds", seconds=timeout)
        self.pool.fill(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)


class Backend(Adapter):
    """What does not depend on the database; *conn* is a DatabaseWrapper of Django's."""

    needs_patching = True
    backend: str
    unavailable = (utils.OperationalError,)
    lost = (utils.Error,)
    states = ("an open transaction", "a failed transaction", "a result read by half", "autocommit")

    def database(self, address: Address, plain: bool) -> dict[str, Any]:
        raise NotImplementedError

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        pool = {"size": size, "min_size": size, **settings}
        return Database(self.backend, pool, **self.database(address, plain))

    def lease(self, pool: Any) -> Any:
        return pool.request()

    def leave(self, state: str, conn: Any) -> object:
        conn.set_autocommit(False)
        if state == "an open transaction":
            self.execute(conn, self.beginning)
        elif state == "a failed transaction":
            with suppress(utils.Error):
                self.execute(conn, "select no_such_thing()")
        elif state == "a result read by half":
            cursor = conn.chunked_cursor()
            cursor.execute(self.many)
            cursor.fetchone()
            return cursor
        return None

    beginning: str
    many: str


class PostgresBackend(Backend, Psycopg):
    name = "Django with PostgreSQL"
    backend = "postgresql"
    refusal = utils.InternalError
    beginning = "create temporary table left_open (n int)"
    many = "select generate_series(1, 100000)"

    def database(self, address: Address, plain: bool) -> dict[str, Any]:
        host, port = address
        user = "contract" if plain else "postgres"
        return {"NAME": "postgres", "HOST": host, "PORT": str(port), "USER": user}

    def session(self, conn: Any) -> Hashable:
        return conn.connection.info.backend_pid  # type: ignore[no-any-return]

    def remains(self, state: str, conn: Any) -> object:
        if state == "autocommit":
            return not conn.connection.autocommit
        status = conn.connection.info.transaction_status
        return status or Psycopg.remains(self, state, conn.connection)


class MySQLBackend(Backend, PyMySQL):
    name = "Django with MariaDB"
    backend = "mysql"
    refusal = utils.OperationalError
    beginning = "start transaction"
    many = "select seq from mysql.seq_1_to_100000"

    def database(self, address: Address, plain: bool) -> dict[str, Any]:
        host, port = address
        user = "contract" if plain else "root"
        options = {"ssl_disabled": True}
        database = {"NAME": "information_schema", "HOST": host, "PORT": str(port), "USER": user}
        return {**database, "OPTIONS": options}

    def session(self, conn: Any) -> Hashable:
        return conn.connection.thread_id()  # type: ignore[no-any-return]

    def remains(self, state: str, conn: Any) -> object:
        if state == "autocommit":
            return not conn.connection.get_autocommit()
        return self.execute(conn, "select @@in_transaction")


BACKENDS: list[Adapter] = [PostgresBackend(), MySQLBackend()]
