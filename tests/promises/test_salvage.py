"""No caller reads another's reply, though connections whose use was cut short are used again.

Late replies of servers in this process, and PostgreSQL, which is told to stop what nobody waits for
any more.  What else there is to salvaging: tests/runtime/test_salvage.py.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import psycopg
import pytest
from gevent import monkey
from gevent.event import Event
from gevent.pool import Pool as Group
from psycopg import generators
from psycopg.pq import TransactionStatus

from geventpool import ConnectionPool, Reason, SocketFactory
from support.servers import IdServer, ask, require_server
from support.waiting import until, until_readable

REQUESTS = 2000
SIZE = 20
CLIENTS = 5
PATIENCE = 0.006  # of a client, in seconds; a late reply takes LATE_BY
LATE_BY = 0.012

# A line protocol, with replies that come late


class LinePool(ConnectionPool[Any]):
    """What was cut short is salvaged by a question of which the answer can be no other's."""

    numbers = itertools.count()

    def _salvage_connection(self, sock: Any, error: BaseException | None) -> None:
        marker = f"salvage {next(self.numbers)}\n".encode()
        sock.sendall(marker)
        answer = b""
        while not answer.endswith(marker):
            data = sock.recv(65536)
            if not data:
                raise ConnectionResetError("the server hung up")
            answer += data


@pytest.fixture(params=["plain", "TLS"])
def dial(request: pytest.FixtureRequest, contexts: tuple[Any, Any]) -> Iterator[Callable[[], Any]]:
    """Of a server of which one answer in 25 is late."""
    of_server, of_client = contexts if request.param == "TLS" else (None, None)
    with IdServer(late_share=0.04, late_by=LATE_BY, seed=7, ssl_context=of_server) as server:
        _, port = server.address
        yield SocketFactory(("localhost", port), tls=of_client or False)


def leave_by_a_timeout(pool: Any, question: str, count: Counter[str]) -> str | None:
    try:
        with pool.get() as sock, gevent.Timeout(PATIENCE):
            return ask(sock, question)
    except gevent.Timeout:
        count["cut short"] += 1
        return None


def stay_with_a_silent_timeout(pool: Any, question: str, count: Counter[str]) -> str | None:
    with pool.get() as sock:
        with gevent.Timeout(PATIENCE, False):
            return ask(sock, question)
        count["cut short"] += 1
    return None


def be_killed(pool: Any, question: str, count: Counter[str]) -> str | None:
    def use() -> str:
        with pool.get() as sock:
            begun.set()
            return ask(sock, question)

    begun = Event()
    greenlet = gevent.spawn(use)
    begun.wait()
    greenlet.join(PATIENCE)
    if greenlet.ready():
        return greenlet.get()
    greenlet.kill()
    count["cut short"] += 1
    return None


@pytest.mark.slow
@pytest.mark.parametrize("use", [leave_by_a_timeout, stay_with_a_silent_timeout, be_killed])
def test_late_replies_reach_nobody_and_their_connections_are_used_again(
    use: Callable[..., str | None], dial: Callable[[], Any]
) -> None:
    count: Counter[str] = Counter()

    def request(number: int) -> None:
        question = f"request {number}"
        answer = use(pool, question, count)
        if answer is not None:
            count["right" if answer == question else "wrong"] += 1

    with LinePool(SIZE, connect=dial) as pool:
        pool.fill()
        group = Group(CLIENTS)
        for number in range(REQUESTS):
            group.spawn(request, number)
        group.join(raise_error=True)
        until(lambda: not pool.stats().salvaging, "the last salvage")
        stats = pool.stats()

    assert count["wrong"] == 0
    assert count["right"] > REQUESTS * 0.8
    assert count["cut short"] > REQUESTS / 50
    # What is more than half of them at a time is closed, and opened again.
    closed = stats.closed[Reason.CUT_SHORT]
    assert stats.salvaged + closed == count["cut short"]
    assert stats.salvaged > count["cut short"] / 4
    assert stats.opened == SIZE + closed


