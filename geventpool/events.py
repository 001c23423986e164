"""What a pool tells about itself: the listener, the frozen events it is told, and the counters.

A listener is any object that has one or more of PoolListener's methods.  Events of a caller's own
acquire and release are told in the caller's greenlet, the others in a greenlet of the pool; never
in a hub callback, so a listener may log, count or wait.  What it raises is logged on the pool's
logger, and the pool is none the worse.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from geventpool.stats import Duration, Histogram

__all__ = [
    "AcquireShed",
    "AcquireTimedOut",
    "ConnectionCheckedIn",
    "ConnectionCheckedOut",
    "ConnectionCreated",
    "ConnectionDisposed",
    "ConnectionFailed",
    "ConnectionHeldLong",
    "ConnectionLost",
    "ConnectionRecycled",
    "ConnectionSalvaged",
    "Duration",
    "Histogram",
    "Holder",
    "PeerClosed",
    "PoolAtMax",
    "PoolDisposed",
    "PoolEvent",
    "PoolIsBack",
    "PoolListener",
    "PoolStats",
    "PoolWentDown",
    "Reason",
    "Refusal",
    "ServerListObtained",
]


#: Why a caller got no connection: see ``PoolStats.refusals``.
Refusal: TypeAlias = Literal["timeout", "full", "down", "shed", "dial", "limit"]


class Reason(str, enum.Enum):
    """Why a connection left the pool."""

    DISCARDED = "discarded by its holder"
    ERROR = "an exception left its with block"
    PEER_CLOSED = "peer hung up"
    UNREAD = "unread bytes"
    DEAD = "found dead at hand-out"
    GONE = "closed, or connected anew, behind the pool's back"
    CUT_SHORT = "a wait on it was cut short"
    KEEPALIVE = "keepalive failed"
    RESET = "reset on return failed"
    SALVAGE = "salvage failed"
    EXPIRED = "max_lifetime reached"
    IDLE = "idle_timeout reached"
    WORN_OUT = "max_uses reached"
    DRAINED = "drained"
    SURPLUS = "more than size"
    EVICTED = "made room for another pool of the same limit"
    DISPOSED = "dispose() was called"
    POOL_CLOSED = "pool closed"
    DETACHED = "detached by its holder"
    LOST = "garbage collected without release"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class PoolEvent:
    """What every event has: the *pool* it comes from, and in an EndpointPool the *endpoint* that it
    is about (None: all of them)."""

    pool: Any
    endpoint: Any = field(default=None, kw_only=True)


@dataclass(frozen=True)
class ConnectionCreated(PoolEvent):
    """A *connection* was opened; the dial took *seconds*."""

    connection: Any
    seconds: float


@dataclass(frozen=True)
class ConnectionCheckedOut(PoolEvent):
    """A caller was given *connection*, after *waited* seconds."""

    connection: Any
    waited: float


@dataclass(frozen=True)
class ConnectionCheckedIn(PoolEvent):
    """A caller gave *connection* back fit for use, after holding it for *used* seconds."""

    connection: Any
    used: float


@dataclass(frozen=True)
class ConnectionDisposed(PoolEvent):
    """A *connection* was closed, for *reason*; *error* is what broke it, where something did."""

    connection: Any
    reason: Reason
    error: BaseException | None = None


@dataclass(frozen=True)
class ConnectionRecycled(PoolEvent):
    """*new_connection* took the place of *old_connection*, which was too old, worn or drained."""

    old_connection: Any
    new_connection: Any


@dataclass(frozen=True)
class ConnectionFailed(PoolEvent):
    """A dial failed (*connection* is None), or a connection in use broke; *error* says how."""

    error: BaseException
    connection: Any = None


@dataclass(frozen=True)
class ConnectionSalvaged(PoolEvent):
    """The use of *connection* was cut short, and the pool has brought it back into step, which took
    *seconds*; *error* is what left its ``with``, None if a wait was found to be cut short."""

    connection: Any
    seconds: float
    error: BaseException | None = None


@dataclass(frozen=True)
class PoolAtMax(PoolEvent):
    """A caller begins to wait because the pool has all the *maximum* connections it may have."""

    maximum: float


@dataclass(frozen=True)
class PoolDisposed(PoolEvent):
    """``dispose()`` or ``close()`` was called (*closed* tells which)."""

    closed: bool


@dataclass(frozen=True)
class PoolWentDown(PoolEvent):
    """Who would have to wait is sent away from now on: nothing was open and every dial has failed
    for *down_after* seconds, or a dial's error was FATAL.  *error* is that of the last dial."""

    error: BaseException | None


