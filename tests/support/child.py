"""Forked children, in every way that there is to fork."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import gevent
import gevent.os
import pytest
from gevent import monkey

__all__ = ["FORKS", "Child", "close_now", "raw_fork"]

raw_fork = monkey.get_original("os", "fork")
raw_waitpid = monkey.get_original("os", "waitpid")
close_now = monkey.get_original("os", "close")  # of a patched program, os.close waits for the hub


class Child:
    """A forked child that runs *function*; ``result()`` is what that returned."""

    def __init__(self, fork: Callable[[], int], function: Callable[[], Any]) -> None:
        self.report, report = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = fork()
        if not self.pid:
            self._be(function, report)
        close_now(report)

    def _be(self, function: Callable[[], Any], report: int) -> None:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)  # an end, whatever happens
            try:
                text = json.dumps(["returned", function()])
            except BaseException:
                text = json.dumps(["raised", traceback.format_exc()])
            os.write(report, text.encode())
        finally:
            os._exit(0)

    def result(self) -> Any:
        """Wait for the child to end, while the hub of the parent runs."""
        text = b""
        with gevent.Timeout(40):
            os.set_blocking(self.report, False)
            while data := gevent.os.nb_read(self.report, 65536):
                text += data
        close_now(self.report)
        try:
            raw_waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the hub's own watcher of children was quicker
        what, value = json.loads(text)
        assert what == "returned", value
        return value


FORKS = pytest.mark.parametrize(
    "fork",
    [raw_fork, gevent.os.fork_gevent, os.fork],
    ids=["raw os.fork", "gevent.fork", "os.fork as it is in this run"],
)
