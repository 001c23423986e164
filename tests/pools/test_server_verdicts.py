"""What real servers say when they refuse, and what the pool makes of it.

PostgreSQL gives no SQLSTATE to a client that has not logged in, so its text has to do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import gevent
import psycopg
import pymysql
import pytest

from geventpool import Backoff, ConnectionPool, PoolDown, PoolTimeout, Verdict
from geventpool.events import Reason
from support.own_servers import OwnPostgres
from support.servers import closed_port, require_server
from support.waiting import until

SUFFIX = os.getpid()  # several runs of the suite share the server
QUICK = Backoff(first=0.01, longest=0.05)


class Postgres(ConnectionPool[Any]):
    user, dbname = "postgres", "test"
    address: tuple[str, int] | None = None

    def _new_connection(self) -> Any:
        host, port = self.address or require_server("postgres")
        return psycopg.connect(
            host=host, port=port, user=self.user, dbname=self.dbname, autocommit=True
        )

    def _classify_error(self, error: Exception) -> Verdict:
        text = str(error)
        if "too many connections" in text or "too many clients" in text:
            return Verdict.SERVER_FULL
        if "does not exist" in text and isinstance(error, psycopg.OperationalError):
            return Verdict.FATAL
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            return Verdict.WRONG_SERVER
        return super()._classify_error(error)


@pytest.fixture
def admin() -> Iterator[Any]:
    host, port = require_server("postgres")
    with psycopg.connect(
        host=host, port=port, user="postgres", dbname="test", autocommit=True
    ) as conn:
        yield conn


@pytest.fixture
def limited(admin: Any) -> Iterator[str]:
    """A role that may have two connections."""
    role = f"limited_{SUFFIX}"
    admin.execute(f"drop role if exists {role}")
    admin.execute(f"create role {role} login connection limit 2")
    yield role
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (role,)
    )
    admin.execute(f"drop role {role}")


def make(size: int, user: str = "postgres", dbname: str = "test", **settings: Any) -> Postgres:
    kind = type("Made", (Postgres,), {"user": user, "dbname": dbname})
    return kind(size, (psycopg.OperationalError,), **settings)  # type: ignore[no-any-return]


def pid_of(conn: Any) -> int:
    return int(conn.execute("select pg_backend_pid()").fetchone()[0])


def test_an_unknown_database_is_told_at_once_and_when_it_is_there_the_pool_is_back(
    admin: Any,
) -> None:
    dbname = f"new_{SUFFIX}"
    admin.execute(f"drop database if exists {dbname}")
    with make(1, dbname=dbname, backoff=QUICK) as pool:
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            pool.acquire()
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            pool.acquire()
        assert time.monotonic() - began < 10
        admin.execute(f"create database {dbname}")
        try:
            until(lambda: pool.stats().idle == 1)
            with pool.get(timeout=5.0) as conn:
                assert conn.info.dbname == dbname
        finally:
            pool.close()
            until(lambda: not sessions(admin, dbname))
            admin.execute(f"drop database {dbname}")


def sessions(admin: Any, dbname: str) -> int:
    query = "select count(*) from pg_stat_activity where datname = %s"
    return int(admin.execute(query, (dbname,)).fetchone()[0])


def test_a_wrong_password_is_told_at_once() -> None:
    host, port = require_server("mariadb")
    user = f"secret_{SUFFIX}"

    class MariaDb(ConnectionPool[Any]):
        def _new_connection(self) -> Any:
            return pymysql.connect(host=host, port=port, user=user, password="wrong")

        def _classify_error(self, error: Exception) -> Verdict:
            denied = isinstance(error, pymysql.err.OperationalError) and error.args[0] == 1045
            return Verdict.FATAL if denied else super()._classify_error(error)

    root = pymysql.connect(host=host, port=port, user="root", database="test")
    try:
        with root.cursor() as cursor:
            cursor.execute(f"create or replace user {user} identified by 'right'")
        with MariaDb(2) as pool:
            for _ in range(3):
                with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
                    pool.acquire()
            assert pool.stats().refused_down == 3
            assert pool.stats().dialed <= 2
    finally:
        with root.cursor() as cursor:
            cursor.execute(f"drop user {user}")
        root.close()


def test_too_many_connections_are_no_outage_and_callers_share_what_there_is(limited: str) -> None:
    with make(5, user=limited, down_after=0.2) as pool:
        held = [pool.acquire(), pool.acquire()]
        waiting = [gevent.spawn(pool.acquire) for _ in range(2)]
        until(lambda: pool.stats().dial_failed > 0 and not pool.stats().connecting)
        dialed = pool.stats().dialed
        with pytest.raises(PoolTimeout) as late:
            pool.acquire(timeout=0.3)
        assert "too many connections" in str(late.value.__cause__)
        assert pool.stats().dialed <= dialed + 1, "no more than one a second"
        for conn in held:
            pool.release(conn)

        served = [greenlet.get(timeout=5) for greenlet in waiting]

        assert {pid_of(conn) for conn in served} == {pid_of(conn) for conn in held}
        assert pool.stats().refused_down == 0
        for conn in served:
            pool.release(conn)


@pytest.mark.slow
def test_when_the_server_has_room_again_the_pool_asks_for_one_more(
    limited: str, admin: Any
) -> None:
    with make(3, user=limited) as pool:
        until(lambda: pool.stats().dial_failed > 0)
        # Two that log in together may both be refused, as each counts the other.
        until(lambda: pool.stats().idle == 2, seconds=10)
        admin.execute(f"alter role {limited} connection limit 10")
        until(lambda: pool.stats().idle == 3, seconds=10)


def test_after_a_read_only_error_all_sessions_are_replaced(admin: Any) -> None:
    with make(4) as pool:
        pool.fill()
        conns = [pool.acquire() for _ in range(4)]
        old = {pid_of(conn) for conn in conns}
        for conn in conns[1:]:
            pool.release(conn)
        conns[0].execute("set default_transaction_read_only = on")

        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            try:
                conns[0].execute("create table never (n int)")
            finally:
                pool.release(conns[0])
        until(lambda: pool.stats().closed[Reason.DRAINED] == 3)
        pool.fill()

        fresh = [pool.acquire() for _ in range(4)]
        assert old.isdisjoint({pid_of(conn) for conn in fresh})
        for conn in fresh:
            pool.release(conn)


def test_a_server_that_is_away_is_told_after_down_after() -> None:
    with closed_port() as address:
        kind = type("Away", (Postgres,), {"address": address})
        with kind(2, backoff=QUICK, down_after=0.2) as pool:
            with pytest.raises(PoolDown, match="refused") as told:
                pool.acquire()
            assert isinstance(told.value.__cause__, psycopg.OperationalError)


@pytest.mark.slow
def test_a_wrong_password_of_postgresql_is_told_until_it_is_mended() -> None:
    with OwnPostgres() as server:
        with psycopg.connect(**server.login, autocommit=True) as conn:
            conn.execute("create role clerk login password 'right'")
            rules = server.data / "pg_hba.conf"
            rules.write_text("host all postgres all trust\nhost all clerk all scram-sha-256\n")
            conn.execute("select pg_reload_conf()")

        class Clerk(ConnectionPool[Any]):
            def _new_connection(self) -> Any:
                login = {**server.login, "user": "clerk", "password": "changed"}
                return psycopg.connect(**login, autocommit=True)

            def _classify_error(self, error: Exception) -> Verdict:
                denied = "password authentication failed" in str(error)
                return Verdict.FATAL if denied else super()._classify_error(error)

        with Clerk(2, (psycopg.OperationalError,), backoff=QUICK) as pool:
            until(lambda: pool.stats().dial_failed > 0)
            for _ in range(5):
                with pytest.raises(psycopg.OperationalError, match="password authentication"):
                    pool.acquire()
            assert pool.stats().refused_down == 5
            with psycopg.connect(**server.login, autocommit=True) as conn:
                conn.execute("alter role clerk password 'changed'")
            until(lambda: pool.stats().idle == 2)
            with pool.get(timeout=0) as conn:
                assert conn.info.user == "clerk"


@pytest.mark.slow
def test_while_postgresql_is_away_callers_are_told_and_it_is_back_with_the_server() -> None:
    with OwnPostgres() as server:

        class Own(ConnectionPool[Any]):
            def _new_connection(self) -> Any:
                return psycopg.connect(**server.login, autocommit=True)

        settings = {"backoff": QUICK, "down_after": 0.3}
        with Own(3, (psycopg.OperationalError,), **settings) as pool:
            pool.fill()
            server.stop()
            began = time.monotonic()
            with pytest.raises(PoolDown):
                while True:  # an idle one may be handed out before this host knows
                    with suppress(psycopg.OperationalError), pool.get() as conn:
                        conn.execute("select 1")
            assert time.monotonic() - began < 10
            server.start()
            until(lambda: pool.stats().idle == 3)
            with pool.get(timeout=0) as conn:
                assert conn.execute("select 1").fetchone() == (1,)
