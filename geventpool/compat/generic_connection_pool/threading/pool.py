"""ConnectionPool: what a manager creates, for a while each, at most so many."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic

from gevent import Timeout, get_hub, getcurrent

from geventpool import sockets
from geventpool.backoff import Backoff
from geventpool.compat.generic_connection_pool._liveness import StreamProbe, socket_of
from geventpool.compat.generic_connection_pool._manager import BaseConnectionManager, is_own, timed
from geventpool.compat.generic_connection_pool.common import (
    BaseConnectionPool,
    ConnectionT,
    EndpointT,
)
from geventpool.compat.generic_connection_pool.exceptions import (
    ConnectionNotAcquired,
    ConnectionPoolClosedError,
    ConnectionPoolNotFound,
)
from geventpool.errors import NotInUse, PoolClosed
from geventpool.events import ConnectionDisposed, PoolListener, Reason
from geventpool.pools import Lease
from geventpool.pools.extension import CLOSE_TIMEOUT, DEFAULT, Hold

logger = logging.getLogger("generic_connection_pool.threading")

__all__ = ["BaseConnectionManager", "ConnectionPool", "ConnectionT", "EndpointT"]


class ConnectionPool(BaseConnectionPool[EndpointT, ConnectionT], Generic[EndpointT, ConnectionT]):
    """A pool of what *connection_manager* creates, at most *max_size* to each endpoint and
    *total_max_size* in all.

    *acquire_timeout* is how long callers wait (seconds; None: as long as it takes).  Each
    ``dispose`` may take *dispose_timeout*, and 5 s at most.  *background_collector* and
    *dispose_batch_size* are of no effect: what is due is always disposed of in the background, but
    with an *idle_timeout* of 0: see ``release``.  Idle connections are handed out in turn.
    *settings* are those of an EndpointPool, such as *name* or *listeners*; *connect_timeout*, how
    long a ``create`` may take, is by default 10 s, or *acquire_timeout* if that is more.
    """

    def __init__(
        self,
        connection_manager: BaseConnectionManager[EndpointT, ConnectionT],
        *,
        acquire_timeout: float | None = None,
        background_collector: bool = False,
        dispose_batch_size: int = 0,
        dispose_timeout: float | None = None,
        min_idle: int = 1,
        max_size: int = 10,
        **settings: Any,
    ) -> None:
        manager = connection_manager
        if settings.pop("greenlet_local", False):
            raise TypeError("greenlet_local is not for this pool: use an EndpointPool")
        self._connection_manager = manager
        self._dispose_timeout = dispose_timeout
        self._create = timed(manager.create, "an endpoint")
        self._dispose = timed(manager.dispose, "an endpoint", "a connection")
        self._check = timed(manager.check_aliveness, "an endpoint", "a connection")
        settings.setdefault("connect_timeout", max(10.0, acquire_timeout or 0.0))
        # As with a fixed `create`, each caller is told of a failure of its own, and soon.
        settings.setdefault("backoff", Backoff(first=0.01, longest=0.1))
        settings.setdefault("fail_fast", True)
        settings.setdefault("order", "fifo")  # in turn
        checks = is_own(manager.check_aliveness)
        super().__init__(
            timeout=acquire_timeout,
            check_after=0.0 if checks else None,
            min_idle=min_idle,
            max_size=max_size,
            **settings,
        )
        if checks:
            self.check_after = -1.0  # what goes from hand to hand without lying idle, too
        self._has_on_acquire = is_own(manager.on_acquire)
        self.has_reset = is_own(manager.on_release)
        self._keeps_no_extra = self.idle_timeout == 0
        self._unreleased: set[Any] = set()  # what on_acquire was called with, on_release not
        if is_own(manager.on_connection_dead):
            self.add_listener(_DeadConnectionNotifier(manager))

    def get(self, endpoint: EndpointT, timeout: float | None = DEFAULT) -> Lease[ConnectionT]:
        """A connection to *endpoint* for the length of a ``with``; see EndpointPool."""
        return _ManagedLease(self, endpoint, super().get(endpoint, timeout))

    def connection(self, endpoint: EndpointT, timeout: float | None = None) -> Lease[ConnectionT]:
        """A connection to *endpoint* for the length of a ``with``; see ``acquire``.

        It goes back or is disposed of by what leaves the ``with``: see Lease.
        """
        return self.get(endpoint, DEFAULT if timeout is None else max(timeout, 0.0))

    def acquire(self, endpoint: EndpointT, timeout: float | None = None) -> ConnectionT:
        """Return a connection to *endpoint*; ``release`` it afterwards.

        Waits for at most *timeout* seconds (None: *acquire_timeout*; 0: takes one that lies idle).
        Raises TimeoutError if none came free or open in time, ConnectionPoolClosedError once
        ``close()`` was called, and what ``create`` or ``on_acquire`` raises.
        """
        return self.connection(endpoint, timeout).__enter__()

    def release(self, conn: ConnectionT, endpoint: EndpointT = DEFAULT) -> None:
        """Give back a connection.

        With an *idle_timeout* of 0, what is idle beyond *min_idle* is disposed of when this
        returns, the longest idle first; that may take 5 s at most.  Else it does not block.

        In a ``finally`` or an ``except`` it is disposed of if the exception there makes it unfit
        for use, as if it had left a ``with``.  Raises ConnectionNotAcquired if *conn* is not in use
        here, and ConnectionPoolNotFound, leaving it in use, if it is none of *endpoint*'s.
        """
        hold, facts = self._hold_on(conn), self._facts_of(conn)
        if hold is None or facts is None:
            return
        if endpoint is not DEFAULT and facts.endpoint != endpoint:
            raise ConnectionPoolNotFound(
                f"pool {self.name!r}: {conn!r} is a connection to {facts.endpoint!r},"
                f" not to {endpoint!r}",
                pool=self.name,
                connection=conn,
            )
        exc = sys.exc_info()[1]
        if exc is not None:
            self._end_use(hold, conn, exc)
        else:
            self._checkin(hold, conn)
        if self._keeps_no_extra:
            self._dispose_extra(facts.endpoint)

    def close(self, timeout: float | None = None) -> None:
        """Close the pool for good: see EndpointPool.  After *timeout* seconds (None: never) what
        is still in use is disposed of, too."""
        super().close(None if timeout is None else max(timeout, 0.0))

    def get_endpoint_pool_size(self, endpoint: EndpointT, acquired: bool | None = None) -> int:
        """How many connections to *endpoint* there are; *acquired*: in use (True), idle (False)."""
        now = self._standing(endpoint)
        if acquired is None:
            return now.total
        return now.in_use if acquired else now.idle

    # Inside

    def _dispose_extra(self, endpoint: EndpointT) -> None:
        """Dispose now of what is idle beyond *min_idle*, the longest idle first."""
        if getcurrent() is get_hub():  # where nothing may wait: soon, then
            return
        now = self._standing(endpoint)
        extra = min(now.idle, now.open - self.min_idle)
        if extra > 0:
            self._evict_idle(
                lambda conn: True, Reason.IDLE, CLOSE_TIMEOUT, most=extra, key=(endpoint,)
            )

    def _hold_on(self, conn: ConnectionT) -> Hold | None:
        """The hold on *conn*; None if the pool is closed, and *conn* too, or it is the parent's."""
        try:
            hold = self._hold_of(conn)
            return hold if self._is_held(hold) else None
        except NotInUse as error:
            if self.closed:
                return None
            raise ConnectionNotAcquired(str(error), pool=self.name, connection=conn) from None

    def _new_connection(self, endpoint: EndpointT) -> ConnectionT:
        seconds = self.connect_timeout
        try:
            conn: ConnectionT = self._create(endpoint, timeout=seconds)
        except Timeout as expired:
            raise TimeoutError(
                f"pool {self.name!r}: no connection to {endpoint} within {seconds} s"
            ) from expired.__cause__
        self._unreleased.discard(_ident(conn))  # that of one that was garbage collected
        return conn

    def _keepalive(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        facts = self._facts_of(conn)
        if facts is not None and facts.uses == 1 and not facts.idled:
            return  # just created
        if not self._check(endpoint, conn, timeout=self.keepalive_timeout):
            self._connection_manager.on_connection_dead(endpoint, conn)
            raise ConnectionError("check_aliveness says that it is dead")

    def _reset_connection(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        if (ident := _ident(conn)) in self._unreleased:
            self._unreleased.discard(ident)
            self._connection_manager.on_release(endpoint, conn)

    def _close_connection(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        try:
            with Timeout(CLOSE_TIMEOUT / 2):
                self._reset_connection(endpoint, conn)
        except (Exception, Timeout) as error:
            logger.debug("on_release failed for a connection that is disposed of: %r", error)
        timer = Timeout.start_new(self._dispose_timeout)
        try:
            self._dispose(endpoint, conn, timeout=self._dispose_timeout)
        except (Exception, Timeout) as error:
            logger.error("connection disposal failed: %r", error)
            with suppress(Exception):
                sockets.close(conn)
        finally:
            timer.close()

    def _socket(self, endpoint: EndpointT, conn: ConnectionT) -> Any:
        return sockets.carriers(socket_of(conn))

    def _make_probe(self, conn: Any, ask: Callable[[Any], Any]) -> Any:
        probe = super()._make_probe(conn, ask)
        return probe if socket_of(conn) is conn else StreamProbe(conn, probe)


class _ManagedLease(Lease[Any]):
    """A lease that tells the manager, and raises the errors that have an old name by that name."""

    __slots__ = ("_endpoint", "_inner", "_managed")

    def __init__(self, pool: Any, endpoint: Any, inner: Lease[Any]) -> None:
        self._managed = pool
        self._endpoint = endpoint
        self._inner = inner

    def __enter__(self) -> Any:
        pool = self._managed
        try:
            conn = self._inner.__enter__()
        except PoolClosed as error:
            raise ConnectionPoolClosedError(str(error), pool=error.pool) from None
        if pool._has_on_acquire:
            hold = pool._hold_of(conn)
            try:
                pool._connection_manager.on_acquire(self._endpoint, conn)
            except BaseException as exc:
                pool._discard(hold, conn, Reason.ERROR, exc)
                raise
        if pool.has_reset:
            pool._unreleased.add(_ident(conn))
        return conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._inner.__exit__(exc_type, exc, traceback)
        if self._managed._keeps_no_extra:
            self._managed._dispose_extra(self._endpoint)


class _DeadConnectionNotifier(PoolListener):
    """Tells the manager of connections that the pool itself has found dead."""

    def __init__(self, manager: BaseConnectionManager[Any, Any]) -> None:
        self._manager = manager

    def connection_disposed(self, event: ConnectionDisposed) -> None:
        if event.reason in (Reason.PEER_CLOSED, Reason.UNREAD, Reason.DEAD):
            self._manager.on_connection_dead(event.endpoint, event.connection)


def _ident(conn: Any) -> object:
    """What is the same for a tuple that was taken apart and put together again."""
    return tuple(map(id, conn)) if isinstance(conn, tuple) else id(conn)
