"""The pool in gunicorn's gevent workers: examples/gunicorn_app.py under load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket

from support import ROOT
from support.servers import EchoServer
from support.waiting import until

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


@contextmanager
def gunicorn(server: EchoServer, *options: str) -> Iterator[tuple[str, int]]:
    """The application of the example, served from a process of its own with two workers."""
    host, port = server.address
    environ = {**os.environ, "LINE_ECHO": f"{host}:{port}"}
    environ["PYTHONPATH"] = str(EXAMPLES.parent)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        address, fd = listener.getsockname(), listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"]
        command += ["--no-control-socket", "--bind", f"fd://{fd}", "--log-level", "warning"]
        process = subprocess.Popen(
            [*command, *options, "gunicorn_app:app"], cwd=EXAMPLES, env=environ, pass_fds=[fd]
        )
    try:
        yield address
        process.send_signal(signal.SIGTERM)
        until(lambda: process.poll() is not None)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def fetch(address: tuple[str, int], path: str) -> dict[str, Any]:
    """GET *path*, over a connection of its own."""
    sock = socket.create_connection(address, timeout=PATIENCE)
    try:
        sock.sendall(f"GET /{path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        response = b""
        while data := sock.recv(65536):
            response += data
    finally:
        sock.close()
    head, _, body = response.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(f"no reply: {head[:60]!r}")
    answer: dict[str, Any] = json.loads(body)
    return answer


def load(address: tuple[str, int], greenlets: int, requests: int) -> tuple[set[int], int, int]:
    """Which workers answered, how many replies were wrong, and how many requests failed."""
    pids: set[int] = set()
    wrong = failed = 0

    def ask(me: int) -> None:
        nonlocal wrong, failed
        for number in range(requests):
            path = f"{me}-{number}"
            try:
                answer = fetch(address, path)
            except (OSError, ValueError):
                failed += 1  # its worker was killed in the middle
                continue
            pids.add(answer["pid"])
            wrong += answer["reply"] != f"{answer['pid']} {path}"

    gevent.joinall([gevent.spawn(ask, me) for me in range(greenlets)], raise_error=True)
    return pids, wrong, failed


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["lazy", "preload"])
def test_workers_share_no_connection_and_a_killed_one_spoils_no_reply(
    options: tuple[str, ...],
) -> None:
    with PidServer() as server, gunicorn(server, *options) as address:
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
        with gunicorn(server) as address:
            load(address, greenlets=10, requests=2)
            assert server.open > 0

        server.wait_open(0)


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["lazy", "preload"])
def test_the_master_opens_no_connection_of_its_own(options: tuple[str, ...]) -> None:
    """Two workers with ten each, by themselves, without a request."""
    with PidServer() as server:
        with gunicorn(server, *options):
            server.wait_until(lambda: server.open >= 20, PATIENCE, "20 open")
            gevent.sleep(1.0)  # for what must not come

            assert server.open == 20
        assert server.opened == 20