class Sloppy(ConnectionPool[Any]):
    """A salvage that does not do what it should."""

    how = ""

    def _salvage_connection(self, sock: Any, error: BaseException | None) -> None:
        if self.how == "leaves the reply unread":
            until_readable(sock.fileno())
        elif self.how == "gives up to wait for it":
            with gevent.Timeout(0.001, False):
                sock.recv(100)


@pytest.mark.parametrize(
    ("how", "late_by", "reason"),
    [
        ("leaves the reply unread", 0.3, Reason.UNREAD),
        ("gives up to wait for it", 60.0, Reason.CUT_SHORT),
    ],
)
def test_a_salvage_after_which_a_reply_may_yet_be_read_does_not_count(
    how: str, late_by: float, reason: Reason
) -> None:
    with IdServer(late_share=1.0, late_by=late_by) as server:
        with Sloppy(1, connect=SocketFactory(server.address), salvage_timeout=20) as pool:
            pool.how = how
            with pytest.raises(gevent.Timeout), pool.get() as sock, gevent.Timeout(0.01):
                ask(sock, "old")
            server.late_share = 0.0
            with pool.get(timeout=10) as other:
                assert other is not sock
                assert ask(other, "new") == "new"

            assert pool.stats().closed[reason] == 1
            assert (pool.stats().salvaged, pool.stats().salvage_failed) == (0, 1)


# PostgreSQL


NAME = f"geventpool salvage {os.getpid()}"


def connect_to_postgres(**settings: Any) -> Any:
    host, port = require_server("postgres")
    return psycopg.connect(host=host, port=port, user="postgres", dbname="test", **settings)


class PostgresPool(ConnectionPool[Any]):
    def _new_connection(self) -> Any:
        return connect_to_postgres(application_name=NAME)

    def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
        if conn.info.transaction_status == TransactionStatus.ACTIVE:
            conn.cancel_safe(timeout=10.0)
            conn.wait(generators.fetch_many(conn.pgconn))  # up to the end of what was asked
        conn.rollback()

    def _reset_connection(self, conn: Any) -> None:
        conn.rollback()


@pytest.mark.slow
@pytest.mark.skipif(
    not monkey.is_module_patched("socket"), reason="the client blocks unless gevent has patched it"
)
def test_queries_of_postgresql_that_nobody_waits_for_are_cancelled_and_their_sessions_kept() -> (
    None
):
    admin = connect_to_postgres(autocommit=True)
    sessions = "select pid, state from pg_stat_activity where application_name = %s"
    rng = random.Random(7)
    count: Counter[str] = Counter()
    most = 0

    def look() -> None:
        nonlocal most
        found = admin.execute(sessions, (NAME,)).fetchall()
        most = max(most, len(found))

    def client(number: int) -> None:
        for turn in range(5):
            mine = 100 * number + turn
            slow = rng.random() < 0.7
            try:
                with gevent.Timeout(rng.uniform(0.1, 0.6) if slow else 20.0):
                    with pool.get() as conn:
                        gone = "pg_sleep(60)" if slow else "null"
                        answer = conn.execute(f"select {mine}, {gone}").fetchone()[0]
                        count["right" if answer == mine else "wrong"] += 1
            except gevent.Timeout:
                count["cut short"] += 1

    with PostgresPool(10, (psycopg.OperationalError,), salvage_timeout=10) as pool:
        pool.fill()
        clients = [gevent.spawn(client, number) for number in range(40)]
        while not all(each.ready() for each in clients):
            look()
            gevent.sleep(0.02)
        gevent.joinall(clients, raise_error=True)
        until(lambda: not pool.stats().salvaging, "the last salvage")
        pool.fill()
        look()
        running = [row for row in admin.execute(sessions, (NAME,)) if row[1] != "idle"]
        stats = pool.stats()
    admin.close()

    assert count["wrong"] == 0
    assert count["right"] > 20
    assert count["cut short"] > 100
    assert running == []  # no pg_sleep(60) is under way for nobody
    assert most <= 10
    assert stats.salvaged > 20
    assert stats.opened - 10 <= stats.salvaged / 3  # a new session for few of them
