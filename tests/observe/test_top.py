"""``python -m geventpool top URL``: the pools of a service in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from geventpool.__main__ import main
from support import ROOT
from support.browser import PageProcess
from support.workers import HANG, worker

pytestmark = pytest.mark.slow

POOLS = """
def hold(pool):
    with pool.get():
        gevent.sleep(1000)
quiet = ConnectionPool(2, connect=object, name="quiet [bold]")
busy = ConnectionPool(2, connect=object, name="busy")
for _ in range(5): gevent.spawn(hold, busy)
gevent.sleep(0.1)
"""


@pytest.fixture
def process(run_folder: Path) -> Iterator[PageProcess]:
    with PageProcess() as running:
        running.do(POOLS)
        yield running


def test_without_a_terminal_it_shows_everything_once(process: PageProcess, capsys: Any) -> None:
    with worker("hangs", HANG) as hanging:
        assert main(["top", process.url, "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (busy,) = [line.split() for line in lines if "busy" in line]
    assert busy[:8] == [str(process.pid), "busy", "exhausted", "2", "2", "0", "3", "0"]
    assert any("quiet [bold]" in line and "all well" in line for line in lines)
    assert any(str(hanging.pid) in line and "silent" in line for line in lines)


@pytest.mark.parametrize("ending", ["/pools", "/pools/", "/pools/?open=1-1", "/pools/pools.json"])
def test_any_address_of_the_page_will_do(process: PageProcess, ending: str, capsys: Any) -> None:
    assert main(["top", process.url.removesuffix("/pools/") + ending]) == 0
    assert "busy" in capsys.readouterr().out


def test_where_there_is_no_page_it_says_so(process: PageProcess, capsys: Any) -> None:
    assert main(["top", process.url + "elsewhere/", "--once"]) == 1
    assert "404" in capsys.readouterr().err


def test_a_wrong_command_line_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", "localhost:8000"])
    assert ended.value.code == 2
    assert "the URL of a status page" in capsys.readouterr().err


class Terminal:
    """A terminal of 120 by 30 in which it runs."""

    def __init__(self, url: str) -> None:
        self._end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "geventpool", "top", url],
            stdin=other,
            stdout=other,
            stderr=other,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
        )
        os.close(other)
        self.said = b""

    def press(self, key: str) -> None:
        self.said = b""
        os.write(self._end, key.encode())

    def wait_for(self, text: str, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while text.encode() not in self.said:
            left = deadline - time.monotonic()
            if not select.select([self._end], [], [], max(0.0, left))[0]:
                pytest.fail(f"waited in vain for {text!r}; it said {self.said!r}")
            try:
                self.said += os.read(self._end, 65536)
            except OSError:  # it has ended
                pytest.fail(f"it ended, and never said {text!r}, but {self.said!r}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


@pytest.fixture
def terminal(process: PageProcess) -> Iterator[Terminal]:
    running = Terminal(process.url)
    yield running
    running.close()


def test_in_a_terminal_it_goes_on_until_q(process: PageProcess, terminal: Terminal) -> None:
    terminal.wait_for("2 pools, by trouble")
    process.do('more = ConnectionPool(1, connect=object, name="one more")')
    terminal.wait_for("one more")
    terminal.press("n")
    terminal.wait_for("3 pools, by name")
    terminal.press("?")  # means nothing, and does no harm
    terminal.wait_for("3 pools, by name")
    terminal.press("q")
    assert terminal.process.wait(timeout=20) == 0


def test_a_service_that_goes_is_said_to_be_gone(process: PageProcess, terminal: Terminal) -> None:
    terminal.wait_for("2 pools, by trouble")
    process.kill()
    terminal.wait_for("No answer")
    terminal.press("q")
    assert terminal.process.wait(timeout=20) == 0
