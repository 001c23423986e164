"""Pools for databases: each function makes one of so many connections, and returns how to ask.

All of one client do the same there: the same statement, in a transaction or not.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from benchmarks.clients.load import Ask

POSTGRES = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/postgres")
MYSQL: dict[str, Any] = {
    "host": os.environ.get("MYSQL_HOST", "127.0.0.1"),
    "port": int(os.environ.get("MYSQL_PORT", "3306")),
    "user": "root",
    "autocommit": True,
}
WAIT = 30.0  # seconds for a connection, at most


# psycopg 3: a transaction for each


def _ask_psycopg(pool: Any) -> Ask:
    def ask(token: str, seconds: float) -> str:
        with pool.connection() as conn:
            if seconds:
                conn.execute("select pg_sleep(%s)", (seconds,))
            return conn.execute("select %s", (token,)).fetchone()[0]

    return ask


def psycopg_ours(size: int) -> Ask:
    from geventpool.contrib.psycopg import PsycopgPool

    pool = PsycopgPool(POSTGRES, size, timeout=WAIT)
    pool.fill()
    return _ask_psycopg(pool)


def psycopg_pool(size: int) -> Ask:
    import psycopg_pool

    pool = psycopg_pool.ConnectionPool(
        POSTGRES, min_size=size, max_size=size, timeout=WAIT, open=True
    )
    pool.wait()
    return _ask_psycopg(pool)


# psycopg2: a transaction for each


def _ask_psycopg2(conn: Any, token: str, seconds: float) -> str:
    with conn.cursor() as cursor:
        if seconds:
            cursor.execute("select pg_sleep(%s)", (seconds,))
        cursor.execute("select %s", (token,))
        return cursor.fetchone()[0]


def psycopg2_ours(size: int) -> Ask:
    from geventpool.contrib.psycopg2 import Psycopg2Pool

    pool = Psycopg2Pool(POSTGRES, size, timeout=WAIT)
    pool.fill()

    def ask(token: str, seconds: float) -> str:
        with pool.connection() as conn:
            return _ask_psycopg2(conn, token, seconds)

    return ask


def psycopg2_dbutils(size: int) -> Ask:
    import psycopg2
    from dbutils.pooled_db import PooledDB
    from psycogreen.gevent import patch_psycopg

    patch_psycopg()
    pool = PooledDB(
        psycopg2, dsn=POSTGRES, mincached=size, maxcached=size, maxconnections=size, blocking=True
    )

    def ask(token: str, seconds: float) -> str:
        with closing(pool.connection()) as conn:
            answer = _ask_psycopg2(conn, token, seconds)
            conn.commit()
            return answer

    return ask


# PyMySQL: autocommit


def _ask_pymysql(conn: Any, token: str, seconds: float) -> str:
    with conn.cursor() as cursor:
        if seconds:
            cursor.execute("select sleep(%s)", (seconds,))
        cursor.execute("select %s", (token,))
        return cursor.fetchone()[0]


def pymysql_ours(size: int) -> Ask:
    from geventpool.contrib.pymysql import PyMySQLPool

    pool = PyMySQLPool(size, **MYSQL, ssl_disabled=True, timeout=WAIT)
    pool.fill()

    def ask(token: str, seconds: float) -> str:
        with pool.get() as conn:
            return _ask_pymysql(conn, token, seconds)

    return ask


def pymysql_dbutils(size: int) -> Ask:
    import pymysql
    from dbutils.pooled_db import PooledDB

    pool = PooledDB(
        pymysql,
        **MYSQL,
        ssl_disabled=True,
        mincached=size,
        maxcached=size,
        maxconnections=size,
        blocking=True,
    )

    def ask(token: str, seconds: float) -> str:
        with closing(pool.connection()) as conn:
            return _ask_pymysql(conn, token, seconds)

    return ask


# SQLAlchemy, with psycopg 3: a transaction for each


def _ask_sqlalchemy(**arguments: Any) -> Ask:
    import sqlalchemy

    url = POSTGRES.replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(url, pool_size=10, max_overflow=0, **arguments)
    wait = sqlalchemy.text("select pg_sleep(:seconds)")
    answer = sqlalchemy.text("select cast(:token as text)")

    def ask(token: str, seconds: float) -> str:
        with engine.begin() as conn:
            if seconds:
                conn.execute(wait, {"seconds": seconds})
            return conn.execute(answer, {"token": token}).scalar_one()

    return ask


def sqlalchemy_ours(size: int) -> Ask:
    from geventpool.contrib.sqlalchemy import GeventPool

    return _ask_sqlalchemy(poolclass=GeventPool, pool_timeout=WAIT)


def sqlalchemy_queue(size: int) -> Ask:
    return _ask_sqlalchemy(pool_timeout=WAIT)


# Django: autocommit, and the connection closed at the end of each request


def _ask_django(engine: str, **options: Any) -> Ask:
    import django
    from django.conf import settings

    url = urlsplit(POSTGRES)
    database = {
        "ENGINE": engine,
        "HOST": url.hostname,
        "PORT": url.port or 5432,
        "USER": url.username,
        "PASSWORD": url.password or "",
        "NAME": url.path.strip("/"),
        "OPTIONS": options,
        "CONN_MAX_AGE": 0,
    }
    settings.configure(DATABASES={"default": database})
    django.setup()
    from django.db import connection

    def ask(token: str, seconds: float) -> str:
        try:
            with connection.cursor() as cursor:
                if seconds:
                    cursor.execute("select pg_sleep(%s)", (seconds,))
                cursor.execute("select %s", (token,))
                return cursor.fetchone()[0]
        finally:
            connection.close()

    return ask


def django_ours(size: int) -> Ask:
    return _ask_django("geventpool.contrib.django.postgresql", pool={"size": size, "timeout": WAIT})


def django_own(size: int) -> Ask:
    pool = {"min_size": size, "max_size": size, "timeout": WAIT}
    return _ask_django("django.db.backends.postgresql", pool=pool)


def django_geventpool(size: int) -> Ask:
    backend = "django_db_geventpool.backends.postgresql_psycopg3"
    return _ask_django(backend, MAX_CONNS=size, REUSE_CONNS=size)
