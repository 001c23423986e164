"""EndpointPool: connections to many places, limited each and all together, fairly shared."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from geventpool import sockets
from geventpool._runtime.clock import get_ident
from geventpool._runtime.introspection import holders
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._scheduler.limit import Limit
from geventpool._util.arguments import check_seconds, check_whole
from geventpool.backoff import Backoff
from geventpool.errors import PoolClosed
from geventpool.events import Holder, PoolStats
from geventpool.overload import CoDel
from geventpool.pools.base import BasePool, stats_of
from geventpool.pools.lease import DEFAULT, assert_not_entered
from geventpool.pools.leases import Lease, LocalLease
from geventpool.pools.settings import PoolSettings
from geventpool.registry import register

__all__ = ["EndpointPool"]

E = TypeVar("E", bound=Hashable)
C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")


class _AtEndpoint:
    """A lease that finds its bucket when it is entered, and keeps it from leaving meanwhile."""

    __slots__ = ()

    def __enter__(self: Any) -> Any:
        assert_not_entered(self)
        self._bucket = bucket = self._pool._expect(self._endpoint)
        try:
            return super().__enter__()  # type: ignore[misc]
        finally:
            self._pool._expected(bucket)


class _EndpointLease(_AtEndpoint, Lease[Any]):
    __slots__ = ("_endpoint",)


class _LocalEndpointLease(_AtEndpoint, LocalLease[Any]):
    __slots__ = ("_endpoint",)


class EndpointPool(BasePool[C], Generic[E, C]):
    """A pool of connections to many endpoints: whatever is hashable and says where to connect to.
    (None may be one, too; but a verb that can be asked of all endpoints takes it for all.)

    Override ``_new_connection(endpoint)``, or give *connect*, a callable that takes the endpoint.
    Nothing is opened before it is asked for.  An endpoint needs no introduction, and leaves
    no trace once it has neither connections nor callers (but in the pool's own counters).

    - *max_size*: connections to one endpoint at most; *total_max_size*: to all together (None: no
      bound).  At the total the longest idle connection of another endpoint makes room.  Callers
      are served in the order they come, whichever endpoint they want.
    - *idle_timeout* closes what was not used for that long, but *min_idle* connections of each
      endpoint; *max_lifetime* closes what is older.  What they closed is opened again when
      it is asked for.

    All other arguments, the hooks and the verbs are those of ConnectionPool; hooks get the
    endpoint first, and so do verbs that need one.  *max_waiting*, *overload*, *max_connecting*,
    *backoff*, *fail_fast* and *down_after* are for each endpoint; one that is down is dialed until
    it is back, or has had no caller for a minute.  Durations are seconds; None means no bound.

    Hooks to override, which are called as those of ConnectionPool: ``_new_connection(endpoint)``,
    ``_keepalive(endpoint, conn)``, ``_is_alive(endpoint, conn)``,
    ``_reset_connection(endpoint, conn)``, ``_salvage_connection(endpoint, conn, error)`` (for half
    of *max_size* at a time), ``_close_connection(endpoint, conn)``,
    ``_socket(endpoint, conn)``, ``_fileno(endpoint, conn)``; ``_classify_error(error)`` gets none.
    ``_may_reconnect`` and ``_may_poll`` are as there.
    """

    def __init__(
        self,
        *,
        max_size: int = 10,
        total_max_size: int | None = 100,
        min_idle: int = 1,
        idle_timeout: float | None = 60.0,
        max_lifetime: float | None = 3600.0,
        exc_classes: type[BaseException] | Iterable[type[BaseException]] = (OSError,),
        keepalive: float | None = None,
        connect: Callable[[E], C] | None = None,
        timeout: float | None = 30.0,
        max_waiting: int | None = None,
        overload: CoDel | None = None,
        connect_timeout: float | None = 10.0,
        max_connecting: int = 16,
        backoff: Backoff | None = None,
        keepalive_timeout: float = 5.0,
        salvage_timeout: float = 1.0,
        max_uses: int | None = None,
        jitter: float = 0.1,
        check_after: float | None = None,
        order: str | None = None,
        strict: bool = False,
        fail_fast: bool = False,
        down_after: float | None = None,
        greenlet_local: bool = False,
        limits: Iterable[Limit] = (),
        listeners: Iterable[object] = (),
        track: bool = False,
        leak_threshold: float | None = None,
        name: str | None = None,
    ) -> None:
        settings = PoolSettings.of(locals())
        _check_sizes(max_size, total_max_size, min_idle)
        super().__init__(settings)
        self._max_size = max_size
        self._min_idle = min_idle
        self._total = Limit(_maximum(total_max_size), f"{self.name} in total")
        self._lease = _LocalEndpointLease if greenlet_local else _EndpointLease
        self._buckets: dict[E, PoolBucket] = {}
        self._on_empty = partial(_forget_bucket, weakref.ref(self))
        #: Has no connections: it adds up what those have counted that have left.
        self._past = self._make_bucket(None)
        self._runtime.buckets.add(self._past)  # for a child to set it back to zero
        if not self._is_managed:
            register(self)

    # Hooks to override

    def _new_connection(self, endpoint: E) -> C:
        """Open a connection to *endpoint*, log in and all, and return it.

        Any exception is a failed dial.
        """
        assert self._connect is not None
        return self._connect(endpoint)

    def _keepalive(self, endpoint: E, conn: C) -> object:
        """Ask the server for a sign of life over *conn*.  Any exception discards it."""
        raise NotImplementedError

    def _close_connection(self, endpoint: E, conn: C) -> object:
        """Close *conn*; ``conn.close()`` where there is one.  What it raises is only logged."""
        sockets.close(conn)
        return None

    def _is_alive(self, endpoint: E, conn: C) -> bool:
        """Whether *conn* may be handed out.  Must not switch.  By default as in ConnectionPool."""
        return self._seems_alive(endpoint, conn)

    def _socket(self, endpoint: E, conn: C) -> Any:
        """What carries the bytes of *conn*.  Must not switch.  By default as in ConnectionPool."""
        return sockets.carriers(conn)

    def _fileno(self, endpoint: E, conn: C) -> int | None:
        """The file descriptor of *conn*: the old name of ``_socket``, which says more."""
        return sockets.fileno(conn)

    def _reset_connection(self, endpoint: E, conn: C) -> object:
        """Called on return, to make *conn* as good as new.  Any exception discards it."""

    def _salvage_connection(self, endpoint: E, conn: C, error: BaseException | None) -> object:
        """Bring *conn*, whose use *error* cut short, back into step.  Any exception closes it."""

    # Verbs

    def get(self, endpoint: E, timeout: float | None = DEFAULT) -> Lease[C]:
        """A connection to *endpoint* for the length of a ``with``; see ``acquire``."""
        lease: Any = self._lease()
        lease._pool = self
        lease._endpoint = endpoint
        if timeout is not DEFAULT:
            check_seconds("timeout", timeout, zero=True)
        lease._timeout = timeout
        return lease  # type: ignore[no-any-return]

    def acquire(self, endpoint: E, timeout: float | None = DEFAULT) -> C:
        """Return an open connection to *endpoint*, waiting for one if need be.

        Blocks, raises and leaves things as ``ConnectionPool.acquire`` does.  ``release`` the
        connection afterwards.
        """
        return self._acquired(*self._acquire(endpoint, self._max_wait(timeout)))

    @overload
    def execute(
        self, endpoint: E, f: Callable[Concatenate[C, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...

    @overload
    def execute(self, endpoint: E, f: str, *args: Any, **kwargs: Any) -> Any: ...

    def execute(self, endpoint: E, f: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Any:
        """Return ``f(conn, *args, **kwargs)``, or that of the connection's method named *f*."""
        with self.get(endpoint) as conn:
            if callable(f):
                return f(conn, *args, **kwargs)
            return getattr(conn, f)(*args, **kwargs)

    def fill(self, endpoint: E, timeout: float | None = DEFAULT) -> None:
        """Wait until *max_size* connections to *endpoint* are open.

        Other endpoints keep theirs: at *total_max_size* it waits for a place.  Raises what
        ``ConnectionPool.fill`` does.
        """
        max_wait = self._max_wait(timeout)
        bucket = self._expect(endpoint)
        try:
            self._runtime.fill(self, bucket, max_wait)
        finally:
            self._expected(bucket)

    def resize(self, max_size: int, total_max_size: int | None = DEFAULT) -> None:
        """Open at most *max_size* connections to each endpoint from now on, and *total_max_size*
        together (None: no bound; not given: as before).

        What is too many is closed: idle ones now, the others on return.
        """
        if total_max_size is DEFAULT:
            total = self._total.maximum
            total_max_size = None if total == math.inf else int(total)
        check_whole("max_size", max_size, least=1)
        min_idle = min(self._min_idle, max_size)
        _check_sizes(max_size, total_max_size, min_idle)
        self._runtime.assert_usable_here(self)
        self._max_size, self._min_idle = max_size, min_idle
        self._total.maximum = _maximum(total_max_size)
        for bucket in list(self._buckets.values()):
            bucket.spare_idle(min_idle)
            self._runtime.resize(bucket, max_size, 0)

    def drain(self, endpoint: E | None = None, over: float = 0.0) -> None:
        """Close every connection to *endpoint* (None: to all) opened so far, each at a random
        moment of *over* seconds; those in use on return.  Returns at once."""
        check_seconds("over", over, zero=True, none=False)
        self._runtime.assert_usable_here(self)
        for bucket in self._chosen(endpoint):
            self._runtime.drain(bucket, over)

    def dispose(self, endpoint: E | None = None) -> None:
        """Close the idle connections to *endpoint* (None: to all).  The pool stays usable."""
        self._runtime.dispose(self, self._chosen(endpoint))

    # Looking

    @property
    def max_size(self) -> int:
        """How many connections to one endpoint there may be."""
        return self._max_size

    @property
    def total_max_size(self) -> float:
        """How many connections there may be in all; math.inf without bound."""
        return self._total.maximum

    @property
    def size(self) -> int:
        """How many connections there are, to all endpoints, those being opened or closed too."""
        return self._total.used

    def endpoints(self) -> list[E]:
        """The endpoints that have connections or callers."""
        return list(self._buckets)

    def stats(self, endpoint: E | None = None) -> PoolStats:
        """How the pool stands, and what it has counted since it was made.

        Of one *endpoint*: since it has had connections or callers.
        """
        name, maximum, buckets = self.name, self._total.maximum, self._chosen(endpoint)
        if endpoint is None:
            buckets.append(self._past)
        else:
            name, maximum = f"{name} {endpoint}", self._max_size
        size = self._max_size
        return stats_of(self, buckets, name=name, size=size, min_size=0, maximum=maximum)

    def holders(self, endpoint: E | None = None) -> tuple[Holder, ...]:
        """For each connection in use: who has it, for how long, and where it is just now."""
        return holders(self._chosen(endpoint))

    def __repr__(self) -> str:
        buckets = list(self._buckets.values())
        in_use, idle, connecting = (
            sum(getattr(bucket, what) for bucket in buckets)
            for what in ("in_use", "idle", "connecting")
        )
        return (
            f"<{type(self).__name__} {self.name!r} {in_use} in use, {idle} idle, {connecting}"
            f" connecting | {sum(len(b.waiters) for b in buckets)} waiting,"
            f" {len(buckets)} endpoints>"
        )

    # Inside

    def _acquire(self, endpoint: E, timeout: float | None) -> tuple[ConnectionSlot, C]:
        bucket = self._expect(endpoint)
        try:
            slot, conn = self._desk.acquire(self, bucket, timeout)
            slot.loose_use = slot.uses
            return slot, conn
        finally:
            self._expected(bucket)

    def _expect(self, endpoint: E) -> PoolBucket:
        """The bucket of *endpoint*, which does not leave before it is no more ``_expected``."""
        if get_ident() != self._runtime.ident:
            self._runtime.assert_usable_here(self)
        bucket = self._find(endpoint)
        if bucket is None:
            if self.closed:
                raise PoolClosed(f"pool {self.name!r} is closed", pool=self.name)
            bucket = self._make_bucket(endpoint)
            self._runtime.add(bucket)
            self._buckets[endpoint] = bucket
        bucket.pins += 1
        return bucket

    def _expected(self, bucket: PoolBucket) -> None:
        bucket.pins -= 1
        if not bucket.slots:
            self._runtime.forget_if_empty(bucket)

    def _make_bucket(self, endpoint: E | None) -> PoolBucket:
        settings: dict[str, Any] = {
            "size": self._max_size,
            "min_size": 0,
            "min_idle": self._min_idle,
            "limits": (self._total, *self._limits),
            "lifo": self._order != "fifo",
            "transient": True,
        }
        settings |= self._settings_of(endpoint)
        has_keepalive = settings.pop("has_keepalive", True)
        bucket = self._new_bucket(f"{self.name} {endpoint}", **settings)
        bucket.key = (endpoint,)
        bucket.has_keepalive = has_keepalive
        bucket.on_empty = self._on_empty
        return bucket

    def _settings_of(self, endpoint: E | None) -> dict[str, Any]:
        """What the bucket of *endpoint* has otherwise than the others: for a subclass.

        ``fail_when_full``, ``fail_when_down``, ``backoff``, ``limits``, ``idle_timeout``, and
        ``has_keepalive``: whether the pool's keepalive is for it.  None stands for no endpoint.
        """
        return {}

    def _chosen(self, endpoint: E | None) -> list[PoolBucket]:
        if endpoint is None:
            return list(self._buckets.values())
        bucket = self._find(endpoint)
        return [] if bucket is None else [bucket]

    def _bucket_of(self, *key: Any) -> PoolBucket | None:
        return self._find(*key)

    def _find(self, endpoint: E) -> PoolBucket | None:
        try:
            return self._buckets.get(endpoint)
        except TypeError as error:
            raise TypeError(f"endpoint must be hashable, not {endpoint!r}") from error

    def _all_buckets(self) -> list[PoolBucket]:
        return list(self.__dict__.get("_buckets", {}).values())

    def _overrides(self, hook: str) -> bool:
        own = getattr(self, hook)
        return getattr(own, "__func__", own) is not getattr(EndpointPool, hook)


def _forget_bucket(pool: weakref.ref[EndpointPool[Any, Any]], bucket: PoolBucket) -> None:
    """Have the pool forget a bucket that has left, but not what it has counted."""
    if (owner := pool()) is not None and owner._buckets.get(bucket.endpoint) is bucket:
        del owner._buckets[bucket.endpoint]
        owner._past.absorb(bucket)


def _check_sizes(max_size: int, total_max_size: int | None, min_idle: int) -> None:
    check_whole("max_size", max_size, least=1)
    check_whole("min_idle", min_idle)
    if min_idle > max_size:
        raise ValueError(f"min_idle ({min_idle}) is more than max_size ({max_size})")
    if total_max_size is not None:
        check_whole("total_max_size", total_max_size, least=1)
        if max_size > total_max_size:
            raise ValueError(
                f"max_size ({max_size}) is more than total_max_size ({total_max_size})"
            )


def _maximum(total_max_size: int | None) -> float:
    return math.inf if total_max_size is None else total_max_size
