"""Web applications under gunicorn, in processes of their own, and a load with checked answers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

import gevent
import pytest
from gevent import socket

from support import ROOT
from support.waiting import until

__all__ = ["Gunicorn", "Outcome", "Reply", "WebLoad", "fetch"]

Address = tuple[str, int]
PATIENCE = 30.0


class Gunicorn:
    """Serves *app* with the configuration in *where*; ``address`` is where.

    It is ended at the end of the ``with``, by SIGTERM, and must have ended well.
    """

    def __init__(
        self, app: str, *options: str, where: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
            self.address: Address = listener.getsockname()
            fd = listener.fileno()
            command = [sys.executable, "-m", "gunicorn", "--no-control-socket"]
            command += ["--bind", f"fd://{fd}", "--log-level", "warning", *options, app]
            self.process: Any = subprocess.Popen(
                command,
                cwd=where,
                env={**os.environ, **(environ or {}), "PYTHONPATH": str(ROOT)},
                pass_fds=[fd],
            )

    def __enter__(self) -> Gunicorn:
        return self

    def __exit__(
        self,
        exc_class: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_class is None and self.process.poll() is None:
                self.terminate()
        finally:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> float:
        """SIGTERM; return how many seconds it took to end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        until(lambda: self.process.poll() is not None, "the end of gunicorn", 60.0)
        if self.process.returncode:
            pytest.fail(f"gunicorn ended with status {self.process.returncode}")
        return time.monotonic() - began


class Reply(NamedTuple):
    status: int
    body: str


def fetch(address: Address, path: str, headers: Mapping[str, str] | None = None) -> Reply:
    """GET *path* over a connection of its own; raises an OSError if no whole reply comes."""
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    sock = socket.create_connection(address, timeout=PATIENCE)
    try:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        response = b""
        while data := sock.recv(65536):
            response += data
    finally:
        sock.close()
    head, end, body = response.partition(b"\r\n\r\n")
    if not end or f"content-length: {len(body)}".encode() not in head.lower():
        raise ConnectionResetError(f"no whole reply: {response[:80]!r}")
    return Reply(int(head.split()[1]), body.decode())


class Outcome(NamedTuple):
    """Of one request: *status* 0 means that there was no reply."""

    began: float
    ended: float
    limited: bool
    status: int
    body: str


class WebLoad:
    """*greenlets* ask for ``/hello/NAME``, each for another name, until ``stop()``.

    Of the requests, 10 % come with a time limit of 0.5 to 60 ms; 10 % are slow at the database, of
    those with a limit every second one.  What is answered with another name is ``wrong``.
    """

    def __init__(self, address: Address, greenlets: int = 30, seed: int = 1) -> None:
        self.address = address
        self.outcomes: list[Outcome] = []
        self.wrong: list[tuple[str, str]] = []
        self._random = random.Random(seed)
        self._asked = 0
        self._ended = False
        self._greenlets = [gevent.spawn(self._work) for _ in range(greenlets)]

    def __repr__(self) -> str:
        counts = Counter((each.status, each.limited) for each in self.outcomes)
        return f"<WebLoad {len(self.wrong)} wrong, by status and whether limited: {dict(counts)}>"

    def wait_for(self, answers: int) -> None:
        """Wait until so many more requests were answered in full."""
        wanted = self.count(200) + answers
        until(lambda: self.count(200) >= wanted, f"{answers} more answers of {self!r}", 60.0)

    def stop(self) -> None:
        self._ended = True
        gevent.joinall(self._greenlets, raise_error=True)

    def count(self, status: int) -> int:
        return sum(each.status == status for each in self.outcomes)

    def failures(self) -> list[Outcome]:
        """Those that had all the time they wanted, and yet no answer."""
        return [each for each in self.outcomes if not each.limited and each.status != 200]

    def pids(self) -> set[int]:
        """Of the workers that have answered."""
        return {json.loads(each.body)["pid"] for each in self.outcomes if each.status == 200}

    def _work(self) -> None:
        while not self._ended:
            self._ask()

    def _ask(self) -> None:
        self._asked += 1
        name = f"{self._asked} of {self._random.random()}"
        limited = self._random.random() < 0.1
        slow = self._random.random() < (0.5 if limited else 0.1)
        headers = {"X-Timeout": f"{self._random.uniform(0.0005, 0.06):.4f}"} if limited else {}
        path = f"/hello/{quote(name)}" + ("?seconds=0.03" if slow else "")
        began = time.monotonic()
        try:
            status, body = fetch(self.address, path, headers)
        except OSError as error:
            status, body = 0, str(error)
            gevent.sleep(0.01)
        if status == 200:
            answer = json.loads(body)
            if (answer["greeting"], answer["name"]) != (f"hello, {name}", name):
                self.wrong.append((name, body))
        self.outcomes.append(Outcome(began, time.monotonic(), limited, status, body))
