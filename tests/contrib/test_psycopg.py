"""contrib.psycopg: what PsycopgPool has beyond the contract."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.monkey
import psycopg
import pytest
from gevent import monkey

from geventpool import Reason, Verdict
from geventpool.contrib.psycopg import PsycopgPool
from support import ROOT
from support.servers import require_server
from support.waiting import until

cooperative = pytest.mark.skipif(
    not monkey.is_module_patched("socket"), reason="the pool refuses: gevent has not patched it"
)

#: Others may use the same server.
TABLE = f"geventpool_test_{os.getpid()}"


def dsn(**others: object) -> str:
    host, port = require_server("postgres")
    words = {"host": host, "port": port, "user": "postgres", "dbname": "postgres", **others}
    return " ".join(f"{name}={value}" for name, value in words.items())


MakePool = Callable[..., PsycopgPool]


@pytest.fixture
def make() -> Iterator[MakePool]:
    """Makes pools of one connection, closed at the end."""
    pools: list[PsycopgPool] = []

    def make(conninfo: Any = None, size: int = 1, **settings: Any) -> PsycopgPool:
        pools.append(PsycopgPool(conninfo or dsn(), size, **{"timeout": 5, **settings}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def table() -> Iterator[str]:
    """The name of an empty table, which is there for the test."""
    with psycopg.connect(dsn(), autocommit=True) as conn:
        conn.execute(f"drop table if exists {TABLE}")
        conn.execute(f"create table {TABLE} (n int check (n < 100))")
        yield TABLE
        conn.execute(f"drop table {TABLE}")


def one(conn: Any, statement: str, *values: Any) -> Any:
    row = conn.execute(statement, values or None).fetchone()
    return row[0]


# Where it would block it refuses


def said_by(code: str) -> str:
    """What a program says that ends with an error."""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode != 0
    return ended.stderr


@pytest.mark.slow
def test_in_a_program_that_is_not_patched_it_says_how_to_cure_that() -> None:
    said = said_by("from geventpool.contrib.psycopg import PsycopgPool; PsycopgPool('')")

    assert "RuntimeError: psycopg would block" in said
    assert "the program is not patched" in said
    assert "gevent.monkey.patch_all() before anything imports psycopg" in said


@pytest.mark.slow
def test_so_it_does_where_psycopg_was_imported_too_early() -> None:
    said = said_by(
        "import psycopg; from gevent import monkey; monkey.patch_all();"
        "from geventpool.contrib.psycopg import PsycopgPool; PsycopgPool('')"
    )

    assert "psycopg was imported before the program was patched" in said


@cooperative
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
        conn.execute("select pg_sleep(0.1)")
    ticker.kill()

    assert ticks >= 5


# Transactions


@cooperative
def test_a_transaction_is_committed_at_the_end_of_its_with(make: MakePool, table: str) -> None:
    pool = make()
    with pool.connection() as conn:
        conn.execute(f"insert into {table} values (1)")
    with psycopg.connect(dsn()) as other:
        assert one(other, f"select n from {table}") == 1
    assert pool.stats().opened == 1


@cooperative
def test_it_is_rolled_back_when_an_exception_leaves_it(make: MakePool, table: str) -> None:
    pool = make()
    with pytest.raises(psycopg.errors.CheckViolation), pool.connection() as conn:
        conn.execute(f"insert into {table} values (1)")
        conn.execute(f"insert into {table} values (100)")
    with pytest.raises(KeyError), pool.connection() as conn:
        conn.execute(f"insert into {table} values (2)")
        raise KeyError
    with pool.connection() as conn:
        assert one(conn, f"select count(*) from {table}") == 0
    assert pool.stats().opened == 1


@cooperative
def test_a_commit_that_cannot_be_says_so(make: MakePool, table: str) -> None:
    pool = make()
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        conn.execute(f"insert into {table} values (1)")
        with gevent.Timeout(0.01, False):
            conn.execute("select pg_sleep(0.1)")
    with pool.connection() as conn:
        assert one(conn, f"select count(*) from {table}") == 0


@cooperative
def test_a_plain_lease_commits_nothing(make: MakePool, table: str) -> None:
    pool = make()
    with pool.get() as conn:
        conn.execute(f"insert into {table} values (1)")
    with pool.get() as conn:
        assert one(conn, f"select count(*) from {table}") == 0


# What is given to it


@cooperative
def test_a_callable_is_asked_for_the_conninfo_and_arguments_at_each_dial(make: MakePool) -> None:
    asked = []

    def conninfo() -> str:
        asked.append("conninfo")
        return dsn(application_name=f"number_{len(asked)}")

    def kwargs() -> dict[str, Any]:
        asked.append("kwargs")
        return {"autocommit": True}

    pool = make(conninfo, kwargs=kwargs)
    names = []
    for _ in range(2):
        conn = pool.acquire()
        assert conn.autocommit
        names.append(one(conn, "show application_name"))
        pool.discard(conn)

    assert names == ["number_1", "number_3"]
    assert asked[:4] == ["conninfo", "kwargs"] * 2


@cooperative
def test_configure_has_each_connection_first_and_reset_has_it_on_return(make: MakePool) -> None:
    calls = []
    pool = make(
        configure=lambda conn: calls.append("configure"), reset=lambda conn: calls.append("reset")
    )
    for _ in range(2):
        with pool.get() as conn:
            conn.execute("select 1")

    assert calls == ["configure", "reset", "reset"]


@cooperative
def test_a_configure_that_leaves_a_transaction_open_is_a_failed_dial(make: MakePool) -> None:
    pool = make(configure=lambda conn: conn.execute("select 1"), fail_fast=True)

    with pytest.raises(psycopg.ProgrammingError, match="INTRANS, not IDLE"):
        pool.acquire()


@cooperative
def test_a_reset_that_leaves_one_open_costs_the_connection(make: MakePool) -> None:
    pool = make(reset=lambda conn: conn.execute("select 1"))
    with pool.get() as conn:
        pass
    with pool.get() as other:
        assert other is not conn


@cooperative
def test_with_a_check_only_what_passes_is_handed_out(make: MakePool) -> None:
    bad: list[Any] = []

    def check(conn: Any) -> None:
        PsycopgPool.check_connection(conn)
        if conn in bad:
            raise psycopg.OperationalError("not this one")

    pool = make(check=check)
    with pool.get() as conn:
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    bad.append(conn)
    gevent.sleep(0.001)
    with pool.get() as other:
        assert other is not conn
    assert pool.stats().closed[Reason.KEEPALIVE] == 1


@cooperative
def test_the_keepalive_asks_the_server_and_leaves_no_transaction(make: MakePool) -> None:
    pool = make(keepalive=0.01)
    until(lambda: pool.stats().checked >= 2)
    with pool.get() as conn:
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert pool.stats().opened == 1


@cooperative
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conninfo": "host"}, "conninfo is no connection string"),
        ({"conninfo": 5}, "conninfo must be a string, or a callable, not int"),
        ({"configure": 1}, "configure must be callable"),
        ({"reset": "x"}, "reset must be callable"),
        ({"check": ()}, "check must be callable"),
        ({"no_such_setting": 1}, "no_such_setting"),
        ({"connect": print}, "which is it to be"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PsycopgPool(**{"conninfo": "", "size": 1, **arguments})


@cooperative
@pytest.mark.parametrize("given", [b"user=me password=hunter2", "user=me password=my hunter2"])
def test_what_is_said_of_a_wrong_argument_has_no_password(make: MakePool, given: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        PsycopgPool(given, 1)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))

    pool = make(lambda: given, fail_fast=True)
    with pytest.raises((TypeError, ValueError)) as raised:
        pool.acquire()
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


# The state of a session


@cooperative
def test_how_many_statements_one_keeps_prepared_is_set_back(make: MakePool) -> None:
    pool = make()
    with pool.get() as conn:
        before, conn.prepared_max = conn.prepared_max, 1
    with pool.get() as again:
        assert again is conn
        assert again.prepared_max == before


@cooperative
def test_discard_all_leaves_no_notification_for_the_next_user(make: MakePool) -> None:
    pool = make(discard_all=True, kwargs={"autocommit": True})
    with pool.get() as conn:
        conn.execute(f"listen {TABLE}")
        conn.execute(f"notify {TABLE}, 'of another'")
        conn.execute("select 1")
    with pool.get() as again:
        assert again is conn
        assert list(again.notifies(timeout=0)) == []


@cooperative
@pytest.mark.parametrize("discard_all", [False, True])
def test_the_handlers_of_a_user_go_with_it_and_those_of_configure_stay(
    make: MakePool, discard_all: bool
) -> None:
    heard: list[str] = []

    def configure(conn: Any) -> None:
        conn.add_notice_handler(lambda diag: heard.append(diag.message_primary))

    pool = make(discard_all=discard_all, configure=configure, kwargs={"autocommit": True})
    with pool.get() as conn:
        conn.add_notice_handler(lambda diag: heard.append("of another"))
        conn.add_notify_handler(lambda notify: heard.append("of another"))
    for _ in range(2):
        with pool.get() as again:
            assert again is conn
            again.execute(f"listen {TABLE}")
            again.execute(f"notify {TABLE}")
            again.execute("do $$ begin raise notice 'mine'; end $$")
    assert heard == ["mine", "mine"]


@cooperative
def test_a_return_in_the_middle_of_notifies_fails_and_waits_for_nothing(make: MakePool) -> None:
    pool = make(discard_all=True, kwargs={"autocommit": True})
    conn = pool.acquire()
    conn.execute(f"listen {TABLE}")
    conn.execute(f"notify {TABLE}")
    half = conn.notifies()
    next(half)
    with gevent.Timeout(2), pytest.raises(psycopg.InterfaceError, match=r"of notifies\(\)"):
        pool._reset_connection(conn)
    pool.discard(conn)
    half.close()


@cooperative
def test_discard_all_takes_prepared_statements_along_on_both_sides(make: MakePool) -> None:
    pool = make(discard_all=True, kwargs={"prepare_threshold": 0})
    for number in range(3):
        with pool.get() as conn:
            for _ in range(3):
                assert one(conn, "select %s::int", number) == number
            assert one(conn, "select count(*) from pg_prepared_statements") > 0
            conn.commit()
        with pool.get() as conn:
            name = "select count(*) from pg_prepared_statements where statement like '%::int%'"
            assert conn.execute(name, prepare=False).fetchone() == (0,)
    assert pool.stats().opened == 1


@cooperative
def test_after_discard_all_a_session_is_configured_again(make: MakePool) -> None:
    def configure(conn: Any) -> None:
        conn.execute("set statement_timeout = '7s'")
        conn.commit()

    pool = make(discard_all=True, configure=configure)
    for _ in range(2):
        with pool.connection() as conn:
            assert one(conn, "show statement_timeout") == "7s"
            conn.execute("set statement_timeout = '1s'")


# What errors say


def raised_by(pool: PsycopgPool, statement: str) -> Exception:
    with pytest.raises(psycopg.Error) as raised, pool.get() as conn:
        conn.execute(statement)
    return raised.value


def failing(state: str) -> str:
    return f"do $$ begin raise 'so' using errcode = '{state}'; end $$"


@cooperative
@pytest.mark.parametrize(
    ("statement", "verdict"),
    [
        ("select 1 / 0", Verdict.FINE),
        ("no sql", Verdict.FINE),
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
    error = raised_by(pool, statement)

    assert pool._classify_error(error) is verdict
    with pool.get() as conn:
        assert one(conn, "select 42") == 42
    until(lambda: pool.stats().opened == (1 if verdict is Verdict.FINE else 2))


@cooperative
@pytest.mark.parametrize(
    ("login", "verdict"),
    [
        ({"user": "no_such_role"}, Verdict.FATAL),
        ({"dbname": "no_such_database"}, Verdict.FATAL),
        ({"port": 1}, Verdict.BROKEN),
        ({"host": "no-such-host.invalid"}, Verdict.BROKEN),
    ],
)
def test_why_a_dial_fails_is_understood(
    make: MakePool, login: dict[str, Any], verdict: Verdict
) -> None:
    pool = make(dsn(**login), fail_fast=True)
    with pytest.raises(psycopg.OperationalError) as raised:
        pool.acquire()

    assert pool._classify_error(raised.value) is verdict


@cooperative
def test_errors_of_others_are_judged_by_exc_classes(make: MakePool) -> None:
    pool = make(exc_classes=(OSError, LookupError))

    assert pool._classify_error(KeyError()) is Verdict.BROKEN
    assert pool._classify_error(ValueError()) is Verdict.FINE
    assert pool._classify_error(psycopg.InterfaceError("the connection is closed")) is (
        Verdict.BROKEN
    )
    assert pool._classify_error(psycopg.ProgrammingError("no results")) is Verdict.FINE


# Salvage


@cooperative
def test_what_was_cut_short_is_cancelled_at_the_server_and_the_connection_goes_on(
    make: MakePool, table: str
) -> None:
    pool = make()
    conn = pool.acquire()
    conn.execute(f"insert into {table} values (1)")
    with gevent.Timeout(0.05, False):
        conn.execute("select pg_sleep(30)")
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE

    with gevent.Timeout(5):
        pool._salvage_connection(conn, None)

    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert one(conn, f"select count(*) from {table}") == 0
    pool.release(conn)


@cooperative
@pytest.mark.parametrize("silently", [False, True])
def test_so_the_pool_does_after_a_timeout(make: MakePool, silently: bool) -> None:
    pool = make()
    try:
        with pool.get() as conn, gevent.Timeout(0.02, False if silently else None):
            conn.execute("select pg_sleep(30)")
    except gevent.Timeout:
        assert not silently
    with pool.get() as again:
        assert again is conn
        assert one(again, "select 42") == 42
    assert pool.stats().salvaged == 1


@cooperative
def test_with_a_libpq_whose_cancel_blocks_it_is_called_in_a_thread(
    make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.capabilities, "has_cancel_safe", lambda: False)  # before 17
    called_in = []
    cancel = psycopg.Connection.cancel

    def noted(conn: Any) -> None:
        called_in.append(gevent.monkey.get_original("threading", "get_ident")())
        cancel(conn)

    monkeypatch.setattr(psycopg.Connection, "cancel", noted)
    pool = make()
    conn = pool.acquire()
    with gevent.Timeout(0.02, False):
        conn.execute("select pg_sleep(30)")
    with gevent.Timeout(5):
        pool._salvage_connection(conn, None)
        assert one(conn, "select 42") == 42
    pool.release(conn)

    assert called_in
    assert called_in != [gevent.monkey.get_original("threading", "get_ident")()]


@cooperative
def test_a_stream_is_not_salvaged_whose_end_would_cancel_what_others_run(make: MakePool) -> None:
    pool = make()
    conn = pool.acquire()
    rows = conn.cursor().stream("select generate_series(1, 1000000)")
    next(rows)

    with gevent.Timeout(5), pytest.raises(psycopg.InterfaceError, match="stream"):
        pool._salvage_connection(conn, None)
    pool.discard(conn)
    rows.close()


@cooperative
def test_a_copy_is_not_salvaged(make: MakePool) -> None:
    pool = make()
    conn = pool.acquire()
    conn.pgconn.send_query(b"copy (select generate_series(1, 10)) to stdout")

    with gevent.Timeout(5), pytest.raises(psycopg.InterfaceError, match="COPY that was cut short"):
        pool._salvage_connection(conn, None)
    pool.discard(conn)
