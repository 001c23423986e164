"""Where a process can be asked for its snapshot: a Unix socket in a folder of this user's own.

Each worker of a gunicorn answers on its own; a page that one of them serves asks all of them, and
``python -m geventpool dump PID`` asks one for which no page is mounted.  One request a connection:
a line with the arguments of ``snapshot()`` as JSON; the answer is what it returns, and the end.

*A group* are the processes that belong together: those that one master has forked.
"""

from __future__ import annotations

import atexit
import json
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from gevent import socket

from geventpool.observe import history
from geventpool.observe.snapshot import snapshot

__all__ = [
    "Worker",
    "group_here",
    "is_running",
    "listen",
    "run_directory",
    "stop_listening",
    "workers",
]

_PATIENCE = 5.0  # seconds that one who asks may take, for its line or to read the answer
_BACKLOG = 16
_LONGEST_LINE = 1 << 16
_SUFFIX = ".sock"
_imported_in = os.getpid()


class Worker(NamedTuple):
    """A process that answers, or did so once, at *path*."""

    group: int
    pid: int
    path: Path


class _Listening(NamedTuple):
    worker: Worker
    listener: Any
    greenlet: Any


_listening: _Listening | None = None


def run_directory() -> Path:
    """The folder with the sockets of this user's processes: that which ``GEVENTPOOL_RUN_DIR``
    names, else one below ``XDG_RUNTIME_DIR``, else one among the temporary files.

    It is made if need be.  Raises PermissionError if another user could write to it.
    """
    named, runtime = os.environ.get("GEVENTPOOL_RUN_DIR"), os.environ.get("XDG_RUNTIME_DIR")
    if named:
        directory = Path(named)
    elif runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == os.getuid():
        directory = Path(runtime, "geventpool")
    else:
        directory = Path(tempfile.gettempdir(), f"geventpool-{os.getuid()}")
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=bool(named))
    found = directory.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not mine or found.st_mode & 0o077:
        raise PermissionError(f"{directory} must be a folder of this user's own, with mode 0700")
    return directory


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


def group_here() -> int:
    """To which group this process belongs: that of the process that it was forked from after
    geventpool was there; its own if it was not forked since."""
    if _listening is not None and _listening.worker.pid == os.getpid():
        return _listening.worker.group
    return os.getpid() if _imported_in == os.getpid() else os.getppid()


def listen(group: int | None = None) -> Worker:
    """Have this process answer to who asks for its snapshot from now on, in this thread's hub, and
    remember what its pools were like over the last minute and hour.

    *group* is the process id of its master (None: see ``group_here``).  Called again, it does
    nothing.  Does not block.  Raises OSError if the socket cannot be made.
    """
    global _listening
    if _listening is not None and _listening.worker.pid == os.getpid():
        return _listening.worker
    group = group_here() if group is None else group
    worker = Worker(group, os.getpid(), run_directory() / f"{group}-{os.getpid()}{_SUFFIX}")
    worker.path.unlink(missing_ok=True)  # of a process with the same id, long ago
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(worker.path))
        worker.path.chmod(0o600)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    _listening = _Listening(worker, listener, gevent.spawn(_accept, listener))
    history.start()
    return worker


def _accept(listener: Any) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            if listener.fileno() < 0:
                return  # closed: the program ends, or this is a child
            gevent.sleep(0.1)  # too many open files, say
            continue
        gevent.spawn(_answer, sock)


def _answer(sock: Any) -> None:
    patience: Any = gevent.Timeout(_PATIENCE, False)  # type: ignore[arg-type]
    with sock, patience:
        try:
            with sock.makefile("rb") as lines:
                line = lines.readline(_LONGEST_LINE)
            try:
                wanted = json.loads(line)
            except ValueError:
                return  # cut off
            sock.sendall(json.dumps(snapshot(**wanted, pause=gevent.sleep)).encode())
        except OSError:
            return  # it has gone


def stop_listening() -> None:
    """Answer no longer, and take the socket away.  Does nothing in a process that does not listen.

    Does not block."""
    global _listening
    listening, _listening = _listening, None
    if listening is None:
        return
    if listening.worker.pid == os.getpid():  # else a child has a copy of its parent's
        with suppress(OSError):
            listening.worker.path.unlink()
        history.stop()
    listening.listener.close()


# A child has a copy of the socket, and would answer for its parent.
os.register_at_fork(after_in_child=stop_listening)
atexit.register(stop_listening)
