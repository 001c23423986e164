"""Where a process can be asked for its snapshot: a Unix socket in a folder of this user's own.

Each worker of a gunicorn answers on its own; a page that one of them serves asks all of them, and
``python -m geventpool dump PID`` asks one for which no page is mounted.  A question is the
arguments of ``snapshot()``; the answer is what it returns.

*A group* are the processes that belong together: those that one master has forked.
"""

from __future__ import annotations

import atexit
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from gevent import socket

from geventpool.local_socket import Listener, run_directory
from geventpool.observe import history
from geventpool.observe.snapshot import snapshot

__all__ = ["Worker", "group_here", "is_running", "listen", "stop_listening", "sweep", "workers"]

_SUFFIX = ".sock"
_SOON = 10.0  # seconds in which a process that has made its socket listens there
_imported_in = os.getpid()


class Worker(NamedTuple):
    """A process that answers, or did so once, at *path*."""

    group: int
    pid: int
    path: Path


class _Listening(NamedTuple):
    worker: Worker
    listener: Listener


_listening: _Listening | None = None


def workers(directory: Path) -> list[Worker]:
    """Those that have a socket in *directory*, by their process ids, running or not."""
    found = []
    for path in directory.glob(f"*-*{_SUFFIX}"):
        group, _, pid = path.name.removesuffix(_SUFFIX).partition("-")
        if group.isdecimal() and pid.isdecimal():
            found.append(Worker(int(group), int(pid), path))
    return sorted(found, key=lambda worker: worker.pid)


def is_running(worker: Worker) -> bool:
    """Whether there is a process of that id."""
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def sweep(worker: Worker) -> bool:
    """Take the socket of *worker* away if it was left behind; whether it is not there any more.

    It was if nobody listens there, and its process has ended, or has had the time to begin: a
    process that is there may be another one, of the same id.  Does not block.
    """
    try:
        if is_running(worker) and time.time() - worker.path.lstat().st_mtime < _SOON:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(0)
            sock.connect(str(worker.path))
    except ConnectionRefusedError:
        worker.path.unlink(missing_ok=True)
        return True
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def group_here() -> int:
    """To which group this process belongs: that of the process that it was forked from after
    geventpool was there; its own if it was not forked since."""
    if _listening is not None and _listening.worker.pid == os.getpid():
        return _listening.worker.group
    return os.getpid() if _imported_in == os.getpid() else os.getppid()


def listen(group: int | None = None) -> Worker:
    """Have this process answer to who asks for its snapshot from now on, in this thread's hub, and
    remember what its pools were like over the last minute and hour.  What processes that were
    killed have left behind there, of whatever group, is swept away.

    *group* is the process id of its master (None: see ``group_here``).  Called again, it does
    nothing.  Does not block.  Raises OSError if the socket cannot be made.
    """
    global _listening
    if _listening is not None and _listening.worker.pid == os.getpid():
        return _listening.worker
    group = group_here() if group is None else group
    directory = run_directory()
    worker = Worker(group, os.getpid(), directory / f"{group}-{os.getpid()}{_SUFFIX}")
    _listening = _Listening(worker, Listener(worker.path, _answer))
    history.start()
    for each in workers(directory):
        sweep(each)
    return worker


def _answer(wanted: dict[str, Any]) -> dict[str, Any]:
    return snapshot(**wanted, pause=gevent.sleep)


def stop_listening() -> None:
    """Answer no longer, and take the socket away.  Does nothing in a process that does not listen.

    Does not block."""
    global _listening
    listening, _listening = _listening, None
    if listening is None:
        return
    if listening.worker.pid == os.getpid():  # else a child has a copy of its parent's
        history.stop()
    listening.listener.close()


# As a child, which has only a copy.
os.register_at_fork(after_in_child=stop_listening)
atexit.register(stop_listening)
