"""Processes of one user on one machine ask each other, over Unix sockets in a folder of their own.

One question a connection: a line with a JSON object; the answer is JSON, too, and then the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
from gevent import socket
from gevent.monkey import get_original

__all__ = ["Listener", "ask", "run_directory"]

_PATIENCE = 5.0  # seconds that one who asks may take, for its line or to read the answer
_BACKLOG = 128
_LONGEST_LINE = 1 << 16
_CHUNK = 1 << 16

#: In a patched program that of ``os`` waits for the hub.
_close = get_original("os", "close")
_all: weakref.WeakSet[Listener] = weakref.WeakSet()


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


class Listener:
    """Answers at *path*, in this thread's hub, until it is closed: with what *answer* returns,
    which is given the question, may switch, and must not raise.

    *alone*: many processes may want to listen there, and one does: BlockingIOError says that
    another is at it.  When that one has ended, however it did, the next that tries has the place.
    Without it, what is at *path* is taken to be left behind.  A child that was forked does not
    answer for its parent.  Raises OSError if the socket cannot be made.  Does not block.
    """

    def __init__(self, path: Path, answer: Callable[[Any], Any], *, alone: bool = False) -> None:
        self.path = path
        self._pid = os.getpid()
        # No bind tells: one that was killed leaves its socket behind, and to unlink that of a
        # process that has just bound its own would leave two.  The kernel gives up a lock.
        self._lock = _locked(path.with_name(path.name + ".lock")) if alone else None
        self._socket: Any = None
        try:
            path.unlink(missing_ok=True)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.bind(str(path))
            self._file = _identity(path)
            path.chmod(0o600)
            self._socket.listen(_BACKLOG)
        except BaseException:
            self._give_up()
            raise
        self._greenlet = gevent.spawn(self._accept, answer)  # it keeps this alive
        _all.add(self)

    def close(self) -> None:
        """Answer no longer, and take the socket away; again, it does nothing.  Does not block."""
        if self._pid != os.getpid():
            self._leave()
        elif self._socket.fileno() >= 0:
            with suppress(OSError):
                if _identity(self.path) == self._file:  # else it is that of another by now
                    self.path.unlink()
        self._give_up()

    def _accept(self, answer: Callable[[Any], Any]) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                if self._socket.fileno() < 0:
                    return  # closed: the program ends, or this is a child
                gevent.sleep(0.1)  # too many open files, say
                continue
            gevent.spawn(_answer, sock, answer)

    def _give_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            _close(lock)  # last: from now on another may listen

    def _leave(self) -> None:
        """In a child, which may run no hub: gevent would leave the copy open until that runs, for
        the sake of what waits at it, and the parent's place would be held for as long."""
        if self._socket.fileno() >= 0:
            _close(self._socket.detach())


def _identity(path: Path) -> tuple[int, int]:
    """What tells the file at *path* from another one there."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def _locked(path: Path) -> int:
    """The descriptor of the file at *path*, locked.  Raises BlockingIOError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _answer(sock: Any, answer: Callable[[Any], Any]) -> None:
    patience: Any = gevent.Timeout(_PATIENCE, False)  # type: ignore[arg-type]
    with sock, patience:
        try:
            with sock.makefile("rb") as lines:
                line = lines.readline(_LONGEST_LINE)
            try:
                question = json.loads(line)
            except ValueError:
                return  # cut off
            sock.sendall(json.dumps(answer(question)).encode())
            sock.shutdown(socket.SHUT_WR)  # a child that was forked meanwhile has a copy of it
        except OSError:
            return  # it has gone


def ask(path: Path, timeout: float, **question: Any) -> Any:
    """What the process that listens at *path* answers.

    Raises TimeoutError after *timeout* seconds, another OSError if it cannot be asked, ValueError
    if it does not answer in full.  Blocks for at most that long.
    """
    with gevent.Timeout(timeout, TimeoutError(f"no answer within {timeout:g} s")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            _connect(sock, str(path))
            sock.sendall(json.dumps(question).encode() + b"\n")
            answer = bytearray()
            while data := sock.recv(_CHUNK):
                answer += data
    return json.loads(bytes(answer))


def _connect(sock: Any, path: str) -> None:
    sock.settimeout(0)
    while True:
        try:
            sock.connect(path)
            break
        except BlockingIOError:
            # Its backlog is full.  To wait until one can write would not help: one always can.
            gevent.sleep(0.01)
    sock.settimeout(None)


def _close_copies() -> None:
    for listener in list(_all):
        listener.close()


# A child has a copy of the socket, and would answer for its parent.
os.register_at_fork(after_in_child=_close_copies)
