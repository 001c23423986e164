"""``python -m geventpool demo`` keeps its promises, and says so when one is broken."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import urllib.request
from array import array
from typing import Any

import pytest

from geventpool import COMPILED
from geventpool.demo.verdicts import Figures, judge
from geventpool.errors import PoolTimeout
from support import ROOT

# The demo with a pool that keeps every connection, whatever has left its `with`.
CARELESS = """
import sys
from contextlib import contextmanager
from geventpool.__main__ import main
from geventpool.demo import Demo
from geventpool.pools import ConnectionPool
from geventpool.sockets import SocketFactory

class Careless(ConnectionPool):
    @contextmanager
    def get(self):
        conn = self.acquire()
        try:
            yield conn
        finally:
            self._checkin(self._hold_of(conn), conn)
    def _make_probe(self, conn, ask):
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
    assert ("geventpool, compiled" in done.stdout) is COMPILED


@pytest.mark.slow
def test_with_page_it_can_be_watched() -> None:
    command = [sys.executable, "-u", "-m", "geventpool", "demo", "--seconds", "3", "--page"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said, _, url = process.stdout.readline().strip().rpartition(" ")
        assert said == "The status page:"
        names: list[str] = []
        while names != ["demo"]:  # in a moment it has made its pool
            with urllib.request.urlopen(url + "pools.json", timeout=30) as reply:
                (worker,) = json.load(reply)["workers"]
            names = [pool["name"] for pool in worker["pools"]]
        assert "Every promise was kept." in process.stdout.read()
    assert process.returncode == 0


@pytest.mark.slow
def test_a_pool_that_keeps_spoiled_connections_fails_the_demo() -> None:
    done = run("-c", CARELESS)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


@pytest.mark.parametrize("command", ["fill", "demp"])
def test_a_command_that_is_not_there_is_refused_with_those_that_are(command: str) -> None:
    done = run("-m", "geventpool", command)

    assert done.returncode == 2
    assert repr(command) in done.stderr
    assert "demo" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_command_it_shows_its_help() -> None:
    done = run("-m", "geventpool")

    assert "demo" in done.stdout
    assert done.returncode == 0


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


# The verdicts, which are judged by the figures alone


def figures_of_a_good_run() -> Figures:
    return Figures(
        connections=20,
        own_server=True,
        worked=True,
        began_at=100.0,
        ended_at=108.0,
        answered=5000,
        waits=array("d", [0.010, 0.010, 0.030]),
        longest_hold=0.1,
        cut_short=20,
        died_at=103.0,
        back_at=106.0,
        first_reply_at=106.5,
        last_reply_at=107.0,
        failed_dials=12,
    )


def broken(figures: Figures) -> list[str]:
    return [verdict.label for verdict in judge(figures) if verdict.kept is False]


def test_a_run_that_kept_every_promise_has_nothing_broken() -> None:
    rows = list(judge(figures_of_a_good_run()))

    assert broken(figures_of_a_good_run()) == []
    assert "1,111 a second" in rows[0].remark  # 5000 in the 4.5 s without the outage
    assert all(row.kept is not None for row in rows[2:])


@pytest.mark.parametrize(
    ("label", "change"),
    [
        ("requests answered", {"answered": 0}),
        ("wrong replies", {"wrong": 1}),
        ("cut short by the server's end", {"cut_short": 21}),
        ("slowest wait for a connection", {"waits": array("d", [0.010, 0.010, 0.151])}),
        ("dials while the server was away", {"failed_dials": 13}),
        ("time to recover: the first reply", {"first_reply_at": 107.21}),
        ("a reply for everybody", {"last_reply_at": 107.51}),
        ("a reply for everybody", {"unserved": {7}}),
        ("callers sent away", {"refusals": [PoolTimeout("late")]}),
    ],
)
def test_each_promise_that_was_broken_is_named(label: str, change: dict[str, Any]) -> None:
    figures = dataclasses.replace(figures_of_a_good_run(), **change)

    assert label in broken(figures)


def test_what_a_busy_machine_delayed_is_no_fault_of_the_pool() -> None:
    late = {"first_reply_at": 107.5, "last_reply_at": 107.8, "lag": 0.4}

    assert broken(dataclasses.replace(figures_of_a_good_run(), **late)) == []


def test_a_run_that_was_interrupted_in_the_outage_is_not_judged_by_its_end() -> None:
    never = dict.fromkeys(("back_at", "first_reply_at", "last_reply_at"), math.inf)
    figures = dataclasses.replace(figures_of_a_good_run(), interrupted=True, **never)

    assert broken(figures) == []
