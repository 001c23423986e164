"""ConnectionManager: from a name to an open connection.

It puts together what others know: a resolver, which addresses a name has (``resolver.py``); a
ServerModelDirectory, how each of them is doing and which to try next (``health.py``); and an
EndpointPool of sockets, the sixth of which is never opened if five are the limit
(``endpoints.py``).  What is here is the walk over the addresses, and what is told to whom when it
has come to an end.

The walk never counts as a failure of a server what is none: that its caller was killed, or that
there was no place for one more socket.
"""

from __future__ import annotations

import copy
import math
import resource
import ssl
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import gevent
from gevent.monkey import get_original

from geventpool import sockets
from geventpool._face import DEFAULT, check_seconds, check_whole
from geventpool._slots import IN_USE, Bucket, Limit
from geventpool.addresses import Address, AddressGroup, AnyAddress, Resolver, address
from geventpool.backoff import Backoff
from geventpool.endpoints import EndpointPool
from geventpool.errors import (
    ConnectError,
    MarkedDownError,
    MultiConnectFailure,
    NameNotFound,
    OutOfSockets,
    PoolError,
    PoolTimeout,
)
from geventpool.events import PoolStats, Reason
from geventpool.health import Attempt, Balance, HealthPolicy, ServerModel, ServerModelDirectory
from geventpool.monitored import MonitoredSocket, Traffic
from geventpool.resolver import StaticResolver, Watcher
from geventpool.sockets import SocketFactory

__all__ = ["AddressGroupMap", "ConnectInfo", "ConnectionManager"]

#: What a caller may say about TLS: no; yes, verified; by this context; yes, with whomever.
Tls: TypeAlias = "bool | str | ssl.SSLContext"
#: What makes of a socket the thing that is pooled.
SockType: TypeAlias = Callable[[Any], Any]

_SSLContext = get_original("ssl", "SSLContext")
_NO_BOUND = 2**31 - 1
_LEAST_PART = 2.0  # seconds for each of many addresses: enough for a SYN to be lost once
_IMPATIENT = 0.1  # who waited less has learnt nothing about the server
_MOST_FACTORIES = 1024


class ConnectInfo(NamedTuple):
    """How to connect to one name.

    - *connect_timeout_ms*: how long to wait for one address, in milliseconds, before the next one
      is tried.
    - *response_timeout_ms*: the timeout of the socket, in milliseconds, where the caller gives no
      *read_timeout*; None for none.
    - *max_connect_retry*: how many times more, in one call, all addresses are tried if none of
      them could be connected to.
    - *transient_markdown_enabled*: whether failures count towards marking an address down.
    - *markdown*: the name is out of use: each call gets a MarkedDownError.
    """

    connect_timeout_ms: float = 3000.0
    response_timeout_ms: float | None = 30000.0
    max_connect_retry: int = 0
    transient_markdown_enabled: bool = True
    markdown: bool = False


