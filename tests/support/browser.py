"""A real browser, and a process with pools and a page to look at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import ROOT

__all__ = ["PageProcess", "axe_source", "browser", "eventually"]

#: None of what a browser does besides showing a page.
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1280,900",
)
_AXE = "axe-core@4.14.1"

# Serves the page at a free port, says where, and does what it is told, a line at a time.
_SERVE = """
import sys, time, gevent
from gevent import socket
from gevent.event import Event
from gevent.fileobject import FileObject
from gevent.pywsgi import WSGIServer
from geventpool import *
from geventpool import observe
from geventpool.testing import *
observe.listen(group=int(sys.argv[1]))
server = WSGIServer(("127.0.0.1", 0), observe.mount(lambda *_: [], "/pools"), log=None)
server.start()
print(server.server_port, flush=True)
for line in FileObject(sys.stdin, "rb"):
    exec(line.decode().replace("\\\\n", "\\n"), globals())
    print("done", flush=True)
"""


def _missing(what: str) -> None:
    """As with servers: a reason to skip, or with ``GEVENTPOOL_REQUIRE_SERVERS=1`` to fail."""
    if os.environ.get("GEVENTPOOL_REQUIRE_SERVERS") == "1":
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


class PageProcess:
    """A process with a page at *url*; ``do`` has it run some lines of Python."""

    def __enter__(self) -> PageProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pid = self._process.pid
        port = int(self._answer())
        self.url = f"http://127.0.0.1:{port}/pools/"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            assert file is not None
            file.close()

    def do(self, code: str) -> None:
        """Run *code* there; returns when it has run."""
        self.begin(code)
        assert self._answer() == b"done\n"

    def begin(self, code: str) -> None:
        """The same, without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(code.strip().replace("\n", "\\n").encode() + b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def browser(folder: Path, *flags: str, preferences: dict[str, Any] | None = None) -> Iterator[Any]:
    """A chromium of its own, whose files are in *folder*, as selenium's driver."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        _missing("chromium, or its chromedriver,")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={folder}", *flags):
        options.add_argument(flag)
    if preferences:
        options.add_experimental_option("prefs", preferences)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    running = webdriver.Chrome(options=options, service=service)
    try:
        yield running
    finally:
        running.quit()


def axe_source(folder: Path) -> str:
    """The source of axe-core, https://github.com/dequelabs/axe-core, fetched into *folder*."""
    npm = shutil.which("npm")
    if npm is None:
        _missing("npm")
    command = [str(npm), "install", "--no-audit", "--no-fund", "--ignore-scripts", _AXE]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=100)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


def eventually(condition: Callable[[], object], wanted: str, seconds: float = 20.0) -> Any:
    """What *condition* returns once that is true; it is asked ten times a second."""
    __tracebackhide__ = True
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() >= deadline:
            pytest.fail(f"waited {seconds:g} s in vain for {wanted}")
        time.sleep(0.1)
    return found
