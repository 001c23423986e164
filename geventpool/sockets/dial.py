"""One dial: what it is at, what took how long, what has failed.

What is wrong is booked, and not raised: see ``SocketFactory``.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gevent import Timeout, getcurrent
from gevent.socket import socket

from geventpool._util.clock import monotonic
from geventpool._util.deadlines import active as deadlines
from geventpool._util.deadlines import ends_at
from geventpool._util.errors import about
from geventpool._util.time_shares import part_of
from geventpool.errors import ConnectError, MultiConnectFailure

__all__ = ["Dial"]

# What a dial may be at.
RESOLVING = "resolving"
CONNECTING = "connecting to"
QUEUED = "accept queue full:"
SHAKING_HANDS = "TLS handshake with"


class Dial:
    """One call of a factory: which server it is at, what took how long, what has failed."""

    def __init__(self, name: str, seconds: float | None) -> None:
        self.name = name
        self.server: object = name
        self.began = monotonic()
        if deadlines and (ends := ends_at(getcurrent())) < math.inf:
            left = max(ends - self.began, 0.0)
            seconds = left if seconds is None else min(seconds, left)
        self.seconds = seconds  # that it may take, None: no bound
        self.ends_at = math.inf if seconds is None else self.began + seconds
        self.failed: list[tuple[object, Exception]] = []
        self._phases: list[tuple[float, str, tuple[object, ...]]] = []

    def enter(self, phase: str, *what: object) -> None:
        self._phases.append((monotonic(), phase, what))

    def run(self, open: Callable[[Dial], socket | None]) -> socket:
        """Return the socket of ``open(self)``; raise why there is none, or none before the end."""
        deadline = Timeout(self.seconds)
        try:
            with deadline:
                sock = open(self)
        except Timeout as expired:
            if expired is deadline:
                self._give_up(self.seconds)
                raise self._failure() from None
            self._give_up(None)
            expired.__cause__ = self._failure()
            raise
        if sock is None:
            raise self._failure()
        return sock

    def fail(self, name: object, error: Exception) -> None:
        """Book that *name* failed; what the system, a resolver or TLS had to say says where."""
        self.failed.append((name, _at(name, error)))

    def wait_for_room(self, candidate: object) -> None:
        """The accept queue of *candidate* is full: nobody is to blame, and it is tried again."""
        self.enter(QUEUED, candidate)

    @contextmanager
    def part(self, name: object, share: int, ends_at: float) -> Iterator[float]:
        """Give the body one of *share* parts of the time until *ends_at*; yields when it is over.

        A body that takes longer is ended, and that is a failure of *name*.  The last one has all
        the time that is left.
        """
        left = ends_at - monotonic()
        if share == 1 or left == math.inf:
            yield ends_at
            return
        seconds = part_of(left, share)
        first_phase = len(self._phases)
        timer = Timeout(seconds)
        try:
            with timer:
                yield ends_at - left + seconds
        except Timeout as expired:
            if expired is not timer:
                raise
            self.failed.append((name, self._late(name, seconds, first_phase)))

    def _give_up(self, seconds: float | None) -> None:
        """Book that what is under way took too long."""
        seconds = monotonic() - self.began if seconds is None else seconds
        self.failed.append((self.server, self._late(self.server, seconds, 0)))

    def _failure(self) -> Exception:
        """The one error of a dial that failed, or one with all of them."""
        if len(self.failed) == 1:
            return self.failed.pop()[1]  # or it would hold the frame that holds it
        each = (about(name, error) for name, error in self.failed)
        message = f"{self.name}: {len(self.failed)} attempts to connect failed: {'; '.join(each)}"
        return MultiConnectFailure(message, errors=self.failed)

    def spent(self, first_phase: int = 0) -> str:
        """What its time was spent on so far."""
        phases = self._phases[first_phase:]
        ends = [began for began, _, _ in phases[1:]] + [monotonic()]
        return ", ".join(
            f"{phase} {' and '.join(map(str, what))} {end - began:.3f} s"
            for (began, phase, what), end in zip(phases, ends, strict=True)
        )

    def _late(self, name: object, seconds: float, first_phase: int) -> ConnectError:
        phases = self._phases[first_phase:]
        spent = self.spent(first_phase)
        late = ConnectError(f"{name}: not open after {_to_ms(seconds)} s: {spent}")
        if phases and phases[-1][1] in (RESOLVING, QUEUED):
            late.errno = errno.EAGAIN  # the server has not seen us: it is not to blame
        return late


def _at(where: object, error: Exception) -> Exception:
    """*error*, which says *where* it was; of the system's it is the text that says so."""
    if isinstance(error, OSError) and str(where) not in str(error):
        if error.strerror is not None:
            error.strerror = f"{error.strerror} ({where})"
            error.args = (error.errno, error.strerror)
        else:
            error.args = (f"{error} ({where})",)
    return error


def _to_ms(seconds: float) -> str:
    """In digits, but none beyond a millisecond."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
