"""Every exception of geventpool, and the data it carries.

Two families.  A PoolError says that the *pool* did not serve the call: nothing is wrong with a
connection, so it never makes an enclosing ``with pool.get()`` discard the one it holds.  A
ConnectError says that no connection could be *opened*; it is an OSError, as callers expect.

Each keeps its data in attributes, may be pickled, and names the pool in its message.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

__all__ = [
    "ConnectError",
    "MarkedDownError",
    "MultiConnectFailure",
    "NameNotFound",
    "NotInUse",
    "OutOfSockets",
    "PoolClosed",
    "PoolDeadlock",
    "PoolDown",
    "PoolError",
    "PoolFull",
    "PoolOverloaded",
    "PoolTimeout",
    "PoolUnavailable",
    "Verdict",
    "WrongHub",
]


class Verdict(enum.Enum):
    """What an error says about the connection it came from, or about the server.

    What the hook ``_classify_error`` of a pool returns.  Of an error that leaves a ``with``, the
    last two count as BROKEN; of a dial's, the first three count as a failed dial like any other.
    """

    FINE = "fine"  #: nothing is wrong with the connection: it goes back
    BROKEN = "broken"  #: the connection is closed
    WRONG_SERVER = "wrong server"  #: closed, and every other that was opened before now, too
    SERVER_FULL = "server full"  #: the server is well, and takes no more connections for now
    FATAL = "fatal"  #: no dial will succeed until somebody mends it: a wrong password


class PoolError(Exception):
    """The pool could not do what was asked.  *pool* is the pool's name."""

    def __init__(self, message: str = "", *, pool: str | None = None) -> None:
        super().__init__(message)
        self.pool = pool


class PoolClosed(PoolError):
    """``close()`` was called: the pool gives out no connection any more."""


class PoolUnavailable(PoolError):
    """The pool cannot serve this call just now, and the fault is not the caller's: what a web
    application answers with 503.

    *retry_after*: in how many seconds it may be worth another try; None if that is not known.
    """

    def __init__(
        self, message: str = "", *, pool: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, pool=pool)
        self.retry_after = retry_after


class PoolTimeout(PoolUnavailable, TimeoutError):
    """No connection came free within the caller's *timeout* (seconds).

    ``__cause__`` is the last error of a dial, if the pool could not open what it wanted.
    The counts are those of the moment the caller gave up, itself not among *waiting*;
    *held_for* has the age in seconds of each connection in use, the oldest first.
    """

    def __init__(
        self,
        message: str = "",
        *,
        pool: str | None = None,
        timeout: float | None = None,
        in_use: int = 0,
        idle: int = 0,
        connecting: int = 0,
        waiting: int = 0,
        held_for: Sequence[float] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, pool=pool, retry_after=retry_after)
        self.timeout = timeout
        self.in_use = in_use
        self.idle = idle
        self.connecting = connecting
        self.waiting = waiting
        self.held_for = tuple(held_for)


class PoolDeadlock(PoolTimeout):
    """Every connection is held, in a ``with``, by a greenlet that waits in line for another one:
    none would ever come free.  Of these greenlets the one that came last gets this, at once: for
    the others to go on, it has to leave the ``with`` in which it holds one."""


class PoolFull(PoolUnavailable):
    """*max_waiting* callers are in line already; this one was sent away at once."""

    def __init__(
        self,
        message: str = "",
        *,
        pool: str | None = None,
        max_waiting: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, pool=pool, retry_after=retry_after)
        self.max_waiting = max_waiting


class PoolOverloaded(PoolFull):
    """More is asked of the pool than it can serve, and this caller had *waited* (seconds) longer
    than the others should have to: it was sent away so that they are served in time."""

    def __init__(
        self,
        message: str = "",
        *,
        pool: str | None = None,
        waited: float = 0.0,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, pool=pool, retry_after=retry_after)
        self.waited = waited


class PoolDown(PoolUnavailable):
    """Nothing is open, and every dial has failed for *down_for* seconds; ``__cause__`` is the last
    dial's error, *retry_after* the time to the next dial."""

    def __init__(
        self,
        message: str = "",
        *,
        pool: str | None = None,
        down_for: float = 0.0,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, pool=pool, retry_after=retry_after)
        self.down_for = down_for


class NotInUse(PoolError):
    """The *connection* given back is not in use here: released twice, or never this pool's."""

    def __init__(
        self, message: str = "", *, pool: str | None = None, connection: object = None
    ) -> None:
        super().__init__(message, pool=pool)
        self.connection = connection


class WrongHub(PoolError):
    """The pool belongs to the gevent hub of another thread; make one pool per thread."""


class ConnectError(OSError):
    """No connection could be opened; ``__cause__`` tells why, where there is a cause."""


class NameNotFound(ConnectError):
    """*name* leads to no address; *tried* says what was asked, in order."""

    def __init__(
        self, message: str = "", *, name: str | None = None, tried: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.name = name
        self.tried = tuple(tried)


class MarkedDownError(ConnectError):
    """*address* failed lately and is left alone *until* that time of the monotonic clock."""

    def __init__(
        self, message: str = "", *, address: object = None, until: float | None = None
    ) -> None:
        super().__init__(message)
        self.address = address
        self.until = until


class MultiConnectFailure(ConnectError):
    """Several addresses were tried in vain; the message has what each of them had to say.

    *errors* has ``(address, error)`` for each attempt, in the order in which they failed: an
    Address or UnixAddress, or the name if it led to none, and what the system, the resolver or TLS
    said, or a ConnectError for an attempt that took too long.
    """

    def __init__(
        self, message: str = "", *, errors: Sequence[tuple[object, BaseException]] = ()
    ) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class OutOfSockets(ConnectError, PoolUnavailable):
    """The limit named *limit* is reached (*used* of *maximum*) and nothing idle can make room."""

    def __init__(
        self,
        message: str = "",
        *,
        pool: str | None = None,
        limit: str | None = None,
        used: int = 0,
        maximum: float = 0,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.pool = pool
        self.retry_after = retry_after
        self.limit = limit
        self.used = used
        self.maximum = maximum
