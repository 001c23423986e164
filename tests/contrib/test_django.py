"""contrib.django: what the backends have beyond the contract."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pymysql
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction, utils
from gevent import monkey

from geventpool import PoolTimeout
from geventpool.testing import ChaosProxy
from support import ROOT
from support.adapters.django import BACKENDS, Database
from support.contract import Adapter
from support.waiting import until

pytestmark = pytest.mark.skipif(
    not monkey.is_module_patched("socket"), reason="the pools refuse a program not patched"
)

MakeDatabase = Callable[..., Database]


@pytest.fixture(params=BACKENDS, ids=repr)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def make(adapter: Any) -> Iterator[MakeDatabase]:
    """Makes databases with a pool of one connection, closed at the end; what is given is of the
    settings, and *pool* of the pool."""
    databases: list[Database] = []

    def make(pool: Any = True, **settings: Any) -> Database:
        if pool:
            pool = {"size": 1, "timeout": 5.0, **({} if pool is True else pool)}
        common = adapter.database(adapter.shared_address(), plain=False)
        options = {**common.get("OPTIONS", {}), **settings.get("OPTIONS", {})}
        settings = {**common, **settings, "OPTIONS": options}
        databases.append(Database(adapter.backend, pool, **settings))
        return databases[-1]

    yield make
    for database in databases:
        if database.pool is not None:
            database.pool.close(timeout=0)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Has ``atomic()`` find a wrapper, as by its alias."""

    def use(wrapper: Any) -> Any:
        monkeypatch.setattr(transaction, "get_connection", lambda using=None: wrapper)
        return transaction.atomic()

    return use


def sleep_of(wrapper: Any) -> str:
    return "pg_sleep" if wrapper.vendor == "postgresql" else "sleep"


def ask(wrapper: Any, what: str = "1", seconds: float = 0.0) -> Any:
    with wrapper.cursor() as cursor:
        wait = f", {sleep_of(wrapper)}({seconds})" if seconds else ""
        cursor.execute(f"select {what}{wait}")
        return cursor.fetchone()[0]


# Requests


def test_a_request_has_a_connection_from_its_first_query_to_its_end(make: MakeDatabase) -> None:
    wrapper = make().wrapper()
    assert wrapper.pool.stats().dialed == 0
    ask(wrapper)
    assert wrapper.pool.stats().in_use == 1
    wrapper.close_if_unusable_or_obsolete()  # as at the end of a request
    assert wrapper.connection is None
    assert (wrapper.pool.stats().in_use, wrapper.pool.stats().idle) == (0, 1)


@pytest.mark.parametrize(("max_age", "lifetime"), [(0, None), (None, None), (600, 600.0)])
def test_conn_max_age_is_how_long_a_connection_of_the_pool_lives(
    make: MakeDatabase, adapter: Adapter, max_age: int | None, lifetime: float | None
) -> None:
    database = make(CONN_MAX_AGE=max_age)
    wrapper = database.wrapper()
    ask(wrapper)
    session = adapter.session(wrapper)
    wrapper.close_if_unusable_or_obsolete()
    assert wrapper.connection is None

    again = database.wrapper()
    ask(again)
    assert adapter.session(again) == session
    again.close()
    assert database.pool._bucket.max_lifetime == lifetime


def test_100_greenlets_share_what_there_is(make: MakeDatabase) -> None:
    database = make({"size": 3})

    def request(number: int) -> Any:
        with database.request() as wrapper:
            return ask(wrapper, str(number))

    greenlets = [gevent.spawn(request, number) for number in range(100)]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == list(range(100))
    assert database.pool.stats().opened <= 3


@pytest.mark.parametrize("seconds", [0.0, 20.0], ids=["between statements", "in a statement"])
def test_what_a_greenlet_has_comes_back_when_it_is_killed(
    make: MakeDatabase, seconds: float
) -> None:
    database = make()

    def hang() -> None:
        wrapper = database.wrapper()
        try:
            ask(wrapper, seconds=seconds)
            gevent.sleep(20)
        finally:
            kept.append(wrapper)  # as a cycle may keep it for long

    kept: list[Any] = []
    for _ in range(3):
        greenlet = gevent.spawn(hang)
        until(lambda: database.pool.stats().in_use == 1)
        gevent.sleep(0.01)  # so that the statement has begun
        greenlet.kill()
        with database.request() as wrapper:
            assert ask(wrapper, "42") == 42
    assert [wrapper.connection for wrapper in kept] == [None] * 3


def test_it_comes_back_when_the_greenlet_just_ends(make: MakeDatabase) -> None:
    database = make()
    for _ in range(3):
        gevent.spawn(lambda: ask(database.wrapper())).get()
    gc.collect()
    assert database.pool.stats().opened == 1


# Atomic blocks


