"""Servers of a test's own, which it may restart, fill up and make read-only.

    with OwnPostgres() as server:
        psycopg.connect(**server.login)
        server.restart()

Each is started from what is installed, in a temporary folder, at a free port of 127.0.0.1, by a
user without rights if the tests are run by root; or at a place of a network of ``networks.py``,
where nothing of this process's network can reach it, but for a Unix socket.  What is not
installed is skipped, or, with ``GEVENTPOOL_REQUIRE_SERVERS=1``, a failure, as in ``servers.py``.
"""

from __future__ import annotations

import glob
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NoReturn

import gevent
import gevent.socket
import pytest

from support.networks import Place

__all__ = [
    *("OwnEtcd", "OwnMariaDb", "OwnPostgres", "OwnRedis", "OwnServer", "OwnZooKeeper"),
    "free_port",
]

_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/sbin", "/usr/bin", "/usr/local/bin")


class OwnServer:
    """A server that a test starts and stops; ``address`` stays the same."""

    name: ClassVar[str]
    program: ClassVar[str]
    stop_by: ClassVar[int] = signal.SIGTERM
    ready: ClassVar[str] = ""  # what its log says as it takes connections
    group: int | None = None  # if it matters to the program

    def __init__(self, *options: str, place: Place | None = None) -> None:
        self.options = options
        self.place = place
        self.program_path = program(self.program)
        self.folder = Path(tempfile.mkdtemp(prefix=f"geventpool-{self.name}-"))
        self.data = self.folder / "data"
        self.log_path = self.folder / "log"
        self.user = "nobody" if os.getuid() == 0 else None
        if self.user is not None:
            os.chown(self.folder, pwd.getpwnam(self.user).pw_uid, -1)
        self.address = ("127.0.0.1" if place is None else place.host, free_port())
        self._process: Any = None
        self._seen = 0  # of its log, as it was started

    def __enter__(self) -> OwnServer:
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        exc_class: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What each does in its own way

    def prepare(self) -> None:
        """Make the folder of its data."""

    def command(self) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    # What all do

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._seen = len(self.log())
        self._process = self._popen(self.command())
        deadline = time.monotonic() + 60
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self.name} does not start:\n{self.log()[-3000:]}")
            gevent.sleep(0.01)

    def answers(self) -> bool:
        """Whether it takes connections."""
        if self.ready not in self.log()[self._seen :]:
            return False
        if self.place is not None:
            return bool(self.ready)
        try:
            gevent.socket.create_connection(self.address, timeout=5).close()
        except OSError:
            return False
        return True

    def stop(self, by: int | None = None) -> None:
        """End it, in an orderly way, or by that signal."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(self.stop_by if by is None else by)
        deadline = time.monotonic() + 20
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
            gevent.sleep(0.005)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """What it has written to its log so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def hand_over(self, *files: Path) -> None:
        """Copy *files* into its folder, where it may read them, and is started."""
        for file in files:
            copied = self.folder / file.name
            shutil.copy(file, copied)
            shutil.chown(copied, self.user or os.getuid())

    def run(self, command: list[str]) -> None:
        """Run a program that prepares something, and wait for it."""
        process = self._popen(command)
        while process.poll() is None:
            gevent.sleep(0.005)
        if process.returncode:
            pytest.fail(f"{command[0]} failed:\n{self.log()[-3000:]}")

    def _popen(self, command: list[str]) -> Any:
        with open(self.log_path, "ab") as log:
            return subprocess.Popen(
                command if self.place is None else self.place.inside(command, self.user),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.user if self.place is None else None,
                group=self.group,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            )


