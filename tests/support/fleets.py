"""A fleet of real processes on a real PostgreSQL, which is asked what they have open."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

import gevent
import gevent.socket
import psycogreen.gevent
import psycopg2

from support import ROOT, TESTS
from support.descriptors import clients_of
from support.networks import Place
from support.own_servers import OwnPostgres
from support.waiting import until

__all__ = ["RealFleet", "RealProcess"]

EACH = 0.05  # seconds between two looks at pg_stat_activity
_OPEN = "select client_port from pg_stat_activity where application_name = 'fleet'"


class RealProcess:
    """One of them; *said* is what it has told last."""

    def __init__(self, settings: dict[str, Any], host: Place | None = None) -> None:
        command = [sys.executable, str(TESTS / "support" / "fleet_worker.py"), json.dumps(settings)]
        if host is not None:
            command = host.inside(command)
        self._process: Any = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        os.set_blocking(self._process.stdout.fileno(), False)
        self.said: dict[str, Any] = {"done": 0, "in_vain": [], "errors": [], "shares": []}
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        fd, unread = self._process.stdout.fileno(), b""
        while True:
            gevent.socket.wait_read(fd)
            data = os.read(fd, 65536)
            if not data:
                return
            *lines, unread = (unread + data).split(b"\n")
            if lines:
                self.said = json.loads(lines[-1])

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """Kill it, stopped or not."""
        self._process.kill()
        self._process.wait()
        self._reader.kill()
        self._process.stdin.close()
        self._process.stdout.close()


class RealFleet:
    """*processes* of *hubs* each, all as busy as they can be, and their database, at *place*."""

    def __init__(
        self,
        *,
        cap: int,
        slack: int,
        processes: int,
        hubs: int,
        place: Place | None = None,
        **settings: Any,
    ) -> None:
        self.cap, self.hubs = cap, hubs
        self.database = OwnPostgres(f"max_connections={cap + slack}", place=place)
        self.count = processes
        self.processes: list[RealProcess] = []
        self.settings = {"cap": cap, "hubs": hubs, "address": None, **settings}
        self.open = self.most = 0
        self._watcher: Any = None

    def __enter__(self) -> RealFleet:
        psycogreen.gevent.patch_psycopg()
        self.database.__enter__()
        host, port = self.database.address
        self.settings["dsn"] = f"host={host} port={port} user=postgres dbname=postgres"
        self._watch_again()
        for _ in range(self.count):
            self.start()
        return self

    def __exit__(
        self,
        exc_class: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watcher.kill()
        for process in self.processes:
            process.end()
        self.database.close()

    def start(self, host: Place | None = None) -> RealProcess:
        """One more of them, on *host*."""
        self.processes.append(RealProcess(self.settings, host))
        return self.processes[-1]

    def kill(self, process: RealProcess) -> None:
        """By SIGKILL; what it said of its requests is forgotten."""
        process.end()
        self.processes.remove(process)

    def until_open(self, least: int, seconds: float) -> None:
        """Wait until so many are open, and print how long that took."""
        began = time.monotonic()
        ends = began + seconds
        until(lambda: self.open >= least or time.monotonic() > ends, seconds=2 * seconds)
        assert self.open >= least, f"{self.open} open, not {least}, after {seconds:g} s"
        print(f"{least} were open after {time.monotonic() - began:.1f} s")

    @property
    def done(self) -> int:
        return sum(process.said["done"] for process in self.processes)

    @property
    def errors(self) -> list[str]:
        return [error for process in self.processes for error in process.said["errors"]]

    @property
    def in_vain(self) -> list[str]:
        """Of each request that waited for too long, what its limit was like then."""
        return [stats for process in self.processes for stats in process.said["in_vain"]]

    @property
    def refused(self) -> list[str]:
        """What the database's log says of connections beyond its limit."""
        words = ("too many clients", "connection slots are reserved", "too many connections")
        return [line for line in self.database.log().splitlines() if any(w in line for w in words)]

    def pause(self, process: RealProcess, seconds: float) -> None:
        process.signal(signal.SIGSTOP)
        gevent.sleep(seconds)
        process.signal(signal.SIGCONT)

    def restart_database(self) -> None:
        self._watcher.kill()
        self.database.restart()
        self._watch_again()

    def _watch_again(self) -> None:
        conn = psycopg2.connect(**self.database.login)
        conn.autocommit = True
        self._watcher = gevent.spawn(self._watch, conn)

    def _watch(self, conn: Any) -> None:
        with conn.cursor() as cursor:
            while True:
                cursor.execute(_OPEN)
                ports = {port for (port,) in cursor.fetchall()}
                if self.database.place is None:
                    # What its client has closed is in pg_stat_activity until its process has had a
                    # processor: on a busy machine that takes its time.
                    ports &= clients_of(self.database.address)
                self.open = len(ports)
                self.most = max(self.most, self.open)
                gevent.sleep(EACH)