@pytest.mark.parametrize("error", [gevent.Timeout, gevent.GreenletExit, KeyError])
def test_what_leaves_an_atomic_block_rolls_back_and_goes_on(
    make: MakeDatabase, use: Callable[[Any], Any], error: type[BaseException]
) -> None:
    wrapper = make().wrapper()
    with pytest.raises(error), use(wrapper):
        ask(wrapper)
        raise error
    assert wrapper.get_autocommit()
    with use(wrapper):
        assert ask(wrapper, "42") == 42
    wrapper.close()
    assert wrapper.pool.stats().opened == 1


def test_a_timeout_in_a_statement_leaves_an_atomic_block_as_what_it_is(
    make: MakeDatabase, use: Callable[[Any], Any]
) -> None:
    wrapper = make({"salvage_timeout": 5.0}).wrapper()
    for _ in range(3):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05), use(wrapper):
            ask(wrapper, seconds=20.0)
        assert wrapper.connection is None  # given back, and no other was waited for
        with use(wrapper):
            assert ask(wrapper, "42") == 42
    wrapper.close()


def test_what_an_atomic_block_gave_up_is_ended_at_the_server(
    make: MakeDatabase, use: Callable[[Any], Any], adapter: Any
) -> None:
    wrapper = make({"salvage_timeout": 5.0}).wrapper()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05), use(wrapper):
        ask(wrapper, seconds=20.0)
        raise AssertionError
    statement = sleep_of(wrapper)
    where = {
        "postgresql": "select query from pg_stat_activity where state = 'active'"
        " and pid <> pg_backend_pid()",
        "mysql": "select info from information_schema.processlist where command = 'Query'"
        " and id <> connection_id() and info is not null",
    }[wrapper.vendor]

    def runs() -> bool:
        found = adapter.administer(adapter.shared_address(), where)
        return any(f"{statement}(20" in each for each in found)

    until(lambda: not runs(), "the end of it", seconds=5)


def test_a_timeout_in_the_rollback_leaves_an_atomic_block_as_what_it_is(
    make: MakeDatabase, use: Callable[[Any], Any], adapter: Any
) -> None:
    with ChaosProxy(adapter.shared_address()) as proxy:
        host, port = proxy.address
        wrapper = make(HOST=host, PORT=str(port)).wrapper()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.2), use(wrapper):
            ask(wrapper)
            proxy.black_hole()
            raise KeyError
        assert wrapper.connection is None
        proxy.normal()
        with use(wrapper):
            assert ask(wrapper, "42") == 42
        wrapper.close()


def test_nor_does_one_that_comes_before_the_rollback_change_that(
    make: MakeDatabase, use: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = make().wrapper()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), use(wrapper):
        ask(wrapper)
        monkeypatch.setattr(wrapper, "_rollback", interrupt)
        raise KeyError
    assert wrapper.get_autocommit()
    if wrapper.vendor == "mysql":  # to which the setting says to commit
        with wrapper.cursor() as cursor:
            cursor.execute("show session status like 'Com_rollback'")
            assert cursor.fetchone()[1] == "1"
    wrapper.close()


@pytest.mark.parametrize("atomic", [False, True])
def test_after_a_silent_timeout_the_next_query_is_answered_right(
    make: MakeDatabase, use: Callable[[Any], Any], atomic: bool
) -> None:
    wrapper = make().wrapper()
    with gevent.Timeout(0.05, False):
        ask(wrapper, "1", seconds=0.5)
    if atomic:
        with use(wrapper):
            assert ask(wrapper, "42") == 42
    else:
        assert ask(wrapper, "42") == 42
    wrapper.close()


def test_but_in_an_atomic_block_all_of_it_fails(
    make: MakeDatabase, use: Callable[[Any], Any]
) -> None:
    wrapper = make().wrapper()
    with pytest.raises(utils.Error), use(wrapper):
        ask(wrapper)
        with gevent.Timeout(0.05, False):
            ask(wrapper, "1", seconds=0.5)
        ask(wrapper, "42")
    assert ask(wrapper, "42") == 42
    wrapper.close()


def test_a_transaction_that_is_forgotten_is_no_matter_to_set_autocommit(
    make: MakeDatabase,
) -> None:
    wrapper = make().wrapper()
    wrapper.set_autocommit(False)
    ask(wrapper)
    wrapper.close_if_unusable_or_obsolete()
    assert wrapper.connection is None
    assert wrapper.get_autocommit()
    assert ask(wrapper, "42") == 42
    wrapper.close()


# Errors


def test_who_waits_too_long_gets_an_error_of_djangos(make: MakeDatabase) -> None:
    database = make({"timeout": 0.05})
    database.pool.fill(timeout=5)
    with database.request():
        with pytest.raises(utils.OperationalError, match="no connection came free") as raised:
            ask(database.wrapper())
    assert isinstance(raised.value.__cause__, PoolTimeout)