class OwnPostgres(OwnServer):
    name = "postgres"
    program = "postgres"
    stop_by = signal.SIGINT  # a fast shutdown: sessions are ended, not waited for
    ready = "ready to accept connections"  # it listens before it lets anyone in

    @property
    def login(self) -> dict[str, Any]:
        """The arguments of ``psycopg.connect`` for its superuser."""
        host, port = self.address
        if self.place is not None:
            host = str(self.folder)  # where its Unix socket is
        return {"host": host, "port": port, "user": "postgres", "dbname": "postgres"}

    def prepare(self) -> None:
        initdb = [program("initdb"), "-D", str(self.data), "-U", "postgres", "-A", "trust"]
        self.run([*initdb, "-E", "UTF8", "--locale=C", "--no-sync"])
        if self.place is not None:  # only its own namespace is trusted without this
            with (self.data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")

    def command(self) -> list[str]:
        host, port = self.address
        sockets = self.folder if self.place is not None else ""
        options = ["fsync=off", f"listen_addresses={host}", f"unix_socket_directories={sockets}"]
        options += ["shared_buffers=16MB", "autovacuum=off", *self.options]
        settings = [word for option in options for word in ("-c", option)]
        return [self.program_path, "-D", str(self.data), "-p", str(port), *settings]


class OwnMariaDb(OwnServer):
    name = "mariadb"
    program = "mariadbd"

    @property
    def login(self) -> dict[str, Any]:
        """The arguments of ``pymysql.connect`` for its superuser."""
        host, port = self.address
        return {"host": host, "port": port, "user": "root"}

    def prepare(self) -> None:
        install = [program("mariadb-install-db"), "--no-defaults", f"--datadir={self.data}"]
        self.run([*install, "--auth-root-authentication-method=normal", "--skip-test-db"])

    def command(self) -> list[str]:
        host, port = self.address
        options = [f"--datadir={self.data}", f"--socket={self.folder}/socket", f"--port={port}"]
        options += [f"--bind-address={host}", "--skip-name-resolve", "--skip-log-bin"]
        options += ["--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0"]
        return [self.program_path, "--no-defaults", *options, *self.options]


class OwnRedis(OwnServer):
    name = "redis"
    program = "redis-server"
    ready = "eady to accept connections"

    def command(self) -> list[str]:
        host, port = self.address
        options = ["--port", str(port), "--bind", host, "--save", "", "--dir", str(self.folder)]
        if "--cluster-enabled" in self.options and "--cluster-port" not in self.options:
            # Else 10,000 more than the other, which may be somebody's.
            options += ["--cluster-port", str(free_port())]
        return [self.program_path, *options, *self.options]


class OwnEtcd(OwnServer):
    name = "etcd"
    program = "etcd"
    ready = "ready to serve client requests"

    def command(self) -> list[str]:
        host, port = self.address
        url, peers = f"http://{host}:{port}", f"http://{host}:{free_port()}"
        options = ["--data-dir", str(self.data), "--unsafe-no-fsync"]
        options += ["--listen-client-urls", url, "--advertise-client-urls", url]
        options += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
        options += ["--initial-cluster", f"default={peers}", "--initial-cluster-state", "new"]
        return [self.program_path, *options, *self.options]


class OwnZooKeeper(OwnServer):
    name = "zookeeper"
    program = "java"

    def prepare(self) -> None:
        self.data.mkdir()
        host, port = self.address
        lines = [f"dataDir={self.data}", f"clientPort={port}", f"clientPortAddress={host}"]
        lines += ["tickTime=500", "maxClientCnxns=0", "admin.enableServer=false", "forceSync=no"]
        (self.folder / "zoo.cfg").write_text("\n".join([*lines, *self.options]) + "\n")
        if self.user is not None:
            shutil.chown(self.data, self.user)

    def command(self) -> list[str]:
        jars = [*glob.glob("/usr/share/java/zookeeper.jar"), "/etc/zookeeper/conf"]
        if not jars[1:]:
            _missing("zookeeper")
        main = "org.apache.zookeeper.server.ZooKeeperServerMain"
        return [self.program_path, "-cp", ":".join(jars), main, str(self.folder / "zoo.cfg")]

    def answers(self) -> bool:
        # It listens before it serves, and may never answer a client that comes in between.
        try:
            with gevent.socket.create_connection(self.address, timeout=1) as sock:
                sock.sendall(b"srvr")
                return b"Mode: " in sock.makefile("rb").read()
        except OSError:
            return False


_dice = random.SystemRandom()  # hypothesis seeds the global one: then all would pick the same


def free_port() -> int:
    """One that no client gets by chance while its server is away, as it would one of the system's
    choice."""
    while True:
        port = _dice.randrange(20000, 32000)
        with gevent.socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def program(name: str) -> str:
    """The path of an installed program; skips the test, or fails it, if there is none."""
    __tracebackhide__ = True
    found = [path for place in _PLACES for path in sorted(glob.glob(f"{place}/{name}"))]
    if path := shutil.which(name) or (found and found[-1]):
        return path
    _missing(name)


def _missing(name: str) -> NoReturn:
    __tracebackhide__ = True
    missing = f"no {name} is installed"
    if os.environ.get("GEVENTPOOL_REQUIRE_SERVERS") == "1":
        pytest.fail(missing)
    pytest.skip(missing)