@dataclass(frozen=True)
class PoolIsBack(PoolEvent):
    """Callers wait again, *seconds* after the first dial that failed: one has succeeded.  *dials*
    have failed and *refused* callers got no connection meanwhile.  (An endpoint that has had no
    caller for a minute is forgotten instead.)  Of an address of a ConnectionManager *refused* is 0:
    its callers are tried at another one, and the manager counts those that get none at all."""

    seconds: float
    dials: int
    refused: int


@dataclass(frozen=True)
class ServerListObtained(PoolEvent):
    """The pool has a new list of servers to choose from."""

    servers: tuple[Any, ...]


@dataclass(frozen=True)
class AcquireTimedOut(PoolEvent):
    """A caller gave up after *waited* seconds; *error* is the PoolTimeout that it gets."""

    waited: float
    error: BaseException


@dataclass(frozen=True)
class AcquireShed(PoolEvent):
    """A caller was sent away after it had *waited* for so many seconds, as more is asked of the
    pool than it can serve; *error* is the PoolOverloaded that it gets."""

    waited: float
    error: BaseException


@dataclass(frozen=True)
class ConnectionLost(PoolEvent):
    """A connection was garbage collected while in use; its place is free again.

    It had been out for *used* seconds; *where* is the stack that acquired it, if the pool tracks.
    """

    used: float
    where: str | None = None


@dataclass(frozen=True)
class ConnectionHeldLong(PoolEvent):
    """A caller has held *connection* for longer than *leak_threshold*: *age* seconds by now.

    *greenlet* has it (None: that one has ended); *where* is the stack that acquired it, if the pool
    tracks, and *stack* where the greenlet is at this moment.
    """

    connection: Any
    greenlet: Any
    age: float
    where: str | None = None
    stack: str | None = None


@dataclass(frozen=True)
class PeerClosed(PoolEvent):
    """The peer of *connection* hung up; *in_use* tells whether a caller holds it just then."""

    connection: Any
    in_use: bool


class PoolListener:
    """Told what happens in a pool.  Subclassing is optional: any of these methods will do.

    A listener is inspected once, when it is added, and is told only what it has methods for.  One
    that keeps events keeps their connections: those are never noticed to be lost.
    """

    def connection_created(self, event: ConnectionCreated) -> None:
        """Called when a dial has succeeded."""

    def connection_checked_out(self, event: ConnectionCheckedOut) -> None:
        """Called when a caller is given a connection."""

    def connection_checked_in(self, event: ConnectionCheckedIn) -> None:
        """Called when a caller has given a connection back and the pool keeps it."""

    def connection_disposed(self, event: ConnectionDisposed) -> None:
        """Called when the pool has closed a connection, or let go of one."""

    def connection_recycled(self, event: ConnectionRecycled) -> None:
        """Called when a connection has been replaced by a fresh one because of its age or use."""

    def connection_failed(self, event: ConnectionFailed) -> None:
        """Called when a dial failed, and when an error made a holder's connection unfit."""

    def connection_salvaged(self, event: ConnectionSalvaged) -> None:
        """Called when a connection whose use was cut short is fit for use again."""

    def pool_at_max(self, event: PoolAtMax) -> None:
        """Called when a caller has to wait and the pool may not open more."""

    def pool_disposed(self, event: PoolDisposed) -> None:
        """Called when the idle connections were told to close, or the whole pool was."""

    def pool_went_down(self, event: PoolWentDown) -> None:
        """Called when callers are sent away because no dial succeeds."""

    def pool_is_back(self, event: PoolIsBack) -> None:
        """Called when that is over."""

    def server_list_obtained(self, event: ServerListObtained) -> None:
        """Called when a pool over several servers has a new list of them."""

    def acquire_timed_out(self, event: AcquireTimedOut) -> None:
        """Called when a caller has waited in vain."""

    def acquire_shed(self, event: AcquireShed) -> None:
        """Called when *overload* has sent away a caller that had waited too long."""

    def connection_lost(self, event: ConnectionLost) -> None:
        """Called when a connection was garbage collected without having been released."""

    def connection_held_long(self, event: ConnectionHeldLong) -> None:
        """Called once for a use that lasts longer than *leak_threshold*."""

    def peer_closed(self, event: PeerClosed) -> None:
        """Called when the other end of a connection has hung up."""