def test_while_the_server_is_away_its_refusal_is_raised_at_once(
    make: MakeDatabase, adapter: Adapter
) -> None:
    with ChaosProxy(adapter.shared_address()) as proxy:
        proxy.refuse()
        host, port = proxy.address
        database = make(HOST=host, PORT=str(port))
        with gevent.Timeout(4):
            for _ in range(20):
                with pytest.raises(utils.OperationalError, match="refused"):
                    ask(database.wrapper())
        assert database.pool.stats().dialed < 10
        proxy.normal()
        until(lambda: not database.pool._standing().failing)
        with database.request() as wrapper:
            assert ask(wrapper, "42") == 42


def test_it_is_known_to_be_usable_or_not(make: MakeDatabase, adapter: Any) -> None:
    database = make({"size": 2})
    with database.request() as wrapper:
        assert wrapper.is_usable()
        session = adapter.session(wrapper)
        adapter.end_session(adapter.shared_address(), session)
        until(lambda: not wrapper.is_usable())
        wrapper.errors_occurred = True
        wrapper.close_if_unusable_or_obsolete()
        assert wrapper.connection is None
        assert ask(wrapper, "42") == 42
        assert adapter.session(wrapper) != session


@pytest.mark.parametrize("checks", [False, True])
def test_with_health_checks_each_is_asked_before_it_is_handed_out(
    make: MakeDatabase, monkeypatch: pytest.MonkeyPatch, checks: bool
) -> None:
    database = make(CONN_HEALTH_CHECKS=checks)
    checked: list[Any] = []
    keepalive = type(database.pool)._keepalive
    monkeypatch.setattr(
        type(database.pool),
        "_keepalive",
        lambda pool, conn: checked.append(conn) or keepalive(pool, conn),
    )
    for _ in range(3):
        with database.request() as wrapper:
            ask(wrapper)
    assert len(checked) == (2 if checks else 0)


# Settings


def test_without_a_pool_it_is_djangos_own(make: MakeDatabase) -> None:
    wrapper = make(pool=False).wrapper()
    assert wrapper.pool is None
    assert ask(wrapper, "42") == 42
    wrapper.close()


def test_a_pool_of_its_own_is_had_for_each_name(make: MakeDatabase) -> None:
    database = make()
    other = database.wrapper_class({**database.settings, "NAME": "other"}, database.alias)
    assert other.pool is not database.pool
    other.close_pool()
    assert database.pool is database.wrapper().pool


def test_a_pool_that_is_closed_is_made_anew(make: MakeDatabase) -> None:
    database = make()
    with database.request() as wrapper:
        ask(wrapper)
    database.wrapper().close_pool()
    with database.request() as wrapper:
        assert ask(wrapper, "42") == 42


def test_a_wrong_setting_is_named(make: MakeDatabase) -> None:
    for pool in ({"size": 0}, {"size": 1, "no_such_setting": 2}):
        good = make()
        options = {**good.settings["OPTIONS"], "pool": pool}
        database = good.wrapper_class({**good.settings, "OPTIONS": options, "NAME": "x"}, "wrong")
        with pytest.raises(ImproperlyConfigured, match=r"DATABASES\['wrong'\]: OPTIONS\['pool'\]"):
            database.ensure_connection()


def test_the_session_is_set_up_once_for_a_connection(make: MakeDatabase, adapter: Any) -> None:
    if adapter.backend != "mysql":
        pytest.skip("PostgreSQL's is")
    database = make(OPTIONS={"isolation_level": "serializable"})
    counts = []
    for _ in range(3):
        with database.request() as wrapper:
            assert ask(wrapper, "@@tx_isolation") == "SERIALIZABLE"
            with wrapper.cursor() as cursor:
                cursor.execute("show session status like 'Com_set_option'")
                counts.append(int(cursor.fetchone()[1]))
    assert counts[0] == counts[1] == counts[2] > 0


def test_what_a_server_is_is_asked_once_for_all_greenlets(make: MakeDatabase, adapter: Any) -> None:
    if adapter.backend != "mysql":
        pytest.skip("PostgreSQL tells as it is connected to")
    database = make()
    first, second = database.wrapper(), database.wrapper()
    assert first.mysql_server_data is second.mysql_server_data
    assert first.mysql_version >= (10, 0)
    first.close()
    second.close()


def test_the_errors_of_pymysql_stay_what_they_are(make: MakeDatabase, adapter: Any) -> None:
    make()  # its backend is imported, and with it MySQLdb
    assert pymysql.err.OperationalError is pymysql.OperationalError


# What would block


@pytest.mark.slow
def test_of_mysqlclient_it_is_said_what_to_do() -> None:
    code = (
        "import sys, types; sys.modules['MySQLdb'] = types.ModuleType('MySQLdb')\n"
        "import geventpool.contrib.django.mysql.base"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "ImproperlyConfigured: MySQLdb (mysqlclient) was imported before" in ended.stderr
