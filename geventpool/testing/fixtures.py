"""Fixtures of pytest for the suite of a program with pools.

In the ``conftest.py`` next to the root of the suite:

    pytest_plugins = ["geventpool.testing.fixtures"]

    @pytest.fixture(autouse=True)
    def leaves_nothing_behind(no_leaks): ...

``no_leaks`` may be asked for by single tests, too; then first of all, as in
``@pytest.mark.usefixtures("no_leaks")``: what is set up before it may outlive it.
"""

from __future__ import annotations

import _socket
import contextlib
import gc
import itertools
import os
import stat
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from typing import Any

import gevent
import gevent.hub
import pytest
from gevent.threadpool import _WorkerGreenlet as WorkerGreenlet  # type: ignore[attr-defined]
from greenlet import greenlet

from geventpool.testing.chaos import ChaosProxy
from geventpool.testing.clock import no_retry_delays as _no_retry_delays
from geventpool.testing.echo import EchoServer

__all__ = ["chaos_proxy", "echo_server", "hub_errors", "no_leaks", "no_retry_delays"]

# What a closed connection, a killed greenlet or a peer gets to finish: only a leak waits that long.
_PATIENCE = 1.0
_LOOKS = 20  # at least, for a process that got nothing of that second

_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"

_failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "may_leak: no_leaks does not look for greenlets and sockets that this test leaves behind",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed or report.skipped:
        item.stash[_failed] = True
    return report


# Servers


@pytest.fixture
def echo_server() -> Iterator[EchoServer]:
    """An EchoServer on loopback, until the test ends."""
    with EchoServer() as server:
        yield server


@pytest.fixture
def chaos_proxy() -> Iterator[Callable[[object], ChaosProxy]]:
    """Call it with a target to get a ChaosProxy in front of it, closed when the test ends."""
    with contextlib.ExitStack() as proxies:
        yield lambda target: proxies.enter_context(ChaosProxy(target))


@pytest.fixture
def no_retry_delays() -> Iterator[None]:
    """During the test, ``@retry`` does not wait: see ``geventpool.testing.no_retry_delays``."""
    with _no_retry_delays():
        yield


# Leaks


@pytest.fixture
def hub_errors(request: pytest.FixtureRequest) -> Iterator[list[BaseException]]:
    """The errors that reached a hub during the test; those left in the list fail it.

    They are what greenlets did not catch, even if another asks for their result, and callbacks:
    gevent prints them, and goes on.  A test that provokes one asks for this fixture, looks at the
    list, and empties it.
    """
    errors: list[BaseException] = []
    hub_class = type(gevent.get_hub())
    print_exception = hub_class.print_exception

    def note(hub: Any, context: Any, exc_class: Any, exc: Any, tb: Any) -> None:
        errors.append(exc)
        print_exception(hub, context, exc_class, exc, tb)
        is_timeout = isinstance(exc, pytest.fail.Exception) and "Timeout (" in str(exc)
        if is_timeout and context is not None:
            # The signal of pytest-timeout struck in another greenlet, or in a callback: it is the
            # test that it means.  (Without a context gevent passes it on itself.)
            hub.loop.run_callback(hub.parent.throw, exc)

    with pytest.MonkeyPatch.context() as patch:  # not the test's own: that may be undone early
        patch.setattr(hub_class, "print_exception", note)
        yield errors
    if errors and _failed not in request.node.stash:  # else its report shows what they printed
        listed = "\n".join("".join(traceback.format_exception(error)) for error in errors)
        pytest.fail(f"{len(errors)} errors reached the hub:\n{listed}", pytrace=False)


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest, hub_errors: list[BaseException]) -> Iterator[None]:
    """Fail a test that leaves a greenlet running, a socket open, or an error in the hub.

    The message says which: of a greenlet where it is, of a socket both its ends.  What is only
    about to finish gets a second for it.  A test that failed already is not looked at, and one
    that is marked ``may_leak`` only for errors.
    """
    greenlets_before = _greenlets()
    sockets_before = _sockets()
    yield
    if _failed in request.node.stash:
        # The traceback keeps its locals, and what they hold, alive: no use in looking for leaks.
        # But what it left running must not be blamed on the tests that follow.
        left = [g for id_, g in _greenlets().items() if greenlets_before.get(id_) is not g]
        gevent.killall([g for g in left if isinstance(g, gevent.Greenlet)], timeout=_PATIENCE)
        return
    if request.node.get_closest_marker("may_leak"):
        gc.collect()  # what complains when it is collected does so here, not in a later test
        return

    deadline = time.monotonic() + _PATIENCE
    for look in itertools.count(1):
        for _ in range(3):
            gevent.sleep(0)
        gc.collect()
        sockets = {name: fd for name, fd in _sockets().items() if name not in sockets_before}
        greenlets = [g for id_, g in _greenlets().items() if greenlets_before.get(id_) is not g]
        if not sockets and not greenlets:
            return
        if look >= _LOOKS and time.monotonic() > deadline:
            break
        greenlets.clear()  # else this very list would keep them from being collected
        gevent.sleep(0.01)

    lines = [f"{len(sockets)} sockets and {len(greenlets)} greenlets were left behind:"]
    lines += [_describe_socket(fd) for fd in sockets.values()]
    lines += [_describe_greenlet(g) for g in greenlets]
    pytest.fail("\n".join(lines), pytrace=False)


def _greenlets() -> dict[int, greenlet]:
    """Every greenlet that runs or is about to, but for hubs, main greenlets and worker threads."""
    # type(), not isinstance(): that asks the object, and proxies answer with side effects.
    found = [o for o in gc.get_objects() if issubclass(type(o), greenlet)]
    return {id(g): g for g in found if _is_live(g)}


def _is_live(g: greenlet) -> bool:
    if g.dead or g is gevent.getcurrent() or g.parent is None:
        return False
    if isinstance(g, (gevent.hub.Hub, WorkerGreenlet)):
        return False
    return bool(g) or (isinstance(g, gevent.Greenlet) and g.started)


def _sockets() -> dict[tuple[int, int], int]:
    """Every open socket of this process: its device and inode -> file descriptor."""
    found = {}
    for name in os.listdir(_DESCRIPTORS):
        try:
            status = os.fstat(int(name))
        except OSError:
            continue  # that of the listing itself
        if stat.S_ISSOCK(status.st_mode):
            found[status.st_dev, status.st_ino] = int(name)
    return found


def _describe_socket(fd: int) -> str:
    with_peer = _socket.socket(fileno=os.dup(fd))
    try:
        ends = [repr(with_peer.getsockname())]
        try:
            ends.append(repr(with_peer.getpeername()))
        except OSError:
            ends.append("nobody")
    finally:
        with_peer.close()
    return f"  socket {fd}: {ends[0]} -> {ends[1]}"


def _describe_greenlet(g: greenlet) -> str:
    where = "not started yet\n"
    if g.gr_frame is not None:
        where = "".join(traceback.format_stack(g.gr_frame)[-4:])
    return f"  {g!r}, at:\n{where}"
