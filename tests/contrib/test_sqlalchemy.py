"""contrib.sqlalchemy: what GeventPool has beyond the contract, as QueuePool has it.

The pool's own ways are told with a connection of no database: a socket to a server that answers.
"""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import monkey
from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.engine import URL

from geventpool import PoolFull, PoolTimeout
from geventpool.contrib.sqlalchemy import GeventPool
from geventpool.testing import ChaosProxy
from support import ROOT
from support.servers import require_server
from support.waiting import until

MakeEngine = Callable[..., Any]
EVENTS = (
    *("connect", "checkout", "checkin", "reset", "invalidate", "soft_invalidate"),
    *("close", "detach", "close_detached"),
)

pytestmark = pytest.mark.skipif(
    not monkey.is_module_patched("socket"), reason="the pool refuses a program not patched"
)


def postgres(address: tuple[str, int] | None = None, driver: str = "psycopg") -> URL:
    host, port = address or require_server("postgres")
    return URL.create(f"postgresql+{driver}", "postgres", None, host, port, "postgres")


@pytest.fixture
def make() -> Iterator[MakeEngine]:
    """Makes engines, closed at the end; of one connection if nothing else is said."""
    engines: list[Any] = []

    def make(url: URL | None = None, **arguments: Any) -> Any:
        arguments = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5, **arguments}
        engines.append(create_engine(url or postgres(), poolclass=GeventPool, **arguments))
        return engines[-1]

    yield make
    for engine in engines:
        engine.pool.connections.close(timeout=0)


def pid(conn: Any) -> int:
    return conn.execute(text("select pg_backend_pid()")).scalar()  # type: ignore[no-any-return]


def session(engine: Any) -> int:
    """That of its next connection."""
    with engine.connect() as conn:
        return pid(conn)


def end(engine: Any, session: int) -> None:
    """End that session, as an administrator does, from another engine."""
    with engine.begin() as conn:
        conn.execute(text("select pg_terminate_backend(:pid)"), {"pid": session})
    until(lambda: not alive(engine, session), "its end")


def alive(engine: Any, session: int) -> bool:
    with engine.connect() as conn:
        found = conn.execute(
            text("select count(*) from pg_stat_activity where pid = :pid"), {"pid": session}
        )
        return bool(found.scalar())


def events_of(engine: Any) -> list[str]:
    """The names of the events of its pool, from now on."""
    seen: list[str] = []
    for name in EVENTS:
        event.listen(engine.pool, name, lambda *args, name=name: seen.append(name), named=False)
    return seen


# How many


def test_nothing_is_opened_before_it_is_used(make: MakeEngine) -> None:
    engine = make(pool_size=3, min_size=2)
    assert engine.pool.connections.stats().dialed == 0
    session(engine)
    until(lambda: engine.pool.checkedin() == 2)

    engine.dispose()
    assert engine.pool.connections.stats().dialed == 0
    assert (engine.pool.checkedin(), engine.pool.checkedout()) == (0, 0)
    session(engine)
    until(lambda: engine.pool.checkedin() == 2)


def test_a_pool_tells_how_it_stands_as_queue_pool_does(make: MakeEngine) -> None:
    pool = make(pool_size=2, max_overflow=1, pool_timeout=7).pool
    assert (pool.size(), pool.timeout(), pool.overflow()) == (2, 7, -2)
    conns = [pool.connect() for _ in range(3)]
    assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (0, 3, 1)
    for conn in conns:
        conn.close()
    until(lambda: pool.overflow() == 0)

    assert pool.status() == (
        "Pool size: 2  Connections in pool: 2 Current Overflow: 0 Current Checked out"
        " connections: 0"
    )


def test_who_waits_too_long_is_told_by_both(make: MakeEngine) -> None:
    engine = make(pool_size=2, pool_timeout=0.05)
    engine.pool.connections.fill(timeout=5)
    with engine.connect(), engine.connect():
        with pytest.raises(exc.TimeoutError, match="no connection came free in 0.05 s") as raised:
            engine.connect()
    assert isinstance(raised.value.__cause__, PoolTimeout)
    assert raised.value.__cause__.in_use == 2
    assert raised.value.code == "3o7r"


