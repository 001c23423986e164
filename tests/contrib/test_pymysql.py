"""contrib.pymysql: what PyMySQLPool has beyond the contract.  Nothing needs to be patched."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pymysql
import pytest
from pymysql.constants import CLIENT, FIELD_TYPE

from geventpool import ConnectError, Verdict
from geventpool.contrib.pymysql import PyMySQLPool
from geventpool.testing import ChaosProxy
from support import ROOT
from support.certificates import Certificates
from support.own_servers import OwnMariaDb
from support.servers import require_server
from support.waiting import until

MakePool = Callable[..., PyMySQLPool]


@pytest.fixture
def make() -> Iterator[MakePool]:
    """Makes pools of one connection, closed at the end."""
    pools: list[PyMySQLPool] = []

    def make(size: int = 1, **arguments: Any) -> PyMySQLPool:
        host, port = require_server("mariadb")
        login = {"host": host, "port": port, "user": "root", "ssl_disabled": True, "timeout": 5}
        pools.append(PyMySQLPool(size, **{**login, **arguments}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def one(conn: Any, statement: str, *values: Any) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchone()[0] if cursor.description else None


def count(conn: Any, what: str) -> int:
    """How often the server has done that in this session."""
    with conn.cursor() as cursor:
        cursor.execute("show session status like %s", (what,))
        return int(cursor.fetchone()[1])


# Returns


def test_without_a_transaction_a_return_costs_no_round_trip(make: MakePool) -> None:
    pool = make(autocommit=True, database="mysql")
    with pool.get() as conn:
        before = count(conn, "Questions")
    for _ in range(10):
        with pool.get() as conn:
            pass
    with pool.get() as conn:
        assert count(conn, "Questions") == before + 1
        assert count(conn, "Com_rollback") == 0


def test_an_open_transaction_is_rolled_back(make: MakePool) -> None:
    pool = make(autocommit=True)
    with pool.get() as conn:
        conn.begin()
    with pool.get() as conn:
        assert count(conn, "Com_rollback") == 1
        assert one(conn, "select @@in_transaction") == 0


def test_without_autocommit_each_return_is_a_rollback(make: MakePool) -> None:
    pool = make()
    with pool.get() as conn:
        one(conn, "select 1")
    with pool.get() as conn:
        assert count(conn, "Com_rollback") == 1


def test_autocommit_and_the_database_are_as_they_were_asked_for(make: MakePool) -> None:
    pool = make(autocommit=True, database="mysql")
    with pool.get() as conn:
        conn.autocommit(False)
        conn.select_db("information_schema")
    with pool.get() as conn:
        assert one(conn, "select @@autocommit") == 1
        assert one(conn, "select database()") == "mysql"
    assert pool.stats().opened == 1


@pytest.mark.parametrize("reset_session", [False, True])
@pytest.mark.parametrize(
    "statement",
    [
        "use information_schema",
        "USE`information_schema`",
        "/* why * not */ -- so\n # and so\n /*!40000 use information_schema */",
        "execute immediate 'use information_schema'",
        b"use information_schema",
    ],
)
def test_after_a_use_the_next_user_is_in_the_database_that_was_asked_for(
    make: MakePool, statement: Any, reset_session: bool
) -> None:
    pool = make(database="mysql", reset_session=reset_session)
    for _ in range(2):
        with pool.get() as conn:
            assert one(conn, "select database()") == "mysql"
            conn.query(statement)
            assert one(conn, "select database()") == "information_schema"
    assert pool.stats().opened == 1


def test_so_it_is_after_one_among_several_statements(make: MakePool) -> None:
    pool = make(database="mysql", client_flag=CLIENT.MULTI_STATEMENTS)
    with pool.get() as conn, conn.cursor() as cursor:
        cursor.execute("select 1; use information_schema")
        while cursor.nextset():
            pass
    with pool.get() as again:
        assert again is conn
        assert one(again, "select database()") == "mysql"


@pytest.mark.parametrize("reset_session", [False, True])
def test_one_that_had_no_database_and_has_one_is_closed(
    make: MakePool, reset_session: bool
) -> None:
    pool = make(reset_session=reset_session)
    with pool.get() as conn:
        one(conn, "execute immediate 'select 1'")  # selects none
    with pool.get() as again:
        assert again is conn
        one(again, "use mysql")
    with pool.get() as other:
        assert other is not conn
        assert one(other, "select database()") is None


def test_the_database_and_autocommit_of_configure_are_set_back_to(make: MakePool) -> None:
    def configure(conn: Any) -> None:
        one(conn, "use mysql")
        conn.autocommit(True)

    pool = make(configure=configure)
    for _ in range(2):
        with pool.get() as conn:
            assert one(conn, "select database()") == "mysql"
            assert one(conn, "select @@autocommit") == 1
            conn.select_db("information_schema")
    assert pool.stats().opened == 1


@pytest.mark.parametrize("reset_session", [False, True])
def test_what_a_user_set_of_the_client_is_set_back(make: MakePool, reset_session: bool) -> None:
    pool = make(2, database="mysql", reset_session=reset_session)
    with pool.get() as conn, pool.get() as other:
        first = conn.charset, conn.encoding, one(conn, "select @@character_set_client")
        conn.cursorclass = pymysql.cursors.DictCursor
        conn.encoders[str] = lambda value, mapping=None: "'changed'"
        conn.decoders[FIELD_TYPE.LONGLONG] = lambda value: "changed"
        conn.use_unicode = False
        conn.set_character_set("latin1")
        assert one(other, "select %s", 42) == 42  # they share nothing
        assert str not in other.encoders or other.encoders[str] is not conn.encoders[str]
        assert other.decoders[FIELD_TYPE.LONGLONG] is int
    with pool.get() as one_of_them, pool.get() as the_other:
        assert {one_of_them, the_other} == {conn, other}
        assert type(conn.cursor()) is pymysql.cursors.Cursor
        assert conn.use_unicode
        assert conn.encoders == other.encoders
        assert conn.decoders == other.decoders
        now = conn.charset, conn.encoding, one(conn, "select @@character_set_client")
        assert now == first


def test_a_result_that_was_read_by_half_is_not_read_to_its_end(make: MakePool) -> None:
    pool = make()
    conn = pool.acquire()
    cursor = conn.cursor(pymysql.cursors.SSCursor)
    cursor.execute("select seq from mysql.seq_1_to_100000000")
    with gevent.Timeout(5), pytest.raises(pymysql.InterfaceError, match="read by half"):
        pool._reset_connection(conn)
    pool.discard(conn)
    with pool.get() as other:
        assert other is not conn


def test_a_connection_that_its_user_closes_is_replaced_without_a_word(
    make: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make()
    with pool.get() as conn:
        conn.close()
    with pool.get() as other:
        assert one(other, "select 42") == 42
    assert caplog.text == ""


def test_a_session_that_is_reset_is_set_up_again(make: MakePool) -> None:
    configured = []

    def configure(conn: Any) -> None:
        configured.append(one(conn, "set @mine = 7"))

    pool = make(
        reset_session=True,
        configure=configure,
        autocommit=True,
        database="mysql",
        sql_mode="ANSI",
        init_command="set @init = 5",
        charset="latin1",
    )

    def facts(conn: Any) -> list[Any]:
        names = "autocommit", "sql_mode", "character_set_client", "@init", "@mine"
        return [one(conn, f"select @@{each}".replace("@@@", "@")) for each in names]

    with pool.get() as conn:
        first = facts(conn)
        one(conn, "set @mine = 8, @init = 9, sql_mode = ''")
        conn.set_character_set("utf8mb4")
        one(conn, "use information_schema")
    with pool.get() as conn:
        assert facts(conn) == first
        assert conn.encoding == "cp1252"  # as of latin1
        assert one(conn, "select database()") == "mysql"
    assert first[-2:] == [5, 7]
    assert len(configured) == 3
    assert pool.stats().opened == 1


# Transactions


def test_a_transaction_is_committed_at_the_end_of_its_with(make: MakePool) -> None:
    pool = make(autocommit=True)
    with pool.connection() as conn:
        assert one(conn, "select @@in_transaction") == 1
    with pool.get() as conn:
        assert count(conn, "Com_commit") == 1
        assert one(conn, "select @@in_transaction") == 0


def test_it_is_rolled_back_when_an_exception_leaves_it(make: MakePool) -> None:
    pool = make()
    with pytest.raises(KeyError), pool.connection() as conn:
        one(conn, "select 1")
        raise KeyError
    with pool.get() as conn:
        assert count(conn, "Com_commit") == 0
        assert count(conn, "Com_rollback") == 1


# What was cut short


def running(conn: Any, session: int) -> Any:
    """What the server does in that session; None if there is no such session."""
    with conn.cursor() as cursor:
        cursor.execute("select info from information_schema.processlist where id=%s", (session,))
        row = cursor.fetchone()
        return row and row[0]


def test_a_statement_that_was_given_up_is_ended_at_the_server(make: MakePool) -> None:
    pool, admin = make(), make(autocommit=True)
    conn = pool.acquire()
    with gevent.Timeout(0.05, False):
        one(conn, "select sleep(30)")
    with admin.get() as other:
        assert running(other, conn.thread_id()) == "select sleep(30)"

        with pytest.raises(pymysql.InterfaceError):  # as it is good for nothing
            pool._salvage_connection(conn, None)
        until(lambda: running(other, conn.thread_id()) is None)
    pool.discard(conn)


def test_a_session_of_another_server_is_never_killed_for_its_id(make: MakePool) -> None:
    pool, others = make(), make(autocommit=True)
    with others.get() as stranger:
        conn = pool.acquire()
        with gevent.Timeout(0.05, False):
            one(conn, "select sleep(0.1)")
        assert not conn.open
        # As it is if the pool reaches another server for the KILL, where the id is a stranger's.
        conn.server_thread_id = stranger.server_thread_id
        with pytest.raises(pymysql.InterfaceError, match="not at the server that was reached"):
            pool._salvage_connection(conn, None)
        pool.discard(conn)
        assert one(stranger, "select 42") == 42


def test_through_a_proxy_what_cannot_be_ended_costs_the_connection(make: MakePool) -> None:
    with ChaosProxy(require_server("mariadb")) as proxy:
        pool = make(host=proxy.address[0], port=proxy.address[1])
        conn = pool.acquire()
        cursor = conn.cursor(pymysql.cursors.SSCursor)
        cursor.execute("select seq from mysql.seq_1_to_100000000")
        with pytest.raises(pymysql.InterfaceError, match="not at the server that was reached"):
            pool._salvage_connection(conn, None)
        pool.discard(conn)
        with pool.get() as other:
            assert one(other, "select 42") == 42
        pool.close()


def test_a_result_that_was_read_by_half_is_ended_and_the_connection_goes_on(
    make: MakePool,
) -> None:
    pool = make()
    conn = pool.acquire()
    cursor = conn.cursor(pymysql.cursors.SSCursor)
    cursor.execute("select seq from mysql.seq_1_to_100000000")
    cursor.fetchone()
    with gevent.Timeout(5):
        pool._salvage_connection(conn, None)
        assert one(conn, "select 42") == 42
    pool.release(conn)


def test_a_statement_that_was_sent_by_half_costs_the_connection(make: MakePool) -> None:
    with make().get() as conn:
        ours, theirs = gevent.socket.socketpair()  # a peer that does not read
        conn._sock, to_server = ours, conn._sock
        with gevent.Timeout(0.05, False):
            one(conn, "select %s", "x" * 10_000_000)

        assert not conn.open
    theirs.close()
    to_server.close()


def test_a_transaction_that_was_cut_short_is_rolled_back(make: MakePool) -> None:
    pool = make(autocommit=True)
    conn = pool.acquire()
    conn.begin()
    pool._salvage_connection(conn, gevent.Timeout())

    assert one(conn, "select @@in_transaction") == 0
    pool.release(conn)


# What is given to it


def test_a_callable_is_asked_for_the_password_at_each_dial(make: MakePool) -> None:
    passwords = ["", "", "wrong"]

    pool = make(password=lambda: passwords.pop(0), fail_fast=True)
    for _ in range(2):
        conn = pool.acquire()
        pool.discard(conn)
        until(lambda conn=conn: not conn.open)
    with pytest.raises(pymysql.OperationalError) as raised:
        pool.acquire()

    assert raised.value.args[0] == 1045  # access denied
    passwords += [""] * 100  # for the dials that go on


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"no_such_argument": 1}, "no_such_argument"),
        ({"configure": 1}, "configure must be callable"),
        ({"port": "x"}, "port"),
        ({"size": 0}, "size must be at least 1"),
        ({"connect_timeout": -1}, "connect_timeout"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PyMySQLPool(**{"size": 1, "ssl_disabled": True, **arguments})


# TLS


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates) -> Iterator[OwnMariaDb]:
    server = OwnMariaDb(f"--ssl-cert={certificates.certificate}", f"--ssl-key={certificates.key}")
    for path in (certificates.certificate, certificates.key):
        path.chmod(0o644)
    for folder in certificates.key.parents:  # the server's user has to get there
        if folder.stat().st_uid == 0 and folder.parts[:2] == ("/", "tmp") and len(folder.parts) > 2:
            folder.chmod(0o755)
    with server:
        yield server


def tls_pool(server: OwnMariaDb, **arguments: Any) -> PyMySQLPool:
    return PyMySQLPool(2, **{**server.login, "host": "localhost", "timeout": 5, **arguments})


@pytest.mark.slow
def test_all_dials_have_one_context(tls_server: OwnMariaDb, certificates: Certificates) -> None:
    arguments = {"ssl_ca": str(certificates.authority), "ssl_verify_identity": True}
    with tls_pool(tls_server, **arguments) as pool, pool.get() as conn, pool.get() as other:
        assert conn.ctx is other.ctx
        assert isinstance(conn._sock, gevent.ssl.SSLSocket)
        with conn.cursor() as cursor:
            cursor.execute("show session status like 'Ssl_version'")
            assert cursor.fetchone()[1].startswith("TLS")


@pytest.mark.slow
def test_by_tls_a_query_does_not_stop_the_hub_and_its_death_is_seen(
    tls_server: OwnMariaDb, certificates: Certificates
) -> None:
    context = ssl.create_default_context(cafile=str(certificates.authority))
    with tls_pool(tls_server, ssl=context) as pool:
        began = gevent.get_hub().loop.now()
        queries = [gevent.spawn(pool.execute, one, "select sleep(0.2)") for _ in range(2)]
        gevent.joinall(queries, raise_error=True)
        gevent.get_hub().loop.update_now()
        assert gevent.get_hub().loop.now() - began < 0.39
        with pool.get() as conn, pool.get() as admin:
            one(admin, f"kill {conn.thread_id()}")
        with pool.get() as again, pool.get() as other:
            assert conn not in (again, other)
            assert one(again, "select 42") == one(other, "select 42") == 42


@pytest.mark.slow
def test_a_handshake_that_is_cut_short_leaves_nothing_open(tls_server: OwnMariaDb) -> None:
    with ChaosProxy(tls_server.address) as proxy:
        proxy.dribble(0.003)  # the greeting takes 0.3 s, and the handshake 5 s
        port = proxy.address[1]
        with tls_pool(tls_server, port=port, connect_timeout=0.8, fail_fast=True) as pool:
            with pytest.raises(ConnectError):
                pool.acquire()
            assert pool.stats().dial_failed > 0


@pytest.mark.slow
def test_a_unix_socket_needs_no_patching_either(tls_server: OwnMariaDb) -> None:
    path = str(tls_server.folder / "socket")
    with tls_pool(tls_server, unix_socket=path, ssl_disabled=True) as pool:
        queries = [gevent.spawn(pool.execute, one, "select sleep(0.1)") for _ in range(2)]
        gevent.joinall(queries, raise_error=True)
        with pool.get() as conn:
            assert conn._sock.family == socket.AF_UNIX


@pytest.mark.slow
def test_over_a_unix_socket_a_statement_is_ended_too(tls_server: OwnMariaDb) -> None:
    path = str(tls_server.folder / "socket")
    with tls_pool(tls_server, unix_socket=path, ssl_disabled=True, autocommit=True) as pool:
        conn = pool.acquire()
        with gevent.Timeout(0.05, False):
            one(conn, "select sleep(30)")
        with pytest.raises(pymysql.InterfaceError, match="closed the connection itself"):
            pool._salvage_connection(conn, None)
        with pool.get() as other:
            until(lambda: running(other, conn.thread_id()) is None)
        pool.discard(conn)


# What errors say


@pytest.mark.parametrize(
    ("statement", "verdict"),
    [
        ("select no_such_thing()", Verdict.FINE),
        ("no sql", Verdict.FINE),
        ("set statement max_statement_time=0.001 for select sleep(1)", Verdict.FINE),
        ("signal sqlstate '40001' set mysql_errno = 1213", Verdict.FINE),  # a deadlock
        ("signal sqlstate '45000' set mysql_errno = 1290", Verdict.WRONG_SERVER),
        ("signal sqlstate '45000' set mysql_errno = 1836", Verdict.WRONG_SERVER),
        ("signal sqlstate '45000' set mysql_errno = 1053", Verdict.BROKEN),  # a shutdown
        ("kill connection_id()", Verdict.BROKEN),
    ],
)
def test_what_a_server_says_is_understood(make: MakePool, statement: str, verdict: Verdict) -> None:
    pool = make(autocommit=True)
    with pytest.raises(pymysql.MySQLError) as raised, pool.get() as conn:
        one(conn, statement)
        one(conn, "select 1")  # it learns of its own end by the next statement

    assert pool._classify_error(raised.value) is verdict
    with pool.get() as conn:
        assert one(conn, "select 42") == 42
    until(lambda: pool.stats().opened == (1 if verdict is Verdict.FINE else 2))


@pytest.mark.parametrize(
    ("login", "verdict"),
    [
        ({"user": "root", "password": "wrong"}, Verdict.FATAL),
        ({"database": "no_such_database"}, Verdict.FATAL),
    ],
)
def test_why_a_dial_fails_is_understood(
    make: MakePool, login: dict[str, Any], verdict: Verdict
) -> None:
    pool = make(fail_fast=True, **login)
    with pytest.raises(pymysql.MySQLError) as raised:
        pool.acquire()

    assert pool._classify_error(raised.value) is verdict


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (pymysql.err.InterfaceError(0, ""), Verdict.BROKEN),
        (pymysql.err.InternalError("Packet sequence number wrong"), Verdict.BROKEN),
        (pymysql.err.OperationalError(2006, "gone away"), Verdict.BROKEN),
        (pymysql.err.OperationalError(1040, "Too many connections"), Verdict.SERVER_FULL),
        (pymysql.err.OperationalError(1203, "max_user_connections"), Verdict.SERVER_FULL),
        (pymysql.err.ProgrammingError("Cursor closed"), Verdict.FINE),
        (pymysql.err.IntegrityError(1062, "Duplicate"), Verdict.FINE),
        (ConnectionResetError(), Verdict.BROKEN),
        (KeyError(), Verdict.FINE),
    ],
)
def test_what_the_client_says_is_understood(
    make: MakePool, error: Exception, verdict: Verdict
) -> None:
    assert make(min_size=0)._classify_error(error) is verdict


# The one that is not there


@pytest.mark.slow
def test_of_mysqlclient_it_is_said_what_to_use() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import geventpool.contrib.mysqlclient"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "ImportError: mysqlclient (MySQLdb) waits in C" in ended.stderr
    assert "geventpool.contrib.pymysql" in ended.stderr
