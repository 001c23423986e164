"""``python -m geventpool dump PID``: who holds what in another process, and where it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from geventpool.__main__ import main
from support.workers import worker

HOLD = """
def a_request_that_hangs():
    with pool.get():
        gevent.sleep(60)
gevent.spawn(a_request_that_hangs)
gevent.wait()
"""


def test_it_shows_the_stack_of_each_holder(run_folder: Path, capsys: Any) -> None:
    with worker("of a worker", HOLD) as process:
        assert main(["dump", str(process.pid)]) == 0
    told = capsys.readouterr().out
    assert f"process {process.pid}: 1 pools" in told
    assert "ConnectionPool 'of a worker': 1 in use" in told
    assert "a_request_that_hangs" in told


def test_one_that_does_not_listen_is_told_with_those_that_do(run_folder: Path, capsys: Any) -> None:
    with worker("there") as process:
        assert main(["dump", str(os.getpid())]) == 1
    assert f"does not listen; who does: {process.pid}" in capsys.readouterr().err


def test_one_that_is_stopped_is_told_in_time(run_folder: Path, capsys: Any) -> None:
    with worker("stopped") as process:
        process.send_signal(signal.SIGSTOP)
        assert main(["dump", str(process.pid), "--timeout", "0.2"]) == 1
    assert "no answer within 0.2 s" in capsys.readouterr().err
