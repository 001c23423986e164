"""Every exception of geventpool, and the data it carries.

Two families.  A PoolError says that the *pool* did not serve the call: nothing is wrong with a
connection, so it never makes an enclosing ``with pool.get()`` discard the one it holds.  A
ConnectError says that no connection could be *opened*; it is an OSError, as callers expect.

Each keeps its data in attributes, may be pickled, and names the pool in its message.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ConnectError",
    "MarkedDownError",
    "MultiConnectFailure",
    "NameNotFound",
    "NotInUse",
    "OutOfSockets",
    "PoolClosed",
    "PoolError",
    "PoolFull",
    "PoolTimeout",
    "WrongHub",
]


class PoolError(Exception):
    """The pool could not do what was asked.  *pool* is the pool's name."""

    def __init__(self, message: str = "", *, pool: str | None = None) -> None:
        super().__init__(message)
        self.pool = pool


class PoolClosed(PoolError):
    """``close()`` was called: the pool gives out no connection any more."""


class PoolTimeout(PoolError, TimeoutError):
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
    ) -> None:
        super().__init__(message, pool=pool)
        self.timeout = timeout
        self.in_use = in_use
        self.idle = idle
        self.connecting = connecting
        self.waiting = waiting
        self.held_for = tuple(held_for)


class PoolFull(PoolError):
    """*max_waiting* callers are in line already; this one was sent away at once."""

    def __init__(
        self, message: str = "", *, pool: str | None = None, max_waiting: int | None = None
    ) -> None:
        super().__init__(message, pool=pool)
        self.max_waiting = max_waiting


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


class OutOfSockets(ConnectError, PoolError):
    """The limit named *limit* is reached (*used* of *maximum*) and nothing idle can make room."""

    def __init__(
        self,
        message: str = "",
        *,
        pool: str | None = None,
        limit: str | None = None,
        used: int = 0,
        maximum: float = 0,
    ) -> None:
        super().__init__(message)
        self.pool = pool
        self.limit = limit
        self.used = used
        self.maximum = maximum
