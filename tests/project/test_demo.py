"""``python -m geventpool demo`` keeps its promises, and says so when one is broken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from support import ROOT

# The demo with a pool that keeps every connection, whatever has left its `with`.
CARELESS = """
import sys
from geventpool.__main__ import Demo, main
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory

class Careless(ConnectionPool):
    def _breaks_connection(self, exc):
        return False
    def _make_probe(self, conn):
        return None

class CarelessDemo(Demo):
    def make_pool(self):
        return Careless(20, connect=SocketFactory(self.address), name="demo")

sys.exit(main(["demo", "--seconds", "4"], demo=CarelessDemo))
"""


def run(*command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], env=environ, capture_output=True, text=True, timeout=seconds
    )


@pytest.mark.slow
def test_the_demo_ends_well_and_its_table_says_so() -> None:
    done = run("-m", "geventpool", "demo", "--seconds", "5")

    assert done.returncode == 0, done.stdout + done.stderr
    for promise in (
        "requests answered",
        "given up",
        "wrong replies",
        "slowest wait",
        "dials while the server was away",
        "time to recover",
    ):
        assert promise in done.stdout
    assert "Every promise was kept." in done.stdout


@pytest.mark.slow
def test_a_pool_that_keeps_spoiled_connections_fails_the_demo() -> None:
    done = run("-c", CARELESS)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_without_a_command_it_shows_its_help() -> None:
    done = run("-m", "geventpool")

    assert "demo" in done.stdout + done.stderr


@pytest.mark.parametrize("option", ["--seconds=-1", "--seconds=soon", "--port=0", "--port=99999"])
def test_a_bad_option_is_refused_by_name(option: str) -> None:
    done = run("-m", "geventpool", "demo", option)

    assert done.returncode == 2
    assert option.split("=")[0] in done.stderr


def test_a_host_where_nothing_listens_is_a_clear_error() -> None:
    done = run("-m", "geventpool", "demo", "--host", "127.0.0.1", "--port", "1")

    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "127.0.0.1" in done.stdout + done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_it_with_the_table_and_leaves_no_server() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-u", "-m", "geventpool", "demo", "--seconds", "30"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        live = 0
        while live < 3:
            line = process.stdout.readline()
            assert line, "it ended by itself"
            live += "requests/s" in line
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)

    assert "requests answered" in rest, errors
    assert "Traceback" not in errors