@dataclass(frozen=True)
class PoolStats:
    """One pool at one moment.  Gauges tell how it stands; counters only grow (a forked child
    starts again from zero)."""

    name: str
    #: Gauges: what the pool is set to ...
    size: int
    min_size: int
    maximum: float  # size + max_overflow; math.inf without bound
    # ... and where its connections are.  These six (not *waiting*) add up to what limits count.
    in_use: int  # held by callers, or handed over to one that is about to wake
    idle: int
    connecting: int
    checking: int  # the pool itself is running _keepalive on it
    salvaging: int  # the pool itself is running _salvage_connection on it
    closing: int
    waiting: int  # callers in line
    #: Counters.
    acquired: int  # ticks when a caller is given a connection
    released: int  # ticks when a connection comes back fit for use
    timed_out: int  # ticks when a caller's timeout ends its wait
    refused: int  # ticks when max_waiting sends a caller away
    refused_down: int  # ticks when one gets PoolDown, or the FATAL error of a dial before it came
    shed: int  # ticks when overload sends away a caller that has waited too long
    abandoned: int  # ticks when a waiting caller is killed or timed out from outside
    dialed: int  # ticks when a dial begins
    opened: int  # ticks when a dial succeeds
    dial_failed: int  # ticks when a dial fails, whatever the cause
    checked: int  # ticks when the pool's own keepalive has run, well or not
    salvaged: int  # ticks when a connection whose use was cut short is fit for use again
    salvage_failed: int  # ticks when salvaging one has failed
    closed: Mapping[Reason, int]  # ticks when a connection leaves the pool, by reason
    #: Durations in seconds.
    wait: Duration  # of the acquires that found nothing idle and were served
    use: Duration  # from hand-out to return, of connections that came back or were discarded
    connect: Duration  # of the dials that succeeded
    #: The last dial error, None after a dial that succeeded.
    last_error: BaseException | None = None
    #: More gauges:
    waiting_max: int = 0  # the most callers that ever stood in line, for one endpoint
    #: Seconds for which one of the connections in use is held by now.
    longest_held: float = field(default=0.0, compare=False)
    #: Nothing is open, and dials fail; where there are several endpoints, none of them is well.
    down: bool = False
    #: By how many seconds a timer of the pool's hub was late, at worst in the last minute or so.
    hub_lag: float = field(default=0.0, compare=False)
    #: More counters:
    held_long: int = 0  # ticks when a use has lasted for *leak_threshold*
    refused_dial: int = 0  # ticks when a caller gets the error of a dial itself, as by *fail_fast*
    refused_limit: int = 0  # ticks when one gets OutOfSockets
    #: The last few errors, the oldest first: (when, by time.time(); what), of dials, of checks and
    #: of connections that broke in use.
    errors: tuple[tuple[float, str], ...] = ()

    @property
    def refusals(self) -> Mapping[Refusal, int]:
        """How many callers got no connection, by why: ``timeout``, ``full`` (*max_waiting*),
        ``down`` (*down_after*, a FATAL error, or servers that are marked down), ``shed``
        (*overload*), ``dial`` (the error of a dial itself), ``limit`` (OutOfSockets).  Each is
        counted once, by the error that it got."""
        return {
            "timeout": self.timed_out,
            "full": self.refused,
            "down": self.refused_down,
            "shed": self.shed,
            "dial": self.refused_dial,
            "limit": self.refused_limit,
        }


@dataclass(frozen=True)
class Holder:
    """Who holds a *connection* just now, and for how long: *age* in seconds.

    *where* is the stack that acquired it (with ``track=True``, else None), *stack* where its
    *greenlet* is at this moment; None if the greenlet has ended without releasing it.  *endpoint*
    is where the connection leads, in an EndpointPool.
    """

    connection: Any
    greenlet: Any
    age: float
    where: str | None
    stack: str | None
    endpoint: Any = None
