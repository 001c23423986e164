"""What every test of the suite is held to: it leaves no greenlet, no socket and no hub error.

A test that provokes an error in the hub (an uncaught exception of a greenlet or of a callback)
takes the fixture ``hub_errors``, looks at it and empties it.  A test that leaves things behind on
purpose is marked ``may_leak``.
"""

from __future__ import annotations

import _socket
import gc
import os
import time
import traceback
from collections.abc import Generator, Iterator
from typing import Any

import gevent
import gevent.hub
import hypothesis
import pytest
from gevent.threadpool import _WorkerGreenlet as WorkerGreenlet  # type: ignore[attr-defined]
from greenlet import greenlet

# What a closed connection, a killed greenlet or a peer gets to finish: only a leak waits that long.
PATIENCE = 1.0

hypothesis.settings.register_profile("geventpool", deadline=None, print_blob=True)
hypothesis.settings.load_profile("geventpool")

_failed = pytest.StashKey[bool]()


def pytest_collection_finish() -> None:
    # All that is there before the first test lives to the end: keep it out of every later
    # collection, and out of every search for greenlets.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed or report.skipped:
        item.stash[_failed] = True
    return report


@pytest.fixture(autouse=True)
def hub_errors(request: pytest.FixtureRequest) -> Iterator[list[BaseException]]:
    """The errors that reached a hub during the test; those left in the list fail it."""
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


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, hub_errors: list[BaseException]) -> Iterator[None]:
    """Fail a test that leaves a greenlet running or a socket open."""
    greenlets_before = _greenlets()
    sockets_before = _sockets()
    yield
    if _failed in request.node.stash:
        # The traceback keeps its locals, and what they hold, alive: no use in looking for leaks.
        # But what it left running must not be blamed on the tests that follow.
        left = [g for id_, g in _greenlets().items() if greenlets_before.get(id_) is not g]
        gevent.killall([g for g in left if isinstance(g, gevent.Greenlet)], timeout=PATIENCE)
        return
    if request.node.get_closest_marker("may_leak"):
        return

    deadline = time.monotonic() + PATIENCE
    while True:
        for _ in range(3):
            gevent.sleep(0)
        gc.collect()
        sockets = {name: fd for name, fd in _sockets().items() if name not in sockets_before}
        greenlets = [g for id_, g in _greenlets().items() if greenlets_before.get(id_) is not g]
        if not sockets and not greenlets:
            return
        if time.monotonic() > deadline:
            break
        del greenlets  # else this very list would keep them from being collected
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


def _sockets() -> dict[str, int]:
    """Every open socket of this process: "socket:[inode]" -> file descriptor."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # that of the listing itself
        if name.startswith("socket:"):
            found[name] = int(fd)
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
