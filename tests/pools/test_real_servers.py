"""The pool with real clients of real servers: PostgreSQL, Redis, MariaDB, RabbitMQ.

The clients are cooperative only in a patched program; what needs that is skipped in a plain one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from socket import SHUT_RDWR
from typing import Any

import gevent
import pika
import psycopg
import psycopg2
import pymysql
import pytest
import redis
from gevent import monkey
from psycogreen.gevent import patch_psycopg
from redis.backoff import NoBackoff
from redis.retry import Retry

from geventpool import ConnectionPool, Reason, retry
from support import ROOT
from support.servers import require_server

SIZE = 4
cooperative = pytest.mark.skipif(
    not monkey.is_module_patched("socket"), reason="the client blocks unless gevent has patched it"
)


class PostgresPool(ConnectionPool[Any]):
    def _new_connection(self) -> Any:
        host, port = require_server("postgres")
        return psycopg.connect(host=host, port=port, user="postgres", dbname="test")

    def _keepalive(self, conn: Any) -> None:
        conn.execute("select 1")
        conn.rollback()

    def _reset_connection(self, conn: Any) -> None:
        if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            conn.rollback()


class RedisPool(ConnectionPool[Any]):
    def _new_connection(self) -> Any:
        host, port = require_server("redis")
        client = redis.Redis(host, port, single_connection_client=True, retry=Retry(NoBackoff(), 0))
        client.ping()
        return client

    def _fileno(self, client: Any) -> int | None:
        sock = client.connection._sock
        return None if sock is None else sock.fileno()


class MariaDbPool(ConnectionPool[Any]):
    def _new_connection(self) -> Any:
        host, port = require_server("mariadb")
        return pymysql.connect(host=host, port=port, user="root", database="test")

    def _keepalive(self, conn: Any) -> None:
        conn.ping(reconnect=False)

    def _fileno(self, conn: Any) -> int | None:
        return conn._sock.fileno()


class RabbitPool(ConnectionPool[Any]):
    def _new_connection(self) -> Any:
        host, port = require_server("rabbitmq")
        return pika.BlockingConnection(pika.ConnectionParameters(host, port, heartbeat=0))

    def _fileno(self, conn: Any) -> int | None:
        return conn._impl._transport._sock.fileno()


@contextmanager
def full(pool: ConnectionPool[Any]) -> Iterator[None]:
    """Fill *pool*, and close it at the end only when it is full again.

    Not every client closes the socket of a dial that is cut short: the collector would complain of
    it, in this test or the next.
    """
    with pool:
        pool.fill()
        yield
        pool.fill()


@pytest.fixture
def postgres() -> Iterator[PostgresPool]:
    require_server("postgres")
    pool = PostgresPool(SIZE, (psycopg.OperationalError,), keepalive=30, name="postgres")
    with full(pool):
        yield pool


@pytest.fixture
def redis_pool() -> Iterator[RedisPool]:
    require_server("redis")
    pool = RedisPool(SIZE, (redis.ConnectionError, OSError), name="redis")
    with full(pool):
        yield pool


@pytest.fixture
def mariadb() -> Iterator[MariaDbPool]:
    require_server("mariadb")
    pool = MariaDbPool(SIZE, (pymysql.err.OperationalError,), name="mariadb")
    with full(pool):
        yield pool


def one(pool: ConnectionPool[Any], sql: str) -> Any:
    with pool.get() as conn, conn.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def wait_until_hung_up(pool: ConnectionPool[Any], count: int) -> None:
    with gevent.Timeout(10):
        while pool.stats().closed[Reason.PEER_CLOSED] < count:
            gevent.sleep(0.001)


def test_sessions_that_postgresql_terminated_are_never_handed_out(postgres: PostgresPool) -> None:
    pids = {one(postgres, "select pg_backend_pid()") for _ in range(SIZE)}

    with psycopg.connect(**own_session()) as admin:
        for pid in pids:
            admin.execute("select pg_terminate_backend(%s)", (pid,))
    admin.close()
    wait_until_hung_up(postgres, SIZE)

    assert len(pids) == SIZE
    assert pids.isdisjoint({one(postgres, "select pg_backend_pid()") for _ in range(SIZE)})


def test_a_transaction_left_open_is_rolled_back_on_return(postgres: PostgresPool) -> None:
    with postgres.get() as conn:
        conn.execute("create temporary table left_open (n int)")

    with postgres.get(), postgres.get(), postgres.get(), postgres.get() as same:
        idle = psycopg.pq.TransactionStatus.IDLE
        assert same.info.transaction_status == idle


# psycopg2 waits in gevent's way by psycogreen's callback, in a program that is not patched, too.


@pytest.fixture
def psycopg2_pool() -> Iterator[ConnectionPool[Any]]:
    patch_psycopg()
    session = own_session()
    del session["autocommit"]
    with ConnectionPool(SIZE, connect=lambda: psycopg2.connect(**session)) as pool:
        pool.fill()
        yield pool
        pool.fill()


def test_sessions_of_psycopg2_that_an_administrator_killed_are_never_handed_out(
    psycopg2_pool: ConnectionPool[Any],
) -> None:
    pids = {one(psycopg2_pool, "select pg_backend_pid()") for _ in range(SIZE)}
    assert len(pids) == SIZE

    with psycopg.connect(**own_session()) as admin:
        for pid in pids:
            admin.execute("select pg_terminate_backend(%s)", (pid,))
    wait_until_hung_up(psycopg2_pool, SIZE)

    assert pids.isdisjoint({one(psycopg2_pool, "select pg_backend_pid()") for _ in range(SIZE)})


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "raised"])
@pytest.mark.parametrize("within", ["the with", "acquire and release"])
def test_a_query_of_psycopg2_cut_short_leaves_its_answer_to_no_other(
    psycopg2_pool: ConnectionPool[Any], within: str, silent: bool
) -> None:
    pool = psycopg2_pool

    def query(conn: Any, number: int, slow: bool) -> Any:
        with conn.cursor() as cursor:
            cursor.execute("select %s::int, pg_sleep(%s)", (number, 1.0 * slow))
            return cursor.fetchone()[0]

    def body(conn: Any, number: int) -> Any:
        slow = number % 5 == 0
        timeout = gevent.Timeout(0.02 if slow else None, False if silent else None)
        with timeout:
            return query(conn, number, slow)
        return "given up"

    def ask(number: int) -> Any:
        try:
            if within == "the with":
                with pool.get() as conn:
                    return body(conn, number)
            conn = pool.acquire()
            try:
                return body(conn, number)
            finally:
                pool.release(conn)
        except gevent.Timeout:
            return "given up"

    asking = [gevent.spawn(ask, number) for number in range(60)]
    gevent.joinall(asking, timeout=20, raise_error=True)

    answers = [each.value for each in asking]
    assert answers == ["given up" if not number % 5 else number for number in range(60)]
    assert pool.stats().in_use == 0


@cooperative
def test_a_query_cut_short_by_a_timeout_spoils_no_other_answer(postgres: PostgresPool) -> None:
    def ask(number: int) -> int | str:
        slow = number % 5 == 0
        try:
            with postgres.get() as conn, gevent.Timeout(0.05 if slow else None):
                row = conn.execute("select %s::int, pg_sleep(%s)", (number, 0.2 * slow)).fetchone()
                return int(row[0])
        except gevent.Timeout:
            return "given up"

    answers = [greenlet.get() for greenlet in [gevent.spawn(ask, n) for n in range(100)]]

    for number, answer in enumerate(answers):
        assert answer == number or (number % 5 == 0 and answer == "given up")
    assert "given up" in answers


def test_clients_that_redis_killed_are_never_handed_out(redis_pool: RedisPool) -> None:
    host, port = require_server("redis")
    ids = set()
    for _ in range(SIZE):
        with redis_pool.get() as client:
            ids.add(client.client_id())

    with redis.Redis(host, port) as admin:
        for number in ids:
            admin.client_kill_filter(_id=number)
    wait_until_hung_up(redis_pool, SIZE)
    with redis_pool.get() as client:
        client.set("geventpool:test", "1", px=60_000)
        answer = client.get("geventpool:test")

    assert len(ids) == SIZE
    assert answer == b"1"


def test_sessions_that_mariadb_killed_are_never_handed_out(mariadb: MariaDbPool) -> None:
    ids = {one(mariadb, "select connection_id()") for _ in range(SIZE)}

    host, port = require_server("mariadb")
    admin = pymysql.connect(host=host, port=port, user="root")
    for number in ids:
        admin.cursor().execute(f"kill {number}")
    admin.close()
    wait_until_hung_up(mariadb, SIZE)

    assert len(ids) == SIZE
    assert ids.isdisjoint({one(mariadb, "select connection_id()") for _ in range(SIZE)})


def test_a_retried_call_gets_another_session_than_the_one_that_broke(
    mariadb: MariaDbPool,
) -> None:
    used = []

    @retry(exc_classes=pymysql.err.OperationalError, max_failures=2)
    def ask() -> int:
        with mariadb.get() as conn, conn.cursor() as cursor:
            used.append(conn)
            if len(used) == 1:
                conn._sock.shutdown(SHUT_RDWR)  # breaks under its user's hands
            cursor.execute("select 42")
            return int(cursor.fetchone()[0])

    assert ask() == 42
    assert len(used) == 2
    assert used[0] is not used[1]


def test_a_message_goes_through_rabbitmq_over_pooled_connections() -> None:
    require_server("rabbitmq")
    pool = RabbitPool(2, (pika.exceptions.AMQPError,), name="rabbitmq")
    with full(pool):
        with pool.get() as conn:
            channel = conn.channel()
            channel.confirm_delivery()
            queue = channel.queue_declare("", exclusive=False, auto_delete=True).method.queue
            channel.basic_publish("", queue, b"hello")
            channel.close()
        with pool.get() as conn:
            channel = conn.channel()
            _, _, body = channel.basic_get(queue, auto_ack=True)
            channel.queue_delete(queue)
            channel.close()

    assert body == b"hello"


BESIDE_A_SUBPROCESS = """
from gevent import monkey
monkey.patch_all()
import subprocess, sys
import gevent, MySQLdb
from geventpool import ConnectionPool

def ask(conn):
    conn.query("select connection_id()")
    return conn.store_result().fetch_row()[0][0]

host, port = sys.argv[1:]
pool = ConnectionPool(3, connect=lambda: MySQLdb.connect(host=host, port=int(port), user="root"))
pool.fill()
before = sorted(pool.execute(ask) for _ in range(3))
subprocess.run(["true"], check=True)
gevent.sleep(0.1)  # for hang-ups that must not come
print(before == sorted(pool.execute(ask) for _ in range(3)), len(set(before)), pool.stats().opened)
"""


def test_a_subprocess_ends_no_idle_session_of_mysqlclient() -> None:
    """gevent's subprocess forks in Python.  (A C driver's finalizer says goodbye to the server.)"""
    pytest.importorskip("MySQLdb", reason="mysqlclient is not installed, it needs a compiler")
    host, port = require_server("mariadb")
    script = [sys.executable, "-c", BESIDE_A_SUBPROCESS, host, str(port)]
    ran = subprocess.run(script, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (ran.stdout, ran.stderr) == ("True 3 3\n", "")


def own_session() -> dict[str, Any]:
    host, port = require_server("postgres")
    return {"host": host, "port": port, "user": "postgres", "dbname": "test", "autocommit": True}