def test_without_a_bound_on_the_overflow_no_one_waits(make: MakeEngine) -> None:
    pool = make(max_overflow=-1, pool_timeout=0.5).pool
    conns = [pool.connect() for _ in range(4)]
    assert pool.overflow() == 3
    for conn in conns:
        conn.close()
    until(lambda: pool.checkedin() == 1 and pool.overflow() == 0)


@pytest.mark.parametrize("lifo", [False, True])
def test_the_order_is_what_is_asked_for(make: MakeEngine, lifo: bool) -> None:
    engine = make(pool_size=2, pool_use_lifo=lifo)
    with engine.connect() as first, engine.connect() as second:
        sessions = [pid(second), pid(first)]  # in the order in which they are given back

    assert session(engine) == sessions[1 if lifo else 0]


def test_first_come_first_served(make: MakeEngine) -> None:
    engine = make()
    served: list[int] = []

    def use(number: int) -> None:
        with engine.connect():
            served.append(number)
            gevent.sleep(0)

    with engine.connect():
        users = [gevent.spawn(use, number) for number in range(20)]
        gevent.sleep(0)
    gevent.joinall(users, raise_error=True)
    assert served == list(range(20))


def test_further_settings_are_those_of_connection_pool(make: MakeEngine) -> None:
    engine = make(pool_settings={"max_waiting": 1}, pool_logging_name="shop")
    assert engine.pool.connections.name == "shop"
    with engine.connect():
        caller = gevent.spawn(session, engine)
        until(lambda: engine.pool.connections._standing().waiting)
        with pytest.raises(PoolFull):
            engine.connect()
    assert caller.get() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool_size": 0}, "pool_size must be at least 1"),
        ({"pool_size": "many"}, "pool_size"),
        ({"max_overflow": -2}, "max_overflow must be at least -1"),
        ({"min_size": 3}, r"min_size \(3\) is more than pool_size \(1\)"),
        ({"pool_timeout": -1}, "timeout"),
        ({"pool_settings": {"size": 3}}, "'size' is pool_size of create_engine"),
        ({"pool_settings": {"sise": 3}}, "ConnectionPool has no 'sise'"),
        ({"pool_settings": {"keepalive": 0}}, "keepalive"),
    ],
)
def test_a_wrong_argument_is_named(
    make: MakeEngine, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(**arguments)


# Events


def test_the_events_of_a_use_come_in_their_order(make: MakeEngine) -> None:
    engine = make()
    session(engine)
    seen = events_of(engine)
    session(engine)
    assert seen == ["checkout", "reset", "checkin"]

    engine.dispose()
    assert seen[3:] == ["close"]
    session(engine)
    assert seen[4:] == ["connect", "checkout", "reset", "checkin"]


def test_a_listener_sets_up_each_connection_once(make: MakeEngine) -> None:
    engine = make(pool_size=2)
    made: list[Any] = []

    @event.listens_for(engine, "connect")
    def set_up(dbapi_connection: Any, record: Any) -> None:
        record.info["number"] = len(made)
        made.append(dbapi_connection)

    with engine.connect() as first, engine.connect() as second:
        assert {first.info["number"], second.info["number"]} == {0, 1}
    for _ in range(4):
        with engine.connect() as conn:
            assert made[conn.info["number"]] is conn.connection.driver_connection
    assert len(made) == 2


def test_what_a_listener_raises_as_it_connects_reaches_who_waits(make: MakeEngine) -> None:
    engine = make()
    broken = [True]

    @event.listens_for(engine, "connect")
    def set_up(dbapi_connection: Any, record: Any) -> None:
        if broken:
            raise LookupError("no such schema")

    with pytest.raises(LookupError, match="no such schema"):
        engine.connect()
    broken.clear()
    until(lambda: not engine.pool.connections._standing().failing)
    session(engine)


def test_what_a_listener_raises_as_it_checks_out_costs_the_connection_alone(
    make: MakeEngine,
) -> None:
    engine = make()
    old = session(engine)

    def refuse(*args: Any) -> None:
        raise LookupError

    event.listen(engine.pool, "checkout", refuse)
    for _ in range(3):
        with pytest.raises(LookupError):
            engine.connect()
    event.remove(engine.pool, "checkout", refuse)
    assert session(engine) != old


def test_a_listener_may_have_a_connection_replaced_as_it_is_checked_out(make: MakeEngine) -> None:
    engine = make()
    old = session(engine)

    @event.listens_for(engine, "checkout")
    def refuse(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        if dbapi_connection.info.backend_pid == old:
            raise exc.DisconnectionError

    new = session(engine)
    assert new != old
    assert session(engine) == new  # which the pool knows and watches


@pytest.mark.parametrize("name", ["checkin", "reset", "invalidate"])
@pytest.mark.parametrize("error", [LookupError, gevent.Timeout, gevent.GreenletExit])
def test_whatever_a_listener_raises_no_place_is_lost(
    make: MakeEngine, name: str, error: type[BaseException]
) -> None:
    engine = make()

    def fail(*args: Any) -> None:
        raise error

    event.listen(engine.pool, name, fail)
    for _ in range(3):
        conn = engine.connect()
        try:
            conn.invalidate() if name == "invalidate" else conn.close()
        except error:
            pass
        finally:
            conn.close()
    event.remove(engine.pool, name, fail)
    session(engine)
    assert engine.pool.checkedin() == 1


# Invalidation


def test_one_that_is_invalidated_is_replaced(make: MakeEngine) -> None:
    engine = make()
    seen = events_of(engine)
    with engine.connect() as conn:
        old = pid(conn)
        conn.invalidate()
        assert seen[-3:] == ["invalidate", "close", "checkin"]
        conn.rollback()
        assert pid(conn) != old  # SQLAlchemy gets another one for it
    assert session(engine) != old


def test_softly_it_is_replaced_when_it_is_back(make: MakeEngine) -> None:
    engine = make()
    conn = engine.raw_connection()
    old = conn.info, conn.driver_connection
    conn.invalidate(soft=True)
    assert not old[1].closed
    conn.close()
    with engine.connect() as again:
        assert again.connection.driver_connection is not old[1]
    until(lambda: old[1].closed)


def test_once_one_was_cut_off_all_others_are_replaced(make: MakeEngine) -> None:
    engine, admin = make(pool_size=3), make()
    with engine.connect() as first, engine.connect() as second, engine.connect() as third:
        old = {pid(first), pid(second), pid(third)}
        end(admin, pid(first))
        with pytest.raises(exc.DBAPIError) as raised:
            pid(first)
        assert raised.value.connection_invalidated
    with engine.connect() as first, engine.connect() as second, engine.connect() as third:
        assert old.isdisjoint({pid(first), pid(second), pid(third)})
    assert engine.pool.checkedin() == 3


def test_those_that_are_idle_are_closed_at_the_next_use(make: MakeEngine) -> None:
    engine = make(pool_size=3)
    with engine.connect() as first, engine.connect() as second, engine.connect() as third:
        drivers = [each.connection.driver_connection for each in (first, second, third)]
    engine.pool._invalidate(None)  # as SQLAlchemy does after a disconnect
    session(engine)
    until(lambda: all(driver.closed for driver in drivers), "their end", seconds=5)
    assert engine.pool.checkedin() == 1


def test_a_ping_finds_what_died_in_silence(make: MakeEngine) -> None:
    with ChaosProxy(require_server("postgres")) as proxy:
        engine = make(postgres(proxy.address), pool_pre_ping=True)
        old = session(engine)
        with engine.connect() as conn:
            gone = conn.connection.driver_connection
        gone.close()  # as if it had broken, and nobody had told the pool

        assert session(engine) != old


def test_what_is_pinged_is_pinged_by_the_keepalive_too(make: MakeEngine) -> None:
    engine = make(pool_settings={"keepalive": 0.05})
    pings: list[bool] = []
    ping = engine.dialect.do_ping
    engine.dialect.do_ping = lambda conn: pings.append(True) or ping(conn)
    old = session(engine)
    until(lambda: len(pings) > 1)
    assert session(engine) == old


def test_without_a_ping_a_hang_up_is_seen_at_once(make: MakeEngine) -> None:
    engine, admin = make(), make()
    old = session(engine)
    end(admin, old)
    assert session(engine) != old


@pytest.mark.slow
def test_one_that_is_old_is_recycled(make: MakeEngine) -> None:
    engine = make(pool_recycle=1)
    old = session(engine)
    assert session(engine) == old
    until(lambda: engine.pool.checkedin() == 0, "the end of its time", seconds=5)
    assert session(engine) != old


def test_one_that_is_detached_is_its_users_own(make: MakeEngine) -> None:
    engine = make()
    seen = events_of(engine)
    conn = engine.raw_connection()
    own = conn.driver_connection or conn.dbapi_connection
    conn.detach()
    assert "detach" in seen
    other = session(engine)  # there is room for another one
    assert own.execute("select pg_backend_pid()").fetchone()[0] != other
    conn.close()
    assert "close_detached" in seen
    assert own.closed


# Resets


@pytest.mark.parametrize(
    ("on_return", "rows"), [("rollback", 0), ("commit", 1), (None, None)], ids=str
)
def test_on_return_it_is_reset_as_is_asked_for(
    make: MakeEngine, on_return: Any, rows: int | None
) -> None:
    engine = make(pool_reset_on_return=on_return)
    conn = engine.raw_connection()
    conn.cursor().execute("create temporary table kept (n int)")
    conn.commit()
    conn.cursor().execute("insert into kept values (1)")
    driver = conn.driver_connection
    conn.close()

    in_transaction = int(driver.info.transaction_status)
    assert in_transaction == (2 if on_return is None else 0)
    if rows is not None:
        assert driver.execute("select count(*) from kept").fetchone()[0] == rows
        driver.rollback()


@pytest.mark.parametrize("on_return", ["rollback", None])
def test_what_a_silent_timeout_leaves_under_way_reaches_no_one(
    make: MakeEngine, on_return: Any
) -> None:
    engine = make(pool_reset_on_return=on_return)
    conn = engine.raw_connection()
    with gevent.Timeout(0.05, False):
        conn.driver_connection.execute("select 'late', pg_sleep(0.3)")
    conn.close()

    with engine.connect() as again:
        assert again.execute(text("select 'mine'")).scalar() == "mine"


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_transaction_begun_by_hand_reaches_no_one(make: MakeEngine, driver: str) -> None:
    engine = make(postgres(driver=driver))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("begin"))
        conn.execute(text("create temporary table left_behind (n int)"))

    with engine.connect() as conn:
        assert conn.execute(text("select to_regclass('left_behind')")).scalar() is None


def test_a_pipeline_left_open_reaches_no_one(make: MakeEngine) -> None:
    engine = make()
    conn = engine.raw_connection()
    pipeline = conn.driver_connection.pipeline()
    pipeline.__enter__()
    conn.close()

    with engine.connect() as again:
        assert again.execute(text("select 'mine'")).scalar() == "mine"


def test_the_isolation_level_is_as_it_was(make: MakeEngine) -> None:
    engine = make()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        old = pid(conn)
        assert conn.connection.driver_connection.autocommit
    with engine.connect() as conn:
        assert pid(conn) == old
        assert not conn.connection.driver_connection.autocommit


# Ends


def test_after_its_engine_is_disposed_one_in_use_is_closed_on_return(make: MakeEngine) -> None:
    engine = make(pool_size=2)
    with engine.connect() as conn:
        driver = conn.connection.driver_connection
        engine.dispose()
        assert pid(conn) > 0
    until(lambda: driver.closed)
    assert session(engine) > 0


def test_nor_does_the_pool_keep_it(make: MakeEngine) -> None:
    pool = make(pool_size=2).pool
    conn = pool.connect()
    driver = conn.driver_connection
    pool.dispose()
    conn.close()
    until(lambda: driver.closed)
    pool.connect().close()
    assert pool.checkedin() == 1


def test_the_idle_are_closed_when_dispose_returns(make: MakeEngine) -> None:
    engine = make(pool_size=3)
    with engine.connect() as first, engine.connect() as second:
        drivers = [each.connection.driver_connection for each in (first, second)]
    engine.dispose()
    assert all(driver.closed for driver in drivers)


def test_a_pool_that_is_disposed_stays_usable(make: MakeEngine) -> None:
    pool = make(min_size=1).pool
    for _ in range(2):
        pool.connect().close()
        pool.dispose()
        assert pool.checkedin() == 0


def test_an_engine_that_is_forgotten_closes_its_connections() -> None:
    engine: Any = create_engine(postgres(), poolclass=GeventPool)
    with engine.connect() as first, engine.connect() as second:
        drivers = [each.connection.driver_connection for each in (first, second)]
    del engine, first, second
    gc.collect()
    until(lambda: all(driver.closed for driver in drivers))


def test_a_connection_that_is_forgotten_comes_back(make: MakeEngine) -> None:
    engine = make()
    conn: Any = engine.connect()
    old = pid(conn)
    del conn
    gc.collect()
    assert session(engine) == old


def test_recreate_makes_a_pool_like_it(make: MakeEngine) -> None:
    pool = make(
        pool_size=3,
        max_overflow=4,
        pool_timeout=5,
        pool_recycle=600,
        pool_use_lifo=True,
        min_size=2,
        pool_pre_ping=True,
        pool_settings={"max_waiting": 9},
    ).pool
    again = pool.recreate()
    assert (again.size(), again.timeout()) == (3, 5)
    assert (again._recycle, again._pre_ping, again._dialect) == (600, True, pool._dialect)
    assert again.connections.max_waiting == 9
    assert again.connections._standing().maximum == 7
    assert again.connections.stats().dialed == 0


# Servers that are away


def test_while_a_server_is_away_its_refusal_is_raised_at_once(make: MakeEngine) -> None:
    with ChaosProxy(require_server("postgres")) as proxy:
        proxy.refuse()
        engine = make(postgres(proxy.address))
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(exc.OperationalError, match="refused"):
                engine.connect()
        assert time.monotonic() - began < 2.5
        assert engine.pool.connections.stats().dialed < 10

        proxy.normal()
        until(lambda: not engine.pool.connections._standing().failing)
        session(engine)


def test_or_callers_wait_for_it(make: MakeEngine) -> None:
    with ChaosProxy(require_server("postgres")) as proxy:
        proxy.refuse()
        engine = make(postgres(proxy.address), pool_settings={"down_after": None})
        caller = gevent.spawn(session, engine)
        until(lambda: engine.pool.connections.stats().dial_failed > 1)
        proxy.normal()
        assert caller.get(timeout=20) > 0


# What would block


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "url", "error"),
    [
        ("pass", "sqlite://", "RuntimeError: SQLAlchemy would block gevent's hub, as the program"),
        (
            "import psycopg; from gevent import monkey; monkey.patch_all()",
            "postgresql+psycopg://",
            "RuntimeError: psycopg would block gevent's hub, as psycopg was imported before",
        ),
        (
            "from gevent import monkey; monkey.patch_all()",
            "mysql+mysqldb://",
            "ImportError: mysqlclient (MySQLdb) waits in C",
        ),
    ],
)
def test_what_would_block_is_refused(patch: str, url: str, error: str) -> None:
    if "mysqldb" in url and importlib.util.find_spec("MySQLdb") is None:
        pytest.skip("mysqlclient is not installed")
    code = (
        f"{patch}\nfrom sqlalchemy import create_engine\n"
        "from geventpool.contrib.sqlalchemy import GeventPool\n"
        f"create_engine({url!r}, poolclass=GeventPool)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert error in ended.stderr