class AddressGroupMap(UserDict[str, AddressGroup]):
    """The address groups by name: a mapping that may change while it is in use, and a resolver.

    Values may be AddressGroups or the tiers of one.  A name that is not there is asked of
    *missing*, a callable that takes the name and returns a group or raises NameNotFound; its
    answer is kept.
    """

    def __init__(
        self,
        groups: Mapping[str, Any] | None = None,
        missing: Callable[[str], Any] | None = None,
    ) -> None:
        if missing is not None and not callable(missing):
            raise TypeError(f"missing must be callable, not {missing!r}")
        self.missing = missing
        super().__init__({} if groups is None else groups)

    def __setitem__(self, name: str, group: Any) -> None:
        self.data[name] = group if isinstance(group, AddressGroup) else AddressGroup(group)

    def __missing__(self, name: str) -> AddressGroup:
        if self.missing is None:
            raise KeyError(name)
        self[name] = self.missing(name)
        return self.data[name]

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*.  Raises NameNotFound if nobody knows any."""
        return _ask(self.__getitem__, name)


class ConnectionManager:
    """Gives out open connections by the name of a service, and avoids servers that are sick::

        manager = ConnectionManager({"paymentserv": [[(1, "10.0.0.1:443"), (1, "10.0.0.2:443")]]})
        with manager.connection("paymentserv", ssl=True) as sock:
            sock.sendall(request)
            ...

    *address_groups* maps each name to an AddressGroup or to its tiers; or it is a resolver, as a
    DnsResolver or an AddressGroupMap: then the names it was asked for are watched, every
    *watch_interval* seconds, and a change counts once it has held for *watch_hold*.  Connections
    to an address that is gone are closed, those in use on return.  With *rebalance*, when an
    address is new, all connections of that name are replaced within so many seconds.
    *address_aliases* maps a name to another one, or to one address.  *ssl_context* is what
    ``ssl=True`` means (None: TLS 1.2 or later, verified against the system's roots).

    - Each call takes at most *timeout* seconds, resolving, markdown and all addresses included.
      *connect_infos* says of a name how to connect to it (default: a plain ConnectInfo).
      *connect_timeout* is that of one connect, TLS and *sock_type* included; it goes on for others
      when its caller has gone on to the next address.
    - *balance* ("weighted" or "p2c") and *health* say which address comes first, and when one is
      marked down: see ServerModelDirectory and HealthPolicy.  ``servers`` has what is known.
    - At most *max_sockets* are open (None: 0.8 of the files that the process may open), and at most
      *max_per_address* to one address; the longest idle ones are closed to make room.  With
      *limits* it shares the limits of other pools.
    - A socket that was idle for *idle_timeout*, or open for *max_lifetime*, is closed.

    One manager is for one gevent hub.  Dropped, it closes what is idle.  Durations are seconds;
    None means no bound.
    """

    def __init__(
        self,
        address_groups: Mapping[str, Any] | Resolver | None = None,
        address_aliases: Mapping[str, Any] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        *,
        connect_infos: Mapping[str, ConnectInfo] | None = None,
        timeout: float | None = 10.0,
        connect_timeout: float | None = 5.0,
        balance: Balance = "weighted",
        health: HealthPolicy | None = None,
        max_sockets: int | None = None,
        max_per_address: int | None = None,
        limits: Iterable[Limit] = (),
        idle_timeout: float | None = 60.0,
        max_lifetime: float | None = 3600.0,
        keepalive: float | None = 30.0,
        rebalance: float | None = None,
        watch_interval: float = 1.0,
        watch_hold: float = 5.0,
        listeners: Iterable[object] = (),
        name: str = "manager",
    ) -> None:
        check_seconds("timeout", timeout, zero=True)
        check_seconds("rebalance", rebalance, zero=True)
        if ssl_context is not None and not isinstance(ssl_context, _SSLContext):
            raise TypeError(f"ssl_context must be an SSLContext or None, not {ssl_context!r}")
        self.timeout = timeout
        self.ssl_context = ssl_context
        self.rebalance = rebalance
        self.connect_infos = _checked(connect_infos)
        self.servers = ServerModelDirectory(health, balance=balance)
        self._contexts: dict[object, ssl.SSLContext | None] = {}
        self._resolver = _resolver(address_groups, address_aliases)
        # What the program itself says may name the host whose certificate is asked for.
        self._trusted = isinstance(self._resolver, StaticResolver)
        self._known: dict[str, AddressGroup] = {}  # of those watched
        self._watcher: Watcher | None = None
        if not self._trusted:
            self._watcher = Watcher(
                self._resolver, self._changed, interval=watch_interval, hold=watch_hold
            )
        self._pool = _Sockets(
            self.servers,
            max_per_address=max_per_address,
            max_size=_NO_BOUND if max_sockets is None else max_sockets,
            total_max_size=_most_sockets() if max_sockets is None else max_sockets,
            connect_timeout=_longest(connect_timeout, self.connect_infos),
            idle_timeout=idle_timeout,
            max_lifetime=max_lifetime,
            keepalive=keepalive,
            limits=limits,
            listeners=listeners,
            name=name,
        )

    # Names

    def get_all_addrs(self, name: str) -> list[AnyAddress]:
        """All addresses of *name*, in an order drawn anew; raises NameNotFound if there are none.

        May block for *timeout* seconds of the manager, if the resolver does.
        """
        return self._find(name, self._ends_at(DEFAULT))[1].connect_ordering()

    def get_addr(self, name: str) -> AnyAddress:
        """The first of ``get_all_addrs(name)``."""
        return self.get_all_addrs(name)[0]

    # Connections

    def get_connection(
        self,
        name_or_addr: object,
        ssl: Tls = False,
        sock_type: SockType | None = None,
        read_timeout: float | None = None,
        *,
        server_hostname: str | None = None,
        timeout: float | None = DEFAULT,
    ) -> Any:
        """Return an open connection to the best address of *name_or_addr*; ``release_connection``
        it afterwards.

        That is a name, an AddressGroup, or one address in any spelling (a text is a name if the
        manager knows it).  With *ssl*, TLS: True (verified, by the manager's context), an
        SSLContext, or "unverified".  The certificate must be that of *server_hostname*, by default
        the host of the address, or, where a resolver found that, the host in the name.

        What is returned, and pooled, is a MonitoredSocket, or what *sock_type* makes of one: a
        callable that takes the socket, and may shake hands and log in.  If it has a method
        *keepalive*, that is called on what it made when this was idle for the manager's
        *keepalive* seconds, and what it raises closes it; its *idle_timeout*, in seconds, goes
        before the manager's.  It should be one object, not made anew for each call: connections
        are shared by those who ask with the same.

        The timeout of the socket is *read_timeout* seconds (None: that of the name's ConnectInfo).

        Blocks for at most *timeout* seconds.  Raises an OSError: NameNotFound; OutOfSockets, with
        the name of the limit; the one address's own error, or MultiConnectFailure with those of
        all; MarkedDownError where that was done by hand.  Nothing half-open stays behind.
        """
        self._pool._engine.enter(self._pool)
        check_seconds("read_timeout", read_timeout)
        if sock_type is not None and not callable(sock_type):
            raise TypeError(f"sock_type must be callable, not {sock_type!r}")
        context = self._context(ssl)
        ends_at = self._ends_at(timeout)
        name, group, host = self._find(name_or_addr, ends_at)
        info = self.connect_infos.get(name, _PLAIN)
        if info.markdown:
            raise MarkedDownError(f"{name} is marked down by its ConnectInfo", address=name)
        if context is None:
            if server_hostname is not None:
                raise ValueError("server_hostname is of no use without ssl")
        elif server_hostname is None and host is not None:
            server_hostname = _certified(host)
        if read_timeout is None and info.response_timeout_ms is not None:
            read_timeout = info.response_timeout_ms / 1000.0
        walk = _Walk(self, name, group, info, ends_at, read_timeout)
        return walk.run(lambda each: _Endpoint(each, context, sock_type, server_hostname))

    def connection(
        self,
        name_or_addr: object,
        ssl: Tls = False,
        sock_type: SockType | None = None,
        read_timeout: float | None = None,
        *,
        server_hostname: str | None = None,
        timeout: float | None = DEFAULT,
    ) -> ManagedLease:
        """A connection for the length of a ``with``; the arguments are ``get_connection``'s.

        Nothing raised in the ``with``: the server did well, and the connection goes back.  A broken
        connection, or a time-out, also a ``gevent.Timeout``: the server failed, and it is closed.
        Any other OSError, or who was killed: it is closed, and nobody blamed.  Another exception:
        it goes back, unless bytes lie unread on it.
        """
        options = {"server_hostname": server_hostname, "timeout": timeout}
        return ManagedLease(self, (name_or_addr, ssl, sock_type, read_timeout), options)

    def release_connection(self, sock: Any) -> None:
        """Give back a connection that is fit for use.  Does not block.

        Its server did well, unless that was ``report``-ed otherwise or *sock* is closed.  Raises
        NotInUse if it was released already, or is none of this manager's.
        """
        monitored = self._held(sock)
        if monitored is not None and monitored.closed_at is not None:
            self.discard_connection(sock)
            return
        if not _is_reported(monitored):
            self._succeeded(monitored)
        self._pool.release(sock)

    def discard_connection(self, sock: Any) -> None:
        """Give back a connection that must not be used again; it is closed in the background.

        Nobody is blamed for that: ``report`` it before, if the server is to blame.
        """
        self._cancelled(self._held(sock))
        self._pool.discard(sock)

    def report(self, sock: Any, ok: bool = True, error: BaseException | None = None) -> None:
        """Say of *sock*, which you hold, whether its server did what was wanted.

        Failures in a row mark an address down, though it can be connected to; its connections are
        closed then.  May be called for each request.
        """
        monitored = self._held(sock)
        if ok:
            self._succeeded(monitored)
        else:
            self._failed(monitored, error)

    # Health, by hand

    def mark_down(self, target: object, seconds: float | None = None) -> None:
        """Use the address *target* for nothing, for *seconds* (None: until ``mark_up``).

        Its connections are closed, those in use on return.
        """
        server = self.servers[address(target)]
        server.mark_down(monotonic(), seconds)
        self._pool.drain_address(server.address)

    def mark_up(self, target: object) -> None:
        """Use the address *target* again, and forget that it ever failed."""
        self.servers[address(target)].mark_up(monotonic())

    # Looking, and the end

    def traffic(self, target: object) -> Traffic:
        """What went through all sockets to the address *target*."""
        return self._pool.traffic_of(self.servers[address(target)])

    def stats(self) -> PoolStats:
        """How its pool stands, and what that has counted."""
        return self._pool.stats()

    def __repr__(self) -> str:
        stats = self._pool.stats()
        down = sum(server.down_until is not None for server in self.servers.values())
        return (
            f"<{type(self).__name__} {self._pool.name!r} {stats.in_use} in use, {stats.idle} idle,"
            f" {stats.connecting} connecting | {len(self.servers)} servers, {down} down>"
        )

    def close(self, timeout: float | None = None) -> None:
        """Close it for good: as ``ConnectionPool.close``; afterwards calls get PoolClosed."""
        if self._watcher is not None:
            self._watcher.close()
        self._pool.close(timeout)

    def __enter__(self) -> ConnectionManager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Inside: from the name to a group

    def _ends_at(self, timeout: float | None) -> float:
        check_seconds("timeout", None if timeout is DEFAULT else timeout, zero=True)
        seconds = self.timeout if timeout is DEFAULT else timeout
        return math.inf if seconds is None else monotonic() + seconds

    def _find(self, target: object, ends_at: float) -> tuple[str, AddressGroup, str | None]:
        """What to call *target*, its addresses, and the host in its name if that is not theirs."""
        if isinstance(target, AddressGroup):
            return "addresses", target, None
        if not isinstance(target, str):
            known = address(target)
            return str(known), _alone(known), None
        if not self._trusted:
            group = self._resolve(target, ends_at)
            self._watch(target, group)
            return target, group, target
        try:
            return target, self._resolver.resolve(target), None
        except NameNotFound:
            try:
                return target, AddressGroup.of(target), None
            except ValueError:
                pass
            raise

    def _resolve(self, name: str, ends_at: float) -> AddressGroup:
        """Ask the resolver, within what is left of the caller's time."""
        began = monotonic()
        alarm = gevent.Timeout(None if ends_at == math.inf else max(ends_at - began, 0.0))
        try:
            with alarm:
                return _ask(self._resolver.resolve, name)
        except gevent.Timeout as expired:
            if expired is not alarm:
                raise
            took = monotonic() - began
            raise ConnectError(f"{name!r}: not resolved after {took:.3f} s") from None

    def _watch(self, name: str, group: AddressGroup) -> None:
        if self._watcher is not None and name not in self._known:
            self._watcher.add(name, group)
            self._known[name] = group

    def _changed(
        self,
        name: str,
        added: frozenset[AnyAddress],
        removed: frozenset[AnyAddress],
        group: AddressGroup,
    ) -> None:
        before = self._known.get(name, group)
        self._known[name] = group
        for gone in removed:
            if not any(gone in other for other in self._known.values()):
                self._pool.drain_address(gone)
        if added and self.rebalance is not None:
            for old in before.addresses - removed:
                self._pool.drain_address(old, over=self.rebalance)

    def _context(self, tls: Tls) -> ssl.SSLContext | None:
        """The SSLContext that *tls* asks for; one for all, as it is a part of what is shared."""
        if isinstance(tls, _SSLContext):
            return cast("ssl.SSLContext", tls)
        if tls is False:
            return None
        if tls is True and self.ssl_context is not None:
            return cast("ssl.SSLContext", self.ssl_context)
        if tls is not True and tls != "unverified":
            expected = 'False, True, "unverified" or an SSLContext'
            raise TypeError(f"ssl must be {expected}, not {tls!r}")
        if tls not in self._contexts:
            self._contexts[tls] = SocketFactory("localhost:1", tls=tls).context
        return self._contexts[tls]

    # Inside: what came of a connection

    def _held(self, sock: Any) -> MonitoredSocket | None:
        """The socket in *sock*, which must be in use."""
        self._pool._engine.find(self._pool, sock)
        return self._pool.socket_of(sock)

    def _succeeded(self, monitored: MonitoredSocket | None) -> None:
        if monitored is not None and (use := monitored.use) is not None:
            now = monotonic()
            if use.ended:
                use.attempt.server.succeeded(now)
            use.attempt.succeeded(now)
            use.ended = True

    def _failed(self, monitored: MonitoredSocket | None, error: BaseException | None) -> None:
        if monitored is None or (use := monitored.use) is None:
            return
        if not use.counts:
            use.attempt.cancelled(monotonic())
            return
        now = monotonic()
        server = use.attempt.server
        if use.ended and server.state(now) == "up":
            server.failed(now, error)
        use.attempt.failed(now, error)
        use.ended = True
        if server.down_until is not None:
            self._pool.drain_address(server.address)

    def _cancelled(self, monitored: MonitoredSocket | None) -> None:
        if monitored is not None and monitored.use is not None:
            monitored.use.attempt.cancelled(monotonic())

    def _leave(self, sock: Any, use: int, exc: BaseException | None) -> None:
        """End a ``with``; do nothing if *sock* was given back in it."""
        pool = self._pool
        slot = pool.index.get(id(sock))
        if slot is None or slot.state is not IN_USE or slot.uses != use:
            return
        monitored = pool.socket_of(sock)
        if exc is None:
            self.release_connection(sock)
            return
        if _blames_server(exc) and not _is_reported(monitored):
            self._failed(monitored, exc)
        else:
            self._cancelled(monitored)
        if pool._spoils(exc):
            pool._engine.give_up(pool, slot, sock, Reason.ERROR, exc)
        else:
            pool._engine.give_back(pool, slot, sock, suspect=True)


class ManagedLease:
    """What ``manager.connection()`` returns: in a ``with`` it is a connection, for a while."""

    __slots__ = ("_arguments", "_manager", "_options", "_sock", "_use")

    def __init__(
        self, manager: ConnectionManager, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._manager = manager
        self._arguments = arguments
        self._options = options

    def __enter__(self) -> Any:
        manager = self._manager
        self._sock = sock = manager.get_connection(*self._arguments, **self._options)
        self._use = manager._pool.index[id(sock)].uses
        return sock

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sock, self._sock = self._sock, None
        self._manager._leave(sock, self._use, exc)


class _Endpoint(NamedTuple):
    """What makes two connections interchangeable."""

    address: AnyAddress
    context: ssl.SSLContext | None
    sock_type: SockType | None
    server_hostname: str | None

    def __str__(self) -> str:
        tls = "" if self.context is None else " TLS"
        return f"{self.address}{tls}"


class _DialError(ConnectError):
    """A dial failed: what it raised is the ``__cause__``.

    Who waits for the dial gets a copy of this, and not of what it raised: a caller's own Timeout
    may carry any exception, an OSError too, and must not look like a server that does not answer.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self._told: list[None] = []  # one for all copies

    def is_news(self) -> bool:
        """True once: forty callers who waited for one dial have seen one failure, and not forty."""
        news = not self._told
        self._told[:] = [None]
        return news


@dataclass(frozen=True)
class _Pause(Backoff):
    """How long nobody dials after a failed dial.

    While the server is up, the first failures are followed by no pause: they count, and it is the
    markdown that keeps callers away.  The pauses are for when there is no other server, and for one
    that accepts connections and closes them at once.
    """

    server: ServerModel | None = None
    first: float = 0.02

    def delay(self, failures: int) -> float:
        up = self.server is not None and self.server.down_until is None
        return super().delay(failures - 2 if up else failures)


class _Use:
    """What is known of one use of a socket: the *attempt* that led to it.

    *counts*: failures do.  *ended*: somebody has reported how the attempt ended.
    """

    __slots__ = ("attempt", "counts", "ended")

    def __init__(self, attempt: Attempt, counts: bool) -> None:
        self.attempt = attempt
        self.counts = counts
        self.ended = False


class _Sockets(EndpointPool[_Endpoint, Any]):
    """The sockets of a manager.  Nobody waits for a place in it, or for a server that is away."""

    def __init__(
        self,
        servers: ServerModelDirectory,
        *,
        max_per_address: int | None,
        max_size: int,
        total_max_size: int | None,
        **settings: Any,
    ) -> None:
        if max_per_address is not None:
            check_whole("max_per_address", max_per_address, least=1)
        check_whole("max_sockets", max_size, least=1)
        self.servers = servers
        self._max_per_address = max_per_address
        self._address_limits: WeakValueDictionary[AnyAddress, Limit] = WeakValueDictionary()
        self._traffic: WeakKeyDictionary[ServerModel, Traffic] = WeakKeyDictionary()
        self._factories: dict[object, SocketFactory] = {}
        # id(what is pooled) -> the socket in it.  Written at each dial: an id that is used again
        # finds the socket of its own.
        self._within: WeakValueDictionary[int, MonitoredSocket] = WeakValueDictionary()
        if total_max_size is not None:
            max_size = min(max_size, total_max_size)
        super().__init__(max_size=max_size, total_max_size=total_max_size, min_idle=0, **settings)
        self._total.name = f"max_sockets of {self.name}"

    def socket_of(self, conn: Any) -> MonitoredSocket | None:
        """The socket in what is pooled; None if nobody has it any more."""
        return self._within.get(id(conn))

    def traffic_of(self, server: ServerModel) -> Traffic:
        """That of all sockets to *server*."""
        return self._traffic.setdefault(server, Traffic())

    def drain_address(self, gone: AnyAddress, over: float = 0.0) -> None:
        """Close every connection to an address, those in use on return."""
        for endpoint in self.endpoints():
            if endpoint.address == gone:
                self.drain(endpoint, over)

    def factory(self, endpoint: _Endpoint) -> SocketFactory:
        """What opens sockets to *endpoint*; raises ValueError where TLS could never work."""
        key = (endpoint.address, endpoint.context, endpoint.server_hostname)
        factory = self._factories.get(key)
        if factory is None:
            factory = SocketFactory(
                endpoint.address,
                tls=False if endpoint.context is None else endpoint.context,
                server_hostname=endpoint.server_hostname,
                connect_timeout=self.connect_timeout,
            )
            if len(self._factories) >= _MOST_FACTORIES:  # a resolver may name ever new servers
                del self._factories[next(iter(self._factories))]
            self._factories[key] = factory
        return factory

    # Hooks

    def _new_connection(self, endpoint: _Endpoint) -> Any:
        began = monotonic()
        try:
            return self._open(endpoint)
        except gevent.Timeout as expired:  # the pool's own, or one that a sock_type let out
            told = f": {expired.__cause__}" if expired.__cause__ is not None else ""
            text = f"{endpoint.address}: not open after {monotonic() - began:.3f} s{told}"
            raise _DialError(text) from expired

    def _open(self, endpoint: _Endpoint) -> Any:
        """Open a socket and make of it what is pooled."""
        try:
            sock = self.factory(endpoint)()
        except Exception as error:
            raise _DialError(_about(endpoint.address, error)) from error
        monitored = None
        try:
            server = self.servers[endpoint.address]
            monitored = MonitoredSocket(sock, self.traffic_of(server), address=endpoint.address)
            conn = self._wrapped(endpoint, monitored)
            server.sock_in_use(monitored, monitored.opened_at)
            self._within[id(conn)] = monitored
            return conn
        except BaseException:
            if monitored is None:
                sock.close()
            else:
                monitored.close_now()
            raise

    def _wrapped(self, endpoint: _Endpoint, monitored: MonitoredSocket) -> Any:
        """What is pooled: the socket, or what its sock_type makes of it."""
        if endpoint.sock_type is None:
            return monitored
        try:
            conn = endpoint.sock_type(monitored)
        except Exception as error:
            text = _about(endpoint.address, error)
            raise _DialError(f"{text} (raised by {endpoint.sock_type!r})") from error
        if conn is None:
            raise _DialError(f"{endpoint.address}: {endpoint.sock_type!r} returned None")
        return conn

    def _keepalive(self, endpoint: _Endpoint, conn: Any) -> object:
        return conn.keepalive()

    def _close_connection(self, endpoint: _Endpoint, conn: Any) -> object:
        monitored = self.socket_of(conn)
        try:
            sockets.close(conn)
        finally:
            if monitored is not None:
                monitored.close_now()
                self.servers[endpoint.address].active_connections.pop(monitored, None)
                self._within.pop(id(conn), None)
        return None

    def _fileno(self, endpoint: _Endpoint, conn: Any) -> int | None:
        monitored = self.socket_of(conn)
        return None if monitored is None else sockets.fileno(monitored)

    def _look(self, conn: Any) -> Callable[[], object] | None:
        monitored = self.socket_of(conn)
        return None if monitored is None else sockets.look(monitored._sock)

    # Buckets

    def _settings_of(self, endpoint: _Endpoint | None) -> dict[str, Any]:
        settings: dict[str, Any] = {"prompt": True, "down_fails": True}
        if endpoint is None:
            return settings
        settings["backoff"] = _Pause(server=self.servers[endpoint.address])
        if self._max_per_address is not None:
            limit = self._address_limits.get(endpoint.address)
            if limit is None:
                name = f"max_per_address of {self.name} {endpoint.address}"
                limit = Limit(self._max_per_address, name)
                self._address_limits[endpoint.address] = limit
            settings["limits"] = (limit, self._total, *self._limits)
        idle_timeout = getattr(endpoint.sock_type, "idle_timeout", None)
        if idle_timeout is not None:
            check_seconds("idle_timeout of sock_type", idle_timeout)
            settings["idle_timeout"] = idle_timeout
        return settings

    def _make_bucket(self, endpoint: _Endpoint | None) -> Bucket:
        bucket = super()._make_bucket(endpoint)
        ping = None if endpoint is None else getattr(endpoint.sock_type, "keepalive", None)
        if ping is not None and not callable(ping):
            raise TypeError(f"keepalive of sock_type must be a method, not {ping!r}")
        bucket.pinged = ping is not None
        return bucket


class _Walk:
    """One call of get_connection: from address to address until one can be connected to."""

    def __init__(
        self,
        manager: ConnectionManager,
        name: str,
        group: AddressGroup,
        info: ConnectInfo,
        ends_at: float,
        read_timeout: float | None,
    ) -> None:
        self.servers, self.pool = manager.servers, manager._pool
        self.name, self.group, self.info = name, group, info
        self.ends_at, self.read_timeout = ends_at, read_timeout
        self.tried: list[AnyAddress] = []
        self.errors: list[tuple[object, BaseException]] = []

    def run(self, endpoint_at: Callable[[AnyAddress], _Endpoint]) -> Any:
        """A connection; raises what all the addresses came to."""
        for again in range(1 + self.info.max_connect_retry):
            if again and not self._pause(again):
                break
            self.tried = []
            while attempt := self.servers.attempt(self.group, monotonic(), self.tried):
                self.tried.append(attempt.address)
                conn = self._try(attempt, endpoint_at(attempt.address))
                if conn is not None:
                    return conn
        raise self._failure()

    def _try(self, attempt: Attempt, endpoint: _Endpoint) -> Any:
        """A connection to one address; None if there is none, and ``errors`` says why."""
        patience = self._patience()
        failed: BaseException
        blamed = self.info.transient_markdown_enabled
        try:
            self.pool.factory(endpoint)  # what can be told now need not cost a dial
            slot, conn = self.pool._acquire(endpoint, patience)
        except OutOfSockets as error:
            failed, blamed = error, False
        except PoolTimeout as error:
            failed = error
            blamed = blamed and patience >= min(_IMPATIENT, self._most)
        except ConnectError as error:  # a dial's, and no other OSError: see _DialError
            failed = _cause_of(error)
            blamed = blamed and (not isinstance(error, _DialError) or error.is_news())
        except BaseException:
            attempt.cancelled(monotonic())
            raise
        else:
            self._lend(conn, attempt, fresh=slot.uses == 1)
            return conn
        self.errors.append((attempt.address, failed.with_traceback(None)))
        if blamed:
            attempt.failed(monotonic(), failed)
        else:
            attempt.cancelled(monotonic())
        return None

    def _lend(self, conn: Any, attempt: Attempt, fresh: bool) -> None:
        monitored = self.pool.socket_of(conn)
        attempt.connected(monotonic(), reused=not fresh)
        if monitored is not None:
            monitored.new_sock = fresh
            monitored.use = _Use(attempt, self.info.transient_markdown_enabled)
            monitored.settimeout(self.read_timeout)

    @property
    def _most(self) -> float:
        """Seconds for one address at most."""
        return self.info.connect_timeout_ms / 1000.0

    def _patience(self) -> float:
        """Seconds for this address: a part of what is left, so that there is some for the others.

        Once nothing is left, only what lies idle can be had.
        """
        left = max(self.ends_at - monotonic(), 0.0)
        others = max(len(self.group.addresses) - len(self.tried), 0)
        part = left if not others else max(left / (1 + others), min(_LEAST_PART, left / 2))
        return min(part, self._most)

    def _pause(self, again: int) -> bool:
        """Wait a moment before all are tried again; False if there is no time for that."""
        seconds = min(0.05 * 2 ** min(again - 1, 9), 1.0)
        if monotonic() + seconds >= self.ends_at:
            return False
        gevent.sleep(seconds)
        return True

    def _failure(self) -> BaseException:
        """What all the addresses came to."""
        now = monotonic()
        for each in sorted(self.group.addresses.difference(self.tried), key=str):
            self.errors.append((each, self.servers[each].marked_down_error(now)))
        errors, self.errors = self.errors, []
        last = errors[-1][1]
        if len(self.group.addresses) == 1 or all(isinstance(e, OutOfSockets) for _, e in errors):
            return last
        shown = "; ".join(_about(each, error) for each, error in errors[:5])
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        message = f"{self.name}: no connection to any of {len(self.group.addresses)} addresses"
        return MultiConnectFailure(f"{message}: {shown}{more}", errors=errors)


class _Aliased:
    """A resolver, with other names for what it knows."""

    def __init__(self, resolver: Resolver, aliases: Mapping[str, Any]) -> None:
        self._resolver = resolver
        self._aliases = dict(aliases)
        for alias in aliases:
            self._end_of(alias)

    def resolve(self, name: str, /) -> AddressGroup:
        end = self._end_of(name)
        return end if isinstance(end, AddressGroup) else self._resolver.resolve(end)

    def _end_of(self, alias: str) -> str | AddressGroup:
        """The name, or the address, at the end of the chain that begins with *alias*."""
        chain: list[Any] = [alias]
        while isinstance(chain[-1], str) and chain[-1] in self._aliases:
            chain.append(self._aliases[chain[-1]])
            if chain[-1] in chain[:-1]:
                raise ValueError(f"aliases go round in a circle: {' -> '.join(map(str, chain))}")
        end = chain[-1]
        return end if isinstance(end, str) else AddressGroup.of(end)


_PLAIN = ConnectInfo()


@lru_cache(maxsize=256)
def _alone(known: AnyAddress) -> AddressGroup:
    """The group of one address; to make it takes longer than all the rest of a call."""
    return AddressGroup.of(known)


def _resolver(groups: Any, aliases: Mapping[str, Any] | None) -> Resolver:
    """What knows the addresses behind a name."""
    if callable(getattr(groups, "resolve", None)):
        return groups if not aliases else _Aliased(groups, aliases)
    if groups is not None and not isinstance(groups, Mapping):
        raise TypeError(f"address_groups must be a mapping or have resolve(name), not {groups!r}")
    return StaticResolver({} if groups is None else groups, aliases)


def _ask(resolve: Callable[[str], AddressGroup], name: str) -> AddressGroup:
    """The answer of a resolver; a KeyError, by which many say that they know nothing, is none."""
    try:
        return resolve(name)
    except LookupError as error:
        raise NameNotFound(f"{name!r} was not found: {error!r}", name=name) from error


def _checked(infos: Mapping[str, ConnectInfo] | None) -> dict[str, ConnectInfo]:
    found = {} if infos is None else dict(infos)
    for name, info in found.items():
        if not isinstance(info, ConnectInfo):
            raise TypeError(f"connect_infos[{name!r}] must be a ConnectInfo, not {info!r}")
        place = f"connect_infos[{name!r}]."
        check_seconds(f"{place}connect_timeout_ms", info.connect_timeout_ms, none=False)
        check_seconds(f"{place}response_timeout_ms", info.response_timeout_ms)
        check_whole(f"{place}max_connect_retry", info.max_connect_retry)
    return found


def _longest(connect_timeout: float | None, infos: Mapping[str, ConnectInfo]) -> float | None:
    """A bound for a connect that no name's own bound is longer than."""
    check_seconds("connect_timeout", connect_timeout)
    if connect_timeout is None:
        return None
    return max([connect_timeout, *(info.connect_timeout_ms / 1000.0 for info in infos.values())])


def _most_sockets() -> int | None:
    """0.8 of the files that this process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if files == resource.RLIM_INFINITY else max(int(0.8 * files), 1)


def _certified(name: str) -> str:
    """The host in *name*, as the one whose certificate is asked for; a resolver, which may have
    asked anybody, has no say in that."""
    try:
        known = address(name, default_port=1)
    except ValueError as error:
        message = f"ssl needs server_hostname: {name!r} says not whose certificate it should be"
        raise ValueError(message) from error
    if not isinstance(known, Address):
        raise ValueError(f"ssl needs server_hostname: {name!r} has no host")
    return known.ip.removesuffix(".")


def _is_reported(monitored: MonitoredSocket | None) -> bool:
    """Whether the holder has said already how his request ended."""
    return monitored is not None and monitored.use is not None and monitored.use.ended


def _blames_server(exc: BaseException) -> bool:
    """Whether *exc*, which left a ``with``, says that the server did not do its work.

    Not if it is of another connection, or a file that is not there, or the caller's own.
    """
    if isinstance(exc, (ConnectError, PoolError)):
        return False
    failures = (ConnectionError, TimeoutError, ssl.SSLError, gevent.Timeout)
    return isinstance(exc, failures) or type(exc) is OSError


def _cause_of(error: ConnectError) -> BaseException:
    """What the dial raised, if that is an OSError, or else a ConnectError that tells of it.

    One for each caller: what is raised takes on the frames that it passes.
    """
    if not isinstance(error, _DialError):
        return error
    cause = error.__cause__
    if isinstance(cause, OSError):
        try:
            own = copy.copy(cause)
        except Exception:
            own = None  # its class cannot be copied
        if type(own) is type(cause):
            return own
    told = ConnectError(str(error))
    told.__cause__ = cause
    return told


def _about(where: object, error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if str(where) in text else f"{where}: {text}"
