"""Connect to one host at whichever of its addresses answers first: Happy Eyeballs, RFC 8305.

A host with a broken IPv6 route, or with one dead address of three, costs a quarter of a second
then and not a time-out.  It takes no greenlet: one greenlet owns all sockets of a race and waits
for all of them together.  So when it is killed or timed out, there is no other to be told, and
nothing is open any more when it goes on.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from gevent import get_hub
from gevent.event import Event
from gevent.socket import AF_UNIX, SO_ERROR, SOL_SOCKET, socket

__all__ = ["STAGGER", "Candidate", "connect", "interleaved"]

#: Seconds that an address gets before the next one is tried as well: what RFC 8305 recommends.
STAGGER = 0.25

_WRITE = 2  # for loop.io
_FIRST_PAUSE = 0.001  # seconds until a full accept queue is tried again, doubled each time
_LONGEST_PAUSE = 0.05


class Candidate(NamedTuple):
    """One address to connect to: what a socket of *family* takes, and what an error calls it."""

    family: int
    sockaddr: Any
    name: object

    def __str__(self) -> str:
        return str(self.name)


def interleaved(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Let the families take turns, that of the first candidate first, each in its own order.

    So says section 4 of RFC 8305: what is wrong with an address is often wrong with its family.
    An address that comes twice is tried once.
    """
    families: dict[int, dict[Candidate, None]] = {}
    for candidate in candidates:
        families.setdefault(candidate.family, {})[candidate] = None
    turns = zip_longest(*families.values())
    return [candidate for candidate in chain.from_iterable(turns) if candidate is not None]


def connect(
    candidates: list[Candidate],
    make: Callable[[Candidate], socket],
    failed: list[tuple[object, Exception]],
    stagger: float = STAGGER,
    queued: Callable[[Candidate], object] = id,
) -> tuple[socket, Candidate] | None:
    """Return the first socket to connect, non-blocking, and its candidate; None if none does.

    The next candidate is tried *stagger* seconds after the one before, or as soon as one fails.
    ``make(candidate)`` returns a new non-blocking socket and must not switch.  Each failure is
    appended to *failed* as (name, error), so that it is known even if the race is cut short.  What
    is decided is taken off *candidates*: left are those that lost, closed, and may be tried again.
    ``queued(candidate)`` is called once if the accept queue of a Unix socket is full, which is no
    failure: it is tried again and again.

    Whatever is raised is the caller's own, a kill or a Timeout of any class: what the system has
    to say is in *failed*.  Nothing stays open then.
    """
    race = _Race(queued)
    line = deque(candidates)
    try:
        while line or race.running:
            if line:
                race.enter(_Attempt(line.popleft()), make)
            attempt = race.next(stagger if line else None)
            if attempt is None:
                continue  # the stagger is over: one more
            candidates.remove(attempt.candidate)
            error = attempt.error()
            if error is None:
                return attempt.take(), attempt.candidate
            attempt.close()
            failed.append((attempt.candidate.name, error))
        return None
    finally:
        race.close()


class _Race:
    """The attempts under way, and those of them that have come to a decision."""

    def __init__(self, queued: Callable[[Candidate], object]) -> None:
        self._queued = queued
        self.running: set[_Attempt] = set()
        self.decided: deque[_Attempt] = deque()
        self._news = Event()

    def enter(self, attempt: _Attempt, make: Callable[[Candidate], socket]) -> None:
        self.running.add(attempt)
        attempt.start(make, self._decide, self._queued)

    def next(self, max_wait: float | None) -> _Attempt | None:
        """Wait for a decision, at most *max_wait* seconds; None if there was none."""
        if not self.decided:
            self._news.clear()
            self._news.wait(max_wait)
        if not self.decided:
            return None
        attempt = self.decided.popleft()
        self.running.remove(attempt)
        return attempt

    def close(self) -> None:
        for attempt in self.running:
            attempt.close()

    def _decide(self, attempt: _Attempt) -> None:
        self.decided.append(attempt)
        self._news.set()


class _Attempt:
    """One socket on its way to one candidate."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self._socket: Any = None
        self._watcher: Any = None
        self._failure: OSError | None = None
        self._pause = 0.0  # before a full accept queue is tried again

    def start(
        self,
        make: Callable[[Candidate], socket],
        decide: Callable[[_Attempt], None],
        queued: Callable[[Candidate], object],
    ) -> None:
        """Begin to connect; *decide* is called with this attempt as soon as it is known how it
        went: at once, or by the hub."""
        try:
            # Neither of these switches: what they raise is the system's, a family that it does not
            # have, an address that is not ours, a path that is too long.
            self._socket = make(self.candidate)
        except OSError as failure:
            self._failure = failure.with_traceback(None)
            decide(self)
            return
        self._connect(decide, queued)

    def _connect(
        self, decide: Callable[[_Attempt], None], queued: Callable[[Candidate], object]
    ) -> None:
        try:
            number = self._socket.connect_ex(self.candidate.sockaddr)
        except OSError as failure:
            self._failure = failure.with_traceback(None)
            decide(self)
            return
        if number == errno.EAGAIN and self.candidate.family == AF_UNIX:
            # The server is behind with accepting.  Nothing tells when there is room.
            if not self._pause:
                queued(self.candidate)
            self._pause = min(self._pause * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
            self._stop_watching()
            self._watcher = get_hub().loop.timer(self._pause)
            self._watcher.start(self._connect, decide, queued, update=True)
            return
        if number == errno.EINPROGRESS:
            self._watcher = get_hub().loop.io(self._socket.fileno(), _WRITE)
            self._watcher.start(self._connected, decide)
            return
        if number:
            self._failure = self._as_error(number)
        decide(self)

    def error(self) -> OSError | None:
        """Why there is no connection, or None if there is one."""
        if self._failure is not None:
            return self._failure
        if number := self._socket.getsockopt(SOL_SOCKET, SO_ERROR):
            return self._as_error(number)
        if self._socket.getsockname() == self.candidate.sockaddr:
            # To dial a port of this machine where nothing listens may, once in 28,000 times, take
            # that very port as the near end, and TCP connects it to itself.  The server would find
            # its port taken when it comes back.
            return self._as_error(errno.ECONNREFUSED)
        return None

    def take(self) -> socket:
        """Give the socket away."""
        sock, self._socket = self._socket, None
        self.close()
        return sock  # type: ignore[no-any-return]

    def close(self) -> None:
        self._stop_watching()  # before its descriptor can be another's
        if self._socket is not None:
            self._socket.close()

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _connected(self, decide: Callable[[_Attempt], None]) -> None:
        self._watcher.stop()
        decide(self)

    def _as_error(self, number: int) -> OSError:
        return OSError(number, f"{os.strerror(number)} ({self.candidate.name})")
