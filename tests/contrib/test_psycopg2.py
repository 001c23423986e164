"""contrib.psycopg2: what Psycopg2Pool has beyond the contract.  Nothing needs to be patched."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import psycogreen.gevent
import psycopg2
import pytest
from psycopg2 import extensions

from geventpool import Reason, Verdict
from geventpool.contrib.psycopg2 import Psycopg2Pool, _resolved
from support import ROOT
from support.servers import require_server
from support.waiting import until

#: Others may use the same server.
TABLE = f"geventpool_test_2_{os.getpid()}"


def dsn(**others: object) -> str:
    host, port = require_server("postgres")
    words = {"host": host, "port": port, "user": "postgres", "dbname": "postgres", **others}
    return " ".join(f"{name}={value}" for name, value in words.items())


MakePool = Callable[..., Psycopg2Pool]


@pytest.fixture
def make() -> Iterator[MakePool]:
    """Makes pools of one connection, closed at the end."""
    pools: list[Psycopg2Pool] = []

    def make(given: Any = None, size: int = 1, **settings: Any) -> Psycopg2Pool:
        pools.append(Psycopg2Pool(given or dsn(), size, **{"timeout": 5, **settings}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def table(make: MakePool) -> Iterator[str]:
    """The name of an empty table, which is there for the test."""
    pool = make()
    with pool.connection() as conn:
        execute(conn, f"drop table if exists {TABLE}")
        execute(conn, f"create table {TABLE} (n int check (n < 100))")
    yield TABLE
    with pool.connection() as conn:
        execute(conn, f"drop table {TABLE}")


def execute(conn: Any, statement: str, *values: Any) -> None:
    with conn.cursor() as cursor:
        cursor.execute(statement, values or None)


def one(conn: Any, statement: str, *values: Any) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchone()[0]


# Waiting


def test_a_query_does_not_stop_the_hub(make: MakePool) -> None:
    pool = make()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.005)
            ticks += 1

    ticker = gevent.spawn(tick)
    with pool.get() as conn:
        ticks = 0
        execute(conn, "select pg_sleep(0.1)")
    ticker.kill()

    assert ticks >= 5
    assert extensions.get_wait_callback() is psycogreen.gevent.gevent_wait_callback


@pytest.mark.slow
def test_a_wait_callback_that_is_there_already_stays() -> None:
    code = (
        "from psycopg2 import extensions\n"
        "def mine(conn): pass\n"
        "extensions.set_wait_callback(mine)\n"
        "from geventpool.contrib.psycopg2 import Psycopg2Pool\n"
        "Psycopg2Pool('', 1, min_size=0).close()\n"
        "assert extensions.get_wait_callback() is mine"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_what_a_timeout_cut_short_is_closed_by_psycopg2_and_never_handed_out(
    make: MakePool,
) -> None:
    pool = make()
    for silent in (False, True):
        try:
            with pool.get() as conn, gevent.Timeout(0.02, False if silent else None):
                execute(conn, "select pg_sleep(0.2)")
        except gevent.Timeout:
            assert not silent
        assert conn.closed
        with pool.get() as other:
            assert other is not conn
            assert one(other, "select 42") == 42


def test_one_cut_short_between_two_statements_can_be_salvaged(make: MakePool, table: str) -> None:
    pool = make()
    conn = pool.acquire()
    execute(conn, f"insert into {table} values (1)")
    pool._salvage_connection(conn, gevent.Timeout())

    assert conn.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE
    assert one(conn, f"select count(*) from {table}") == 0
    pool.release(conn)


def test_one_that_psycopg2_has_closed_cannot(make: MakePool) -> None:
    pool = make()
    conn = pool.acquire()
    with gevent.Timeout(0.02, False):
        execute(conn, "select pg_sleep(0.2)")
    with pytest.raises(psycopg2.InterfaceError):
        pool._salvage_connection(conn, None)
    pool.discard(conn)


# Names


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ("host=127.0.0.1 port=5432", [("127.0.0.1", "127.0.0.1", "5432")]),
        (
            "host=127.0.0.1,127.0.0.2 port=1,2",
            [("127.0.0.1", "127.0.0.1", "1"), ("127.0.0.2", "127.0.0.2", "2")],
        ),
        (
            "host=127.0.0.1,/tmp port=7",
            [("127.0.0.1", "127.0.0.1", "7"), ("/tmp", "", "7")],
        ),
    ],
)
def test_libpq_has_no_name_to_look_up(given: str, hosts: list[tuple[str, str, str]]) -> None:
    found = extensions.parse_dsn(_resolved(given, {}))

    names = (found[name].split(",") for name in ("host", "hostaddr", "port"))
    assert list(zip(*names, strict=True)) == hosts


def test_a_name_comes_with_each_of_its_addresses() -> None:
    found = extensions.parse_dsn(_resolved("dbname=x", {"host": "localhost", "user": "me"}))

    assert "127.0.0.1" in found["hostaddr"].split(",")
    assert set(found["host"].split(",")) == {"localhost"}
    assert (found["dbname"], found["user"]) == ("x", "me")


@pytest.mark.parametrize("given", ["dbname=x", "host=a.invalid hostaddr=127.0.0.1"])
def test_what_needs_no_look_up_stays_as_it_is(given: str) -> None:
    assert extensions.parse_dsn(_resolved(given, {})) == extensions.parse_dsn(given)


def test_a_name_that_leads_nowhere_is_a_failed_dial(make: MakePool) -> None:
    pool = make(dsn(host="no-such-host.invalid"), fail_fast=True)
    with pytest.raises(OSError):
        pool.acquire()


@pytest.mark.parametrize("hosts", ["db1.invalid,127.0.0.1", "127.0.0.1,db1.invalid"])
def test_a_name_that_leads_nowhere_does_not_stand_in_the_way_of_another(
    make: MakePool, hosts: str
) -> None:
    host, port = require_server("postgres")
    pool = make(dsn(host=hosts.replace("127.0.0.1", host), port=f"{port},{port}"), fail_fast=True)
    with pool.get() as conn:
        assert one(conn, "select 42") == 42


# Transactions


def test_a_transaction_is_committed_at_the_end_of_its_with(make: MakePool, table: str) -> None:
    with make().connection() as conn:
        execute(conn, f"insert into {table} values (1)")
    with make().get() as other:
        assert one(other, f"select n from {table}") == 1


def test_it_is_rolled_back_when_an_exception_leaves_it(make: MakePool, table: str) -> None:
    pool = make()
    with pytest.raises(psycopg2.errors.CheckViolation), pool.connection() as conn:
        execute(conn, f"insert into {table} values (1)")
        execute(conn, f"insert into {table} values (100)")
    with pytest.raises(KeyError), pool.connection() as conn:
        execute(conn, f"insert into {table} values (2)")
        raise KeyError
    with pool.connection() as conn:
        assert one(conn, f"select count(*) from {table}") == 0
    assert pool.stats().opened == 1


# What is given to it


def test_a_callable_is_asked_for_the_dsn_and_arguments_at_each_dial(make: MakePool) -> None:
    asked = []

    def given() -> str:
        asked.append("dsn")
        return dsn(application_name=f"number_{len(asked)}")

    def kwargs() -> dict[str, Any]:
        asked.append("kwargs")
        return {"dbname": "template1", "cursor_factory": extensions.cursor}

    pool = make(given, kwargs=kwargs)
    names = []
    for _ in range(2):
        conn = pool.acquire()
        assert conn.cursor_factory is extensions.cursor
        assert one(conn, "select current_database()") == "template1"
        names.append(one(conn, "show application_name"))
        pool.discard(conn)

    assert names == ["number_1", "number_3"]


def test_configure_has_each_connection_first_and_reset_has_it_on_return(make: MakePool) -> None:
    calls = []
    pool = make(
        configure=lambda conn: calls.append("configure"), reset=lambda conn: calls.append("reset")
    )
    for _ in range(2):
        with pool.get() as conn:
            execute(conn, "select 1")

    assert calls == ["configure", "reset", "reset"]


def test_a_configure_that_leaves_a_transaction_open_is_a_failed_dial(make: MakePool) -> None:
    pool = make(configure=lambda conn: execute(conn, "select 1"), fail_fast=True)

    with pytest.raises(psycopg2.ProgrammingError, match="left the connection in a transaction"):
        pool.acquire()


def test_with_a_check_only_what_passes_is_handed_out(make: MakePool) -> None:
    bad: list[Any] = []

    def check(conn: Any) -> None:
        execute(conn, "select 1")
        if conn in bad:
            raise psycopg2.OperationalError("not this one")

    pool = make(check=check)
    with pool.get() as conn:
        assert conn.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE
    bad.append(conn)
    gevent.sleep(0.001)
    with pool.get() as other:
        assert other is not conn
    assert pool.stats().closed[Reason.KEEPALIVE] == 1


def test_the_keepalive_asks_the_server_and_leaves_no_transaction(make: MakePool) -> None:
    pool = make(keepalive=0.01)
    until(lambda: pool.stats().checked >= 2)
    with pool.get() as conn:
        assert conn.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE


def test_after_discard_all_a_session_is_as_new_and_configured_again(make: MakePool) -> None:
    def configure(conn: Any) -> None:
        execute(conn, "set statement_timeout = '7s'")
        conn.commit()

    pool = make(discard_all=True, configure=configure)
    for _ in range(2):
        with pool.connection() as conn:
            assert not conn.autocommit
            assert one(conn, "show statement_timeout") == "7s"
            execute(conn, "set statement_timeout = '1s'")
    assert pool.stats().opened == 1


@pytest.mark.parametrize("discard_all", [False, True])
@pytest.mark.parametrize("failed", [False, True])
def test_a_transaction_begun_by_hand_is_rolled_back(
    make: MakePool, table: str, discard_all: bool, failed: bool
) -> None:
    pool = make(discard_all=discard_all)
    with pool.get() as conn:
        conn.autocommit = True  # so that psycopg2 knows of no transaction
        execute(conn, "begin")
        execute(conn, f"insert into {table} values (1)")
        if failed:
            with pytest.raises(psycopg2.DataError):
                execute(conn, "select 1 / 0")
    with pool.get() as conn:
        assert conn.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE
        assert one(conn, f"select count(*) from {table}") == 0
    assert pool.stats().opened == 1


@pytest.mark.parametrize("discard_all", [False, True])
@pytest.mark.parametrize("opened_with", ["UTF8", "LATIN9"])
@pytest.mark.parametrize("how", ["by psycopg2", "by hand"])
def test_the_encoding_is_set_back(
    make: MakePool, discard_all: bool, opened_with: str, how: str
) -> None:
    def configure(conn: Any) -> None:
        conn.set_client_encoding(opened_with)

    pool = make(discard_all=discard_all, configure=configure)
    for _ in range(2):
        with pool.get() as conn:
            assert one(conn, "select %s", "\u20ac") == "\u20ac"  # which LATIN1 has not
            conn.rollback()
            if how == "by psycopg2":
                conn.set_client_encoding("LATIN1")
            else:
                execute(conn, "set client_encoding to latin1")
                conn.commit()
    assert pool.stats().opened == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dsn": "host"}, "dsn is no connection string"),
        ({"dsn": 5}, "dsn must be a string, or a callable, not int"),
        ({"configure": 1}, "configure must be callable"),
        ({"reset": "x"}, "reset must be callable"),
        ({"check": ()}, "check must be callable"),
        ({"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Psycopg2Pool(**{"dsn": "", "size": 1, **arguments})


@pytest.mark.parametrize("given", [b"user=me password=hunter2", "user=me password=my hunter2"])
def test_what_is_said_of_a_wrong_argument_has_no_password(make: MakePool, given: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        Psycopg2Pool(given, 1)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))

    pool = make(lambda: given, fail_fast=True)
    with pytest.raises((TypeError, ValueError)) as raised:
        pool.acquire()
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


# The state of a session


def test_discard_all_leaves_no_notification_or_notice_for_the_next_user(make: MakePool) -> None:
    pool = make(discard_all=True)
    for _ in range(2):
        with pool.connection() as conn:
            assert (conn.notifies, conn.notices) == ([], [])
            execute(conn, f"listen {TABLE}")
            execute(conn, f"notify {TABLE}")
            execute(conn, "do $$ begin raise notice 'of another'; end $$")
            conn.commit()
            assert conn.notifies
            assert conn.notices
    assert pool.stats().opened == 1


@pytest.mark.parametrize("discard_all", [False, True])
def test_what_takes_the_notices_for_a_user_goes_with_it_and_that_of_configure_stays(
    make: MakePool, discard_all: bool
) -> None:
    configured: deque[str] = deque()
    others: deque[str] = deque()

    def configure(conn: Any) -> None:
        conn.notices = configured

    pool = make(discard_all=discard_all, configure=configure)
    with pool.get() as conn:
        conn.notices = conn.notifies = others
    for _ in range(2):
        with pool.connection() as again:
            assert again is conn
            execute(again, f"listen {TABLE}")
            execute(again, f"notify {TABLE}")
            execute(again, "do $$ begin raise notice 'mine'; end $$")
    assert [each.strip() for each in configured] == ["NOTICE:  mine"] * 2
    assert not others


# What errors say


def failing(state: str) -> str:
    return f"do $$ begin raise 'so' using errcode = '{state}'; end $$"


@pytest.mark.parametrize(
    ("statement", "verdict"),
    [
        ("select 1 / 0", Verdict.FINE),
        (failing("40001"), Verdict.FINE),  # serialization_failure
        (failing("40P01"), Verdict.FINE),  # deadlock_detected
        (failing("53200"), Verdict.FINE),  # out_of_memory: an OperationalError, and no more
        ("set local statement_timeout = 1; select pg_sleep(1)", Verdict.FINE),
        ("set transaction read only; create table x (n int)", Verdict.WRONG_SERVER),
        ("select pg_terminate_backend(pg_backend_pid())", Verdict.BROKEN),
    ],
)
def test_what_a_server_says_is_understood(make: MakePool, statement: str, verdict: Verdict) -> None:
    pool = make()
    with pytest.raises(psycopg2.Error) as raised, pool.get() as conn:
        execute(conn, statement)

    assert pool._classify_error(raised.value) is verdict
    with pool.get() as conn:
        assert one(conn, "select 42") == 42
    until(lambda: pool.stats().opened == (1 if verdict is Verdict.FINE else 2))


@pytest.mark.parametrize(
    ("login", "verdict"),
    [
        ({"user": "no_such_role"}, Verdict.FATAL),
        ({"dbname": "no_such_database"}, Verdict.FATAL),
        ({"port": 1}, Verdict.BROKEN),
    ],
)
def test_why_a_dial_fails_is_understood(
    make: MakePool, login: dict[str, Any], verdict: Verdict
) -> None:
    pool = make(dsn(**login), fail_fast=True)
    with pytest.raises(psycopg2.OperationalError) as raised:
        pool.acquire()

    assert pool._classify_error(raised.value) is verdict


def test_errors_of_others_are_judged_by_exc_classes(make: MakePool) -> None:
    pool = make(exc_classes=(OSError, LookupError))

    assert pool._classify_error(KeyError()) is Verdict.BROKEN
    assert pool._classify_error(ValueError()) is Verdict.FINE
    assert pool._classify_error(psycopg2.InterfaceError("connection already closed")) is (
        Verdict.BROKEN
    )
    assert pool._classify_error(psycopg2.ProgrammingError("no results")) is Verdict.FINE
