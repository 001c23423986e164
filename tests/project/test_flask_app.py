"""examples/flask_app from one end to the other: two gevent workers, PostgreSQL and Redis, a load
whose answers are checked, and what happens to a service in a year.

Both servers are the test's own, as they are restarted.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import psycopg
import pytest
import redis

from support import ROOT
from support.adapters.redis import OwnRedis
from support.own_servers import OwnPostgres, OwnServer
from support.waiting import until
from support.web import Gunicorn, WebLoad, fetch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("run_folder")]

FLASK_APP = ROOT / "examples" / "flask_app"
WORKERS, SIZE = 2, 10  # as in its configuration
GRACEFUL_TIMEOUT = 15.0
SETTLED = 3.0  # seconds after an outage: back-off, and what was asked before its end


class Service:
    """The application under load, and the sessions that it has at both servers."""

    def __init__(
        self, database: OwnPostgres, cache: OwnServer, gunicorn: Gunicorn, load: WebLoad
    ) -> None:
        self.database = database
        self.cache = cache
        self.gunicorn = gunicorn
        self.load = load

    def sessions(self) -> tuple[int, int]:
        """At PostgreSQL and at Redis."""
        query = "select count(*) from pg_stat_activity where application_name = 'flask_app'"
        with psycopg.connect(**self.database.login) as admin:
            (database,) = admin.execute(query).fetchone() or (-1,)
        host, port = self.cache.address
        with redis.Redis(host=host, port=port) as admin:
            cache = admin.info("clients")["connected_clients"] - 1  # its own
        return database, cache

    def wait_for_sessions(self, count: int) -> None:
        """So many at PostgreSQL; no more at Redis, where a time limit that strikes costs one."""

        def there() -> bool:
            database, cache = self.sessions()
            return database == count and cache <= count

        until(there, f"{count} sessions at each, not {self.sessions()}", 60.0)

    def assert_whole(self, answers: int = 300) -> None:
        """As long as nothing is away: no wrong answer, no failure, and all sessions there."""
        self.wait_for_sessions(WORKERS * SIZE)
        began = time.monotonic()
        self.load.wait_for(answers)
        assert self.failures(since=began) == []
        assert self.load.wrong == []
        # One may be on its way out, after a Timeout in the wrong moment, and one on its way in.
        self.wait_for_sessions(WORKERS * SIZE)

    def failures(self, since: float, until: float = float("inf")) -> list[tuple[int, str]]:
        return [
            (each.status, each.body)
            for each in self.load.failures()
            if each.began >= since and each.ended <= until
        ]


@pytest.fixture(
    params=[((), "deadline"), (("--preload",), "timeout")],
    ids=["each worker by itself, Deadlines", "preloaded, Timeouts"],
)
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    options, limit = request.param
    with OwnPostgres() as database, OwnRedis() as cache:
        environ = {
            "DATABASE_URL": "postgresql://postgres@{}:{}/postgres?application_name=flask_app".format(
                *database.address
            ),
            "REDIS_URL": "redis://{}:{}/0".format(*cache.address),
            "LIMIT": limit,
        }
        with Gunicorn("app:app", *options, where=FLASK_APP, environ=environ) as gunicorn:
            load = WebLoad(gunicorn.address)
            try:
                yield Service(database, cache, gunicorn, load)
            finally:
                load.stop()


@pytest.mark.timeout(140)
def test_no_answer_is_wrong_and_none_is_missing_but_while_a_server_is_away(
    service: Service,
) -> None:
    service.assert_whole(1000)
    assert service.load.count(504) > 0, "no time limit has struck"

    # PostgreSQL goes, for longer than a request waits for a connection, and comes back; then Redis.
    for server in (service.database, service.cache):
        gone = time.monotonic()
        server.stop()
        until(lambda since=gone: len(service.failures(since)) >= 5, "callers that wait in vain")
        server.start()
        back = time.monotonic()
        service.assert_whole()
        assert {status for status, _ in service.failures(since=gone)} == {503}
        assert service.failures(since=back + SETTLED) == []

    # Both are restarted: those that come meanwhile wait, and get their answers.
    service.database.restart()
    service.cache.restart()
    service.assert_whole()

    # The system kills a worker: what it was at has no answer.
    victim = max(service.load.pids())
    struck = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    service.assert_whole()
    assert {status for status, _ in service.failures(since=struck)} <= {0}

    # New code: workers are replaced, one after the other.
    begun = time.monotonic()
    service.gunicorn.process.send_signal(signal.SIGHUP)
    service.load.wait_for(1000)
    service.assert_whole()
    assert service.failures(since=begun) == []

    # The end.
    service.load.stop()
    before = service.load.pids()
    assert len(before) >= 5, "two at first, one in place of the victim, two new ones"
    assert service.gunicorn.terminate() < GRACEFUL_TIMEOUT
    service.wait_for_sessions(0)


def test_the_page_of_the_pools_shows_both_of_both_workers(service: Service) -> None:
    service.wait_for_sessions(WORKERS * SIZE)
    reply = fetch(service.gunicorn.address, "/-/pools/pools.json")

    assert reply.status == 200
    workers = json.loads(reply.body)["workers"]
    assert [[pool["name"] for pool in each["pools"]] for each in workers] == [
        ["database", "cache"]
    ] * WORKERS


def test_sigterm_under_load_lets_requests_finish_and_leaves_no_session(service: Service) -> None:
    service.assert_whole()
    asked = time.monotonic()
    took = service.gunicorn.terminate()
    service.load.stop()

    assert took < GRACEFUL_TIMEOUT
    assert service.load.wrong == []
    # Those that come too late are not let in; none is let in, and then sent away.
    assert service.failures(since=0.0, until=asked) == []
    assert {status for status, _ in service.failures(since=0.0)} <= {0}
    service.wait_for_sessions(0)
