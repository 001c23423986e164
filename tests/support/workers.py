"""Processes with a pool that answer to who asks for their snapshot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geventpool import observe
from geventpool.observe import history
from support import ROOT

__all__ = ["HANG", "SERVE", "run_folder", "worker"]

WORKER = """
import sys, gevent
from geventpool import ConnectionPool, observe
pool = ConnectionPool(1, connect=object, name=sys.argv[1])
observe.listen(group=int(sys.argv[2]))
print("ready", flush=True)
exec(sys.argv[3])
"""
SERVE = "gevent.wait()"
HANG = "import time; gevent.sleep(0); time.sleep(60)"


@contextmanager
def worker(name: str, do: str = SERVE) -> Iterator[subprocess.Popen[bytes]]:
    """One that runs *do* once it listens; its group is this process's."""
    command = [sys.executable, "-c", WORKER, name, str(os.getpid()), do]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with the sockets of this test's processes; this one listens no longer after."""
    monkeypatch.setenv("GEVENTPOOL_RUN_DIR", str(tmp_path / "run"))
    yield tmp_path / "run"
    observe.stop_listening()
    history.stop()  # which a status page may have started
