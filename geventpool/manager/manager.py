"""ConnectionManager: from a name to an open connection.

It puts together what others know: which addresses a name has (``names.py``), how each server is
doing (``health.py``) and which to try next (``balancing.py``), the walk over them
(``address_walk.py``), and the sockets that are open, never one too many (``socket_pool.py``).
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from gevent import getcurrent

from geventpool._util.arguments import check_seconds
from geventpool._util.clock import monotonic
from geventpool._util.deadlines import active as deadlines
from geventpool._util.deadlines import ends_at
from geventpool.addresses import AddressGroup, AnyAddress, Resolver, address
from geventpool.errors import ConnectError, MarkedDownError
from geventpool.events import Holder, PoolStats
from geventpool.manager.address_walk import AddressWalk
from geventpool.manager.balancing import Balance, ServerModelDirectory
from geventpool.manager.lease import ManagedLease
from geventpool.manager.names import AddressGroupMap, ConnectInfo, Names, longest_connect
from geventpool.manager.policy import HealthPolicy
from geventpool.manager.socket_pool import Endpoint, SocketPool, SockType
from geventpool.manager.subset import Subset
from geventpool.manager.tls import Tls, certified_host, check_context, context_of
from geventpool.manager.uses import Uses
from geventpool.overload import CoDel
from geventpool.pools import Limit
from geventpool.pools.extension import DEFAULT, Hold
from geventpool.registry import register
from geventpool.sockets.monitored import Traffic

__all__ = ["AddressGroupMap", "ConnectInfo", "ConnectionManager"]


class ConnectionManager:
    """Gives out open connections by the name of a service, and avoids servers that are sick::

        manager = ConnectionManager({"paymentserv": [[(1, "10.0.0.1:443"), (1, "10.0.0.2:443")]]})
        with manager.connection("paymentserv", ssl=True) as sock:
            sock.sendall(request)
            ...

    *address_groups* maps each name to an AddressGroup or to its tiers; or it is a resolver, as a
    DnsResolver or an AddressGroupMap: then the names it was asked for are watched, every
    *watch_interval* seconds (a directory tells by itself), and a change counts once it has held for
    *watch_hold*.  Connections to an address that is gone are closed, those in use on return.  With
    *rebalance*, when an address is new, all of that name are replaced within so many seconds.
    *address_aliases* maps a name to another one, or to one address.  *ssl_context* is what
    ``ssl=True`` means (None: TLS 1.2 or later, verified against the system's roots).

    - Each call takes at most *timeout* seconds, resolving, markdown and all addresses included, and
      ends before a Deadline that the caller is under.
      *connect_infos* says of a name how to connect to it (default: a plain ConnectInfo).
      *connect_timeout* is that of one connect, TLS and *sock_type* included; it goes on for others
      when its caller has gone on to the next address.
    - *balance* ("weighted" or "p2c") and *health* say which address comes first, and when one is
      marked down: see ServerModelDirectory and HealthPolicy.  ``servers`` has what is known.
      Of a service with many servers a *subset*, a Subset, has each process use a part of its own.
    - At most *max_sockets* are open (None: 0.8 of the files that the process may open), and at most
      *max_per_address* to one address; the longest idle ones are closed to make room.  With
      *limits* it shares the limits of other pools.  No caller waits for a place: at a limit it gets
      OutOfSockets at once.  What it may have to wait for is its turn to dial; with *overload*, a
      CoDel, one that waits too long for that goes on to the next address, or gets PoolOverloaded
      if it was like that at all of them.
    - A socket that was idle for *idle_timeout*, or open for *max_lifetime*, is closed.  *track* and
      *leak_threshold* are as in ConnectionPool: one that is held for longer is told of.

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
        subset: Subset | None = None,
        max_sockets: int | None = None,
        max_per_address: int | None = None,
        limits: Iterable[Limit] = (),
        overload: CoDel | None = None,
        idle_timeout: float | None = 60.0,
        max_lifetime: float | None = 3600.0,
        keepalive: float | None = 30.0,
        rebalance: float | None = None,
        watch_interval: float = 1.0,
        watch_hold: float = 5.0,
        listeners: Iterable[object] = (),
        track: bool = False,
        leak_threshold: float | None = None,
        name: str | None = None,
    ) -> None:
        check_seconds("timeout", timeout, zero=True)
        check_seconds("rebalance", rebalance, zero=True)
        check_context("ssl_context", ssl_context)
        self.timeout = timeout
        self.ssl_context = ssl_context
        self.rebalance = rebalance
        self.servers = ServerModelDirectory(health, balance=balance, subset=subset)
        self._contexts: dict[object, ssl.SSLContext | None] = {}
        self._names = Names(
            address_groups,
            address_aliases,
            connect_infos,
            on_change=self._changed,
            watch_interval=watch_interval,
            watch_hold=watch_hold,
        )
        self.connect_infos = self._names.infos
        self._pool = SocketPool(
            self.servers,
            manager=type(self),
            max_sockets=max_sockets,
            max_per_address=max_per_address,
            connect_timeout=longest_connect(connect_timeout, self.connect_infos),
            idle_timeout=idle_timeout,
            max_lifetime=max_lifetime,
            keepalive=keepalive,
            limits=limits,
            overload=overload,
            listeners=listeners,
            track=track,
            leak_threshold=leak_threshold,
            name=name,
        )
        self._uses = Uses(self._pool)
        register(self)

    # Names

    def get_all_addrs(self, name: str) -> list[AnyAddress]:
        """All addresses of *name*, in an order drawn anew; raises NameNotFound if there are none.

        May block for *timeout* seconds of the manager, if the resolver does.
        """
        return self._names.find(name, self._ends_at(DEFAULT)).group.connect_ordering()

    def refresh(self, name: str) -> list[AnyAddress]:
        """The addresses of *name*, in an order drawn anew, after its resolver has asked anew.

        That is done by itself when none of them can be connected to.  What the resolver has asked
        within the last second, or just asks, counts as new; one that has no ``refresh(name)`` gives
        what it has.  Blocks and raises as ``get_all_addrs``.
        """
        self._names.refresh(name, self._ends_at(DEFAULT))
        return self.get_all_addrs(name)

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
        before the manager's.  Its *classify_error(error)* may return Verdict.SERVER_FULL for what a
        log-in raised: that marks no server down.  It should be one object, not made anew for each
        call: connections are shared by callers that ask with the same.

        The timeout of the socket is *read_timeout* seconds (None: that of the name's ConnectInfo).

        Blocks for at most *timeout* seconds.  Raises PoolOverloaded with *overload*, and else an
        OSError: NameNotFound; OutOfSockets, with
        the name of the limit; the one address's own error, or MultiConnectFailure with those of
        all; MarkedDownError where that was done by hand.  Nothing half-open stays behind.
        """
        self._pool._assert_usable_here()
        check_seconds("read_timeout", read_timeout)
        if sock_type is not None and not callable(sock_type):
            raise TypeError(f"sock_type must be callable, not {sock_type!r}")
        context = context_of(ssl, self.ssl_context, self._contexts)
        ends_at = self._ends_at(timeout)
        try:
            found = self._names.find(name_or_addr, ends_at)
            if found.info.markdown:
                message = f"{found.name} is marked down by its ConnectInfo"
                raise MarkedDownError(message, address=found.name)
        except ConnectError as error:
            self._pool._count_refusal(error)
            raise
        if context is None:
            if server_hostname is not None:
                raise ValueError("server_hostname is of no use without ssl")
        elif server_hostname is None and found.host is not None:
            server_hostname = certified_host(found.host)
        if read_timeout is None and found.info.response_timeout_ms is not None:
            read_timeout = found.info.response_timeout_ms / 1000.0

        def endpoint_at(each: AnyAddress) -> Endpoint:
            return Endpoint(each, context, sock_type, server_hostname)

        refresh = partial(self._names.refresh, name_or_addr, ends_at)
        walk = AddressWalk(
            self.servers, self._pool, found, endpoint_at, ends_at, read_timeout, refresh
        )
        return self._run(walk)

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
        Any other OSError, or a kill: it is closed, and no server blamed.  Another exception:
        it goes back, unless bytes lie unread on it.
        """
        options = {"server_hostname": server_hostname, "timeout": timeout}
        return ManagedLease(self, (name_or_addr, ssl, sock_type, read_timeout), options)

    def release_connection(self, sock: Any) -> None:
        """Give back a connection that is fit for use.  Does not block.

        Its server did well, unless that was ``report``-ed otherwise or *sock* is closed.  Raises
        NotInUse if it was released already, or is none of this manager's.
        """
        monitored = self._uses.held(sock)
        if monitored is not None:
            if monitored.closed_at is not None and not monitored.detached:
                self.discard_connection(sock)
                return
            self._uses.returned(monitored)
        self._pool.release(sock)
        self._log_transitions()

    def discard_connection(self, sock: Any) -> None:
        """Give back a connection that must not be used again; it is closed in the background.

        No server is blamed for that: ``report`` it before, if the server is to blame.
        """
        monitored = self._uses.held(sock)
        if monitored is not None:
            self._uses.end(monitored).cancelled()
        self._pool.discard(sock)
        self._log_transitions()

    def report(self, sock: Any, ok: bool = True, error: BaseException | None = None) -> None:
        """Say of *sock*, which you hold, whether its server did what was wanted.

        Failures in a row mark an address down, though it can be connected to; its connections are
        closed then.  May be called for each request.
        """
        monitored = self._uses.held(sock)
        if monitored is not None:
            use = self._uses.of(monitored)
            if ok:
                use.succeeded()
            else:
                self._uses.failed(use, error)
            self._log_transitions()

    # Health, by hand

    def mark_down(self, target: object, seconds: float | None = None) -> None:
        """Use the address *target* for nothing, for *seconds* (None: until ``mark_up``).

        Its connections are closed, those in use on return.
        """
        self._pool._assert_usable_here()
        server = self.servers[address(target)]
        server.mark_down(monotonic(), seconds)
        self._pool.drain_address(server.address)
        self._log_transitions()

    def mark_up(self, target: object) -> None:
        """Use the address *target* again, and forget that it ever failed."""
        self._pool._assert_usable_here()
        self.servers[address(target)].mark_up(monotonic())
        self._log_transitions()

    # Looking, and the end

    def traffic(self, target: object) -> Traffic:
        """What went through all sockets to the address *target*."""
        return self._pool.traffic_of(self.servers[address(target)])

    @property
    def name(self) -> str:
        """What it is called, in messages and in the log."""
        return self._pool.name

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
        return self._pool.closed

    def stats(self) -> PoolStats:
        """How its pool stands, and what that has counted."""
        return self._pool.stats()

    def holders(self) -> tuple[Holder, ...]:
        """For each connection in use: who has it, for how long, and where it is just now."""
        return self._pool.holders()

    def __repr__(self) -> str:
        stats = self._pool.stats()
        down = sum(server.down_until is not None for server in self.servers.values())
        return (
            f"<{type(self).__name__} {self._pool.name!r} {stats.in_use} in use, {stats.idle} idle,"
            f" {stats.connecting} connecting | {len(self.servers)} servers, {down} down>"
        )

    def close(self, timeout: float | None = None) -> None:
        """Close it for good: as ``ConnectionPool.close``; afterwards calls get PoolClosed."""
        self._pool._assert_usable_here()
        self._names.close()
        self._pool.close(timeout)

    def __enter__(self) -> ConnectionManager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Inside

    def _ends_at(self, timeout: float | None) -> float:
        check_seconds("timeout", None if timeout is DEFAULT else timeout, zero=True)
        seconds = self.timeout if timeout is DEFAULT else timeout
        latest = ends_at(getcurrent()) if deadlines else math.inf
        return latest if seconds is None else min(monotonic() + seconds, latest)

    def _changed(self, gone: Iterable[AnyAddress], old: AddressGroup, new: AddressGroup) -> None:
        """A name led to *old* and leads to *new*; no name leads to those *gone* any more."""
        for each in gone:
            self._pool.drain_address(each)
        subset = self.servers.subset
        used = new.addresses if subset is None else subset.of(new)
        if self.rebalance is not None and not used <= old.addresses:
            for each in old.addresses & new.addresses:
                self._pool.drain_address(each, over=self.rebalance)

    def _end_lease(self, hold: Hold, sock: Any, exc: BaseException | None) -> None:
        """End a ``with``; do nothing if *sock* was given back in it."""
        if not self._pool._is_held(hold):
            return
        if exc is None:
            self.release_connection(sock)
            return
        self._uses.end_by(hold, sock, exc)
        self._log_transitions()

    def _run(self, walk: AddressWalk) -> Any:
        """The connection that *walk* comes to; the log tells what it has found out."""
        try:
            conn = walk.run()
        except BaseException:
            self._log_transitions()
            raise
        try:
            self._log_transitions()
        except BaseException:  # a kill, in a handler of the log
            self.discard_connection(conn)
            raise
        return conn

    def _log_transitions(self) -> None:
        """Say which servers have gone, and which are back.  May switch, if the log does."""
        self.servers.journal.tell(self._pool.log)
