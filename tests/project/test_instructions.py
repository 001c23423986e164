"""How many instructions the hot path takes: a ratchet, which no busy machine disturbs.

They are counted by valgrind, and told as multiples of what ``put`` and ``get`` of gevent's own
LifoQueue take in the same run, so that neither the processor nor the compiler matters much.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from geventpool import COMPILED
from support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Instructions, as multiples of a LifoQueue's; what was measured, and a tenth more.  A hand-over is
#: one of 50 greenlets that share 10 connections, and give way once while they have one.
MOST = (
    {"with pool.get()": 1.85, "a hand-over": 14.8}
    if COMPILED
    else {"with pool.get()": 6.4, "a hand-over": 28.0}
)

SCRIPT = """
import sys
import gevent
from gevent.queue import LifoQueue
from geventpool import ConnectionPool

what, count = sys.argv[1], int(sys.argv[2])

class Connection:
    def close(self):
        pass

pool = ConnectionPool(10, connect=Connection)
pool.fill()
queue = LifoQueue()
queue.put(Connection())

def use():
    for _ in range(count):
        with pool.get():
            pass

def put_and_get():
    for _ in range(count):
        queue.put(queue.get())

def hand_over():
    def caller():
        for _ in range(count // 50):
            with pool.get():
                gevent.sleep(0)
    gevent.joinall([gevent.spawn(caller) for _ in range(50)], raise_error=True)

locals()[what]()
"""


def instructions(what: str, count: int, folder: Path) -> int:
    """How many it takes to do *what* so often, and to begin and end a process for that."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ["PYTHONPYCACHEPREFIX"] = str(folder)
    command = [sys.executable, "-c", SCRIPT, what, str(count)]
    if not any(folder.iterdir()):
        # Compiles what is imported.
        subprocess.run(command, env=environ, cwd="/", check=True, timeout=120)
    counter = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    done = subprocess.run(
        [*counter, *command],
        env=environ,
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
        timeout=400,
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1].replace(",", ""))


@pytest.mark.skipif(bool(os.environ.get("PURE_PYTHON")), reason="then gevent is another, too")
def test_the_hot_path_takes_no_more_instructions_than_it_did(tmp_path: Path) -> None:
    if shutil.which("valgrind") is None:
        assert not os.environ.get("GEVENTPOOL_REQUIRE_SERVERS"), "valgrind is not installed"
        pytest.skip("valgrind is not installed")
    begin_and_end = instructions("use", 0, tmp_path)

    def each(what: str, count: int) -> float:
        return (instructions(what, count, tmp_path) - begin_and_end) / count

    queue = each("put_and_get", 50_000)
    took = {
        "with pool.get()": each("use", 20_000) / queue,
        "a hand-over": each("hand_over", 5_000) / queue,
    }

    assert {what: took[what] <= most for what, most in MOST.items()} == dict.fromkeys(MOST, True), (
        took
    )
