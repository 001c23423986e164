"""The pool in gunicorn's gevent workers: examples/gunicorn_app.py under load."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import psycopg
import pytest

from support import ROOT
from support.servers import EchoServer, require_server
from support.waiting import until
from support.web import Gunicorn, fetch

pytestmark = pytest.mark.usefixtures("run_folder")
EXAMPLES = ROOT / "examples"
PATIENCE = 30.0


class PidServer(EchoServer):
    """A line-echo server that knows which processes have spoken on each of its connections."""

    def __init__(self) -> None:
        super().__init__()
        self.pids: dict[Any, set[str]] = {}

    def serve(self, sock: Any) -> None:
        speakers = self.pids[sock] = set()
        unread = b""
        while data := sock.recv(65536):
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                speakers.add(line.split()[0].decode())
                sock.sendall(line + b"\n")


def gunicorn(
    *options: str, where: Path = EXAMPLES, environ: Mapping[str, str] | None = None
) -> Gunicorn:
    """The application in *where*, served from a process of its own with two workers."""
    configuration = ("-c", str(EXAMPLES / "gunicorn.conf.py"))
    return Gunicorn("gunicorn_app:app", *configuration, *options, where=where, environ=environ)


def example(server: EchoServer, *options: str) -> Gunicorn:
    host, port = server.address
    return gunicorn(*options, environ={"LINE_ECHO": f"{host}:{port}"})


def ask(address: tuple[str, int], path: str) -> dict[str, Any]:
    """GET *path*, over a connection of its own."""
    status, body = fetch(address, f"/{path}")
    if status != 200:
        raise ConnectionError(f"no reply: {status} {body!r}")
    answer: dict[str, Any] = json.loads(body)
    return answer


def load(address: tuple[str, int], greenlets: int, requests: int) -> tuple[set[int], int, int]:
    """Which workers answered, how many replies were wrong, and how many requests failed."""
    pids: set[int] = set()
    wrong = failed = 0

    def work(me: int) -> None:
        nonlocal wrong, failed
        for number in range(requests):
            path = f"{me}-{number}"
            try:
                answer = ask(address, path)
            except (OSError, ValueError):
                failed += 1  # its worker was killed in the middle
                continue
            pids.add(answer["pid"])
            wrong += answer["reply"] != f"{answer['pid']} {path}"

    gevent.joinall([gevent.spawn(work, me) for me in range(greenlets)], raise_error=True)
    return pids, wrong, failed


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["lazy", "preload"])
def test_workers_share_no_connection_and_a_killed_one_spoils_no_reply(
    options: tuple[str, ...],
) -> None:
    with PidServer() as server, example(server, *options) as serving:
        address = serving.address
        before, wrong, failed = load(address, greenlets=20, requests=20)
        assert (wrong, failed) == (0, 0)

        victim = min(before)
        killer = gevent.spawn_later(0.05, os.kill, victim, signal.SIGKILL)
        _, wrong, _ = load(address, greenlets=20, requests=20)
        killer.get()
        assert wrong == 0

        until(lambda: victim not in load(address, greenlets=20, requests=2)[0])
        until(lambda: len(load(address, greenlets=20, requests=2)[0] - {victim}) == 2)
        after, wrong, failed = load(address, greenlets=20, requests=20)
        assert (wrong, failed) == (0, 0)
        assert victim not in after

        speakers = list(server.pids.values())
        assert all(len(pids) <= 1 for pids in speakers), "two processes spoke on one connection"
        assert {str(pid) for pid in before | after} <= set().union(*speakers)
        # Ten for each worker, prefilled.
        server.wait_until(lambda: server.open >= 20, PATIENCE, "20 open")
    assert server.open == 0


@pytest.mark.slow
def test_the_workers_close_their_connections_when_gunicorn_stops() -> None:
    with PidServer() as server:
        with example(server) as serving:
            load(serving.address, greenlets=10, requests=2)
            assert server.open > 0

        server.wait_open(0)


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["lazy", "preload"])
def test_the_master_opens_no_connection_of_its_own(options: tuple[str, ...]) -> None:
    """Two workers with ten each, by themselves, without a request."""
    with PidServer() as server:
        with example(server, *options):
            server.wait_until(lambda: server.open >= 20, PATIENCE, "20 open")
            gevent.sleep(1.0)  # for what must not come

            assert server.open == 20
        assert server.opened == 20


WITH_POSTGRES = """
import os
import psycopg
from geventpool import ConnectionPool

def connect():
    name = os.environ["RUN"] + " " + str(os.getpid())
    return psycopg.connect(os.environ["SERVER"], application_name=name)

pool = ConnectionPool(5, connect=connect)
master = os.getpid()

def app(environ, start_response):
    with pool.get(timeout=10) as conn:
        (name,) = conn.execute(
            "select current_setting('application_name')"
        ).fetchone()
        conn.rollback()
    payload = b'{"master": %d, "own": %d, "opened_by": %d}' % (
        master, os.getpid(), int(name.split()[1])
    )
    start_response("200 OK", [("Content-Length", str(len(payload)))])
    return [payload]
"""


@pytest.mark.slow
def test_two_preloaded_workers_have_ten_sessions_of_postgresql_and_their_master_none(
    tmp_path: Path,
) -> None:
    """Before there is a request, and after many."""
    host, port = require_server("postgres")
    server = f"host={host} port={port} user=postgres dbname=test"
    (tmp_path / "gunicorn_app.py").write_text(WITH_POSTGRES)
    run = f"preload-{os.getpid()}"
    query = "select application_name from pg_stat_activity where application_name like %s"

    with psycopg.connect(server, autocommit=True) as admin:

        def sessions() -> Counter[int]:
            """How many each process has opened."""
            names = admin.execute(query, (f"{run} %",)).fetchall()
            return Counter(int(name.split()[1]) for (name,) in names)

        assert not sessions()
        environ = {"SERVER": server, "RUN": run}
        with gunicorn("--preload", where=tmp_path, environ=environ) as serving:
            until(lambda: sum(sessions().values()) >= 10)
            gevent.sleep(1.0)  # for what must not come
            before = sessions()
            answers = [ask(serving.address, "") for _ in range(20)]
            after = sessions()

        until(lambda: not sessions())
    (master,) = {answer["master"] for answer in answers}
    assert list(before.values()) == [5, 5]
    assert after == before
    assert master not in before
    assert {answer["own"] for answer in answers} <= set(before)
    assert all(answer["own"] == answer["opened_by"] for answer in answers)
