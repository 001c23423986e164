"""examples/django_site: its commands, its tests, and requests to it under gunicorn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket

from support import ROOT
from support.adapters.mysql import PyMySQL
from support.adapters.postgres import Psycopg
from support.waiting import until

SITE = ROOT / "examples" / "django_site"
PATIENCE = 30.0
NAME = f"geventpool_site_{os.getpid()}"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("run_folder")]

ADMINISTRATORS: dict[str, Any] = {"postgresql": Psycopg(), "mysql": PyMySQL()}
DATABASES = {
    "postgresql": "select datname from pg_database",
    "mysql": "select schema_name from information_schema.schemata",
}


@pytest.fixture(params=["postgresql", "mysql"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def environ(engine: str) -> Mapping[str, str]:
    host, port = ADMINISTRATORS[engine].shared_address()
    site = {"DB_ENGINE": engine, "DB_NAME": NAME, "DB_HOST": host, "DB_PORT": str(port)}
    return {**os.environ, **site, "PYTHONPATH": str(ROOT)}


def administer(engine: str, *statements: str) -> list[Any]:
    administrator = ADMINISTRATORS[engine]
    found: list[Any] = administrator.administer(administrator.shared_address(), *statements)
    return found


@pytest.fixture
def database(engine: str) -> Iterator[str]:
    administer(engine, f"create database {NAME}")
    yield NAME
    administer(engine, f"drop database {NAME}")


Manage = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def manage(environ: Mapping[str, str]) -> Manage:
    """Runs ``manage.py`` with those arguments."""

    def manage(*arguments: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=SITE,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended

    return manage


def test_its_tests_pass_and_leave_no_database(engine: str, manage: Manage) -> None:
    said = manage("test", "--noinput").stderr
    assert "Ran 5 tests" in said
    assert "OK" in said
    assert f"test_{NAME}" not in administer(engine, DATABASES[engine])


def test_management_commands_work(engine: str, database: str, manage: Manage) -> None:
    assert "shop.0001_initial... OK" in manage("migrate", "--no-color").stdout
    assert "No changes detected" in manage("makemigrations", "--check").stdout
    assert "no issues" in manage("check", "--database", "default").stdout
    assert "class ShopVisit" in manage("inspectdb", "shop_visit").stdout
    query = ["-c"] if engine == "postgresql" else ["-e"]
    assert "42" in manage("dbshell", "--", *query, "select 6 * 7").stdout
    manage("flush", "--noinput")


@contextmanager
def served(environ: Mapping[str, str], *options: str) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        address, fd = listener.getsockname(), listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--bind", f"fd://{fd}"]
        process = subprocess.Popen(
            [*command, *options, "--log-level", "warning", "shop.wsgi"],
            cwd=SITE,
            env=environ,
            pass_fds=[fd],
        )
    try:
        yield address
        process.send_signal(signal.SIGTERM)
        until(lambda: process.poll() is not None)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def fetch(address: tuple[str, int], path: str) -> tuple[int, dict[str, Any]]:
    """GET *path*, over a connection of its own: the status and the answer."""
    with socket.create_connection(address, timeout=PATIENCE) as sock:
        sock.sendall(f"GET /{path} HTTP/1.0\r\nHost: test\r\n\r\n".encode())
        response = b""
        while data := sock.recv(65536):
            response += data
    head, body = response.split(b"\r\n\r\n", 1)
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_it_answers_under_gunicorn_and_gives_up_what_takes_too_long(
    engine: str,
    database: str,
    manage: Manage,
    environ: Mapping[str, str],
    options: tuple[str, ...],
) -> None:
    manage("migrate")
    with served(environ, *options) as address:
        assert fetch(address, "visit/anna") == (200, {"who": "anna", "visits": 1})

        def visit(number: int) -> None:
            status, answer = fetch(address, f"visit/{number}")
            assert (status, answer["who"]) == (200, str(number))

        requests = [gevent.spawn(visit, number) for number in range(100)]
        late = [gevent.spawn(fetch, address, "slow/5") for _ in range(20)]
        gevent.joinall([*requests, *late], timeout=60, raise_error=True)
        assert all(each.value[0] in (504, 503) for each in late)
        assert [each.value[0] for each in late].count(504) > 0
        assert fetch(address, "visit/anna") == (200, {"who": "anna", "visits": 2})
        for _ in range(10):
            _, pool = fetch(address, "pool")
            assert pool["in_use"] <= 1
