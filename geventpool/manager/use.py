"""One use of a socket, and what it says of the server."""

from __future__ import annotations

import ssl

import gevent

from geventpool._util.clock import monotonic
from geventpool.errors import ConnectError, PoolError
from geventpool.manager.health import Attempt
from geventpool.manager.server_backoff import DialFailures

__all__ = ["Use", "blames_server"]


class Use:
    """One use of a socket: the *attempt* that led to it, and what was said of it.

    *counts*: failures do.  *outcome*: how the last request ended, once that was reported.
    *failed_dials* to the server are in a row until one of its connections was of use.
    """

    __slots__ = ("attempt", "counts", "failed_dials", "outcome")

    def __init__(self, attempt: Attempt, counts: bool, failed_dials: DialFailures) -> None:
        self.attempt = attempt
        self.counts = counts
        self.failed_dials = failed_dials
        self.outcome: bool | None = None

    def succeeded(self) -> None:
        now = monotonic()
        if self.outcome is None:
            self.attempt.succeeded(now)
        else:
            self.attempt.server.succeeded(now)
        self.outcome = True
        if self.failed_dials:
            self.failed_dials.forget()

    def failed(self, error: BaseException | None) -> None:
        now, server = monotonic(), self.attempt.server
        if not self.counts:
            self.attempt.cancelled(now)
        elif self.outcome is None:
            self.attempt.failed(now, error)
        elif server.state(now) == "up":  # else it is known: each would have it down for longer
            server.failed(now, error)
        self.outcome = False

    def cancelled(self) -> None:
        self.attempt.cancelled(monotonic())


def blames_server(exc: BaseException) -> bool:
    """Whether *exc*, which left a ``with``, says that the server did not do its work.

    Not if it is of another connection, or a file that is not there, or the caller's own.
    """
    if isinstance(exc, (ConnectError, PoolError)):
        return False
    failures = (ConnectionError, TimeoutError, ssl.SSLError, gevent.Timeout)
    return isinstance(exc, failures) or type(exc) is OSError
